//! What a server tells of itself, its page (`page.html`), and its tokenizer.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

use super::app::App;
use super::body::{ok, typed};
use super::error::ApiError;
use super::fields::Fields;
use super::pool::ending;
use super::read::read;
use crate::text::{Special, Tokenizer};

/// Most tokens that are made text at once.
const MAX_TOKENS: usize = 1 << 20;

/// The line for those that are no browsers.
pub(super) async fn line() -> Response {
    typed(StatusCode::OK, "text/plain; charset=utf-8", Body::from("tierflow is running\n"))
}

/// The page, for browsers; a line for others.
pub(super) async fn index(headers: HeaderMap) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    if !accepted.contains("text/html") {
        return line().await;
    }
    let mut page = typed(StatusCode::OK, "text/html; charset=utf-8", Body::from(include_str!("page.html")));
    // What the model writes is text to the page, and nothing comes from elsewhere.
    let policy = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    page
}

/// 503 once the server ends, so that nothing more is sent here.
pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    if app.pool.is_closed() { Err(ending()) } else { Ok(ok(&json!({ "status": "ok" }))) }
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", Body::from(app.metrics.text(&app.gauges())))
}

pub(super) async fn slots(State(app): State<Arc<App>>) -> Response {
    let plan = app.engine.plan();
    ok(&json!({
        "n_ctx": plan.ctx_size, "n_waiting": app.pool.n_waiting(), "kv_cache_size_bytes": plan.kv_cache_bytes(),
        "slots": app.pool.states(&app.engine),
    }))
}

/// The plan, with what is needed to make it again.
pub(super) async fn plan(State(app): State<Arc<App>>) -> Response {
    ok(&app.engine.prepared().to_saved_json())
}

fn tokenizer(app: &App) -> Result<&Tokenizer, ApiError> {
    app.engine.tokenizer().ok_or_else(|| ApiError::invalid("the model has no tokenizer"))
}

/// The tokens of `content`, as llama.cpp's server gives them: `add_special` (default false) frames them, `parse_special` (default true) reads
/// special tokens, `with_pieces` adds the text of each.
pub(super) async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let tokens = read(&app, request, |app, fields: &mut Fields| {
        app.read_model(fields)?;
        let text = fields.text("content")?.ok_or_else(|| ApiError::field("content", "is missing"))?;
        let special = if fields.flag("add_special")?.unwrap_or(false) { Special::Add } else { Special::Leave };
        let parses = fields.flag("parse_special")?.unwrap_or(true);
        let with_pieces = fields.flag("with_pieces")?.unwrap_or(false);
        let tokenizer = tokenizer(app)?;
        let tokens = if parses { tokenizer.encode(&text, special)? } else { tokenizer.encode_plain(&text, special)? };
        Ok(match with_pieces {
            true => tokens.iter().map(|&id| json!({ "id": id, "piece": tokenizer.piece(id) })).collect(),
            false => json!(tokens),
        })
    });
    Ok(ok(&json!({ "tokens": tokens.await? })))
}

/// The text of `tokens`.
pub(super) async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let text = read(&app, request, |app, fields: &mut Fields| {
        app.read_model(fields)?;
        let list = fields.list("tokens")?.ok_or_else(|| ApiError::field("tokens", "is missing"))?;
        if list.len() > MAX_TOKENS {
            return Err(ApiError::field("tokens", format!("may be {MAX_TOKENS} at most")));
        }
        let vocab_size = app.engine.config().vocab_size;
        let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocab_size);
        let tokens: Option<Vec<u32>> = list.iter().map(token).collect();
        let tokens = tokens.ok_or_else(|| ApiError::field("tokens", format!("must be whole numbers below {vocab_size}")))?;
        Ok(tokenizer(app)?.decode(&tokens))
    });
    Ok(ok(&json!({ "content": text.await? })))
}
