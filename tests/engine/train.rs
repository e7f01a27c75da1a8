//! Training against torch and peft (`tests/golden/training.py`), and against itself: on other threads, streamed from disk, killed and resumed.

use std::collections::BTreeMap;
use std::path::Path;
use std::slice::from_ref;
use std::sync::Arc;

use pollster::block_on;
use serde::Deserialize;
use tierflow::convert::{ConvertOptions, convert};
use tierflow::device::{Device, DeviceChoice};
use tierflow::dtype::DType;
use tierflow::engine::{Engine, EngineBuilder, TextFiles};
use tierflow::error::Error;
use tierflow::lora::{self, LowRank, NormValues, Settings};
use tierflow::machine::Measure;
use tierflow::plan::{KvDType, PlanOptions};
use tierflow::stream::{Batch, BatchToken, Logits, LogitsRequest};
use tierflow::train::{
    DataSet, Example, Layer, LoraOptions, LossOptions, MixedPrecision, OptimizerKind, Progress, Sequence, TrainOptions, Trainer,
};
use tierflow::units::Bytes;

use super::models::families;

/// What the script wrote.
#[derive(Deserialize)]
struct Goldens {
    cases: Vec<Case>,
    norms: Vec<Case>,
    curve: Vec<f64>,
    full: Vec<Case>,
    full_curves: Vec<Curve>,
}

/// Losses of a model that is trained whole.
#[derive(Deserialize)]
struct Curve {
    name: String,
    optimizer: OptimizerKind,
    rate: f64,
    losses: Vec<f64>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    #[serde(default)]
    targets: Vec<String>,
    #[serde(default)]
    norms: Vec<String>,
    loss: f64,
    gradients: BTreeMap<String, Gradient>,
}

#[derive(Deserialize)]
struct Gradient {
    norm: f64,
    largest: f64,
    values: Vec<f64>,
}

/// Gradients may differ by this share of a matrix's largest.
const TOLERANCE: f64 = 1e-4;
const RANK: usize = 4;

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("../golden/training.json")).unwrap()
}

/// A text of the script.
fn text(number: usize, len: usize) -> Example {
    let vocab_size = 261;
    let tokens = (0..len).map(|i| ((37 * i + 11 * number * number + i * number) % vocab_size) as u32).collect();
    let first = (len / 3).max(1);
    Example { tokens, is_trained: (0..len).map(|i| i >= first).collect() }
}

fn options(targets: &[&str]) -> TrainOptions {
    let targets = targets.iter().map(|target| (*target).to_owned()).collect();
    let lora = LoraOptions { rank: RANK, alpha: 8.0, targets, ..LoraOptions::default() };
    TrainOptions { lora, batch: 2, seq_len: 64, n_steps: 50, ..TrainOptions::default() }
}

fn builder(folder: &Path) -> EngineBuilder {
    Engine::builder(folder).text(TextFiles::Skip).measure(Measure::Never)
}

fn open(builder: EngineBuilder, options: TrainOptions) -> Trainer {
    block_on(Trainer::open(builder, options, &|_| {})).unwrap()
}

/// Gives a trainer the script's adapter, through a folder in PEFT's form.
fn begin(trainer: &mut Trainer, folder: &Path, scale_of_b: f32) {
    let mut settings = Settings::new(RANK, 8.0, vec!["q_proj".into()]);
    settings.modules_to_save.clone_from(&trainer.adapter().modules_to_save);
    let (norms, linears): (Vec<&Layer>, Vec<&Layer>) = trainer.adapter().layers.iter().partition(|layer| layer.is_norm());
    // They begin as the model's own.
    let norm = |layer: &Layer| {
        let bias = (!layer.b.is_empty()).then(|| layer.b.clone());
        (layer.module.clone(), NormValues { weight: layer.a.clone(), bias })
    };
    let norms = norms.into_iter().map(norm).collect();
    let linears = linears.into_iter().map(|layer| {
        let Layer { module, n_inputs, n_outputs, a, b } = layer;
        let scale_of_a = 1.0 / (*n_inputs as f32).sqrt();
        let down = families::uniform(&format!("{module}.lora_A"), a.len()).into_iter().map(|x| x * scale_of_a).collect();
        let up = families::uniform(&format!("{module}.lora_B"), b.len()).into_iter().map(|x| x * scale_of_b).collect();
        (module.clone(), LowRank { rank: RANK, n_inputs: *n_inputs, n_outputs: *n_outputs, down, up, scaling: 2.0 })
    });
    lora::Adapter { path: String::new(), settings, linears: linears.collect(), norms }.write(folder).unwrap();
    trainer.begin_from(folder).unwrap();
}

fn check(name: &str, layers: &[Layer], expected: &BTreeMap<String, Gradient>) {
    let mut found: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for layer in layers {
        let names = if layer.is_norm() { ["weight", "bias"] } else { ["lora_A", "lora_B"] };
        let matrices = names.into_iter().zip([&layer.a, &layer.b]).filter(|(_, values)| !values.is_empty());
        found.extend(matrices.map(|(name, values)| (format!("{}.{name}", layer.module), values.clone())));
    }
    check_values(name, &found, expected);
}

fn check_values(name: &str, found: &BTreeMap<String, Vec<f32>>, expected: &BTreeMap<String, Gradient>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
    for (matrix, expected) in expected {
        let found = &found[matrix];
        let norm = found.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
        assert!((norm - expected.norm).abs() <= TOLERANCE * expected.norm, "{name} {matrix}: length {norm}, not {}", expected.norm);
        let some = found.iter().step_by((found.len() / 8).max(1)).take(8);
        for (index, (found, value)) in some.zip(&expected.values).enumerate() {
            let off = (f64::from(*found) - value).abs();
            assert!(off <= TOLERANCE * expected.largest, "{name} {matrix} {index}: {found}, not {value}, of {}", expected.largest);
        }
    }
}

#[test]
fn gradients_of_many_families_are_those_of_torch_and_peft() {
    let root = tempfile::tempdir().unwrap();
    for case in goldens().cases {
        let folder = families::written(root.path(), &case.name);
        let targets: Vec<&str> = case.targets.iter().map(String::as_str).collect();
        let mut trainer = open(builder(&folder), options(&targets));
        begin(&mut trainer, &root.path().join("adapter"), 0.1);
        let texts = [text(0, 21), text(1, 9)];
        // Side by side, and one behind the other.
        let orders = [vec![&texts[0], &texts[1]], vec![&texts[1], &texts[0]]];
        for examples in orders.iter().take(if case.name == "llama" { 2 } else { 1 }) {
            let (loss, gradients) = block_on(trainer.gradients(examples)).unwrap();
            assert!((loss - case.loss).abs() < 1e-5 * case.loss, "{}: loss {loss}, not {}", case.name, case.loss);
            check(&case.name, &gradients.layers, &case.gradients);
        }
    }
}

/// Options of a case whose norms are trained.
fn with_norms(case: &Case) -> TrainOptions {
    let targets: Vec<&str> = case.targets.iter().map(String::as_str).collect();
    let lora = LoraOptions { modules_to_save: case.norms.clone(), ..options(&targets).lora };
    TrainOptions { lora, ..options(&targets) }
}

#[test]
fn gradients_of_norms_are_those_of_torch() {
    gradients_of_norms(builder);
}

#[test]
fn gradients_of_norms_on_an_adapter_are_those_of_torch() {
    gradients_of_norms(on_gpu);
}

fn gradients_of_norms(builder: impl Fn(&Path) -> EngineBuilder) {
    let root = tempfile::tempdir().unwrap();
    let cases = goldens().norms;
    assert!(cases.len() > 5);
    for case in cases {
        let mut trainer = open(builder(&families::written(root.path(), &case.name)), with_norms(&case));
        begin(&mut trainer, &root.path().join("adapter"), 0.1);
        let (loss, gradients) = block_on(trainer.gradients(&[&text(0, 21), &text(1, 9)])).unwrap();
        assert!((loss - case.loss).abs() < 1e-5 * case.loss, "{}: loss {loss}, not {}", case.name, case.loss);
        check(&case.name, &gradients.layers, &case.gradients);
    }
}

/// The mean loss of a text, as an engine with an adapter predicts it.
fn loss_of(model: &Path, adapter: Option<&Path>, text: &Example) -> f64 {
    let len = text.tokens.len();
    let plan_options = PlanOptions { ctx_size: Some(len), logit_rows: len, kv_dtype: KvDType::F32, ..PlanOptions::default() };
    let mut builder = builder(model).device(DeviceChoice::Cpu).plan_options(plan_options);
    if let Some(adapter) = adapter {
        builder = builder.lora(Arc::new(lora::Adapter::open(adapter).unwrap()), 1.0);
    }
    let tokens = (0..).zip(&text.tokens).map(|(position, &token)| BatchToken { token, sequence: 0, position }).collect();
    let batch = Batch { tokens, logits_for: (0..len as u32).collect(), logits_request: LogitsRequest::All };
    let logits = block_on(block_on(builder.open()).unwrap().forward(&batch)).unwrap();
    let rows = logits.iter().map(|row| if let Logits::All(row) = row { row } else { panic!("all logits") });
    let rows = rows.zip(&text.tokens[1..]).zip(&text.is_trained[1..]);
    let losses = rows.filter(|(_, is_trained)| **is_trained).map(|((logits, token), _)| {
        let most = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
        f64::from(most) + sum.ln() - f64::from(logits[*token as usize])
    });
    losses.sum::<f64>() / text.n_trained() as f64
}

#[test]
fn norms_that_were_trained_answer_as_in_training() {
    let root = tempfile::tempdir().unwrap();
    let (text, saved) = (text(0, 21), root.path().join("trained"));
    for (name, end) in [("gemma2", "norm"), ("starcoder2", "layernorm")] {
        let folder = families::written(root.path(), name);
        let of_file = root.path().join(format!("{name}-gguf/model.gguf"));
        for model in [folder.clone(), of_file].into_iter().filter(|model| model.exists()) {
            let lora = LoraOptions { modules_to_save: vec![end.into()], ..options(&["v_proj"]).lora };
            let mut trainer = open(builder(&model), TrainOptions { lora, learning_rate: 3e-2, ..options(&[]) });
            let n_norms = trainer.adapter().layers.iter().filter(|layer| layer.is_norm()).count();
            let before = block_on(trainer.evaluate(&DataSet { examples: vec![text.clone()], ..DataSet::default() })).unwrap();
            assert!((loss_of(&model, None, &text) - before).abs() < 1e-4, "{}", model.display());
            for _ in 0..3 {
                block_on(trainer.step_on(&[&text])).unwrap();
            }
            let after = block_on(trainer.evaluate(&DataSet { examples: vec![text.clone()], ..DataSet::default() })).unwrap();
            trainer.save_adapter(&saved).unwrap();
            let read = lora::Adapter::open(&saved).unwrap();
            assert!(read.norms.len() == n_norms && n_norms > 4 && read.settings.modules_to_save == [end], "{name}: {n_norms}");
            // The adapter holds transformers' weights, whichever file it was trained beside.
            for model in [&model, &folder] {
                let found = loss_of(model, Some(&saved), &text);
                assert!((found - after).abs() < 1e-4 && (before - after).abs() > 0.1, "{}: {found}, not {after}", model.display());
            }
        }
    }
}

/// Options of training all of a model, or these modules of it.
fn full(targets: &[&str]) -> TrainOptions {
    TrainOptions { full: true, ..options(targets) }
}

/// Values by the names of the tensors of files, of which some hold several matrices.
fn by_tensor(layers: &[Layer]) -> BTreeMap<String, Vec<f32>> {
    let mut found: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for layer in layers {
        let name = layer.module.split(':').next().unwrap();
        found.entry(name.to_owned()).or_default().extend(&layer.a);
    }
    found
}

#[test]
fn gradients_of_all_weights_are_those_of_torch() {
    let root = tempfile::tempdir().unwrap();
    let cases = goldens().full;
    assert!(cases.len() > 10);
    for case in cases {
        let folder = families::written(root.path(), &case.name);
        let mut trainer = open(builder(&folder), full(&[]));
        let (loss, gradients) = block_on(trainer.gradients(&[&text(0, 21), &text(1, 9)])).unwrap();
        assert!((loss - case.loss).abs() < 1e-5 * case.loss, "{}: loss {loss}, not {}", case.name, case.loss);
        check_values(&case.name, &by_tensor(&gradients.layers), &case.gradients);
        assert_eq!(trainer.bytes_on_disk(), Bytes::ZERO);
        // Some of them alone have the same gradients.
        let some = if case.name == "phi3" { vec!["embed_tokens", "qkv_proj"] } else { vec!["lm_head", "o_proj", "fc2", "input_layernorm"] };
        let known = |target: &&str| trainer.adapter().layers.iter().any(|layer| layer.module.contains(*target));
        let some: Vec<&str> = some.into_iter().filter(known).collect();
        let mut alone = open(builder(&folder), full(&some));
        let (other, some) = block_on(alone.gradients(&[&text(0, 21), &text(1, 9)])).unwrap();
        assert!(
            other == loss && some.layers.len() < gradients.layers.len() && !some.layers.is_empty(),
            "{}: {other}, not {loss}",
            case.name
        );
        let all = by_tensor(&gradients.layers);
        for (name, found) in by_tensor(&some.layers) {
            let largest = case.gradients[&name].largest;
            let off = found.iter().zip(&all[&name]).map(|(found, all)| f64::from(found - all).abs()).fold(0.0, f64::max);
            assert!(off <= TOLERANCE * largest, "{} {name}: {off} of {largest}", case.name);
        }
    }
}

#[test]
fn models_that_are_trained_whole_have_the_losses_of_torch() {
    let root = tempfile::tempdir().unwrap();
    let curves = goldens().full_curves;
    assert_eq!(curves.len(), 3);
    for Curve { name, optimizer, rate, losses } in curves {
        let folder = families::written(root.path(), &name);
        assert!(losses.len() > 20);
        let n_steps = losses.len() as u64;
        let options =
            TrainOptions { optimizer, learning_rate: rate, weight_decay: 0.01, n_warmup: 5, n_steps, grad_clip: Some(1.0), ..full(&[]) };
        let mut trainer = open(builder(&folder), options);
        for (step, expected) in losses.iter().enumerate() {
            let texts: Vec<Example> = (0..2).map(|i| (step * 2 + i * 5) % 12).map(|number| text(number, 6 + number)).collect();
            let report = block_on(trainer.step_on(&[&texts[0], &texts[1]])).unwrap();
            assert!((report.loss - expected).abs() < 1e-3, "{name}, step {step}: {}, not {expected}", report.loss);
        }
        assert!(losses.last().unwrap() + 1.0 < losses[0], "{losses:?}");
    }
}

/// The mean loss of a text as training computes it.
fn evaluated(trainer: &mut Trainer, text: &Example) -> f64 {
    block_on(trainer.evaluate(&DataSet { examples: vec![text.clone()], ..DataSet::default() })).unwrap()
}

#[test]
fn a_model_that_was_trained_whole_answers_as_in_training() {
    let root = tempfile::tempdir().unwrap();
    let text = text(0, 21);
    // Stored in 32 bits, in 16 with its embedding as head, with several matrices in one, with a bias of the head.
    for name in ["llama", "gemma2", "phi3", "phi"] {
        let folder = families::written(root.path(), name);
        let (as_found, in_full) = (root.path().join(format!("{name}-trained")), root.path().join(format!("{name}-f32")));
        let mut trainer = open(builder(&folder), TrainOptions { learning_rate: 3e-3, ..full(&[]) });
        let before = evaluated(&mut trainer, &text);
        assert!((loss_of(&folder, None, &text) - before).abs() < 1e-4, "{name}");
        // Nothing has changed: all bytes of all tensors are those of the model.
        trainer.save_model(&as_found, None).unwrap();
        let tensors = |folder: &Path| {
            let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
            let found = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut all: Vec<_> =
                found.tensors().into_iter().map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec())).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        assert!(tensors(&as_found) == tensors(&folder), "{name}");
        assert_eq!(std::fs::read(as_found.join("config.json")).unwrap(), std::fs::read(folder.join("config.json")).unwrap());
        for _ in 0..3 {
            block_on(trainer.step_on(&[&text])).unwrap();
        }
        let after = evaluated(&mut trainer, &text);
        assert!((before - after).abs() > 0.1, "{name}: {before} {after}");
        trainer.save_model(&as_found, None).unwrap();
        trainer.save_model(&in_full, Some(DType::F32)).unwrap();
        assert!(tensors(&as_found) != tensors(&folder));
        for (saved, most) in [(&as_found, 2e-2), (&in_full, 1e-4)] {
            let found = loss_of(saved, None, &text);
            assert!((found - after).abs() < most, "{}: {found}, not {after}", saved.display());
            // What was written can be trained on, from where it was.
            let again = evaluated(&mut open(builder(saved), full(&["lm_head"])), &text);
            assert!((again - found).abs() < 1e-4, "{}: {again}, not {found}", saved.display());
        }
        assert!(trainer.save_model(&folder, None).unwrap_err().to_string().contains("the folder of the model itself"));
        assert!(trainer.save_adapter(&in_full).unwrap_err().to_string().contains("save the model"));
    }
}

#[test]
fn frozen_modules_keep_their_bytes_and_an_embedding_that_is_stored_twice_stays_one() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "qwen2");
    // As transformers before 4.46 and others write it: the head once more.
    let file = folder.join("model.safetensors");
    let tensors = |path: &Path| -> BTreeMap<String, Vec<u8>> {
        let bytes = std::fs::read(path).unwrap();
        let found = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        found.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
    };
    let bytes = std::fs::read(&file).unwrap();
    let found = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embedding = found.tensor("model.embed_tokens.weight").unwrap();
    let all: Vec<_> = found.tensors().into_iter().chain([("lm_head.weight".to_owned(), embedding)]).collect();
    std::fs::write(&file, safetensors::serialize(all, None).unwrap()).unwrap();
    let before = tensors(&file);
    let saved = root.path().join("saved");
    let mut trainer = open(builder(&folder), TrainOptions { learning_rate: 1e-2, ..full(&["lm_head", "layers.1.mlp.up_proj", "k_proj"]) });
    let names: Vec<&str> = trainer.adapter().layers.iter().map(|layer| layer.module.as_str()).collect();
    let of_keys = |name: &&&str| name.contains("k_proj");
    assert!(names.contains(&"model.embed_tokens.weight") && names.iter().filter(of_keys).all(|name| name.starts_with("model.layers.")));
    assert!(names.iter().filter(of_keys).any(|name| name.ends_with(".bias")), "{names:?}");
    block_on(trainer.step_on(&[&text(0, 21)])).unwrap();
    let after_step = evaluated(&mut trainer, &text(1, 9));
    trainer.save_model(&saved, None).unwrap();
    let after = tensors(&saved.join("model.safetensors"));
    assert!(after["lm_head.weight"] == after["model.embed_tokens.weight"] && after.len() == before.len());
    for (name, bytes) in &before {
        let is_trained = name.contains("k_proj")
            || name.contains("layers.1.mlp.up_proj")
            || ["lm_head.weight", "model.embed_tokens.weight"].contains(&&**name);
        assert_eq!(&after[name] != bytes, is_trained, "{name}");
    }
    assert!((loss_of(&saved, None, &text(1, 9)) - after_step).abs() < 5e-3);
}

#[test]
fn full_training_goes_on_with_the_same_bits_on_any_number_of_threads() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "qwen2");
    for optimizer in [OptimizerKind::Adamw, OptimizerKind::Sgd] {
        let options = || TrainOptions { optimizer, learning_rate: 3e-3, weight_decay: 0.01, ..full(&[]) };
        let checkpoints = root.path().join(format!("{optimizer:?}"));
        let expected = trained(&mut open(builder(&folder), options()), 4);
        let on_one = tierflow::platform::among_n_threads(1, || trained(&mut open(builder(&folder), options()), 4)).unwrap();
        assert!(on_one == expected, "{optimizer:?}");
        let mut first = open(builder(&folder), options());
        trained(&mut first, 2);
        first.save_checkpoint(&checkpoints).unwrap();
        let mut second = open(builder(&folder), options());
        assert!(second.resume(&checkpoints).unwrap() && second.progress().n_done == 2);
        assert!(trained(&mut second, 4) == expected, "{optimizer:?}");
        for (other, what) in [(full(&["q_proj"]), "other targets"), (TrainOptions { full: false, ..options() }, "full")] {
            let other = TrainOptions { optimizer, learning_rate: 3e-3, weight_decay: 0.01, ..other };
            let refused = open(builder(&folder), other).resume(&checkpoints).unwrap_err().to_string();
            assert!(refused.contains(what), "{refused}");
        }
    }
}

#[test]
fn what_cannot_be_trained_whole_is_named() {
    let root = tempfile::tempdir().unwrap();
    let refused =
        |folder: &Path, options: TrainOptions| block_on(Trainer::open(builder(folder), options, &|_| {})).err().unwrap().to_string();
    let llama = families::written(root.path(), "llama");
    assert!(refused(&llama, full(&["x_proj"])).contains("`x_proj` is no module of this model; it has "));
    let dropping = TrainOptions { lora: LoraOptions { dropout: 0.1, ..LoraOptions::default() }, ..full(&[]) };
    assert!(refused(&llama, dropping).contains("dropout"));
    let saving = TrainOptions { lora: LoraOptions { modules_to_save: vec!["norm".into()], ..LoraOptions::default() }, ..full(&[]) };
    assert!(refused(&llama, saving).contains("name norms among the targets"));
    let of_file = root.path().join("llama-gguf/model.gguf");
    assert!(refused(&of_file, full(&[])).contains("name the model's folder"));
    let transposed = families::written(root.path(), "gpt2");
    assert!(refused(&transposed, full(&[])).contains("`transformer.h.0.attn.c_attn.weight"), "{}", refused(&transposed, full(&[])));
    // Those that are stored as they are computed with, learned positions among them, can be.
    let mut trainer = open(builder(&transposed), full(&["wpe", "ln_f"]));
    let before = evaluated(&mut trainer, &text(0, 21));
    block_on(trainer.step_on(&[&text(0, 21)])).unwrap();
    assert!(evaluated(&mut trainer, &text(0, 21)) < before);
    let on_gpu = builder(&llama).device(DeviceChoice::Gpu);
    let refusal = block_on(Trainer::open(on_gpu, full(&[]), &|_| {})).err().unwrap().to_string();
    assert!(refusal.contains("trained on the host alone"), "{refusal}");
}

#[test]
fn the_memory_of_full_training_is_counted_before_anything_is_loaded() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "llama");
    let plan = |options: &TrainOptions| block_on(Trainer::plan(builder(&folder), options)).unwrap();
    let (adapter, whole) = (plan(&options(&[])), plan(&full(&[])));
    let [of_adapter, host] = [&adapter, &whole].map(|plan| plan.devices.last().unwrap().clone());
    assert_eq!(whole.n_values as u64, open(builder(&folder), full(&[])).n_parameters());
    // Weights, gradients and two means of each value, and of the weights as they are stored nothing.
    let n_more = (whole.n_values - adapter.n_values) as u64;
    assert_eq!(host.training, of_adapter.training + Bytes(16 * n_more));
    assert_eq!((host.weights, whole.on_disk), (Bytes::ZERO, Bytes::ZERO));
    let sgd = plan(&TrainOptions { optimizer: OptimizerKind::Sgd, ..full(&[]) });
    assert_eq!(sgd.devices[0].training + Bytes(4 * whole.n_values as u64), host.training);
    let tight = builder(&folder).max_memory(Device::Cpu, Bytes(host.training.0 - 1));
    let Err(Error::DoesNotFit { needed, .. }) = block_on(Trainer::open(tight, full(&[]), &|_| {})) else { panic!("there is no room") };
    assert_eq!(needed, host.training);
    // Of some modules the others stay as they are stored.
    let some = plan(&full(&["q_proj"]));
    assert!(some.devices[0].weights > Bytes::ZERO && some.devices[0].training < host.training);
}

#[test]
fn frozen_matrices_of_32_bits_may_be_held_in_16() {
    let root = tempfile::tempdir().unwrap();
    let mut golden = families::Golden::of("qwen3");
    golden.dtype = "F32".into();
    golden.write(root.path(), "qwen3");
    let folder = root.path().join("qwen3");
    for (mixed_precision, name) in [(MixedPrecision::Bf16, "bf16"), (MixedPrecision::Fp16, "f16")] {
        let file = root.path().join(format!("{name}.gguf"));
        let file_type = name.parse().unwrap();
        convert(&folder, &file, ConvertOptions { file_type, pure: true }, &mut |_, _| Ok(())).unwrap();
        for builder in [builder, on_gpu] {
            let of_file = trained(&mut open(builder(&file), options(&["q_proj", "down_proj"])), 3);
            let mixed = || TrainOptions { mixed_precision, ..options(&["q_proj", "down_proj"]) };
            assert!(trained(&mut open(builder(&folder), mixed()), 3) == of_file, "{name}");
            // From disk, too.
            assert!(trained(&mut in_little_host_memory(&builder(&folder), mixed()).0, 3) == of_file, "{name}");
            assert!(trained(&mut open(builder(&folder), options(&["q_proj", "down_proj"])), 3) != of_file, "{name}");
        }
        let planned = |options: &TrainOptions| block_on(Trainer::plan(builder(&folder), options)).unwrap().devices[0].weights;
        let mixed = TrainOptions { mixed_precision, ..options(&[]) };
        assert!(planned(&mixed).0 < planned(&options(&[])).0 * 11 / 20);
        let refused = block_on(Trainer::plan(builder(&folder), &TrainOptions { mixed_precision, ..full(&[]) })).unwrap_err();
        assert!(refused.to_string().contains("mixed precision"), "{refused}");
    }
}

#[test]
fn what_units_have_read_waits_on_disk_where_memory_has_no_room() {
    what_units_have_read_waits_on_disk(builder, true);
}

#[test]
fn what_units_have_read_for_an_adapter_waits_on_disk_where_memory_has_no_room() {
    what_units_have_read_waits_on_disk(on_gpu, false);
}

fn what_units_have_read_waits_on_disk(builder: impl Fn(&Path) -> EngineBuilder, also_full: bool) {
    let root = tempfile::tempdir().unwrap();
    let (folder, spill) = (families::written(root.path(), "qwen3"), root.path().join("spill"));
    std::fs::create_dir(&spill).unwrap();
    let of_adapter = TrainOptions { batch: 16, learning_rate: 1e-2, ..options(&["q_proj", "down_proj"]) };
    let of_all = TrainOptions { batch: 16, learning_rate: 1e-3, ..full(&[]) };
    for options in [Some(of_adapter), also_full.then_some(of_all)].into_iter().flatten() {
        let spilling = TrainOptions { spill: Some(spill.clone()), ..options.clone() };
        // With room for it, it stays in memory.
        let roomy = block_on(Trainer::plan(builder(&folder), &spilling)).unwrap();
        assert_eq!(roomy.kept_on_disk, Bytes::ZERO);
        let expected = trained(&mut open(builder(&folder), options.clone()), 3);
        let (mut trainer, budget) = in_little_host_memory(&builder(&folder), spilling.clone());
        let (mut whole, least) = in_little_host_memory(&builder(&folder), options.clone());
        assert!(budget < least && trainer.spills() && !whole.spills(), "{budget} {least}");
        assert!(trained(&mut trainer, 3) == expected && trained(&mut whole, 3) == expected);
        let tight = builder(&folder).max_memory(Device::Cpu, budget);
        let planned = block_on(Trainer::plan(tight.clone(), &spilling)).unwrap();
        assert!(planned.kept_on_disk.0 > 16 * 64 * 4 && planned.report().contains("wait there in each batch"), "{}", planned.report());
        assert_eq!(std::fs::read_dir(&spill).unwrap().count(), 0, "the file has no name");
        let refused = block_on(Trainer::plan(tight.clone(), &options)).err().unwrap();
        assert!(matches!(refused, Error::DoesNotFit { .. }), "{refused}");
        let nowhere = TrainOptions { spill: Some(root.path().join("nowhere")), ..options.clone() };
        let refused = block_on(Trainer::open(tight, nowhere, &|_| {})).err().unwrap().to_string();
        assert!(refused.contains("nowhere"), "{refused}");
    }
}

/// As [`builder`], on the adapter of the tests.
fn on_gpu(folder: &Path) -> EngineBuilder {
    crate::common::gpus();
    builder(folder).device(DeviceChoice::GpuAt(0))
}

#[test]
fn gradients_on_an_adapter_are_those_of_torch_and_peft() {
    let root = tempfile::tempdir().unwrap();
    for case in goldens().cases {
        let folder = families::written(root.path(), &case.name);
        let targets: Vec<&str> = case.targets.iter().map(String::as_str).collect();
        let mut trainer = open(on_gpu(&folder), options(&targets));
        begin(&mut trainer, &root.path().join("adapter"), 0.1);
        let texts = [text(0, 21), text(1, 9)];
        let mute = Example { is_trained: vec![false; 21], ..texts[0].clone() };
        // A second batch finds nothing of the first one, and one without targets adds nothing.
        for examples in [&[&texts[0], &texts[1]][..], &[&texts[0], &texts[1], &mute]] {
            let (loss, gradients) = block_on(trainer.gradients(examples)).unwrap();
            assert!((loss - case.loss).abs() < 1e-5 * case.loss, "{}: loss {loss}, not {}", case.name, case.loss);
            check(&case.name, &gradients.layers, &case.gradients);
        }
    }
}

#[test]
fn an_adapter_drops_what_the_host_drops() {
    let root = tempfile::tempdir().unwrap();
    for name in ["llama", "phi"] {
        let folder = families::written(root.path(), name);
        let dropping = TrainOptions { lora: LoraOptions { dropout: 0.3, ..options(&[]).lora }, batch: 1, ..options(&[]) };
        let [mut on_host, mut on_gpu] = [builder(&folder), on_gpu(&folder)].map(|builder| open(builder, dropping.clone()));
        [&mut on_host, &mut on_gpu].into_iter().for_each(|trainer| begin(trainer, &root.path().join("adapter"), 0.1));
        let texts = [text(0, 21), text(1, 9)];
        let examples = [&texts[0], &texts[1]];
        let ((loss, expected), (other, found)) =
            (block_on(on_host.gradients(&examples)).unwrap(), block_on(on_gpu.gradients(&examples)).unwrap());
        assert!((loss - other).abs() < 1e-5 * loss, "{name}: {loss} {other}");
        for (own, layer) in found.layers.iter().zip(&expected.layers) {
            for (own, expected) in [(&own.a, &layer.a), (&own.b, &layer.b)] {
                let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                let off = own.iter().zip(expected).map(|(own, expected)| (own - expected).abs()).fold(0.0, f32::max);
                assert!(f64::from(off) <= TOLERANCE * f64::from(largest), "{name} {}: {off} of {largest}", layer.module);
            }
        }
        let data = DataSet { examples: texts.into(), ..DataSet::default() };
        let [without, beside] = [&mut on_host, &mut on_gpu].map(|trainer| block_on(trainer.evaluate(&data)).unwrap());
        assert!((without - beside).abs() < 1e-5 * without && (without - loss).abs() > 1e-4, "nothing is dropped there: {without} {beside}");
    }
}

#[test]
fn what_streams_through_an_adapter_changes_no_bit() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "qwen3");
    let lora = || LoraOptions { dropout: 0.3, modules_to_save: vec!["norm".into()], ..options(&["q_proj", "down_proj"]).lora };
    let options = || TrainOptions { lora: lora(), learning_rate: 1e-2, ..options(&[]) };
    let of = |mut trainer: Trainer| {
        let layers = trained(&mut trainer, 3);
        let (used, streamed) = (trainer.gpu_use().unwrap(), block_on(trainer.step_on(&[&text(0, 12)])).unwrap().streamed_bytes);
        // Each way takes all that has no room, the head's twice.
        assert!(streamed >= used.streamed.times(2) && streamed <= used.streamed.times(5), "{streamed} {used:?}");
        (layers, used, trainer.bytes_on_disk())
    };
    let (resident, whole, _) = of(open(on_gpu(&folder), options()));
    let without = TrainOptions { lora: LoraOptions { dropout: 0.0, ..options().lora }, ..options() };
    assert!(trained(&mut open(on_gpu(&folder), without), 3) != resident, "nothing was dropped");
    assert_eq!(whole.streamed, Bytes::ZERO);
    let planned = block_on(Trainer::plan(on_gpu(&folder), &options())).unwrap();
    assert_eq!(planned.devices[0].weights + planned.devices[0].training, whole.planned);
    assert!(whole.peak <= whole.planned && whole.planned.0 - whole.peak.0 < 64 << 10, "{whole:?}");
    let tight = Bytes(whole.peak.0 - whole.resident.0 * 7 / 10);
    let tightly = || on_gpu(&folder).max_memory(Device::Gpu(0), tight);
    let (streamed, part, _) = of(open(tightly(), options()));
    assert!(part.streamed.0 > part.resident.0 && part.peak <= part.planned && part.planned <= tight, "{part:?}");
    assert!(streamed == resident, "streamed weights gave other bits");
    let (from_disk, part, on_disk) = of(in_little_host_memory(&tightly(), options()).0);
    assert!(part.streamed > Bytes::ZERO && on_disk > Bytes::ZERO, "{part:?} {on_disk}");
    assert!(from_disk == resident, "weights from disk gave other bits");
}

#[test]
fn an_adapter_without_room_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "llama");
    let builder = on_gpu(&folder).max_memory(Device::Gpu(0), Bytes(1 << 20));
    let refused = block_on(Trainer::open(builder, TrainOptions { seq_len: 64, batch: 64, ..options(&[]) }, &|_| {}));
    let Err(Error::DoesNotFit { device, .. }) = refused else { panic!("{:?}", refused.err()) };
    assert!(device.starts_with("gpu"), "{device}");
}

#[test]
fn fifty_steps_on_an_adapter_have_the_losses_of_peft() {
    let root = tempfile::tempdir().unwrap();
    fifty_steps(on_gpu(&families::written(root.path(), "llama")), root.path());
}

#[test]
fn the_gguf_file_of_a_model_trains_the_same_adapter_in_transformers_order() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "llama");
    let adapters = [folder, root.path().join("llama-gguf/model.gguf")].map(|model| {
        let mut trainer = open(builder(&model), options(&["q_proj", "k_proj", "v_proj"]));
        begin(&mut trainer, &root.path().join("adapter"), 0.1);
        block_on(trainer.step_on(&[&text(0, 21)])).unwrap();
        trainer.save_adapter(&root.path().join("trained")).unwrap();
        lora::Adapter::open(&root.path().join("trained")).unwrap().linears
    });
    for (module, own) in &adapters[0] {
        let other = &adapters[1][module];
        let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far(&own.down, &other.down) < 1e-5 && far(&own.up, &other.up) < 1e-5, "{module}");
    }
}

#[test]
fn fifty_steps_have_the_losses_of_peft() {
    let root = tempfile::tempdir().unwrap();
    fifty_steps(builder(&families::written(root.path(), "llama")), root.path());
}

fn fifty_steps(builder: EngineBuilder, root: &Path) {
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let options = TrainOptions { learning_rate: 1e-2, n_warmup: 5, weight_decay: 0.01, batch: 1, accumulate: 2, ..options(&targets) };
    let mut trainer = open(builder, options);
    begin(&mut trainer, &root.join("adapter"), 0.0);
    for (step, expected) in goldens().curve.into_iter().enumerate() {
        let texts: Vec<Example> = (0..2).map(|i| (step * 2 + i * 5) % 12).map(|number| text(number, 6 + number)).collect();
        let report = block_on(trainer.step_on(&texts.iter().collect::<Vec<_>>())).unwrap();
        assert!((report.loss - expected).abs() < 1e-3, "step {step}: {}, not {expected}", report.loss);
    }
}

fn data() -> DataSet {
    DataSet { examples: (0..6).map(|number| text(number, 10 + 5 * number)).collect(), ..DataSet::default() }
}

/// The values of an adapter behind so many steps.
fn trained(trainer: &mut Trainer, n_steps: u64) -> Vec<Layer> {
    while trainer.progress().n_done < n_steps {
        block_on(trainer.step(&data())).unwrap().unwrap();
    }
    trainer.adapter().layers.clone()
}

/// Opens it with room for what training needs of the host's memory, and for as little of the model as may be.
fn in_little_host_memory(builder: &EngineBuilder, options: TrainOptions) -> (Trainer, Bytes) {
    let open = |budget: Bytes| block_on(Trainer::open(builder.clone().max_memory(Device::Cpu, budget), options.clone(), &|_| {}));
    let mut budget = Bytes(1);
    loop {
        match open(budget) {
            Ok(trainer) => break (trainer, budget),
            Err(Error::DoesNotFit { needed, available, .. }) => budget += Bytes(needed.0.saturating_sub(available.0).max(1)),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn packed_examples_train_as_those_side_by_side() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "qwen3");
    let texts = [text(0, 21), text(1, 9), text(2, 30), text(3, 40)];
    let texts: Vec<&Example> = texts.iter().collect();
    let mut side_by_side = open(builder(&folder), TrainOptions { batch: 3, ..options(&[]) });
    let mut packed = open(builder(&folder), TrainOptions { batch: 1, packs: true, ..options(&[]) });
    // 60 of 64 tokens, and 40 that have no room beside them.
    assert_eq!(block_on(packed.gradients(&texts)).unwrap(), block_on(side_by_side.gradients(&texts)).unwrap());
    // 135 tokens of six examples, in three times 64.
    assert_eq!((side_by_side.steps_per_epoch(&data()), packed.steps_per_epoch(&data())), (2, 3));
    block_on(packed.step(&data())).unwrap().unwrap();
}

#[test]
fn neither_threads_nor_places_of_weights_change_a_bit() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "qwen3");
    let lora = || LoraOptions { dropout: 0.1, modules_to_save: vec!["norm".into()], ..options(&[]).lora };
    let options = || TrainOptions { lora: lora(), learning_rate: 1e-2, ..options(&[]) };
    let expected = trained(&mut open(builder(&folder), options()), 4);
    let (mut from_disk, _) = in_little_host_memory(&builder(&folder), options());
    let on_disk = from_disk.bytes_on_disk();
    assert!(on_disk.0 > 0, "something streams");
    assert!(trained(&mut from_disk, 4) == expected, "from disk");
    let streamed = block_on(from_disk.step_on(&[&text(0, 12)])).unwrap().streamed_bytes;
    assert!(streamed >= on_disk.times(2), "{streamed} of {on_disk}");
    let mut on_one = open(builder(&folder), options());
    let on_one = tierflow::platform::among_n_threads(1, move || trained(&mut on_one, 4)).unwrap();
    assert!(on_one == expected, "on one thread");
    let other = TrainOptions { seed: 1, ..options() };
    assert!(trained(&mut open(builder(&folder), other), 4) != expected, "the seed matters");
}

#[test]
fn training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "llama");
    let checkpoints = root.path().join("checkpoints");
    let lora = || LoraOptions { dropout: 0.1, modules_to_save: vec!["model.norm".into()], ..options(&["q_proj"]).lora };
    let options = || TrainOptions { lora: lora(), n_warmup: 2, ..options(&["q_proj"]) };
    let expected = trained(&mut open(builder(&folder), options()), 7);
    let mut trainer = open(builder(&folder), options());
    assert!(!trainer.resume(&checkpoints).unwrap(), "there is none");
    for n_steps in [2, 4] {
        trained(&mut trainer, n_steps);
        trainer.save_checkpoint(&checkpoints).unwrap();
    }
    trained(&mut trainer, 5);
    drop(trainer);
    // What a run left that was killed while it wrote is not looked at.
    std::fs::create_dir_all(checkpoints.join("step-000005.partial")).unwrap();
    let mut trainer = open(builder(&folder), options());
    assert!(trainer.resume(&checkpoints).unwrap());
    assert_eq!(trainer.progress().n_done, 4);
    assert!(trained(&mut trainer, 7) == expected);
    let mut other = open(builder(&folder), TrainOptions { learning_rate: 1.0, ..options() });
    let reported = other.resume(&checkpoints).unwrap_err().to_string();
    assert!(reported.contains("learning_rate") && reported.contains("state.json"), "{reported}");
    let mut other =
        open(builder(&folder), TrainOptions { lora: LoraOptions { targets: vec!["k_proj".into()], ..options().lora }, ..options() });
    let reported = other.resume(&checkpoints).unwrap_err().to_string();
    assert!(reported.contains("another adapter") && reported.contains("k_proj"), "{reported}");
}

#[test]
fn losses_that_are_no_numbers_are_skipped_until_there_are_three_in_a_row() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "llama");
    let mut trainer = open(builder(&folder), options(&["q_proj"]));
    let mut broken = lora_of(&trainer);
    broken.linears.values_mut().for_each(|linear| linear.up.fill(f32::MAX));
    broken.write(&root.path().join("broken")).unwrap();
    trainer.begin_from(&root.path().join("broken")).unwrap();
    let before = trainer.adapter().layers.clone();
    for _ in 0..2 {
        let report = block_on(trainer.step_on(&[&text(0, 12)])).unwrap();
        assert!(report.is_skipped && !report.loss.is_finite());
    }
    assert_eq!(trainer.progress().n_skipped, 2);
    let error = block_on(trainer.step_on(&[&text(0, 12)])).unwrap_err();
    assert!(matches!(error, Error::TrainingDiverged { step: 3 }) && error.to_string().contains("lower the learning rate"), "{error}");
    assert_eq!(trainer.adapter().layers, before);
}

#[test]
fn a_loop_of_ones_own_has_the_losses_and_the_bits_of_the_trainers() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "llama");
    for kind in [OptimizerKind::Adamw, OptimizerKind::Sgd] {
        let lora = LoraOptions { dropout: 0.1, ..options(&[]).lora };
        let options = || TrainOptions { lora: lora.clone(), optimizer: kind, weight_decay: 0.01, accumulate: 2, ..options(&[]) };
        let (mut own, mut other) = (open(builder(&folder), options()), open(builder(&folder), options()));
        let mut optimizer = other.new_optimizer(kind, 0.01);
        let mut gradients = other.no_gradients();
        for step in 0..6 {
            let examples: Vec<Example> = (0..4).map(|i| text(step + i, 9 + 4 * i)).collect();
            let expected = block_on(own.step_on(&examples.iter().collect::<Vec<_>>())).unwrap();
            let sequences: Vec<Sequence> = examples.iter().map(Sequence::from).collect();
            let n_items = Some(sequences.iter().flat_map(|sequence| &sequence.targets).flatten().count());
            let mut loss = 0.0;
            // One call for each half of the step, with one draw of the dropout each.
            for (draw, half) in (0u64..).zip(sequences.chunks(2)) {
                let options = LossOptions { draw: Some(draw), n_items };
                let read = block_on(other.loss(half, options)).unwrap();
                let before = gradients.clone();
                let added = block_on(other.add_gradients(half, options, 1.0, &mut gradients)).unwrap();
                assert!(added == read && gradients != before, "a loss is the same with gradients");
                loss += added;
            }
            assert!((loss - expected.loss).abs() < 1e-12, "step {step}: {loss}, not {}", expected.loss);
            let norm = gradients.norm();
            assert_eq!(norm, expected.grad_norm, "step {step}");
            gradients.clip(norm, 1.0);
            other.apply(&mut optimizer, &gradients, expected.learning_rate).unwrap();
            gradients.values_mut().for_each(|value| *value = 0.0);
            assert!(own.adapter().layers == other.adapter().layers, "step {step}");
        }
    }
}

#[test]
fn an_optimizer_goes_on_from_its_folder() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "llama");
    let sequences = [Sequence::from(&text(0, 21)), Sequence::from(&text(1, 9))];
    let mut trainer = open(builder(&folder), options(&["q_proj"]));
    let mut optimizer = trainer.new_optimizer(OptimizerKind::Adamw, 0.0);
    let step = |trainer: &mut Trainer, optimizer: &mut _| {
        let mut gradients = trainer.no_gradients();
        block_on(trainer.add_gradients(&sequences, LossOptions::default(), 1.0, &mut gradients)).unwrap();
        trainer.apply(optimizer, &gradients, 1e-2).unwrap();
    };
    step(&mut trainer, &mut optimizer);
    let [adapter, state] = ["adapter", "optimizer"].map(|name| root.path().join(name));
    trainer.save_adapter(&adapter).unwrap();
    trainer.save_optimizer(&optimizer, &state).unwrap();
    step(&mut trainer, &mut optimizer);
    let mut again = open(builder(&folder), options(&["q_proj"]));
    again.begin_from(&adapter).unwrap();
    again.set_progress(Progress { n_done: 1, ..Progress::default() });
    let mut read = again.new_optimizer(OptimizerKind::Adamw, 0.0);
    again.load_optimizer(&mut read, &state).unwrap();
    step(&mut again, &mut read);
    assert!(read == optimizer && again.adapter().layers == trainer.adapter().layers && again.progress() == trainer.progress());
    let mut other = again.new_optimizer(OptimizerKind::Sgd, 0.0);
    let reported = again.load_optimizer(&mut other, &state).unwrap_err().to_string();
    assert!(reported.contains("another kind") && reported.contains("state.json"), "{reported}");
    let elsewhere = open(builder(&folder), options(&["k_proj"]));
    for (optimizer, what) in [(&mut read, "the optimiser"), (&mut elsewhere.new_optimizer(OptimizerKind::Adamw, 0.0), "first")] {
        let reported = elsewhere.load_optimizer(optimizer, &state).unwrap_err().to_string();
        assert!(reported.contains("another adapter") && reported.contains(what), "{reported}");
    }
}

#[test]
fn what_a_loop_may_not_do_is_refused_and_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "llama");
    let mut trainer = open(builder(&folder), options(&["q_proj"]));
    let good = Sequence::from(&text(0, 12));
    let mut gradients = trainer.no_gradients();
    block_on(trainer.add_gradients(from_ref(&good), LossOptions::default(), 1.0, &mut gradients)).unwrap();
    let added = gradients.clone();
    let with = |change: &dyn Fn(&mut Sequence)| {
        let mut sequence = good.clone();
        change(&mut sequence);
        sequence
    };
    let refused: [(Sequence, &str); 5] = [
        (with(&|sequence| sequence.tokens[3] = 261), "token 261 is outside the vocabulary of 261"),
        (with(&|sequence| sequence.targets[5] = Some(300)), "token 300 is outside the vocabulary"),
        (with(&|sequence| sequence.targets.truncate(11)), "of sequence 1 are 11, its tokens 12"),
        (with(&|sequence| sequence.targets.fill(None)), "no token would be trained"),
        (Sequence::from(&text(0, 65)), "sequence 1 has 65 tokens"),
    ];
    for (sequence, reason) in refused {
        let first = if reason.starts_with("no token") { sequence.clone() } else { good.clone() };
        let error =
            block_on(trainer.add_gradients(&[first, sequence], LossOptions::default(), 1.0, &mut gradients)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    // The first of two parts is finite, the second is not: the sum stays as it was.
    let values: Vec<f32> = trainer.adapter().layers.iter().flat_map(Layer::values).map(|_| f32::MAX).collect();
    assert!(trainer.set_values(&values[1..]).unwrap_err().to_string().contains("this adapter has"));
    trainer.set_values(&values).unwrap();
    let before = trainer.adapter().layers.clone();
    let error = block_on(trainer.add_gradients(from_ref(&good), LossOptions::default(), 1.0, &mut gradients)).unwrap_err();
    assert!(matches!(error, Error::LossNotFinite { .. }) && error.to_string().contains("lower the learning rate"), "{error}");
    assert!(gradients == added);
    let mut optimizer = trainer.new_optimizer(OptimizerKind::Adamw, 0.0);
    gradients.values_mut().take(1).for_each(|value| *value = f32::NAN);
    assert!(matches!(trainer.apply(&mut optimizer, &gradients, 1.0), Err(Error::GradientNotFinite)));
    let other = open(builder(&folder), options(&["up_proj"]));
    let error = trainer.apply(&mut other.new_optimizer(OptimizerKind::Adamw, 0.0), &added, 1.0).unwrap_err();
    assert!(error.to_string().contains("is of another adapter"), "{error}");
    assert!(trainer.adapter().layers == before && optimizer.n_taken == 0 && trainer.progress() == Progress::default());
}

fn lora_of(trainer: &Trainer) -> lora::Adapter {
    let folder = tempfile::tempdir().unwrap();
    trainer.save_adapter(folder.path()).unwrap();
    lora::Adapter::open(folder.path()).unwrap()
}

#[test]
fn what_cannot_be_trained_is_named() {
    let root = tempfile::tempdir().unwrap();
    let refused = |name: &str, options: TrainOptions| {
        let folder = families::written(root.path(), name);
        let opened = block_on(Trainer::open(builder(&folder), options, &|_| {}));
        opened.err().unwrap_or_else(|| panic!("{name} was opened")).to_string()
    };
    for (name, reason) in
        [("mixtral", "mixtures of experts"), ("lfm2", "convolutions"), ("bert", "predict no tokens"), ("qwen3_5", "delta rule")]
    {
        let reported = refused(name, options(&[]));
        assert!(reported.contains(reason) || reported.contains("convolutions"), "{name}: {reported}");
    }
    let reported = refused("llama", options(&["q_proj", "w_proj"]));
    assert!(reported.contains("`w_proj`") && reported.contains("down_proj, gate_proj"), "{reported}");
    let save = |end: &str| TrainOptions { lora: LoraOptions { modules_to_save: vec![end.into()], ..options(&[]).lora }, ..options(&[]) };
    for end in ["lm_head", "q_proj", ""] {
        let reported = refused("llama", save(end));
        assert!(reported.contains(&format!("`{end}` is no norm")) && reported.contains("input_layernorm"), "{reported}");
    }
    let reported = refused("phi3", options(&["qkv_proj"]));
    assert!(reported.contains("several matrices in one"), "{reported}");
    let reported = refused("llama", TrainOptions { seq_len: 100_000, ..options(&[]) });
    assert!(reported.contains("positions"), "{reported}");
    let reported = refused("llama", TrainOptions { learning_rate: f64::NAN, ..options(&[]) });
    assert!(reported.contains("learning rate"), "{reported}");
}
