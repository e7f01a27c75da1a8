//! The API of OpenAI: <https://platform.openai.com/docs/api-reference>, and what llama.cpp's and vLLM's servers add to it.

mod request;
mod shape;

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{Answering, Usage};
use super::app::App;
use super::body::{Pieces, json_response, streamed};
use super::error::{ApiError, Dialect};
use super::read::read_work;
use request::Asked;
use shape::{Choice, Shape};

/// Seconds of silence after which a comment tells that the connection is alive.
const PING_SECS: u64 = 15;

pub(super) async fn models(State(app): State<Arc<App>>) -> Response {
    json_response(StatusCode::OK, &json!({ "object": "list", "data": [described(&app)] }))
}

pub(super) async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    app.check_model(&name)?;
    Ok(json_response(StatusCode::OK, &described(&app)))
}

fn described(app: &App) -> Value {
    let plan = app.engine.plan();
    json!({
        "id": app.model_name, "object": "model", "created": app.started, "owned_by": "tierflow",
        "context_length": plan.ctx_size, "max_model_len": plan.ctx_size,
    })
}

pub(super) async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let asked = read_work(&app, request, request::read_chat).await?;
    answered(&app, asked, Shape::chat(&app)).await
}

pub(super) async fn completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let asked = read_work(&app, request, request::read_completion).await?;
    answered(&app, asked, Shape::completion(&app)).await
}

async fn answered(app: &Arc<App>, asked: Asked, shape: Shape) -> Result<Response, ApiError> {
    let answering = Answering::wait(app, &asked.work).await?;
    if !asked.is_streamed {
        return whole(answering, &asked, &shape).await;
    }
    let (pieces, response) = streamed("text/event-stream");
    tokio::spawn(async move {
        tokio::select! {
            () = pieces.closed() => {}
            () = stream(answering, &asked, &shape, &pieces) => {}
        }
    });
    Ok(response)
}

/// All answers in one object.
async fn whole(mut answering: Answering, asked: &Asked, shape: &Shape) -> Result<Response, ApiError> {
    let (mut choices, mut usages) = (Vec::new(), Vec::new());
    for (prompt, seed) in asked.work.answers() {
        let mut choice = Choice::default();
        answering.begin(prompt, seed, &asked.work)?;
        while let Some(part) = answering.next().await? {
            choice.reasoning.push_str(&part.reasoning);
            choice.text.push_str(&part.text);
        }
        let end = answering.outcome();
        usages.push(end.usage);
        choices.push(shape.choice(choices.len(), &choice, end.finish));
    }
    let usage = Usage::sum(&usages, asked.work.how.n_answers);
    Ok(json_response(StatusCode::OK, &shape.whole(choices, &usage)))
}

/// The answers as server-sent events, one after the other.
async fn stream(mut answering: Answering, asked: &Asked, shape: &Shape, pieces: &Pieces) {
    let outcome = stream_answers(&mut answering, asked, shape, pieces).await;
    let last = match outcome {
        Ok(Some(usage)) if asked.includes_usage => event(&shape.last_chunk(&usage)) + "data: [DONE]\n\n",
        Ok(Some(_)) => "data: [DONE]\n\n".to_owned(),
        Ok(None) => return,
        Err(error) => event(&error.body(Dialect::OpenAi)),
    };
    // The sequence is free before the client has read the end.
    drop(answering);
    let _ = pieces.send(last).await;
}

/// `None` where the client is gone.
async fn stream_answers(answering: &mut Answering, asked: &Asked, shape: &Shape, pieces: &Pieces) -> Result<Option<Usage>, ApiError> {
    let mut usages = Vec::new();
    for (index, (prompt, seed)) in asked.work.answers().enumerate() {
        answering.begin(prompt, seed, &asked.work)?;
        let mut next = event_or_nothing(shape.first_chunk(index));
        loop {
            if pieces.send(next).await.is_err() {
                return Ok(None);
            }
            let part = tokio::time::timeout(std::time::Duration::from_secs(PING_SECS), answering.next()).await;
            next = match part {
                Ok(Ok(Some(part))) => shape.chunks(index, &part).iter().map(event).collect(),
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(error),
                Err(_) => ": still at work\n\n".to_owned(),
            };
        }
        let end = answering.outcome();
        usages.push(end.usage);
        if pieces.send(event(&shape.end_chunk(index, end.finish))).await.is_err() {
            return Ok(None);
        }
    }
    Ok(Some(Usage::sum(&usages, asked.work.how.n_answers)))
}

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn event_or_nothing(value: Option<Value>) -> String {
    value.as_ref().map(event).unwrap_or_default()
}
