//! The objects of OpenAI's responses: chat completions, completions, and their chunks as server-sent events.

use serde_json::{Map, Value, json};

use crate::server::answer::{End, Part, Usage};
use crate::server::app::{App, new_id, now};
use crate::server::body::data_event;
use crate::server::deliver::{Shape, Whole};
use crate::server::error::{ApiError, Dialect};
use crate::server::scored::ScoredToken;
use crate::session::FinishReason;

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Completion,
}

/// One response.
pub(in crate::server) struct OpenAi {
    kind: Kind,
    id: String,
    created: u64,
    model: String,
    /// Whether a stream tells what it took.
    includes_usage: bool,
    /// Which answer is under way.
    index: usize,
    /// Characters of its tokens until now, where they are told.
    n_chars: usize,
}

impl OpenAi {
    pub(super) fn new(app: &App, kind: Kind, includes_usage: bool) -> OpenAi {
        let id = new_id(if kind == Kind::Chat { "chatcmpl-" } else { "cmpl-" });
        OpenAi { kind, id, created: now(), model: app.model_name.clone(), includes_usage, index: 0, n_chars: 0 }
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
        let finish = reason(&answer.end);
        if self.kind == Kind::Completion {
            let logprobs = self.logprobs(&answer.scored, 0);
            return json!({ "index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": finish });
        }
        // Beside calls, no words are null.
        let content = if answer.calls.is_empty() || !answer.text.is_empty() { answer.text.as_str().into() } else { Value::Null };
        let mut message = json!({ "role": "assistant", "content": content, "refusal": null, "annotations": [] });
        if !answer.calls.is_empty() {
            message["tool_calls"] = answer.calls.iter().map(|call| call.to_json()).collect();
        }
        if !answer.reasoning.is_empty() {
            message["reasoning_content"] = answer.reasoning.as_str().into();
        }
        json!({ "index": index, "message": message, "logprobs": self.logprobs(&answer.scored, 0), "finish_reason": finish })
    }

    /// How likely tokens were, the first of them at the character `offset` of a completion; null where that was not asked for.
    fn logprobs<'a>(&self, scored: impl IntoIterator<Item = &'a ScoredToken>, offset: usize) -> Value {
        let scored: Vec<&ScoredToken> = scored.into_iter().collect();
        match self.kind {
            _ if scored.is_empty() => Value::Null,
            Kind::Chat => json!({ "content": scored.iter().map(|token| token.to_json()).collect::<Vec<_>>(), "refusal": null }),
            Kind::Completion => in_columns(&scored, offset),
        }
    }

    /// An event with a chunk of the answer under way.
    fn chunk(&self, delta: Value, logprobs: Value, finish: Option<&str>) -> String {
        let name = if self.kind == Kind::Chat { "delta" } else { "text" };
        let mut choice = json!({ "index": self.index, "logprobs": logprobs, "finish_reason": finish });
        choice[name] = delta;
        let mut object = self.object(true, json!([choice]));
        if self.includes_usage {
            object["usage"] = Value::Null;
        }
        data_event(&object)
    }
}

impl Shape for OpenAi {
    const STREAM_TYPE: &'static str = "text/event-stream";

    fn begin(&mut self, index: usize, _n_prompt: usize) -> String {
        (self.index, self.n_chars) = (index, 0);
        match self.kind {
            Kind::Chat => self.chunk(json!({ "role": "assistant", "content": "" }), Value::Null, None),
            Kind::Completion => String::new(),
        }
    }

    fn part(&mut self, part: &Part) -> String {
        let mut chunks = String::new();
        let delta = |name: &str, text: &str| match self.kind {
            Kind::Chat => Map::from_iter([(name.to_owned(), text.into())]).into(),
            Kind::Completion => text.into(),
        };
        if !part.reasoning.is_empty() {
            chunks.push_str(&self.chunk(delta("reasoning_content", &part.reasoning), Value::Null, None));
        }
        if !part.text.is_empty() || part.scored.is_some() {
            chunks.push_str(&self.chunk(delta("content", &part.text), self.logprobs(&part.scored, self.n_chars), None));
            self.n_chars += part.scored.iter().map(|token| token.chosen.text().chars().count()).sum::<usize>();
        }
        for piece in &part.pieces {
            chunks.push_str(&self.chunk(json!({ "tool_calls": [piece.to_json()] }), Value::Null, None));
        }
        chunks
    }

    fn silence(&self) -> String {
        ": still at work\n\n".to_owned()
    }

    fn end(&mut self, end: &End) -> String {
        self.chunk(if self.kind == Kind::Chat { json!({}) } else { json!("") }, Value::Null, Some(reason(end)))
    }

    fn last(&mut self, usage: &Usage) -> String {
        let mut last = String::new();
        if self.includes_usage {
            let mut object = self.object(true, json!([]));
            object["usage"] = usage_of(usage);
            last.push_str(&data_event(&object));
        }
        last + "data: [DONE]\n\n"
    }

    fn error(&self, error: &ApiError) -> String {
        data_event(&error.body(Dialect::OpenAi))
    }

    fn whole(&mut self, answers: Vec<Whole>, usage: &Usage) -> Value {
        let choices = answers.iter().enumerate().map(|(index, answer)| self.choice(index, answer)).collect();
        let mut object = self.object(false, choices);
        object["usage"] = usage_of(usage);
        object
    }
}

/// Why an answer ended.
fn reason(end: &End) -> &'static str {
    match (end.finish, end.has_calls) {
        (FinishReason::Length, _) => "length",
        (FinishReason::Stop, true) => "tool_calls",
        (FinishReason::Stop, false) => "stop",
    }
}

/// The form that `/v1/completions` has: a list for each thing that is told of tokens.
fn in_columns(scored: &[&ScoredToken], mut offset: usize) -> Value {
    let (mut offsets, mut top) = (Vec::new(), Vec::new());
    for token in scored {
        offsets.push(offset);
        offset += token.chosen.text().chars().count();
        top.push(token.top.iter().map(|likely| (likely.text().into_owned(), likely.logprob.into())).collect::<Map<String, Value>>());
    }
    json!({
        "tokens": scored.iter().map(|token| token.chosen.text()).collect::<Vec<_>>(),
        "token_logprobs": scored.iter().map(|token| token.chosen.logprob).collect::<Vec<_>>(),
        "top_logprobs": top, "text_offset": offsets,
    })
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
