//! What a model's config says, in our words. The readers of `config.json` and of GGUF metadata make it; nothing here reads files.

use serde::Serialize;

use super::experts::Experts;
use super::families::Family;
use super::op::Activation;
use crate::units::is_zero;

/// The sizes and settings of a model, validated: no zero sizes, heads divide, everything below sane limits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelConfig {
    /// Which family of models it belongs to; in JSON, the family's name.
    #[serde(rename = "architecture")]
    pub family: &'static Family,
    /// What the model calls itself, for people.
    pub name: String,
    /// Tokens in the vocabulary; rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward part.
    pub ffn_size: usize,
    /// Transformer layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Values per head; even.
    pub head_size: usize,
    /// Positions the model was trained for.
    pub context_length: usize,
    /// Epsilon of the norms.
    pub rms_norm_epsilon: f32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Attention sees this many latest positions, itself included; `None` sees all.
    pub sliding_window: Option<usize>,
    /// Layers, from the first on, that see all positions whatever the window.
    pub n_full_attention_layers: usize,
    /// q, k, v have biases.
    pub attention_bias: bool,
    /// The attention output has a bias.
    pub attention_output_bias: bool,
    /// gate, up, down have biases.
    pub ffn_bias: bool,
    /// Queries and keys are normed.
    pub qk_norm: bool,
    /// The head is the embedding matrix.
    pub tied_embeddings: bool,
    /// Where its layers depart from Llama's.
    #[serde(skip_serializing_if = "Variant::is_llama")]
    pub variant: Variant,
}

/// Where the layers of a model depart from Llama's in numbers and functions; the default is Llama's. What they are made of is the
/// family's own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Variant {
    /// Of the feed-forward part's gate, or of its up projection where it has no gate.
    pub activation: Activation,
    /// Both parts of a layer read the residual stream as it is before the layer.
    pub is_parallel: bool,
    /// What its norms compute.
    pub norm: NormKind,
    /// Positions are learned: each has a row that is added to the embedding, and heads are not rotated.
    pub learns_positions: bool,
    /// Kinds of texts that have a row which is added to the embedding.
    pub n_token_types: usize,
    /// Added to the weights of norms.
    pub norm_weight_offset: f32,
    /// What the embedding is multiplied by.
    pub embedding_scale: f32,
    /// What attention and feed-forward parts are multiplied by before they are added to the residual stream.
    pub residual_scale: f32,
    /// What logits are multiplied by.
    pub logit_scale: f32,
    /// What products of query and key are multiplied by; `None`: one over the root of the head size.
    pub attention_scale: Option<f32>,
    /// Cap of the products of query and key.
    pub attention_softcap: Option<f32>,
    /// Cap of the logits.
    pub logit_softcap: Option<f32>,
    /// Values of a head that are rotated, from the first on; `None`: all.
    pub rotary_size: Option<usize>,
    /// Rotary embedding of the layers that see a window only, where it is another.
    pub local_rope: Option<RopeConfig>,
    /// Which layers see a window only; `None`: all behind [`ModelConfig::n_full_attention_layers`].
    pub windowed_layers: Option<Vec<bool>>,
    /// Which layers turn queries and keys; `None`: all.
    pub rotated_layers: Option<Vec<bool>>,
    /// Heads of the layers that see everything, where they are others than those of layers with a window; all of each is rotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_heads: Option<Heads>,
    /// Values are normed, head by head.
    #[serde(skip_serializing_if = "is_false")]
    pub norms_values: bool,
    /// Layers at the end without keys and values of their own: each reads those of the last layer of its kind before them.
    #[serde(skip_serializing_if = "is_zero")]
    pub n_kv_sharing_layers: usize,
    /// Width of the feed-forward part of those layers, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sharing_ffn_size: Option<usize>,
    /// Width of the embedding of tokens that each layer has of its own; 0: none has.
    #[serde(skip_serializing_if = "is_zero")]
    pub layer_embedding_size: usize,
    /// What the residual stream is multiplied by behind each layer; `None`: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_scales: Option<Vec<f32>>,
    /// Tokens see what stands behind them as well, and the normed hidden states are the result.
    #[serde(skip_serializing_if = "is_false")]
    pub sees_both_sides: bool,
    /// Whether windows are chunks: a token sees the positions since the last multiple of the window's size.
    #[serde(skip_serializing_if = "is_false")]
    pub windows_are_chunks: bool,
    /// What queries are multiplied by by their position, in layers that do not turn them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<Temperature>,
    /// How keys and values are compressed, where they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent: Option<Latent>,
    /// What some layers have in place of attention.
    pub recurrent: Option<Recurrent>,
    /// The experts that feed-forward parts consist of, in a mixture of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
}

/// Heads of a layer's attention, beside their number of queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Heads {
    /// Key and value heads; divides the query heads.
    pub n_kv_heads: usize,
    /// Values per head; even.
    pub head_size: usize,
    /// Values are the keys as they are before their norm, so that they have no matrix.
    pub values_are_keys: bool,
}

/// What queries are multiplied by, so that attention stays sharp in long contexts: `1 + scale · ln(1 + ⌊(position + 1) / length⌋)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Temperature {
    /// Positions up to which it is 1, and after which it grows.
    pub length: f64,
    /// How much it grows.
    pub scale: f64,
}

impl Temperature {
    /// That of a token at `position`.
    pub fn of(&self, position: u32) -> f64 {
        let n_lengths = ((f64::from(position) + 1.0) / self.length).floor();
        n_lengths.ln_1p() * self.scale + 1.0
    }

    /// A table that turns nothing and multiplies `rotary_size` values by it.
    pub(crate) fn table(self, rotary_size: usize) -> RopeTable {
        RopeTable { inverse_frequencies: vec![0.0; rotary_size / 2], beyond: None, scale: 1.0, temperature: Some(self) }
    }
}

/// Attention whose keys and values are made of one latent vector of each position, which is cached in their place: as the only key head,
/// behind the values that turn. Queries are multiplied by what would make keys of it, and what attention gives by what would make values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Latent {
    /// Width of what queries are made of, where they are compressed, too.
    pub query_rank: Option<usize>,
    /// Width of the latent vector.
    pub rank: usize,
    /// Values of a head's query and key that do not turn.
    pub still_size: usize,
    /// Those that turn; all heads share those of the key.
    pub rotary_size: usize,
    /// Values of a head's value.
    pub value_size: usize,
}

/// Layers that keep a state of fixed size instead of keys and values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recurrent {
    /// Which layers; one entry for each of the model's.
    pub layers: Vec<bool>,
    /// What they compute.
    pub kind: RecurrentKind,
}

/// What stands in place of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum RecurrentKind {
    /// A short convolution between two gates.
    ShortConv {
        /// Positions that an output depends on.
        n_taps: usize,
        /// Whether the convolution and the projections have biases.
        has_bias: bool,
    },
    /// The gated delta rule behind a short convolution of queries, keys and values.
    DeltaNet {
        /// Positions that an output of the convolution depends on.
        n_taps: usize,
        /// Heads of queries, and of keys.
        n_key_heads: usize,
        /// Heads of values; a multiple of `n_key_heads`.
        n_value_heads: usize,
        /// Values of a query's or key's head.
        key_size: usize,
        /// Values of a value's head.
        value_size: usize,
        /// Whether value head `h` has key head `h mod n_key_heads`; otherwise consecutive value heads share one.
        is_tiled: bool,
        /// Whether the logarithms of the rates at which heads forget are stored; otherwise the rates themselves, negated.
        decay_is_log: bool,
    },
}

impl RecurrentKind {
    /// What its module in a layer is called.
    pub fn module(self) -> &'static str {
        match self {
            RecurrentKind::ShortConv { .. } => "conv",
            RecurrentKind::DeltaNet { .. } => "linear_attn",
        }
    }
}

impl Default for Variant {
    fn default() -> Variant {
        Variant {
            activation: Activation::Silu,
            is_parallel: false,
            norm: NormKind::Rms,
            learns_positions: false,
            n_token_types: 0,
            norm_weight_offset: 0.0,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            attention_scale: None,
            attention_softcap: None,
            logit_softcap: None,
            rotary_size: None,
            local_rope: None,
            windowed_layers: None,
            rotated_layers: None,
            full_heads: None,
            norms_values: false,
            n_kv_sharing_layers: 0,
            sharing_ffn_size: None,
            layer_embedding_size: 0,
            layer_scales: None,
            sees_both_sides: false,
            windows_are_chunks: false,
            temperature: None,
            latent: None,
            recurrent: None,
            experts: None,
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// What the norms of a model compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Rows over the root of their mean square ([`RmsNorm`](crate::model::RmsNorm)).
    Rms,
    /// Rows less their mean, over their standard deviation ([`LayerNorm`](crate::model::LayerNorm)).
    Layer {
        /// Whether a bias is added.
        has_bias: bool,
    },
}

impl Variant {
    fn is_llama(&self) -> bool {
        *self == Variant::default()
    }
}

impl ModelConfig {
    /// Width of all query heads together.
    pub fn query_size(&self) -> usize {
        self.n_heads * self.head_size
    }

    /// The heads of a layer.
    pub fn heads_of(&self, layer: usize) -> Heads {
        let usual = Heads { n_kv_heads: self.n_kv_heads, head_size: self.head_size, values_are_keys: false };
        self.variant.full_heads.filter(|_| !self.is_windowed(layer)).unwrap_or(usual)
    }

    /// Whether a layer reads keys and values of one before it.
    pub fn shares_kv(&self, layer: usize) -> bool {
        layer >= self.n_layers.saturating_sub(self.variant.n_kv_sharing_layers)
    }

    /// The layer whose keys and values a layer reads, of one that has none of its own.
    pub fn kv_source(&self, layer: usize) -> Option<usize> {
        let is_source = |source: &usize| !self.shares_kv(*source) && self.is_windowed(*source) == self.is_windowed(layer);
        self.shares_kv(layer).then(|| (0..layer).rev().find(is_source)).flatten()
    }

    /// Whether layers behind this one read its keys and values.
    pub fn is_kv_source(&self, layer: usize) -> bool {
        (0..self.n_layers).any(|reader| self.kv_source(reader) == Some(layer))
    }

    /// Width of a layer's feed-forward part.
    pub fn ffn_size_of(&self, layer: usize) -> usize {
        self.variant.sharing_ffn_size.filter(|_| self.shares_kv(layer)).unwrap_or(self.ffn_size)
    }

    /// Values of a head that are rotated in layers that see everything.
    pub fn full_rotary_size(&self) -> usize {
        self.variant.full_heads.map_or(self.rotary_size(), |heads| heads.head_size)
    }

    /// Values of a head that are rotated.
    pub fn rotary_size(&self) -> usize {
        self.variant.rotary_size.unwrap_or(self.head_size)
    }

    /// Whether a layer sees a window only, if the model has one.
    pub fn is_windowed(&self, layer: usize) -> bool {
        match &self.variant.windowed_layers {
            Some(layers) => layers.get(layer).copied().unwrap_or(false),
            None => layer >= self.n_full_attention_layers,
        }
    }

    /// Whether a layer turns queries and keys.
    pub fn is_rotated(&self, layer: usize) -> bool {
        let is_rotated = |layers: &Vec<bool>| layers.get(layer).copied().unwrap_or(true);
        !self.variant.learns_positions && self.variant.rotated_layers.as_ref().is_none_or(is_rotated)
    }

    /// What a layer has in place of attention, if it has none.
    pub fn recurrent(&self, layer: usize) -> Option<RecurrentKind> {
        let recurrent = self.variant.recurrent.as_ref()?;
        recurrent.layers.get(layer).copied().unwrap_or(false).then_some(recurrent.kind)
    }

    /// The experts of a layer that has any.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.variant.experts.as_ref().filter(|experts| experts.are_in(layer))
    }

    /// Width of all key (or value) heads together.
    pub fn kv_size(&self) -> usize {
        self.n_kv_heads * self.head_size
    }
}

/// Which values of a head are rotated together, by the numbers that the kernels have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u32)]
pub enum RopePairing {
    /// `(i, i + rotary_size/2)`, as Hugging Face checkpoints have it.
    NeoX = 0,
    /// `(2i, 2i + 1)`, as GGUF files of the Llama architecture have it (their q and k rows are permuted).
    Interleaved = 1,
}

/// Rotary embedding: everything that its frequency table needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Which values are rotated together.
    pub pairs: RopePairing,
    /// How frequencies are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched for longer contexts.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided, high ones kept, a ramp between
    /// (`_compute_llama3_parameters` of transformers, `modeling_rope_utils.py`).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_context_length / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_context_length / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context before stretching.
        original_context_length: f64,
    },
    /// YaRN's: pairs that turn seldom within the original context are stretched, pairs that turn often are not, a ramp between, and
    /// cosines and sines are multiplied (Peng et al. 2023; `_compute_yarn_parameters` of transformers).
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Context before stretching.
        original_context_length: f64,
        /// Turns within the original context above which a pair is left as it is.
        beta_fast: f64,
        /// Turns within it below which a pair is stretched wholly.
        beta_slow: f64,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
        /// Whether the ends of the ramp are whole pairs.
        truncates: bool,
    },
    /// LongRoPE's: a divisor for each pair, others where the context is longer than the original one, and cosines and sines are
    /// multiplied (Ding et al. 2024; `_compute_longrope_parameters` of transformers).
    LongRope {
        /// Divisors up to the original context, one per pair.
        short: Vec<f32>,
        /// Divisors beyond.
        long: Vec<f32>,
        /// Context before stretching.
        original_context_length: f64,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
    /// One factor per pair, which divides its frequency, as GGUF's tensor `rope_freqs.weight` stores it.
    FrequencyFactors {
        /// `head_size / 2` of them.
        factors: Vec<f32>,
    },
}

/// The angles of one rotary embedding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeTable {
    /// The angle per position of each pair of a head.
    pub inverse_frequencies: Vec<f32>,
    /// Where caches have room for more positions than so many, the angles are these: as many.
    pub beyond: Option<(usize, Vec<f32>)>,
    /// What cosines and sines are multiplied by.
    pub scale: f32,
    /// What else they are multiplied by, by the position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<Temperature>,
}

impl RopeTable {
    /// The angles where caches have room for `ctx_size` positions: all that a cache holds must turn alike.
    pub fn of_context(&self, ctx_size: usize) -> &[f32] {
        match &self.beyond {
            Some((most, frequencies)) if ctx_size > *most => frequencies,
            _ => &self.inverse_frequencies,
        }
    }
}

impl RopeConfig {
    /// The table for heads of which `rotary_size` values turn.
    pub fn table(&self, rotary_size: usize) -> RopeTable {
        let scale = match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        };
        let beyond = match &self.scaling {
            RopeScaling::LongRope { long, original_context_length, .. } => {
                Some((*original_context_length as usize, self.divided(rotary_size, long)))
            }
            _ => None,
        };
        RopeTable { inverse_frequencies: self.inverse_frequencies(rotary_size), beyond, scale, temperature: None }
    }

    fn divided(&self, rotary_size: usize, factors: &[f32]) -> Vec<f32> {
        RopeConfig { scaling: RopeScaling::FrequencyFactors { factors: factors.into() }, ..self.clone() }.inverse_frequencies(rotary_size)
    }

    /// The angle per position of each pair: `theta^(-2i/head_size)`, stretched. Length `head_size / 2`, where `head_size` counts the values
    /// of a head that are rotated.
    pub fn inverse_frequencies(&self, head_size: usize) -> Vec<f32> {
        let base = (0..head_size / 2).map(|i| self.theta.powf(-2.0 * i as f64 / head_size as f64));
        let stretched = base.enumerate().map(|(i, frequency)| match &self.scaling {
            RopeScaling::Yarn { factor, original_context_length, beta_fast, beta_slow, truncates, .. } => {
                // The pair that turns so often within the original context.
                let pair_of = |turns: f64| {
                    head_size as f64 * (original_context_length / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
                };
                let [low, high] = [pair_of(*beta_fast), pair_of(*beta_slow)];
                let [low, high] = if *truncates { [low.floor(), high.ceil()] } else { [low, high] };
                let [low, high] = [low.max(0.0), high.min(head_size as f64 - 1.0)];
                let high = if low == high { high + 0.001 } else { high };
                let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * stretched + frequency * (1.0 - stretched)
            }
            RopeScaling::LongRope { short, .. } => frequency / f64::from(short.get(i).copied().unwrap_or(1.0)),
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_length } => {
                let wavelength = std::f64::consts::TAU / frequency;
                if wavelength > original_context_length / low_freq_factor {
                    frequency / factor
                } else if wavelength < original_context_length / high_freq_factor {
                    frequency
                } else {
                    let smooth = (original_context_length / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
            RopeScaling::FrequencyFactors { factors } => frequency / f64::from(factors.get(i).copied().unwrap_or(1.0)),
        });
        stretched.map(|frequency| frequency as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context_length: 8192.0 };
        let plain = RopeConfig { theta: 500_000.0, pairs: RopePairing::NeoX, scaling: RopeScaling::None };
        let scaled = RopeConfig { scaling, ..plain.clone() };
        let (plain, scaled) = (plain.inverse_frequencies(128), scaled.inverse_frequencies(128));
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-4, "lowest frequency is divided by the factor");
        assert!(scaled.windows(2).all(|pair| pair[0] >= pair[1]), "order is kept");
    }
}
