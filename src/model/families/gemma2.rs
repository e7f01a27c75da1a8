//! Gemma 2: norms before and after each part of a layer, capped scores, every other layer with a window. Defaults are those of
//! transformers' `Gemma2Config`.

use super::decoder::{self, LLAMA, Layout};
use super::{ATTENTION, Family, LLAMA_NAMES, Modules, all_but_every, llama};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{Activation, ModelConfig, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "gemma2",
    models: "Gemma 2",
    classes: &["Gemma2ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["gemma2"],
    gguf_names: GGUF_NAMES,
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Gemma2",
    layer_modules: &[ATTENTION, FEED_FORWARD, NORMS],
};

pub(super) const GGUF_NAMES: &[(&str, &str)] = &GGUF_NAMES_OF_NORMS;

pub(super) const GGUF_NAMES_OF_NORMS: [(&str, &str); 3] = [
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// Of so many layers the last sees everything.
const PATTERN: usize = 2;

pub(super) const LAYOUT: Layout = Layout {
    after_attention: Some("post_attention_layernorm"),
    before_ffn: Some("pre_feedforward_layernorm"),
    after_ffn: Some("post_feedforward_layernorm"),
    ..LLAMA
};

pub(super) const FEED_FORWARD: Modules = &[
    (".mlp", "{}MLP"),
    (".mlp.gate_proj", "Linear"),
    (".mlp.up_proj", "Linear"),
    (".mlp.down_proj", "Linear"),
    (".mlp.act_fn", "GELUTanh"),
];

pub(super) const NORMS: Modules = &[
    (".input_layernorm", "{}RMSNorm"),
    (".post_attention_layernorm", "{}RMSNorm"),
    (".pre_feedforward_layernorm", "{}RMSNorm"),
    (".post_feedforward_layernorm", "{}RMSNorm"),
];

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = of_gemma(fields, &FAMILY, 8192, [Some(50.0), Some(30.0)])?;
    let windowed_layers = fields.windowed_layers(config.n_layers)?.unwrap_or_else(|| all_but_every(PATTERN, config.n_layers));
    Ok(ModelConfig { variant: Variant { windowed_layers: Some(windowed_layers), ..config.variant }, ..config })
}

/// What the configs of Gemma 2 and 3 have in common; `softcaps` of scores and of logits.
pub(super) fn of_gemma(
    fields: &Fields<'_>,
    family: &'static Family,
    context_length: usize,
    softcaps: [Option<f64>; 2],
) -> Result<ModelConfig> {
    let defaults = Defaults {
        n_kv_heads: Some(4),
        head_size: Some(256),
        context_length,
        activation: ("hidden_activation", Activation::GeluTanh),
        tied: true,
        ..Defaults::default()
    };
    let config = llama::with_attention_biases(fields, fields.decoder(family, &defaults)?)?;
    let scalar = fields.float("query_pre_attn_scalar")?.unwrap_or(256.0);
    let variant = Variant {
        norm_weight_offset: 1.0,
        embedding_scale: (config.hidden_size as f32).sqrt(),
        attention_scale: Some(scalar.powf(-0.5) as f32),
        attention_softcap: fields.nullable_float("attn_logit_softcapping", softcaps[0])?,
        logit_softcap: fields.nullable_float("final_logit_softcapping", softcaps[1])?,
        ..config.variant
    };
    let sliding_window = fields.nullable("sliding_window", 4096)?;
    Ok(ModelConfig { sliding_window, variant, ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = gguf_of_gemma(keys, &FAMILY, 46)?;
    let softcap = |key: &str, default: f64| Ok(Some(keys.float(key)?.unwrap_or(default) as f32));
    let variant = Variant {
        attention_softcap: softcap("attn_logit_softcapping", 50.0)?,
        logit_softcap: softcap("final_logit_softcapping", 30.0)?,
        windowed_layers: Some(all_but_every(PATTERN, config.n_layers)),
        ..config.variant
    };
    Ok(ModelConfig { variant, ..config })
}

/// What files of Gemma 2 and 3 have in common: norms hold what is added to 1, and no key says the scale of scores. The largest models,
/// which have `n_layers_of_largest`, divide by the root of the hidden size over the heads.
pub(super) fn gguf_of_gemma(keys: &Keys<'_>, family: &'static Family, n_layers_of_largest: usize) -> Result<ModelConfig> {
    let config = keys.decoder(family, RopePairing::NeoX)?;
    let is_largest = config.n_layers == n_layers_of_largest && config.n_heads > 0;
    let divisor = if is_largest { config.hidden_size / config.n_heads } else { config.head_size };
    let variant = Variant {
        activation: Activation::GeluTanh,
        embedding_scale: (config.hidden_size as f32).sqrt(),
        attention_scale: Some(1.0 / (divisor as f32).sqrt()),
        ..config.variant
    };
    Ok(ModelConfig { variant, ..config })
}
