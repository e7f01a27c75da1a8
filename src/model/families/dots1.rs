//! dots.llm1: attention of Qwen3, and experts as GLM-4.5 has them. Defaults are those of transformers' `Dots1Config`.

use super::decoder::{self, LLAMA};
use super::glm4_moe::{self, SHARED_EXPERTS};
use super::{ATTENTION, EXPERTS_AND_NORMS, Family, LLAMA_NAMES, QUERY_KEY_NORMS, llama};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{Experts, ModelConfig, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "dots1",
    models: "dots.llm1",
    classes: &["Dots1ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["dots1"],
    gguf_names: &[
        ("exp_probs_b", "mlp.gate.e_score_correction"),
        ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
        ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
        ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
    ],
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "Dots1",
    layer_modules: &[ATTENTION, QUERY_KEY_NORMS, EXPERTS_AND_NORMS, SHARED_EXPERTS],
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = fields.decoder(&FAMILY, &Defaults::default())?;
    let experts = glm4_moe::of_deepseek_json(fields, config.n_layers, 0)?;
    let normalises = fields.bool("norm_topk_prob")?.unwrap_or(false);
    let variant = Variant {
        experts: Some(Experts { normalises, ..experts }),
        windowed_layers: fields.windowed_layers(config.n_layers)?,
        ..config.variant.clone()
    };
    let sliding_window = fields.nullable("sliding_window", 4096)?;
    let n_full_attention_layers = fields.nullable("max_window_layers", 62)?.unwrap_or(usize::MAX);
    let config = llama::with_attention_biases(fields, config)?;
    Ok(ModelConfig { qk_norm: true, sliding_window, n_full_attention_layers, variant, ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::NeoX)?;
    let experts = glm4_moe::of_deepseek_gguf(keys, config.n_layers)?;
    let normalises = keys.bool("expert_weights_norm")?.unwrap_or(false);
    let variant = Variant { experts: Some(Experts { normalises, ..experts }), ..config.variant };
    Ok(ModelConfig { qk_norm: true, variant, ..config })
}
