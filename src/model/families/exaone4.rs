//! EXAONE 4: norms behind each part of a layer, queries and keys normed head by head. The larger model has windows, and turns only the
//! heads of the layers that have one. Defaults are those of transformers' `Exaone4Config`.

use super::decoder::{self, LLAMA, Layout};
use super::{ATTENTION, Family, LLAMA_NAMES, QUERY_KEY_NORMS, all_but_every, olmo2};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "exaone4",
    models: "EXAONE 4",
    classes: &["Exaone4ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["exaone4"],
    gguf_names: olmo2::GGUF_NAMES,
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Exaone4",
    layer_modules: &[ATTENTION, QUERY_KEY_NORMS, olmo2::FEED_FORWARD_AND_NORMS],
};

const LAYOUT: Layout = Layout {
    before_attention: None,
    after_attention: Some("post_attention_layernorm"),
    before_ffn: None,
    after_ffn: Some("post_feedforward_layernorm"),
    ..LLAMA
};

/// Of so many layers the last sees everything.
const PATTERN: usize = 4;

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults { n_kv_heads: Some(32), epsilon: 1e-5, ..Defaults::default() };
    let config = fields.decoder(&FAMILY, &defaults)?;
    let sliding_window = fields.nullable("sliding_window", 4096)?;
    let listed = fields.windowed_layers(config.n_layers)?;
    let windowed = match (listed, sliding_window) {
        (Some(listed), _) => listed,
        (None, None) => Vec::new(),
        (None, Some(_)) => all_but_every(fields.interval("sliding_window_pattern", PATTERN)?, config.n_layers),
    };
    Ok(with_windows(ModelConfig { sliding_window, ..config }, windowed))
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::NeoX)?;
    let windowed = all_but_every(PATTERN, config.n_layers);
    Ok(with_windows(config, windowed))
}

/// Where there is a window, what sees everything turns nothing.
fn with_windows(config: ModelConfig, windowed: Vec<bool>) -> ModelConfig {
    let rotated_layers = config.sliding_window.map(|_| windowed.clone());
    let variant = Variant { rotated_layers, windowed_layers: Some(windowed), ..config.variant };
    ModelConfig { qk_norm: true, variant, ..config }
}
