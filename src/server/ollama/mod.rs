//! The API of Ollama: <https://github.com/ollama/ollama/blob/main/docs/api.md>.

mod request;
mod shape;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::app::{App, rfc3339};
use super::body::ok;
use super::deliver::deliver;
use super::error::ApiError;
use super::read::{read, read_work};
use crate::text::ToolFormat;
use request::Asked;
use shape::{Kind, Ollama};

/// Ollama's names have a tag.
pub(super) fn tagged(app: &App) -> String {
    if app.model_name.contains(':') { app.model_name.clone() } else { format!("{}:latest", app.model_name) }
}

pub(super) fn details(app: &App) -> Value {
    json!({
        "parent_model": "", "format": app.facts.format, "family": app.facts.family, "families": [app.facts.family],
        "parameter_size": app.facts.parameter_size(), "quantization_level": app.facts.dtype,
    })
}

pub(super) async fn version() -> Response {
    ok(&json!({ "version": env!("CARGO_PKG_VERSION") }))
}

pub(super) async fn tags(State(app): State<Arc<App>>) -> Response {
    let name = tagged(&app);
    ok(&json!({ "models": [{
        "name": name, "model": name, "modified_at": rfc3339(app.started), "size": app.facts.size_bytes, "digest": app.facts.digest,
        "details": details(&app),
    }] }))
}

/// A time that clients take for never.
pub(super) const NEVER: &str = "2318-01-01T00:00:00Z";

/// The one model stays loaded.
pub(super) async fn ps(State(app): State<Arc<App>>) -> Response {
    let name = tagged(&app);
    ok(&json!({ "models": [{
        "name": name, "model": name, "size": app.facts.size_bytes, "digest": app.facts.digest, "details": details(&app),
        "expires_at": NEVER, "size_vram": app.facts.gpu_bytes, "context_length": app.engine.plan().ctx_size,
    }] }))
}

pub(super) async fn show(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    read(&app, request, |app, fields| {
        let name = fields.text("model")?.or(fields.text("name")?).ok_or_else(|| ApiError::field("model", "is missing"))?;
        fields.ignore(&["verbose"]);
        app.check_model(&name)
    })
    .await?;
    let (config, family) = (app.engine.config(), app.facts.family);
    let sizes = [
        ("context_length", config.context_length),
        ("embedding_length", config.hidden_size),
        ("block_count", config.n_layers),
        ("attention.head_count", config.n_heads),
        ("attention.head_count_kv", config.n_kv_heads),
    ];
    let mut info: Map<String, Value> = sizes.into_iter().map(|(name, size)| (format!("{family}.{name}"), size.into())).collect();
    info.insert("general.architecture".into(), family.into());
    info.insert("general.parameter_count".into(), app.facts.n_parameters.into());
    let thinks = app.engine.text().reasoning_format().is_some();
    let calls = app.engine.chat_template().is_some_and(|template| ToolFormat::of(template).is_some());
    let capabilities: Vec<&str> = match app.embedder {
        Some(_) => vec!["embedding"],
        None => ["completion"].into_iter().chain(calls.then_some("tools")).chain(thinks.then_some("thinking")).collect(),
    };
    Ok(ok(&json!({
        "modelfile": "", "parameters": "", "template": app.engine.chat_template().map(|template| template.source()).unwrap_or_default(),
        "details": details(&app), "model_info": info, "capabilities": capabilities, "modified_at": rfc3339(app.started),
    })))
}

pub(super) async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let asked = read_work(&app, request, request::read_chat).await?;
    answered(&app, asked, Kind::Chat).await
}

pub(super) async fn generate(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let asked = read_work(&app, request, request::read_generate).await?;
    answered(&app, asked, Kind::Generate).await
}

async fn answered(app: &Arc<App>, asked: Asked, kind: Kind) -> Result<Response, ApiError> {
    let Asked { work, is_streamed, name } = asked;
    let shape = Ollama::new(kind, name.unwrap_or_else(|| tagged(app)));
    match work {
        Some(work) => deliver(app, work, is_streamed, shape).await,
        // Without anything to answer, a request loads the model, which is here.
        None => Ok(ok(&shape.loaded())),
    }
}
