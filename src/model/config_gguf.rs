//! The metadata of a GGUF file as a [`ModelConfig`], as far as families have it in common. Key names are those of ggml's `docs/gguf.md`.

use std::sync::Arc;

use super::families::Family;
use super::gguf_names::translate;
use super::limits::validate;
use super::{Latent, ModelConfig, RopeConfig, RopePairing, RopeScaling, Variant};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::platform::ByteSource;
use crate::weights::{Catalog, MetaValue, Metadata, TensorInfo};

/// The config of a model of this family; `sources` are the shards of the catalog.
pub(super) fn read_config(
    family: &'static Family,
    metadata: &Metadata,
    catalog: &Catalog,
    sources: &[Arc<dyn ByteSource>],
) -> Result<ModelConfig> {
    let keys = Keys::new(family, metadata, catalog)?;
    let mut config = (family.from_gguf)(&keys)?;
    validate(&config, &metadata.path)?;
    let factors_of = |name: &str| {
        let read = |id| {
            let tensor: &TensorInfo = &catalog[id];
            read_frequency_factors(tensor, config.full_rotary_size(), sources[tensor.shard as usize].as_ref())
        };
        catalog.find(name).map(read).transpose()
    };
    let [all, short, long] = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"].map(factors_of);
    if let (Some(short), Some(long)) = (short?, long?) {
        // Converters write the factor, and where stretching begins, beside the tensors.
        let original = keys.unsigned("rope.scaling.original_context_length")?;
        let original_context_length = original.unwrap_or(config.context_length) as f64;
        let attention_factor = keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
        config.rope.scaling = RopeScaling::LongRope { short, long, original_context_length, attention_factor };
        validate(&config, &metadata.path)?;
    } else if let Some(factors) = all? {
        config.rope.scaling = with_frequency_factors(&config.rope.scaling, factors);
        validate(&config, &metadata.path)?;
    }
    Ok(config)
}

impl Keys<'_> {
    /// The config of a Llama-like model. Whether there are biases shows in the tensors.
    pub(super) fn decoder(&self, family: &'static Family, pairs: RopePairing) -> Result<ModelConfig> {
        let hidden_size = self.required("embedding_length")?;
        let n_heads = self.required("attention.head_count")?;
        let has = |name: &str| self.catalog.find(&translate(name, self.family)).is_some();
        Ok(ModelConfig {
            family,
            name: self.metadata.string("general.name")?.unwrap_or(self.prefix).to_owned(),
            vocab_size: vocab_size(self, self.catalog)?,
            hidden_size,
            ffn_size: self.ffn_size()?,
            n_layers: self.required("block_count")?,
            n_heads,
            n_kv_heads: self.unsigned("attention.head_count_kv")?.unwrap_or(n_heads),
            head_size: head_size(self, hidden_size, n_heads)?,
            context_length: self.required("context_length")?,
            rms_norm_epsilon: self.epsilon()? as f32,
            rope: RopeConfig { theta: self.float("rope.freq_base")?.unwrap_or(10_000.0), pairs, scaling: scaling_of(self)? },
            sliding_window: self.unsigned("attention.sliding_window")?.filter(|window| *window > 0),
            n_full_attention_layers: 0,
            attention_bias: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
            attention_output_bias: has("blk.0.attn_output.bias"),
            ffn_bias: has("blk.0.ffn_up.bias"),
            qk_norm: false,
            tied_embeddings: !has("output.weight"),
            variant: Variant::default(),
        })
    }

    /// Where every layer has experts, files may know the width of one only.
    fn ffn_size(&self) -> Result<usize> {
        match self.unsigned("feed_forward_length")? {
            Some(size) => Ok(size),
            None => self.unsigned("expert_feed_forward_length")?.ok_or_else(|| self.missing("feed_forward_length")),
        }
    }

    /// The same of families that may turn a part of each head only.
    pub(super) fn partly_rotary_decoder(&self, family: &'static Family, pairs: RopePairing) -> Result<ModelConfig> {
        let own = Keys { free_sizes: &["rope.dimension_count"], ..*self };
        let config = own.decoder(family, pairs)?;
        let rotary_size = self.unsigned("rope.dimension_count")?.filter(|size| *size != config.head_size);
        Ok(ModelConfig { variant: Variant { rotary_size, ..Variant::default() }, ..config })
    }

    /// The same of families whose keys and values are compressed, and how they are. Heads are those of what is cached.
    pub(super) fn latent_decoder(&self, family: &'static Family, pairs: RopePairing) -> Result<(ModelConfig, Latent)> {
        let own = Keys { free_sizes: &["attention.value_length", "rope.dimension_count"], ..*self };
        let config = own.decoder(family, pairs)?;
        let size = |of_heads: &str, before: &str| match self.unsigned(of_heads)? {
            Some(size) => Ok(size),
            // Before there were two sizes of keys.
            None => self.required(before),
        };
        let key_size = size("attention.key_length_mla", "attention.key_length")?;
        let rotary_size = self.required("rope.dimension_count")?;
        let Some(still_size) = key_size.checked_sub(rotary_size) else {
            return Err(self.error(format!("{rotary_size} values of a key of {key_size} turn")));
        };
        let latent = Latent {
            query_rank: self.unsigned("attention.q_lora_rank")?.filter(|rank| *rank > 0),
            rank: self.required("attention.kv_lora_rank")?,
            still_size,
            rotary_size,
            value_size: size("attention.value_length_mla", "attention.value_length")?,
        };
        Ok((config, latent))
    }

    /// The same of families of which some layers have no attention: no key and value heads.
    pub(super) fn hybrid_decoder(&self, family: &'static Family, pairs: RopePairing) -> Result<ModelConfig> {
        Keys { skips_zeros: true, ..*self }.partly_rotary_decoder(family, pairs)
    }

    /// The same of families whose layers that see everything have other heads than those with a window.
    pub(super) fn two_sized_decoder(&self, family: &'static Family, pairs: RopePairing) -> Result<ModelConfig> {
        Keys { takes_first: true, ..*self }.decoder(family, pairs)
    }

    /// The numbers of all layers under `key`, where they are listed.
    pub(super) fn integers(&self, key: &str) -> Option<&[i64]> {
        match self.metadata.get(&self.full(key)) {
            Some(MetaValue::Integers(values)) => Some(values),
            _ => None,
        }
    }

    /// What is listed of all layers under `key`.
    pub(super) fn bools(&self, key: &str) -> Result<Option<&[bool]>> {
        self.metadata.bools(&self.full(key))
    }

    /// Of each layer whether its number under `key` is 0; none are listed where one number stands for all.
    pub(super) fn zero_layers(&self, key: &str) -> Vec<bool> {
        self.integers(key).unwrap_or_default().iter().map(|value| *value == 0).collect()
    }

    /// Rows of this tensor; none where the file lacks it.
    pub(super) fn n_rows(&self, name: &str) -> usize {
        self.catalog.find(name).map_or(0, |id| self.catalog[id].n_rows() as usize)
    }

    /// An error that says that this is not supported.
    pub(super) fn unsupported(&self, reason: impl Into<String>) -> Error {
        Error::UnsupportedModel { path: self.metadata.path.clone(), reason: reason.into() }
    }

    /// Refuses a file that has this tensor.
    pub(super) fn refuse_tensor(&self, name: &str, what: &str) -> Result<()> {
        match self.catalog.find(name) {
            None => Ok(()),
            Some(_) => Err(self.unsupported(format!("{what} is not supported"))),
        }
    }
}

fn head_size(keys: &Keys<'_>, hidden_size: usize, n_heads: usize) -> Result<usize> {
    let head_size = match keys.unsigned("attention.key_length")? {
        Some(size) => size,
        None if n_heads > 0 && hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
        None => return Err(keys.error(format!("embedding_length {hidden_size} is not divisible by attention.head_count {n_heads}"))),
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if keys.free_sizes.contains(&key) {
            continue;
        }
        if let Some(other) = keys.unsigned(key)?.filter(|other| *other != head_size) {
            let reason = format!("{}.{key} is {other} where a head has {head_size} values; only equal ones are supported", keys.prefix);
            return Err(Error::UnsupportedModel { path: keys.metadata.path.clone(), reason });
        }
    }
    Ok(head_size)
}

/// Rows of the embedding. What the metadata says about them must agree.
fn vocab_size(keys: &Keys<'_>, catalog: &Catalog) -> Result<usize> {
    let missing = || Error::MissingTensor { path: keys.metadata.path.clone(), tensor: "token_embd.weight".into() };
    let embedding = &catalog[catalog.find(&keys.family.names.embedding_weight()).ok_or_else(missing)?];
    let rows = usize::try_from(embedding.n_rows()).map_err(|_| keys.error("its embedding is too large for this machine"))?;
    if let Some(claimed) = keys.unsigned("vocab_size")?.filter(|claimed| *claimed != rows) {
        return Err(keys.error(format!("{}.vocab_size is {claimed}, but token_embd.weight has {rows} rows", keys.prefix)));
    }
    let tokens = keys.metadata.strings("tokenizer.ggml.tokens")?.map_or(0, <[String]>::len);
    if tokens > rows {
        return Err(keys.error(format!("its tokenizer has {tokens} tokens, but token_embd.weight has {rows} rows")));
    }
    Ok(rows)
}

/// Without what tensors say.
fn scaling_of(keys: &Keys<'_>) -> Result<RopeScaling> {
    let factor = match keys.float("rope.scaling.factor")? {
        None => keys.float("rope.scale_linear")?,
        found => found,
    };
    let original = keys.unsigned("rope.scaling.original_context_length")?.map(|n_positions| n_positions as f64);
    match (keys.string("rope.scaling.type")?, factor) {
        (Some("yarn"), Some(factor)) if factor > 0.0 => {
            let Some(original_context_length) = original else {
                return Err(keys.missing("rope.scaling.original_context_length"));
            };
            let turns = |key: &str, default: f64| Ok(keys.float(key)?.unwrap_or(default));
            Ok(RopeScaling::Yarn {
                factor,
                original_context_length,
                beta_fast: turns("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: turns("rope.scaling.yarn_beta_slow", 1.0)?,
                attention_factor: keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0) * (1.0 + 0.1 * factor.max(1.0).ln()),
                truncates: true,
            })
        }
        (Some("none"), _) | (None, None) => Ok(RopeScaling::None),
        // A factor of 0 means that none was set; 1 changes nothing.
        (None | Some("linear"), Some(factor)) if factor == 0.0 || factor == 1.0 => Ok(RopeScaling::None),
        (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear { factor }),
        (Some(kind @ ("linear" | "yarn")), _) => Err(keys.error(format!("rope scaling `{kind}` lacks its factor"))),
        (Some(other), _) => Err(Error::UnsupportedModel {
            path: keys.metadata.path.clone(),
            reason: format!("rope scaling `{other}` is not supported; supported are none, linear and yarn"),
        }),
    }
}

/// One factor per pair of a head.
fn read_frequency_factors(tensor: &TensorInfo, head_size: usize, source: &dyn ByteSource) -> Result<Vec<f32>> {
    let expected = vec![head_size as u64 / 2];
    if tensor.shape != expected {
        return Err(Error::WrongShape {
            path: source.path().to_owned(),
            tensor: tensor.name.clone(),
            expected,
            found: tensor.shape.clone(),
        });
    }
    if tensor.dtype != DType::F32 {
        return Err(Error::invalid_file(source.path(), format!("{} is stored as {}, it must be F32", tensor.name, tensor.dtype)));
    }
    // The head size was validated: at most a few KiB.
    let mut bytes = vec![0; head_size / 2 * 4];
    source.read_at(tensor.offset, &mut bytes)?;
    let mut factors = vec![0.0; head_size / 2];
    tensor.dtype.decode(&bytes, &mut factors);
    Ok(factors)
}

fn with_frequency_factors(scaling: &RopeScaling, mut factors: Vec<f32>) -> RopeScaling {
    // llama.cpp applies both where a file has both.
    if let RopeScaling::Linear { factor } = scaling {
        factors.iter_mut().for_each(|of_pair| *of_pair = (f64::from(*of_pair) * factor) as f32);
    }
    RopeScaling::FrequencyFactors { factors }
}

/// The keys under the architecture's prefix, beside the tensors.
pub(super) struct Keys<'a> {
    family: &'static Family,
    metadata: &'a Metadata,
    prefix: &'a str,
    catalog: &'a Catalog,
    /// Keys of sizes that may be others than that of a head.
    free_sizes: &'static [&'static str],
    /// Whether layers without attention have a 0 in lists.
    skips_zeros: bool,
    /// Whether a list whose numbers differ stands for its first one: its family looks at the others itself.
    takes_first: bool,
}

impl<'a> Keys<'a> {
    pub(super) fn new(family: &'static Family, metadata: &'a Metadata, catalog: &'a Catalog) -> Result<Keys<'a>> {
        let prefix = metadata.string("general.architecture")?.unwrap_or_default();
        Ok(Keys { family, metadata, prefix, catalog, free_sizes: &[], skips_zeros: false, takes_first: false })
    }

    /// What the file calls the family.
    pub(super) fn architecture(&self) -> &str {
        self.prefix
    }

    /// That of the norms, of whichever kind they are.
    fn epsilon(&self) -> Result<f64> {
        match self.float("attention.layer_norm_epsilon")? {
            Some(epsilon) => Ok(epsilon),
            None => self.required_float("attention.layer_norm_rms_epsilon"),
        }
    }

    pub(super) fn error(&self, text: impl Into<String>) -> Error {
        Error::invalid_file(&self.metadata.path, text)
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub(super) fn unsigned(&self, key: &str) -> Result<Option<usize>> {
        let full = self.full(key);
        let value = match self.metadata.get(&full) {
            // One number for each layer, or one for all of them.
            Some(MetaValue::Integers(values)) => match values.iter().find(|value| !(self.skips_zeros && **value == 0)) {
                Some(first) if self.takes_first || values.iter().all(|value| value == first || (self.skips_zeros && *value == 0)) => {
                    Some(u64::try_from(*first).map_err(|_| self.error(format!("metadata key `{full}` is {first}")))?)
                }
                None => return Err(self.error(format!("metadata key `{full}` lists no number"))),
                _ => {
                    let reason = format!("metadata key `{full}` differs from layer to layer, which is not supported");
                    return Err(Error::UnsupportedModel { path: self.metadata.path.clone(), reason });
                }
            },
            _ => self.metadata.unsigned(&full)?,
        };
        value.map(|value| usize::try_from(value).map_err(|_| self.error(format!("metadata key `{full}` is {value}")))).transpose()
    }

    pub(super) fn required(&self, key: &str) -> Result<usize> {
        self.unsigned(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.float(&self.full(key))
    }

    fn required_float(&self, key: &str) -> Result<f64> {
        self.float(key)?.ok_or_else(|| self.missing(key))
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.metadata.string(&self.full(key))
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.metadata.bool(&self.full(key))
    }

    fn missing(&self, key: &str) -> Error {
        self.error(format!("metadata key `{}` is missing", self.full(key)))
    }
}
