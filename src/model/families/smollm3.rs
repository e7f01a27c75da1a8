//! SmolLM3: Llama, of whose layers every fourth turns neither queries nor keys. Defaults are those of transformers' `SmolLM3Config`.

use super::decoder::{self, LLAMA};
use super::{DECODER_LAYER, Family, LLAMA_NAMES, all_but_every, llama};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "smollm3",
    models: "SmolLM3",
    classes: &["SmolLM3ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["smollm3"],
    gguf_names: &[],
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "SmolLM3",
    layer_modules: DECODER_LAYER,
};

/// Of so many layers the last turns nothing.
const INTERVAL: usize = 4;

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults { n_kv_heads: Some(4), context_length: 32_768, rope_theta: 2e6, tied: true, ..Defaults::default() };
    let config = llama::with_biases(fields, fields.decoder(&FAMILY, &defaults)?)?;
    let interval = fields.interval("no_rope_layer_interval", INTERVAL)?;
    let rotated = match fields.unsigned_list("no_rope_layers")? {
        // 1 stands for a layer that turns, whatever the name says.
        Some(layers) if layers.len() == config.n_layers => layers.iter().map(|turns| *turns != 0).collect(),
        Some(layers) => return Err(fields.error(format!("`no_rope_layers` lists {} of {} layers", layers.len(), config.n_layers))),
        None => all_but_every(interval, config.n_layers),
    };
    let uses_window = fields.bool("use_sliding_window")?.unwrap_or(false);
    let sliding_window = fields.unsigned("sliding_window")?.filter(|_| uses_window);
    let windowed = fields.windowed_layers(config.n_layers)?.unwrap_or_else(|| rotated.iter().map(|turns| !turns).collect());
    let variant = Variant { rotated_layers: Some(rotated), windowed_layers: Some(windowed), ..config.variant };
    Ok(ModelConfig { sliding_window, variant, ..config })
}

/// Converters permute the rows of q and k as for Llama, and write down no interval.
fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::Interleaved)?;
    let rotated_layers = Some(all_but_every(INTERVAL, config.n_layers));
    Ok(ModelConfig { variant: Variant { rotated_layers, ..config.variant }, ..config })
}
