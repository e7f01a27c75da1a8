//! `config.json` of a Hugging Face folder as a [`ModelConfig`], as far as families have it in common.

use std::path::Path;

use serde_json::{Map, Value};

use super::families::{self, Family, Hint};
use super::limits::validate;
use super::scaled_weights::Quantization;
use super::{Activation, ModelConfig, RopeConfig, RopePairing, RopeScaling, Variant};
use crate::error::{Error, Result};
use crate::platform::Folder;
use crate::weights::{PYTHON_CONSTANTS, parse_python_json};

const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Where configs say how weights are quantised.
const QUANTIZATION: &str = "quantization_config";
/// What messages call a text.
const STRING: &str = "a string";

/// Reads `folder/config.json`. `hint` is asked where it is of an unknown family.
pub(super) fn read_config(folder: &Folder, hint: Hint<'_>) -> Result<ModelConfig> {
    let name = folder.path_of("config.json");
    let bytes = folder.read_small("config.json", MAX_CONFIG_BYTES)?;
    let value = parse_python_json(&bytes).map_err(|error| Error::invalid_file(&name, format!("is not valid JSON: {error}")))?;
    let Value::Object(fields) = value else {
        return Err(Error::invalid_file(&name, "is not a JSON object"));
    };
    let fields = with_text_config(fields);
    config_of(&Fields { path: &name, name: &model_name(&fields, folder), fields: &fields, other_names: &[] }, hint)
}

/// The config of the text model where that is a part of one that sees or hears, too, and of a known family. What both say counts as the
/// whole says it.
fn with_text_config(mut fields: Map<String, Value>) -> Map<String, Value> {
    let is_known =
        |text: &Map<String, Value>| text.get("model_type").and_then(Value::as_str).is_some_and(|name| families::by_name(name).is_some());
    let Some(Value::Object(text)) = fields.get_mut("text_config").filter(|text| text.as_object().is_some_and(is_known)) else {
        return fields;
    };
    let mut text = std::mem::take(text);
    // The class is that of the whole.
    text.remove("architectures");
    for key in ["tie_word_embeddings", "quantization_config", "_name_or_path"] {
        if let Some(value) = fields.remove(key) {
            text.insert(key.to_owned(), value);
        }
    }
    text
}

/// What the config of `folder` says of how its weights are quantised.
pub(super) fn quantization(folder: &Folder) -> Result<Quantization> {
    let bytes = folder.read_small("config.json", MAX_CONFIG_BYTES)?;
    let value = parse_python_json(&bytes).unwrap_or_default();
    let quantization = value.get(QUANTIZATION).filter(|value| !value.is_null() && !is_mxfp4(value));
    let of_path = |reason| Error::UnsupportedModel { path: folder.path_of("config.json"), reason };
    quantization.map_or(Ok(Quantization::default()), |quantization| Quantization::of(quantization).map_err(of_path))
}

/// Whether experts are stored in MXFP4, whose scales stand in tensors of their own.
fn is_mxfp4(quantization: &Value) -> bool {
    quantization.get("quant_method").and_then(Value::as_str) == Some("mxfp4")
}

/// Where the config classes of families differ.
pub(super) struct Defaults {
    /// Key and value heads; `None`: as many as query heads.
    pub(super) n_kv_heads: Option<usize>,
    /// Values of a head; `None`: the hidden size over the heads.
    pub(super) head_size: Option<usize>,
    /// Width of the feed-forward part in hidden sizes, where the config may leave it out.
    pub(super) ffn_factor: Option<usize>,
    /// Positions.
    pub(super) context_length: usize,
    /// Epsilon of the norms.
    pub(super) epsilon: f64,
    /// Base of the rotary embedding.
    pub(super) rope_theta: f64,
    /// The share of each head that is rotated where the config does not say; `None`: all of it, and no config may say otherwise.
    pub(super) partial_rotary: Option<f64>,
    /// Where the feed-forward part's activation stands, and which it is where it does not.
    pub(super) activation: (&'static str, Activation),
    /// Whether the head is the embedding matrix.
    pub(super) tied: bool,
}

impl Default for Defaults {
    /// Those of `LlamaConfig`.
    fn default() -> Defaults {
        Defaults {
            n_kv_heads: None,
            head_size: None,
            ffn_factor: None,
            context_length: 2048,
            epsilon: 1e-6,
            rope_theta: 10_000.0,
            partial_rotary: None,
            activation: ("hidden_act", Activation::Silu),
            tied: false,
        }
    }
}

fn config_of(fields: &Fields<'_>, hint: Hint<'_>) -> Result<ModelConfig> {
    let family = families::of_json(fields, hint)?;
    refuse_unsupported(fields, family)?;
    let config = (family.from_json)(fields)?;
    validate(&config, fields.path)?;
    Ok(config)
}

impl Fields<'_> {
    /// What the configs of Llama and of what is built like it have in common; without biases and window.
    pub(super) fn decoder(&self, family: &'static Family, defaults: &Defaults) -> Result<ModelConfig> {
        let n_heads = self.required("num_attention_heads")?;
        let hidden_size = self.required("hidden_size")?;
        let head_size = match self.unsigned("head_dim")?.or(defaults.head_size) {
            Some(size) => size,
            None if n_heads > 0 && hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
            None => return Err(self.error(format!("hidden_size {hidden_size} is not divisible by num_attention_heads {n_heads}"))),
        };
        let context_length = self.unsigned("max_position_embeddings")?.unwrap_or(defaults.context_length);
        let rotary_factor = self.rotary_factor()?.or(defaults.partial_rotary).filter(|factor| *factor != 1.0);
        if let Some(factor) = rotary_factor.filter(|_| defaults.partial_rotary.is_none()) {
            let reason = format!("partial_rotary_factor {factor} is not supported");
            return Err(Error::UnsupportedModel { path: self.path.to_owned(), reason });
        }
        Ok(ModelConfig {
            family,
            name: self.name.to_owned(),
            vocab_size: self.required("vocab_size")?,
            hidden_size,
            ffn_size: match defaults.ffn_factor {
                Some(factor) => self.unsigned("intermediate_size")?.unwrap_or(hidden_size.saturating_mul(factor)),
                None => self.required("intermediate_size")?,
            },
            n_layers: self.required("num_hidden_layers")?,
            n_heads,
            n_kv_heads: self.unsigned("num_key_value_heads")?.unwrap_or(defaults.n_kv_heads.unwrap_or(n_heads)),
            head_size,
            context_length,
            rms_norm_epsilon: self.float("rms_norm_eps")?.unwrap_or(defaults.epsilon) as f32,
            rope: rope_of(self, context_length, defaults.rope_theta)?,
            sliding_window: None,
            n_full_attention_layers: 0,
            attention_bias: false,
            attention_output_bias: false,
            ffn_bias: false,
            qk_norm: false,
            tied_embeddings: self.bool("tie_word_embeddings")?.unwrap_or(defaults.tied),
            variant: Variant {
                activation: self.activation(defaults.activation)?,
                rotary_size: rotary_factor.map(|factor| (head_size as f64 * factor) as usize),
                ..Variant::default()
            },
        })
    }

    /// The share of each head that is rotated.
    fn rotary_factor(&self) -> Result<Option<f64>> {
        const KEY: &str = "partial_rotary_factor";
        for object in ["rope_scaling", "rope_parameters"] {
            if let Some(factor) = self.object(object)?.map_or(Ok(None), |object| object.float(KEY))? {
                return Ok(Some(factor));
            }
        }
        self.float(KEY)
    }

    /// What queries and keys are each multiplied by where YaRN stretches them and the config says by how much of the length.
    pub(super) fn length_factor_of_scores(&self) -> Result<f64> {
        let inner = match self.object("rope_scaling")? {
            None => self.object("rope_parameters")?,
            found => found,
        };
        let Some(inner) = inner else { return Ok(1.0) };
        let kind = inner.string("rope_type")?.or(inner.string("type")?).unwrap_or("default");
        let share = inner.float("mscale_all_dim")?.unwrap_or(0.0);
        match inner.float("factor")? {
            Some(factor) if kind != "default" && share != 0.0 => Ok(length_factor(factor, share)),
            _ => Ok(1.0),
        }
    }

    fn activation(&self, (key, default): (&str, Activation)) -> Result<Activation> {
        match self.string(key)? {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" | "gelu_accurate") => Ok(Activation::GeluTanh),
            Some("gelu" | "gelu_python") => Ok(Activation::Gelu),
            Some("relu") => Ok(Activation::Relu),
            Some("relu2") => Ok(Activation::ReluSquared),
            Some(other) => {
                let reason = format!("{key} `{other}` is not supported; supported are silu, gelu, gelu_pytorch_tanh, relu and relu2");
                Err(Error::UnsupportedModel { path: self.path.to_owned(), reason })
            }
        }
    }

    /// Which layers see a window only, where `layer_types` lists them.
    pub(super) fn windowed_layers(&self, n_layers: usize) -> Result<Option<Vec<bool>>> {
        self.layers_of_type("sliding_attention", "full_attention", n_layers)
    }

    /// Which layers are of type `one`, where `layer_types` lists them; all others are of type `other`.
    pub(super) fn layers_of_type(&self, one: &str, other: &str, n_layers: usize) -> Result<Option<Vec<bool>>> {
        let Some(types) = self.typed("layer_types", "a list of names", Value::as_array)? else {
            return Ok(None);
        };
        if types.len() != n_layers {
            return Err(self.error(format!("`layer_types` lists {} layers, the model has {n_layers}", types.len())));
        }
        let is_one = |name: &Value| match name.as_str() {
            Some(name) if name == one => Ok(true),
            Some(name) if name == other => Ok(false),
            _ => {
                let reason = format!("layer type {name} is not supported; supported are {one} and {other}");
                Err(Error::UnsupportedModel { path: self.path.to_owned(), reason })
            }
        };
        types.iter().map(is_one).collect::<Result<_>>().map(Some)
    }

    /// What a pattern of layers repeats after, at least 1.
    pub(super) fn interval(&self, key: &str, default: usize) -> Result<usize> {
        match self.unsigned(key)?.unwrap_or(default) {
            0 => Err(self.error(format!("`{key}` is 0, it must be at least 1"))),
            interval => Ok(interval),
        }
    }

    /// A list of numbers.
    pub(super) fn unsigned_list(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let numbers = |value: &Value| value.as_array()?.iter().map(|number| usize::try_from(number.as_u64()?).ok()).collect();
        self.typed(key, "a list of whole numbers that are not negative", numbers)
    }

    /// A size where the key is there, `default` where it is not, and `None` where it is null.
    pub(super) fn nullable(&self, key: &str, default: usize) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(Some(default)),
            Some(_) => self.unsigned(key),
        }
    }

    /// As [`Fields::nullable`], of a number.
    pub(super) fn nullable_float(&self, key: &str, default: Option<f64>) -> Result<Option<f32>> {
        let value = if self.get(key).is_none() { default } else { self.float(key)? };
        Ok(value.map(|value| value as f32))
    }

    /// Rotary embeddings of layers that see everything, and of those with a window, whose bases are `thetas` by default: by the kind of
    /// layer in `rope_parameters` (transformers 5), or `rope_theta`, `rope_scaling` and `rope_local_base_freq` (before it).
    pub(super) fn ropes_of_layers(&self, context_length: usize, thetas: [f64; 2]) -> Result<(RopeConfig, RopeConfig)> {
        let parameters = self.object("rope_parameters")?;
        let of_kind = |kind: &str| parameters.map_or(Ok(None), |parameters| parameters.object(kind));
        let rope = |inner: Option<Fields<'_>>, theta: f64| match inner {
            Some(inner) => self.rope_in(&inner, theta, context_length),
            None => Ok(RopeConfig { theta, pairs: RopePairing::NeoX, scaling: RopeScaling::None }),
        };
        let theta = self.float("rope_theta")?.unwrap_or(thetas[0]);
        let local_theta = self.float("rope_local_base_freq")?.unwrap_or(thetas[1]);
        let global = match of_kind("full_attention")? {
            None => self.object("rope_scaling")?,
            found => found,
        };
        Ok((rope(global, theta)?, rope(of_kind("sliding_attention")?, local_theta)?))
    }

    /// Base and scaling in one object of `rope_parameters`.
    pub(super) fn rope_in(&self, inner: &Fields<'_>, theta: f64, context_length: usize) -> Result<RopeConfig> {
        let theta = inner.float("rope_theta")?.unwrap_or(theta);
        Ok(RopeConfig { theta, pairs: RopePairing::NeoX, scaling: scaling_of(inner, self, context_length)? })
    }
}

fn refuse_unsupported(fields: &Fields<'_>, family: &Family) -> Result<()> {
    if let Some(quantization) = fields.fields.get(QUANTIZATION).filter(|value| !value.is_null()) {
        if is_mxfp4(quantization) && family.is_mixture() {
            return Ok(());
        }
        let of_path = |reason| Error::UnsupportedModel { path: fields.path.to_owned(), reason };
        Quantization::of(quantization).map_err(of_path)?;
    }
    Ok(())
}

/// What the config calls the model, else the hub's name of a cached snapshot, else the folder's name.
fn model_name(fields: &Map<String, Value>, folder: &Folder) -> String {
    let given = fields.get("_name_or_path").and_then(Value::as_str).filter(|name| !name.is_empty());
    let by_folder = || match folder {
        Folder::Path(path) => folder_name(path),
        Folder::Sources(_) => None,
    };
    given.map(str::to_owned).or_else(by_folder).unwrap_or_else(|| "model".to_owned())
}

fn folder_name(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let hub_name = || {
        // models--ORG--NAME/snapshots/REVISION
        let repository = folder.parent().and_then(Path::parent)?.file_name()?.to_str()?;
        Some(repository.strip_prefix("models--")?.replacen("--", "/", 1))
    };
    hub_name().or_else(|| Some(folder.file_name()?.to_string_lossy().into_owned()))
}

/// Base and scaling, from `rope_parameters` (transformers 5) or from `rope_theta` beside `rope_scaling` (before it).
fn rope_of(fields: &Fields<'_>, context_length: usize, default_theta: f64) -> Result<RopeConfig> {
    let scaling = fields.object("rope_scaling")?;
    let parameters = fields.object("rope_parameters")?;
    let inner = scaling.or(parameters);
    let mut theta = None;
    for object in [scaling, parameters].into_iter().flatten() {
        theta = theta.or(object.float("rope_theta")?);
    }
    let theta = theta.or(fields.float("rope_theta")?).unwrap_or(default_theta);
    let scaling = match inner {
        None => RopeScaling::None,
        Some(inner) => scaling_of(&inner, fields, context_length)?,
    };
    Ok(RopeConfig { theta, pairs: RopePairing::NeoX, scaling })
}

/// What YaRN multiplies queries and keys by for a context that is `factor` times as long.
pub(super) fn length_factor(factor: f64, share: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * share * factor.ln() + 1.0 }
}

/// Positions before stretching, where the config says them.
fn original_context(inner: &Fields<'_>, outer: &Fields<'_>) -> Result<Option<f64>> {
    const KEY: &str = "original_max_position_embeddings";
    Ok(inner.float(KEY)?.or(outer.float(KEY)?))
}

fn scaling_of(inner: &Fields<'_>, outer: &Fields<'_>, context_length: usize) -> Result<RopeScaling> {
    let kind = inner.string("rope_type")?.or(inner.string("type")?).unwrap_or("default");
    let needed = |key: &str| inner.float(key)?.ok_or_else(|| inner.error(format!("rope scaling `{kind}` lacks `{key}`")));
    match kind {
        // What is called dynamic stretches only what lies beyond the positions that the model was trained for.
        "default" | "dynamic" => Ok(RopeScaling::None),
        "yarn" => {
            let original = original_context(inner, outer)?.unwrap_or(context_length as f64);
            let factor = inner.float("factor")?.unwrap_or(context_length as f64 / original);
            let shares = [inner.float("mscale")?, inner.float("mscale_all_dim")?].map(|share| share.filter(|share| *share != 0.0));
            let attention_factor = match (inner.float("attention_factor")?, shares) {
                (Some(factor), _) => factor,
                (None, [Some(share), Some(of_all)]) => length_factor(factor, share) / length_factor(factor, of_all),
                (None, _) => length_factor(factor, 1.0),
            };
            let turns = |key: &str, default: f64| Ok(inner.float(key)?.filter(|turns| *turns != 0.0).unwrap_or(default));
            Ok(RopeScaling::Yarn {
                factor,
                original_context_length: original,
                beta_fast: turns("beta_fast", 32.0)?,
                beta_slow: turns("beta_slow", 1.0)?,
                attention_factor,
                truncates: inner.bool("truncate")?.unwrap_or(true),
            })
        }
        "longrope" | "su" => {
            let original = original_context(inner, outer)?.unwrap_or(context_length as f64);
            let factor = inner.float("factor")?.unwrap_or(context_length as f64 / original);
            let derived = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
            let factors = |key: &str| inner.floats(key)?.ok_or_else(|| inner.error(format!("rope scaling `{kind}` lacks `{key}`")));
            Ok(RopeScaling::LongRope {
                short: factors("short_factor")?,
                long: factors("long_factor")?,
                original_context_length: original,
                attention_factor: inner.float("attention_factor")?.unwrap_or(derived),
            })
        }
        "linear" => Ok(RopeScaling::Linear { factor: needed("factor")? }),
        "llama3" => {
            let original = original_context(inner, outer)?.unwrap_or(context_length as f64);
            Ok(RopeScaling::Llama3 {
                factor: needed("factor")?,
                low_freq_factor: needed("low_freq_factor")?,
                high_freq_factor: needed("high_freq_factor")?,
                original_context_length: original,
            })
        }
        other => Err(Error::UnsupportedModel {
            path: inner.path.to_owned(),
            reason: format!("rope scaling `{other}` is not supported; supported are default, dynamic, linear, llama3, longrope and yarn"),
        }),
    }
}

/// A JSON object whose getters answer `None` for absent or null and name the key otherwise.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    /// The file, for messages.
    pub(super) path: &'a str,
    /// What the model calls itself.
    name: &'a str,
    fields: &'a Map<String, Value>,
    /// Keys and what this family calls them.
    other_names: &'static [(&'static str, &'static str)],
}

impl<'a> Fields<'a> {
    /// The same with names that a family has for keys, (the key, its name); as in transformers, the key itself is understood too.
    pub(super) fn with_other_names(self, other_names: &'static [(&'static str, &'static str)]) -> Fields<'a> {
        Fields { other_names, ..self }
    }

    /// What this config calls `key`.
    fn named<'k>(&self, key: &'k str) -> &'k str {
        let other = self.other_names.iter().find(|(one, _)| *one == key && !self.fields.contains_key(key));
        other.map_or(key, |(_, name)| name)
    }

    /// The value of `key`, whatever its type.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.fields.get(self.named(key))
    }

    /// Refuses a config in which `key` is true.
    pub(super) fn refuse_switch(&self, key: &str) -> Result<()> {
        match self.bool(key)? {
            Some(true) => Err(Error::UnsupportedModel { path: self.path.to_owned(), reason: format!("{key} is not supported") }),
            _ => Ok(()),
        }
    }

    /// Refuses a config in which `key` is another number than the only one that is computed with.
    pub(super) fn refuse_other_number(&self, key: &str, known: f64) -> Result<()> {
        match self.float(key)? {
            Some(number) if number != known => {
                let reason = format!("{key} {number} is not supported; it must be {known}");
                Err(Error::UnsupportedModel { path: self.path.to_owned(), reason })
            }
            _ => Ok(()),
        }
    }

    /// Refuses a config in which `key` is a number.
    pub(super) fn refuse_number(&self, key: &str) -> Result<()> {
        match self.float(key)? {
            Some(number) => Err(Error::UnsupportedModel { path: self.path.to_owned(), reason: format!("{key} {number} is not supported") }),
            None => Ok(()),
        }
    }

    pub(super) fn error(&self, text: impl Into<String>) -> Error {
        Error::invalid_file(self.path, text)
    }

    fn typed<T>(&self, key: &str, wanted: &str, parse: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let key = self.named(key);
        match self.fields.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if wanted != STRING && PYTHON_CONSTANTS.contains(&text.as_str()) => {
                tracing::warn!("{}: `{key}` is {text} and is ignored; it must be {wanted}", self.path);
                Ok(None)
            }
            Some(value) => parse(value).map(Some).ok_or_else(|| {
                let mut shown: String = value.to_string().chars().take(40).collect();
                if shown.len() < value.to_string().len() {
                    shown.push('…');
                }
                self.error(format!("`{key}` is {shown}, it must be {wanted}"))
            }),
        }
    }

    pub(super) fn unsigned(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number that is not negative", |value| usize::try_from(value.as_u64()?).ok())
    }

    pub(super) fn signed(&self, key: &str) -> Result<Option<i64>> {
        self.typed(key, "a whole number", Value::as_i64)
    }

    pub(super) fn required(&self, key: &str) -> Result<usize> {
        self.unsigned(key)?.ok_or_else(|| self.error(format!("`{}` is missing", self.named(key))))
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A list of numbers.
    fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let numbers = |value: &Value| value.as_array()?.iter().map(|number| Some(number.as_f64()? as f32)).collect();
        self.typed(key, "a list of numbers", numbers)
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, STRING, Value::as_str)
    }

    /// An object with something in it; an empty one counts as absent, as in transformers.
    pub(super) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let fields = self.typed(key, "an object", Value::as_object)?;
        Ok(fields.filter(|fields| !fields.is_empty()).map(|fields| Fields { path: self.path, name: self.name, fields, other_names: &[] }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(changes: &str) -> Result<ModelConfig> {
        let mut value: Value = serde_json::from_str(
            r#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":160,
                "num_hidden_layers":4,"num_attention_heads":4,"vocab_size":320,"max_position_embeddings":512}"#,
        )
        .unwrap();
        let changes: Map<String, Value> = serde_json::from_str(changes).unwrap();
        value.as_object_mut().unwrap().extend(changes);
        config_of(&Fields { path: "config.json", name: "tiny", fields: value.as_object().unwrap(), other_names: &[] }, &|| None)
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = parse("{}").unwrap();
        assert_eq!((config.n_kv_heads, config.head_size, config.rms_norm_epsilon), (4, 16, 1e-6));
        assert_eq!(config.rope, RopeConfig { theta: 10_000.0, pairs: RopePairing::NeoX, scaling: RopeScaling::None });
        assert!(!config.tied_embeddings && !config.attention_bias && config.sliding_window.is_none());
        let mistral = parse(r#"{"model_type":"mistral","architectures":["MistralForCausalLM"],"num_key_value_heads":2}"#).unwrap();
        assert_eq!(mistral.sliding_window, Some(4096));
        let all = parse(r#"{"model_type":"mistral","num_key_value_heads":2,"sliding_window":null}"#).unwrap();
        assert_eq!(all.sliding_window, None);
    }

    #[test]
    fn qwen2_has_biases_and_a_window_in_later_layers_where_one_is_used() {
        let qwen2 = |changes: &str| {
            let changes = changes.strip_prefix('{').unwrap();
            parse(&format!(r#"{{"model_type":"qwen2","architectures":["Qwen2ForCausalLM"],"num_key_value_heads":2{changes}"#)).unwrap()
        };
        let qwen3 = r#"{"model_type":"qwen3","num_key_value_heads":2}"#;
        let qwen3 = parse(qwen3).unwrap();
        assert!(qwen3.qk_norm && !qwen3.attention_bias && qwen3.head_size == 128);
        let plain = qwen2(r#"{,"sliding_window":128,"max_window_layers":3}"#);
        assert!(plain.attention_bias && !plain.attention_output_bias && plain.sliding_window.is_none());
        let windowed = qwen2(r#"{,"sliding_window":128,"max_window_layers":3,"use_sliding_window":true}"#);
        assert_eq!((windowed.sliding_window, windowed.n_full_attention_layers), (Some(128), 3));
    }

    #[test]
    fn layers_of_gemma3_are_told_apart_in_both_spellings() {
        let gemma3 = |changes: &str| {
            let all = format!(
                r#"{{"model_type":"gemma3_text","architectures":["Gemma3ForCausalLM"],"num_key_value_heads":2,"query_pre_attn_scalar":64,{changes}}}"#
            );
            parse(&all).unwrap()
        };
        let old = gemma3(
            r#""sliding_window_pattern":2,"rope_theta":5e5,"rope_local_base_freq":2e4,"rope_scaling":{"rope_type":"linear","factor":8}"#,
        );
        let new = gemma3(
            r#""layer_types":["sliding_attention","full_attention","sliding_attention","full_attention"],
                "rope_parameters":{"full_attention":{"rope_type":"linear","factor":8.0,"rope_theta":5e5},
                    "sliding_attention":{"rope_type":"default","rope_theta":2e4}}"#,
        );
        assert_eq!(old, new);
        assert_eq!(new.variant.windowed_layers, Some(vec![true, false, true, false]));
        let local = new.variant.local_rope.unwrap();
        assert_eq!((new.rope.scaling, local.theta, local.scaling), (RopeScaling::Linear { factor: 8.0 }, 2e4, RopeScaling::None));
        assert_eq!((new.sliding_window, new.head_size, new.tied_embeddings, new.qk_norm), (Some(4096), 256, true, true));
        assert_eq!((new.variant.attention_scale, new.variant.embedding_scale), (Some(0.125), 8.0));
    }

    #[test]
    fn parts_of_phi3_and_layers_of_smollm3_turn() {
        let phi3 = parse(r#"{"model_type":"phi3","architectures":["Phi3ForCausalLM"],"head_dim":24,"partial_rotary_factor":0.5}"#).unwrap();
        assert_eq!((phi3.rotary_size(), phi3.rms_norm_epsilon, phi3.sliding_window), (12, 1e-5, None));
        let smollm3 =
            |changes: &str| parse(&format!(r#"{{"model_type":"smollm3","architectures":["SmolLM3ForCausalLM"]{changes}}}"#)).unwrap();
        let turns = |config: &ModelConfig| (0..4).map(|layer| config.is_rotated(layer)).collect::<Vec<bool>>();
        assert_eq!(turns(&smollm3("")), [true, true, true, false]);
        let listed = smollm3(r#","no_rope_layers":[0,1,1,1],"use_sliding_window":true,"sliding_window":8"#);
        assert_eq!((turns(&listed), listed.is_windowed(0), listed.is_windowed(1)), (vec![false, true, true, true], true, false));
        assert_eq!((listed.rope.theta, listed.n_kv_heads, listed.tied_embeddings), (2e6, 4, true));
    }

    #[test]
    fn the_text_model_of_a_larger_one_is_found() {
        let parse = |text: &str| with_text_config(serde_json::from_str(text).unwrap());
        let whole = r#"{"model_type":"gemma3","architectures":["Gemma3ForConditionalGeneration"],"tie_word_embeddings":true,
            "text_config":{"model_type":"gemma3_text","hidden_size":64,"tie_word_embeddings":false,"architectures":null}}"#;
        let text = parse(r#"{"model_type":"gemma3_text","hidden_size":64,"tie_word_embeddings":true}"#);
        assert_eq!(parse(whole), text);
        for other in [r#"{"model_type":"llama","text_config":7}"#, r#"{"model_type":"x","text_config":{"model_type":"unknown"}}"#] {
            assert_eq!(Value::Object(parse(other)), serde_json::from_str::<Value>(other).unwrap(), "stays as it is");
        }
    }

    #[test]
    fn rope_is_read_from_both_places() {
        let old = parse(r#"{"rope_theta":5e5,"rope_scaling":{"type":"linear","factor":2}}"#).unwrap();
        let new = parse(r#"{"rope_parameters":{"rope_theta":5e5,"rope_type":"linear","factor":2.0}}"#).unwrap();
        assert_eq!(old.rope, new.rope);
        assert_eq!(new.rope.scaling, RopeScaling::Linear { factor: 2.0 });
        let llama3 = parse(
            r#"{"rope_theta":500000.0,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,
                "high_freq_factor":4.0,"original_max_position_embeddings":8192}}"#,
        );
        let expected = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context_length: 8192.0 };
        assert_eq!(llama3.unwrap().rope.scaling, expected);
        let plain = parse(r#"{"rope_theta":7,"rope_parameters":{"rope_type":"default","rope_theta":3.0},"rope_scaling":null}"#).unwrap();
        assert_eq!((plain.rope.theta, plain.rope.scaling), (3.0, RopeScaling::None));
    }

    #[test]
    fn what_cannot_run_is_named() {
        for (changes, named) in [
            (r#"{"hidden_act":"mish"}"#, "mish"),
            (r#"{"model_type":"gpt3"}"#, "gpt3"),
            (r#"{"model_type":"gpt2","scale_attn_by_inverse_layer_idx":true}"#, "scale_attn_by_inverse_layer_idx"),
            (r#"{"partial_rotary_factor":0.5}"#, "partial_rotary_factor"),
            (r#"{"model_type":"gemma2","layer_types":["full_attention"]}"#, "layer_types"),
            (r#"{"model_type":"gemma3_text","sliding_window_pattern":0}"#, "sliding_window_pattern"),
            (r#"{"model_type":"phi3","partial_rotary_factor":0.2}"#, "rotary"),
            (r#"{"model_type":"gemma2","num_hidden_layers":4611686018427387904}"#, "number of layers"),
            (r#"{"model_type":"gemma3_text","num_hidden_layers":4611686018427387904}"#, "number of layers"),
            (r#"{"model_type":"smollm3","num_hidden_layers":4611686018427387904}"#, "number of layers"),
            (r#"{"model_type":"lfm2","num_hidden_layers":4611686018427387904}"#, "number of layers"),
            (r#"{"model_type":"lfm2","intermediate_size":4611686018427387904}"#, "feed-forward size"),
            (r#"{"model_type":"lfm2","layer_types":["conv","full_attention","conv","mamba"]}"#, "mamba"),
            (r#"{"model_type":"lfm2","layer_types":["conv"]}"#, "layer_types"),
            (r#"{"model_type":"lfm2","num_key_value_heads":2,"full_attn_idxs":[1],"conv_L_cache":0}"#, "0 taps"),
            (
                r#"{"model_type":"lfm2","num_key_value_heads":2,"full_attn_idxs":[1],"conv_L_cache":4611686018427387904}"#,
                "4611686018427387904 taps",
            ),
            (r#"{"model_type":"lfm2","block_multiple_of":0}"#, "block_multiple_of"),
            (r#"{"model_type":"qwen3_5_text","num_key_value_heads":2,"linear_num_value_heads":4611686018427387904}"#, "value heads"),
            (r#"{"model_type":"qwen3_5_text","num_key_value_heads":2,"linear_num_value_heads":24}"#, "24 value heads cannot share 16"),
            (r#"{"model_type":"qwen3_5_text","num_key_value_heads":2,"linear_key_head_dim":0}"#, "key heads is 0"),
            (r#"{"model_type":"qwen3_5_text","num_key_value_heads":2,"full_attention_interval":0}"#, "full_attention_interval"),
            (r#"{"model_type":"qwen3_5_text","num_key_value_heads":2,"layer_types":["conv"]}"#, "layer_types"),
            (
                r#"{"model_type":"gemma4_text","vocab_size_per_layer_input":321}"#,
                "vocab_size_per_layer_input is 321 where vocab_size is 320",
            ),
            (r#"{"model_type":"gemma4_text","hidden_size_per_layer_input":4611686018427387904}"#, "absurdly wide"),
            (r#"{"model_type":"gemma4_text","num_kv_shared_layers":4}"#, "4 of 4 layers share"),
            (r#"{"model_type":"gemma4_text","num_kv_shared_layers":4611686018427387904}"#, "4611686018427387904 of 4 layers share"),
            (r#"{"model_type":"gemma4_text","num_kv_shared_layers":2}"#, "layer 3 shares keys and values, but none of the 2 layers"),
            (r#"{"model_type":"gemma4_text","hidden_size_per_layer_input":0,"use_bidirectional_attention":"all"}"#, "`all`"),
            (
                r#"{"model_type":"gemma4_text","hidden_size_per_layer_input":0,"per_layer_config":{"0":{"head_dim":8}}}"#,
                "layer 0 4 key heads of 8 values where others of its kind have 4 of 256",
            ),
            (
                r#"{"model_type":"gemma4_text","hidden_size_per_layer_input":0,"global_head_dim":4611686018427387904}"#,
                "head size of layers that see everything is 4611686018427387904",
            ),
            (
                r#"{"model_type":"gemma4_text","hidden_size_per_layer_input":0,"attention_k_eq_v":true,"num_global_key_value_heads":3}"#,
                "cannot share 3",
            ),
            (r#"{"model_type":"gemma4_text","hidden_size_per_layer_input":0,"num_hidden_layers":4611686018427387904}"#, "number of layers"),
            (r#"{"model_type":"gemma4_text","hidden_size_per_layer_input":0,"enable_moe_block":true}"#, "`top_k_experts` is missing"),
            (
                r#"{"model_type":"gemma4_text","hidden_size_per_layer_input":0,"rope_parameters":{"full_attention":{"rope_type":"yarn"}}}"#,
                "rope_type `yarn`",
            ),
            (r#"{"model_type":"nomic_bert","moe_every_n_layers":2}"#, "mixture of experts"),
            (r#"{"model_type":"nomic_bert","activation_function":"geglu"}"#, "geglu"),
            (r#"{"model_type":"nomic_bert","prenorm":true}"#, "prenorm"),
            (r#"{"architectures":["LlamaForSequenceClassification"]}"#, "LlamaForSequenceClassification"),
            (r#"{"rope_scaling":{"rope_type":"ntk","factor":4.0}}"#, "ntk"),
            (r#"{"rope_scaling":{"rope_type":"yarn","factor":0.0}}"#, "factor"),
            (r#"{"rope_scaling":{"rope_type":"longrope","short_factor":[1.0],"long_factor":[1.0]}}"#, "1 factors where 8 pairs turn"),
            (r#"{"rope_scaling":{"rope_type":"longrope","short_factor":[1.0]}}"#, "long_factor"),
            (r#"{"rope_scaling":{"rope_type":"linear"}}"#, "factor"),
            (r#"{"quantization_config":{"quant_method":"gptq"}}"#, "gptq"),
            (r#"{"hidden_size":64.5}"#, "hidden_size"),
            (r#"{"vocab_size":null}"#, "vocab_size"),
            (r#"{"num_attention_heads":0}"#, "num_attention_heads"),
            (r#"{"num_key_value_heads":3}"#, "key"),
            (r#"{"head_dim":15}"#, "head"),
        ] {
            let reason = parse(changes).unwrap_err().to_string();
            assert!(reason.starts_with("config.json") && reason.contains(named), "{changes}: {reason}");
        }
    }
}
