//! A server at work: clients that leave or dawdle, a full queue, its end.

use std::io::Read;
use std::net::TcpStream;

use serde_json::{Value, json};

use super::client::{Reply, Server};
use super::{hello, with};
use crate::common::program::Home;

/// An answer that takes seconds, until the context is full.
fn long(is_streamed: bool) -> Value {
    json!({ "prompt": "hello", "temperature": 0, "ignore_eos": true, "stream": is_streamed })
}

/// Sends a request for a long stream, and reads its beginning.
fn begun(server: &Server) -> TcpStream {
    let mut stream = server.send("POST", "/v1/completions", "", &long(true).to_string());
    stream.read_exact(&mut [0; 64]).expect("a beginning");
    stream
}

#[test]
fn a_client_that_leaves_frees_its_sequence() {
    let home = Home::new();
    let server = Server::start(&home, &home.larger_model(), &["--parallel", "1"]);
    for is_streamed in [true, false] {
        let stream = match is_streamed {
            true => begun(&server),
            false => server.send("POST", "/v1/completions", "", &long(false).to_string()),
        };
        server.wait_for("tierflow_sequences_in_use", 1);
        drop(stream);
        server.wait_for("tierflow_sequences_in_use", 0);
        let n_generated = server.metric("tierflow_generated_tokens_total");
        assert!(n_generated < 4000, "{n_generated} tokens were generated");
        // The sequence answers others.
        assert_eq!(server.json("/v1/chat/completions", &hello(2))["usage"]["completion_tokens"], 2);
    }
    assert_eq!(server.metric("tierflow_answers_total{end=\"abandoned\"}"), 2);
}

#[test]
fn one_that_reads_nothing_holds_up_nobody() {
    let home = Home::new();
    let server = Server::start(&home, &home.larger_model(), &["--parallel", "2"]);
    let dawdler = begun(&server);
    for _ in 0..3 {
        assert_eq!(server.json("/v1/chat/completions", &hello(8))["usage"]["completion_tokens"], 8);
    }
    assert_eq!(server.metric("tierflow_sequences_in_use"), 1);
    drop(dawdler);
    server.wait_for("tierflow_sequences_in_use", 0);
}

#[test]
fn sequences_side_by_side_get_what_they_get_alone() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["--parallel", "4"]);
    let asked = |index: u32| json!({ "prompt": format!("words {index}"), "temperature": 1, "seed": index, "max_tokens": 24 });
    let alone: Vec<Value> = (0..6).map(|index| server.json("/v1/completions", &asked(index))["choices"].clone()).collect();
    let streams: Vec<TcpStream> = (0..6).map(|index| server.send("POST", "/v1/completions", "", &asked(index).to_string())).collect();
    let together: Vec<Value> = streams.into_iter().map(|stream| Reply::read(stream).json()["choices"].clone()).collect();
    assert_eq!(together, alone);
}

#[test]
fn a_cache_that_is_too_small_for_all_contexts_changes_no_answer() {
    let home = Home::new();
    let model = home.folder_model();
    let plain = Server::start(&home, &model, &["--parallel", "4", "-c", "96"]);
    let small = Server::start(&home, &model, &["--parallel", "4", "-c", "96", "--kv-size", "128"]);
    let size = |server: &Server| server.metric("tierflow_kv_cache_size_bytes");
    assert_eq!(size(&plain), 3 * size(&small));
    // Some say how long they become, the others may fill the context and wait for each other.
    let asked = |index: u32| match index % 2 {
        0 => json!({ "prompt": format!("words {index}"), "temperature": 0, "ignore_eos": true, "max_tokens": 20 }),
        _ => json!({ "prompt": format!("{index} words"), "temperature": 0, "ignore_eos": true }),
    };
    let answers = |server: &Server| -> Vec<Value> {
        let streams: Vec<TcpStream> = (0..8).map(|index| server.send("POST", "/v1/completions", "", &asked(index).to_string())).collect();
        streams.into_iter().map(|stream| Reply::read(stream).json()["choices"].clone()).collect()
    };
    assert_eq!(answers(&small), answers(&plain));
    let refused = home.refusal(2, &["serve", "--device", "cpu", &model, "-c", "96", "--kv-size", "64"]);
    assert!(refused.contains("64 tokens of all sequences together are fewer than the context of one, 96"), "{refused}");
}

/// Chats that say nothing of their length begin together where a cache has room for one context, and none is broken off.
#[test]
fn chats_without_a_limit_begin_together_in_a_small_cache() {
    let home = Home::new();
    let model = home.folder_model();
    let sizes = ["--parallel", "3", "-c", "320"];
    let plain = Server::start(&home, &model, &sizes);
    let small = Server::start(&home, &model, &[&sizes[..], &["--kv-size", "480", "--cache-ram", "64"]].concat());
    let asked = |index: u32| {
        let messages = json!([{ "role": "user", "content": format!("{index}") }]);
        json!({ "messages": messages, "temperature": 0, "ignore_eos": true })
    };
    let answers = |server: &Server| -> Vec<Value> {
        let streams: Vec<TcpStream> =
            (0..3).map(|index| server.send("POST", "/v1/chat/completions", "", &asked(index).to_string())).collect();
        streams.into_iter().map(|stream| Reply::read(stream).json()["choices"].clone()).collect()
    };
    assert_eq!(answers(&small), answers(&plain));
    let n_preemptions = |server: &Server| server.metric("tierflow_preemptions_total ");
    assert!(n_preemptions(&plain) == 0 && n_preemptions(&small) > 0, "{}", small.get("/metrics").body);
    assert_eq!(small.metric("tierflow_sequences_paused "), 0);
    assert!(small.get("/slots").json()["slots"].as_array().unwrap().iter().all(|slot| slot["is_paused"] == false));
}

#[test]
fn drafts_change_no_answer_and_are_counted() {
    let home = Home::new();
    let model = home.circling_model();
    let plain = Server::start(&home, &model, &["--parallel", "2"]);
    let drafts = Server::start(&home, &model, &["--parallel", "2", "--spec-type", "ngram-simple", "--draft-min", "1"]);
    let schema = json!({ "type": "array", "items": { "enum": ["one", "two"] } });
    let asked = [
        json!({ "prompt": "words", "temperature": 0, "ignore_eos": true, "n_predict": 64 }),
        json!({ "prompt": "words", "temperature": 0, "json_schema": schema, "n_predict": 64 }),
        json!({ "prompt": "words 2", "temperature": 1, "seed": 2, "n_predict": 32 }),
        json!({ "prompt": "words 3", "temperature": 1, "seed": 3, "n_predict": 32 }),
    ];
    let answers = |server: &Server| -> Vec<Value> {
        let streams: Vec<TcpStream> = asked.iter().map(|asked| server.send("POST", "/completion", "", &asked.to_string())).collect();
        streams.into_iter().map(|stream| Reply::read(stream).json()["content"].clone()).collect()
    };
    assert_eq!(answers(&drafts), answers(&plain));
    let count = |server: &Server, outcome: &str| server.metric(&format!("tierflow_draft_tokens_total{{outcome=\"{outcome}\"}}"));
    assert_eq!([count(&plain, "accepted"), count(&plain, "rejected")], [0, 0]);
    assert!(count(&drafts, "accepted") > 10, "{}", drafts.get("/metrics").body);
    let n_forwards = drafts.metric("tierflow_answer_forwards_total");
    // The first tokens come of the forwards of prompts.
    assert_eq!(n_forwards + count(&drafts, "accepted") + 4, drafts.metric("tierflow_generated_tokens_total"));
    assert_eq!(plain.metric("tierflow_answer_forwards_total"), n_forwards + count(&drafts, "accepted"));
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_again() {
    let home = Home::new();
    let server = Server::start(&home, &home.larger_model(), &["--parallel", "1", "--queue", "1"]);
    let first = begun(&server);
    let second = server.send("POST", "/v1/chat/completions", "", &hello(2).to_string());
    server.wait_for("tierflow_requests_waiting", 1);
    let refused = server.post("/v1/chat/completions", &hello(2));
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.headers.contains("retry-after: "), "{}", refused.headers);
    let slots = server.get("/slots").json();
    assert_eq!((slots["n_waiting"].as_u64(), slots["slots"][0]["is_processing"].as_bool()), (Some(1), Some(true)));
    // One that waits and leaves makes room; what runs goes on.
    drop(second);
    server.wait_for("tierflow_requests_waiting", 0);
    let third = server.send("POST", "/v1/chat/completions", "", &hello(2).to_string());
    server.wait_for("tierflow_requests_waiting", 1);
    drop(first);
    assert_eq!(Reply::read(third).json()["usage"]["completion_tokens"], 2);
}

#[cfg(unix)]
#[test]
fn what_runs_is_finished_before_the_end() {
    let home = Home::new();
    let model = home.larger_model();
    for signal in ["TERM", "INT"] {
        let server = Server::start(&home, &model, &["--parallel", "1"]);
        let asked = with(hello(300), &json!({ "ignore_eos": true, "stream": true, "stream_options": { "include_usage": true } }));
        let mut stream = server.send("POST", "/v1/chat/completions", "", &asked.to_string());
        let mut first = [0; 1];
        stream.read_exact(&mut first).unwrap();
        let waiting = server.send("POST", "/v1/chat/completions", "", &hello(2).to_string());
        server.wait_for("tierflow_requests_waiting", 1);
        server.signal(signal);
        assert!(server.lines.lock().unwrap().recv().unwrap().contains("ending"));
        assert_eq!(server.get("/health").status, 503);
        let refused = server.post("/v1/chat/completions", &hello(2));
        assert_eq!((refused.status, Reply::read(waiting).status), (503, 503), "{refused:?}");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        let rest = String::from_utf8(rest).unwrap();
        assert!(rest.contains("\"completion_tokens\":300") && rest.contains("[DONE]"), "{rest}");
        assert_eq!(server.end(), Some(0));
    }
}

#[cfg(unix)]
#[test]
fn a_second_ctrl_c_ends_at_once() {
    let home = Home::new();
    let server = Server::start(&home, &home.larger_model(), &[]);
    let _stream = begun(&server);
    server.signal("INT");
    assert!(server.lines.lock().unwrap().recv().unwrap().contains("ending"));
    server.signal("INT");
    assert_eq!(server.end(), Some(130));
}

#[test]
fn the_server_tells_of_itself() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["--alias", "tiny", "-c", "128"]);
    assert_eq!(server.get("/health").json()["status"], "ok");
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "tiny");
    let plan = server.get("/plan").json();
    assert_eq!(plan["schema"], "tierflow.plan/5");
    assert_eq!(server.get("/slots").json()["slots"].as_array().unwrap().len(), 4);
    assert_eq!(server.get("/slots").json()["n_ctx"], 128);
    let pieces = server.json("/tokenize", &json!({ "content": "hello", "with_pieces": true }));
    let text: String = pieces["tokens"].as_array().unwrap().iter().map(|token| token["piece"].as_str().unwrap()).collect();
    assert_eq!(text, "hello");
    assert!(server.get("/metrics").body.contains("# TYPE tierflow_prompt_tokens_total counter"));
}

#[test]
fn each_slot_tells_what_it_holds_of_the_kv_cache() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "64", "-np", "2", "--kv-dtype", "f16"]);
    // Four layers keep keys and values of two heads with 16 values each, in f32 on the host.
    let of_position = 4 * 2 * 2 * 16 * 4;
    let size = server.get("/slots").json()["kv_cache_size_bytes"].as_u64().unwrap();
    assert_eq!((size, server.metric("tierflow_kv_cache_size_bytes ")), (2 * 64 * of_position, size));
    assert_eq!([server.metric("tierflow_kv_cache_tokens "), server.metric("tierflow_kv_cache_used_bytes ")], [0, 0]);
    for (prompt, n_tokens) in [("one", 5), ("two other words", 20)] {
        let asked = json!({ "prompt": prompt, "temperature": 0, "ignore_eos": true, "max_tokens": n_tokens, "stream": true });
        assert_eq!(server.post("/v1/completions", &asked).status, 200);
    }
    let slots = server.get("/slots").json();
    let held: Vec<u64> = (0..2).map(|slot| slots["slots"][slot]["n_cached"].as_u64().unwrap()).collect();
    assert!(held.iter().all(|n_cached| (5..64).contains(n_cached)) && held[0] != held[1], "{slots}");
    for (slot, n_cached) in held.iter().enumerate() {
        assert_eq!(slots["slots"][slot]["kv_cache_bytes"], n_cached * of_position);
    }
    assert_eq!(server.metric("tierflow_kv_cache_tokens "), held.iter().sum::<u64>());
    // What they take are whole blocks of 32 positions.
    let n_blocks: u64 = held.iter().map(|n_cached| n_cached.div_ceil(32)).sum();
    assert_eq!(server.metric("tierflow_kv_cache_used_bytes "), n_blocks * 32 * of_position);
}

#[test]
fn a_slot_tells_what_it_holds_while_it_answers() {
    let home = Home::new();
    let server = Server::start(&home, &home.larger_model(), &["--parallel", "1"]);
    let mut stream = begun(&server);
    // By then, several tokens have come.
    stream.read_exact(&mut [0; 2000]).unwrap();
    let slot = server.get("/slots").json()["slots"][0].take();
    assert!(slot["is_processing"] == true && slot["n_cached"].as_u64() > Some(0) && slot["kv_cache_bytes"].as_u64() > Some(0), "{slot}");
    drop(stream);
}

#[test]
fn a_browser_gets_a_page_and_what_it_reads_is_there() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["--api-key", "s3cret"]);
    assert_eq!(server.get("/").body, "tierflow is running\n");
    let page = server.ask("GET", "/", "Accept: text/html,*/*\r\n", "");
    assert!(page.status == 200 && page.headers.contains("content-type: text/html"), "{page:?}");
    assert!(page.headers.contains("content-security-policy: default-src 'none'"), "{}", page.headers);
    assert!(page.body.starts_with("<!doctype html>") && !page.body.contains("http://") && !page.body.contains("https://"));
    let get = |path: &str| server.ask("GET", path, "Authorization: Bearer s3cret\r\n", "");
    let models = get("/v1/models").json();
    assert!(models["data"][0]["id"].is_string() && models["data"][0]["context_length"].is_u64(), "{models}");
    let plan = get("/plan").json();
    let placements = plan["placements"].as_array().unwrap();
    assert!(placements.iter().all(|unit| unit["execute_on"].is_string() && unit["stored_on"].is_array()), "{plan}");
    let slots = get("/slots").json();
    assert!(
        slots["n_waiting"].is_u64() && slots["slots"][0]["is_processing"].is_boolean() && slots["slots"][0]["n_cached"].is_u64(),
        "{slots}"
    );
    let metrics = get("/metrics").body;
    for name in ["generated_tokens_total", "prompt_tokens_total{source=\"computed\"}", "prompt_tokens_total{source=\"cache\"}"] {
        let name = format!("tierflow_{name}");
        assert!(page.body.contains(&name) && metrics.contains(&format!("\n{name} ")), "{name}: {metrics}");
    }
}
