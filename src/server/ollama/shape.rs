//! The objects of Ollama's responses; a stream is one object a line.

use serde_json::{Value, json};

use crate::server::answer::{End, Part, Usage};
use crate::server::app::{now, rfc3339};
use crate::server::deliver::{Shape, Whole};
use crate::server::error::{ApiError, Dialect};
use crate::server::scored::ScoredToken;
use crate::text::Call;

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Generate,
}

/// One response.
pub(super) struct Ollama {
    kind: Kind,
    model: String,
    /// How the answer ended, once it has.
    end: Value,
}

impl Ollama {
    pub(super) fn new(kind: Kind, model: String) -> Ollama {
        Ollama { kind, model, end: Value::Null }
    }

    fn object(&self, text: &str, thinking: &str, calls: &[Call], more: &Value) -> Value {
        let mut object = json!({ "model": self.model, "created_at": rfc3339(now()) });
        match self.kind {
            Kind::Chat => object["message"] = json!({ "role": "assistant", "content": text }),
            Kind::Generate => object["response"] = text.into(),
        }
        if !calls.is_empty() && self.kind == Kind::Chat {
            let function = |(index, call): (usize, &Call)| json!({ "index": index, "name": call.name, "arguments": call.arguments });
            let calls = calls.iter().enumerate().map(|call| json!({ "id": call.1.id, "function": function(call) }));
            object["message"]["tool_calls"] = calls.collect();
        }
        if !thinking.is_empty() {
            let holder = if self.kind == Kind::Chat { &mut object["message"] } else { &mut object };
            holder["thinking"] = thinking.into();
        }
        object["done"] = more.is_object().into();
        for (name, value) in more.as_object().into_iter().flatten() {
            object[name] = value.clone();
        }
        object
    }

    /// The answer to a request that asks nothing.
    pub(super) fn loaded(&self) -> Value {
        self.object("", "", &[], &json!({ "done_reason": "load" }))
    }
}

/// Tells how likely tokens were, where that was asked for.
fn with_logprobs<'a>(mut object: Value, scored: impl IntoIterator<Item = &'a ScoredToken>) -> Value {
    let told: Vec<Value> = scored.into_iter().map(ScoredToken::to_json).collect();
    if !told.is_empty() {
        object["logprobs"] = told.into();
    }
    object
}

/// Reason, counts, and times in nanoseconds.
fn ended(end: &End) -> Value {
    let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    json!({
        "done_reason": end.finish, "total_duration": nanos(end.prompt_time + end.answer_time), "load_duration": 0,
        "prompt_eval_count": end.usage.n_prompt, "prompt_eval_duration": nanos(end.prompt_time),
        "eval_count": end.usage.n_generated, "eval_duration": nanos(end.answer_time),
    })
}

impl Shape for Ollama {
    const STREAM_TYPE: &'static str = "application/x-ndjson";

    fn begin(&mut self, _index: usize, _n_prompt: usize) -> String {
        String::new()
    }

    fn part(&mut self, part: &Part) -> String {
        if part.text.is_empty() && part.reasoning.is_empty() && part.calls.is_empty() && part.scored.is_none() {
            return String::new();
        }
        format!("{}\n", with_logprobs(self.object(&part.text, &part.reasoning, &part.calls, &Value::Null), &part.scored))
    }

    fn end(&mut self, end: &End) -> String {
        self.end = ended(end);
        String::new()
    }

    fn last(&mut self, _usage: &Usage) -> String {
        format!("{}\n", self.object("", "", &[], &self.end))
    }

    fn error(&self, error: &ApiError) -> String {
        format!("{}\n", error.body(Dialect::Ollama))
    }

    fn whole(&mut self, answers: Vec<Whole>, _usage: &Usage) -> Value {
        match answers.first() {
            Some(answer) => with_logprobs(self.object(&answer.text, &answer.reasoning, &answer.calls, &ended(&answer.end)), &answer.scored),
            None => self.loaded(),
        }
    }
}
