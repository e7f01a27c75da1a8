//! InternLM 3: Llama under keys of its own. Defaults are those of transformers' `InternLM3Config`; its GGUF files are of the
//! architecture `llama`.

use super::decoder::{self, LLAMA};
use super::{DECODER_LAYER, Family, LLAMA_NAMES, llama};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::model::config_json::{Defaults, Fields};

pub(super) static FAMILY: Family = Family {
    name: "internlm3",
    models: "InternLM 3",
    classes: &["InternLM3ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &[],
    gguf_names: &[],
    from_json,
    from_gguf: llama::FAMILY.from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "InternLM3",
    layer_modules: DECODER_LAYER,
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let fields = &fields.with_other_names(&[("attention_bias", "qkv_bias"), ("mlp_bias", "bias")]);
    let defaults = Defaults { n_kv_heads: Some(2), head_size: Some(128), context_length: 32_768, epsilon: 1e-5, ..Defaults::default() };
    llama::with_biases(fields, fields.decoder(&FAMILY, &defaults)?)
}
