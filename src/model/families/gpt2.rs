//! GPT-2: layer norms, learned positions, biases everywhere, a feed-forward part without a gate, and queries, keys and values in one
//! matrix; folders store matrices transposed. Defaults are those of transformers' `GPT2Config`.

use super::decoder::{self, LLAMA, Layout};
use super::{Family, Names, Stored};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{Activation, ModelConfig, NormKind, RopePairing, Variant};
use crate::weights::Order;

pub(super) static FAMILY: Family = Family {
    name: "gpt2",
    models: "GPT-2",
    classes: &["GPT2LMHeadModel"],
    names: Names {
        embedding: "transformer.wte",
        positions: Some("transformer.wpe"),
        layers: "transformer.h",
        attention: "attn",
        ffn: "mlp",
        norm: "transformer.ln_f",
        norm_class: "LayerNorm",
        rotary: None,
        head: "lm_head",
        former_head: None,
    },
    gguf: &["gpt2"],
    gguf_names: &[
        ("attn_norm", "ln_1"),
        ("attn_qkv", "attn.c_attn"),
        ("attn_output", "attn.c_proj"),
        ("ffn_norm", "ln_2"),
        ("ffn_up", "mlp.c_fc"),
        ("ffn_down", "mlp.c_proj"),
    ],
    from_json,
    from_gguf,
    stored,
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "GPT2",
    layer_modules: &[&[
        ("", "{}Block"),
        (".ln_1", "LayerNorm"),
        (".attn", "{}Attention"),
        (".attn.c_attn", "Conv1D"),
        (".attn.c_proj", "Conv1D"),
        (".attn.attn_dropout", "Dropout"),
        (".attn.resid_dropout", "Dropout"),
        (".ln_2", "LayerNorm"),
        (".mlp", "{}MLP"),
        (".mlp.c_fc", "Conv1D"),
        (".mlp.c_proj", "Conv1D"),
        (".mlp.act", "NewGELUActivation"),
        (".mlp.dropout", "Dropout"),
    ]],
};

const LAYOUT: Layout = Layout {
    before_attention: Some("ln_1"),
    before_ffn: Some("ln_2"),
    projections: ["c_attn:q", "c_attn:k", "c_attn:v"],
    output: "c_proj",
    gate: None,
    up: "c_fc",
    down: "c_proj",
    ..LLAMA
};

/// What its config calls what others call so.
const KEYS: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("intermediate_size", "n_inner"),
    ("max_position_embeddings", "n_positions"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
    ("rms_norm_eps", "layer_norm_epsilon"),
];

fn stored(config: &ModelConfig) -> Vec<Stored> {
    let projections = ["q", "k", "v"].map(|part| (part, config.hidden_size)).into();
    let transposed = |suffix, parts| Stored { suffix, parts, order: Some(Order::Transposed), is_so_in_gguf: false };
    let mut stored = vec![transposed(".attn.c_attn", projections)];
    stored.extend([".attn.c_proj", ".mlp.c_fc", ".mlp.c_proj"].map(|suffix| transposed(suffix, Vec::new())));
    stored
}

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let fields = &fields.with_other_names(KEYS);
    for key in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        fields.refuse_switch(key)?;
    }
    let defaults = Defaults {
        context_length: 1024,
        epsilon: 1e-5,
        ffn_factor: Some(4),
        activation: ("activation_function", Activation::GeluTanh),
        tied: true,
        ..Defaults::default()
    };
    let config = of_gpt2(fields.decoder(&FAMILY, &defaults)?);
    let is_scaled = fields.bool("scale_attn_weights")?.unwrap_or(true);
    let variant = Variant { attention_scale: (!is_scaled).then_some(1.0), ..config.variant };
    Ok(ModelConfig { attention_bias: true, attention_output_bias: true, ffn_bias: true, variant, ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = of_gpt2(keys.decoder(&FAMILY, RopePairing::NeoX)?);
    Ok(ModelConfig { variant: Variant { activation: Activation::GeluTanh, ..config.variant }, ..config })
}

/// What no config says.
fn of_gpt2(config: ModelConfig) -> ModelConfig {
    let variant = Variant { norm: NormKind::Layer { has_bias: true }, learns_positions: true, ..config.variant };
    ModelConfig { variant, ..config }
}
