//! The objects of OpenAI's responses: chat completions, completions, and their chunks as server-sent events.

use serde_json::{Map, Value, json};

use crate::server::answer::{End, Part, Usage};
use crate::server::app::{App, new_id, now};
use crate::server::deliver::{Shape, Whole};
use crate::server::error::{ApiError, Dialect};
use crate::session::FinishReason;

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Completion,
}

/// One response.
pub(super) struct OpenAi {
    kind: Kind,
    id: String,
    created: u64,
    model: String,
    /// Whether a stream tells what it took.
    includes_usage: bool,
    /// Which answer is under way.
    index: usize,
}

impl OpenAi {
    pub(super) fn new(app: &App, kind: Kind, includes_usage: bool) -> OpenAi {
        let id = new_id(if kind == Kind::Chat { "chatcmpl-" } else { "cmpl-" });
        OpenAi { kind, id, created: now(), model: app.model_name.clone(), includes_usage, index: 0 }
    }

    fn object(&self, is_chunk: bool, choices: Value) -> Value {
        let object = match (self.kind, is_chunk) {
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Chat, false) => "chat.completion",
            (Kind::Completion, _) => "text_completion",
        };
        json!({ "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices })
    }

    fn choice(&self, index: usize, answer: &Whole) -> Value {
        let finish = answer.end.finish;
        if self.kind == Kind::Completion {
            return json!({ "index": index, "text": answer.text, "logprobs": null, "finish_reason": finish });
        }
        let mut message = json!({ "role": "assistant", "content": answer.text, "refusal": null });
        if !answer.reasoning.is_empty() {
            message["reasoning_content"] = answer.reasoning.as_str().into();
        }
        json!({ "index": index, "message": message, "logprobs": null, "finish_reason": finish })
    }

    /// An event with a chunk of the answer under way.
    fn chunk(&self, delta: Value, finish: Option<FinishReason>) -> String {
        let name = if self.kind == Kind::Chat { "delta" } else { "text" };
        let mut choice = json!({ "index": self.index, "logprobs": null, "finish_reason": finish });
        choice[name] = delta;
        let mut object = self.object(true, json!([choice]));
        if self.includes_usage {
            object["usage"] = Value::Null;
        }
        event(&object)
    }
}

impl Shape for OpenAi {
    const STREAM_TYPE: &'static str = "text/event-stream";

    fn begin(&mut self, index: usize, _n_prompt: usize) -> String {
        self.index = index;
        match self.kind {
            Kind::Chat => self.chunk(json!({ "role": "assistant", "content": "" }), None),
            Kind::Completion => String::new(),
        }
    }

    fn part(&mut self, part: &Part) -> String {
        let fields = [("reasoning_content", &part.reasoning), ("content", &part.text)];
        let chunk = |(name, text): (&str, &String)| match self.kind {
            Kind::Chat => self.chunk(Map::from_iter([(name.to_owned(), text.as_str().into())]).into(), None),
            Kind::Completion => self.chunk(text.as_str().into(), None),
        };
        fields.into_iter().filter(|(_, text)| !text.is_empty()).map(chunk).collect()
    }

    fn silence(&self) -> String {
        ": still at work\n\n".to_owned()
    }

    fn end(&mut self, end: &End) -> String {
        self.chunk(if self.kind == Kind::Chat { json!({}) } else { json!("") }, Some(end.finish))
    }

    fn last(&mut self, usage: &Usage) -> String {
        let mut last = String::new();
        if self.includes_usage {
            let mut object = self.object(true, json!([]));
            object["usage"] = usage_of(usage);
            last.push_str(&event(&object));
        }
        last + "data: [DONE]\n\n"
    }

    fn error(&self, error: &ApiError) -> String {
        event(&error.body(Dialect::OpenAi))
    }

    fn whole(&mut self, answers: Vec<Whole>, usage: &Usage) -> Value {
        let choices = answers.iter().enumerate().map(|(index, answer)| self.choice(index, answer)).collect();
        let mut object = self.object(false, choices);
        object["usage"] = usage_of(usage);
        object
    }
}

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn usage_of(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_generated,
        "total_tokens": usage.n_prompt + usage.n_generated,
        "prompt_tokens_details": { "cached_tokens": usage.n_cached },
        "completion_tokens_details": { "reasoning_tokens": usage.n_reasoning },
    })
}
