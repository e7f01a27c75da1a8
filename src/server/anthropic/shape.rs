//! The objects of Anthropic's responses: a message of blocks, and the events that make it up in a stream.

use serde_json::{Value, json};

use crate::server::answer::{End, Part, Usage};
use crate::server::app::{App, new_id};
use crate::server::body::named_event;
use crate::server::deliver::{Shape, Whole};
use crate::server::error::{ApiError, Dialect};
use crate::session::FinishReason;
use crate::text::CallPart;

/// One response.
pub(super) struct Anthropic {
    id: String,
    model: String,
    /// The block of a stream that is open, and how many were closed.
    block: Option<Block>,
    n_closed: usize,
    /// How the answer ended, once it has.
    end: Value,
}

/// Kinds of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    /// What a tool is called with.
    Call,
}

impl Block {
    fn of(self, text: &str) -> Value {
        match self {
            Block::Thinking => json!({ "type": "thinking", "thinking": text, "signature": "" }),
            // Specified to be a list or null, which some clients take for an error.
            Block::Text => json!({ "type": "text", "text": text, "citations": [] }),
            Block::Call => tool_use("", "", json!({})),
        }
    }

    fn delta(self, text: &str) -> Value {
        match self {
            Block::Thinking => json!({ "type": "thinking_delta", "thinking": text }),
            Block::Text => json!({ "type": "text_delta", "text": text }),
            Block::Call => json!({ "type": "input_json_delta", "partial_json": text }),
        }
    }
}

/// A call as a block, with what it is called with or, where that comes later, nothing.
fn tool_use(id: &str, name: &str, input: Value) -> Value {
    json!({ "type": "tool_use", "id": id, "name": name, "input": input, "caller": { "type": "direct" } })
}

impl Anthropic {
    pub(super) fn new(app: &App) -> Anthropic {
        Anthropic { id: new_id("msg_"), model: app.model_name.clone(), block: None, n_closed: 0, end: Value::Null }
    }

    fn message(&self, content: Vec<Value>, end: &Value, usage: &Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": end["stop_reason"], "stop_sequence": end["stop_sequence"], "stop_details": null, "container": null, "usage": usage,
        })
    }

    /// The text of a block goes on, in a new one where the open one is of another kind.
    fn go_on(&mut self, block: Block, text: &str) -> String {
        let mut events = String::new();
        if text.is_empty() {
            return events;
        }
        if self.block != Some(block) {
            events.push_str(&self.close());
            self.block = Some(block);
            events.push_str(&named_event("content_block_start", json!({ "index": self.n_closed, "content_block": block.of("") })));
        }
        events + &named_event("content_block_delta", json!({ "index": self.n_closed, "delta": block.delta(text) }))
    }

    /// A part of a call, in a block of its own.
    fn call(&mut self, CallPart { begin, arguments, .. }: &CallPart) -> String {
        let mut events = String::new();
        if let Some((id, name)) = begin {
            events.push_str(&self.close());
            self.block = Some(Block::Call);
            let block = tool_use(id, name, json!({}));
            events.push_str(&named_event("content_block_start", json!({ "index": self.n_closed, "content_block": block })));
        }
        events + &self.go_on(Block::Call, arguments)
    }

    /// Closes the block that is open.
    fn close(&mut self) -> String {
        if self.block.take().is_none() {
            return String::new();
        }
        self.n_closed += 1;
        named_event("content_block_stop", json!({ "index": self.n_closed - 1 }))
    }
}

impl Shape for Anthropic {
    const STREAM_TYPE: &'static str = "text/event-stream";

    fn begin(&mut self, _index: usize, n_prompt: usize) -> String {
        // What of it is cached is known later.
        let usage = usage_of(&Usage { n_prompt, ..Usage::default() });
        named_event("message_start", json!({ "message": self.message(Vec::new(), &Value::Null, &usage) }))
    }

    fn part(&mut self, part: &Part) -> String {
        let said = self.go_on(Block::Thinking, &part.reasoning) + &self.go_on(Block::Text, &part.text);
        part.pieces.iter().fold(said, |said, piece| said + &self.call(piece))
    }

    fn silence(&self) -> String {
        named_event("ping", json!({}))
    }

    fn end(&mut self, end: &End) -> String {
        self.end = ended(end);
        self.close()
    }

    fn last(&mut self, usage: &Usage) -> String {
        named_event("message_delta", json!({ "delta": self.end, "usage": usage_of(usage) })) + &named_event("message_stop", json!({}))
    }

    fn error(&self, error: &ApiError) -> String {
        named_event("error", error.body(Dialect::Anthropic))
    }

    fn whole(&mut self, answers: Vec<Whole>, usage: &Usage) -> Value {
        let Some(answer) = answers.first() else { return self.message(Vec::new(), &Value::Null, &usage_of(usage)) };
        let blocks = [(Block::Thinking, &answer.reasoning), (Block::Text, &answer.text)];
        let content = blocks.into_iter().filter(|(_, text)| !text.is_empty()).map(|(block, text)| block.of(text));
        let calls = answer.calls.iter().map(|call| tool_use(&call.id, &call.name, call.arguments.clone().into()));
        let content = content.chain(calls).collect();
        self.message(content, &ended(&answer.end), &usage_of(usage))
    }
}

fn ended(end: &End) -> Value {
    let reason = match (end.finish, &end.stop) {
        (FinishReason::Length, _) => "max_tokens",
        (FinishReason::Stop, _) if end.has_calls => "tool_use",
        (FinishReason::Stop, Some(_)) => "stop_sequence",
        (FinishReason::Stop, None) => "end_turn",
    };
    json!({ "stop_reason": reason, "stop_sequence": end.stop, "stop_details": null, "container": null })
}

fn usage_of(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.n_prompt - usage.n_cached, "cache_creation": null, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.n_cached, "output_tokens": usage.n_generated,
        "output_tokens_details": { "thinking_tokens": usage.n_reasoning }, "inference_geo": null, "server_tool_use": null,
        "service_tier": "standard",
    })
}
