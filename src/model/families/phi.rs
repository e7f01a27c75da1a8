//! Phi-1, Phi-1.5 and Phi-2: both parts of a layer read the same layer norm, biases everywhere, also of the logits, a feed-forward part
//! without a gate, and heads of which a part turns. Defaults are those of transformers' `PhiConfig`.

use super::decoder::{self, LLAMA, Layout};
use super::{Family, LLAMA_NAMES, Names};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{Activation, ModelConfig, NormKind, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "phi",
    models: "Phi-1, Phi-1.5, Phi-2",
    classes: &["PhiForCausalLM"],
    names: Names { norm: "model.final_layernorm", norm_class: "LayerNorm", ..LLAMA_NAMES },
    gguf: &["phi2"],
    gguf_names: &[("attn_output", "self_attn.dense"), ("ffn_up", "mlp.fc1"), ("ffn_down", "mlp.fc2")],
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Phi",
    layer_modules: &[&[
        ("", "{}DecoderLayer"),
        (".self_attn", "{}Attention"),
        (".self_attn.q_proj", "Linear"),
        (".self_attn.k_proj", "Linear"),
        (".self_attn.v_proj", "Linear"),
        (".self_attn.dense", "Linear"),
        (".mlp", "{}MLP"),
        (".mlp.activation_fn", "NewGELUActivation"),
        (".mlp.fc1", "Linear"),
        (".mlp.fc2", "Linear"),
        (".input_layernorm", "LayerNorm"),
        (".resid_dropout", "Dropout"),
    ]],
};

const LAYOUT: Layout = Layout { before_ffn: None, output: "dense", gate: None, up: "fc1", down: "fc2", head_has_bias: true, ..LLAMA };

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let fields = &fields.with_other_names(&[("rms_norm_eps", "layer_norm_eps")]);
    fields.refuse_switch("qk_layernorm")?;
    let defaults =
        Defaults { epsilon: 1e-5, partial_rotary: Some(0.5), activation: ("hidden_act", Activation::GeluTanh), ..Defaults::default() };
    let config = of_phi(fields.decoder(&FAMILY, &defaults)?);
    Ok(ModelConfig { attention_bias: true, attention_output_bias: true, ffn_bias: true, ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = of_phi(keys.partly_rotary_decoder(&FAMILY, RopePairing::NeoX)?);
    Ok(ModelConfig { variant: Variant { activation: Activation::GeluTanh, ..config.variant }, ..config })
}

fn of_phi(config: ModelConfig) -> ModelConfig {
    let variant = Variant { is_parallel: true, norm: NormKind::Layer { has_bias: true }, ..config.variant };
    ModelConfig { variant, ..config }
}
