//! From work to a response: the answers are generated one after the other, and told in the words of an API, whole or as they come.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use serde_json::Value;

use super::answer::{Answering, End, Part, Usage};
use super::app::App;
use super::body::{Gone, Pieces, ok, streamed};
use super::error::ApiError;
use super::scored::ScoredToken;
use super::work::Work;
use crate::text::Call;

/// Silence after which a stream tells that it is alive.
const MAX_SILENCE: Duration = Duration::from_secs(15);

/// How an API tells answers. What it returns for a stream goes out as it is; nothing is sent for an empty text.
pub(super) trait Shape: Send + 'static {
    /// The content type of a stream.
    const STREAM_TYPE: &'static str;

    /// An answer begins, after a prompt of `n_prompt` tokens.
    fn begin(&mut self, index: usize, n_prompt: usize) -> String;

    /// An answer goes on.
    fn part(&mut self, part: &Part) -> String;

    /// Nothing has come for a while.
    fn silence(&self) -> String {
        String::new()
    }

    /// An answer has ended.
    fn end(&mut self, end: &End) -> String;

    /// All answers have ended; all of them took `usage`.
    fn last(&mut self, usage: &Usage) -> String;

    /// An answer failed.
    fn error(&self, error: &ApiError) -> String;

    /// All answers at once.
    fn whole(&mut self, answers: Vec<Whole>, usage: &Usage) -> Value;
}

/// An answer that has ended.
pub(super) struct Whole {
    pub(super) text: String,
    pub(super) reasoning: String,
    pub(super) calls: Vec<Call>,
    /// Its tokens, where it was asked how likely they were.
    pub(super) scored: Vec<ScoredToken>,
    pub(super) end: End,
}

/// Waits for a sequence and answers.
pub(super) async fn deliver<S: Shape>(app: &Arc<App>, work: Work, is_streamed: bool, mut shape: S) -> Result<Response, ApiError> {
    let mut answering = Answering::wait(app, &work).await?;
    if !is_streamed {
        return Ok(ok(&told_whole(&mut answering, &work, shape).await?));
    }
    answering.tell_pieces();
    let (pieces, response) = streamed(S::STREAM_TYPE);
    tokio::spawn(async move {
        let told = async {
            let last = match stream(&mut answering, &work, &mut shape, &pieces).await {
                Ok(usage) => shape.last(&usage),
                Err(Failure::Gone) => return,
                Err(Failure::Error(error)) => shape.error(&error),
            };
            // The sequence is free before the client has read the end.
            drop(answering);
            let _ = pieces.send(last).await;
        };
        tokio::select! {
            () = pieces.closed() => {}
            () = told => {}
        }
    });
    Ok(response)
}

/// Waits for a sequence and gives all answers at once.
pub(super) async fn answer_whole(app: &Arc<App>, work: &Work, shape: impl Shape) -> Result<Value, ApiError> {
    told_whole(&mut Answering::wait(app, work).await?, work, shape).await
}

async fn told_whole(answering: &mut Answering, work: &Work, mut shape: impl Shape) -> Result<Value, ApiError> {
    let (answers, usage) = whole(answering, work).await?;
    Ok(shape.whole(answers, &usage))
}

async fn whole(answering: &mut Answering, work: &Work) -> Result<(Vec<Whole>, Usage), ApiError> {
    let mut answers = Vec::new();
    for (prompt, seed) in work.answers() {
        answering.begin(prompt, seed, work)?;
        let (mut text, mut reasoning, mut calls, mut scored) = (String::new(), String::new(), Vec::new(), Vec::new());
        while let Some(part) = answering.next().await? {
            text.push_str(&part.text);
            reasoning.push_str(&part.reasoning);
            calls.extend(part.calls);
            scored.extend(part.scored);
        }
        answers.push(Whole { text, reasoning, calls, scored, end: answering.outcome() });
    }
    let usages: Vec<Usage> = answers.iter().map(|answer| answer.end.usage).collect();
    Ok((answers, Usage::sum(&usages, work.how.n_answers)))
}

/// Why a stream ends early.
enum Failure {
    Gone,
    Error(ApiError),
}

impl From<Gone> for Failure {
    fn from(_: Gone) -> Failure {
        Failure::Gone
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure::Error(error)
    }
}

async fn stream(answering: &mut Answering, work: &Work, shape: &mut impl Shape, pieces: &Pieces) -> Result<Usage, Failure> {
    let mut usages = Vec::new();
    for (index, (prompt, seed)) in work.answers().enumerate() {
        answering.begin(prompt, seed, work)?;
        pieces.send(shape.begin(index, prompt.len())).await?;
        loop {
            let piece = match tokio::time::timeout(MAX_SILENCE, answering.next()).await {
                Ok(Ok(Some(part))) => shape.part(&part),
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => shape.silence(),
            };
            pieces.send(piece).await?;
        }
        let end = answering.outcome();
        usages.push(end.usage);
        pieces.send(shape.end(&end)).await?;
    }
    Ok(Usage::sum(&usages, work.how.n_answers))
}
