//! Nomic's BERT: an encoder as BERT that rotates queries and keys instead of learning positions, with gated feed-forward parts and without
//! biases but those of norms. Names are those of its folders, which transformers renames as it reads them; defaults are those of
//! transformers' `NomicBertConfig`, and keys of the configs before it are understood, too.

use super::decoder::{self, LLAMA, Layout};
use super::{Family, Names, Stored};
use crate::error::{Error, Result};
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, NormKind, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "nomic_bert",
    models: "Nomic Embed (for embeddings)",
    classes: &["NomicBertModel"],
    names: Names {
        embedding: "embeddings.word_embeddings",
        positions: None,
        layers: "encoder.layers",
        attention: "attn",
        ffn: "mlp",
        norm: "pooler",
        norm_class: "{}Pooler",
        rotary: None,
        head: "cls",
        former_head: None,
    },
    gguf: &["nomic-bert"],
    gguf_names: &[
        ("token_types", TOKEN_TYPES),
        ("token_embd_norm", EMBEDDING_NORM),
        ("attn_qkv", "attn.Wqkv"),
        ("attn_output", "attn.out_proj"),
        ("attn_output_norm", "norm1"),
        ("ffn_up", "mlp.fc11"),
        ("ffn_gate", "mlp.fc12"),
        ("ffn_down", "mlp.fc2"),
        ("layer_output_norm", "norm2"),
    ],
    from_json,
    from_gguf,
    stored,
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "NomicBert",
    layer_modules: &[&[
        ("", "{}Layer"),
        (".attn", "{}Attention"),
        (".attn.Wqkv", "Linear"),
        (".attn.out_proj", "Linear"),
        (".mlp", "{}MLP"),
        (".mlp.fc11", "Linear"),
        (".mlp.fc12", "Linear"),
        (".mlp.fc2", "Linear"),
        (".norm1", "LayerNorm"),
        (".norm2", "LayerNorm"),
    ]],
};

const TOKEN_TYPES: &str = "embeddings.token_type_embeddings";
const EMBEDDING_NORM: &str = "emb_ln";

const LAYOUT: Layout = Layout {
    before_attention: None,
    after_attention: Some("norm1"),
    before_ffn: None,
    after_ffn: Some("norm2"),
    projections: ["Wqkv:q", "Wqkv:k", "Wqkv:v"],
    output: "out_proj",
    gate: Some("fc12"),
    up: "fc11",
    down: "fc2",
    norms_sums: true,
    token_types: Some(TOKEN_TYPES),
    embedding_norm: Some(EMBEDDING_NORM),
    is_encoder: true,
    ..LLAMA
};

/// Of the kinds of texts only the first is used: a text by itself is of no other.
fn stored(config: &ModelConfig) -> Vec<Stored> {
    let kinds = [("first", 1), ("others", config.variant.n_token_types.saturating_sub(1))];
    vec![
        Stored::stacked(".attn.Wqkv", [("q", config.query_size()), ("k", config.kv_size()), ("v", config.kv_size())].into()),
        Stored::stacked(".token_type_embeddings", kinds.into_iter().filter(|(_, n_rows)| *n_rows > 0).collect()),
    ]
}

/// What configs called their keys before transformers knew the family.
const FORMER_KEYS: &[(&str, &str)] = &[
    ("rms_norm_eps", "layer_norm_epsilon"),
    ("hidden_size", "n_embd"),
    ("intermediate_size", "n_inner"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("max_position_embeddings", "n_positions"),
    ("rope_theta", "rotary_emb_base"),
];

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let fields = &fields.with_other_names(if fields.get("n_embd").is_some() { FORMER_KEYS } else { &[("rms_norm_eps", "layer_norm_eps")] });
    refuse_others(fields)?;
    let defaults = Defaults { epsilon: 1e-12, rope_theta: 1000.0, ..Defaults::default() };
    let n_token_types = fields.unsigned("type_vocab_size")?.unwrap_or(2);
    Ok(of_nomic(fields.decoder(&FAMILY, &defaults)?, n_token_types))
}

/// What configs may ask for that no published model of this family has, and its mixtures of experts.
fn refuse_others(fields: &Fields<'_>) -> Result<()> {
    let unsupported = |reason: String| Err(Error::UnsupportedModel { path: fields.path.to_owned(), reason });
    let switches = ["prenorm", "parallel_block", "use_rms_norm", "rotary_emb_interleaved", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"];
    switches.iter().try_for_each(|key| fields.refuse_switch(key))?;
    if let Some(activation) = fields.string("activation_function")?.filter(|name| !["swiglu", "silu"].contains(name)) {
        return unsupported(format!("activation_function `{activation}` is not supported; supported is swiglu"));
    }
    match fields.unsigned("moe_every_n_layers")?.filter(|n| *n > 0) {
        Some(_) => unsupported("a mixture of experts is not supported in this family".into()),
        None => Ok(()),
    }
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let n_token_types = keys.n_rows(&format!("{TOKEN_TYPES}.weight"));
    Ok(of_nomic(keys.decoder(&FAMILY, RopePairing::NeoX)?, n_token_types))
}

/// What no config says.
fn of_nomic(config: ModelConfig, n_token_types: usize) -> ModelConfig {
    let variant = Variant { norm: NormKind::Layer { has_bias: true }, n_token_types, ..config.variant };
    ModelConfig { tied_embeddings: false, variant, ..config }
}
