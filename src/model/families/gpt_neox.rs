//! GPT-NeoX and Pythia: both parts of a layer read the residual stream as it is before the layer, each through a layer norm of its own;
//! biases, a feed-forward part without a gate, heads of which a part turns. Folders have queries, keys and values in one matrix, head by
//! head. Defaults are those of transformers' `GPTNeoXConfig`.

use super::decoder::{self, LLAMA, Layout};
use super::{Family, Names, Stored};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{Activation, ModelConfig, NormKind, RopePairing, Variant};
use crate::weights::Order;

pub(super) static FAMILY: Family = Family {
    name: "gpt_neox",
    models: "GPT-NeoX, Pythia, RedPajama",
    classes: &["GPTNeoXForCausalLM"],
    names: Names {
        embedding: "gpt_neox.embed_in",
        positions: None,
        layers: "gpt_neox.layers",
        attention: "attention",
        ffn: "mlp",
        norm: "gpt_neox.final_layer_norm",
        norm_class: "LayerNorm",
        rotary: Some("gpt_neox.rotary_emb"),
        head: "lm_head",
        former_head: Some("embed_out"),
    },
    gguf: &["gptneox"],
    gguf_names: &[
        ("attn_qkv", "attention.query_key_value"),
        ("attn_output", "attention.dense"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ],
    from_json,
    from_gguf,
    stored,
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "GPTNeoX",
    layer_modules: &[&[
        ("", "{}Layer"),
        (".input_layernorm", "LayerNorm"),
        (".post_attention_layernorm", "LayerNorm"),
        (".post_attention_dropout", "Dropout"),
        (".post_mlp_dropout", "Dropout"),
        (".attention", "{}Attention"),
        (".attention.query_key_value", "Linear"),
        (".attention.dense", "Linear"),
        (".mlp", "{}MLP"),
        (".mlp.dense_h_to_4h", "Linear"),
        (".mlp.dense_4h_to_h", "Linear"),
        (".mlp.act", "GELUActivation"),
    ]],
};

const LAYOUT: Layout = Layout {
    projections: ["query_key_value:q", "query_key_value:k", "query_key_value:v"],
    output: "dense",
    gate: None,
    up: "dense_h_to_4h",
    down: "dense_4h_to_h",
    ..LLAMA
};

fn stored(config: &ModelConfig) -> Vec<Stored> {
    let parts = ["q", "k", "v"].map(|part| (part, config.query_size())).into();
    let head_size = config.head_size as u64;
    let order = Some(Order::ByHeads { n_heads: config.n_heads as u64, parts: [head_size, head_size, head_size, 0] });
    vec![Stored { suffix: ".attention.query_key_value", parts, order, is_so_in_gguf: false }]
}

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let fields = &fields.with_other_names(&[
        ("rms_norm_eps", "layer_norm_eps"),
        ("partial_rotary_factor", "rotary_pct"),
        ("rope_theta", "rotary_emb_base"),
    ]);
    let defaults =
        Defaults { epsilon: 1e-5, partial_rotary: Some(0.25), activation: ("hidden_act", Activation::Gelu), ..Defaults::default() };
    let config = fields.decoder(&FAMILY, &defaults)?;
    let is_parallel = fields.bool("use_parallel_residual")?.unwrap_or(true);
    let [attention_bias, attention_output_bias] = [fields.bool("attention_bias")?.unwrap_or(true); 2];
    let variant = Variant { is_parallel, norm: NormKind::Layer { has_bias: true }, ..config.variant };
    Ok(ModelConfig { attention_bias, attention_output_bias, ffn_bias: true, variant, ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.partly_rotary_decoder(&FAMILY, RopePairing::NeoX)?;
    let is_parallel = keys.bool("use_parallel_residual")?.unwrap_or(true);
    let (norm, activation) = (NormKind::Layer { has_bias: true }, Activation::Gelu);
    Ok(ModelConfig { variant: Variant { is_parallel, norm, activation, ..config.variant }, ..config })
}
