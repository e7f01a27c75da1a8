//! What a server refuses: who may not ask, what it cannot do, what is no request.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::client::{Reply, Server};
use super::{hello, with};
use crate::common::program::Home;

#[track_caller]
fn assert_refused(reply: &Reply, status: u16, words: &str) {
    assert_eq!(reply.status, status, "{words}: {reply:?}");
    let error = &reply.json()["error"];
    assert!(error["message"].as_str().unwrap().contains(words), "{words}: {error}");
    assert!(error["type"].is_string(), "{error}");
}

#[test]
fn fields_that_would_change_the_answer_are_refused_by_name() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    let post = |more: Value| server.post("/v1/chat/completions", &with(hello(2), &more));
    for (more, status, words) in [
        (json!({ "response_format": { "type": "xml" } }), 400, "response_format"),
        (json!({ "store": true }), 400, "store"),
        (json!({ "no_such_field": 1 }), 400, "no_such_field"),
        (json!({ "stream_options": { "what": 1 } }), 400, "stream_options.what"),
        (json!({ "model": "gpt-4o" }), 404, "gpt-4o"),
        (json!({ "temperature": -1 }), 400, "temperature"),
        (json!({ "temperature": "hot" }), 400, "temperature"),
        (json!({ "top_p": 2 }), 400, "top_p"),
        (json!({ "max_tokens": -1 }), 400, "max_tokens"),
        (json!({ "max_tokens": 1e30 }), 400, "max_tokens"),
        (json!({ "n": 0 }), 400, "n: "),
        (json!({ "n": 100_000 }), 400, "n: "),
        (json!({ "stop": [1] }), 400, "stop"),
        (json!({ "stop": "" }), 400, "stop"),
        (json!({ "messages": [] }), 400, "messages"),
        (json!({ "messages": "hello" }), 400, "messages"),
        (json!({ "messages": [{ "content": "x" }] }), 400, "messages[0].role"),
        (json!({ "messages": [{ "role": "wizard", "content": "x" }] }), 400, "messages[0].role"),
        (json!({ "messages": [{ "role": "user" }] }), 400, "messages[0].content"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "file:///etc/passwd" } }] }] }),
            400,
            "image_url",
        ),
    ] {
        assert_refused(&post(more), status, words);
    }
    let harmless = json!({
        "user": "u", "metadata": { "a": "b" }, "store": false, "logprobs": null, "presence_penalty": 0, "tools": [], "tool_choice": "none",
        "response_format": { "type": "text" }, "model": "folder:latest", "service_tier": "auto", "best_of": 1,
    });
    assert_eq!(post(harmless).status, 200);
    assert_eq!(server.metric("tierflow_responses_total{outcome=\"failed\"}"), 0);
}

#[test]
fn what_is_no_request_is_refused_and_does_no_harm() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "64"]);
    let post = |body: &str| server.ask("POST", "/v1/chat/completions", "", body);
    for body in ["", "{", "[]", "null", "{\"messages\": 1}", "{\"a\": \"\u{0}\"}", &"[".repeat(10_000)] {
        assert_refused(&post(body), 400, "");
    }
    assert_refused(&server.get("/v1/chat/completions"), 405, "GET");
    assert_refused(&server.get("/v2/chat"), 404, "/v2/chat");
    let long = with(hello(2), &json!({ "messages": [{ "role": "user", "content": "many words ".repeat(100) }] }));
    let refused = server.post("/v1/chat/completions", &long);
    assert_refused(&refused, 400, "the context holds 64");
    assert_eq!(refused.json()["error"]["code"], "context_length_exceeded");
    let tokens: Vec<u32> = vec![1; 100];
    assert_refused(&server.post("/v1/completions", &json!({ "prompt": tokens })), 400, "100 tokens");
    assert_refused(&server.post("/v1/completions", &json!({ "prompt": [1, 4_000_000] })), 400, "vocabulary");
    assert_refused(&server.post("/v1/completions", &json!({ "prompt": [] })), 400, "prompt");
    assert_refused(&server.post("/detokenize", &json!({ "tokens": [-1] })), 400, "tokens");
    // Longer than what is read at all: known by its length, or found out.
    let huge = format!("{{\"prompt\": \"{}\"}}", "x".repeat(9 << 20));
    assert_refused(&server.ask("POST", "/v1/completions", "", &huge), 413, "longer");
    assert_eq!(server.json("/v1/chat/completions", &hello(2))["usage"]["completion_tokens"], 2);
}

#[test]
fn only_those_with_the_key_may_ask() {
    let home = Home::new();
    let model = home.folder_model();
    let server = Server::start(&home, &model, &["--api-key", "s3cret"]);
    assert!(!server.report.contains("s3cret"));
    assert_eq!(server.get("/health").status, 200);
    for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic s3cret\r\n", "x-api-key: s3cre\r\n"] {
        assert_refused(&server.ask("GET", "/v1/models", headers, ""), 401, "key");
        assert_refused(&server.ask("GET", "/no/such/path", headers, ""), 401, "key");
    }
    for headers in ["Authorization: Bearer s3cret\r\n", "authorization: bearer s3cret\r\n", "X-Api-Key: s3cret\r\n"] {
        assert_eq!(server.ask("GET", "/v1/models", headers, "").status, 200, "{headers}");
    }
}

#[test]
fn other_hosts_and_other_pages_may_not_ask() {
    let home = Home::new();
    let model = home.folder_model();
    let server = Server::start(&home, &model, &["--cors", "http://app.example"]);
    let models = |headers: &str| server.ask("GET", "/v1/models", headers, "");
    assert_refused(&models("Host: evil.example\r\n"), 403, "Host");
    assert_refused(&models("Host:\r\n"), 403, "Host");
    assert_eq!(models("Host: localhost:1\r\n").status, 200);
    assert_refused(&models("Origin: http://evil.example\r\n"), 403, "Origin");
    assert_refused(&models("Origin: null\r\n"), 403, "Origin");
    assert!(!models("").headers.contains("access-control"));
    let allowed = models("Origin: http://app.example\r\n");
    assert_eq!(allowed.status, 200);
    assert!(allowed.headers.contains("access-control-allow-origin: http://app.example"), "{}", allowed.headers);
    let preflight = "Origin: http://app.example\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-a\r\n";
    let preflight = server.ask("OPTIONS", "/v1/chat/completions", preflight, "");
    assert_eq!(preflight.status, 204);
    assert!(preflight.headers.contains("access-control-allow-headers: x-a"), "{}", preflight.headers);
    let preflight = server.ask("OPTIONS", "/v1/chat/completions", "Origin: http://evil.example\r\n", "");
    assert_eq!(preflight.status, 403);
}

#[test]
fn an_address_that_others_reach_needs_a_key_or_a_word() {
    let home = Home::new();
    let model = home.folder_model();
    let refusal = home.refusal(2, &["serve", &model, "--host", "0.0.0.0", "--port", "0"]);
    assert!(refusal.contains("--api-key") && refusal.contains("--allow-remote"), "{refusal}");
    for more in [["--host", "0.0.0.0", "--allow-remote"], ["--host", "0.0.0.0", "--api-key=k"]] {
        let server = Server::start(&home, &model, &more);
        assert_eq!(server.address.ip().to_string(), "0.0.0.0");
    }
    let taken = Server::start(&home, &model, &[]);
    let refusal = home.refusal(2, &["serve", &model, "--device", "cpu", "--port", &taken.address.port().to_string()]);
    assert!(refusal.contains("--port") && refusal.contains("another program"), "{refusal}");
    assert!(home.refusal(2, &["serve", &model, "--cors", "app.example"]).contains("--cors"));
    assert!(home.refusal(2, &["serve", &model, "--host", "no.such.host.invalid"]).contains("--host"));
    assert!(!home.refusal(2, &["serve", &model, "--api-key", "a secret"]).contains("a secret"));
}

#[test]
fn a_connection_stays_where_a_body_is_not_wanted() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "64", "--api-key", "secret"]);
    let mut stream = server.connect();
    let body = "x".repeat(200_000);
    for (path, key, status) in [("/v1/nothing", "secret", 404), ("/v1/models", "secret", 405), ("/v1/completions", "wrong", 401)] {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let response = next_response(&mut stream);
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {response}");
    }
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(next_response(&mut stream).starts_with("HTTP/1.1 200 "));
}

/// Head and body of a response whose length is told, on a connection that stays open.
fn next_response(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {:?}", text(&bytes)));
        bytes.push(byte[0]);
    }
    let head = text(&bytes).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length").parse().expect("a number");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("the body");
    text(&bytes) + &text(&body)
}
