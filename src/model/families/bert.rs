//! BERT and what is built like it (MiniLM, BGE, E5, GTE): encoders, whose tokens see both sides and which have no head. Positions are
//! learned, the kind of a text has a row too, and what is normed is the sum of each part with what it read, as in the first Transformer.
//! Defaults are those of transformers' `BertConfig`.

use super::decoder::{self, LLAMA, Layout};
use super::{Family, Names, Stored};
use crate::error::{Error, Result};
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{Activation, ModelConfig, NormKind, RopePairing, Variant};

pub(super) static FAMILY: Family = Family {
    name: "bert",
    models: "BERT, MiniLM, BGE, E5, GTE (for embeddings)",
    classes: &["BertModel", "BertForMaskedLM"],
    names: Names {
        embedding: "bert.embeddings.word_embeddings",
        positions: Some("bert.embeddings.position_embeddings"),
        layers: "bert.encoder.layer",
        attention: "attention",
        ffn: "intermediate",
        norm: "bert.pooler",
        norm_class: "{}Pooler",
        rotary: None,
        head: "cls",
        former_head: None,
    },
    gguf: &["bert"],
    gguf_names: &[
        ("token_types", TOKEN_TYPES),
        ("token_embd_norm", EMBEDDING_NORM),
        ("attn_q", "attention.self.query"),
        ("attn_k", "attention.self.key"),
        ("attn_v", "attention.self.value"),
        ("attn_output", "attention.output.dense"),
        ("attn_output_norm", "attention.output.LayerNorm"),
        ("ffn_up", "intermediate.dense"),
        ("ffn_down", "output.dense"),
        ("layer_output_norm", "output.LayerNorm"),
    ],
    from_json,
    from_gguf,
    stored,
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Bert",
    layer_modules: &[&[
        ("", "{}Layer"),
        (".attention", "{}Attention"),
        (".attention.self", "{}SelfAttention"),
        (".attention.self.query", "Linear"),
        (".attention.self.key", "Linear"),
        (".attention.self.value", "Linear"),
        (".attention.self.dropout", "Dropout"),
        (".attention.output", "{}SelfOutput"),
        (".attention.output.dense", "Linear"),
        (".attention.output.LayerNorm", "LayerNorm"),
        (".attention.output.dropout", "Dropout"),
        (".intermediate", "{}Intermediate"),
        (".intermediate.dense", "Linear"),
        (".output", "{}Output"),
        (".output.dense", "Linear"),
        (".output.LayerNorm", "LayerNorm"),
        (".output.dropout", "Dropout"),
    ]],
};

const TOKEN_TYPES: &str = "bert.embeddings.token_type_embeddings";
const EMBEDDING_NORM: &str = "bert.embeddings.LayerNorm";

const LAYOUT: Layout = Layout {
    before_attention: None,
    after_attention: Some("attention.output.LayerNorm"),
    before_ffn: None,
    after_ffn: Some("output.LayerNorm"),
    projections: ["self.query", "self.key", "self.value"],
    output: "output.dense",
    gate: None,
    up: "dense",
    down: ".output.dense",
    norms_sums: true,
    token_types: Some(TOKEN_TYPES),
    embedding_norm: Some(EMBEDDING_NORM),
    is_encoder: true,
    ..LLAMA
};

/// Of the kinds of texts only the first is used: a text by itself is of no other.
fn stored(config: &ModelConfig) -> Vec<Stored> {
    let parts = vec![("first", 1), ("others", config.variant.n_token_types.saturating_sub(1))];
    vec![Stored::stacked(".token_type_embeddings", parts.into_iter().filter(|(_, n_rows)| *n_rows > 0).collect())]
}

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let fields = &fields.with_other_names(&[("rms_norm_eps", "layer_norm_eps")]);
    for key in ["is_decoder", "add_cross_attention"] {
        fields.refuse_switch(key)?;
    }
    if let Some(kind) = fields.string("position_embedding_type")?.filter(|kind| *kind != "absolute") {
        let reason = format!("position_embedding_type `{kind}` is not supported");
        return Err(Error::UnsupportedModel { path: fields.path.to_owned(), reason });
    }
    let defaults = Defaults { context_length: 512, epsilon: 1e-12, activation: ("hidden_act", Activation::Gelu), ..Defaults::default() };
    let n_token_types = fields.unsigned("type_vocab_size")?.unwrap_or(2);
    Ok(of_bert(fields.decoder(&FAMILY, &defaults)?, n_token_types))
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let n_token_types = keys.n_rows(&format!("{TOKEN_TYPES}.weight"));
    let config = keys.decoder(&FAMILY, RopePairing::NeoX)?;
    let variant = Variant { activation: Activation::Gelu, ..config.variant };
    Ok(of_bert(ModelConfig { variant, ..config }, n_token_types))
}

/// What no config says.
fn of_bert(config: ModelConfig, n_token_types: usize) -> ModelConfig {
    let variant = Variant { norm: NormKind::Layer { has_bias: true }, learns_positions: true, n_token_types, ..config.variant };
    let (attention_bias, attention_output_bias, ffn_bias) = (true, true, true);
    ModelConfig { attention_bias, attention_output_bias, ffn_bias, tied_embeddings: false, variant, ..config }
}
