//! The API of OpenAI: <https://platform.openai.com/docs/api-reference>, and what llama.cpp's and vLLM's servers add to it.

mod request;
mod shape;

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::app::{App, rfc3339};
use super::body::ok;
use super::deliver::deliver;
use super::error::ApiError;
use super::fields::Fields;
use super::read::read_work;
use super::work::Work;
use request::Asked;
use shape::Kind;
pub(super) use shape::OpenAi;

pub(super) async fn models(State(app): State<Arc<App>>) -> Response {
    let with_adapter = |name: &str| {
        let mut described = described(&app);
        described["id"] = format!("{}:{name}", app.model_name).into();
        described["parent"] = app.model_name.as_str().into();
        described
    };
    let all: Vec<Value> = std::iter::once(described(&app)).chain(app.loras.names().map(with_adapter)).collect();
    ok(&json!({ "object": "list", "data": all }))
}

pub(super) async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    app.check_model(&name)?;
    Ok(ok(&described(&app)))
}

/// With the fields of Anthropic's list, too, which has the same path.
pub(super) fn described(app: &App) -> Value {
    let n_ctx = app.engine.plan().ctx_size;
    json!({
        "id": app.model_name, "object": "model", "created": app.started, "owned_by": "tierflow",
        "type": "model", "display_name": app.model_name, "created_at": rfc3339(app.started),
        "context_length": n_ctx, "max_model_len": n_ctx,
    })
}

pub(super) async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let asked = read_work(&app, request, request::read_chat).await?;
    answered(&app, asked, Kind::Chat).await
}

pub(super) async fn completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let asked = read_work(&app, request, request::read_completion).await?;
    answered(&app, asked, Kind::Completion).await
}

/// The work of a line of a batch, and the shape of its answer.
pub(super) fn read_for_batch(app: &App, url: &str, fields: &mut Fields) -> Result<(Work, OpenAi), ApiError> {
    let (asked, kind) = match url {
        "/v1/chat/completions" => (request::read_chat(app, fields)?, Kind::Chat),
        "/v1/completions" => (request::read_completion(app, fields)?, Kind::Completion),
        _ => return Err(ApiError::field("url", "must be /v1/chat/completions or /v1/completions")),
    };
    match asked.is_streamed {
        true => Err(ApiError::unsupported("stream", "is not for batches")),
        false => Ok((asked.work, OpenAi::new(app, kind, false))),
    }
}

async fn answered(app: &Arc<App>, asked: Asked, kind: Kind) -> Result<Response, ApiError> {
    let shape = OpenAi::new(app, kind, asked.includes_usage);
    deliver(app, asked.work, asked.is_streamed, shape).await
}
