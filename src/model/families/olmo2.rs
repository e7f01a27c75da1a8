//! OLMo 2: norms behind each part of a layer in place of before it, queries and keys normed whole. Defaults are those of transformers'
//! `Olmo2Config`.

use super::decoder::{self, LLAMA, Layout};
use super::{ATTENTION, Family, QUERY_KEY_NORMS, llama};
use crate::error::Result;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopePairing};

pub(super) static FAMILY: Family = Family {
    name: "olmo2",
    classes: &["Olmo2ForCausalLM"],
    gguf: &["olmo2"],
    gguf_names: &[("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm")],
    from_json,
    from_gguf: |keys| Ok(ModelConfig { qk_norm: true, ..keys.decoder(&FAMILY, RopePairing::NeoX)? }),
    stacked: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Olmo2",
    layer_modules: &[
        ATTENTION,
        QUERY_KEY_NORMS,
        &[
            (".mlp", "{}MLP"),
            (".mlp.gate_proj", "Linear"),
            (".mlp.up_proj", "Linear"),
            (".mlp.down_proj", "Linear"),
            (".mlp.act_fn", "SiLUActivation"),
            (".post_attention_layernorm", "{}RMSNorm"),
            (".post_feedforward_layernorm", "{}RMSNorm"),
        ],
    ],
};

const LAYOUT: Layout = Layout {
    before_attention: None,
    after_attention: Some("post_attention_layernorm"),
    before_ffn: None,
    after_ffn: Some("post_feedforward_layernorm"),
    norms_whole_rows: true,
    ..LLAMA
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = fields.decoder(&FAMILY, &Defaults { epsilon: 1e-5, ..Defaults::default() })?;
    Ok(ModelConfig { qk_norm: true, ..llama::with_attention_biases(fields, config)? })
}
