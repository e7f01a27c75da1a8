//! Phi-3 and Phi-4: Llama with queries, keys and values in one matrix, gate and up projection in another, and heads that may turn in
//! part. Defaults are those of transformers' `Phi3Config`.

use super::decoder::{self, LLAMA, Layout};
use super::{Family, Stacked};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopePairing};

pub(super) static FAMILY: Family = Family {
    name: "phi3",
    classes: &["Phi3ForCausalLM"],
    gguf: &["phi3"],
    gguf_names: &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")],
    from_json,
    from_gguf,
    stacked,
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Phi3",
    layer_modules: &[&[
        ("", "{}DecoderLayer"),
        (".self_attn", "{}Attention"),
        (".self_attn.o_proj", "Linear"),
        (".self_attn.qkv_proj", "Linear"),
        (".mlp", "{}MLP"),
        (".mlp.gate_up_proj", "Linear"),
        (".mlp.down_proj", "Linear"),
        (".mlp.activation_fn", "SiLUActivation"),
        (".input_layernorm", "{}RMSNorm"),
        (".post_attention_layernorm", "{}RMSNorm"),
        (".resid_attn_dropout", "Dropout"),
        (".resid_mlp_dropout", "Dropout"),
    ]],
};

const LAYOUT: Layout =
    Layout { projections: ["qkv_proj:q", "qkv_proj:k", "qkv_proj:v"], gate_up: ["gate_up_proj:gate", "gate_up_proj:up"], ..LLAMA };

fn stacked(config: &ModelConfig) -> Vec<Stacked> {
    let [query, kv, ffn] = [config.query_size(), config.kv_size(), config.ffn_size].map(|size| size as u64);
    vec![
        Stacked { suffix: ".self_attn.qkv_proj.weight", parts: vec![("q", query), ("k", kv), ("v", kv)] },
        Stacked { suffix: ".mlp.gate_up_proj.weight", parts: vec![("gate", ffn), ("up", ffn)] },
    ]
}

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults { context_length: 4096, epsilon: 1e-5, partial_rotary: true, ..Defaults::default() };
    let config = fields.decoder(&FAMILY, &defaults)?;
    Ok(ModelConfig { sliding_window: fields.unsigned("sliding_window")?, ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    keys.refuse_tensor("rope_factors_long.weight", "rope scaling `longrope`")?;
    keys.partly_rotary_decoder(&FAMILY, RopePairing::NeoX)
}
