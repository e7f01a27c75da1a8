//! gpt-oss: experts with biases and a clamped activation, heads with sinks, a window in every other layer, biases everywhere. Defaults are
//! those of transformers' `GptOssConfig`. Its experts are published in MXFP4.

use super::decoder::{self, LLAMA, Layout};
use super::{ATTENTION, Family, LLAMA_NAMES, all_but_every};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::experts::QWEN_EXPERTS;
use crate::model::{Activation, ExpertNames, Experts, ModelConfig, RopeConfig, RopePairing, RopeScaling, Variant};

pub(super) static FAMILY: Family = Family {
    name: "gpt_oss",
    models: "gpt-oss",
    classes: &["GptOssForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["gpt-oss"],
    gguf_names: &[("post_attention_norm", "post_attention_layernorm"), ("attn_sinks", "self_attn.sinks"), ("ffn_gate_inp", "mlp.router")],
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "GptOss",
    layer_modules: &[
        ATTENTION,
        &[
            (".mlp", "{}MLP"),
            (".mlp.router", "{}TopKRouter"),
            (".mlp.experts", "{}Experts"),
            (".input_layernorm", "{}RMSNorm"),
            (".post_attention_layernorm", "{}RMSNorm"),
        ],
    ],
};

const LAYOUT: Layout = Layout { has_sinks: true, ..LLAMA };

static NAMES: ExpertNames = ExpertNames { router: "router", former: &[(".self_attn.sinks.weight", ".self_attn.sinks")], ..QWEN_EXPERTS };

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    for (key, known) in [("swiglu_limit", 7.0), ("swiglu_alpha", 1.702)] {
        fields.refuse_other_number(key, known)?;
    }
    let defaults = Defaults {
        n_kv_heads: Some(8),
        head_size: Some(64),
        context_length: 131_072,
        epsilon: 1e-5,
        rope_theta: 150_000.0,
        ..Defaults::default()
    };
    let config = fields.decoder(&FAMILY, &defaults)?;
    let window = fields.nullable("sliding_window", 128)?;
    let windowed = fields.windowed_layers(config.n_layers)?;
    let has_biases = fields.bool("attention_bias")?.unwrap_or(true);
    Ok(with_own(config, Experts::of_json(fields, 4)?, (window, windowed), has_biases))
}

/// What both formats have in common.
fn with_own(
    config: ModelConfig,
    experts: Experts,
    (window, windowed): (Option<usize>, Option<Vec<bool>>),
    has_biases: bool,
) -> ModelConfig {
    let variant = Variant {
        activation: Activation::ClampedSilu,
        windowed_layers: Some(windowed.unwrap_or_else(|| all_but_every(2, config.n_layers))),
        experts: Some(Experts { has_bias: true, names: &NAMES, ..experts }),
        ..config.variant
    };
    ModelConfig { attention_bias: has_biases, attention_output_bias: has_biases, sliding_window: window, variant, ..config }
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::NeoX)?;
    // The ends of the ramp are no whole pairs, as the model was trained.
    let scaling = match config.rope.scaling.clone() {
        RopeScaling::Yarn { factor, original_context_length, beta_fast, beta_slow, attention_factor, .. } => {
            RopeScaling::Yarn { factor, original_context_length, beta_fast, beta_slow, attention_factor, truncates: false }
        }
        other => other,
    };
    let (window, has_biases) = (config.sliding_window, config.attention_bias);
    let rope = RopeConfig { scaling, ..config.rope.clone() };
    Ok(with_own(ModelConfig { rope, ..config }, Experts::of_gguf(keys)?, (window, None), has_biases))
}
