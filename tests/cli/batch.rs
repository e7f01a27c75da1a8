//! `tierflow batch`: requests of a file, answered in order into another one.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::program::Home;
use crate::lora::adapter_with_norm;
use crate::serve::client::Server;
use crate::serve::with;

/// A request as OpenAI's batches have it.
fn request(id: &str, more: &Value) -> Value {
    let body = with(json!({ "messages": [{ "role": "user", "content": id }], "temperature": 0, "max_tokens": 8 }), more);
    json!({ "custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body })
}

fn written(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn answers(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("answers");
    assert!(text.ends_with('\n'), "{text}");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// What does not differ from run to run.
fn content(answers: &[Value]) -> Vec<Value> {
    answers
        .iter()
        .map(|answer| {
            json!([answer["custom_id"], answer["response"]["body"]["choices"], answer["response"]["body"]["usage"]["completion_tokens"]])
        })
        .collect()
}

#[test]
fn answers_come_in_order_and_are_those_of_the_server() {
    let home = Home::new();
    let model = home.folder_model();
    let (input, output) = (home.path("requests.jsonl"), home.path("answers.jsonl"));
    // Long and short ones, so that they end in another order than they begin.
    let requests: Vec<Value> =
        (0..9).map(|i| request(&format!("request {i}"), &json!({ "max_tokens": if i % 3 == 0 { 60 } else { 2 } }))).collect();
    std::fs::write(&input, written(&requests)).unwrap();
    let paths = [input.to_str().unwrap(), output.to_str().unwrap()];
    let ran = home.run(&["batch", &model, "--input", paths[0], "--output", paths[1], "--device", "cpu", "-np", "3", "-c", "128"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("9 requests answered, 0 of them with an error"), "{}", ran.stderr);
    let answers = answers(&output);
    let ids: Vec<&str> = answers.iter().map(|answer| answer["custom_id"].as_str().unwrap()).collect();
    assert_eq!(ids, requests.iter().map(|request| request["custom_id"].as_str().unwrap()).collect::<Vec<_>>());
    let server = Server::start(&home, &model, &[]);
    for (request, answer) in requests.iter().zip(&answers) {
        assert_eq!((&answer["response"]["status_code"], &answer["error"]), (&json!(200), &Value::Null));
        let expected = server.json("/v1/chat/completions", &request["body"]);
        assert_eq!(answer["response"]["body"]["choices"], expected["choices"]);
    }
}

#[test]
fn a_batch_that_was_killed_goes_on_where_it_was() {
    let home = Home::new();
    let model = home.folder_model();
    let (input, whole, cut) = (home.path("requests.jsonl"), home.path("whole.jsonl"), home.path("cut.jsonl"));
    let requests: Vec<Value> = (0..6).map(|i| request(&format!("request {i}"), &json!({}))).collect();
    std::fs::write(&input, written(&requests)).unwrap();
    let batch = |output: &Path| {
        home.run(&["batch", &model, "-i", input.to_str().unwrap(), "-o", output.to_str().unwrap(), "--device", "cpu", "-np", "2"])
    };
    assert_eq!(batch(&whole).code, Some(0));
    let text = std::fs::read_to_string(&whole).unwrap();
    // Killed in the middle of each line, and between two.
    for n_bytes in [0, 10, text.len() / 2, text.find('\n').unwrap() + 1, text.len() - 1, text.len()] {
        std::fs::write(&cut, &text[..n_bytes]).unwrap();
        let ran = batch(&cut);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert!(std::fs::read_to_string(&cut).unwrap().starts_with(&text[..text[..n_bytes].rfind('\n').map_or(0, |at| at + 1)]));
        assert_eq!(content(&answers(&cut)), content(&answers(&whole)), "cut at {n_bytes}");
    }
}

#[cfg(unix)]
#[test]
fn nothing_is_lost_or_doubled_when_it_is_killed() {
    let home = Home::new();
    let model = home.larger_model();
    let (input, output) = (home.path("requests.jsonl"), home.path("answers.jsonl"));
    let requests: Vec<Value> = (0..6).map(|i| request(&format!("request {i}"), &json!({ "max_tokens": 8 }))).collect();
    std::fs::write(&input, written(&requests)).unwrap();
    let arguments =
        ["batch", &model, "-i", input.to_str().unwrap(), "-o", output.to_str().unwrap(), "--device", "cpu", "-np", "2", "-c", "256"];
    let mut child = home.command(&arguments).spawn().unwrap();
    while std::fs::metadata(&output).map_or(0, |file| file.len()) == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended without an answer");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let n_bytes = std::fs::metadata(&output).unwrap().len();
    assert_eq!(home.run(&arguments).code, Some(0));
    assert!(std::fs::metadata(&output).unwrap().len() > n_bytes);
    let ids: Vec<Value> = answers(&output).iter().map(|answer| answer["custom_id"].clone()).collect();
    assert_eq!(ids, requests.iter().map(|request| request["custom_id"].clone()).collect::<Vec<_>>());
}

#[test]
fn a_line_that_is_no_request_is_answered_with_an_error() {
    let home = Home::new();
    let model = home.folder_model();
    let (input, output) = (home.path("requests.jsonl"), home.path("answers.jsonl"));
    let mut with_url = request("url", &json!({}));
    with_url["url"] = "/v1/images".into();
    let lines = [
        "{\"custom_id\": \"cut".to_owned(),
        "[]".to_owned(),
        "{\"custom_id\": \"empty\"}".to_owned(),
        with_url.to_string(),
        request("stream", &json!({ "stream": true })).to_string(),
        request("field", &json!({ "no_such_field": 1 })).to_string(),
        String::new(),
        "x".repeat(9 << 20),
        request("good", &json!({})).to_string(),
    ];
    std::fs::write(&input, lines.join("\n")).unwrap();
    let arguments = ["batch", &model, "-i", input.to_str().unwrap(), "-o", output.to_str().unwrap(), "--device", "cpu"];
    let ran = home.run(&arguments);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let told: Vec<(Value, u64)> =
        answers(&output).iter().map(|answer| (answer["custom_id"].clone(), answer["response"]["status_code"].as_u64().unwrap())).collect();
    let id = |id: &str| Value::from(id);
    assert_eq!(
        told,
        [
            (Value::Null, 400),
            (Value::Null, 400),
            (id("empty"), 400),
            (id("url"), 400),
            (id("stream"), 400),
            (id("field"), 400),
            (Value::Null, 400),
            (id("good"), 200)
        ]
    );
    // Answers to other requests are not gone on with.
    std::fs::write(&input, request("another", &json!({})).to_string()).unwrap();
    let refusal = home.refusal(2, &arguments);
    assert!(refusal.contains("--output") && refusal.contains("another request"), "{refusal}");
    assert!(home.refusal(1, &["batch", &model, "-i", "no such file", "-o", output.to_str().unwrap()]).contains("no such file"));
}

#[test]
fn an_adapter_that_replaces_norms_is_that_of_all_requests() {
    let home = Home::new();
    let (model, normed) = (home.folder_model(), adapter_with_norm(&home, "normed", 0.5));
    let (input, output) = (home.path("requests.jsonl"), home.path("answers.jsonl"));
    let requests = [request("one", &json!({ "ignore_eos": true })), request("two", &json!({ "lora": [{ "id": 0, "scale": 0.25 }] }))];
    std::fs::write(&input, written(&requests)).unwrap();
    let paths = [input.to_str().unwrap(), output.to_str().unwrap()];
    let ran = home.run(&["batch", &model, "-i", paths[0], "-o", paths[1], "--device", "cpu", "-np", "2", "--lora", &normed]);
    assert!(ran.code == Some(0) && ran.stderr.contains("1 of them with an error"), "{}", ran.stderr);
    let answers = answers(&output);
    let run = ["run", &model, "--device", "cpu", "--temp", "0", "-n", "8", "--ignore-eos", "-p", "one", "--json"];
    let [with, without] =
        [&["--lora", normed.as_str()][..], &[]].map(|lora| home.json("tierflow.run/1", &[&run[..], lora].concat())["text"].take());
    let said = &answers[0]["response"]["body"]["choices"][0]["message"]["content"];
    assert!(*said == with && with != without, "{said} {with} {without}");
    assert_eq!(answers[1]["response"]["status_code"], 400);
    assert!(answers[1]["response"]["body"]["error"]["message"].as_str().unwrap().contains("replaces norms"), "{}", answers[1]);
}
