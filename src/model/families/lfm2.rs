//! LFM2: most layers have a short convolution between two gates in place of attention. Defaults are those of transformers' `Lfm2Config`.

use super::decoder::recurrent::SHORT_CONV_PARTS;
use super::decoder::{self, LLAMA, Layout};
use super::{Family, LLAMA_NAMES, Modules, Names, Stored};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::limits::MAX_LAYERS;
use crate::model::{ModelConfig, Recurrent, RecurrentKind, RopePairing, Variant};

pub(super) static FAMILY: Family = DECODER;

/// What the mixtures of experts are made of too.
pub(super) const DECODER: Family = Family {
    name: "lfm2",
    models: "LFM2 (dense)",
    classes: &["Lfm2ForCausalLM"],
    names: Names { ffn: "feed_forward", norm: "model.embedding_norm", ..LLAMA_NAMES },
    gguf: &["lfm2"],
    gguf_names: &GGUF_NAMES,
    from_json,
    from_gguf: |keys| of_gguf(&FAMILY, keys),
    stored,
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Lfm2",
    layer_modules: &[LAYER],
};

pub(super) const GGUF_NAMES: [(&str, &str); 12] = [
    ("token_embd_norm", "model.embedding_norm"),
    ("attn_norm", "operator_norm"),
    ("attn_q_norm", "self_attn.q_layernorm"),
    ("attn_k_norm", "self_attn.k_layernorm"),
    ("attn_output", "self_attn.out_proj"),
    ("shortconv.conv", "conv.conv"),
    ("shortconv.in_proj", "conv.in_proj"),
    ("shortconv.out_proj", "conv.out_proj"),
    ("ffn_norm", "ffn_norm"),
    ("ffn_gate", "feed_forward.w1"),
    ("ffn_up", "feed_forward.w3"),
    ("ffn_down", "feed_forward.w2"),
];

pub(super) const LAYER: Modules = &[
    ("", "{}DecoderLayer"),
    (".self_attn", "{}Attention"),
    (".self_attn.q_proj", "Linear"),
    (".self_attn.k_proj", "Linear"),
    (".self_attn.v_proj", "Linear"),
    (".self_attn.out_proj", "Linear"),
    (".self_attn.q_layernorm", "{}RMSNorm"),
    (".self_attn.k_layernorm", "{}RMSNorm"),
    (".conv", "{}ShortConv"),
    (".conv.conv", "Conv1d"),
    (".conv.in_proj", "Linear"),
    (".conv.out_proj", "Linear"),
    (".feed_forward", "{}MLP"),
    (".feed_forward.w1", "Linear"),
    (".feed_forward.w3", "Linear"),
    (".feed_forward.w2", "Linear"),
    (".operator_norm", "{}RMSNorm"),
    (".ffn_norm", "{}RMSNorm"),
];

pub(super) const LAYOUT: Layout = Layout {
    before_attention: Some("operator_norm"),
    before_ffn: Some("ffn_norm"),
    query_key_norms: ["q_layernorm", "k_layernorm"],
    output: "out_proj",
    gate: Some("w1"),
    up: "w3",
    down: "w2",
    ..LLAMA
};

fn stored(config: &ModelConfig) -> Vec<Stored> {
    vec![Stored::stacked(".conv.in_proj", SHORT_CONV_PARTS.map(|part| (part, config.hidden_size)).into())]
}

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let names = &[("rms_norm_eps", "norm_eps"), ("tie_word_embeddings", "tie_embedding"), ("intermediate_size", "block_ff_dim")];
    let fields = &fields.with_other_names(names);
    let defaults =
        Defaults { n_kv_heads: Some(8), context_length: 128_000, epsilon: 1e-5, rope_theta: 1e6, tied: true, ..Defaults::default() };
    let config = fields.decoder(&FAMILY, &defaults)?;
    let ffn_size = adjusted(fields, config.ffn_size)?;
    with_convolutions(fields, ModelConfig { ffn_size, ..config })
}

/// The layers without attention.
pub(super) fn with_convolutions(fields: &Fields<'_>, config: ModelConfig) -> Result<ModelConfig> {
    let layers = match fields.layers_of_type("conv", "full_attention", config.n_layers)? {
        Some(layers) => layers,
        None => {
            let attending = fields.unsigned_list("full_attn_idxs")?;
            (0..config.n_layers.min(MAX_LAYERS)).map(|layer| attending.as_ref().is_some_and(|some| !some.contains(&layer))).collect()
        }
    };
    let n_taps = fields.unsigned("conv_L_cache")?.unwrap_or(3);
    let has_bias = fields.bool("conv_bias")?.unwrap_or(false);
    Ok(of_lfm2(config, layers, RecurrentKind::ShortConv { n_taps, has_bias }))
}

/// The width of the feed-forward part, of which a config may say one and a half times as much, to be multiplied and rounded up.
fn adjusted(fields: &Fields<'_>, size: usize) -> Result<usize> {
    if !fields.bool("block_auto_adjust_ff_dim")?.unwrap_or(true) {
        return Ok(size);
    }
    let size = size.saturating_mul(2) / 3;
    let multiple = fields.interval("block_multiple_of", 256)?;
    const FACTOR: &str = "block_ffn_dim_multiplier";
    let factor = if fields.get(FACTOR).is_none() { Some(1.0) } else { fields.float(FACTOR)? };
    Ok(factor.map_or(size, |factor| ((factor * size as f64) as usize).div_ceil(multiple).saturating_mul(multiple)))
}

pub(super) fn of_gguf(family: &'static Family, keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.hybrid_decoder(family, RopePairing::NeoX)?;
    let mut layers = keys.zero_layers("attention.head_count_kv");
    if layers.is_empty() {
        layers.resize(config.n_layers.min(MAX_LAYERS), false);
    }
    let first = layers.iter().position(|is_recurrent| *is_recurrent).unwrap_or(0);
    let has_bias = keys.n_rows(&format!("model.layers.{first}.conv.in_proj.bias")) > 0;
    Ok(of_lfm2(config, layers, RecurrentKind::ShortConv { n_taps: keys.required("shortconv.l_cache")?, has_bias }))
}

/// What no config says.
fn of_lfm2(config: ModelConfig, layers: Vec<bool>, kind: RecurrentKind) -> ModelConfig {
    let recurrent = layers.contains(&true).then_some(Recurrent { layers, kind });
    ModelConfig { qk_norm: true, variant: Variant { recurrent, ..config.variant }, ..config }
}
