//! Arcee's AFM: Llama with a squared rectifier in place of a gate. Defaults are those of transformers' `ArceeConfig`.

use super::decoder::{self, LLAMA, Layout};
use super::{ATTENTION, Family, LLAMA_NAMES, llama};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{Activation, ModelConfig, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "arcee",
    models: "Arcee AFM",
    classes: &["ArceeForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["arcee"],
    gguf_names: &[],
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Arcee",
    layer_modules: &[
        ATTENTION,
        &[
            (".mlp", "{}MLP"),
            (".mlp.up_proj", "Linear"),
            (".mlp.down_proj", "Linear"),
            (".mlp.act_fn", "ReLUSquaredActivation"),
            (".input_layernorm", "{}RMSNorm"),
            (".post_attention_layernorm", "{}RMSNorm"),
        ],
    ],
};

const LAYOUT: Layout = Layout { gate: None, ..LLAMA };

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let activation = ("hidden_act", Activation::ReluSquared);
    let defaults = Defaults { context_length: 4096, epsilon: 1e-5, activation, ..Defaults::default() };
    llama::with_biases(fields, fields.decoder(&FAMILY, &defaults)?)
}

/// Converters permute the rows of q and k as for Llama.
fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::Interleaved)?;
    Ok(ModelConfig { variant: Variant { activation: Activation::ReluSquared, ..config.variant }, ..config })
}
