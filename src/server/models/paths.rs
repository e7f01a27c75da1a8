//! What a server of several models answers by itself, and how it finds the model that a request asks.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::loaded::{Entry, Models, State as Loaded};
use crate::server::app::{App, now, rfc3339};
use crate::server::body::{ok, typed};
use crate::server::error::ApiError;
use crate::server::fields::is_nothing;
use crate::server::keep_alive::KeepAlive;
use crate::server::pool::ending;
use crate::server::read::body_of;
use crate::server::routes::{no_method, no_path, routes};
use crate::server::{ollama, openai, pages};

pub(super) fn router(models: Arc<Models>) -> Router {
    let of_models = routes();
    let ask = move |State(models): State<Arc<Models>>, request: Request| asked(models, of_models.clone(), request);
    Router::new()
        .route("/", get(pages::line))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(list))
        .route("/v1/models/{*name}", get(one))
        .route("/api/version", get(ollama::version))
        .route("/api/tags", get(tags))
        .route("/api/ps", get(ps))
        .fallback(ask)
        .method_not_allowed_fallback(no_method)
        .with_state(models)
}

async fn health(State(models): State<Arc<Models>>) -> Result<Response, ApiError> {
    if models.is_closed() { Err(ending()) } else { Ok(ok(&json!({ "status": "ok" }))) }
}

async fn metrics(State(models): State<Arc<Models>>) -> Response {
    let text = models.metrics.text(&models.gauges());
    typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", Body::from(text))
}

async fn list(State(models): State<Arc<Models>>) -> Response {
    let data: Vec<Value> = models.entries.iter().map(|entry| described(&models, entry)).collect();
    ok(&json!({ "object": "list", "data": data }))
}

async fn one(State(models): State<Arc<Models>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    Ok(ok(&described(&models, &models.entries[models.index_of(&name)?])))
}

fn described(models: &Models, entry: &Entry) -> Value {
    match entry.state() {
        Some(Loaded { app, .. }) => openai::described(&app),
        None => json!({
            "id": entry.model.name, "object": "model", "created": models.started, "owned_by": "tierflow",
            "type": "model", "display_name": entry.model.name, "created_at": rfc3339(models.started),
        }),
    }
}

/// A name with a tag, as Ollama's are.
fn tagged(entry: &Entry) -> String {
    let name = &entry.model.name;
    if name.contains(':') { name.clone() } else { format!("{name}:latest") }
}

/// What Ollama tells of a model: more where it is loaded.
fn told(entry: &Entry, app: Option<&App>) -> Value {
    let (name, model) = (tagged(entry), &entry.model);
    let digest = || {
        let described = format!("{} {} {}", model.name, model.size_bytes, model.modified);
        Sha256::digest(described).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let unknown = json!({
        "parent_model": "", "format": "", "family": "", "families": [], "parameter_size": "", "quantization_level": "",
    });
    json!({
        "name": name, "model": name, "modified_at": rfc3339(model.modified), "size": app.map_or(model.size_bytes, |app| app.facts.size_bytes),
        "digest": app.map_or_else(digest, |app| app.facts.digest.clone()), "details": app.map_or(unknown, ollama::details),
    })
}

async fn tags(State(models): State<Arc<Models>>) -> Response {
    let told = |entry: &Entry| told(entry, entry.state().as_ref().map(|state| state.app.as_ref()));
    ok(&json!({ "models": models.entries.iter().map(told).collect::<Vec<Value>>() }))
}

async fn ps(State(models): State<Arc<Models>>) -> Response {
    let running = |entry: &Entry| {
        let Loaded { app, secs_left } = entry.state()?;
        let mut told = told(entry, Some(&app));
        told["expires_at"] = secs_left.map_or(ollama::NEVER.to_owned(), |secs| rfc3339(now() + secs)).into();
        told["size_vram"] = app.facts.gpu_bytes.into();
        told["context_length"] = app.engine.plan().ctx_size.into();
        Some(told)
    };
    ok(&json!({ "models": models.entries.iter().filter_map(running).collect::<Vec<Value>>() }))
}

/// What of a request's body says which model is asked, and for how long.
#[derive(Default, Deserialize)]
struct Wish {
    model: Option<Value>,
    /// Another name for it in some paths of Ollama.
    name: Option<Value>,
    keep_alive: Option<Value>,
    prompt: Option<Value>,
    messages: Option<Value>,
}

/// Paths that have a model, whose body names it.
const ASKED: [&str; 14] = [
    "/tokenize",
    "/detokenize",
    "/completion",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/show",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/api/generate",
];
/// Those whose address names it.
const LOOKED_AT: [&str; 4] = ["/props", "/slots", "/plan", "/lora-adapters"];

async fn asked(models: Arc<Models>, of_models: Router<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let path = request.uri().path().to_owned();
    let (request, app) = if LOOKED_AT.contains(&path.as_str()) {
        let index = match named_in(request.uri()) {
            Some(name) => models.index_of(&name)?,
            None => models.only().ok_or_else(|| ApiError::invalid("several models are served; add ?model=NAME"))?,
        };
        (request, models.app(index, None).await?)
    } else if ASKED.contains(&path.as_str()) {
        let (parts, body) = request.into_parts();
        let body = body_of(Request::new(body)).await?;
        let wish: Wish = read_wish(&body);
        let index = index_of(&models, &wish)?;
        let keep_alive = wish.keep_alive.as_ref().map(read_keep_alive).transpose()?;
        if path.starts_with("/api/") && keep_alive == Some(KeepAlive::For(Default::default())) && is_farewell(&wish) {
            let entry = &models.entries[index];
            if entry.state().is_none() {
                let (name, now) = (tagged(entry), rfc3339(now()));
                return Ok(ok(&json!({ "model": name, "created_at": now, "response": "", "done": true, "done_reason": "unload" })));
            }
        }
        (Request::from_parts(parts, Body::from(body)), models.app(index, keep_alive).await?)
    } else {
        return Ok(no_path(request.uri().clone(), request.into_body()).await.into_response());
    };
    let answer = TowerToHyperService::new(of_models.with_state(app)).call(request).await;
    answer.map_err(|never| match never {})
}

/// What cannot be read is refused by the model's own paths.
fn read_wish(body: &Bytes) -> Wish {
    serde_json::from_slice(body).unwrap_or_default()
}

/// Whether nothing is asked for but that a model be unloaded.
fn is_farewell(wish: &Wish) -> bool {
    let is_empty = |value: &Option<Value>| value.as_ref().is_none_or(is_nothing);
    is_empty(&wish.prompt) && is_empty(&wish.messages)
}

fn index_of(models: &Models, wish: &Wish) -> Result<usize, ApiError> {
    match wish.model.as_ref().or(wish.name.as_ref()) {
        Some(Value::String(name)) => models.index_of(name),
        Some(_) => Err(ApiError::field("model", "must be a text")),
        None => models.only().ok_or_else(|| ApiError::field("model", "is missing, and several models are served")),
    }
}

fn read_keep_alive(value: &Value) -> Result<KeepAlive, ApiError> {
    KeepAlive::of_value(value).ok_or_else(|| ApiError::field("keep_alive", "must be a duration as in 5m, or seconds"))
}

/// The model that the query of an address names.
fn named_in(uri: &Uri) -> Option<String> {
    let value = uri.query()?.split('&').find_map(|pair| pair.strip_prefix("model="))?;
    let mut name = Vec::new();
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        let decoded = match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b'+' => b' ',
            byte => byte,
        };
        name.push(decoded);
    }
    String::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_a_model() {
        let named = |uri: &str| named_in(&uri.parse().unwrap());
        assert_eq!(named("/plan?x=1&model=a%2Fb+c").as_deref(), Some("a/b c"));
        assert_eq!(
            [named("/plan"), named("/plan?x"), named("/plan?model=%f"), named("/plan?model=%zz"), named("/plan?model=%ff")],
            [const { None }; 5]
        );
    }

    #[test]
    fn every_path_of_a_model_is_known() {
        // Of a router, paths cannot be asked for; its text has them.
        let text = include_str!("../routes.rs");
        let of_the_server = ["/", "/health", "/metrics", "/v1/models", "/v1/models/{*name}", "/api/version", "/api/tags", "/api/ps"];
        for path in text.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            let is_known = ASKED.contains(&path) || LOOKED_AT.contains(&path) || of_the_server.contains(&path);
            assert!(is_known, "{path}");
        }
    }
}
