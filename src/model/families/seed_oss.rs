//! Seed-OSS: Llama with biases of queries, keys and values. Defaults are those of transformers' `SeedOssConfig`.

use super::decoder::{self, LLAMA};
use super::{DECODER_LAYER, Family, LLAMA_NAMES};
use crate::error::Result;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopePairing};

pub(super) static FAMILY: Family = Family {
    name: "seed_oss",
    models: "Seed-OSS",
    classes: &["SeedOssForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["seed_oss"],
    gguf_names: &[("post_attention_norm", "post_attention_layernorm")],
    from_json,
    from_gguf: |keys| keys.decoder(&FAMILY, RopePairing::NeoX),
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "SeedOss",
    layer_modules: DECODER_LAYER,
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults { n_kv_heads: Some(8), head_size: Some(128), context_length: 524_288, ..Defaults::default() };
    let config = fields.decoder(&FAMILY, &defaults)?;
    Ok(ModelConfig {
        attention_bias: fields.bool("attention_bias")?.unwrap_or(true),
        attention_output_bias: fields.bool("attention_out_bias")?.unwrap_or(false),
        ffn_bias: fields.bool("mlp_bias")?.unwrap_or(false),
        ..config
    })
}
