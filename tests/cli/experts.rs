//! What is told of experts that pass through a cache.

use std::path::Path;

use serde_json::{Value, json};
use xtask::models::{GgufType, LlamaShape, write_gguf};

use crate::common::program::{Home, has_gpu};
use crate::serve::client::Server;
use crate::serve::{hello, with};

/// A mixture of six layers, and options by which its experts pass through a cache on the GPU.
fn cached(home: &Home) -> (String, Vec<String>) {
    let file = home.path("experts.gguf");
    write_gguf(&file, &LlamaShape::small_experts(), 5, GgufType::Q8_0).unwrap();
    let options = ["-c", "256", "-ub", "32", "--device", "gpu", "--max-memory", "gpu=14MiB", "--expert-cache", "on", "--no-measure"];
    (file.to_str().unwrap().to_owned(), options.map(str::to_owned).to_vec())
}

/// Arguments of `command` for the model.
fn arguments<'a>(command: &'a [&'a str], model: &'a str, options: &'a [String]) -> Vec<&'a str> {
    let options = options.iter().map(String::as_str);
    command[..1].iter().copied().chain([model]).chain(command[1..].iter().copied()).chain(options).collect()
}

/// Checks that the layers add up to the whole.
#[track_caller]
fn add_up(layers: &Value, n_layers: usize) -> (u64, u64) {
    let layers = layers.as_array().unwrap();
    assert_eq!(layers.len(), n_layers, "{layers:?}");
    let sum = |name: &str| layers.iter().map(|layer| layer[name].as_u64().unwrap()).sum();
    assert!(layers.iter().all(|layer| layer["layer"].as_str().unwrap().contains("layers.")), "{layers:?}");
    (sum("n_hits"), sum("n_misses"))
}

#[test]
fn run_and_bench_tell_of_each_layer() {
    if !has_gpu() {
        return;
    }
    let home = Home::new();
    let (model, options) = cached(&home);
    let ran = home.json("tierflow.run/1", &arguments(&["run", "-p", "hello", "-n", "12", "--temp", "0", "--json"], &model, &options));
    let statistics = &ran["statistics"];
    let (hits, misses) = add_up(&statistics["experts_of_layers"], 6);
    assert_eq!((Some(hits), Some(misses)), (statistics["experts"]["n_hits"].as_u64(), statistics["experts"]["n_misses"].as_u64()));
    assert!(hits > 0 && misses > 0, "{statistics}");

    let benched = arguments(&["bench", "-p", "0", "-n", "6", "-r", "1"], &model, &options);
    let row = &home.json("tierflow.bench/1", &[&benched[..], &["--json"]].concat())["rows"][0];
    // Six tokens take four experts of each of six layers.
    let (hits, misses) = add_up(&row["experts_of_layers"], 6);
    assert_eq!(hits + misses, 6 * 4 * 6);
    assert_eq!(row["expert_hit_rate"].as_f64(), Some(hits as f64 / (hits + misses) as f64));
    assert!(home.stdout(&benched).contains("% of experts found"));
}

#[test]
fn a_server_counts_experts_and_leaves_a_profile() {
    if !has_gpu() {
        return;
    }
    let home = Home::new();
    let (model, options) = cached(&home);
    let profile = home.path("profile.json");
    let more: Vec<&str> = options.iter().map(String::as_str).chain(["-np", "1", "--expert-profile", profile.to_str().unwrap()]).collect();
    let server = Server::start(&home, &model, &more);
    assert!(!server.get("/metrics").body.contains("tierflow_experts_total"), "nothing was asked for");
    server.json("/v1/chat/completions", &with(hello(6), &json!({ "temperature": 0 })));
    let of = |outcome: &str| server.metric(&format!("tierflow_experts_total{{outcome=\"{outcome}\"}}"));
    assert!(of("hit") > 0 && of("host") + of("uploaded") > 0);
    #[cfg(unix)]
    {
        server.signal("TERM");
        assert_eq!(server.end(), Some(0));
        let layers: Value = serde_json::from_str(&std::fs::read_to_string(Path::new(&profile)).unwrap()).unwrap();
        assert!(layers.to_string().contains("layers.5"), "{layers}");
    }
}

#[test]
fn a_profile_is_of_one_model() {
    let home = Home::new();
    let (one, two) = (home.folder_model(), home.gguf_model(GgufType::Q8_0));
    let refusal = home.refusal(2, &["serve", &one, &two, "--expert-profile", "profile.json"]);
    assert!(refusal.contains("--expert-profile"), "{refusal}");
}

#[test]
fn layers_whose_experts_the_cpu_computes_are_named_as_in_llama_cpp() {
    if !has_gpu() {
        return;
    }
    let home = Home::new();
    let (model, _) = cached(&home);
    let on_cpu = |options: &[&str]| -> Vec<String> {
        let plan =
            home.json("tierflow.plan/5", &[&["plan", &model, "-c", "256", "--device", "gpu", "--no-measure", "--json"], options].concat());
        let units = plan["plan"]["units"].as_array().unwrap().iter();
        let on_cpu = units.filter(|unit| unit["execute_on"] == "cpu" && unit["kind"] != "embedding");
        on_cpu.map(|unit| unit["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(on_cpu(&["-ot", r"blk\.([1-2])\..*exps=CPU"]), ["model.layers.1.mlp", "model.layers.2.mlp"]);
    assert_eq!(on_cpu(&["-ot", r"blk\.[0-3]\.=GPU,exps=CPU"]), ["model.layers.4.mlp", "model.layers.5.mlp"]);
    assert_eq!(on_cpu(&["--override-tensor", ".ffn_.*_exps.=CPU"]), on_cpu(&["--cpu-moe"]));
    let refused = home.refusal(2, &["plan", &model, "-ot", "attn_q=CPU"]);
    assert!(refused.contains("--override-tensor") && refused.contains("blk.0.attn_q.weight"), "{refused}");
}
