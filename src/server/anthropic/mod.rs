//! The API of Anthropic: <https://docs.anthropic.com/en/api/messages>.

mod request;
mod shape;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::json;

use super::app::App;
use super::body::ok;
use super::deliver::deliver;
use super::error::ApiError;
use super::read::{read, read_work};
use shape::Anthropic;

pub(super) async fn messages(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (work, is_streamed) = read_work(&app, request, request::read_messages).await?;
    deliver(&app, work, is_streamed, Anthropic::new(&app)).await
}

pub(super) async fn count_tokens(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let n_tokens = read(&app, request, |app, fields| Ok(request::read_prompt(app, fields)?.0.len())).await?;
    Ok(ok(&json!({ "input_tokens": n_tokens })))
}
