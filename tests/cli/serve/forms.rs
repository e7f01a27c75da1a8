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
        (json!({ "type": "json_schema", "json_schema": { "schema": { "$ref": "#" } } }), 400),
        (json!({ "type": "json_schema", "json_schema": { "schema": { "allOf": [{ "$ref": "#" }] } } }), 400),
        (json!({ "type": "json_schema", "json_schema": { "schema": { "$ref": "http://example.com/schema.json" } } }), 400),
        (json!({ "type": "json_schema", "json_schema": { "schema": { "type": "string", "pattern": "(" } } }), 400),
        (json!({ "type": "json_schema", "json_schema": { "schema": { "x-guidance": { "what": 1 }, "type": "object" } } }), 200),
        (json!({ "type": "json_schema", "json_schema": { "schema": deep } }), 200),
    ] {
        // Also a stream is refused before it begins.
        for is_streamed in [false, true] {
            let reply = server.post("/v1/chat/completions", &with(hello(2), &json!({ "response_format": format, "stream": is_streamed })));
            assert_eq!(reply.status, status, "{format}: {reply:?}");
        }
    }
}

/// Moves and answers: a grammar of which every answer ends, with rules that call each other.
const GRAMMAR: &str =
    "root ::= \"1. \" move \" \" move \"\\n\" (\"2. \" move)?\nmove ::= [NBKQR]? [a-h] [1-8] | nest\nnest ::= \"(\" [あ-ん]{2} \")\"";

fn is_move(text: &str) -> bool {
    let inner = text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    match inner {
        Some(inner) => inner.chars().count() == 2 && inner.chars().all(|char| ('あ'..='ん').contains(&char)),
        None => {
            let square = text.strip_prefix(['N', 'B', 'K', 'Q', 'R']).unwrap_or(text).as_bytes();
            square.len() == 2 && (b'a'..=b'h').contains(&square[0]) && (b'1'..=b'8').contains(&square[1])
        }
    }
}

#[track_caller]
fn assert_moves(text: &str) {
    let (first, second) = text.split_once('\n').unwrap_or_else(|| panic!("{text:?}"));
    let moves: Vec<&str> = first.strip_prefix("1. ").unwrap_or_else(|| panic!("{text:?}")).split(' ').collect();
    assert!(moves.len() == 2 && moves.iter().all(|text| is_move(text)), "{text:?}");
    assert!(second.is_empty() || second.strip_prefix("2. ").is_some_and(is_move), "{text:?}");
}

#[test]
fn grammars_expressions_and_choices_are_kept() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "512"]);
    let hot = json!({ "temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 3, "n": 8, "max_tokens": 200 });
    let said = |path: &str, form: &Value| -> Vec<String> {
        let asked = if path == "/v1/completions" { json!({ "prompt": "hello" }) } else { hello(200) };
        let answer = server.json(path, &with(with(asked, &hot), form));
        let text = |choice: &Value| {
            assert_eq!(choice["finish_reason"], "stop", "{choice}");
            choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap().to_owned()
        };
        answer["choices"].as_array().unwrap().iter().map(text).collect()
    };
    for form in [
        json!({ "grammar": GRAMMAR }),
        json!({ "guided_grammar": GRAMMAR }),
        json!({ "ebnf": GRAMMAR }),
        json!({ "structured_outputs": { "grammar": GRAMMAR } }),
        json!({ "response_format": { "type": "grammar", "grammar": GRAMMAR } }),
    ] {
        for path in ["/v1/completions", "/v1/chat/completions"] {
            said(path, &form).iter().for_each(|text| assert_moves(text));
        }
    }
    for form in [json!({ "regex": "^[a-c]{3}-\\d+x|y$" }), json!({ "guided_regex": "[a-c]{3}-[0-9]+x|y" })] {
        for text in said("/v1/completions", &form) {
            let is_long = text.split_once('-').is_some_and(|(begin, end)| {
                begin.len() == 3
                    && begin.bytes().all(|byte| b"abc".contains(&byte))
                    && end.strip_suffix('x').is_some_and(|end| !end.is_empty() && end.chars().all(char::is_numeric))
            });
            assert!(is_long || text == "y", "{text:?}");
        }
    }
    let choices = ["yes", "no, \"never\"\n", "größer"];
    let chosen = said("/v1/chat/completions", &json!({ "guided_choice": choices }));
    assert!(chosen.iter().all(|text| choices.contains(&text.as_str())), "{chosen:?}");
    let schema = json!({ "guided_json": schema() });
    said("/v1/completions", &schema).iter().for_each(|text| assert_form(text));
    let answer = server.json("/completion", &json!({ "prompt": "hello", "grammar": GRAMMAR, "n_predict": 200 }));
    assert_moves(answer["content"].as_str().unwrap());
    let asked = with(hello(200), &json!({ "grammar": GRAMMAR, "stream": true }));
    let chunks = server.post("/v1/chat/completions", &asked).chunks();
    assert_moves(&chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect::<String>());
}

#[test]
fn what_is_no_form_is_refused_with_its_place() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    for (form, words) in [
        (json!({ "grammar": "root ::= \"a\"\n\nb ::= c" }), "grammar: line 3: there is no rule `c`"),
        (json!({ "grammar": 7 }), "grammar"),
        (json!({ "grammar": "root ::= root \"a\" | \"b\"" }), "begins with itself"),
        (json!({ "grammar": "root ::= [a-z]{10000}".repeat(2) }), "line 1"),
        (json!({ "regex": "(" }), "regex"),
        (json!({ "regex": "(?=a)b" }), "regex"),
        (json!({ "regex": "(".repeat(30_000) }), "regex"),
        (json!({ "guided_choice": [] }), "guided_choice"),
        (json!({ "guided_choice": [1] }), "guided_choice"),
        (json!({ "guided_json": "{" }), "guided_json"),
        (json!({ "structured_outputs": { "xml": 1 } }), "structured_outputs.xml"),
        (json!({ "response_format": { "type": "grammar" } }), "response_format.grammar"),
        (json!({ "regex": "a", "grammar": "root ::= \"a\"" }), "leave out all but one"),
    ] {
        for path in ["/v1/chat/completions", "/v1/completions"] {
            let asked = if path == "/v1/completions" { json!({ "prompt": "hello", "max_tokens": 2 }) } else { hello(2) };
            let reply = server.post(path, &with(asked, &form));
            assert!(reply.status == 400 && reply.body.contains(words), "{form}: {reply:?}");
        }
    }
    assert_eq!(server.get("/health").status, 200);
}
