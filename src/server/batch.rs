//! Requests from a file instead of the network: the lines of OpenAI's batch files (<https://platform.openai.com/docs/guides/batch>). Knows
//! no files.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::app::{App, new_id};
use super::deliver::answer_whole;
use super::embeddings::check_generates;
use super::error::{ApiError, Dialect};
use super::fields::Fields;
use super::{ServerSettings, openai};
use crate::error::{Error, Result};
use crate::handle::EngineHandle;

/// Lines that are under way for each sequence: more than one, so that a sequence that is done early has work.
const LINES_PER_SEQUENCE: usize = 2;

/// The answer to a line.
#[derive(Debug, Clone)]
pub struct BatchAnswer {
    /// The line to write, without its end.
    pub line: String,
    /// Tokens that were generated.
    pub n_tokens: u64,
    /// Whether the answer tells an error.
    pub is_error: bool,
}

/// Answers `lines`, as many at a time as the plan has sequences, and calls `write` with each answer in the order of the lines. A line that
/// is no request is answered with an error.
///
/// It needs a runtime of tokio with its clock.
///
/// # Errors
/// Those of `lines` and of `write`, which end the batch; [`Error::AllSequencesInUse`] where others have sequences of the engine.
pub async fn answer_batch(
    engine: EngineHandle,
    settings: ServerSettings,
    lines: impl IntoIterator<Item = Result<String>>,
    mut write: impl FnMut(BatchAnswer) -> Result<()>,
) -> Result<()> {
    let n_at_once = engine.plan().n_seqs * LINES_PER_SEQUENCE;
    let app = Arc::new(App::new(engine, ServerSettings { n_waiting: n_at_once, ..settings }, Arc::default()).await?);
    let mut lines = lines.into_iter();
    let mut under_way = VecDeque::with_capacity(n_at_once);
    loop {
        while under_way.len() < n_at_once
            && let Some(line) = lines.next()
        {
            let (app, line) = (Arc::clone(&app), line?);
            under_way.push_back(tokio::spawn(async move { answered(&app, &line).await }));
        }
        let Some(first) = under_way.pop_front() else { return Ok(()) };
        write(first.await.map_err(|_| Error::internal("answering a line of a batch panicked"))?)?;
    }
}

async fn answered(app: &Arc<App>, line: &str) -> BatchAnswer {
    let read = serde_json::from_str::<Value>(line);
    let custom_id = read.as_ref().map_or(Value::Null, |read| read["custom_id"].clone());
    let outcome = match read {
        Ok(request) => answer(app, request).await,
        Err(error) => Err(ApiError::invalid(format!("the line is no JSON: {error}"))),
    };
    let (status, body) = match &outcome {
        Ok(body) => (200, body.clone()),
        Err(error) => (error.status.as_u16(), error.body(Dialect::OpenAi)),
    };
    let n_tokens = body["usage"]["completion_tokens"].as_u64().unwrap_or_default();
    let response = json!({ "status_code": status, "request_id": new_id("req_"), "body": body });
    let line = json!({ "id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": null });
    BatchAnswer { line: line.to_string(), n_tokens, is_error: outcome.is_err() }
}

async fn answer(app: &Arc<App>, request: Value) -> std::result::Result<Value, ApiError> {
    let mut fields = Fields::of_object(match request {
        Value::Object(fields) => fields,
        _ => return Err(ApiError::invalid("the line must be a JSON object")),
    });
    fields.text("custom_id")?.ok_or_else(|| ApiError::field("custom_id", "is missing"))?;
    fields.only("method", |method| method == "POST", "must be POST")?;
    let url = fields.text("url")?.ok_or_else(|| ApiError::field("url", "is missing"))?;
    let body = fields.object("body")?.ok_or_else(|| ApiError::field("body", "is missing"))?;
    fields.finish()?;
    check_generates(app)?;
    let reader = Arc::clone(app);
    let read = tokio::task::spawn_blocking(move || read(&reader, &url, body)).await;
    let (work, shape) = read.map_err(|_| ApiError::bug("reading the request failed"))??;
    answer_whole(app, &work, shape).await
}

/// The work of a request to the path `url`.
fn read(app: &App, url: &str, body: Map<String, Value>) -> std::result::Result<(super::work::Work, openai::OpenAi), ApiError> {
    let mut fields = Fields::of_object(body);
    let read = openai::read_for_batch(app, url, &mut fields)?;
    fields.finish()?;
    Ok(read)
}
