//! Mixtral: Mistral with experts. Defaults are those of transformers' `MixtralConfig`. Its GGUF files call themselves Llama, with experts.

use super::decoder::{self, LLAMA};
use super::{ATTENTION, EXPERTS_AND_NORMS, Family, LLAMA_NAMES};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::experts::QWEN_EXPERTS;
use crate::model::{ExpertNames, Experts, ModelConfig, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "mixtral",
    models: "Mixtral",
    classes: &["MixtralForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["llama"],
    gguf_names: &GGUF_NAMES,
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "Mixtral",
    layer_modules: &[ATTENTION, EXPERTS_AND_NORMS],
};

/// Stored experts are called otherwise than in transformers.
static NAMES: ExpertNames = ExpertNames { each: ["w1", "w3", "w2"], former: &[(".block_sparse_moe.", ".mlp.")], ..QWEN_EXPERTS };

const GGUF_NAMES: [(&str, &str); 3] =
    [("ffn_gate_exps", "mlp.experts.w1"), ("ffn_up_exps", "mlp.experts.w3"), ("ffn_down_exps", "mlp.experts.w2")];

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults { n_kv_heads: Some(8), context_length: 4096 * 32, epsilon: 1e-5, rope_theta: 1e6, ..Defaults::default() };
    let config = fields.decoder(&FAMILY, &defaults)?;
    let experts = Experts { names: &NAMES, ..Experts::of_json(fields, 2)? };
    let sliding_window = fields.unsigned("sliding_window")?;
    Ok(ModelConfig { sliding_window, variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::Interleaved)?;
    let experts = Experts { names: &NAMES, ..Experts::of_gguf(keys)? };
    Ok(ModelConfig { variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}
