//! Llama. Defaults are those of transformers' `LlamaConfig`.

use super::decoder::{self, LLAMA};
use super::{DECODER_LAYER, Family, LLAMA_NAMES};
use crate::error::Result;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopePairing};

pub(super) static FAMILY: Family = Family {
    name: "llama",
    models: "Llama 1 to 3, TinyLlama, SmolLM, Yi, DeepSeek (dense)",
    classes: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["llama"],
    gguf_names: &[],
    from_json,
    // Converters permute the rows of q and k for it.
    from_gguf: |keys| keys.decoder(&FAMILY, RopePairing::Interleaved),
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "Llama",
    layer_modules: DECODER_LAYER,
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    with_biases(fields, fields.decoder(&FAMILY, &Defaults::default())?)
}

/// Biases as `attention_bias` and `mlp_bias` say.
pub(super) fn with_biases(fields: &Fields<'_>, config: ModelConfig) -> Result<ModelConfig> {
    let config = with_attention_biases(fields, config)?;
    let ffn_bias = fields.bool("mlp_bias")?.unwrap_or(false);
    Ok(ModelConfig { ffn_bias, ..config })
}

/// Biases of all four matrices of attention, or of none, as `attention_bias` says.
pub(super) fn with_attention_biases(fields: &Fields<'_>, config: ModelConfig) -> Result<ModelConfig> {
    let attention_bias = fields.bool("attention_bias")?.unwrap_or(false);
    Ok(ModelConfig { attention_bias, attention_output_bias: attention_bias, ..config })
}
