//! The objects of responses: items of output, and the events that make them up in a stream.

use serde_json::{Map, Value, json};

use crate::server::answer::{End, Part, Usage};
use crate::server::app::{App, new_id, now};
use crate::server::body::named_event;
use crate::server::deliver::{Shape, Whole};
use crate::server::error::{ApiError, Dialect};
use crate::session::FinishReason;
use crate::text::Call;

/// One response.
pub(super) struct Responses {
    id: String,
    created: u64,
    model: String,
    /// What it repeats of the request.
    echo: Map<String, Value>,
    /// The item of a stream that is open: its kind, its id, its text until now.
    open: Option<(Item, String, String)>,
    /// Items of a stream that are whole.
    output: Vec<Value>,
    /// Events of a stream until now.
    n_events: u64,
    /// Whether it was cut at its longest.
    is_cut: bool,
}

/// Kinds of items that have a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Reasoning,
    Message,
}

impl Item {
    /// What begins the names of its events.
    fn event(self) -> &'static str {
        match self {
            Item::Reasoning => "response.reasoning_text",
            Item::Message => "response.output_text",
        }
    }

    fn new_id(self) -> String {
        new_id(if self == Item::Reasoning { "rs_" } else { "msg_" })
    }

    fn part(self, text: &str) -> Value {
        match self {
            Item::Reasoning => json!({ "type": "reasoning_text", "text": text }),
            Item::Message => json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] }),
        }
    }

    fn item(self, id: &str, status: &str, content: &[Value]) -> Value {
        match self {
            Item::Reasoning => json!({ "id": id, "type": "reasoning", "summary": [], "content": content, "status": status }),
            Item::Message => json!({ "id": id, "type": "message", "role": "assistant", "content": content, "status": status }),
        }
    }
}

fn item_of(call: &Call, status: &str, arguments: &str) -> Value {
    json!({ "id": format!("fc_{}", call.id), "type": "function_call", "call_id": call.id, "name": call.name, "arguments": arguments, "status": status })
}

impl Responses {
    pub(super) fn new(app: &App, echo: Map<String, Value>) -> Responses {
        let (id, model) = (new_id("resp_"), app.model_name.clone());
        Responses { id, created: now(), model, echo, open: None, output: Vec::new(), n_events: 0, is_cut: false }
    }

    fn response(&self, status: &str, output: &[Value], usage: &Value) -> Value {
        let cut = if self.is_cut { json!({ "reason": "max_output_tokens" }) } else { Value::Null };
        let completed = (status == "completed").then(now);
        let mut response = json!({
            "id": self.id, "object": "response", "created_at": self.created, "completed_at": completed, "status": status,
            "background": false, "error": null, "incomplete_details": cut, "instructions": null, "max_output_tokens": null,
            "max_tool_calls": null, "model": self.model, "output": output, "parallel_tool_calls": true, "previous_response_id": null,
            "prompt_cache_key": null, "reasoning": { "effort": null, "summary": null }, "safety_identifier": null,
            "service_tier": "default", "store": false, "text": { "format": { "type": "text" } }, "tool_choice": "auto", "tools": [],
            "top_logprobs": 0, "truncation": "disabled", "usage": usage, "user": null, "metadata": {},
        });
        for (name, value) in &self.echo {
            match (response.get_mut(name), value) {
                // What the request leaves out of these stays as it is where nothing is said.
                (Some(Value::Object(known)), Value::Object(said)) => known.extend(said.clone()),
                _ => response[name] = value.clone(),
            }
        }
        response
    }

    fn status(&self) -> &'static str {
        if self.is_cut { "incomplete" } else { "completed" }
    }

    fn event(&mut self, kind: &str, mut fields: Value) -> String {
        fields["sequence_number"] = self.n_events.into();
        self.n_events += 1;
        named_event(kind, fields)
    }

    /// The text of an item goes on, in a new one where the open one is of another kind.
    fn go_on(&mut self, item: Item, text: &str) -> String {
        if text.is_empty() {
            return String::new();
        }
        let mut events = String::new();
        if self.open.as_ref().is_none_or(|(open, ..)| *open != item) {
            events.push_str(&self.close());
            let (id, index) = (item.new_id(), self.output.len());
            let added = item.item(&id, "in_progress", &[]);
            events.push_str(&self.event("response.output_item.added", json!({ "output_index": index, "item": added })));
            let part = json!({ "item_id": id, "output_index": index, "content_index": 0, "part": item.part("") });
            events.push_str(&self.event("response.content_part.added", part));
            self.open = Some((item, id, String::new()));
        }
        let Some((_, id, said)) = &mut self.open else { return events };
        said.push_str(text);
        let mut delta = json!({ "item_id": id, "output_index": self.output.len(), "content_index": 0, "delta": text });
        if item == Item::Message {
            delta["logprobs"] = json!([]);
        }
        events + &self.event(&format!("{}.delta", item.event()), delta)
    }

    /// Closes the item that is open.
    fn close(&mut self) -> String {
        let Some((item, id, text)) = self.open.take() else { return String::new() };
        let (index, part) = (self.output.len(), item.part(&text));
        let mut done = json!({ "item_id": id, "output_index": index, "content_index": 0, "text": text });
        if item == Item::Message {
            done["logprobs"] = json!([]);
        }
        let whole = item.item(&id, self.status(), std::slice::from_ref(&part));
        self.output.push(whole.clone());
        self.event(&format!("{}.done", item.event()), done)
            + &self.event("response.content_part.done", json!({ "item_id": id, "output_index": index, "content_index": 0, "part": part }))
            + &self.event("response.output_item.done", json!({ "output_index": index, "item": whole }))
    }

    /// A call, in an item of its own.
    fn call(&mut self, call: &Call) -> String {
        let before = self.close();
        let (index, arguments) = (self.output.len(), call.arguments_text());
        let whole = item_of(call, "completed", &arguments);
        let id = whole["id"].clone();
        self.output.push(whole.clone());
        before
            + &self.event("response.output_item.added", json!({ "output_index": index, "item": item_of(call, "in_progress", "") }))
            + &self.event("response.function_call_arguments.delta", json!({ "item_id": id, "output_index": index, "delta": arguments }))
            + &self.event(
                "response.function_call_arguments.done",
                json!({ "item_id": id, "output_index": index, "name": call.name, "arguments": arguments }),
            )
            + &self.event("response.output_item.done", json!({ "output_index": index, "item": whole }))
    }
}

impl Shape for Responses {
    const STREAM_TYPE: &'static str = "text/event-stream";

    fn begin(&mut self, _index: usize, _n_prompt: usize) -> String {
        let response = self.response("in_progress", &[], &Value::Null);
        self.event("response.created", json!({ "response": response }))
            + &self.event("response.in_progress", json!({ "response": response }))
    }

    fn part(&mut self, part: &Part) -> String {
        let said = self.go_on(Item::Reasoning, &part.reasoning) + &self.go_on(Item::Message, &part.text);
        part.calls.iter().fold(said, |said, call| said + &self.call(call))
    }

    fn silence(&self) -> String {
        ": still at work\n\n".to_owned()
    }

    fn end(&mut self, end: &End) -> String {
        self.is_cut = end.finish == FinishReason::Length;
        self.close()
    }

    fn last(&mut self, usage: &Usage) -> String {
        let response = self.response(self.status(), &self.output, &usage_of(usage));
        let kind = format!("response.{}", self.status());
        self.event(&kind, json!({ "response": response }))
    }

    fn error(&self, error: &ApiError) -> String {
        let told = &error.body(Dialect::OpenAi)["error"];
        let fields = json!({ "code": told["code"], "message": told["message"], "param": told["param"], "sequence_number": self.n_events });
        named_event("error", fields)
    }

    fn whole(&mut self, answers: Vec<Whole>, usage: &Usage) -> Value {
        let mut output = Vec::new();
        for answer in answers {
            self.is_cut = answer.end.finish == FinishReason::Length;
            for (item, text) in [(Item::Reasoning, &answer.reasoning), (Item::Message, &answer.text)] {
                if !text.is_empty() {
                    output.push(item.item(&item.new_id(), self.status(), &[item.part(text)]));
                }
            }
            output.extend(answer.calls.iter().map(|call| item_of(call, "completed", &call.arguments_text())));
        }
        self.response(self.status(), &output, &usage_of(usage))
    }
}

fn usage_of(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.n_prompt, "input_tokens_details": { "cached_tokens": usage.n_cached },
        "output_tokens": usage.n_generated, "output_tokens_details": { "reasoning_tokens": usage.n_reasoning },
        "total_tokens": usage.n_prompt + usage.n_generated,
    })
}
