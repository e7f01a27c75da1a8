//! GLM-4 (0414): norms before and behind each part of a layer, gate and up projection in one matrix, biases of queries, keys and values,
//! and heads of which neighbours turn together, in part. Defaults are those of transformers' `Glm4Config`.

use super::decoder::{self, LLAMA, Layout};
use super::{ATTENTION, Family, LLAMA_NAMES, Stored};
use crate::error::Result;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopeConfig, RopePairing};

pub(super) static FAMILY: Family = Family {
    name: "glm4",
    models: "GLM-4 0414",
    classes: &["Glm4ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["glm4"],
    gguf_names: &[
        ("post_attention_norm", "post_self_attn_layernorm"),
        ("ffn_up", "mlp.gate_up_proj"),
        ("post_ffw_norm", "post_mlp_layernorm"),
    ],
    from_json,
    from_gguf: |keys| keys.partly_rotary_decoder(&FAMILY, RopePairing::Interleaved),
    stored: |config| vec![Stored::stacked(".mlp.gate_up_proj", ["gate", "up"].map(|part| (part, config.ffn_size)).into())],
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Glm4",
    layer_modules: &[
        ATTENTION,
        &[
            (".mlp", "{}MLP"),
            (".mlp.gate_up_proj", "Linear"),
            (".mlp.down_proj", "Linear"),
            (".mlp.activation_fn", "SiLUActivation"),
            (".input_layernorm", "{}RMSNorm"),
            (".post_attention_layernorm", "{}RMSNorm"),
            (".post_self_attn_layernorm", "{}RMSNorm"),
            (".post_mlp_layernorm", "{}RMSNorm"),
        ],
    ],
};

const LAYOUT: Layout = Layout {
    after_attention: Some("post_self_attn_layernorm"),
    after_ffn: Some("post_mlp_layernorm"),
    gate: Some("gate_up_proj:gate"),
    up: "gate_up_proj:up",
    ..LLAMA
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults {
        n_kv_heads: Some(2),
        head_size: Some(128),
        context_length: 131_072,
        epsilon: 1.5625e-7,
        partial_rotary: Some(0.5),
        ..Defaults::default()
    };
    let config = fields.decoder(&FAMILY, &defaults)?;
    let rope = RopeConfig { pairs: RopePairing::Interleaved, ..config.rope };
    Ok(ModelConfig { attention_bias: fields.bool("attention_bias")?.unwrap_or(true), rope, ..config })
}
