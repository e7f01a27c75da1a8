//! OLMo 2: norms behind each part of a layer in place of before it, queries and keys normed whole. Defaults are those of transformers'
//! `Olmo2Config`. Its GGUF files with a window hold OLMo 3.

use super::decoder::{self, LLAMA, Layout};
use super::{ATTENTION, Family, LLAMA_NAMES, Modules, QUERY_KEY_NORMS, all_but_every, llama, olmo3};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopeConfig, RopePairing, RopeScaling, Variant};

pub(super) static FAMILY: Family = DECODER;

/// What OLMo 3 is made of too.
pub(super) const DECODER: Family = Family {
    name: "olmo2",
    models: "OLMo 2",
    classes: &["Olmo2ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["olmo2"],
    gguf_names: GGUF_NAMES,
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Olmo2",
    layer_modules: &[ATTENTION, QUERY_KEY_NORMS, FEED_FORWARD_AND_NORMS],
};

pub(super) const GGUF_NAMES: &[(&str, &str)] =
    &[("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm")];

pub(super) const FEED_FORWARD_AND_NORMS: Modules = &[
    (".mlp", "{}MLP"),
    (".mlp.gate_proj", "Linear"),
    (".mlp.up_proj", "Linear"),
    (".mlp.down_proj", "Linear"),
    (".mlp.act_fn", "SiLUActivation"),
    (".post_attention_layernorm", "{}RMSNorm"),
    (".post_feedforward_layernorm", "{}RMSNorm"),
];

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

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = ModelConfig { qk_norm: true, ..keys.decoder(&FAMILY, RopePairing::NeoX)? };
    if config.sliding_window.is_none() {
        return Ok(config);
    }
    let local_rope = Some(RopeConfig { scaling: RopeScaling::None, ..config.rope.clone() });
    let windowed_layers = Some(all_but_every(olmo3::PATTERN, config.n_layers));
    Ok(ModelConfig { variant: Variant { local_rope, windowed_layers, ..config.variant }, ..config })
}
