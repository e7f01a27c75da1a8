//! Device maps that people bring: what Accelerate would take is taken, and what it would not is refused by name.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Map, Value, json};
use xtask::models::{GgufType, LlamaShape, Stored, write_hf_headers};

use crate::common::program::{Home, text, wait};

const N_LAYERS: usize = 4;

/// A machine with one adapter, described by a file: nothing of the machine that the tests run on matters.
fn machine(home: &Home, gpu: &str, cpu: &str) -> String {
    let devices = json!({"schema": "tierflow.devices/1", "devices": [
        {"device": "gpu:0", "name": "an adapter", "driver": "test", "kind": "discrete", "vendor": 0x10de, "capacity": gpu,
         "limits": {"max_buffer_bytes": "4GiB", "max_binding_bytes": "2GiB"}},
        {"device": "cpu", "name": "a host", "driver": "test", "capacity": cpu},
    ]});
    let file = home.path("machine.json");
    fs::write(&file, devices.to_string()).unwrap();
    text(&file)
}

/// The map that transformers writes of a model with half of its layers on an adapter.
fn usual() -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("model.embed_tokens".into(), json!(0));
    for layer in 0..N_LAYERS {
        map.insert(format!("model.layers.{layer}"), if layer < N_LAYERS / 2 { json!(0) } else { json!("cpu") });
    }
    for name in ["model.norm", "model.rotary_emb", "lm_head"] {
        map.insert(name.into(), json!("cpu"));
    }
    map
}

/// The usual map without `gone` and with `added`.
fn changed(gone: &[&str], added: Value) -> String {
    let mut map = usual();
    map.retain(|name, _| !gone.contains(&name.as_str()));
    map.extend(added.as_object().cloned().unwrap_or_default());
    Value::from(map).to_string()
}

/// The usual map with other names.
fn renamed(rename: impl Fn(&str) -> String) -> String {
    Value::from(usual().into_iter().map(|(name, device)| (rename(&name), device)).collect::<Map<_, _>>()).to_string()
}

/// The usual map with another word for the adapter.
fn with_adapter(word: Value) -> String {
    let of = |(name, device): (String, Value)| (name, if device == json!(0) { word.clone() } else { device });
    Value::from(usual().into_iter().map(of).collect::<Map<_, _>>()).to_string()
}

fn gguf_name(name: &str) -> String {
    let name = name.replace("model.layers", "blk").replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm");
    name.replace("lm_head", "output")
}

/// Maps that are planned, with the home of layer 0's attention and that of layer 3's.
fn taken() -> Vec<(&'static str, String, [&'static str; 2])> {
    let layer = |parts: Value| changed(&["model.layers.1"], parts);
    vec![
        ("all on the adapter", r#"{"": 0}"#.into(), ["gpu:0", "gpu:0"]),
        ("all on the host", r#"{"": "cpu"}"#.into(), ["cpu", "cpu"]),
        ("all on disk", r#"{"": "disk"}"#.into(), ["disk", "disk"]),
        ("the last of two entries counts", r#"{"": 0, "": "cpu"}"#.into(), ["cpu", "cpu"]),
        ("as transformers writes", changed(&[], json!({})), ["gpu:0", "cpu"]),
        ("a word without a number", with_adapter(json!("cuda")), ["gpu:0", "cpu"]),
        ("torch's word", with_adapter(json!("cuda:0")), ["gpu:0", "cpu"]),
        ("another vendor's word", with_adapter(json!("xpu:0")), ["gpu:0", "cpu"]),
        ("Apple's word", with_adapter(json!("mps")), ["gpu:0", "cpu"]),
        ("a number in quotes", with_adapter(json!("0")), ["gpu:0", "cpu"]),
        ("disk too", changed(&[], json!({"model.layers.3": "disk"})), ["gpu:0", "disk"]),
        ("embedding on the host", changed(&[], json!({"model.embed_tokens": "cpu", "lm_head": 0})), ["gpu:0", "cpu"]),
        ("rotary frequencies are in no file", changed(&["model.rotary_emb"], json!({})), ["gpu:0", "cpu"]),
        ("in a config", json!({"hf_device_map": usual()}).to_string(), ["gpu:0", "cpu"]),
        ("in a wrapper", json!({"device_map": usual()}).to_string(), ["gpu:0", "cpu"]),
        ("Haystack's", json!({"type": "multiple", "device_map": {"": "cuda:0"}}).to_string(), ["gpu:0", "gpu:0"]),
        ("a module that the model lacks", changed(&[], json!({"model.vision_tower": 0})), ["gpu:0", "cpu"]),
        ("layers that the model lacks", changed(&[], json!({"model.layers.4": "cpu"})), ["gpu:0", "cpu"]),
        (
            "a layer in parts",
            layer(json!({"model.layers.1.self_attn": 0, "model.layers.1.mlp.gate_proj": 0, "model.layers.1.mlp.up_proj": "cpu",
                "model.layers.1.mlp.down_proj": "cpu", "model.layers.1.input_layernorm": "cpu",
                "model.layers.1.post_attention_layernorm": "cpu"})),
            ["gpu:0", "cpu"],
        ),
        (
            "tensors by name",
            layer(json!({"model.layers.1.self_attn.q_proj.weight": 0, "model.layers.1.self_attn.k_proj.weight": 0,
                "model.layers.1.self_attn.v_proj.weight": 0, "model.layers.1.self_attn.o_proj.weight": 0,
                "model.layers.1.mlp.gate_proj.weight": 0, "model.layers.1.mlp.up_proj.weight": 0,
                "model.layers.1.mlp.down_proj.weight": 0, "model.layers.1.input_layernorm.weight": 0,
                "model.layers.1.post_attention_layernorm.weight": 0})),
            ["gpu:0", "cpu"],
        ),
        ("with a byte order mark", format!("\u{feff}{}", changed(&[], json!({}))), ["gpu:0", "cpu"]),
    ]
}

/// Maps that are refused, with the exit code and a part of what is said.
fn refused() -> Vec<(String, i32, &'static str)> {
    let meta = changed(&["model.layers.3"], json!({"model.layers.3": "meta"}));
    vec![
        ("".into(), 1, "it is empty"),
        ("null".into(), 1, "is an object of modules and devices"),
        (r#"[{"model": 0}]"#.into(), 1, "is an object of modules and devices"),
        (r#"{"": 0,}"#.into(), 1, "no JSON"),
        ("{'': 0}".into(), 1, "what Python prints of a dict"),
        ("OrderedDict([('model.embed_tokens', 0), ('model.layers.0', 'cpu')])".into(), 1, "what Python prints of a dict"),
        (r#"{"": "auto"}"#.into(), 1, r#"mapped to "auto", which is no device"#),
        (r#"{"": true}"#.into(), 1, "mapped to true"),
        (r#"{"": 0.0}"#.into(), 1, "mapped to 0.0"),
        (r#"{"": -1}"#.into(), 1, "mapped to -1"),
        (r#"{"": 99999999999999999999}"#.into(), 1, "no device"),
        (meta, 1, r#"`model.layers.3` is mapped to "meta""#),
        (r#"{"": 3}"#.into(), 4, "gpu:3"),
        (changed(&[], json!({"model.layers.3": 1})), 4, "gpu:1"),
        (renamed(gguf_name), 2, "its names are those of GGUF tensors"),
        (renamed(|name| name.trim_start_matches("model.").into()), 2, "its names lack the `model.`"),
        (renamed(|name| format!("base_model.model.{name}")), 2, "its names begin with `base_model.model.`"),
        (changed(&["model.layers.2"], json!({})), 2, "model.layers.2.self_attn.q_proj.weight"),
        (changed(&["model.norm"], json!({})), 2, "model.norm.weight"),
        (changed(&["lm_head"], json!({})), 2, "lm_head.weight"),
        (changed(&["model.layers.2"], json!({"model.layers.2.self_attn": 0})), 2, "model.layers.2.mlp.gate_proj.weight"),
    ]
}

/// A file with this map, whose name says nothing of what it is.
fn map_file(home: &Home, map: &[u8]) -> String {
    let file = home.path("a map");
    fs::write(&file, map).unwrap();
    text(&file)
}

/// The home of a unit in the plan of a run that must succeed.
fn stored_on<'p>(plan: &'p Value, unit: &str) -> &'p str {
    let units = plan["plan"]["units"].as_array().expect("units");
    units.iter().find(|own| own["name"] == unit).unwrap_or_else(|| panic!("no {unit}"))["stored_on"].as_str().expect("a device")
}

#[test]
fn maps_that_accelerate_takes_are_taken() {
    let home = Home::new();
    let (model, machine) = (home.gguf_model(GgufType::Q4_0), machine(&home, "1GiB", "1GiB"));
    for (what, map, expected) in taken() {
        let file = map_file(&home, map.as_bytes());
        let plan = home.json("tierflow.plan/5", &["plan", &model, "--devices", &machine, "--device-map", &file, "--json"]);
        let devices = ["model.layers.0.self_attn", "model.layers.3.self_attn"].map(|unit| stored_on(&plan, unit));
        assert_eq!(devices, expected, "{what}: {map}");
    }
}

#[test]
fn maps_that_accelerate_refuses_are_refused_with_the_reason() {
    let home = Home::new();
    let (model, machine) = (home.gguf_model(GgufType::Q4_0), machine(&home, "1GiB", "1GiB"));
    for (map, code, part) in refused() {
        let file = map_file(&home, map.as_bytes());
        let refusal = home.refusal(code, &["plan", &model, "--devices", &machine, "--device-map", &file]);
        assert!(refusal.contains(part) && refusal.len() < 900, "{map}\n{refusal}");
    }
}

#[test]
fn maps_and_machines_come_in_the_encodings_of_shells() {
    let home = Home::new();
    let (model, machine) = (home.gguf_model(GgufType::Q4_0), machine(&home, "1GiB", "1GiB"));
    let described = fs::read_to_string(&machine).unwrap();
    let utf16 = |text: &str| -> Vec<u8> { format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let marked = |text: &str| format!("\u{feff}{text}").into_bytes();
    for encode in [&utf16 as &dyn Fn(&str) -> Vec<u8>, &marked] {
        fs::write(&machine, encode(&described)).unwrap();
        let file = map_file(&home, &encode(&changed(&[], json!({}))));
        let plan = home.json("tierflow.plan/5", &["plan", &model, "--devices", &machine, "--device-map", &file, "--json"]);
        assert_eq!(stored_on(&plan, "model.layers.0.mlp"), "gpu:0");
    }
}

#[cfg(unix)]
#[test]
fn maps_come_through_pipes_and_under_any_name() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let home = Home::new();
    let (model, machine) = (home.gguf_model(GgufType::Q4_0), machine(&home, "1GiB", "1GiB"));
    let latin = home.path("").join(OsStr::from_bytes(b"m\xe4p"));
    fs::write(&latin, changed(&[], json!({}))).unwrap();
    let plan = |file: &OsStr, stdin: Stdio| {
        let mut command = home.command(&["plan", &model, "--devices", &machine, "--json", "--device-map"]);
        let ran = wait(command.arg(file).stdin(stdin).spawn().unwrap());
        assert_eq!(ran.code, Some(0), "{file:?}: {}", ran.stderr);
        serde_json::from_str::<Value>(&ran.stdout).unwrap()
    };
    assert_eq!(stored_on(&plan(latin.as_os_str(), Stdio::null()), "model.layers.0.mlp"), "gpu:0");
    let (read, mut write) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut write, changed(&[], json!({})).as_bytes()).unwrap();
    drop(write);
    assert_eq!(stored_on(&plan(OsStr::new("/dev/stdin"), read.into()), "model.layers.0.mlp"), "gpu:0");
}

/// What Accelerate 1.15.0 answers for Llama-3.1-8B in float32 with 11.4 GB, split inside layers and not (`tests/golden/device_maps.json`).
#[test]
fn the_split_inside_a_layer_is_reached_from_the_command_line() {
    let home = Home::new();
    let model = home.path("llama-3.1-8b");
    write_hf_headers(&model, &LlamaShape::eight_billion(), Stored::F32, 1).unwrap();
    let golden: Value = serde_json::from_slice(&fs::read("tests/golden/device_maps.json").unwrap()).unwrap();
    let (out, machine) = (text(&home.path("map.json")), machine(&home, "24GB", "100GB"));
    for (id, no_split) in [("llama-3.1-8b/000", &["--no-split", "none"][..]), ("llama-3.1-8b/002", &[])] {
        let cases = golden["cases"].as_array().unwrap();
        let expected = &cases.iter().find(|case| case["id"] == id).unwrap()["device_map"];
        let mut arguments = vec!["plan", model.to_str().unwrap(), "--devices", &machine, "--device-map", "sequential"];
        arguments.extend(["--max-memory", "gpu:0=11400000000,cpu=100GB", "-c", "2048", "--export-device-map", &out]);
        home.stdout(&[&arguments, no_split].concat());
        let ours: Map<String, Value> = serde_json::from_slice(&fs::read(Path::new(&out)).unwrap()).unwrap();
        // The embedding is gathered on the host, and norms lie where their layer is computed.
        let of_matrices = |name: &str| name.contains("layers") && !name.contains("norm");
        let theirs = expected.as_array().unwrap().iter().map(|entry| (entry[0].as_str().unwrap(), &entry[1]));
        for (name, device) in theirs.filter(|(name, _)| of_matrices(name)) {
            assert_eq!(ours.get(name), Some(device), "{id}: {name}");
        }
        if !no_split.is_empty() {
            assert_eq!((&ours["model.layers.8.self_attn"], &ours["model.layers.8.mlp"]), (&json!(0), &json!("cpu")));
        }
    }
}

#[test]
fn classes_that_stay_whole_must_be_the_models() {
    let home = Home::new();
    let (model, machine) = (home.gguf_model(GgufType::Q4_0), machine(&home, "1GiB", "1GiB"));
    let refusal = |more: &[&str]| home.refusal(2, &[&["plan", &model, "--devices", &machine], more].concat());
    let stranger = refusal(&["--device-map", "sequential", "--no-split", "GPT2Block"]);
    assert!(stranger.contains("`GPT2Block` is no class") && stranger.contains("LlamaDecoderLayer"), "{stranger}");
    let alone = refusal(&["--no-split", "none"]);
    assert!(alone.contains("--device-map sequential"), "{alone}");
}
