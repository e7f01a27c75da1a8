//! `tierflow train`: records in, an adapter or a model out; also killed in the middle, and with records that are none.

use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Value, json};
use xtask::models::GgufType;

use crate::common::program::{Home, text, wait};

/// Records in a file.
fn data(home: &Home, name: &str, records: &[Value]) -> String {
    let path = home.path(name);
    std::fs::write(&path, records.iter().map(|record| format!("{record}\n")).collect::<String>()).unwrap();
    text(&path)
}

/// A file of the tests' model.
const SHARD: &str = "model-00001-of-00002.safetensors";

fn facts() -> Vec<Value> {
    ["a b", "b c", "c d", "d e", "e f", "f g"].map(|fact| json!({ "prompt": &fact[..1], "completion": &fact[1..] })).into()
}

fn read(out: &str, file: &str) -> Vec<u8> {
    std::fs::read(Path::new(out).join(file)).unwrap()
}

#[test]
fn a_model_learns_what_it_is_told_and_the_log_says_how() {
    let home = Home::new();
    let (model, out) = (home.folder_model(), text(&home.path("out")));
    let data = data(&home, "data.jsonl", &facts());
    let arguments = ["train", &model, "--data", &data, "--out", &out, "--epochs", "8", "--batch", "2", "--accumulate", "3", "--lr", "2e-2"];
    let more = ["--eval-data", &data, "--eval-every", "4", "--scheduler", "cosine", "--warmup", "0.1", "--modules-to-save", "norm"];
    let ran = home.run(&[&arguments[..], &more].concat());
    assert_eq!((ran.code, ran.stdout.trim()), (Some(0), out.as_str()), "{}", ran.stderr);
    assert!(ran.stderr.contains("6 records train") && ran.stderr.contains("step 8: evaluation loss"), "{}", ran.stderr);
    assert!(ran.stderr.contains("8 steps in ") && ran.stderr.contains(" linear layers and of 9 norms"), "{}", ran.stderr);
    let ran = home.run(&["run", &model, "-p", "a", "--lora", &out, "-n", "4", "--seed", "1"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let log = std::fs::read_to_string(Path::new(&out).join("training.jsonl")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let losses: Vec<f64> = lines.iter().filter_map(|line| line["loss"].as_f64()).collect();
    let evaluations: Vec<f64> = lines.iter().filter_map(|line| line["eval_loss"].as_f64()).collect();
    assert_eq!((losses.len(), evaluations.len()), (8, 2));
    assert!(losses[7] < 0.95 * losses[0] && evaluations[1] < evaluations[0], "{losses:?} {evaluations:?}");
    assert!(std::fs::read_to_string(Path::new(&out).join("loss.svg")).unwrap().contains("<polyline"));
    let config: Value = serde_json::from_slice(&std::fs::read(Path::new(&out).join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["peft_type"], &config["r"], &config["lora_alpha"]), (&json!("LORA"), &json!(16), &json!(32)));
    assert_eq!(config["modules_to_save"], json!(["norm"]));
}

#[test]
fn a_model_is_trained_whole_and_its_folder_runs() {
    let home = Home::new();
    let (model, out, some) = (home.folder_model(), text(&home.path("out")), text(&home.path("some")));
    let data = data(&home, "data.jsonl", &facts());
    let train = ["train", &model, "--data", &data, "--epochs", "8", "--batch", "2", "--accumulate", "3", "--lr", "3e-3", "--full"];
    let ran = home.run(&[&train[..], &["--out", &out]].concat());
    assert_eq!((ran.code, ran.stdout.trim()), (Some(0), out.as_str()), "{}", ran.stderr);
    assert!(ran.stderr.contains("6 records train ") && ran.stderr.contains(" values of the model itself, in "), "{}", ran.stderr);
    let losses: Vec<f64> = String::from_utf8(read(&out, "training.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap())
        .collect();
    assert!(losses.len() == 8 && losses[7] < 0.8 * losses[0], "{losses:?}");
    // A model like the one that it was made of, with the same files beside the weights.
    for file in ["config.json", "tokenizer.json"] {
        assert!(read(&out, file) == read(&model, file), "{file}");
    }
    let answer = |model: &str| {
        let ran = home.run(&["run", model, "-p", "a", "-n", "8", "--temp", "0", "--device", "cpu"]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        ran.stdout
    };
    assert!(!answer(&out).is_empty() && answer(&out) != answer(&model));
    // Some modules alone, written with 32 bits.
    let more = ["--out", &some, "--target", "embed_tokens,norm,mlp.up_proj", "--dtype", "f32", "--json"];
    let ran = home.run(&[&train[..], &more].concat());
    assert_eq!((ran.code, ran.stdout.lines().count()), (Some(0), 8), "{}", ran.stderr);
    let config: Value = serde_json::from_slice(&read(&some, "config.json")).unwrap();
    assert!([&config["dtype"], &config["torch_dtype"]].contains(&&json!("float32")), "{config}");
    assert!(read(&some, SHARD).len() > read(&out, SHARD).len());
    answer(&some);
    let planned = |more: &[&str]| -> Value {
        let ran = home.run(&[&["plan", &model, "--train", "--device", "cpu", "--json"], more].concat());
        serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{}", ran.stderr))
    };
    let (whole, adapter) = (planned(&["--full"]), planned(&[]));
    let of = |plan: &Value, what: &str| plan["devices"][0][what].as_u64().unwrap();
    assert!(whole["full"] == true && of(&whole, "training") > of(&adapter, "training") && of(&whole, "weights") == 0, "{whole}");
    let budget = format!("cpu={}B", of(&whole, "training") / 2);
    let refused = home.refusal(3, &[&train[..], &["--out", &out, "--max-memory", &budget]].concat());
    assert!(refused.contains("needs at least") && refused.contains("train an adapter"), "{refused}");
    let report = home.run(&["plan", &model, "--train", "--full", "--device", "cpu"]).stdout;
    assert!(report.contains("trained weights and gradients"), "{report}");
}

/// The messages of an event file, whose checksums are computed bit by bit.
fn records(path: &Path) -> Vec<Vec<u8>> {
    let checksum = |bytes: &[u8]| -> [u8; 4] {
        let mut crc = u32::MAX;
        for bit in bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1)) {
            crc = if crc & 1 == u32::from(bit) { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 };
        }
        (!crc).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
    };
    let (bytes, mut messages) = (std::fs::read(path).unwrap(), Vec::new());
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let len = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(rest[8..12], checksum(&rest[..8]));
        assert_eq!(rest[12 + len..][..4], checksum(&rest[12..][..len]));
        messages.push(rest[12..][..len].to_vec());
        rest = &rest[16 + len..];
    }
    messages
}

/// The fields of a message of protocol buffers: their numbers, and their bytes or what stands for a number.
fn fields(mut message: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let number = |message: &mut &[u8]| -> u64 {
        let len = message.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let (own, rest) = message.split_at(len);
        *message = rest;
        own.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
    };
    let mut found = Vec::new();
    while let Some(key) = (!message.is_empty()).then(|| number(&mut message)) {
        let bytes = match key & 7 {
            0 => number(&mut message).to_le_bytes().to_vec(),
            kind => {
                let len = if kind == 2 { number(&mut message) as usize } else { if kind == 1 { 8 } else { 4 } };
                let (own, rest) = message.split_at(len);
                message = rest;
                own.to_vec()
            }
        };
        found.push(((key >> 3) as u8, bytes));
    }
    found
}

/// An event: its step, what it holds (a field's number) and its scalars.
type Event = (u64, u8, Vec<(String, f32)>);

/// The events of the only file in a folder.
fn events(folder: &Path) -> Vec<Event> {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() == 1 && text(&files[0]).contains("events.out.tfevents."), "{files:?}");
    let event = |message: Vec<u8>| {
        let mut fields_of_event = fields(&message);
        let (what, bytes) = fields_of_event.pop().unwrap();
        assert_eq!(fields_of_event.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2]);
        let step = u64::from_le_bytes(fields_of_event[1].1[..].try_into().unwrap());
        let values = if what == 5 { fields(&bytes) } else { Vec::new() };
        let scalar = |(_, value): (u8, Vec<u8>)| {
            let [(1, tag), (2, number)] = &fields(&value)[..] else { panic!("{value:?}") };
            (String::from_utf8(tag.clone()).unwrap(), f32::from_le_bytes(number[..].try_into().unwrap()))
        };
        (step, what, values.into_iter().map(scalar).collect())
    };
    records(&files[0]).into_iter().map(event).collect()
}

#[test]
fn event_files_hold_what_the_log_holds() {
    let home = Home::new();
    let (model, out) = (home.folder_model(), text(&home.path("out")));
    let data = data(&home, "data.jsonl", &facts());
    let common = ["train", &model, "--data", &data, "--out", &out, "--target", "q_proj", "--eval-data", &data, "--eval-every", "2"];
    let train = |steps: &str, folder: &Path, more: &[&str]| -> Vec<Value> {
        let options = ["--epochs", "1", "--accumulate", steps, "--json", "--logging-dir", &text(folder)];
        let ran = home.run(&[&common[..], &options, more].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (first, second) = (home.path("events"), home.path("more/events"));
    let lines = train("2", &first, &[]);
    let found = events(&first);
    // A version, where it goes on, three steps and two evaluations.
    assert_eq!(
        found.iter().map(|(step, what, _)| (*step, *what)).collect::<Vec<_>>(),
        [(0, 3), (1, 7), (1, 5), (2, 5), (2, 5), (3, 5), (3, 5)]
    );
    for (line, (step, _, scalars)) in lines.iter().zip(&found[2..]) {
        assert_eq!(line["step"].as_u64(), Some(*step));
        let expected = |name: &str| line[name].as_f64().unwrap() as f32;
        if line["eval_loss"].is_null() {
            let names = ["loss", "grad_norm", "learning_rate", "epoch"];
            let expected: Vec<_> = names.iter().map(|name| (format!("train/{name}"), expected(name))).collect();
            assert_eq!(scalars[..4], expected);
            assert!(scalars[4].0 == "train/tokens_per_second" && scalars[4].1 > 0.0);
        } else {
            assert_eq!(scalars[..], [("eval/loss".to_owned(), expected("eval_loss"))]);
        }
    }
    // A run that goes on says from which step.
    train("2", &second, &["--resume"]);
    assert_eq!(events(&second).iter().map(|(step, what, _)| (*step, *what)).collect::<Vec<_>>(), [(0, 3), (4, 7)]);
    let refused = home.refusal(1, &[&common[..], &["--logging-dir", &data]].concat());
    assert!(refused.contains("data.jsonl"), "{refused}");
}

#[test]
fn a_run_that_was_killed_goes_on_to_the_same_adapter() {
    killed_and_resumed(&["--lora-r", "2", "--target", "q_proj", "--dropout", "0.1"], "adapter_model.safetensors");
}

#[test]
fn a_run_that_was_killed_goes_on_to_the_same_model() {
    killed_and_resumed(&["--full", "--dtype", "f32", "--lr", "1e-3"], SHARD);
}

fn killed_and_resumed(mode: &[&str], file: &str) {
    let home = Home::new();
    let model = home.folder_model();
    let [whole, killed] = ["whole", "killed"].map(|name| text(&home.path(name)));
    let data = data(&home, "data.jsonl", &facts());
    let common = [&["--data", &data, "--steps", "24", "--save-every", "4", "--json"], mode].concat();
    let line = |out: &str, more: &[&str]| -> Vec<String> {
        let words = [&["train", &model, "--out", out][..], &common[..], more].concat();
        words.into_iter().map(str::to_owned).collect()
    };
    let run = |out: &str, more: &[&str]| {
        let words = line(out, more);
        home.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let ran = run(&whole, &[]);
    assert_eq!((ran.code, ran.stdout.lines().count()), (Some(0), 24), "{}", ran.stderr);
    let words = line(&killed, &[]);
    let mut child = home.command(&words.iter().map(String::as_str).collect::<Vec<_>>()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.by_ref().take(9).all(|line| line.is_ok()));
    drop(lines);
    child.kill().unwrap();
    wait(child);
    let ran = run(&killed, &["--resume"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    // The checkpoint of step 8 was there when the line of step 9 was read.
    let first = ran.stdout.lines().next().map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap());
    assert!(first.is_none_or(|step| step > 8), "{first:?}");
    assert!(read(&whole, file) == read(&killed, file) && read(&whole, file).len() > 1000);
    let steps = |out: &str| -> Vec<u64> {
        let log = std::fs::read_to_string(Path::new(out).join("training.jsonl")).unwrap();
        log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap()).collect()
    };
    assert_eq!((steps(&whole), steps(&killed)), ((1..=24).collect(), (1..=24).collect()));
    // With other options it is another run.
    let refused = home.refusal(1, &[&["train", &model, "--out", &killed, "--data", &data, "--resume", "--seq-len", "64"], mode].concat());
    assert!(refused.contains("other options") && refused.contains("seq_len"), "{refused}");
}

#[test]
fn records_that_teach_nothing_are_named_by_their_lines() {
    let home = Home::new();
    let (model, out) = (home.folder_model(), text(&home.path("out")));
    let good = json!({ "text": "abc" }).to_string();
    let user = json!({ "role": "user", "content": "x" });
    let cases = [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        (r#"{"txt": "abc"}"#, "has none of `messages`"),
        (r#"{"text": 3}"#, "`text` is not a text"),
        (r#"{"prompt": "a"}"#, "`completion` is missing"),
        (r#"{"prompt": "a", "completion": "  "}"#, "`completion` is empty"),
        (&json!({ "messages": [user] }).to_string(), "no message of the role `assistant`"),
        (&json!({ "messages": [user, { "role": "assistant", "content": "" }] }).to_string(), "message 2 is an empty answer"),
        (&json!({ "messages": [{ "content": "x" }] }).to_string(), "`role`"),
    ];
    let path = text(&home.path("data.jsonl"));
    for (line, reason) in cases {
        std::fs::write(&path, format!("{good}\n\n{line}\n")).unwrap();
        let refused = home.refusal(1, &["train", &model, "--data", &path, "--out", &out]);
        assert!(refused.contains(reason) && refused.contains("data.jsonl: line 3: "), "{line}: {refused}");
    }
    std::fs::write(&path, "\n").unwrap();
    assert!(home.refusal(1, &["train", &model, "--data", &path, "--out", &out]).contains("holds no record"));
    let long = json!({ "text": "a ".repeat(100) }).to_string();
    std::fs::write(&path, format!("{long}\n")).unwrap();
    let refused = home.refusal(1, &["train", &model, "--data", &path, "--out", &out, "--seq-len", "16"]);
    assert!(refused.contains("all of its 1 records have more than 16 tokens"), "{refused}");
    std::fs::write(&path, format!("{long}\n{good}\n")).unwrap();
    let ran = home.run(&["train", &model, "--data", &path, "--out", &out, "--seq-len", "16"]);
    assert!(ran.code == Some(0) && ran.stderr.contains("1 record longer than 16 tokens left out"), "{}", ran.stderr);
    let ran = home.run(&["train", &model, "--data", &path, "--out", &out, "--seq-len", "16", "--truncate"]);
    assert!(ran.code == Some(0) && ran.stderr.contains("1 record cut to 16 tokens"), "{}", ran.stderr);
}

#[test]
fn options_that_are_not_possible_are_named() {
    let home = Home::new();
    let (model, out) = (home.folder_model(), text(&home.path("out")));
    let data = data(&home, "data.jsonl", &facts());
    let refused = |code: i32, more: &[&str]| home.refusal(code, &[&["train", &model, "--data", &data, "--out", &out], more].concat());
    assert!(refused(2, &["--lr=-1"]).contains("learning rate"));
    assert!(refused(2, &["--target", "x_proj"]).contains("`x_proj` is no linear layer"));
    assert!(refused(2, &["--warmup=-3"]).contains("the warm-up"));
    assert!(refused(2, &["--dropout", "1"]).contains("dropout"));
    assert!(refused(3, &["--max-memory", "cpu=1KiB"]).contains("needs at least"));
    assert!(refused(1, &["--data", "no-such-file"]).contains("no-such-file"));
    assert!(refused(2, &["--full", "--target", "x_proj"]).contains("`x_proj` is no module"));
    assert!(refused(2, &["--full", "--device", "gpu"]).contains("trained on the host alone"));
    assert!(refused(2, &["--full", "--lora-r", "4"]).contains("--lora-r"));
    assert!(refused(2, &["--full", "--lora-alpha", "4"]).contains("--lora-alpha"));
    assert!(refused(2, &["--dtype", "f32"]).contains("--full"));
    assert!(refused(2, &["--full", "--out", &model]).contains("the folder of the model itself"));
    let file = home.gguf_model(GgufType::Q8_0);
    let of_file = home.refusal(1, &["train", &file, "--full", "--data", &data, "--out", &out]);
    assert!(of_file.contains("is a GGUF file") && of_file.contains("train an adapter"), "{of_file}");
}

#[test]
fn a_gpu_trains_an_adapter_within_its_budget() {
    let home = Home::new();
    let (model, out) = (home.folder_model(), text(&home.path("out")));
    let data = data(&home, "data.jsonl", &facts());
    let common = ["train", &model, "--data", &data, "--out", &out, "--steps", "6", "--batch", "6", "--seq-len", "16", "--lr", "2e-2"];
    let losses = |more: &[&str]| -> Vec<f64> {
        let ran = home.run(&[&common[..], &["--json"], more].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        ran.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap()).collect()
    };
    let (on_host, on_gpu) = (losses(&["--device", "cpu"]), losses(&["--device", "gpu"]));
    assert!(on_host.iter().zip(&on_gpu).all(|(host, gpu)| (host - gpu).abs() < 1e-3), "{on_host:?} {on_gpu:?}");
    assert!(on_gpu[5] < 0.95 * on_gpu[0], "{on_gpu:?}");
    let ran = home.run(&[&common[..], &["--device", "gpu"]].concat());
    assert!(ran.code == Some(0) && ran.stderr.contains("computes, with "), "{}", ran.stderr);
    let ran = home.run(&["run", &model, "-p", "a", "--lora", &out, "-n", "4", "--seed", "1"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let sizes = ["plan", &model, "--train", "--device", "gpu", "--batch", "6", "--seq-len", "16", "--json"];
    let planned: Value = serde_json::from_str(&home.run(&sizes).stdout).unwrap();
    let of_gpu = &planned["devices"][0];
    assert!(
        of_gpu["device"] == "gpu:0" && of_gpu["weights"].as_u64() > Some(0) && planned["tokens_per_sec"].as_f64() > Some(0.0),
        "{planned}"
    );
    let budget = of_gpu["training"].as_u64().unwrap() + of_gpu["weights"].as_u64().unwrap();
    let ran = home.run(&[&common[..], &["--device", "gpu", "--max-memory", &format!("gpu={budget}B")]].concat());
    assert!(ran.code == Some(0) && !ran.stderr.contains("that stream"), "{}", ran.stderr);
    let dropping = |device: &str| losses(&["--device", device, "--dropout", "0.3", "--lr", "2e-3", "--steps", "3"]);
    let (on_host, on_gpu) = (dropping("cpu"), dropping("gpu"));
    assert!(on_host.iter().zip(&on_gpu).all(|(host, gpu)| (host - gpu).abs() < 1e-3), "{on_host:?} {on_gpu:?}");
    let with_masks: Value = serde_json::from_str(&home.run(&[&sizes[..], &["--dropout", "0.3"]].concat()).stdout).unwrap();
    assert!(with_masks["devices"][0]["training"].as_u64() > of_gpu["training"].as_u64(), "{with_masks}");
}
