//! OLMo 3: OLMo 2, of whose layers three of four have a window and a rotary embedding that is not stretched. Defaults are those of
//! transformers' `Olmo3Config`; its GGUF files are of the architecture `olmo2`.

use super::{Family, all_but_every, llama, olmo2};
use crate::error::Result;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, Variant};

pub(super) static FAMILY: Family = Family {
    name: "olmo3",
    models: "OLMo 3",
    classes: &["Olmo3ForCausalLM"],
    gguf: &[],
    from_json,
    class_prefix: "Olmo3",
    ..olmo2::DECODER
};

/// Of so many layers the last sees everything.
pub(super) const PATTERN: usize = 4;

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults { epsilon: 1e-5, rope_theta: 500_000.0, ..Defaults::default() };
    let config = llama::with_attention_biases(fields, fields.decoder(&FAMILY, &defaults)?)?;
    let windowed_layers = fields.windowed_layers(config.n_layers)?.unwrap_or_else(|| all_but_every(PATTERN, config.n_layers));
    let (rope, local_rope) = fields.ropes_of_layers(config.context_length, [500_000.0; 2])?;
    let variant = Variant { local_rope: Some(local_rope), windowed_layers: Some(windowed_layers), ..config.variant };
    Ok(ModelConfig { qk_norm: true, sliding_window: fields.nullable("sliding_window", 4096)?, rope, variant, ..config })
}
