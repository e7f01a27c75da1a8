//! Qwen3, the mixtures of experts: attention of the dense models, and experts whose weights are normalised. Defaults are those of
//! transformers' `Qwen3MoeConfig`. In GGUF files every layer has experts, with normalised weights.

use super::decoder::{self, LLAMA};
use super::{ATTENTION, EXPERTS_AND_NORMS, Family, LLAMA_NAMES, QUERY_KEY_NORMS, llama};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{Experts, ModelConfig, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "qwen3_moe",
    models: "Qwen3 (mixtures of experts)",
    classes: &["Qwen3MoeForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["qwen3moe"],
    gguf_names: &[],
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "Qwen3Moe",
    layer_modules: &[ATTENTION, QUERY_KEY_NORMS, EXPERTS_AND_NORMS],
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults { n_kv_heads: Some(4), context_length: 32_768, ..Defaults::default() };
    let config = fields.decoder(&FAMILY, &defaults)?;
    let uses_window = fields.bool("use_sliding_window")?.unwrap_or(false);
    let window = fields.nullable("sliding_window", 4096)?;
    let experts = sparse_layers(fields, config.n_layers, Experts::of_json(fields, 8)?)?;
    let variant = Variant { experts: Some(experts), ..config.variant.clone() };
    let config = llama::with_attention_biases(fields, config)?;
    Ok(ModelConfig { qk_norm: true, sliding_window: window.filter(|_| uses_window), variant, ..config })
}

/// Which layers have experts, and whether their weights are normalised, as configs of Qwen say it.
pub(super) fn sparse_layers(fields: &Fields<'_>, n_layers: usize, experts: Experts) -> Result<Experts> {
    let step = fields.interval("decoder_sparse_step", 1)?;
    let plain = fields.unsigned_list("mlp_only_layers")?.unwrap_or_default();
    let normalises = fields.bool("norm_topk_prob")?.unwrap_or(false);
    let has_experts = |layer: usize| (layer + 1).is_multiple_of(step) && !plain.contains(&layer);
    Ok(Experts { normalises, ..experts.in_layers(n_layers, has_experts) })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::NeoX)?;
    let variant = Variant { experts: Some(Experts::of_gguf(keys)?), ..config.variant };
    Ok(ModelConfig { qk_norm: true, variant, ..config })
}
