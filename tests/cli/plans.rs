//! Plans that go to a file and come back.

use std::fs;

use serde_json::{Value, json};
use xtask::models::{GgufType, LlamaShape, write_gguf};

use crate::common::program::{Home, least, text};

/// A machine with one adapter of this name, described by a file.
fn machine(home: &Home, gpu: &str) -> String {
    let devices = json!({"schema": "tierflow.devices/1", "devices": [
        {"device": "gpu:0", "name": gpu, "driver": "test", "kind": "discrete", "vendor": 0x10de, "capacity": "1GiB",
         "limits": {"max_buffer_bytes": "4GiB", "max_binding_bytes": "2GiB"}},
        {"device": "cpu", "name": "a host", "driver": "test", "capacity": "1GiB"},
    ]});
    let file = home.path(&format!("{gpu}.json"));
    fs::write(&file, devices.to_string()).unwrap();
    text(&file)
}

#[test]
fn a_plan_that_is_exported_comes_back() {
    let home = Home::new();
    let (model, machine, file) = (home.gguf_model(GgufType::Q4_0), machine(&home, "an adapter"), text(&home.path("plan.json")));
    let plan = |more: &[&str]| -> Value {
        home.json("tierflow.plan/5", &[&["plan", &model, "--devices", &machine, "--json"], more].concat())["plan"].take()
    };
    for shaping in [
        &["--device", "cpu"][..],
        &["--max-memory", "gpu:0=400KiB", "-c", "64"],
        &["-ngl", "1", "-np", "3", "-ub", "8", "--slots", "2", "--upload", "mapped", "--kv-dtype", "f32"],
        &["--device-map", "sequential", "--no-split", "none", "--max-memory", "gpu:0=500KiB"],
        &["--objective", "throughput", "--max-memory", "cpu=300KiB"],
    ] {
        let made = plan(&[shaping, &["--export-plan", &file]].concat());
        assert_eq!(plan(&["--plan", &file]), made, "{shaping:?}");
        // What `plan --json` prints is such a file too.
        let printed = home.stdout(&[&["plan", &model, "--devices", &machine, "--json"], shaping].concat());
        fs::write(&file, format!("\u{feff}{printed}")).unwrap();
        assert_eq!(plan(&["--plan", &file]), made, "{shaping:?}");
    }
}

#[test]
fn a_plan_says_and_keeps_how_keys_and_values_are_stored() {
    let home = Home::new();
    let (model, machine, file) = (home.larger_model(), machine(&home, "an adapter"), text(&home.path("plan.json")));
    let plan = |more: &[&str]| {
        let shaping = ["plan", &model, "--devices", &machine, "-c", "512"];
        let text = home.stdout(&[&shaping[..], more].concat());
        (text, home.json("tierflow.plan/5", &[&shaping[..], &["--json", "--export-plan", &file], more].concat())["plan"].take())
    };
    // Six layers of two key heads of 64 numbers, whose scales take two bytes for each 32.
    let n_heads = 6 * 2 * 2 * 512;
    for (dtype, head_bytes) in [("f32", 256), ("f16", 128), ("q8_0", 68), ("q4_0", 36)] {
        let (said, made) = plan(&["-ctk", dtype, "-ctv", dtype, "--device", "gpu"]);
        assert!(said.contains(&format!("({dtype})")), "{said}");
        let gpu = made["devices"].as_array().unwrap().iter().find(|row| row["device"] == "gpu:0").expect("the adapter");
        assert_eq!(gpu["used"]["kv_cache"], n_heads * head_bytes, "{dtype}");
        let again = home.json("tierflow.plan/5", &["plan", &model, "--devices", &machine, "--plan", &file, "--json"])["plan"].take();
        assert_eq!(again, made, "{dtype}");
    }
    // Keys and values apart, in each way to say so; what is not said stays as it is.
    for (asked, dtype, bytes) in [
        (&["-ctk", "q8_0", "-ctv", "q4_0"][..], "q8_0/q4_0", 68 + 36),
        (&["--kv-dtype", "q4_0/f32"], "q4_0/f32", 36 + 256),
        (&["-ctk", "q8_0"], "q8_0/f16", 68 + 128),
        (&["-ctv", "q8_0"], "f16/q8_0", 128 + 68),
    ] {
        let (said, made) = plan(&[asked, &["--device", "gpu"]].concat());
        assert!(said.contains(&format!("({dtype})")) && made["kv_dtype"] == dtype, "{said}");
        let gpu = made["devices"].as_array().unwrap().iter().find(|row| row["device"] == "gpu:0").expect("the adapter");
        assert_eq!(gpu["used"]["kv_cache"], n_heads / 2 * bytes, "{dtype}");
        let again = home.json("tierflow.plan/5", &["plan", &model, "--devices", &machine, "--plan", &file, "--json"])["plan"].take();
        assert_eq!(again, made, "{dtype}");
    }
    // The host stores f16 as f32, and blocks as they are.
    for (dtype, stored) in [("f16", "f32"), ("q8_0", "q8_0"), ("q4_0", "q4_0"), ("f16/q4_0", "f32/q4_0")] {
        let (said, made) = plan(&["--kv-dtype", dtype, "--device", "cpu"]);
        assert!(said.contains(&format!("({stored})")) && made["kv_dtype"] == stored, "{said}");
    }
    let small = home.gguf_model(GgufType::Q4_0);
    let refusal = home.refusal(2, &["plan", &small, "--devices", &machine, "-ctk", "q8_0"]);
    assert!(refusal.contains("--kv-dtype") && refusal.contains("the model's heads have 16"), "{refusal}");
    let refusal = home.refusal(2, &["plan", &small, "--devices", &machine, "--kv-dtype", "q8_0/q9"]);
    assert!(refusal.contains("--kv-dtype") && refusal.contains("`q9` is none of f32, f16, q8_0 and q4_0"), "{refusal}");
}

#[test]
fn a_plan_runs_as_it_was_made() {
    let home = Home::new();
    let (model, file) = (home.gguf_model(GgufType::Q4_0), text(&home.path("plan.json")));
    let shaping = ["--device", "cpu", "--max-memory", "cpu=600KiB", "-c", "96"];
    home.stdout(&[&["plan", &model, "--export-plan", &file], &shaping[..]].concat());
    let answer = |more: &[&str]| {
        let run = ["run", &model, "-p", "a b c", "-n", "8", "--temp", "0", "--raw", "--json"];
        let mut answer = home.json("tierflow.run/1", &[&run[..], more].concat());
        (answer["tokens"].take(), answer["memory"].take())
    };
    assert_eq!(answer(&["--plan", &file]), answer(&shaping));
    let logits = |more: &[&str]| home.stdout(&[&["logits", &model, "--tokens", "1,2,3", "--json"], more].concat());
    assert_eq!(logits(&["--plan", &file]), logits(&shaping));
    let bench = ["bench", &model, "-r", "1", "-n", "4", "--plan", &file];
    home.stdout(&[&bench[..], &["-p", "8"]].concat());
    let short = home.refusal(2, &[&bench[..], &["-p", "100"]].concat());
    assert!(short.contains("--plan: a context of 96 is less than the 100 positions"), "{short}");
}

#[test]
fn a_plan_that_does_not_fit_its_place_is_refused_with_what_differs() {
    let home = Home::new();
    let (model, own, file) = (home.gguf_model(GgufType::Q4_0), machine(&home, "an adapter"), text(&home.path("plan.json")));
    home.stdout(&["plan", &model, "--devices", &own, "-c", "64", "--export-plan", &file]);
    let with = |more: &[&'static str]| [&["plan", &model, "--devices", &own, "--plan", &file], more].concat().join("\n");
    let refusal = |code: i32, more: &[&'static str]| home.refusal(code, &with(more).split('\n').collect::<Vec<_>>());
    let small = refusal(3, &["--max-memory", "gpu:0=100KiB"]);
    assert!(small.contains("does not fit gpu:0") && small.contains("leave out --plan"), "{small}");
    home.stdout(&["plan", &model, "--devices", &own, "--plan", &file, "--max-memory", &format!("gpu:0={}", least(&small))]);
    for (shaping, name) in [(&["-c", "32"][..], "ctx-size"), (&["-ngl", "1"], "n-gpu-layers"), (&["--device-map", "auto"], "device-map")] {
        let conflict = refusal(2, shaping);
        assert!(conflict.contains(&format!("--plan cannot be used with --{name}")), "{conflict}");
        assert!(conflict.contains("Usage: tierflow plan ") && !conflict.contains("\n\n\n"), "{conflict}");
    }
    let stranger = machine(&home, "a stranger");
    let device = home.refusal(2, &["plan", &model, "--devices", &stranger, "--plan", &file]);
    assert!(device.contains("gpu:0 was `an adapter` and is `a stranger`"), "{device}");
    let other = text(&home.path("other.gguf"));
    write_gguf(&home.path("other.gguf"), &LlamaShape { n_layers: 3, ..LlamaShape::tiny() }, 1, GgufType::Q4_0).unwrap();
    let model = home.refusal(2, &["plan", &other, "--devices", &own, "--plan", &file]);
    assert!(model.contains("was made for another model") && model.contains("number of layers"), "{model}");
    for (bytes, part) in
        [("{\"\": 0}", "is no plan"), ("", "is no JSON"), ("{\"schema\": \"tierflow.plan/2\"}", "has the schema `tierflow.plan/2`")]
    {
        fs::write(&file, bytes).unwrap();
        let refusal = refusal(1, &[]);
        assert!(refusal.contains(part), "{refusal}");
    }
}

#[test]
fn of_a_plan_and_what_shapes_one_the_stronger_source_counts() {
    let home = Home::new();
    let (model, machine, file) = (home.gguf_model(GgufType::Q4_0), machine(&home, "an adapter"), text(&home.path("plan.json")));
    let plan = ["plan", &model, "--devices", &machine, "--json"];
    home.stdout(&[&plan[..], &["-c", "64", "--export-plan", &file]].concat());
    let context = |variable: (&str, &str), more: &[&str]| {
        let ran = home.command(&[&plan[..], more].concat()).env(variable.0, variable.1).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_slice::<Value>(&ran.stdout).unwrap()["plan"]["ctx_size"].as_u64()
    };
    assert_eq!(context(("TIERFLOW_PLAN", &file), &[]), Some(64));
    assert_eq!(context(("TIERFLOW_PLAN", &file), &["-c", "32"]), Some(32));
    assert_eq!(context(("TIERFLOW_CTX_SIZE", "32"), &["--plan", &file]), Some(64));
}
