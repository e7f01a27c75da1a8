//! What clients of llama.cpp's server ask beside OpenAI's API: `/props` and `/completion`
//! (<https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md>).

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{End, Part, Usage};
use super::app::App;
use super::body::{data_event, ok};
use super::deliver::{Shape, Whole, deliver};
use super::error::{ApiError, Dialect};
use super::fields::Fields;
use super::grammar::Grammar;
use super::read::read_work;
use super::scored::{LikelyToken, ScoredToken};
use super::work::{How, Work, checked_logprobs, sampling_flags};
use crate::session::{FinishReason, GenerateOptions};
use crate::text::Written;

pub(super) async fn props(State(app): State<Arc<App>>) -> Response {
    let plan = app.engine.plan();
    let template = app.engine.chat_template().map(|template| template.source()).unwrap_or_default();
    ok(&json!({
        "default_generation_settings": { "n_ctx": plan.ctx_size }, "total_slots": plan.n_seqs, "model_alias": app.model_name,
        "chat_template": template, "modalities": { "vision": false, "audio": false },
        "build_info": concat!("tierflow ", env!("CARGO_PKG_VERSION")),
    }))
}

pub(super) async fn completion(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (work, is_streamed) = read_work(&app, request, read_completion).await?;
    deliver(&app, work, is_streamed, LlamaCpp { model: app.model_name.clone() }).await
}

fn read_completion(app: &App, fields: &mut Fields) -> Result<(Work, bool), ApiError> {
    let loras = app.read_loras(fields)?;
    app.read_model(fields)?;
    let prompt = fields.text("prompt")?.ok_or_else(|| ApiError::field("prompt", "must be a text"))?;
    let flags = sampling_flags(app, fields)?;
    let max_tokens = fields.integer("n_predict")?.and_then(|most| usize::try_from(most).ok());
    let options = GenerateOptions {
        max_tokens,
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        stop: fields.texts("stop")?.unwrap_or_default(),
        n_logprobs: fields.count("n_probs")?.filter(|n_top| *n_top > 0).map(|n_top| checked_logprobs("n_probs", n_top)).transpose()?,
        ..GenerateOptions::default()
    };
    let (seed, is_streamed) = (fields.integer("seed")?, fields.flag("stream")?.unwrap_or(false));
    fields.ignore(&["cache_prompt", "id_slot", "n_keep"]);
    let mut how = How::checked(app, 1, &flags, seed, options)?;
    how.grammar = Grammar::of_fields(app, fields)?;
    how.loras = loras;
    let tokens = app.engine.text().encode(&prompt, Written::Parsed)?;
    Ok((Work::new(app, vec![tokens], how, false)?, is_streamed))
}

/// One response.
struct LlamaCpp {
    model: String,
}

impl LlamaCpp {
    fn ended(&self, content: &str, end: &End) -> Value {
        let usage = &end.usage;
        let kind = match (end.finish, &end.stop) {
            (FinishReason::Length, _) => "limit",
            (FinishReason::Stop, Some(_)) => "word",
            (FinishReason::Stop, None) => "eos",
        };
        let (prompt_secs, answer_secs) = (end.prompt_time.as_secs_f64(), end.answer_time.as_secs_f64());
        json!({
            "content": content, "stop": true, "model": self.model, "stop_type": kind, "stopping_word": end.stop.clone().unwrap_or_default(),
            "tokens_predicted": usage.n_generated, "tokens_evaluated": usage.n_prompt, "tokens_cached": usage.n_cached, "truncated": false,
            "timings": {
                "prompt_n": usage.n_prompt - usage.n_cached, "prompt_ms": prompt_secs * 1e3,
                "predicted_n": usage.n_generated, "predicted_ms": answer_secs * 1e3,
            },
        })
    }
}

impl Shape for LlamaCpp {
    const STREAM_TYPE: &'static str = "text/event-stream";

    fn begin(&mut self, _index: usize, _n_prompt: usize) -> String {
        String::new()
    }

    fn part(&mut self, part: &Part) -> String {
        if part.text.is_empty() && part.scored.is_none() {
            return String::new();
        }
        data_event(&with_logprobs(json!({ "content": part.text, "stop": false }), &part.scored))
    }

    fn end(&mut self, end: &End) -> String {
        data_event(&self.ended("", end))
    }

    fn last(&mut self, _usage: &Usage) -> String {
        String::new()
    }

    fn error(&self, error: &ApiError) -> String {
        data_event(&error.body(Dialect::OpenAi))
    }

    fn whole(&mut self, answers: Vec<Whole>, _usage: &Usage) -> Value {
        answers.first().map(|answer| with_logprobs(self.ended(&answer.text, &answer.end), &answer.scored)).unwrap_or_default()
    }
}

/// Tells how likely tokens were, where that was asked for (`n_probs`).
fn with_logprobs<'a>(mut object: Value, scored: impl IntoIterator<Item = &'a ScoredToken>) -> Value {
    let with_id = |likely: &LikelyToken, mut told: Value| {
        told["id"] = likely.id.into();
        told
    };
    let told = scored.into_iter().map(|token| {
        let mut told = with_id(&token.chosen, token.chosen.to_json());
        told["top_logprobs"] = token.top.iter().map(|likely| with_id(likely, likely.to_json())).collect();
        told
    });
    let told: Vec<Value> = told.collect();
    if !told.is_empty() {
        object["completion_probabilities"] = told.into();
    }
    object
}
