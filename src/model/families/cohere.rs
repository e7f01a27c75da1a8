//! Command R (the first one): both parts of a layer read the same norm, which has no bias; heads turn by neighbours; logits are scaled.
//! Defaults are those of transformers' `CohereConfig`. Models that norm each head by its own weights (Command R+) do not run.

use super::decoder::{self, LLAMA, Layout};
use super::{ATTENTION, Family, LLAMA_NAMES, Names, llama};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, NormKind, RopeConfig, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "cohere",
    models: "Command R, Aya 23",
    classes: &["CohereForCausalLM"],
    names: Names { norm_class: "{}LayerNorm", ..LLAMA_NAMES },
    gguf: &["command-r"],
    gguf_names: &[],
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Cohere",
    layer_modules: &[
        ATTENTION,
        &[
            (".mlp", "{}MLP"),
            (".mlp.gate_proj", "Linear"),
            (".mlp.up_proj", "Linear"),
            (".mlp.down_proj", "Linear"),
            (".mlp.act_fn", "SiLUActivation"),
            (".input_layernorm", "{}LayerNorm"),
        ],
    ],
};

const LAYOUT: Layout = Layout { before_ffn: None, ..LLAMA };

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let fields = &fields.with_other_names(&[("rms_norm_eps", "layer_norm_eps")]);
    fields.refuse_switch("use_qk_norm")?;
    let defaults = Defaults { context_length: 8192, epsilon: 1e-5, rope_theta: 500_000.0, tied: true, ..Defaults::default() };
    let config = llama::with_attention_biases(fields, fields.decoder(&FAMILY, &defaults)?)?;
    let rope = RopeConfig { pairs: RopePairing::Interleaved, ..config.rope.clone() };
    let logit_scale = fields.float("logit_scale")?.unwrap_or(0.0625) as f32;
    Ok(of_cohere(ModelConfig { rope, ..config }, logit_scale))
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    keys.refuse_tensor("model.layers.0.self_attn.q_norm.weight", "a norm of each head by its own weights")?;
    let logit_scale = keys.float("logit_scale")?.filter(|scale| *scale != 0.0).unwrap_or(1.0) as f32;
    Ok(of_cohere(keys.decoder(&FAMILY, RopePairing::Interleaved)?, logit_scale))
}

fn of_cohere(config: ModelConfig, logit_scale: f32) -> ModelConfig {
    let norm = NormKind::Layer { has_bias: false };
    ModelConfig { variant: Variant { is_parallel: true, norm, logit_scale, ..config.variant }, ..config }
}
