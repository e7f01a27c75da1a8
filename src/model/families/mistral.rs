//! Mistral: Llama with a sliding window. Defaults are those of transformers' `MistralConfig`.

use serde_json::Value;

use super::{DECODER_LAYER, Family, llama};
use crate::error::Result;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopePairs};

pub(super) static FAMILY: Family = Family {
    name: "mistral",
    classes: &["MistralForCausalLM"],
    gguf: &["mistral"],
    from_json,
    from_gguf: |keys| keys.decoder(&FAMILY, RopePairs::Neighbours),
    model: llama::model,
    class_prefix: "Mistral",
    layer_modules: DECODER_LAYER,
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = fields.decoder(&FAMILY, &Defaults { n_kv_heads: Some(8), head_size: None, context_length: 4096 * 32 })?;
    let sliding_window = match fields.get("sliding_window") {
        // 4096 where the key is absent; all positions where it is null.
        None => Some(4096),
        Some(Value::Null) => None,
        Some(_) => fields.unsigned("sliding_window")?,
    };
    Ok(ModelConfig { sliding_window, ..config })
}
