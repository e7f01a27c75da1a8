//! Granite 3: Llama with multipliers of embedding, scores, residual stream and logits. Defaults are those of transformers'
//! `GraniteConfig`.

use super::decoder::{self, LLAMA};
use super::{DECODER_LAYER, Family, LLAMA_NAMES, llama};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "granite",
    models: "Granite 3 (dense)",
    classes: &["GraniteForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["granite"],
    gguf_names: &[],
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "Granite",
    layer_modules: DECODER_LAYER,
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = llama::with_biases(fields, fields.decoder(&FAMILY, &Defaults::default())?)?;
    Ok(ModelConfig { variant: multipliers_of_json(fields, config.variant)?, ..config })
}

/// Converters permute the rows of q and k as for Llama.
fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::Interleaved)?;
    Ok(ModelConfig { variant: multipliers_of_gguf(keys, config.variant)?, ..config })
}

pub(super) fn multipliers_of_json(fields: &Fields<'_>, variant: Variant) -> Result<Variant> {
    let factor = |key: &str| Ok(fields.float(key)?.unwrap_or(1.0));
    Ok(Variant {
        embedding_scale: factor("embedding_multiplier")? as f32,
        residual_scale: factor("residual_multiplier")? as f32,
        attention_scale: Some(factor("attention_multiplier")? as f32),
        logit_scale: (1.0 / factor("logits_scaling")?) as f32,
        ..variant
    })
}

/// A factor that is absent or 0 is none.
pub(super) fn multipliers_of_gguf(keys: &Keys<'_>, variant: Variant) -> Result<Variant> {
    let factor = |key: &str| Ok(keys.float(key)?.filter(|factor| *factor != 0.0));
    Ok(Variant {
        embedding_scale: factor("embedding_scale")?.unwrap_or(1.0) as f32,
        residual_scale: factor("residual_scale")?.unwrap_or(1.0) as f32,
        attention_scale: factor("attention.scale")?.map(|factor| factor as f32),
        logit_scale: (1.0 / factor("logit_scale")?.unwrap_or(1.0)) as f32,
        ..variant
    })
}
