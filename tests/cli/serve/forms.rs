//! Answers of a given form: JSON, by a schema or by none.

use serde_json::{Value, json};

use super::client::Server;
use super::{hello, with};
use crate::common::program::Home;

/// A form of which every answer ends, even a random model's.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "ok": { "type": "boolean" },
            "kind": { "enum": ["red", "green", "a \"quoted\" one"] },
            "digits": { "type": "array", "items": { "$ref": "#/$defs/digit" }, "minItems": 2, "maxItems": 2 },
        },
        "required": ["ok", "kind", "digits"],
        "additionalProperties": false,
        "$defs": { "digit": { "type": "integer", "minimum": 0, "maximum": 9 } },
    })
}

#[track_caller]
fn assert_form(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let fields = value.as_object().unwrap();
    assert_eq!(fields.keys().collect::<Vec<_>>(), ["ok", "kind", "digits"], "{text}");
    assert!(value["ok"].is_boolean() && ["red", "green", "a \"quoted\" one"].contains(&value["kind"].as_str().unwrap()), "{text}");
    let digits = value["digits"].as_array().unwrap();
    assert!(digits.len() == 2 && digits.iter().all(|digit| digit.as_u64().is_some_and(|digit| digit < 10)), "{text}");
}

#[test]
fn a_schema_is_kept_by_every_api() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "512"]);
    let format = json!({ "type": "json_schema", "json_schema": { "name": "form", "strict": true, "schema": schema() } });
    let asked = with(hello(200), &json!({ "response_format": format, "temperature": 1.5, "top_k": 0, "seed": 1, "n": 4 }));
    let answer = server.json("/v1/chat/completions", &asked);
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for choice in choices {
        assert_form(choice["message"]["content"].as_str().unwrap());
        assert_eq!(choice["finish_reason"], "stop");
    }
    let chunks = server.post("/v1/chat/completions", &with(asked, &json!({ "n": 1, "stream": true }))).chunks();
    let said: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, choices[0]["message"]["content"].as_str().unwrap());
    let asked = json!({ "messages": [{ "role": "user", "content": "hello" }], "format": schema(), "stream": false });
    assert_form(server.json("/api/chat", &asked)["message"]["content"].as_str().unwrap());
    let asked = json!({ "prompt": "hello", "json_schema": schema() });
    assert_form(server.json("/completion", &asked)["content"].as_str().unwrap());
}

#[test]
fn without_a_schema_it_begins_an_object() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    let answer = server.json("/v1/chat/completions", &with(hello(8), &json!({ "response_format": { "type": "json_object" } })));
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with('{'), "{text}");
}

#[test]
fn what_is_no_schema_is_refused() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    let deep = (0..60).fold(json!({ "type": "object" }), |inner, _| json!({ "type": "array", "items": inner }));
    for (format, status) in [
        (json!({ "type": "xml" }), 400),
        (json!({ "type": "json_schema" }), 400),
        (json!({ "type": "json_schema", "json_schema": { "schema": [] } }), 400),
        (json!({ "type": "json_schema", "json_schema": { "schema": { "type": "wizard" } } }), 400),
        (json!({ "type": "json_schema", "json_schema": { "schema": { "$ref": "http://example.com/schema.json" } } }), 400),
        (json!({ "type": "json_schema", "json_schema": { "schema": { "type": "string", "pattern": "(" } } }), 400),
        (json!({ "type": "json_schema", "json_schema": { "schema": { "x-guidance": { "what": 1 }, "type": "object" } } }), 200),
        (json!({ "type": "json_schema", "json_schema": { "schema": deep } }), 200),
    ] {
        let reply = server.post("/v1/chat/completions", &with(hello(2), &json!({ "response_format": format })));
        assert_eq!(reply.status, status, "{format}: {reply:?}");
    }
}
