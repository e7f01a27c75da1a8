//! A model of a Hugging Face folder as what a GGUF file says of it: keys, names and layout, as llama.cpp's converter has them. Whether
//! nothing is lost is asked of the reader: what it makes of the keys must be the config that they were made from.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::config_gguf::Keys;
use super::families::{self, Family};
use super::gguf_names::{gguf_name, translate};
use super::{Checkpoint, Model, ModelConfig, NormKind, Recurrent, RecurrentKind, RopePairing, RopeScaling};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::units::{Bytes, listed};
use crate::weights::{Catalog, MetaValue, Metadata, TensorId, TensorInfo};

/// What a GGUF file of a model holds.
#[derive(Debug, Clone, PartialEq)]
pub struct AsGguf {
    /// `general.architecture`.
    pub architecture: String,
    /// The keys under it, and `general.name`.
    pub keys: Vec<(String, MetaValue)>,
    /// The tensors that the model is computed with.
    pub tensors: Vec<GgufTensor>,
    /// Tensors of the folder that it is not computed with.
    pub left_out: Vec<String>,
}

/// A tensor of a GGUF file and where its values come from.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTensor {
    /// The file's name of it.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// Its values.
    pub origin: Origin,
}

/// Where the values of a tensor come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// Tensors of the checkpoint, the rows of one behind those of the other.
    Tensors {
        /// Which.
        parts: Vec<TensorId>,
        /// Heads whose rows are paired otherwise: row `i` of the first half and row `i` of the second stand one behind the other.
        interleaved_heads: Option<u64>,
        /// Added to each value.
        offset: f32,
    },
    /// These.
    Values(Vec<f32>),
}

/// The model in `checkpoint`, a Hugging Face folder, as a GGUF file has it.
///
/// # Errors
/// [`Error::UnsupportedModel`] where GGUF files have no words for something in it; those of looking tensors up.
pub fn as_gguf(checkpoint: &Checkpoint) -> Result<AsGguf> {
    let config = &checkpoint.config;
    let unsupported = |reason: String| Error::UnsupportedModel { path: checkpoint.path.clone(), reason };
    let architecture = architecture(config.family)
        .ok_or_else(|| unsupported(format!("family `{}` has no architecture in GGUF files", config.family.name)))?;
    if let Some(kind) = unwritten(config) {
        return Err(unsupported(format!("family `{}` {kind}: such models are not converted", config.family.name)));
    }
    let mut tensors = tensors_of(checkpoint)?;
    tensors.extend(factors(config).into_iter().map(|(name, values)| GgufTensor {
        name: name.to_owned(),
        shape: vec![values.len() as u64],
        origin: Origin::Values(values),
    }));
    let keys = keys(config, architecture);
    let read = read_back(&checkpoint.path, &keys, &tensors)?;
    let lost = differences(config, &read);
    if !lost.is_empty() {
        let reason = format!("GGUF files of the architecture `{architecture}` cannot say what config.json says of {}", listed(&lost));
        return Err(unsupported(reason));
    }
    lay_out(config, &read, &mut tensors).map_err(unsupported)?;
    let used: BTreeSet<TensorId> = tensors.iter().flat_map(|tensor| tensor.origin.parts()).copied().collect();
    let all = (0..).map(TensorId).zip(&checkpoint.catalog.tensors);
    let left_out = all.filter(|(id, _)| !used.contains(id)).map(|(_, tensor)| tensor.name.clone()).collect();
    Ok(AsGguf { architecture: architecture.to_owned(), keys, tensors, left_out })
}

impl Origin {
    fn parts(&self) -> &[TensorId] {
        match self {
            Origin::Tensors { parts, .. } => parts,
            Origin::Values(_) => &[],
        }
    }
}

/// What a model has whose tensors GGUF files lay out in a way that is not written here.
fn unwritten(config: &ModelConfig) -> Option<&'static str> {
    let has_delta_rule =
        config.variant.recurrent.as_ref().is_some_and(|recurrent| matches!(recurrent.kind, RecurrentKind::DeltaNet { .. }));
    let kinds = [
        (config.family.is_mixture(), "is a mixture of experts"),
        (config.variant.sees_both_sides, "sees both sides"),
        (config.variant.full_heads.is_some(), "has heads of two sizes"),
        (has_delta_rule, "has the gated delta rule"),
    ];
    kinds.into_iter().find(|(is_so, _)| *is_so).map(|(_, kind)| kind)
}

/// What llama.cpp's converter calls the family. Some share an architecture.
fn architecture(family: &Family) -> Option<&'static str> {
    match family.name {
        "mistral" | "internlm3" => Some("llama"),
        "olmo3" => Some("olmo2"),
        _ => family.gguf.first().copied(),
    }
}

/// The tensors that the model's operations read, those that are parts of one put together again.
fn tensors_of(checkpoint: &Checkpoint) -> Result<Vec<GgufTensor>> {
    let used = RefCell::new(Vec::new());
    Model::new(&checkpoint.config, &|name, shape| {
        let id = checkpoint.expect(name, shape)?;
        used.borrow_mut().push(whole_name(name).to_owned());
        Ok(id)
    })?;
    let mut parts: BTreeMap<&str, Vec<TensorId>> = BTreeMap::new();
    for (id, tensor) in (0..).map(TensorId).zip(&checkpoint.catalog.tensors) {
        parts.entry(whole_name(&tensor.name)).or_default().push(id);
    }
    let mut tensors = Vec::new();
    let used = used.into_inner();
    let names: BTreeSet<&str> = used.iter().map(String::as_str).collect();
    for name in names {
        let Some(gguf) = gguf_name(name, checkpoint.config.family) else {
            let reason = format!("tensor `{name}` has no name in GGUF files");
            return Err(Error::UnsupportedModel { path: checkpoint.path.clone(), reason });
        };
        let parts = parts.remove(name).unwrap_or_default();
        let mut shape = parts.first().map(|first| checkpoint.catalog[*first].shape.clone()).unwrap_or_default();
        if let Some(n_rows) = shape.first_mut() {
            *n_rows = parts.iter().filter_map(|part| checkpoint.catalog[*part].shape.first()).sum();
        }
        tensors.push(GgufTensor { name: gguf, shape, origin: Origin::Tensors { parts, interleaved_heads: None, offset: 0.0 } });
    }
    Ok(tensors)
}

/// `name` of a part called `name:part`.
fn whole_name(name: &str) -> &str {
    name.split_once(':').map_or(name, |(whole, _)| whole)
}

/// What rotary frequencies are divided by, where GGUF files keep it as tensors.
fn factors(config: &ModelConfig) -> Vec<(&'static str, Vec<f32>)> {
    match &config.rope.scaling {
        RopeScaling::Llama3 { .. } => {
            let plain = super::RopeConfig { scaling: RopeScaling::None, ..config.rope.clone() };
            let [plain, stretched] = [&plain, &config.rope].map(|rope| rope.inverse_frequencies(config.rotary_size()));
            vec![("rope_freqs.weight", plain.iter().zip(stretched).map(|(plain, stretched)| plain / stretched).collect())]
        }
        RopeScaling::FrequencyFactors { factors } => vec![("rope_freqs.weight", factors.clone())],
        RopeScaling::LongRope { short, long, .. } => {
            vec![("rope_factors_long.weight", long.clone()), ("rope_factors_short.weight", short.clone())]
        }
        _ => Vec::new(),
    }
}

/// The keys of a config. Key names are those of ggml's `docs/gguf.md` and llama.cpp's `llama-arch.cpp`.
fn keys(config: &ModelConfig, architecture: &str) -> Vec<(String, MetaValue)> {
    let mut keys = vec![
        ("general.architecture".to_owned(), MetaValue::String(architecture.to_owned())),
        ("general.name".to_owned(), MetaValue::String(config.name.clone())),
    ];
    let mut put = |key: &str, value: MetaValue| keys.push((format!("{architecture}.{key}"), value));
    let count = |value: usize| MetaValue::Unsigned(value as u64);
    let variant = &config.variant;
    put("vocab_size", count(config.vocab_size));
    put("context_length", count(config.context_length));
    put("embedding_length", count(config.hidden_size));
    put("block_count", count(config.n_layers));
    put("feed_forward_length", count(config.ffn_size));
    put("attention.head_count", count(config.n_heads));
    put("attention.head_count_kv", kv_heads(config));
    put("attention.key_length", count(config.head_size));
    put("attention.value_length", count(config.head_size));
    let epsilon = match variant.norm {
        NormKind::Rms => "attention.layer_norm_rms_epsilon",
        NormKind::Layer { .. } => "attention.layer_norm_epsilon",
    };
    put(epsilon, MetaValue::Float(config.rms_norm_epsilon.into()));
    if let Some(window) = config.sliding_window {
        put("attention.sliding_window", count(window));
    }
    if !variant.learns_positions {
        put("rope.dimension_count", count(config.rotary_size()));
        put("rope.freq_base", MetaValue::Float(config.rope.theta));
        scaling_keys(config, &mut put);
    }
    if let Some(local) = variant.local_rope.as_ref().filter(|local| local.theta != config.rope.theta) {
        put("rope.freq_base_swa", MetaValue::Float(local.theta));
    }
    for (key, cap) in [("attn_logit_softcapping", variant.attention_softcap), ("final_logit_softcapping", variant.logit_softcap)] {
        if let Some(cap) = cap {
            put(key, MetaValue::Float(cap.into()));
        }
    }
    if let Some(Recurrent { kind: RecurrentKind::ShortConv { n_taps, .. }, .. }) = variant.recurrent {
        put("shortconv.l_cache", count(n_taps));
    }
    for (key, value) in own_keys(config) {
        put(key, value);
    }
    keys
}

/// Those of each layer where some have none, else one number.
fn kv_heads(config: &ModelConfig) -> MetaValue {
    let of_layer = |layer: usize| if config.recurrent(layer).is_some() { 0 } else { config.n_kv_heads as i64 };
    match config.variant.recurrent {
        Some(_) => MetaValue::Integers((0..config.n_layers).map(of_layer).collect()),
        None => MetaValue::Unsigned(config.n_kv_heads as u64),
    }
}

fn scaling_keys(config: &ModelConfig, put: &mut impl FnMut(&str, MetaValue)) {
    let text = |value: &str| MetaValue::String(value.to_owned());
    match config.rope.scaling {
        RopeScaling::Linear { factor } => {
            put("rope.scaling.type", text("linear"));
            put("rope.scaling.factor", MetaValue::Float(factor));
        }
        RopeScaling::Yarn { factor, original_context_length, beta_fast, beta_slow, attention_factor, .. } => {
            put("rope.scaling.type", text("yarn"));
            put("rope.scaling.factor", MetaValue::Float(factor));
            put("rope.scaling.original_context_length", MetaValue::Unsigned(original_context_length as u64));
            put("rope.scaling.yarn_beta_fast", MetaValue::Float(beta_fast));
            put("rope.scaling.yarn_beta_slow", MetaValue::Float(beta_slow));
            // Readers multiply it by what the factor of the length asks for.
            let of_length = 1.0 + 0.1 * factor.max(1.0).ln();
            put("rope.scaling.attn_factor", MetaValue::Float(attention_factor / of_length));
        }
        RopeScaling::LongRope { original_context_length, attention_factor, .. } => {
            put("rope.scaling.original_context_length", MetaValue::Unsigned(original_context_length as u64));
            put("rope.scaling.attn_factor", MetaValue::Float(attention_factor));
        }
        RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::FrequencyFactors { .. } => {}
    }
}

/// Keys that one family has.
fn own_keys(config: &ModelConfig) -> Vec<(&'static str, MetaValue)> {
    let variant = &config.variant;
    let number = |value: f32| MetaValue::Float(value.into());
    match config.family.name {
        "granite" => vec![
            ("embedding_scale", number(variant.embedding_scale)),
            ("residual_scale", number(variant.residual_scale)),
            ("attention.scale", number(variant.attention_scale.unwrap_or(0.0))),
            ("logit_scale", number(1.0 / variant.logit_scale)),
        ],
        "cohere" => vec![("logit_scale", number(variant.logit_scale))],
        "gpt_neox" => vec![("use_parallel_residual", MetaValue::Bool(variant.is_parallel))],
        "bert" => vec![("attention.causal", MetaValue::Bool(false))],
        _ => Vec::new(),
    }
}

/// What the reader of GGUF files makes of the keys and the tensors.
fn read_back(path: &str, keys: &[(String, MetaValue)], tensors: &[GgufTensor]) -> Result<ModelConfig> {
    let metadata = Metadata::new(path, keys.iter().cloned().collect());
    let family = families::of_gguf(&metadata, &|| None)?;
    let renamed = tensors.iter().map(|tensor| TensorInfo {
        name: translate(&tensor.name, family),
        dtype: DType::F32,
        shape: tensor.shape.clone(),
        shard: 0,
        offset: 0,
        size_bytes: Bytes::ZERO,
    });
    let catalog = Catalog::new(Vec::new(), renamed.collect());
    (family.from_gguf)(&Keys::new(family, &metadata, &catalog)?)
}

/// Fields that are not the same, other than those that the layout of the tensors makes up for.
fn differences(config: &ModelConfig, read: &ModelConfig) -> Vec<String> {
    let [config, read] = [config, read].map(|config| {
        let mut config = config.clone();
        config.family = families::FAMILIES[0];
        config.name.clear();
        config.rope.pairs = RopePairing::NeoX;
        config.variant.norm_weight_offset = 0.0;
        if let Some(local) = &mut config.variant.local_rope {
            local.pairs = RopePairing::NeoX;
        }
        // Those are tensors.
        if matches!(config.rope.scaling, RopeScaling::Llama3 { .. } | RopeScaling::LongRope { .. } | RopeScaling::FrequencyFactors { .. }) {
            config.rope.scaling = RopeScaling::None;
        }
        let layers: Vec<bool> = (0..config.n_layers).map(|layer| config.sliding_window.is_some() && config.is_windowed(layer)).collect();
        let rotated = (0..config.n_layers).map(|layer| config.is_rotated(layer)).collect();
        config.n_full_attention_layers = 0;
        config.variant.windowed_layers = Some(layers);
        config.variant.rotated_layers = Some(rotated);
        config.variant.attention_scale.get_or_insert(1.0 / (config.head_size as f32).sqrt());
        config.variant.rotary_size.get_or_insert(config.head_size);
        if config.variant.learns_positions {
            config.rope.theta = 0.0;
        }
        let variant = serde_json::to_value(&config.variant);
        let mut value = serde_json::to_value(&config).unwrap_or_default();
        value["variant"] = variant.unwrap_or_default();
        value
    });
    let mut found = Vec::new();
    compare("", &config, &read, &mut found);
    found
}

/// Adds the names of what is not the same in both, numbers but for what rounding to f32 takes.
fn compare(name: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for name in names {
                compare(name, one.get(name).unwrap_or(&Value::Null), other.get(name).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Number(one), Value::Number(other)) => {
            let [one, other] = [one, other].map(|number| number.as_f64().unwrap_or(f64::NAN));
            if (one - other).abs() > 1e-6 * one.abs() {
                found.push(format!("{name} ({one}, not {other})"));
            }
        }
        _ if one == other => {}
        _ => found.push(format!("{name} ({one}, not {other})")),
    }
}

/// Rows and values as readers of this architecture expect them.
fn lay_out(config: &ModelConfig, read: &ModelConfig, tensors: &mut [GgufTensor]) -> std::result::Result<(), String> {
    let is_permuted =
        config.rope.pairs == RopePairing::NeoX && read.rope.pairs == RopePairing::Interleaved && !config.variant.learns_positions;
    let adds = config.variant.norm_weight_offset - read.variant.norm_weight_offset;
    if is_permuted && (config.qk_norm || config.rotary_size() != config.head_size) {
        return Err("heads that are normed or turn in part are not reordered".to_owned());
    }
    for tensor in tensors {
        let Origin::Tensors { interleaved_heads, offset, .. } = &mut tensor.origin else { continue };
        let (stem, _) = tensor.name.rsplit_once('.').unwrap_or_default();
        let part = stem.rsplit('.').next().unwrap_or_default();
        match part {
            "attn_q" if is_permuted => *interleaved_heads = Some(config.n_heads as u64),
            "attn_k" if is_permuted => *interleaved_heads = Some(config.n_kv_heads as u64),
            "attn_qkv" if is_permuted => return Err("queries and keys that are stored in one matrix are not reordered".to_owned()),
            _ if tensor.name.ends_with("_norm.weight") => *offset = adds,
            _ => {}
        }
    }
    Ok(())
}
