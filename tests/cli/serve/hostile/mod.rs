//! Hostile requests: every field of every path (`endpoints`) with values of every type (`values`), alone and several at once. None ends the
//! server or makes it hang, none is answered as if the server were at fault, each refusal has its API's own shape, and afterwards plain
//! requests are answered as before.

mod endpoints;
mod values;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use regex::Regex;
use serde_json::Value;

use super::client::{Reply, Server};
use crate::common::Random;
use crate::common::program::Home;
use crate::lora::adapter;
use endpoints::{Endpoint, Field, HERE, of_embeddings, of_models, of_text};

/// Values of any type for each field, besides those that are nearly right.
const N_OF_ANY_TYPE: usize = 5;
/// Requests with several hostile fields at once, for each path.
const N_OF_SEVERAL: usize = 60;
/// Requests at a time.
const N_AT_ONCE: usize = 4;
/// Faults that are shown.
const MAX_SHOWN: usize = 30;

/// What differs from answer to answer to one request.
const VARYING: [&str; 18] = [
    "id",
    "created",
    "created_at",
    "completed_at",
    "modified_at",
    "timings",
    "total_duration",
    "load_duration",
    "prompt_eval_duration",
    "eval_duration",
    "prompt_eval_count",
    "tokens_cached",
    "cached_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "input_tokens",
    "system_fingerprint",
    "request_id",
];

#[test]
fn no_field_of_a_request_for_text_does_harm() {
    let home = Home::new();
    let (model, lora) = (home.folder_model(), adapter(&home, "one", 0.5));
    let server = Server::start(&home, &model, &["-c", "128", "-np", "4", "--lora", &format!("{lora}=0"), "--spec-type", "ngram-simple"]);
    hammer(&server, &of_text(), 1);
}

#[test]
fn no_field_of_a_request_for_embeddings_does_harm() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "128", "--embeddings"]);
    hammer(&server, &of_embeddings(), 2);
    for Endpoint { path, plain, .. } in of_text().into_iter().filter(|endpoint| !ANSWERED_BY_ALL.contains(&endpoint.path)) {
        let reply = server.post(path, &plain);
        assert_eq!((reply.status, shape_of_refusal(path, &reply)), (400, Ok(())), "{path}: {reply:?}");
    }
}

/// Paths that servers of embeddings answer, too.
const ANSWERED_BY_ALL: [&str; 5] = ["/v1/messages/count_tokens", "/api/show", "/tokenize", "/detokenize", "/lora-adapters"];

#[test]
fn no_field_that_names_a_model_does_harm() {
    let home = Home::new();
    let (one, other) = (home.folder_model(), home.gguf_model(xtask::models::GgufType::Q8_0));
    let server = Server::start(&home, &one, &[&other, "-c", "128", "-np", "4"]);
    hammer(&server, &of_models(), 3);
}

/// Asks with hostile values, and lists what went wrong.
#[track_caller]
fn hammer(server: &Server, endpoints: &[Endpoint], seed: u64) {
    let plain = |endpoint: &Endpoint| essence(&server.json(endpoint.path, &endpoint.plain));
    let before: Vec<Value> = endpoints.iter().map(plain).collect();
    let (mut random, mut faults) = (Random(seed), Vec::new());
    for endpoint in endpoints {
        let bodies = hostile(endpoint, &mut random);
        let parts = bodies.chunks(bodies.len().div_ceil(N_AT_ONCE));
        let asked = |part: &[String]| part.iter().filter_map(|body| fault(server, endpoint, body)).collect::<Vec<String>>();
        std::thread::scope(|scope| {
            let threads: Vec<_> = parts.map(|part| scope.spawn(move || asked(part))).collect();
            faults.extend(threads.into_iter().flat_map(|thread| thread.join().expect("a thread of the test")));
        });
        // Defaults that requests changed are as before.
        if server.post(endpoint.path, &endpoint.plain).status != 200 {
            faults.push(format!("{}: a plain request is refused", endpoint.path));
        }
    }
    faults.extend(server.lines.lock().unwrap().try_iter().filter(|line| line.contains("panicked")));
    let n_faults = faults.len();
    faults.truncate(MAX_SHOWN);
    assert!(faults.is_empty(), "{n_faults} faults:\n{}", faults.join("\n"));
    assert_eq!(server.metric("tierflow_responses_total{outcome=\"failed\"}"), 0);
    server.wait_for("tierflow_sequences_in_use", 0);
    for (endpoint, before) in endpoints.iter().zip(before) {
        assert_eq!(plain(endpoint), before, "{}", endpoint.path);
    }
}

/// The bodies of an endpoint's hostile requests.
fn hostile(endpoint: &Endpoint, random: &mut Random) -> Vec<String> {
    let any = values::of_any_type();
    let mut below = |n: usize| random.word() as usize % n;
    let mut bodies = any.clone();
    for field in &endpoint.fields {
        let near = field.kind.near();
        let of_any: Vec<&String> = (0..N_OF_ANY_TYPE).map(|_| &any[below(any.len())]).collect();
        bodies.extend(near.iter().chain(of_any).map(|value| body(endpoint, &[(field, value)], below(2) == 0)));
    }
    for _ in 0..N_OF_SEVERAL {
        let chosen: Vec<&Field> = (0..2 + below(3)).map(|_| &endpoint.fields[below(endpoint.fields.len())]).collect();
        let near: Vec<Vec<String>> = chosen.iter().map(|field| field.kind.near()).collect();
        let mut value = |near: &[String]| if below(3) > 0 { near[below(near.len())].clone() } else { any[below(any.len())].clone() };
        let chosen_values: Vec<String> = near.iter().map(|near| value(near)).collect();
        let pairs: Vec<(&Field, &String)> = chosen.into_iter().zip(&chosen_values).collect();
        bodies.push(body(endpoint, &pairs, below(2) == 0));
    }
    bodies
}

/// A plain request with these values in its fields, streamed where it can be and `streams`.
fn body(endpoint: &Endpoint, values: &[(&Field, &String)], streams: bool) -> String {
    let written = |(field, value): &(&Field, &String)| field.around.to_string().replace(&format!("\"{HERE}\""), value);
    let Value::Object(plain) = &endpoint.plain else { return values.first().map(written).unwrap_or_default() };
    let mut fields: Vec<(String, String)> = plain.iter().map(|(name, value)| (name.clone(), value.to_string())).collect();
    if streams && endpoint.fields.iter().any(|field| field.name == "stream") {
        fields.retain(|(name, _)| name != "stream");
        fields.push(("stream".into(), "true".into()));
    }
    for pair in values {
        fields.retain(|(name, _)| name != pair.0.name);
        fields.push((pair.0.name.into(), written(pair)));
    }
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{}: {value}", Value::from(name.as_str()))).collect();
    format!("{{{}}}", fields.join(", "))
}

/// What is wrong with the answer to a request.
fn fault(server: &Server, endpoint: &Endpoint, body: &str) -> Option<String> {
    let path = endpoint.path;
    let what = || format!("{path} {}", body.chars().take(300).collect::<String>());
    let Ok(reply) = catch_unwind(AssertUnwindSafe(|| server.ask("POST", path, "", body))) else {
        return Some(format!("{}: no answer", what()));
    };
    let outcome = if reply.status == 200 { check_answer(&reply) } else { shape_of_refusal(path, &reply) };
    outcome.err().map(|reason| format!("{}: {reason}: {} {}", what(), reply.status, reply.body.chars().take(300).collect::<String>()))
}

/// An answer is JSON, or lines or events of JSON that tell of no error, but for a form that turns out on the way to have too many ways to go on.
fn check_answer(reply: &Reply) -> Result<(), String> {
    let lines = reply.body.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("event: ") && *line != "[DONE]");
    for line in lines {
        let value: Value = serde_json::from_str(line).map_err(|error| format!("no JSON ({error})"))?;
        let error = value.get("error").filter(|error| !error.is_null()).map(Value::to_string);
        if error.is_some_and(|error| !error.contains("the answer's form: cannot be kept")) {
            return Err("an answer that fails".into());
        }
    }
    Ok(())
}

/// A refusal is the request's fault, and says so as its API does.
fn shape_of_refusal(path: &str, reply: &Reply) -> Result<(), String> {
    if !(400..500).contains(&reply.status) {
        return Err("no refusal".into());
    }
    let value: Value = serde_json::from_str(&reply.body).map_err(|error| format!("no JSON ({error})"))?;
    let error = &value["error"];
    let is_said = |text: &Value| text.as_str().is_some_and(|text| !text.is_empty());
    let is_right = match path {
        _ if path.starts_with("/api/") => is_said(error),
        _ if path.starts_with("/v1/messages") => value["type"] == "error" && is_said(&error["type"]) && is_said(&error["message"]),
        _ => is_said(&error["message"]) && is_said(&error["type"]) && error.get("param").is_some() && error.get("code").is_some(),
    };
    if is_right { Ok(()) } else { Err("another shape".into()) }
}

/// An answer without what differs each time.
fn essence(answer: &Value) -> Value {
    match answer {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| !VARYING.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), essence(value)))
            .collect::<serde_json::Map<String, Value>>()
            .into(),
        Value::Array(list) => list.iter().map(essence).collect(),
        other => other.clone(),
    }
}

#[test]
fn every_path_and_every_field_that_is_read_is_asked() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server");
    let all: Vec<Endpoint> = [of_text(), of_embeddings(), of_models()].into_iter().flatten().collect();
    let routes = std::fs::read_to_string(folder.join("routes.rs")).unwrap();
    let routes = Regex::new(r#"\.route\("([^"]+)", [^\n]*post\("#)
        .unwrap()
        .captures_iter(&routes)
        .map(|found| found[1].to_owned())
        .collect::<BTreeSet<_>>();
    let asked: BTreeSet<String> = all.iter().map(|endpoint| endpoint.path.to_owned()).collect();
    assert!(!routes.is_empty() && asked == routes, "{asked:?} {routes:?}");

    let mut known = BTreeSet::new();
    for field in all.iter().flat_map(|endpoint| &endpoint.fields) {
        known.insert(field.name.to_owned());
        note_keys(&field.around, &mut known);
    }
    let mut read = BTreeSet::new();
    note_read(&folder, &mut read);
    assert!(read.len() > 100, "{read:?}");
    let missing: Vec<&String> = read.difference(&known).collect();
    assert!(missing.is_empty(), "add to the table: {missing:?}");
}

fn note_keys(value: &Value, known: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            known.insert(name.clone());
            note_keys(value, known);
        }),
        Value::Array(list) => list.iter().for_each(|value| note_keys(value, known)),
        _ => {}
    }
}

/// The names of fields that the code takes of requests, but for those of batch files.
fn note_read(folder: &Path, read: &mut BTreeSet<String>) {
    let one = Regex::new(r#"\.(?:text|flag|number|count|integer|list|object|texts|value|only)\("(\w+)""#).unwrap();
    let many =
        Regex::new(r#"(?s)(?:\.ignore\(&|for name in |HARMLESS: [^=]*=\s*)\[([^\]]*)\]|\[("[^\]]*)\]\.map\(\|name\| fields\."#).unwrap();
    let name = Regex::new(r#""(\w+)""#).unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            note_read(&path, read);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("batch.rs") {
            let source = std::fs::read_to_string(&path).unwrap();
            let source = source.split("#[cfg(test)]").next().unwrap_or_default();
            read.extend(one.captures_iter(source).map(|found| found[1].to_owned()));
            let lists = many.captures_iter(source).filter_map(|found| found.get(1).or(found.get(2)).map(|list| list.as_str()));
            read.extend(lists.flat_map(|list| name.captures_iter(list)).map(|found| found[1].to_owned()));
        }
    }
}
