//! StarCoder 2: layer norms, biases everywhere, a feed-forward part without a gate, and a window where the config has one. Defaults are
//! those of transformers' `Starcoder2Config`.

use super::decoder::{self, LLAMA, Layout};
use super::{ATTENTION, Family, LLAMA_NAMES, Names};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{Activation, ModelConfig, NormKind, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "starcoder2",
    models: "StarCoder 2",
    classes: &["Starcoder2ForCausalLM"],
    names: Names { norm_class: "LayerNorm", ..LLAMA_NAMES },
    gguf: &["starcoder2"],
    gguf_names: &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")],
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Starcoder2",
    layer_modules: &[
        ATTENTION,
        &[
            (".mlp", "{}MLP"),
            (".mlp.c_fc", "Linear"),
            (".mlp.c_proj", "Linear"),
            (".mlp.act", "GELUTanh"),
            (".input_layernorm", "LayerNorm"),
            (".post_attention_layernorm", "LayerNorm"),
        ],
    ],
};

const LAYOUT: Layout = Layout { gate: None, up: "c_fc", down: "c_proj", ..LLAMA };

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let fields = &fields.with_other_names(&[("rms_norm_eps", "norm_epsilon")]);
    let defaults = Defaults {
        n_kv_heads: Some(2),
        context_length: 4096,
        epsilon: 1e-5,
        activation: ("hidden_act", Activation::GeluTanh),
        tied: true,
        ..Defaults::default()
    };
    let config = fields.decoder(&FAMILY, &defaults)?;
    let has_biases = fields.bool("use_bias")?.unwrap_or(true);
    let variant = Variant { norm: NormKind::Layer { has_bias: true }, ..config.variant };
    let sliding_window = fields.unsigned("sliding_window")?;
    let [attention_bias, attention_output_bias, ffn_bias] = [has_biases; 3];
    Ok(ModelConfig { attention_bias, attention_output_bias, ffn_bias, sliding_window, variant, ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::NeoX)?;
    let (norm, activation) = (NormKind::Layer { has_bias: true }, Activation::GeluTanh);
    Ok(ModelConfig { variant: Variant { norm, activation, ..config.variant }, ..config })
}
