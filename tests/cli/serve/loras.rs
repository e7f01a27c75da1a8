//! LoRA adapters that requests choose.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::client::Server;
use super::with;
use crate::common::program::{Home, has_gpu};
use crate::lora::{adapter, adapter_with_norm};

const PROMPT: &str = "hello there, hello there, hello there";

/// A greedy request for so many tokens.
fn request(more: &Value) -> Value {
    with(json!({ "prompt": PROMPT, "temperature": 0, "max_tokens": 12, "ignore_eos": true }), more)
}

#[test]
fn each_request_has_the_adapters_that_it_names() {
    check_choices("cpu");
}

#[test]
fn each_request_has_the_adapters_that_it_names_on_a_gpu() {
    if has_gpu() {
        check_choices("gpu");
    }
}

/// What requests that choose adapters are answered is what `run` answers with these adapters alone.
fn check_choices(device: &str) {
    let home = Home::new();
    let (model, one, other) = (home.folder_model(), adapter(&home, "one", 0.5), adapter(&home, "other", -0.8));
    let computed = ["--device", device, "--kernels", "portable", "--no-measure"];
    let run = |loras: &[&str]| {
        let run = ["run", &model, "--raw", "--temp", "0", "-n", "12", "--ignore-eos", "-p", PROMPT, "--json"];
        home.json("tierflow.run/1", &[&run[..], &computed, loras].concat())["text"].take()
    };
    let expected = [
        (json!({}), run(&["--lora", &one, "--lora", &format!("{other}=0.5")])),
        (json!({ "model": "folder:one" }), run(&["--lora", &one])),
        (json!({ "model": "other" }), run(&["--lora", &format!("{other}=0.5")])),
        (json!({ "lora": [{ "id": 1, "scale": 2.0 }] }), run(&["--lora", &format!("{other}=2")])),
        (json!({ "model": "folder", "lora": [] }), run(&[])),
    ];
    let texts: BTreeSet<&str> = expected.iter().map(|(_, text)| text.as_str().unwrap()).collect();
    assert_eq!(texts.len(), expected.len(), "each adapter changes the text: {texts:?}");

    // With fewer sequences than kinds of requests, each sequence goes from one adapter to another.
    let half = format!("{other}=0.5");
    let server = Server::start(&home, &model, &[&computed[..], &["-np", "2", "--lora", &one, "--lora", &half]].concat());
    let check = |(more, text): &(Value, Value)| {
        assert_eq!(server.json("/v1/completions", &request(more))["choices"][0]["text"], *text, "{more}");
    };
    for _ in 0..2 {
        expected.iter().for_each(check);
    }
    // And at the same time.
    std::thread::scope(|scope| expected.iter().for_each(|case| drop(scope.spawn(|| check(case)))));
    // The same again goes on where it was.
    let again = server.json("/v1/completions", &request(&expected[4].0));
    let cached = server.json("/v1/completions", &request(&expected[4].0))["usage"]["prompt_tokens_details"]["cached_tokens"].take();
    assert_eq!(again["choices"][0]["text"], expected[4].1);
    assert!(cached.as_u64().unwrap() > 0, "{cached}");

    // Changed defaults are those of requests that say nothing, and of no others.
    assert_eq!(server.json("/lora-adapters", &json!([{ "id": 1, "scale": 2.0 }])), json!({ "success": true }));
    check(&(json!({}), expected[3].1.clone()));
    check(&expected[1]);
    assert_eq!(server.json("/lora-adapters", &json!([])), json!({ "success": true }));
    check(&(json!({}), expected[4].1.clone()));
    let completion = json!({ "prompt": PROMPT, "temperature": 0, "n_predict": 12, "ignore_eos": true, "lora": [{ "id": 0, "scale": 1 }] });
    assert_eq!(server.json("/completion", &completion)["content"], expected[1].1, "llama.cpp's path");
}

#[test]
fn adapters_are_listed_and_others_refused() {
    let home = Home::new();
    let (model, one) = (home.folder_model(), adapter(&home, "one", 0.5));
    let server = Server::start(&home, &model, &["--lora", &one]);
    let listed = server.get("/lora-adapters").json();
    assert_eq!(listed, json!([{ "id": 0, "name": "one", "path": one, "scale": 1.0 }]));
    let models = server.get("/v1/models").json();
    assert_eq!([&models["data"][0]["id"], &models["data"][1]["id"]], ["folder", "folder:one"]);
    assert_eq!(server.get("/v1/models/folder:one").status, 200);
    for (more, status, expected) in [
        (json!({ "model": "folder:two" }), 404, "folder:two"),
        (json!({ "model": "another:one" }), 404, "another:one"),
        (json!({ "lora": [{ "id": 1, "scale": 1 }] }), 400, "lora[0].id"),
        (json!({ "lora": [{ "id": 0 }] }), 400, "lora[0].scale"),
        (json!({ "lora": [{ "id": 0, "scale": 1, "x": 2 }] }), 400, "lora[0].x"),
        (json!({ "lora": "one" }), 400, "lora"),
        (json!({ "lora": [{ "id": 0, "scale": 1e300 }] }), 400, "lora[0].scale"),
        (json!({ "lora": [{ "id": 0, "scale": -101 }] }), 400, "must be from -100 to 100"),
    ] {
        let reply = server.post("/v1/completions", &request(&more));
        assert!(reply.status == status && reply.body.contains(expected), "{more}: {reply:?}");
    }
    for (changed, expected) in [
        (json!([{ "id": 1, "scale": 1 }]), "adapters[0].id"),
        (json!([{ "id": 0, "scale": "x" }]), "adapters[0].scale"),
        (json!([3]), "adapters[0]"),
        (json!({ "id": 0 }), "JSON list"),
    ] {
        let reply = server.post("/lora-adapters", &changed);
        assert!(reply.status == 400 && reply.body.contains(expected), "{changed}: {reply:?}");
    }
    assert_eq!(server.get("/lora-adapters").json(), listed, "nothing was changed by those");
    server.json("/lora-adapters", &json!([{ "id": 0, "scale": 0.25 }]));
    assert_eq!(server.get("/lora-adapters").json()[0]["scale"], 0.25);
    drop(server);
    let refused = home.refusal(2, &["serve", &model, &model, "--lora", &one]);
    assert!(refused.contains("--lora: is of one model"), "{refused}");
}

#[test]
fn an_adapter_that_replaces_norms_is_the_same_for_all_requests() {
    let home = Home::new();
    let (model, normed, plain) = (home.folder_model(), adapter_with_norm(&home, "normed", 0.5), adapter(&home, "plain", 0.5));
    let run = |loras: &[&str]| {
        let run = ["run", &model, "--device", "cpu", "--raw", "--temp", "0", "-n", "12", "--ignore-eos", "-p", PROMPT, "--json"];
        home.json("tierflow.run/1", &[&run[..], loras].concat())["text"].take()
    };
    let half = format!("{normed}=0.5");
    let expected = run(&["--lora", &half]);
    assert!(expected != run(&[]) && expected != run(&["--lora", &format!("{plain}=0.5")]), "its norm changes the text");
    let server = Server::start(&home, &model, &["-np", "2", "--lora", &half]);
    let listed = json!([{ "id": 0, "name": "normed", "path": normed, "scale": 0.5 }]);
    assert_eq!(server.get("/lora-adapters").json(), listed);
    for more in [json!({}), json!({ "model": "folder:normed" }), json!({ "lora": [{ "id": 0, "scale": 0.5 }] })] {
        assert_eq!(server.json("/v1/completions", &request(&more))["choices"][0]["text"], expected, "{more}");
    }
    for (path, asked, field) in [
        ("/v1/completions", request(&json!({ "lora": [{ "id": 0, "scale": 1 }] })), "lora"),
        ("/v1/completions", request(&json!({ "lora": [] })), "lora"),
        ("/completion", json!({ "prompt": PROMPT, "lora": [] }), "lora"),
        ("/lora-adapters", json!([{ "id": 0, "scale": 1 }]), "adapters"),
    ] {
        let reply = server.post(path, &asked);
        let error = reply.json()["error"].take();
        assert!(reply.status == 400 && error["param"] == field, "{path} {asked}: {reply:?}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("`normed`, which replaces norms: all requests share it, and have 0.5 of it"), "{message}");
    }
    assert_eq!(server.json("/lora-adapters", &json!([{ "id": 0, "scale": 0.5 }])), json!({ "success": true }));
    assert_eq!(server.get("/lora-adapters").json(), listed);
    assert_eq!(server.json("/v1/completions", &request(&json!({})))["choices"][0]["text"], expected);
    drop(server);
    // Beside others, requests would have to choose.
    let refused = home.refusal(1, &["serve", &model, "--device", "cpu", "--port", "0", "--lora", &normed, "--lora", &plain]);
    assert!(refused.contains("normed") && refused.contains("give it alone, or merge it into the model"), "{refused}");
}
