//! Qwen3, the dense models: as Qwen2 without biases, its queries and keys normed head by head before they are rotated. Defaults are
//! those of transformers' `Qwen3Config`.

use super::decoder::{self, LLAMA};
use super::{ATTENTION, FEED_FORWARD_AND_NORMS, Family, LLAMA_NAMES, QUERY_KEY_NORMS, llama, qwen2};
use crate::error::Result;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopePairing};

pub(super) static FAMILY: Family = Family {
    name: "qwen3",
    models: "Qwen3 (dense)",
    classes: &["Qwen3ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["qwen3"],
    gguf_names: &[],
    from_json,
    from_gguf: |keys| Ok(ModelConfig { qk_norm: true, ..keys.decoder(&FAMILY, RopePairing::NeoX)? }),
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "Qwen3",
    layer_modules: &[ATTENTION, QUERY_KEY_NORMS, FEED_FORWARD_AND_NORMS],
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults { n_kv_heads: Some(32), head_size: Some(128), context_length: 32_768, ..Defaults::default() };
    let config = qwen2::with_window(fields, fields.decoder(&FAMILY, &defaults)?)?;
    Ok(ModelConfig { qk_norm: true, ..llama::with_attention_biases(fields, config)? })
}
