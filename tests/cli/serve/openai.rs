//! OpenAI's API: answers whole and streamed, what shapes them, and what they took.

use serde_json::{Value, json};

use super::client::Server;
use super::{hello, with};
use crate::common::program::Home;

/// What a stream's chunks say in the field `name` of their deltas.
fn said(chunks: &[Value], name: &str) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][name].as_str()).collect()
}

#[test]
fn a_chat_is_answered_as_run_answers_it() {
    let home = Home::new();
    let model = home.folder_model();
    let expected = home.stdout(&["run", &model, "-p", "hello", "--temp", "0", "-n", "12", "--device", "cpu"]);
    let server = Server::start(&home, &model, &[]);
    assert!(server.report.contains("cpu computes") || server.report.contains("cpu"), "{}", server.report);
    let answer = server.json("/v1/chat/completions", &hello(12));
    assert_eq!(answer["object"], "chat.completion");
    let choice = &answer["choices"][0];
    assert_eq!(format!("{}\n", choice["message"]["content"].as_str().unwrap()), expected);
    assert_eq!((choice["message"]["role"].as_str(), choice["finish_reason"].as_str()), (Some("assistant"), Some("length")));
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 12);
    assert_eq!(usage["total_tokens"].as_u64(), Some(usage["prompt_tokens"].as_u64().unwrap() + 12));
    let models = server.get("/v1/models").json();
    assert_eq!((models["data"][0]["id"].as_str(), answer["model"].as_str()), (Some("folder"), Some("folder")));
    assert_eq!(server.get("/v1/models/folder").json()["id"], "folder");
}

#[test]
fn a_stream_has_the_same_answer_in_chunks() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    let whole = server.json("/v1/chat/completions", &hello(12));
    let asked = with(hello(12), &json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let reply = server.post("/v1/chat/completions", &asked);
    assert_eq!(reply.status, 200);
    assert!(reply.headers.contains("content-type: text/event-stream"), "{}", reply.headers);
    let chunks = reply.chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(said(&chunks, "content"), whole["choices"][0]["message"]["content"].as_str().unwrap());
    let [.., end, usage] = chunks.as_slice() else { panic!("{chunks:?}") };
    assert_eq!(end["choices"][0]["finish_reason"], "length");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 12);
    // Without being asked for, there is none.
    let chunks = server.post("/v1/chat/completions", &with(hello(2), &json!({ "stream": true }))).chunks();
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()), "{chunks:?}");
}

#[test]
fn completions_go_on_after_texts_and_tokens() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    let ask = |more: Value| server.json("/v1/completions", &with(json!({ "temperature": 0, "max_tokens": 6 }), &more));
    let of_text = ask(json!({ "prompt": "hello" }));
    assert_eq!(of_text["object"], "text_completion");
    let text = of_text["choices"][0]["text"].as_str().unwrap();
    let body = json!({ "content": "hello", "add_special": true });
    let ids = server.json("/tokenize", &body)["tokens"].clone();
    assert_eq!(ask(json!({ "prompt": ids }))["choices"][0]["text"], text);
    assert_eq!(server.json("/detokenize", &json!({ "tokens": ids }))["content"], "hello");
    let several = ask(json!({ "prompt": ["hello", "other words", "hello"], "n": 2 }));
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    assert!([0, 1, 4, 5].iter().all(|&index| choices[index]["text"] == text), "{choices:?}");
    assert_ne!(choices[2]["text"], text);
    let prompt_tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(prompt_tokens(&several) > 2 * prompt_tokens(&of_text) && several["usage"]["completion_tokens"] == 36);
}

#[test]
fn seeds_and_stop_texts_shape_an_answer() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    let ask = |more: Value| server.json("/v1/chat/completions", &with(hello(16), &more))["choices"].clone();
    let sampled = |seed: u64| ask(json!({ "temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0, "seed": seed }));
    assert_eq!(sampled(7), sampled(7));
    assert_ne!(sampled(7), sampled(8));
    let two = ask(json!({ "temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 7, "n": 2 }));
    assert_eq!(two[0]["message"], sampled(7)[0]["message"]);
    assert_eq!(two[1]["message"], sampled(8)[0]["message"]);
    let plain = ask(json!({}));
    let text = plain[0]["message"]["content"].as_str().unwrap();
    let stop: String = text.chars().skip(4).take(2).collect();
    let before = text.split(&stop).next().unwrap();
    for stop in [json!(stop), json!(["never in it", stop])] {
        let stopped = ask(json!({ "stop": stop }));
        assert_eq!((stopped[0]["message"]["content"].as_str(), stopped[0]["finish_reason"].as_str()), (Some(before), Some("stop")));
    }
}

#[test]
fn what_a_sequence_has_of_a_prompt_is_not_computed_again() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["--parallel", "2"]);
    let system = "words that every request begins with, more of them than what follows them in any of these requests ".repeat(3);
    let ask = |text: &str| {
        let messages = json!([{ "role": "system", "content": system }, { "role": "user", "content": text }]);
        server.json("/v1/chat/completions", &json!({ "messages": messages, "temperature": 0, "max_tokens": 2 }))["usage"].clone()
    };
    let of = |usage: &Value| [usage["prompt_tokens"].as_u64().unwrap(), usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()];
    let [n_first, n_cached] = of(&ask("one"));
    assert_eq!(n_cached, 0);
    let mut n_computed = n_first;
    for text in ["two", "three", "four"] {
        let [n_prompt, n_cached] = of(&ask(text));
        assert!(n_cached > n_first / 2 && n_cached < n_prompt, "{n_cached} of {n_prompt}");
        n_computed += n_prompt - n_cached;
    }
    assert_eq!(server.metric("tierflow_prompt_tokens_total{source=\"computed\"}"), n_computed);
    // The same again: all but the last token, whose logits are needed.
    let [n_prompt, n_cached] = of(&ask("four"));
    assert_eq!(n_cached, n_prompt - 1);
}

#[test]
fn a_conversation_goes_on_where_it_was() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    let mut messages = vec![json!({ "role": "user", "content": "hello" })];
    let ask = |messages: &[Value]| {
        let asked = json!({ "messages": messages, "temperature": 0, "max_tokens": 8 });
        server.json("/v1/chat/completions", &asked)
    };
    let first = ask(&messages);
    messages.push(first["choices"][0]["message"].clone());
    messages.push(json!({ "role": "user", "content": [{ "type": "text", "text": "and" }, { "type": "text", "text": " more" }] }));
    let second = ask(&messages);
    let usage = &second["usage"];
    assert!(usage["prompt_tokens_details"]["cached_tokens"].as_u64() >= first["usage"]["prompt_tokens"].as_u64(), "{usage}");
    // Its answer is that of a server that knows nothing of the first one.
    let other = Server::start(&home, &home.folder_model(), &[]);
    let asked = json!({ "messages": messages, "temperature": 0, "max_tokens": 8 });
    assert_eq!(other.json("/v1/chat/completions", &asked)["choices"], second["choices"]);
}

#[test]
fn a_conversation_that_lost_its_sequence_goes_on_where_it_was() {
    let home = Home::new();
    let ask = |server: &Server, text: &str| {
        let answer = server.json("/v1/completions", &json!({ "prompt": text, "temperature": 0, "max_tokens": 2 }));
        let n_cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (n_cached, answer["choices"][0]["text"].clone())
    };
    let [one, other] = ["one long conversation with many turns ", "what somebody else has to say "].map(|text| text.repeat(8));
    let keeping = Server::start(&home, &home.folder_model(), &["-np", "1", "--cache-ram", "64"]);
    let forgetful = Server::start(&home, &home.folder_model(), &["-np", "1", "--cache-ram", "0"]);
    for text in [&one, &other] {
        assert_eq!((ask(&keeping, text).0, ask(&forgetful, text).0), (0, 0));
    }
    assert!(keeping.metric("tierflow_kept_histories_bytes") > 0 && forgetful.metric("tierflow_kept_histories_bytes") == 0);
    let (n_cached, text) = ask(&keeping, &(one.clone() + "and on"));
    let (n_without, expected) = ask(&forgetful, &(one.clone() + "and on"));
    assert!(n_cached > 50 && n_without == 0, "{n_cached} {n_without}");
    assert_eq!(text, expected);
}

#[test]
fn a_question_beside_it_costs_a_conversation_no_cache() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["--parallel", "2"]);
    let cached = |text: &str| {
        let usage = server.json("/v1/completions", &json!({ "prompt": text, "temperature": 0, "max_tokens": 2 }))["usage"].clone();
        [&usage["prompt_tokens"], &usage["prompt_tokens_details"]["cached_tokens"]].map(|count| count.as_u64().unwrap())
    };
    let conversation = "a long conversation with many turns of words ".repeat(8);
    let [n_before, _] = cached(&conversation);
    // Begins alike, and is a small part of the conversation: the other sequence takes it.
    cached("a long question");
    let [_, n_cached] = cached(&format!("{conversation} and more"));
    assert!(n_cached + 2 >= n_before, "{n_cached} of {n_before}");
}
