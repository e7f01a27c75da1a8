//! Embeddings: the hidden states that a model without its head gives, and what becomes of them.

use std::path::Path;

use tierflow::device::Device;
use tierflow::engine::{EngineBuilder, TextFiles, normalized};
use tierflow::model::Checkpoint;
use tierflow::plan::PlanOptions;
use tierflow::platform::IoMode;
use tierflow::stream::{Logits, LogitsRequest};
use tierflow::text::{EmbeddingSettings, Pooling, SamplingSettings};
use tierflow::units::Bytes;
use tierflow::{DeviceChoice, Engine, GenerateOptions, Sampler};
use xtask::models::{LlamaShape, Stored, write_hf};

use crate::common::{assert_close, bits, gpus};
use crate::models::families::Golden;

const SEED: u64 = 29;
const TOKENS: [u32; 5] = [3, 90, 17, 3, 41];

fn builder(model: &Path, device: DeviceChoice) -> EngineBuilder {
    let options = PlanOptions { logit_rows: 3, ..PlanOptions::default() };
    Engine::builder(model).plan_options(options).device(device).ctx_size(64).text(TextFiles::Skip)
}

fn open(builder: EngineBuilder) -> Engine {
    pollster::block_on(builder.open()).unwrap()
}

fn embed(engine: &mut Engine, tokens: &[u32], pooling: Pooling) -> Vec<f32> {
    pollster::block_on(engine.embed(tokens, pooling)).unwrap()
}

/// The logits that the model's own head makes of a hidden state.
fn of_head(model: &Path, hidden: &[f32]) -> Vec<f32> {
    let checkpoint = Checkpoint::open(model, IoMode::Pread).unwrap();
    let head = checkpoint.catalog.find("lm_head.weight").unwrap();
    let mut bytes = vec![0; checkpoint.catalog[head].size_bytes.0 as usize];
    checkpoint.read(head, 0, &mut bytes).unwrap();
    let mut weights = vec![0.0; bytes.len() / 4];
    checkpoint.catalog[head].dtype.decode(&bytes, &mut weights);
    weights.chunks_exact(hidden.len()).map(|row| row.iter().zip(hidden).map(|(w, h)| w * h).sum()).collect()
}

fn devices() -> Vec<DeviceChoice> {
    [DeviceChoice::Cpu].into_iter().chain((!gpus().is_empty()).then_some(DeviceChoice::GpuAt(0))).collect()
}

#[test]
fn hidden_states_are_what_the_head_reads() {
    let root = tempfile::tempdir().unwrap();
    write_hf(root.path(), &LlamaShape { tied: false, ..LlamaShape::tiny() }, SEED, Stored::F32, 1).unwrap();
    for device in devices() {
        let mut whole = open(builder(root.path(), device));
        let logits = pollster::block_on(whole.session().append(&TOKENS, LogitsRequest::All)).unwrap();
        let Logits::All(logits) = logits else { panic!("all logits") };
        let mut headless = open(builder(root.path(), device).without_head());
        let last = embed(&mut headless, &TOKENS, Pooling::Last);
        assert_close(&of_head(root.path(), &last), &logits, 1e-4, "logits");
        assert!(pollster::block_on(whole.embed(&TOKENS, Pooling::Last)).unwrap_err().to_string().contains("without_head"));
        let mut session = headless.session();
        let refused =
            pollster::block_on(session.generate(&TOKENS, Sampler::new(SamplingSettings::greedy(), 0), GenerateOptions::default()));
        assert!(refused.err().unwrap().to_string().contains("without its head"));
    }
}

#[test]
fn poolings_take_the_mean_the_first_and_the_last() {
    let root = tempfile::tempdir().unwrap();
    write_hf(root.path(), &LlamaShape::tiny(), SEED, Stored::BF16, 1).unwrap();
    for device in devices() {
        let mut engine = open(builder(root.path(), device).without_head());
        // A token sees what stands before it only: the state of each is the last one of the text that ends with it.
        let states: Vec<Vec<f32>> = (1..=TOKENS.len()).map(|n| embed(&mut engine, &TOKENS[..n], Pooling::Last)).collect();
        let mean: Vec<f32> = (0..states[0].len()).map(|i| states.iter().map(|state| state[i]).sum::<f32>() / TOKENS.len() as f32).collect();
        assert_close(&embed(&mut engine, &TOKENS, Pooling::Mean), &mean, 1e-4, "mean");
        assert_close(&embed(&mut engine, &TOKENS, Pooling::Cls), &states[0], 1e-4, "first");
        let length: f32 = normalized(mean).iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
        assert!(pollster::block_on(engine.embed(&[], Pooling::Mean)).is_err());
    }
    assert_eq!(normalized(vec![0.0, 0.0]), [0.0, 0.0]);
}

#[test]
fn streamed_embeddings_are_the_resident_ones() {
    if gpus().is_empty() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    write_hf(root.path(), &LlamaShape::tiny(), SEED, Stored::BF16, 1).unwrap();
    let gpu = || builder(root.path(), DeviceChoice::GpuAt(0)).without_head();
    let resident = embed(&mut open(gpu()), &TOKENS, Pooling::Mean);
    let prepared = pollster::block_on(gpu().max_memory(Device::Gpu(0), Bytes::kib(400)).prepare()).unwrap();
    assert!(prepared.plan.streamed_chunks().next().is_some(), "something is streamed");
    let mut streamed = pollster::block_on(prepared.load(&|_| ())).unwrap();
    assert_eq!(bits(&embed(&mut streamed, &TOKENS, Pooling::Mean)), bits(&resident));
}

/// In both formats: Qwen3-Embedding takes the last token; EmbeddingGemma's tokens see both sides, and linear layers stand behind its pooling.
#[test]
fn embeddings_are_those_of_sentence_transformers_modules() {
    let root = tempfile::tempdir().unwrap();
    for (name, pooling, n_layers) in [("qwen3-embedding", Pooling::Last, 0), ("embedding_gemma", Pooling::Mean, 2)] {
        Golden::of(name).write(root.path(), name);
        for folder in [root.path().join(name), root.path().join(format!("{name}-gguf"))] {
            let settings = EmbeddingSettings::open(&Checkpoint::open(&folder, IoMode::Pread).unwrap()).unwrap();
            assert_eq!((settings.pooling, settings.dense.len(), settings.normalize), (Some(pooling), n_layers, true), "{name}");
            check_embeddings(&folder, &settings);
        }
    }
}

/// What `expected.json` has of the model in `folder`.
fn check_embeddings(folder: &Path, settings: &EmbeddingSettings) {
    #[derive(serde::Deserialize)]
    struct Case {
        prompt: Vec<u32>,
        embedding: Vec<f32>,
    }
    let expected: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let cases: Vec<Case> = serde_json::from_value(expected["cases"].clone()).unwrap();
    for device in devices() {
        // An encoder reads all of a text at once, and gives a row for each of its tokens.
        let options = PlanOptions { logit_rows: 64, ..PlanOptions::default() };
        let mut engine = open(builder(folder, device).plan_options(options).ctx_size(64).without_head());
        for case in &cases {
            let pooled = embed(&mut engine, &case.prompt, settings.pooling.unwrap());
            let embedding = normalized(settings.project(pooled));
            assert_close(&embedding, &case.embedding, 2e-3, &format!("{} on {device:?}", folder.display()));
        }
    }
}

#[test]
fn layers_behind_the_pooling_must_fit() {
    let root = tempfile::tempdir().unwrap();
    Golden::of("embedding_gemma").write(root.path(), "model");
    let [first, second] = ["2_Dense", "3_Dense"].map(|layer| root.path().join("model").join(layer));
    let refused =
        || EmbeddingSettings::open(&Checkpoint::open(&root.path().join("model"), IoMode::Pread).unwrap()).unwrap_err().to_string();
    std::fs::write(second.join("config.json"), r#"{"in_features": 102, "out_features": 61}"#).unwrap();
    let error = refused();
    assert!(error.contains("`out_features` is 61, but linear.weight has 60"), "{error}");
    std::fs::write(second.join("config.json"), "{}").unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(second.join(file), first.join(file)).unwrap();
    }
    let error = refused();
    assert!(error.contains("reads 102 values where there are 60"), "{error}");
}
