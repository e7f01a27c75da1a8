//! Which path is answered by whom.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use super::app::App;
use super::error::ApiError;
use super::guard::{Gate, guarded};
use super::read::drain;
use super::{anthropic, embeddings, llama_cpp, loras, ollama, openai, pages, responses};

/// All paths of one model.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(pages::index))
        .route("/health", get(pages::health))
        .route("/metrics", get(pages::metrics))
        .route("/slots", get(pages::slots))
        .route("/plan", get(pages::plan))
        .route("/tokenize", post(pages::tokenize))
        .route("/detokenize", post(pages::detokenize))
        .route("/lora-adapters", get(loras::list).post(loras::change))
        .route("/props", get(llama_cpp::props))
        .route("/completion", post(llama_cpp::completion))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*name}", get(openai::model))
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/embeddings", post(embeddings::openai))
        .route("/v1/responses", post(responses::create))
        .route("/v1/messages", post(anthropic::messages))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/api/version", get(ollama::version))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::ps))
        .route("/api/show", post(ollama::show))
        .route("/api/chat", post(ollama::chat))
        .route("/api/embed", post(embeddings::ollama))
        .route("/api/embeddings", post(embeddings::ollama_one))
        .route("/api/generate", post(ollama::generate))
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
}

/// Paths behind the guard.
pub(super) fn behind(gate: Arc<Gate>, router: Router) -> Router {
    router.layer(from_fn_with_state(gate, guarded))
}

pub(super) async fn no_path(uri: Uri, body: Body) -> ApiError {
    drain(body).await;
    let path: String = uri.path().chars().take(100).collect();
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no path {path}"))
}

pub(super) async fn no_method(method: Method, uri: Uri, body: Body) -> ApiError {
    drain(body).await;
    let path: String = uri.path().chars().take(100).collect();
    let method: String = method.as_str().chars().take(20).collect();
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} is not for {method}"))
}
