//! What shapes the choice of tokens, and what is told of it: biases, penalties, log probabilities.

use serde_json::{Value, json};

use super::client::Server;
use super::{hello, with};
use crate::common::program::Home;

/// The tokens of a chat answer, with what is told of each.
#[track_caller]
fn scored(answer: &Value) -> Vec<Value> {
    answer["choices"][0]["logprobs"]["content"].as_array().unwrap_or_else(|| panic!("{answer}")).clone()
}

fn text(scored: &[Value]) -> String {
    let bytes = scored.iter().flat_map(|token| token["bytes"].as_array().unwrap()).map(|byte| byte.as_u64().unwrap() as u8);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

#[test]
fn biases_and_penalties_change_what_is_chosen() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    let ids = |more: Value| {
        let asked = with(json!({ "prompt": "hello", "temperature": 0, "n_predict": 24, "n_probs": 1, "ignore_eos": true }), &more);
        let told = server.json("/completion", &asked)["completion_probabilities"].as_array().unwrap().clone();
        told.iter().map(|token| token["id"].as_u64().unwrap()).collect::<Vec<u64>>()
    };
    let plain = ids(json!({}));
    assert_eq!(ids(json!({ "logit_bias": { "70": 100 }, "n_predict": 3 })), [70; 3]);
    assert!(!ids(json!({ "logit_bias": [[plain[0], false]] })).contains(&plain[0]));
    // With the greatest penalty no token comes twice.
    let mut varied = ids(json!({ "presence_penalty": 100 }));
    let n_tokens = varied.len();
    varied.sort_unstable();
    varied.dedup();
    assert_eq!(varied.len(), n_tokens);
    assert_ne!(ids(json!({ "frequency_penalty": 100 })), plain);
    for wrong in [
        json!({ "logit_bias": { "x": 1 } }),
        json!({ "logit_bias": { "4000000": 1 } }),
        json!({ "logit_bias": [[1]] }),
        json!({ "logit_bias": { "1": 1000 } }),
    ] {
        let reply = server.post("/v1/completions", &with(json!({ "prompt": "hello" }), &wrong));
        assert_eq!(reply.status, 400, "{reply:?}");
        assert!(reply.body.contains("logit_bias"), "{reply:?}");
    }
}

#[test]
fn log_probabilities_are_told_by_every_api() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    let asked = with(hello(6), &json!({ "logprobs": true, "top_logprobs": 3 }));
    let answer = server.json("/v1/chat/completions", &asked);
    let told = scored(&answer);
    assert_eq!(told.len(), 6);
    assert_eq!(text(&told), answer["choices"][0]["message"]["content"].as_str().unwrap());
    for token in &told {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // The likeliest was taken, and all are logarithms of probabilities, in order.
        assert_eq!((&top[0]["bytes"], &top[0]["logprob"]), (&token["bytes"], &token["logprob"]));
        let logprobs: Vec<f64> = top.iter().map(|likely| likely["logprob"].as_f64().unwrap()).collect();
        assert!(
            logprobs.is_sorted_by(|a, b| a >= b) && logprobs[0] < 0.0 && logprobs.iter().map(|p| p.exp()).sum::<f64>() < 1.0,
            "{logprobs:?}"
        );
    }
    let chunks = server.post("/v1/chat/completions", &with(asked, &json!({ "stream": true }))).chunks();
    let streamed: Vec<Value> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array()).flatten().cloned().collect();
    assert_eq!(streamed, told);

    let completion = json!({ "prompt": "hello", "temperature": 0, "max_tokens": 5, "logprobs": 2 });
    let answer = server.json("/v1/completions", &completion);
    let columns = &answer["choices"][0]["logprobs"];
    let tokens: Vec<&str> = columns["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(tokens.concat(), answer["choices"][0]["text"].as_str().unwrap());
    let ends = tokens.iter().scan(0, |end, token| Some(std::mem::replace(end, *end + token.chars().count())));
    assert_eq!(columns["text_offset"], json!(ends.collect::<Vec<usize>>()));
    assert_eq!(columns["token_logprobs"].as_array().unwrap().len(), 5);
    assert!(columns["top_logprobs"][0].as_object().unwrap().contains_key(tokens[0]), "{columns}");
    let chunks = server.post("/v1/completions", &with(completion, &json!({ "stream": true }))).chunks();
    let offsets: Vec<Value> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"].as_array()).flatten().cloned().collect();
    assert_eq!(Value::from(offsets), columns["text_offset"]);

    let message = json!([{ "role": "user", "content": "hello" }]);
    let options = json!({ "temperature": 0, "num_predict": 6 });
    let ollama = json!({ "messages": message, "options": options, "stream": false, "logprobs": true, "top_logprobs": 3 });
    assert_eq!(server.json("/api/chat", &ollama)["logprobs"], Value::from(told));
    let llama_cpp = server.json("/completion", &json!({ "prompt": "hello", "temperature": 0, "n_predict": 5, "n_probs": 2 }));
    let told = &llama_cpp["completion_probabilities"];
    assert_eq!(told.as_array().unwrap().len(), 5);
    assert_eq!(told[0]["logprob"], columns["token_logprobs"][0]);
    assert!(told[0]["id"].is_u64() && told[0]["top_logprobs"][1]["id"].is_u64(), "{told}");
}

#[test]
fn without_being_asked_for_nothing_is_told() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    assert!(server.json("/v1/chat/completions", &hello(2))["choices"][0]["logprobs"].is_null());
    for (more, words) in [
        (json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs"),
        (json!({ "top_logprobs": 2 }), "needs logprobs"),
        (json!({ "logprobs": 3 }), "logprobs"),
    ] {
        let reply = server.post("/v1/chat/completions", &with(hello(2), &more));
        assert!(reply.status == 400 && reply.body.contains(words), "{reply:?}");
    }
}
