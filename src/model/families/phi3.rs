//! Phi-3 and Phi-4: Llama with queries, keys and values in one matrix, gate and up projection in another, and heads that may turn in
//! part. Defaults are those of transformers' `Phi3Config`.

use super::decoder::{self, LLAMA, Layout};
use super::{Family, LLAMA_NAMES, Stored};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopePairing};

pub(super) static FAMILY: Family = Family {
    name: "phi3",
    models: "Phi-3, Phi-4",
    classes: &["Phi3ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["phi3"],
    gguf_names: &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")],
    from_json,
    from_gguf,
    stored,
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
    Layout { projections: ["qkv_proj:q", "qkv_proj:k", "qkv_proj:v"], gate: Some("gate_up_proj:gate"), up: "gate_up_proj:up", ..LLAMA };

fn stored(config: &ModelConfig) -> Vec<Stored> {
    let [query, kv, ffn] = [config.query_size(), config.kv_size(), config.ffn_size];
    vec![
        Stored::stacked(".self_attn.qkv_proj", [("q", query), ("k", kv), ("v", kv)].into()),
        Stored::stacked(".mlp.gate_up_proj", [("gate", ffn), ("up", ffn)].into()),
    ]
}

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults { context_length: 4096, epsilon: 1e-5, partial_rotary: Some(1.0), ..Defaults::default() };
    let config = fields.decoder(&FAMILY, &defaults)?;
    Ok(ModelConfig { sliding_window: fields.unsigned("sliding_window")?, ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    keys.partly_rotary_decoder(&FAMILY, RopePairing::NeoX)
}
