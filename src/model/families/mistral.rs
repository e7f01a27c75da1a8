//! Mistral: Llama with a sliding window. Defaults are those of transformers' `MistralConfig`.

use super::decoder::{self, LLAMA};
use super::{DECODER_LAYER, Family, LLAMA_NAMES};
use crate::error::Result;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopePairing};

pub(super) static FAMILY: Family = Family {
    name: "mistral",
    models: "Mistral, Ministral, Codestral",
    classes: &["MistralForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["mistral"],
    gguf_names: &[],
    from_json,
    from_gguf: |keys| keys.decoder(&FAMILY, RopePairing::Interleaved),
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "Mistral",
    layer_modules: DECODER_LAYER,
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config =
        fields.decoder(&FAMILY, &Defaults { n_kv_heads: Some(8), head_size: None, context_length: 4096 * 32, ..Defaults::default() })?;
    Ok(ModelConfig { sliding_window: fields.nullable("sliding_window", 4096)?, ..config })
}
