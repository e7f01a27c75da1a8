//! StableLM 2 and 3B: Llama with layer norms, of whose heads a part turns. Defaults are those of transformers' `StableLmConfig`. The
//! 12B, whose two parts of a layer read the same norm and whose heads are normed each by its own weights, does not run.

use super::decoder::{self, LLAMA};
use super::{ATTENTION, Family, LLAMA_NAMES, Names};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, NormKind, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "stablelm",
    models: "StableLM 2 1.6B, StableLM 3B",
    classes: &["StableLmForCausalLM"],
    names: Names { norm_class: "LayerNorm", ..LLAMA_NAMES },
    gguf: &["stablelm"],
    gguf_names: &[],
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "StableLm",
    layer_modules: &[
        ATTENTION,
        &[
            (".mlp", "{}MLP"),
            (".mlp.gate_proj", "Linear"),
            (".mlp.up_proj", "Linear"),
            (".mlp.down_proj", "Linear"),
            (".mlp.act_fn", "SiLUActivation"),
            (".input_layernorm", "LayerNorm"),
            (".post_attention_layernorm", "LayerNorm"),
            (".dropout", "Dropout"),
        ],
    ],
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let fields = &fields.with_other_names(&[("rms_norm_eps", "layer_norm_eps")]);
    for key in ["use_parallel_residual", "qk_layernorm"] {
        fields.refuse_switch(key)?;
    }
    let defaults =
        Defaults { n_kv_heads: Some(32), context_length: 4096, epsilon: 1e-5, partial_rotary: Some(0.25), ..Defaults::default() };
    let config = with_layer_norms(fields.decoder(&FAMILY, &defaults)?);
    Ok(ModelConfig { attention_bias: fields.bool("use_qkv_bias")?.unwrap_or(false), ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    keys.refuse_tensor("model.layers.0.self_attn.q_norm.weight", "a norm of each head by its own weights")?;
    Ok(with_layer_norms(keys.partly_rotary_decoder(&FAMILY, RopePairing::NeoX)?))
}

fn with_layer_norms(config: ModelConfig) -> ModelConfig {
    ModelConfig { variant: Variant { norm: NormKind::Layer { has_bias: true }, ..config.variant }, ..config }
}
