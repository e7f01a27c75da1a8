//! OLMoE: Llama with experts, queries and keys normed whole. Defaults are those of transformers' `OlmoeConfig`.

use super::decoder::{self, LLAMA, Layout};
use super::{ATTENTION, EXPERTS_AND_NORMS, Family, LLAMA_NAMES, QUERY_KEY_NORMS, llama};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{Experts, ModelConfig, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "olmoe",
    models: "OLMoE",
    classes: &["OlmoeForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["olmoe"],
    gguf_names: &[],
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Olmoe",
    layer_modules: &[ATTENTION, QUERY_KEY_NORMS, EXPERTS_AND_NORMS],
};

const LAYOUT: Layout = Layout { norms_whole_rows: true, ..LLAMA };

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    fields.refuse_number("clip_qkv")?;
    let config = fields.decoder(&FAMILY, &Defaults { context_length: 4096, epsilon: 1e-5, ..Defaults::default() })?;
    let normalises = fields.bool("norm_topk_prob")?.unwrap_or(false);
    let experts = Experts { normalises, ..Experts::of_json(fields, 8)? };
    let variant = Variant { experts: Some(experts), ..config.variant.clone() };
    Ok(ModelConfig { qk_norm: true, variant, ..llama::with_attention_biases(fields, config)? })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::NeoX)?;
    let normalises = keys.bool("expert_weights_norm")?.unwrap_or(false);
    let experts = Experts { normalises, ..Experts::of_gguf(keys)? };
    Ok(ModelConfig { qk_norm: true, variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}
