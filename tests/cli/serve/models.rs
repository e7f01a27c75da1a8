//! Several models behind one address.

use std::path::Path;

use serde_json::{Value, json};
use xtask::models::{GgufType, LlamaShape, Stored, write_gguf, write_hf};

use super::client::Server;
use super::{hello, with};
use crate::common::program::Home;

/// A folder with three models.
fn folder(home: &Home) -> String {
    let folder = home.path("models");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, seed) in [("one", 1), ("two", 2)] {
        write_gguf(&folder.join(format!("{name}.gguf")), &LlamaShape::tiny(), seed, GgufType::Q8_0).unwrap();
    }
    write_hf(&folder.join("three"), &LlamaShape::tiny(), 3, Stored::BF16, 1).unwrap();
    std::fs::write(folder.join("notes.txt"), "no model").unwrap();
    folder.to_str().unwrap().to_owned()
}

fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|model| model[key].as_str().unwrap().to_owned()).collect()
}

fn loaded(server: &Server) -> Vec<String> {
    names(&server.get("/api/ps").json()["models"], "name")
}

/// Waits until these are loaded.
#[track_caller]
fn wait_until_loaded(server: &Server, wanted: &[&str]) {
    for _ in 0..2000 {
        if loaded(server) == wanted {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{:?} instead of {wanted:?}", loaded(server));
}

fn asked(model: &str, more: &Value) -> Value {
    with(with(hello(6), &json!({ "model": model })), more)
}

#[test]
fn models_are_loaded_by_name_and_unloaded_after_a_while() {
    let home = Home::new();
    let folder = folder(&home);
    let server = Server::start_with(&home, &["--models-dir", &folder, "--keep-alive", "1h", "-c", "256"]);
    assert_eq!(names(&server.get("/v1/models").json()["data"], "id"), ["one", "three", "two"]);
    assert_eq!(names(&server.get("/api/tags").json()["models"], "name"), ["one:latest", "three:latest", "two:latest"]);
    assert_eq!(loaded(&server), [""; 0]);
    // Each answers as it does alone.
    let said = |server: &Server, model: &str| server.json("/v1/chat/completions", &asked(model, &json!({})));
    for model in ["one", "two", "three"] {
        let file = Path::new(&folder).join(if model == "three" { model.to_owned() } else { format!("{model}.gguf") });
        let alone = Server::start(&home, file.to_str().unwrap(), &["-c", "256"]);
        let (found, expected) = (said(&server, model), said(&alone, model));
        assert_eq!((&found["choices"], &found["model"]), (&expected["choices"], &json!(model)));
    }
    assert_eq!(loaded(&server), ["one:latest", "three:latest", "two:latest"]);
    assert_eq!(server.get("/v1/models/two").json()["context_length"], 256);
    // One that is asked by Ollama's clients to leave, and one that stays for a moment.
    let farewell = server.json("/api/generate", &json!({ "model": "three:latest", "keep_alive": 0 }));
    assert_eq!(farewell["done"], true);
    wait_until_loaded(&server, &["one:latest", "two:latest"]);
    assert_eq!(server.json("/api/generate", &json!({ "model": "three", "keep_alive": 0 }))["done_reason"], "unload");
    let brief = json!({ "model": "two", "messages": [{ "role": "user", "content": "hello" }], "keep_alive": "300ms", "stream": false });
    server.json("/api/chat", &with(brief, &json!({ "options": { "num_predict": 3 } })));
    wait_until_loaded(&server, &["one:latest"]);
    // The only one that is loaded is meant where none is named.
    assert_eq!(server.get("/slots").json()["n_ctx"], 256);
    assert_eq!(server.json("/completion", &json!({ "prompt": "hello", "n_predict": 2 }))["model"], "one");
    assert!(server.get("/plan?model=two").json()["placements"].is_array());
    assert_eq!(server.get("/slots").status, 400);
    assert!(server.metric("tierflow_generated_tokens_total") > 20);
}

#[test]
fn requests_wait_while_a_model_is_loaded() {
    let home = Home::new();
    let folder = folder(&home);
    let (one, two) = (format!("{folder}/one.gguf"), format!("{folder}/two.gguf"));
    let server = Server::start_with(&home, &[&one, &two, "-c", "256", "-np", "2"]);
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let ask = |index: usize| {
            let (server, model) = (&server, ["one", "two"][index % 2]);
            scope.spawn(move || server.json("/v1/chat/completions", &asked(model, &json!({}))))
        };
        let asking: Vec<_> = (0..8).map(ask).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    for (index, answer) in answers.iter().enumerate() {
        assert_eq!((&answer["model"], &answer["choices"]), (&json!(["one", "two"][index % 2]), &answers[index % 2]["choices"]));
    }
    assert_ne!(answers[0]["choices"], answers[1]["choices"], "two models");
    // A client that leaves while its model is loaded ends nothing.
    server.json("/api/generate", &json!({ "model": "one", "keep_alive": 0 }));
    wait_until_loaded(&server, &["two:latest"]);
    server.drain_lines();
    let client = server.send("POST", "/v1/chat/completions", "", &asked("one", &json!({})).to_string());
    server.wait_for_line("loading `one`");
    drop(client);
    wait_until_loaded(&server, &["one:latest", "two:latest"]);
    #[cfg(unix)]
    {
        server.signal("TERM");
        assert_eq!(server.end(), Some(0));
    }
}

#[test]
fn the_least_recently_used_model_makes_room() {
    let home = Home::new();
    let folder = folder(&home);
    // What one of them takes, and room for two, but hardly for the weights of a third.
    let plan = home.stdout(&["plan", &format!("{folder}/one.gguf"), "--device", "cpu", "-c", "256", "-np", "4", "--json"]);
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let device = plan["plan"]["devices"].as_array().unwrap().iter().find(|device| device["device"] == "cpu").unwrap().clone();
    let used: u64 = device["used"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert!(used > 0, "{device}");
    let budget = format!("cpu={}", used * 21 / 10);
    let server = Server::start_with(&home, &["--models-dir", &folder, "-c", "256", "--max-memory", &budget]);
    for (model, wanted) in [
        ("one", &["one:latest"][..]),
        ("two", &["one:latest", "two:latest"]),
        ("one", &["one:latest", "two:latest"]),
        ("three", &["one:latest", "three:latest"]),
    ] {
        server.json("/v1/chat/completions", &asked(model, &json!({})));
        assert_eq!(loaded(&server), wanted, "after {model}");
    }
}

#[test]
fn unknown_models_are_refused_in_the_shape_of_the_api() {
    let home = Home::new();
    let folder = folder(&home);
    std::fs::write(Path::new(&folder).join("broken.gguf"), "GGUF").unwrap();
    let server = Server::start_with(&home, &["--models-dir", &folder]);
    let message = json!([{ "role": "user", "content": "hello" }]);
    let body = |model: Value| json!({ "model": model, "messages": message, "max_tokens": 2 });
    for path in ["/v1/chat/completions", "/v1/messages", "/api/chat"] {
        let reply = server.post(path, &body(json!("four")));
        let error = &reply.json()["error"];
        let words = error["message"].as_str().or(error.as_str()).unwrap().to_owned();
        assert!(reply.status == 404 && words.contains("`four`") && words.contains("`two`"), "{path}: {reply:?}");
        assert_eq!(server.post(path, &body(json!(7))).status, 400);
        assert_eq!(server.post(path, &json!({ "messages": message })).status, 400, "several are served");
        // A file that cannot be loaded fails for those who ask it, and for nobody else.
        let reply = server.post(path, &body(json!("broken")));
        assert!(reply.status == 500 && reply.body.contains("broken.gguf"), "{reply:?}");
    }
    assert_eq!(server.get("/v1/models/four").status, 404);
    assert_eq!(server.get("/no/such/path").status, 404);
    assert_eq!(server.post("/api/chat", &with(body(json!("one")), &json!({ "keep_alive": "soon" }))).status, 400);
    assert_eq!(server.ask("POST", "/v1/chat/completions", "", "{").status, 400);
    assert_eq!(server.json("/v1/chat/completions", &asked("one", &json!({})))["model"], "one");
    for (arguments, words) in [
        (&["--models-dir", "/no/such/folder"][..], "/no/such/folder"),
        (&["--models-dir", &folder, "--alias", "x"], "--alias"),
        (&["--models-dir", &folder, &format!("{folder}/one.gguf")], "two models are called `one`"),
    ] {
        let ran = home.run(&[&["serve", "--port", "0"], arguments].concat());
        assert!(ran.code != Some(0) && ran.stderr.contains(words), "{}", ran.stderr);
    }
    let ran = home.run(&["serve", &format!("{folder}/one.gguf"), "--port", "0", "--keep-alive", "5m"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("--keep-alive"), "{}", ran.stderr);
}
