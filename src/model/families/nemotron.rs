//! Nemotron and Minitron (dense): layer norms whose weights are stored as what is added to 1, heads of which a part turns, and a squared
//! rectifier in place of a gate. Defaults are those of transformers' `NemotronConfig`.

use super::decoder::{self, LLAMA, Layout};
use super::{ATTENTION, Family, LLAMA_NAMES, Names, llama};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{Activation, ModelConfig, NormKind, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "nemotron",
    models: "Nemotron, Minitron (dense)",
    classes: &["NemotronForCausalLM"],
    names: Names { norm_class: "{}LayerNorm1P", ..LLAMA_NAMES },
    gguf: &["nemotron"],
    gguf_names: &[],
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Nemotron",
    layer_modules: &[
        ATTENTION,
        &[
            (".mlp", "{}MLP"),
            (".mlp.up_proj", "Linear"),
            (".mlp.down_proj", "Linear"),
            (".mlp.act_fn", "ReLUSquaredActivation"),
            (".input_layernorm", "{}LayerNorm1P"),
            (".post_attention_layernorm", "{}LayerNorm1P"),
        ],
    ],
};

const LAYOUT: Layout = Layout { gate: None, ..LLAMA };

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let fields = &fields.with_other_names(&[("rms_norm_eps", "norm_eps")]);
    let defaults = Defaults {
        context_length: 4096,
        epsilon: 1e-5,
        partial_rotary: Some(0.5),
        activation: ("hidden_act", Activation::ReluSquared),
        ..Defaults::default()
    };
    let config = llama::with_biases(fields, fields.decoder(&FAMILY, &defaults)?)?;
    let variant = Variant { norm: NormKind::Layer { has_bias: true }, norm_weight_offset: 1.0, ..config.variant };
    Ok(ModelConfig { variant, ..config })
}

/// Converters add the 1.
fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.partly_rotary_decoder(&FAMILY, RopePairing::NeoX)?;
    let (norm, activation) = (NormKind::Layer { has_bias: true }, Activation::ReluSquared);
    Ok(ModelConfig { variant: Variant { norm, activation, ..config.variant }, ..config })
}
