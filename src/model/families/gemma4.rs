//! Gemma 4, its language model: norms and windows of Gemma 3, values that are normed too, layers that see everything with heads of their
//! own, whose keys may be their values, and a number that the residual stream is multiplied by behind each layer. The mixtures have experts
//! beside the plain feed-forward part of each layer; their configs bear the same name. In the small ones each layer has an embedding of its
//! own, and the last layers read keys and values of earlier ones. Defaults are those of transformers' `Gemma4TextConfig`.

use super::gemma2::{GGUF_NAMES_OF_NORMS, LAYOUT};
use super::{Family, LLAMA_NAMES, Modules, all_but_every, decoder, llama};
use crate::error::{Error, Result};
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::experts::QWEN_EXPERTS;
use crate::model::limits::MAX_HEAD_SIZE;
use crate::model::{Activation, ExpertNames, Experts, Heads, ModelConfig, RopeConfig, RopePairing, RopeScaling, Variant};

pub(super) static FAMILY: Family = DENSE;

/// The mixtures of experts.
pub(super) static MIXTURE: Family = Family {
    name: "gemma4_moe",
    models: "Gemma 4 (26B-A4B, `gemma4_text` in configs; text, also of models that see)",
    layer_modules: &[
        LAYER,
        &[
            (".router", "{}TextRouter"),
            (".router.norm", "{}RMSNorm"),
            (".router.proj", "Linear"),
            (".experts", "{}TextExperts"),
            (".experts.act_fn", "GELUTanh"),
            (".post_feedforward_layernorm_1", "{}RMSNorm"),
            (".post_feedforward_layernorm_2", "{}RMSNorm"),
            (".pre_feedforward_layernorm_2", "{}RMSNorm"),
        ],
    ],
    ..DENSE
};

const DENSE: Family = Family {
    name: "gemma4_text",
    models: "Gemma 4 (E2B, E4B, 31B; text, also of models that see)",
    classes: &["Gemma4ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["gemma4"],
    gguf_names: GGUF_NAMES,
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Gemma4",
    layer_modules: &[LAYER],
};

/// The modules of a layer.
const LAYER: Modules = &[
    ("", "{}TextDecoderLayer"),
    (".self_attn", "{}TextAttention"),
    (".self_attn.q_proj", "Linear"),
    (".self_attn.q_norm", "{}RMSNorm"),
    (".self_attn.k_norm", "{}RMSNorm"),
    (".self_attn.v_norm", "{}RMSNorm"),
    (".self_attn.k_proj", "Linear"),
    (".self_attn.v_proj", "Linear"),
    (".self_attn.o_proj", "Linear"),
    (".mlp", "{}TextMLP"),
    (".mlp.gate_proj", "Linear"),
    (".mlp.up_proj", "Linear"),
    (".mlp.down_proj", "Linear"),
    (".mlp.act_fn", "GELUTanh"),
    (".input_layernorm", "{}RMSNorm"),
    (".post_attention_layernorm", "{}RMSNorm"),
    (".pre_feedforward_layernorm", "{}RMSNorm"),
    (".post_feedforward_layernorm", "{}RMSNorm"),
];

const GGUF_NAMES: &[(&str, &str)] = &[
    GGUF_NAMES_OF_NORMS[0],
    GGUF_NAMES_OF_NORMS[1],
    GGUF_NAMES_OF_NORMS[2],
    ("layer_output_scale.weight", "layer_scalar"),
    ("per_layer_token_embd", "model.embed_tokens_per_layer"),
    ("per_layer_model_proj", "model.per_layer_model_projection"),
    ("per_layer_proj_norm", "model.per_layer_projection_norm"),
    ("inp_gate", "per_layer_input_gate"),
    ("proj", "per_layer_projection"),
    ("post_norm", "post_per_layer_input_norm"),
    ("ffn_gate_inp", "router.proj"),
    ("ffn_gate_inp.scale", "router.scale"),
    ("ffn_gate_exps", "experts.gate_proj"),
    ("ffn_up_exps", "experts.up_proj"),
    ("ffn_gate_up_exps", "experts.gate_up_proj"),
    ("ffn_down_exps", "experts.down_proj"),
    ("ffn_down_exps.scale", "router.per_expert_scale"),
    ("post_ffw_norm_1", "post_feedforward_layernorm_1"),
    ("pre_ffw_norm_2", "pre_feedforward_layernorm_2"),
    ("post_ffw_norm_2", "post_feedforward_layernorm_2"),
];

/// Router and experts are modules of the layer, not of its feed-forward part, in which they are sought.
const EXPERTS: ExpertNames =
    ExpertNames { router: "router.proj", former: &[(".router.", ".mlp.router."), (".experts.", ".mlp.experts.")], ..QWEN_EXPERTS };

/// Bases of the rotary embeddings of layers that see everything, and of those with a window.
const THETA: f64 = 1e6;
const LOCAL_THETA: f64 = 1e4;
/// Of so many layers the last sees everything.
const PATTERN: usize = 6;
/// The share of a head that turns in layers that see everything.
const ROTARY_SHARE: f64 = 0.25;
/// What the frequencies of pairs that do not turn are divided by.
const STILL: f32 = 1e30;

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    refuse_others(fields)?;
    let defaults = Defaults {
        n_kv_heads: Some(4),
        head_size: Some(256),
        context_length: 131_072,
        activation: ("hidden_activation", Activation::GeluTanh),
        tied: true,
        ..Defaults::default()
    };
    // The rotary embeddings are read below, by the kind of layer.
    let config = llama::with_attention_biases(fields, fields.decoder(&FAMILY, &defaults)?)?;
    let mut windowed = fields.windowed_layers(config.n_layers)?.unwrap_or_else(|| all_but_every(PATTERN, config.n_layers));
    // The last layer sees everything whatever is listed.
    windowed.last_mut().into_iter().for_each(|is_windowed| *is_windowed = false);
    let heads = full_heads(fields, &config, &windowed)?;
    let parameters = fields.object("rope_parameters")?;
    let of_kind = |kind: &str| parameters.map_or(Ok(None), |parameters| parameters.object(kind));
    let (theta, scaling) = proportional(fields, of_kind("full_attention")?, heads.head_size)?;
    let local = RopeConfig { theta: LOCAL_THETA, pairs: RopePairing::NeoX, scaling: RopeScaling::None };
    let local = match of_kind("sliding_attention")? {
        Some(inner) => fields.rope_in(&inner, LOCAL_THETA, config.context_length)?,
        None => local,
    };
    let softcap = fields.nullable_float("final_logit_softcapping", None)?;
    let window = fields.unsigned("sliding_window")?.unwrap_or(512);
    let rope = RopeConfig { theta, pairs: RopePairing::NeoX, scaling };
    let config = of_gemma4(ModelConfig { rope, sliding_window: Some(window), ..config }, heads, windowed, local, softcap);
    let config = with_small_parts_of_json(fields, config)?;
    if !fields.bool("enable_moe_block")?.unwrap_or(false) {
        return Ok(config);
    }
    let fields = fields.with_other_names(&[("num_experts_per_tok", "top_k_experts")]);
    let (n_used, ffn_size) = (fields.required("num_experts_per_tok")?, fields.required("moe_intermediate_size")?);
    Ok(with_experts(config, Experts::plain(fields.required("num_experts")?, n_used, ffn_size)))
}

/// The same with experts in every layer.
fn with_experts(config: ModelConfig, experts: Experts) -> ModelConfig {
    let experts = Some(Experts { beside_plain: true, names: &EXPERTS, ..experts });
    ModelConfig { family: &MIXTURE, variant: Variant { experts, ..config.variant }, ..config }
}

/// What some models of this family have and tierflow lacks.
fn refuse_others(fields: &Fields<'_>) -> Result<()> {
    let unsupported = |reason: String| Err(Error::UnsupportedModel { path: fields.path.to_owned(), reason });
    // Pictures may see both sides of them, texts do not.
    match fields.string("use_bidirectional_attention")?.filter(|kind| *kind != "vision") {
        Some(kind) => unsupported(format!("use_bidirectional_attention `{kind}` is not supported")),
        None => Ok(()),
    }
}

/// What the small models have: embeddings of layers, and layers that read keys and values of others.
fn with_small_parts_of_json(fields: &Fields<'_>, config: ModelConfig) -> Result<ModelConfig> {
    let layer_embedding_size = fields.unsigned("hidden_size_per_layer_input")?.unwrap_or(256);
    if let Some(other) =
        fields.unsigned("vocab_size_per_layer_input")?.filter(|other| layer_embedding_size > 0 && *other != config.vocab_size)
    {
        let reason =
            format!("vocab_size_per_layer_input is {other} where vocab_size is {}; only equal ones are supported", config.vocab_size);
        return Err(Error::UnsupportedModel { path: fields.path.to_owned(), reason });
    }
    let n_kv_sharing_layers = fields.unsigned("num_kv_shared_layers")?.unwrap_or(0);
    let is_wide = n_kv_sharing_layers > 0 && fields.bool("use_double_wide_mlp")?.unwrap_or(false);
    let sharing_ffn_size = is_wide.then(|| config.ffn_size.saturating_mul(2));
    Ok(ModelConfig { variant: Variant { n_kv_sharing_layers, sharing_ffn_size, layer_embedding_size, ..config.variant }, ..config })
}

/// The heads of layers that see everything: by keys of their own, or listed layer by layer as transformers 5 writes them.
fn full_heads(fields: &Fields<'_>, config: &ModelConfig, windowed: &[bool]) -> Result<Heads> {
    let values_are_keys = fields.bool("attention_k_eq_v")?.unwrap_or(false);
    let Some(listed) = fields.object("per_layer_config")? else {
        let n_kv_heads = fields.unsigned("num_global_key_value_heads")?.filter(|_| values_are_keys).unwrap_or(config.n_kv_heads);
        return Ok(Heads { n_kv_heads, head_size: fields.unsigned("global_head_dim")?.unwrap_or(512), values_are_keys });
    };
    let mut found: Option<Heads> = None;
    for (layer, is_windowed) in windowed.iter().enumerate() {
        let size = |key: &str, usual: usize| {
            let own = listed.object(&layer.to_string())?;
            Ok(own.map_or(Ok(None), |own| own.unsigned(key))?.unwrap_or(usual))
        };
        let (n_kv_heads, head_size) = (size("num_key_value_heads", config.n_kv_heads)?, size("head_dim", config.head_size)?);
        let heads = Heads { n_kv_heads, head_size, values_are_keys };
        let expected = match is_windowed {
            true => Heads { n_kv_heads: config.n_kv_heads, head_size: config.head_size, values_are_keys },
            false => *found.get_or_insert(heads),
        };
        if heads != expected {
            let reason = format!(
                "per_layer_config gives layer {layer} {n_kv_heads} key heads of {head_size} values where others of its kind have {} of {}, \
                 which is not supported",
                expected.n_kv_heads, expected.head_size
            );
            return Err(Error::UnsupportedModel { path: fields.path.to_owned(), reason });
        }
    }
    Ok(found.unwrap_or(Heads { n_kv_heads: config.n_kv_heads, head_size: config.head_size, values_are_keys }))
}

/// Base and scaling where a share of each head's pairs turns, by frequencies of all of the head.
fn proportional(fields: &Fields<'_>, parameters: Option<Fields<'_>>, head_size: usize) -> Result<(f64, RopeScaling)> {
    let (mut theta, mut share, mut factor) = (THETA, ROTARY_SHARE, 1.0);
    if let Some(parameters) = parameters {
        if let Some(kind) = parameters.string("rope_type")?.filter(|kind| *kind != "proportional") {
            let reason = format!("rope_type `{kind}` of layers that see everything is not supported; supported is proportional");
            return Err(Error::UnsupportedModel { path: fields.path.to_owned(), reason });
        }
        theta = parameters.float("rope_theta")?.unwrap_or(theta);
        share = parameters.float("partial_rotary_factor")?.unwrap_or(1.0);
        factor = parameters.float("factor")?.unwrap_or(1.0);
    }
    // Sizes are checked later: of more values than any head may have, those are enough.
    let n_pairs = head_size.min(MAX_HEAD_SIZE) / 2;
    let n_turning = (share * head_size as f64 / 2.0) as usize;
    let factors = (0..n_pairs).map(|pair| if pair < n_turning { factor as f32 } else { STILL }).collect();
    Ok((theta, RopeScaling::FrequencyFactors { factors }))
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    // What the usual keys say is said of layers that see everything.
    let config = keys.two_sized_decoder(&FAMILY, RopePairing::NeoX)?;
    let windowed = match keys.bools("attention.sliding_window_pattern")? {
        Some(listed) if listed.len() == config.n_layers => listed.to_vec(),
        Some(listed) => {
            let reason = format!("attention.sliding_window_pattern lists {} layers, the model has {}", listed.len(), config.n_layers);
            return Err(keys.error(reason));
        }
        None => all_but_every(PATTERN, config.n_layers),
    };
    let head_size = keys.required("attention.key_length_swa")?;
    for key in ["attention.value_length_swa", "rope.dimension_count_swa"] {
        if let Some(other) = keys.unsigned(key)?.filter(|other| *other != head_size) {
            return Err(keys.unsupported(format!("{key} is {other} where a head has {head_size} values; only equal ones are supported")));
        }
    }
    let [n_kv_heads, n_full_kv_heads] = kv_heads(keys, &config, &windowed)?;
    let first_full = windowed.iter().position(|is_windowed| !is_windowed).unwrap_or(0);
    let values_are_keys = keys.n_rows(&format!("model.layers.{first_full}.self_attn.v_proj.weight")) == 0;
    let heads = Heads { n_kv_heads: n_full_kv_heads, head_size: config.head_size, values_are_keys };
    let theta = keys.float("rope.freq_base_swa")?.unwrap_or(LOCAL_THETA);
    let local = RopeConfig { theta, pairs: RopePairing::NeoX, scaling: RopeScaling::None };
    let softcap = keys.float("final_logit_softcapping")?.map(|cap| cap as f32);
    let n_kv_sharing_layers = keys.unsigned("attention.shared_kv_layers")?.unwrap_or(0);
    let sharing_ffn_size = sharing_ffn_size(keys, &config, n_kv_sharing_layers)?;
    let rope = RopeConfig { theta: keys.float("rope.freq_base")?.unwrap_or(THETA), ..config.rope };
    let variant = Variant {
        activation: Activation::GeluTanh,
        n_kv_sharing_layers,
        sharing_ffn_size,
        layer_embedding_size: keys.unsigned("embedding_length_per_layer_input")?.unwrap_or(0),
        ..config.variant
    };
    let config = of_gemma4(ModelConfig { n_kv_heads, head_size, rope, variant, ..config }, heads, windowed, local, softcap);
    Ok(match keys.unsigned("expert_count")?.filter(|n| *n > 0) {
        Some(n) => {
            let (n_used, ffn_size) = (keys.required("expert_used_count")?, keys.required("expert_feed_forward_length")?);
            with_experts(config, Experts::plain(n, n_used, ffn_size))
        }
        None => config,
    })
}

/// Width of the feed-forward part of layers that share keys and values, where files list widths of all layers and it is another.
fn sharing_ffn_size(keys: &Keys<'_>, config: &ModelConfig, n_sharing: usize) -> Result<Option<usize>> {
    let Some(listed) = keys.integers("feed_forward_length") else { return Ok(None) };
    if listed.len() != config.n_layers {
        return Err(keys.error(format!("feed_forward_length lists {} layers, the model has {}", listed.len(), config.n_layers)));
    }
    let n_own = config.n_layers.saturating_sub(n_sharing);
    let sharing = listed.last().copied().filter(|_| n_sharing > 0).unwrap_or(config.ffn_size as i64);
    let expected = |layer: usize| if layer < n_own { config.ffn_size as i64 } else { sharing };
    if let Some((layer, size)) = listed.iter().enumerate().find(|(layer, size)| **size != expected(*layer)) {
        return Err(
            keys.unsupported(format!("feed_forward_length is {size} in layer {layer} and {} in others of its kind", expected(layer)))
        );
    }
    let is_other = |size: &usize| *size != config.ffn_size;
    Ok(usize::try_from(sharing).ok().filter(is_other))
}

/// Key and value heads of layers with a window and of those that see everything.
fn kv_heads(keys: &Keys<'_>, config: &ModelConfig, windowed: &[bool]) -> Result<[usize; 2]> {
    let Some(listed) = keys.integers("attention.head_count_kv") else { return Ok([config.n_kv_heads; 2]) };
    if listed.len() != windowed.len() {
        return Err(keys.error(format!("attention.head_count_kv lists {} layers, the model has {}", listed.len(), windowed.len())));
    }
    let of_kind = |kind: bool| {
        let mut all = listed.iter().zip(windowed).filter(|(_, is_windowed)| **is_windowed == kind).map(|(n, _)| *n);
        let first = all.next().unwrap_or(config.n_kv_heads as i64);
        match (all.find(|other| *other != first), usize::try_from(first)) {
            (None, Ok(n)) => Ok(n),
            (Some(other), _) => Err(keys.unsupported(format!("attention.head_count_kv is {first} and {other} in layers of one kind"))),
            (None, Err(_)) => Err(keys.error(format!("attention.head_count_kv is {first}"))),
        }
    };
    Ok([of_kind(true)?, of_kind(false)?])
}

/// What no config says.
fn of_gemma4(config: ModelConfig, heads: Heads, windowed: Vec<bool>, local: RopeConfig, softcap: Option<f32>) -> ModelConfig {
    let variant = Variant {
        embedding_scale: (config.hidden_size as f32).sqrt(),
        attention_scale: Some(1.0),
        logit_softcap: softcap,
        local_rope: Some(local),
        windowed_layers: Some(windowed),
        full_heads: Some(heads),
        norms_values: true,
        // Filled as they are read.
        layer_scales: Some(Vec::new()),
        ..config.variant
    };
    ModelConfig { qk_norm: true, variant, ..config }
}
