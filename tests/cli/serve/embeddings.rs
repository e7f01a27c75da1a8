//! Embeddings over HTTP: those of `tierflow embed`.

use serde_json::{Value, json};

use super::client::Server;
use super::{hello, with};
use crate::common::program::Home;

fn values(embedding: &Value) -> Vec<f32> {
    embedding.as_array().unwrap_or_else(|| panic!("{embedding}")).iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

#[test]
fn they_are_those_of_the_command() {
    let home = Home::new();
    let model = home.folder_model();
    let expected =
        home.json("tierflow.embed/1", &["embed", &model, "hello", "other words", "--json", "--device", "cpu", "--pooling", "mean"]);
    let expected: Vec<Vec<f32>> = expected["embeddings"].as_array().unwrap().iter().map(|one| values(&one["embedding"])).collect();
    let server = Server::start(&home, &model, &["--embeddings"]);
    let answer = server.json("/v1/embeddings", &json!({ "input": ["hello", "other words"], "model": "folder" }));
    assert_eq!(answer["data"].as_array().unwrap().iter().map(|one| values(&one["embedding"])).collect::<Vec<_>>(), expected);
    assert_eq!((&answer["object"], &answer["data"][1]["index"]), (&json!("list"), &json!(1)));
    assert!(answer["usage"]["prompt_tokens"].as_u64() > Some(2) && answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"]);
    // One text, tokens, and bytes instead of numbers.
    let ask = |more: Value| server.json("/v1/embeddings", &with(json!({ "input": "hello" }), &more))["data"][0]["embedding"].clone();
    assert_eq!(values(&ask(json!({}))), expected[0]);
    let ids = server.json("/tokenize", &json!({ "content": "hello", "add_special": true }))["tokens"].clone();
    assert_eq!(values(&ask(json!({ "input": ids }))), expected[0]);
    assert_eq!(values(&ask(json!({ "input": [ids] }))), expected[0]);
    let text = ask(json!({ "encoding_format": "base64" }));
    assert_eq!(text.as_str().unwrap().len(), (expected[0].len() * 4).div_ceil(3) * 4);
    // Shorter ones have the length 1, too.
    let short = values(&ask(json!({ "dimensions": 5 })));
    let length = expected[0][..5].iter().map(|value| value * value).sum::<f32>().sqrt();
    assert_eq!(short.len(), 5);
    assert!(short.iter().zip(&expected[0]).all(|(short, whole)| (short - whole / length).abs() < 1e-5), "{short:?}");
    let ollama = server.json("/api/embed", &json!({ "model": "folder", "input": ["hello", "other words"] }));
    assert_eq!(ollama["embeddings"].as_array().unwrap().iter().map(values).collect::<Vec<_>>(), expected);
    assert_eq!(values(&server.json("/api/embeddings", &json!({ "prompt": "hello" }))["embedding"]), expected[0]);
    assert_eq!(server.json("/api/show", &json!({ "model": "folder" }))["capabilities"], json!(["embedding"]));
    // It generates nothing.
    let refused = server.post("/v1/chat/completions", &hello(2));
    assert!(refused.status == 400 && refused.body.contains("embeddings"), "{refused:?}");
}

#[test]
fn what_cannot_be_embedded_is_refused() {
    let home = Home::new();
    let model = home.folder_model();
    let server = Server::start(&home, &model, &["--embeddings", "-c", "32"]);
    for (asked, words) in [
        (json!({}), "input"),
        (json!({ "input": 3 }), "input"),
        (json!({ "input": ["hello", 3] }), "input"),
        (json!({ "input": [4_000_000] }), "vocabulary"),
        (json!({ "input": "many words ".repeat(50) }), "the context holds 32"),
        (json!({ "input": "hello", "dimensions": 100_000 }), "dimensions"),
        (json!({ "input": "hello", "dimensions": 0 }), "dimensions"),
        (json!({ "input": "hello", "encoding_format": "int8" }), "encoding_format"),
        (json!({ "input": vec!["x"; 2049] }), "2048"),
        (json!({ "input": "hello", "no_such_field": 1 }), "no_such_field"),
    ] {
        let reply = server.post("/v1/embeddings", &asked);
        assert!(reply.status == 400 && reply.json()["error"]["message"].as_str().unwrap().contains(words), "{words}: {reply:?}");
    }
    let generates = Server::start(&home, &model, &[]);
    let refused = generates.post("/v1/embeddings", &json!({ "input": "hello" }));
    assert!(refused.status == 400 && refused.body.contains("started for embeddings"), "{refused:?}");
}
