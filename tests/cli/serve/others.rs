//! The APIs of Ollama, Anthropic and llama.cpp: the same answers in other shapes.

use serde_json::{Value, json};

use super::client::{Reply, Server};
use super::hello;
use crate::common::program::Home;

/// The text of the chat that [`hello`] asks for, by OpenAI's API.
fn expected(server: &Server, max_tokens: u32) -> String {
    server.json("/v1/chat/completions", &hello(max_tokens))["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

fn lines(reply: &Reply) -> Vec<Value> {
    assert!(reply.headers.contains("content-type: application/x-ndjson"), "{}", reply.headers);
    reply.body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn ollama_s_chat_streams_lines_unless_told_otherwise() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "256"]);
    let text = expected(&server, 8);
    let options = json!({ "temperature": 0, "num_predict": 8, "num_ctx": 128, "num_gpu": 99, "mirostat": 0 });
    let messages = json!([{ "role": "user", "content": "hello", "images": [] }]);
    let asked = json!({ "model": "folder:latest", "messages": messages, "options": options, "keep_alive": "5m" });
    let chunks = lines(&server.post("/api/chat", &asked));
    let said: String = chunks.iter().map(|chunk| chunk["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(said, text);
    let (last, before) = chunks.split_last().unwrap();
    assert!(before.iter().all(|chunk| chunk["done"] == false && chunk["model"] == "folder:latest"), "{before:?}");
    assert_eq!((last["done"].as_bool(), last["done_reason"].as_str(), last["eval_count"].as_u64()), (Some(true), Some("length"), Some(8)));
    assert!(last["prompt_eval_count"].as_u64() > Some(0) && last["total_duration"].as_u64() > Some(0), "{last}");
    let mut whole = asked.clone();
    whole["stream"] = false.into();
    assert_eq!(server.json("/api/chat", &whole)["message"], json!({ "role": "assistant", "content": text }));
    let generated = json!({ "prompt": "hello", "options": options, "stream": false });
    assert_eq!(server.json("/api/generate", &generated)["response"], text.as_str());
    // Without messages, it loads.
    assert_eq!(server.json("/api/chat", &json!({ "model": "folder" }))["done_reason"], "load");
}

#[test]
fn ollama_s_lists_name_the_model() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "128"]);
    assert_eq!(server.get("/api/version").json()["version"], env!("CARGO_PKG_VERSION"));
    let tags = server.get("/api/tags").json();
    let model = &tags["models"][0];
    assert_eq!((model["name"].as_str(), model["model"].as_str()), (Some("folder:latest"), Some("folder:latest")));
    assert_eq!(model["details"]["quantization_level"], "BF16");
    assert_eq!(model["details"]["family"], "llama");
    assert_eq!(model["digest"].as_str().unwrap().len(), 64);
    assert!(model["size"].as_u64() > Some(1000) && model["modified_at"].as_str().unwrap().ends_with('Z'), "{model}");
    let running = server.get("/api/ps").json();
    assert_eq!((running["models"][0]["context_length"].as_u64(), &running["models"][0]["size_vram"]), (Some(128), &json!(0)));
    let shown = server.json("/api/show", &json!({ "model": "folder:latest" }));
    assert_eq!(
        (shown["model_info"]["general.architecture"].as_str(), &shown["capabilities"]),
        (Some("llama"), &json!(["completion", "tools"]))
    );
    assert!(shown["template"].as_str().unwrap().contains("messages"));
}

#[test]
fn ollama_s_errors_are_one_text() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "128"]);
    let messages = json!([{ "role": "user", "content": "hello" }]);
    for (path, body, status, words) in [
        ("/api/chat", json!({ "model": "llama3.2", "messages": messages }), 404, "llama3.2"),
        ("/api/chat", json!({ "messages": messages, "options": { "num_ctx": 4096 } }), 400, "128"),
        ("/api/chat", json!({ "messages": messages, "options": { "mirostat": 1 } }), 400, "options.mirostat"),
        ("/api/chat", json!({ "messages": messages, "format": "xml" }), 400, "format"),
        ("/api/chat", json!({ "messages": messages, "think": "much" }), 400, "think"),
        ("/api/chat", json!({ "messages": [{ "role": "user", "content": "x", "images": ["AAAA"] }] }), 400, "images"),
        ("/api/generate", json!({ "prompt": "x", "suffix": "y" }), 400, "suffix"),
        ("/api/generate", json!({ "prompt": "many words ".repeat(100) }), 400, "the context holds 128"),
        ("/api/pull", json!({ "model": "x" }), 404, "/api/pull"),
        ("/api/show", json!({}), 400, "model"),
    ] {
        let reply = server.post(path, &body);
        assert_eq!(reply.status, status, "{body}: {reply:?}");
        assert!(reply.json()["error"].as_str().unwrap().contains(words), "{words}: {reply:?}");
    }
}

#[test]
fn anthropic_s_messages_are_blocks() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    let text = expected(&server, 8);
    let messages = json!([{ "role": "user", "content": [{ "type": "text", "text": "hello" }] }]);
    let asked = json!({ "model": "folder", "max_tokens": 8, "temperature": 0, "messages": messages, "metadata": { "user_id": "u" } });
    let answer = server.json("/v1/messages", &asked);
    assert_eq!(answer["content"], json!([{ "type": "text", "text": text, "citations": [] }]));
    assert_eq!((answer["stop_reason"].as_str(), answer["usage"]["output_tokens"].as_u64()), (Some("max_tokens"), Some(8)));
    let counted = server.json("/v1/messages/count_tokens", &json!({ "model": "folder", "messages": messages }))["input_tokens"].clone();
    let usage = &answer["usage"];
    let n_input = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(counted.as_u64(), Some(n_input));
    let stop: String = text.chars().skip(4).take(2).collect();
    let mut stopped = asked.clone();
    stopped["stop_sequences"] = json!(["never in it", stop]);
    let stopped = server.json("/v1/messages", &stopped);
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    let mut streamed = asked;
    streamed["stream"] = true.into();
    let reply = server.post("/v1/messages", &streamed);
    let kinds: Vec<&str> = reply.body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let n_deltas = kinds.iter().filter(|kind| **kind == "content_block_delta").count();
    assert_eq!(kinds[..2], ["message_start", "content_block_start"]);
    assert_eq!(kinds[2 + n_deltas..], ["content_block_stop", "message_delta", "message_stop"]);
    let events: Vec<Value> = reply.events().into_iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert!(events.iter().zip(&kinds).all(|(event, kind)| event["type"] == *kind), "{events:?}");
    let said: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(said, text);
}

#[test]
fn anthropic_s_errors_have_a_type() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "128", "--api-key", "k"]);
    let messages = json!([{ "role": "user", "content": "hello" }]);
    let post = |headers: &str, body: &Value| server.ask("POST", "/v1/messages", headers, &body.to_string());
    for (headers, body, status, kind) in [
        ("", json!({}), 401, "authentication_error"),
        ("x-api-key: k\r\n", json!({ "messages": messages }), 400, "invalid_request_error"),
        ("x-api-key: k\r\n", json!({ "model": "claude", "messages": messages, "max_tokens": 2 }), 404, "not_found_error"),
        ("x-api-key: k\r\n", json!({ "messages": [{ "role": "system", "content": "x" }], "max_tokens": 2 }), 400, "invalid_request_error"),
        ("x-api-key: k\r\n", json!({ "messages": messages, "max_tokens": 2, "tools": [{ "name": "x" }] }), 400, "invalid_request_error"),
    ] {
        let reply = post(headers, &body);
        assert_eq!(reply.status, status, "{body}: {reply:?}");
        assert_eq!((reply.json()["type"].as_str(), reply.json()["error"]["type"].as_str()), (Some("error"), Some(kind)));
    }
}

#[test]
fn llama_cpp_s_completion_and_props() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "128"]);
    let expected = server.json("/v1/completions", &json!({ "prompt": "hello", "temperature": 0, "max_tokens": 6 }));
    let asked = json!({ "prompt": "hello", "temperature": 0, "n_predict": 6, "cache_prompt": true });
    let answer = server.json("/completion", &asked);
    assert_eq!(answer["content"], expected["choices"][0]["text"]);
    assert_eq!((answer["stop_type"].as_str(), answer["tokens_predicted"].as_u64()), (Some("limit"), Some(6)));
    let props = server.get("/props").json();
    assert_eq!((props["default_generation_settings"]["n_ctx"].as_u64(), props["total_slots"].as_u64()), (Some(128), Some(4)));
}
