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
use crate::engine::normalized;
use crate::error::{Error, Result};
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
        if engine.prepared().model.has_head() {
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

/// The tokens of texts or of token lists, one or several, in the field `name`.
fn read_texts(app: &App, fields: &mut Fields, name: &str) -> std::result::Result<Vec<Vec<u32>>, ApiError> {
    let wrong = || ApiError::field(name, "must be a text, a list of token ids, or a list of either");
    let prompt = embedder(app)?.settings.prompt(None)?;
    let of_text = |text: &str| Ok::<_, ApiError>(app.engine.text().encode(&format!("{prompt}{text}"), Written::Plain)?);
    let of_ids = |ids: &[Value]| ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect::<Option<Vec<u32>>>();
    let of_one = |value: &Value| match value {
        Value::String(text) => of_text(text),
        Value::Array(ids) => of_ids(ids).ok_or_else(wrong),
        _ => Err(wrong()),
    };
    let texts = match fields.value(name).ok_or_else(|| ApiError::field(name, "is missing"))? {
        Value::Array(list) if list.len() > MAX_TEXTS => return Err(ApiError::field(name, format!("may be {MAX_TEXTS} texts at most"))),
        Value::Array(list) if !list.iter().all(Value::is_number) => list.iter().map(of_one).collect::<std::result::Result<Vec<_>, _>>()?,
        one => vec![of_one(&one)?],
    };
    let vocab_size = app.engine.config().vocab_size;
    for tokens in &texts {
        if tokens.is_empty() {
            return Err(ApiError::field(name, "has an empty text"));
        }
        if let Some(&token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(Error::TokenOutOfVocabulary { token, vocab_size }.into());
        }
        app.engine.prepared().check_room(tokens.len())?;
    }
    Ok(texts)
}

fn check_model(app: &App, fields: &mut Fields) -> std::result::Result<Option<String>, ApiError> {
    let name = fields.text("model")?;
    name.as_ref().map_or(Ok(()), |name| app.check_model(name))?;
    Ok(name)
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
        let mut embedding = settings.project(app.engine.embed(tokens.clone(), *pooling).await?);
        if let Some(n_values) = n_values {
            if n_values > embedding.len() {
                return Err(ApiError::field(
                    "dimensions",
                    format!("may be {} at most, the values of the model's embeddings", embedding.len()),
                ));
            }
            embedding.truncate(n_values);
        }
        if let Some(value) = embedding.iter().find(|value| !value.is_finite()) {
            let reason = format!("gives {value} in an embedding; its weights (or the GPU driver) are broken");
            return Err(Error::invalid_file(&app.engine.prepared().checkpoint.path, reason).into());
        }
        embeddings.push(if settings.normalize { normalized(embedding) } else { embedding });
    }
    Ok(embeddings)
}

fn n_tokens(texts: &[Vec<u32>]) -> usize {
    texts.iter().map(Vec::len).sum()
}

/// `/v1/embeddings`.
pub(super) async fn openai(State(app): State<Arc<App>>, request: Request) -> std::result::Result<Response, ApiError> {
    let asked = read(&app, request, |app, fields| {
        check_model(app, fields)?;
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
        let name = check_model(app, fields)?;
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
        check_model(app, fields)?;
        fields.ignore(&["keep_alive", "options"]);
        read_texts(app, fields, "prompt")
    });
    let embeddings = embed(&app, &texts.await?, None).await?;
    Ok(ok(&json!({ "embedding": embeddings.first() })))
}
