//! Qwen2 and Qwen2.5: Llama with biases of queries, keys and values, and with a window in the later layers where one is used.
//! Defaults are those of transformers' `Qwen2Config`.

use super::decoder::{self, LLAMA};
use super::{DECODER_LAYER, Family, LLAMA_NAMES};
use crate::error::Result;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopePairing};

pub(super) static FAMILY: Family = Family {
    name: "qwen2",
    models: "Qwen2, Qwen2.5",
    classes: &["Qwen2ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["qwen2"],
    gguf_names: &[],
    from_json,
    from_gguf: |keys| keys.decoder(&FAMILY, RopePairing::NeoX),
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "Qwen2",
    layer_modules: DECODER_LAYER,
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults { n_kv_heads: Some(32), head_size: None, context_length: 32_768, ..Defaults::default() };
    let config = with_window(fields, fields.decoder(&FAMILY, &defaults)?)?;
    Ok(ModelConfig { attention_bias: true, ..config })
}

/// The window of the later layers, where one is used.
pub(super) fn with_window(fields: &Fields<'_>, config: ModelConfig) -> Result<ModelConfig> {
    let uses_window = fields.bool("use_sliding_window")?.unwrap_or(false);
    let window = fields.unsigned("sliding_window")?.unwrap_or(4096);
    Ok(ModelConfig {
        sliding_window: uses_window.then_some(window),
        n_full_attention_layers: fields.unsigned("max_window_layers")?.unwrap_or(28),
        ..config
    })
}
