//! LoRA adapters on the command line.

use std::path::PathBuf;

use serde_json::Value;
use tierflow::lora::{Adapter, LowRank, NormValues, Settings};
use xtask::models::{GgufType, LlamaShape};

use crate::common::program::{Home, text};

/// An adapter for the tiny models; what it adds grows with `factor`.
pub fn adapter(home: &Home, name: &str, factor: f32) -> String {
    written(home, name, low_rank(factor))
}

/// The same that replaces the last norm, too.
pub fn adapter_with_norm(home: &Home, name: &str, factor: f32) -> String {
    let mut adapter = low_rank(factor);
    let weight = (0..LlamaShape::tiny().hidden_size).map(|index| 1.0 + (index as f32).cos() * 0.8).collect();
    adapter.norms.insert("model.norm".into(), NormValues { weight, bias: None });
    adapter.settings.modules_to_save = vec!["norm".into()];
    written(home, name, adapter)
}

fn written(home: &Home, name: &str, adapter: Adapter) -> String {
    let folder: PathBuf = home.path(name);
    adapter.write(&folder).unwrap();
    text(&folder)
}

fn low_rank(factor: f32) -> Adapter {
    let LlamaShape { hidden_size, ffn_size, .. } = LlamaShape::tiny();
    let settings = Settings::new(2, 4.0, vec!["up_proj".into()]);
    let values = |n: usize, scale: f32| (0..n).map(|index| (index as f32 * 0.7).sin() * scale).collect();
    let linear = LowRank {
        rank: 2,
        n_inputs: hidden_size,
        n_outputs: ffn_size,
        down: values(2 * hidden_size, 0.3),
        up: values(2 * ffn_size, factor),
        scaling: settings.scaling_of("").unwrap(),
    };
    let linears = [("model.layers.0.mlp.up_proj".to_owned(), linear)].into();
    Adapter { path: String::new(), settings, linears, norms: [].into() }
}

#[test]
fn adapters_are_run_planned_and_merged() {
    let home = Home::new();
    let (model, lora, zero) = (home.gguf_model(GgufType::F32), adapter(&home, "lora", 0.5), adapter(&home, "zero", 0.0));
    let logits = |model: &str, more: &[&str]| -> Vec<f64> {
        let run = ["logits", model, "--tokens", "1,2,3", "--device", "cpu", "--json"];
        let value: Value = serde_json::from_str(&home.stdout(&[&run[..], more].concat())).unwrap();
        value["positions"][0]["logits"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let difference = |one: &[f64], other: &[f64]| one.iter().zip(other).map(|(one, other)| (one - other).abs()).fold(0.0, f64::max);
    let (plain, whole) = (logits(&model, &[]), logits(&model, &["--lora", &lora]));
    assert_eq!(logits(&model, &["--lora", &zero]), plain);
    assert_eq!(logits(&model, &["--lora", &format!("{lora}=0")]), plain);
    assert!(difference(&whole, &plain) > 1e-3);
    assert_eq!(logits(&model, &["--lora-scaled", &lora, "1"]), whole, "llama.cpp's words");
    let halves = logits(&model, &["--lora", &format!("{lora}=0.5"), "--lora", &format!("{lora}=0.5")]);
    assert!(difference(&halves, &whole) < 1e-4);

    let merged = text(&home.path("merged.gguf"));
    home.stdout(&["convert", &model, &merged, "--type", "f32", "--merge-lora", &lora]);
    assert!(difference(&logits(&merged, &[]), &whole) < 1e-4);

    let plan = home.stdout(&["plan", &model, "--device", "cpu", "--lora", &format!("{lora}=0.5")]);
    assert!(plan.contains(&format!("with {lora} × 0.5: 1 linear, rank 2, ")), "{plan}");
    let plan = home.json("tierflow.plan/5", &["plan", &model, "--device", "cpu", "--lora", &lora, "--json"]);
    assert_eq!((&plan["loras"][0]["n_linears"], &plan["loras"][0]["scale"]), (&Value::from(1), &Value::from(1.0)));
}

#[test]
fn adapters_that_are_none_are_refused() {
    let home = Home::new();
    let model = home.gguf_model(GgufType::F32);
    let refused = home.refusal(1, &["run", &model, "-p", "x", "--lora", &model]);
    assert!(refused.contains("is no LoRA adapter"), "{refused}");
    let missing = text(&home.path("missing"));
    assert!(home.refusal(1, &["plan", &model, "--lora", &missing]).contains("missing"));
}
