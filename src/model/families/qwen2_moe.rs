//! Qwen1.5 and Qwen2, the mixtures of experts: attention of the dense models, experts, and one that every token takes, times a sigmoid of
//! its own. Defaults are those of transformers' `Qwen2MoeConfig`. In GGUF files every layer has experts, whose weights are not normalised.

use super::decoder::{self, LLAMA};
use super::qwen3_moe::sparse_layers;
use super::{ATTENTION, EXPERTS_AND_NORMS, Family, LLAMA_NAMES, Modules};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{Experts, ModelConfig, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "qwen2_moe",
    models: "Qwen1.5, Qwen2 (mixtures of experts)",
    classes: &["Qwen2MoeForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["qwen2moe"],
    gguf_names: &[],
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "Qwen2Moe",
    layer_modules: &[ATTENTION, EXPERTS_AND_NORMS, SHARED_EXPERT],
};

/// The expert that every token takes, and its gate.
pub(super) const SHARED_EXPERT: Modules = &[
    (".mlp.shared_expert", "{}MLP"),
    (".mlp.shared_expert.gate_proj", "Linear"),
    (".mlp.shared_expert.up_proj", "Linear"),
    (".mlp.shared_expert.down_proj", "Linear"),
    (".mlp.shared_expert.act_fn", "SiLUActivation"),
    (".mlp.shared_expert_gate", "Linear"),
];

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults { n_kv_heads: Some(16), context_length: 32_768, ..Defaults::default() };
    let config = fields.decoder(&FAMILY, &defaults)?;
    let experts = sparse_layers(fields, config.n_layers, Experts::of_json(fields, 4)?)?;
    let experts = experts.with_gated_of_json(fields, 5632)?;
    let uses_window = fields.bool("use_sliding_window")?.unwrap_or(false);
    let window = fields.nullable("sliding_window", 4096)?.filter(|_| uses_window);
    // Every other layer, up to some layer.
    let n_windowed = fields.unsigned("max_window_layers")?.unwrap_or(28);
    let windowed = match fields.windowed_layers(config.n_layers)? {
        None if window.is_some() => {
            super::all_but_every(2, config.n_layers).iter().zip(0..).map(|(is, at)| *is && at < n_windowed).collect()
        }
        listed => listed.unwrap_or_default(),
    };
    let variant = Variant { experts: Some(experts), windowed_layers: window.map(|_| windowed), ..config.variant };
    let attention_bias = fields.bool("qkv_bias")?.unwrap_or(true);
    Ok(ModelConfig { attention_bias, sliding_window: window, variant, ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::NeoX)?;
    let normalises = keys.bool("expert_weights_norm")?.unwrap_or(false);
    let experts = Experts { normalises, ..Experts::of_gguf(keys)?.with_gated_of_gguf(keys)? };
    Ok(ModelConfig { variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}
