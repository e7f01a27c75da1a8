//! Embeddings over HTTP, in the APIs of OpenAI (`/v1/embeddings`) and Ollama (`/api/embed`, `/api/embeddings`).

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::app::App;
use super::body::ok;
use super::error::ApiError;
use super::fields::Fields;
use super::pool::ending;
use super::read::read;
use super::work::{check_tokens, read_prompts};
use crate::error::Result;
use crate::handle::EngineHandle;
use crate::text::{EmbeddingSettings, Pooling, Written};

/// How the served model makes embeddings.
pub(super) struct Embedder {
    settings: EmbeddingSettings,
    pooling: Pooling,
}

/// What a request wants embedded.
struct Asked {
    texts: Vec<Vec<u32>>,
    /// Values of each embedding; all where `None`.
    n_values: Option<usize>,
    /// Whether values come as base64 of their bytes.
    is_base64: bool,
}

/// Most texts of a request, as OpenAI has it.
const MAX_TEXTS: usize = 2048;

impl Embedder {
    /// That of an engine without its head; `None` of one that generates.
    pub(super) fn of(engine: &EngineHandle) -> Result<Option<Embedder>> {
        if engine.gives_logits() {
            return Ok(None);
        }
        let settings = EmbeddingSettings::open(&engine.prepared().checkpoint)?;
        let pooling = settings.pooling.unwrap_or(Pooling::Mean);
        Ok(Some(Embedder { settings, pooling }))
    }
}

fn embedder(app: &App) -> std::result::Result<&Embedder, ApiError> {
    let missing = || ApiError::invalid("this server generates text; started for embeddings, or with a model for embeddings, it makes them");
    app.embedder.as_ref().ok_or_else(missing)
}

/// Refuses to generate where the server makes embeddings.
pub(super) fn check_generates(app: &App) -> std::result::Result<(), ApiError> {
    match &app.embedder {
        Some(_) => Err(ApiError::invalid("this server makes embeddings and generates nothing")),
        None => Ok(()),
    }
}

/// The tokens of the texts in the field `name`.
fn read_texts(app: &App, fields: &mut Fields, name: &str) -> std::result::Result<Vec<Vec<u32>>, ApiError> {
    let prompt = embedder(app)?.settings.prompt(None)?;
    let texts = read_prompts(fields, (name, "texts"), MAX_TEXTS, |text| {
        Ok(app.engine.text().encode(&format!("{prompt}{text}"), Written::Plain)?)
    })?;
    if texts.iter().any(Vec::is_empty) {
        return Err(ApiError::field(name, "has an empty text"));
    }
    texts.iter().try_for_each(|tokens| check_tokens(app, tokens))?;
    Ok(texts)
}

fn read_n_values(fields: &mut Fields) -> std::result::Result<Option<usize>, ApiError> {
    match fields.count("dimensions")? {
        Some(0) => Err(ApiError::field("dimensions", "must be at least 1")),
        n_values => Ok(n_values.map(|n_values| n_values as usize)),
    }
}

/// The embedding of each text, in order.
async fn embed(app: &App, texts: &[Vec<u32>], n_values: Option<usize>) -> std::result::Result<Vec<Vec<f32>>, ApiError> {
    let Embedder { settings, pooling } = embedder(app)?;
    let mut embeddings = Vec::with_capacity(texts.len());
    for tokens in texts {
        if app.pool.is_closed() {
            return Err(ending());
        }
        let pooled = app.engine.embed(tokens.clone(), *pooling).await?;
        let mut embedding = settings.project(pooled);
        if let Some(n_values) = n_values {
            if n_values > embedding.len() {
                let most = embedding.len();
                return Err(ApiError::field("dimensions", format!("may be {most} at most, the values of the model's embeddings")));
            }
            embedding.truncate(n_values);
        }
        embeddings.push(app.engine.prepared().finished_embedding(embedding, settings.normalize)?);
    }
    Ok(embeddings)
}

fn n_tokens(texts: &[Vec<u32>]) -> usize {
    texts.iter().map(Vec::len).sum()
}

/// `/v1/embeddings`.
pub(super) async fn openai(State(app): State<Arc<App>>, request: Request) -> std::result::Result<Response, ApiError> {
    let asked = read(&app, request, |app, fields| {
        app.read_model(fields)?;
        let is_base64 = match fields.text("encoding_format")?.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => return Err(ApiError::field("encoding_format", "must be float or base64")),
        };
        fields.ignore(&["user"]);
        Ok(Asked { n_values: read_n_values(fields)?, texts: read_texts(app, fields, "input")?, is_base64 })
    });
    let Asked { texts, n_values, is_base64 } = asked.await?;
    let embeddings = embed(&app, &texts, n_values).await?;
    let value = |embedding: &Vec<f32>| match is_base64 {
        true => Value::from(base64::encode(embedding.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())),
        false => json!(embedding),
    };
    let data = embeddings
        .iter()
        .enumerate()
        .map(|(index, embedding)| json!({ "object": "embedding", "index": index, "embedding": value(embedding) }));
    let n_tokens = n_tokens(&texts);
    Ok(ok(&json!({
        "object": "list", "data": data.collect::<Vec<_>>(), "model": app.model_name,
        "usage": { "prompt_tokens": n_tokens, "total_tokens": n_tokens },
    })))
}

/// `/api/embed`.
pub(super) async fn ollama(State(app): State<Arc<App>>, request: Request) -> std::result::Result<Response, ApiError> {
    let begin = Instant::now();
    let asked = read(&app, request, |app, fields| {
        let name = app.read_model(fields)?;
        fields.only("truncate", |truncate| truncate == true, "is not supported; a text must fit the context")?;
        fields.ignore(&["keep_alive", "options"]);
        Ok((name, Asked { n_values: read_n_values(fields)?, texts: read_texts(app, fields, "input")?, is_base64: false }))
    });
    let (name, asked) = asked.await?;
    let embeddings = embed(&app, &asked.texts, asked.n_values).await?;
    Ok(ok(&json!({
        "model": name.unwrap_or_else(|| app.model_name.clone()), "embeddings": embeddings,
        "total_duration": u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX), "load_duration": 0,
        "prompt_eval_count": n_tokens(&asked.texts),
    })))
}

/// `/api/embeddings`, which older clients of Ollama ask.
pub(super) async fn ollama_one(State(app): State<Arc<App>>, request: Request) -> std::result::Result<Response, ApiError> {
    let texts = read(&app, request, |app, fields| {
        app.read_model(fields)?;
        fields.ignore(&["keep_alive", "options"]);
        read_texts(app, fields, "prompt")
    });
    let embeddings = embed(&app, &texts.await?, None).await?;
    Ok(ok(&json!({ "embedding": embeddings.first() })))
}
