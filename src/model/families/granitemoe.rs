//! Granite 3, the mixtures of experts: the multipliers of the dense models, and experts. Defaults are those of transformers'
//! `GraniteMoeConfig`.

use super::decoder::{self, LLAMA};
use super::{ATTENTION, Family, LLAMA_NAMES, Names, granite, llama};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::experts::QWEN_EXPERTS;
use crate::model::{ExpertNames, Experts, ModelConfig, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "granitemoe",
    models: "Granite 3 (mixtures of experts)",
    classes: &["GraniteMoeForCausalLM"],
    names: Names { ffn: "block_sparse_moe", ..LLAMA_NAMES },
    gguf: &["granitemoe"],
    gguf_names: &GGUF_NAMES,
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "GraniteMoe",
    layer_modules: &[
        ATTENTION,
        &[
            (".block_sparse_moe", "{}MoE"),
            (".block_sparse_moe.router", "{}TopKRouter"),
            (".block_sparse_moe.experts", "{}Experts"),
            (".block_sparse_moe.experts.act_fn", "SiLUActivation"),
            (".input_layernorm", "{}RMSNorm"),
            (".post_attention_layernorm", "{}RMSNorm"),
        ],
    ],
};

/// Checkpoints call experts and router otherwise than transformers.
static NAMES: ExpertNames = ExpertNames {
    router: "router",
    former: &[
        (".input_linear.weight", ".experts.gate_up_proj"),
        (".output_linear.weight", ".experts.down_proj"),
        (".router.layer.", ".router."),
    ],
    ..QWEN_EXPERTS
};

const GGUF_NAMES: [(&str, &str); 4] = [
    ("ffn_gate_inp", "block_sparse_moe.router"),
    ("ffn_gate_exps", "block_sparse_moe.experts.gate_proj"),
    ("ffn_up_exps", "block_sparse_moe.experts.up_proj"),
    ("ffn_down_exps", "block_sparse_moe.experts.down_proj"),
];

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = fields.decoder(&FAMILY, &Defaults::default())?;
    let experts = Experts { names: &NAMES, ..Experts::of_json(fields, 2)? };
    let variant = Variant { experts: Some(experts), ..granite::multipliers_of_json(fields, config.variant.clone())? };
    Ok(ModelConfig { variant, ..llama::with_attention_biases(fields, config)? })
}

/// Converters permute the rows of q and k as for Llama.
fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::Interleaved)?;
    let experts = Experts { names: &NAMES, ..Experts::of_gguf(keys)? };
    let variant = Variant { experts: Some(experts), ..granite::multipliers_of_gguf(keys, config.variant)? };
    Ok(ModelConfig { variant, ..config })
}
