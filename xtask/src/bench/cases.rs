//! Which cases are measured: the host and the adapter beside llama.cpp, streaming beside residence, f32 beside Accelerate.

use std::path::Path;

use super::contest::{Case, Contestant, Field, Place, Runner};
use super::weights::Weights;

/// GPU memory of the streamed case: less than half of what the model takes in Q4_1.
const STREAMED_BUDGET: &str = "gpu:0=40MiB";
/// Host memory of the case from disk: a quarter of what the model takes in f32, about as much as its largest matrix, which
/// Accelerate holds whole.
const DISK_BUDGET: &str = "cpu=128MiB";

/// All cases that this field can run.
pub fn all(field: &Field, weights: &Weights) -> Vec<Case> {
    let mut cases = Vec::new();
    for (form, file) in &weights.gguf {
        cases.extend([(512, 32), (128, 0)].map(|lengths| on_cpu(form, file, lengths)));
    }
    if let Some(adapter) = &field.adapter {
        let lengths = if adapter.is_software { (64, 8) } else { (512, 32) };
        cases.extend(weights.gguf.iter().map(|(form, file)| on_gpu(field, form, file, &adapter.name, lengths)));
        cases.extend(weights.gguf.first().map(|(form, file)| streamed(form, file, &adapter.name, lengths)));
    }
    if let Some(folder) = &weights.safetensors {
        cases.extend([in_ram(folder), from_disk(folder)]);
    }
    cases
}

fn on_cpu(form: &str, file: &Path, (n_prompt, n_gen): (u32, u32)) -> Case {
    let contestants = vec![tierflow("tierflow", file, &["--device", "cpu"]), llama_cpp("llama.cpp", file, Place::Cpu)];
    Case { weights: form.to_owned(), place: "CPU".into(), n_prompt, n_gen, contestants }
}

fn on_gpu(field: &Field, form: &str, file: &Path, adapter: &str, (n_prompt, n_gen): (u32, u32)) -> Case {
    let mut contestants = vec![tierflow("tierflow", file, &["--device", "gpu"])];
    contestants.extend(field.llama_gpu.as_ref().map(|backend| llama_cpp(&format!("llama.cpp {backend}"), file, Place::Gpu)));
    Case { weights: form.to_owned(), place: adapter.to_owned(), n_prompt, n_gen, contestants }
}

fn streamed(form: &str, file: &Path, adapter: &str, (n_prompt, n_gen): (u32, u32)) -> Case {
    let contestants = vec![
        tierflow("tierflow, streamed", file, &["--device", "gpu", "--max-memory", STREAMED_BUDGET]),
        tierflow("tierflow, resident", file, &["--device", "gpu"]),
    ];
    Case { weights: form.to_owned(), place: format!("{adapter}, {STREAMED_BUDGET}"), n_prompt, n_gen, contestants }
}

fn in_ram(folder: &Path) -> Case {
    let contestants = vec![
        tierflow("tierflow", folder, &["--device", "cpu"]),
        accelerate("accelerate, in RAM", folder, "ram"),
        accelerate("accelerate cpu_offload", folder, "ram offload"),
    ];
    Case { weights: "F32".into(), place: "CPU, safetensors".into(), n_prompt: 128, n_gen: 16, contestants }
}

fn from_disk(folder: &Path) -> Case {
    let contestants = vec![
        tierflow("tierflow", folder, &["--device", "cpu", "--max-memory", DISK_BUDGET]),
        accelerate("accelerate disk_offload", folder, "disk offload"),
    ];
    Case { weights: "F32".into(), place: format!("CPU, safetensors from disk, {DISK_BUDGET}"), n_prompt: 128, n_gen: 16, contestants }
}

fn tierflow(name: &str, model: &Path, placement: &[&str]) -> Contestant {
    let arguments = ["--model", &model.to_string_lossy()].iter().chain(placement).map(|word| (*word).to_owned()).collect();
    Contestant { name: name.to_owned(), runner: Runner::Tierflow(arguments) }
}

fn llama_cpp(name: &str, model: &Path, place: Place) -> Contestant {
    Contestant { name: name.to_owned(), runner: Runner::LlamaCpp(model.to_string_lossy().into_owned(), place) }
}

fn accelerate(name: &str, model: &Path, placement: &'static str) -> Contestant {
    Contestant { name: name.to_owned(), runner: Runner::Accelerate(model.to_string_lossy().into_owned(), placement) }
}
