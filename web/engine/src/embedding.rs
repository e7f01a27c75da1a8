//! Texts as vectors.

use js_sys::Function;
use serde_json::{Value, json};
use tierflow::text::{EmbeddingSettings, Pooling, Written};
use tierflow::{Engine, Error};
use wasm_bindgen::JsValue;

use crate::answer_of;
use crate::error::invalid;
use crate::fields::Fields;

/// The texts of a request.
///
/// # Errors
/// [`Error::InvalidArgument`].
pub fn read(request: &str) -> Result<Vec<String>, Error> {
    let mut fields = Fields::of("request", request)?;
    let texts = fields.take("input", "a list of texts")?;
    fields.finish()?;
    texts.ok_or_else(|| invalid("input", "is missing"))
}

/// The embeddings of `texts`; of fewer, where `on_text` wants no more.
///
/// # Errors
/// [`Error::InvalidArgument`] where the engine has its head; those of its files, of the tokenizer and of forwards.
pub async fn embed(engine: &mut Engine, texts: &[String], on_text: &Function) -> Result<Value, Error> {
    if engine.prepared().model.has_head() {
        return Err(invalid("embeddings", "load the model with `embeddings: true`; it was loaded to answer"));
    }
    let settings = EmbeddingSettings::open(&engine.prepared().checkpoint)?;
    let (prompt, pooling) = (settings.prompt(None)?.to_owned(), settings.pooling.unwrap_or(Pooling::Mean));
    let encode = |text: &String| engine.text().encode(&format!("{prompt}{text}"), Written::Plain);
    let encoded = texts.iter().map(encode).collect::<Result<Vec<Vec<u32>>, Error>>()?;
    let mut embeddings = Vec::new();
    for (index, tokens) in encoded.iter().enumerate() {
        let pooled = engine.embed(tokens, pooling).await?;
        let embedding = engine.prepared().finished_embedding(settings.project(pooled), settings.normalize)?;
        embeddings.push(json!({"embedding": embedding, "n_tokens": tokens.len()}));
        if !answer_of(on_text.call2(&JsValue::NULL, &((index + 1) as f64).into(), &(encoded.len() as f64).into())).await {
            break;
        }
    }
    Ok(embeddings.into())
}
