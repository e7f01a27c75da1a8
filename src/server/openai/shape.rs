//! The objects of OpenAI's responses: chat completions, completions, and their chunks.

use serde_json::{Map, Value, json};

use crate::server::answer::{Part, Usage};
use crate::server::app::{App, new_id, now};
use crate::session::FinishReason;

/// The object of one response.
pub(super) struct Shape {
    is_chat: bool,
    id: String,
    created: u64,
    model: String,
}

/// An answer, whole.
#[derive(Default)]
pub(super) struct Choice {
    pub(super) text: String,
    pub(super) reasoning: String,
}

impl Shape {
    pub(super) fn chat(app: &App) -> Shape {
        Shape { is_chat: true, id: new_id("chatcmpl-"), created: now(), model: app.model_name.clone() }
    }

    pub(super) fn completion(app: &App) -> Shape {
        Shape { is_chat: false, id: new_id("cmpl-"), created: now(), model: app.model_name.clone() }
    }

    fn object(&self, is_chunk: bool, choices: Value) -> Value {
        let object = match (self.is_chat, is_chunk) {
            (true, true) => "chat.completion.chunk",
            (true, false) => "chat.completion",
            (false, _) => "text_completion",
        };
        json!({ "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices })
    }

    /// One answer of [`Shape::whole`].
    pub(super) fn choice(&self, index: usize, choice: &Choice, finish: FinishReason) -> Value {
        if !self.is_chat {
            return json!({ "index": index, "text": choice.text, "logprobs": null, "finish_reason": finish });
        }
        let mut message = json!({ "role": "assistant", "content": choice.text, "refusal": null });
        if !choice.reasoning.is_empty() {
            message["reasoning_content"] = choice.reasoning.as_str().into();
        }
        json!({ "index": index, "message": message, "logprobs": null, "finish_reason": finish })
    }

    /// All answers.
    pub(super) fn whole(&self, choices: Vec<Value>, usage: &Usage) -> Value {
        let mut object = self.object(false, choices.into());
        object["usage"] = self::usage(usage);
        object
    }

    /// What a stream begins an answer with.
    pub(super) fn first_chunk(&self, index: usize) -> Option<Value> {
        self.is_chat.then(|| self.chunk(index, json!({ "role": "assistant", "content": "" }), None))
    }

    /// What a part of an answer becomes in a stream.
    pub(super) fn chunks(&self, index: usize, part: &Part) -> Vec<Value> {
        let fields = [("reasoning_content", &part.reasoning), ("content", &part.text)];
        let chunk = |(name, text): (&str, &String)| match self.is_chat {
            true => self.chunk(index, Map::from_iter([(name.to_owned(), text.as_str().into())]).into(), None),
            false => self.chunk(index, text.as_str().into(), None),
        };
        fields.into_iter().filter(|(_, text)| !text.is_empty()).map(chunk).collect()
    }

    /// What a stream ends an answer with.
    pub(super) fn end_chunk(&self, index: usize, finish: FinishReason) -> Value {
        let nothing = if self.is_chat { json!({}) } else { json!("") };
        self.chunk(index, nothing, Some(finish))
    }

    fn chunk(&self, index: usize, delta: Value, finish: Option<FinishReason>) -> Value {
        let name = if self.is_chat { "delta" } else { "text" };
        let mut choice = json!({ "index": index, "logprobs": null, "finish_reason": finish });
        choice[name] = delta;
        self.object(true, json!([choice]))
    }

    /// What a stream ends with where it was asked for.
    pub(super) fn last_chunk(&self, usage: &Usage) -> Value {
        let mut object = self.object(true, json!([]));
        object["usage"] = self::usage(usage);
        object
    }
}

fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_generated,
        "total_tokens": usage.n_prompt + usage.n_generated,
        "prompt_tokens_details": { "cached_tokens": usage.n_cached },
        "completion_tokens_details": { "reasoning_tokens": usage.n_reasoning },
    })
}
