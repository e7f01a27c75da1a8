//! OpenAI's API of responses: <https://platform.openai.com/docs/api-reference/responses>. Nothing is stored: each request brings its
//! conversation.

mod request;
mod shape;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::app::App;
use super::deliver::deliver;
use super::error::ApiError;
use super::read::read_work;
use shape::Responses;

pub(super) async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let asked = read_work(&app, request, request::read).await?;
    let shape = Responses::new(&app, asked.echo);
    deliver(&app, asked.work, asked.is_streamed, shape).await
}
