//! Gemma 3, its language model: as Gemma 2 without caps, queries and keys normed head by head, five layers of six with a window and a
//! rotary embedding of their own. In EmbeddingGemma, tokens see both sides, and embeddings are made of the normed hidden states. Defaults are
//! those of transformers' `Gemma3TextConfig`.

use super::gemma2::{FEED_FORWARD, GGUF_NAMES, LAYOUT, NORMS, gguf_of_gemma, of_gemma};
use super::{ATTENTION, Family, LLAMA_NAMES, QUERY_KEY_NORMS, all_but_every, decoder};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::Fields;
use crate::model::{ModelConfig, RopeConfig, RopePairing, RopeScaling, Variant};

pub(super) static FAMILY: Family = Family {
    name: "gemma3_text",
    models: "Gemma 3 (text, also of models that see), EmbeddingGemma",
    classes: &["Gemma3ForCausalLM", "Gemma3TextModel"],
    names: LLAMA_NAMES,
    gguf: &["gemma3", "gemma-embedding"],
    gguf_names: GGUF_NAMES,
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Gemma3",
    layer_modules: &[ATTENTION, QUERY_KEY_NORMS, FEED_FORWARD, NORMS],
};

/// Bases of the rotary embeddings of layers that see everything, and of those with a window.
const THETA: f64 = 1e6;
const LOCAL_THETA: f64 = 1e4;
/// Of so many layers the last sees everything.
const PATTERN: usize = 6;

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = of_gemma(fields, &FAMILY, 131_072, [None, None])?;
    let pattern = fields.interval("sliding_window_pattern", PATTERN)?;
    let windowed_layers = fields.windowed_layers(config.n_layers)?.unwrap_or_else(|| all_but_every(pattern, config.n_layers));
    let (rope, local_rope) = fields.ropes_of_layers(config.context_length, [THETA, LOCAL_THETA])?;
    let variant = Variant { local_rope: Some(local_rope), windowed_layers: Some(windowed_layers), ..config.variant };
    let config = ModelConfig { qk_norm: true, rope, variant, ..config };
    Ok(if fields.bool("use_bidirectional_attention")?.unwrap_or(false) { seeing_both_sides(config) } else { config })
}

/// The same for EmbeddingGemma, whose files say how many positions a window has on both sides together, the token's own not counted.
fn seeing_both_sides(config: ModelConfig) -> ModelConfig {
    let sliding_window = config.sliding_window.map(|both| both / 2 + 1);
    ModelConfig { sliding_window, variant: Variant { sees_both_sides: true, ..config.variant }, ..config }
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = gguf_of_gemma(keys, &FAMILY, 62)?;
    let theta = keys.float("rope.freq_base_swa")?.unwrap_or(LOCAL_THETA);
    let variant = Variant {
        logit_softcap: keys.float("final_logit_softcapping")?.map(|cap| cap as f32),
        local_rope: Some(RopeConfig { theta, pairs: RopePairing::NeoX, scaling: RopeScaling::None }),
        windowed_layers: Some(all_but_every(PATTERN, config.n_layers)),
        ..config.variant
    };
    let theta = keys.float("rope.freq_base")?.unwrap_or(THETA);
    let config = ModelConfig { qk_norm: true, rope: RopeConfig { theta, ..config.rope }, variant, ..config };
    Ok(if keys.architecture() == "gemma-embedding" { seeing_both_sides(config) } else { config })
}
