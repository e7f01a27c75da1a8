//! The objects of Ollama's responses; a stream is one object a line.

use serde_json::{Value, json};

use crate::server::answer::{End, Part, Usage};
use crate::server::app::{now, rfc3339};
use crate::server::deliver::{Shape, Whole};
use crate::server::error::{ApiError, Dialect};

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

    fn object(&self, text: &str, thinking: &str, more: &Value) -> Value {
        let mut object = json!({ "model": self.model, "created_at": rfc3339(now()) });
        match self.kind {
            Kind::Chat => object["message"] = json!({ "role": "assistant", "content": text }),
            Kind::Generate => object["response"] = text.into(),
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
        self.object("", "", &json!({ "done_reason": "load" }))
    }
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
        if part.text.is_empty() && part.reasoning.is_empty() {
            return String::new();
        }
        format!("{}\n", self.object(&part.text, &part.reasoning, &Value::Null))
    }

    fn end(&mut self, end: &End) -> String {
        self.end = ended(end);
        String::new()
    }

    fn last(&mut self, _usage: &Usage) -> String {
        format!("{}\n", self.object("", "", &self.end))
    }

    fn error(&self, error: &ApiError) -> String {
        format!("{}\n", error.body(Dialect::Ollama))
    }

    fn whole(&mut self, answers: Vec<Whole>, _usage: &Usage) -> Value {
        match answers.first() {
            Some(answer) => self.object(&answer.text, &answer.reasoning, &ended(&answer.end)),
            None => self.loaded(),
        }
    }
}
