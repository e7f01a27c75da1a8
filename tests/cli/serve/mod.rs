//! `tierflow serve`, asked over HTTP.

mod channels;
pub mod client;
mod embeddings;
mod forms;
mod hostile;
mod loras;
mod models;
mod openai;
mod others;
mod refusals;
mod responses;
mod running;
mod sampling;
mod tools;

use serde_json::{Value, json};

/// A greedy chat request of one message.
pub fn hello(max_tokens: u32) -> Value {
    json!({ "messages": [{ "role": "user", "content": "hello" }], "temperature": 0, "max_tokens": max_tokens })
}

/// `object` with the fields of `more`.
pub fn with(mut object: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().expect("an object") {
        object[name] = value.clone();
    }
    object
}
