//! Adapters in PEFT's form: what is written is read, and what is wrong is named.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use tierflow::convert::{ConvertOptions, convert_with};
use tierflow::device::DeviceChoice;
use tierflow::engine::{Engine, TextFiles};
use tierflow::lora::{Adapter, LowRank, NormValues, Scaled, Scales, Settings, Targets};
use tierflow::stream::{Logits, LogitsRequest};

use crate::families;

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
const MODULE: &str = "model.layers.0.self_attn.q_proj";

fn linear(settings: &Settings, module: &str, [n_inputs, n_outputs]: [usize; 2], seed: f32) -> LowRank {
    let rank = settings.rank_of(module).unwrap();
    let values = |n: usize| (0..n).map(|index| (index as f32 * 0.37 + seed).sin()).collect();
    let scaling = settings.scaling_of(module).unwrap();
    LowRank { rank, n_inputs, n_outputs, down: values(rank * n_inputs), up: values(n_outputs * rank), scaling }
}

fn adapter(settings: Settings) -> Adapter {
    let of = |module: &str, sides| (module.to_owned(), linear(&settings, module, sides, module.len() as f32));
    let linears = [of(MODULE, [12, 20]), of("model.layers.1.mlp.down_proj", [7, 12])].into();
    Adapter { path: String::new(), settings, linears, norms: [].into() }
}

fn settings() -> Settings {
    Settings::new(3, 6.0, vec!["q_proj".into(), "down_proj".into()])
}

/// Writes it to a new folder, whose config is then changed by `change`.
fn written(adapter: &Adapter, change: impl FnOnce(&mut Value)) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter");
    adapter.write(&path).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(path.join(CONFIG)).unwrap()).unwrap();
    change(&mut config);
    fs::write(path.join(CONFIG), config.to_string()).unwrap();
    (folder, path)
}

fn refusal(path: &Path) -> String {
    Adapter::open(path).unwrap_err().to_string()
}

#[test]
fn what_is_written_is_read() {
    let patterned = Settings {
        ranks: vec![("layers.1.mlp.down_proj".into(), 5)],
        alphas: vec![("q_proj".into(), 1.5)],
        uses_root: true,
        base_model: Some("a/model".into()),
        targets: Targets::Pattern(r".*\.(q_proj|down_proj)".into()),
        dropout: 0.05,
        ..settings()
    };
    for settings in [settings(), patterned] {
        let adapter = adapter(settings);
        let (_folder, path) = written(&adapter, |_| {});
        for named in [path.clone(), path.join(CONFIG), path.join(WEIGHTS)] {
            let read = Adapter::open(&named).unwrap();
            assert_eq!((&read.settings, &read.linears), (&adapter.settings, &adapter.linears));
        }
        assert!(adapter.linears.keys().all(|module| adapter.settings.targets.include(module, "lm_head").unwrap()));
    }
}

#[test]
fn scalings_follow_patterns_as_in_peft() {
    let settings = Settings {
        ranks: vec![("q_proj".into(), 4), (r"layers\.[01]\.mlp\..*".into(), 16)],
        alphas: vec![("^model.layers.0.self_attn.q_proj".into(), 2.0)],
        ..settings()
    };
    assert_eq!(settings.rank_of(MODULE), Ok(4));
    assert_eq!(settings.rank_of("model.layers.1.mlp.up_proj"), Ok(16));
    assert_eq!(settings.rank_of("model.layers.2.mlp.up_proj"), Ok(3));
    assert_eq!(settings.rank_of("model.layers.2.self_attn.xq_proj"), Ok(3), "a name ends behind a dot");
    // `^` can match only where nothing stands before it.
    assert_eq!(settings.scaling_of(MODULE), Ok(0.5));
    assert_eq!(Settings { uses_root: true, ..settings }.scaling_of("model.layers.1.mlp.up_proj"), Ok(1.5));
    let head = |targets: Targets| targets.include("lm_head", "lm_head").unwrap();
    assert!(!head(Targets::Pattern("all-linear".into())) && head(Targets::Listed(vec!["lm_head".into()])));
}

#[test]
fn kinds_that_are_more_than_lora_are_refused_by_name() {
    let set = |name: &'static str, value: Value, expected: &str| {
        let (_folder, path) = written(&adapter(settings()), |config| config[name] = value);
        let text = refusal(&path);
        assert!(text.contains(CONFIG) && text.contains(name) && text.contains(expected), "{text}");
    };
    set("peft_type", json!("IA3"), "LORA alone is supported");
    set("peft_type", Value::Null, "peft_type");
    set("use_dora", json!(true), "DoRA");
    set("target_parameters", json!(["mlp.experts.gate_up_proj"]), "experts");
    set("layer_replication", json!([[0, 1], [0, 1]]), "several times");
    set("lora_bias", json!(true), "biases");
    set("bias", json!("all"), "biases that were trained");
    set("init_lora_weights", json!("pissa_niter_4"), "path_initial_model_for_weight_conversion");
    set("r", json!("eight"), "invalid type");
    set("r", json!(0), "must be from 1");
    set("r", json!(-1), "invalid value");
    set("r", Value::Null, "does not say `r`");
    set("lora_alpha", json!("NaN"), "invalid type");
    set("rank_pattern", json!({"q_proj": "x"}), "q_proj");
    set("alpha_pattern", json!({"q_(proj": 3}), "no regular expression");
    set("target_modules", json!(7), "invalid type");
    set("target_modules", json!("(?=x)"), "no regular expression");
    for (name, value) in
        [("use_dora", json!(false)), ("modules_to_save", json!([])), ("rank_pattern", Value::Null), ("new_field", json!(1))]
    {
        let (_folder, path) = written(&adapter(settings()), |config| config[name] = value);
        assert!(Adapter::open(&path).is_ok(), "{name}");
    }
}

#[test]
fn norms_that_are_replaced_are_written_and_read() {
    let ends = vec!["norm".to_owned(), "ln".to_owned()];
    let mut norms = adapter(Settings { modules_to_save: ends, ..settings() });
    let values = |weight: &[f32], bias: Option<&[f32]>| NormValues { weight: weight.into(), bias: bias.map(Into::into) };
    let named = [("model.norm", values(&[1.0, -2.5, 3.0], None)), ("model.layers.0.ln", values(&[0.5], Some(&[4.0])))];
    norms.norms = named.map(|(module, values)| (module.to_owned(), values)).into();
    let (_folder, path) = written(&norms, |_| {});
    let read = Adapter::open(&path).unwrap();
    assert_eq!((&read.settings, &read.linears, &read.norms), (&norms.settings, &norms.linears, &norms.norms));
    assert_eq!(read.n_values(), adapter(settings()).n_values() + 5);
    let refused = |change: &dyn Fn(&mut Adapter), expected: &str| {
        let mut other = norms.clone();
        change(&mut other);
        let (_folder, path) = written(&other, |_| {});
        let text = refusal(&path);
        assert!(text.contains(WEIGHTS) && text.contains(expected), "{text}");
    };
    refused(&|other| drop(other.norms.remove("model.norm")), "holds no weight of `norm`, which `modules_to_save` names");
    refused(&|other| other.settings.modules_to_save.truncate(1), "tensor `base_model.model.model.layers.0.ln.bias`");
    refused(&|other| other.norms.get_mut("model.norm").unwrap().weight[1] = f32::INFINITY, "training failed");
    let head = ("base_model.model.lm_head.weight", [3, 4]);
    let (_folder, path) = written(&adapter(settings()), |config| config["modules_to_save"] = json!(["lm_head"]));
    assert!(refusal(&path).contains("holds no weight of `lm_head`"), "{}", refusal(&path));
    fs::write(path.join(WEIGHTS), file(&[head], safetensors::Dtype::F32, 0.5)).unwrap();
    assert!(refusal(&path).contains("lm_head.weight` is a matrix that is replaced whole"), "{}", refusal(&path));
}

#[test]
fn norms_of_another_model_are_named() {
    let root = tempfile::tempdir().unwrap();
    let model = families::written(root.path(), "llama");
    let refused = |module: &str, width: usize, bias: Option<Vec<f32>>| {
        let norms = [(module.to_owned(), NormValues { weight: vec![1.0; width], bias })].into();
        let adapter = Arc::new(Adapter { path: "an adapter".into(), settings: settings(), linears: [].into(), norms });
        let builder = Engine::builder(&model).text(TextFiles::Skip).device(DeviceChoice::Cpu).lora(Arc::clone(&adapter), 1.0);
        let of_two = builder.clone().lora(adapter, 1.0).lora_scales(Scales::Chosen);
        [builder, of_two].map(|builder| pollster::block_on(builder.prepare()).err().unwrap().to_string()).concat()
    };
    assert!(refused("model.layers.9.input_layernorm", 60, None).contains("is no norm of"));
    assert!(refused("model.norm", 59, None).contains("by 59 values, and the model's norm has 60"));
    let reported = refused("model.norm", 60, Some(vec![0.0; 60]));
    assert!(reported.contains("has a bias for `model.norm`") && reported.contains("requests cannot choose"), "{reported}");
}

/// Of every family, transformers' norms are found in its files.
#[test]
fn norms_of_files_are_those_of_folders() {
    let root = tempfile::tempdir().unwrap();
    let mut n_offset = 0;
    for name in
        ["llama", "qwen3", "gemma2", "gemma3", "nemotron", "starcoder2", "gpt2", "olmo2", "cohere", "qwen3_5", "qwen3_5_moe", "qwen3_next"]
    {
        let folder = families::written(root.path(), name);
        let file = root.path().join(format!("{name}-gguf"));
        if !file.exists() {
            continue;
        }
        let [own, other] = [folder, file].map(|path| {
            let builder = Engine::builder(&path).text(TextFiles::Skip).device(DeviceChoice::Cpu);
            let prepared = pollster::block_on(builder.prepare()).unwrap();
            let norms = prepared.model.norms(&prepared.checkpoint.catalog, path.ends_with(format!("{name}-gguf")));
            let values = |(module, norm): (String, tierflow::model::Norm)| {
                let stored = prepared.checkpoint.vector(norm.weight).unwrap();
                (module, norm.stored_offset, stored.iter().map(|value| value - norm.stored_offset).collect::<Vec<f32>>())
            };
            norms.into_iter().map(values).collect::<Vec<_>>()
        });
        assert_eq!(own.len(), other.len(), "{name}");
        for ((module, offset, values), (other, of_file, found)) in own.iter().zip(&other) {
            n_offset += u32::from(*of_file != 0.0);
            assert!(module == other && *offset == 0.0, "{name}: {module} {other}");
            assert!(values.iter().zip(found).all(|(value, found)| (value - found).abs() < 1e-2), "{name}: {module}");
        }
    }
    assert!(n_offset > 10, "{n_offset}");
}

#[test]
fn files_that_are_missing_or_of_other_kinds_are_named() {
    let (folder, path) = written(&adapter(settings()), |_| {});
    assert!(refusal(folder.path()).contains("holds no adapter_config.json"));
    fs::rename(path.join(WEIGHTS), path.join("adapter_model.bin")).unwrap();
    assert!(refusal(&path).contains("but adapter_model.bin; save the adapter with safe_serialization=True"));
    let mut broken = adapter(settings());
    broken.linears.get_mut(MODULE).unwrap().scaling = 3.0;
    assert!(broken.write(&path).unwrap_err().to_string().contains("scaling 3 where the settings say 3 and 2"));
    broken = adapter(settings());
    broken.linears.get_mut(MODULE).unwrap().up.pop();
    assert!(broken.write(&path).unwrap_err().to_string().contains("lora_B has 59 values"));
}

/// A file of these tensors, all F32 but for the dtype of the first, whose values are `value`.
fn file(tensors: &[(&str, [usize; 2])], dtype: safetensors::Dtype, value: f32) -> Vec<u8> {
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, [rows, columns])| value.to_le_bytes().repeat(rows * columns)).collect();
    let views = tensors.iter().zip(&data).enumerate().map(|(index, ((name, shape), data))| {
        let dtype = if index == 0 { dtype } else { safetensors::Dtype::F32 };
        (*name, safetensors::tensor::TensorView::new(dtype, shape.to_vec(), data).unwrap())
    });
    safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let (_folder, path) = written(&adapter(settings()), |_| {});
    let refused = |tensors: &[(&str, [usize; 2])], expected: &str| {
        fs::write(path.join(WEIGHTS), file(tensors, safetensors::Dtype::F32, 0.5)).unwrap();
        let text = refusal(&path);
        assert!(text.contains(WEIGHTS) && text.contains(expected), "{text}");
    };
    let (down, up) = ("base_model.model.m.lora_A.weight", "base_model.model.m.lora_B.weight");
    refused(&[], "holds no tensor");
    refused(&[(down, [3, 4])], "has no tensor `base_model.model.m.lora_B.weight`");
    refused(&[(up, [4, 3])], "has no tensor `base_model.model.m.lora_A.weight`");
    refused(&[(down, [3, 4]), (up, [4, 2])], "ranks differ");
    refused(&[(down, [2, 4]), (up, [4, 2])], "has rank 2 where adapter_config.json says 3");
    refused(&[(down, [3, 0]), (up, [4, 3])], "is no matrix");
    refused(&[("m.lora_A.weight", [3, 4])], "begin with base_model.model.");
    refused(&[("base_model.model.m.weight", [3, 4])], "nothing else is supported");
    refused(&[("base_model.model..lora_A.weight", [3, 4])], "nothing else is supported");
    refused(&[("base_model.model.m.lora_embedding_A", [3, 4])], "adapts an embedding");
    refused(&[("base_model.model.m.lora_magnitude_vector", [3, 4])], "DoRA");
    refused(&[(down, [3, 4]), ("base_model.model.m.lora_A.default.weight", [3, 4])], "are the same matrix");
    for (dtype, value, expected) in
        [(safetensors::Dtype::I32, 0.5, "stored as I32"), (safetensors::Dtype::F32, f32::NAN, "training failed")]
    {
        fs::write(path.join(WEIGHTS), file(&[(down, [3, 4]), (up, [4, 3])], dtype, value)).unwrap();
        assert!(refusal(&path).contains(expected), "{}", refusal(&path));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the bytes are, reading returns.
    #[test]
    fn damaged_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        of_config in any::<bool>(),
    ) {
        let (_folder, path) = written(&adapter(settings()), |_| {});
        let target = path.join(if of_config { CONFIG } else { WEIGHTS });
        let mut bytes = fs::read(&target).unwrap();
        // The header, where it is the tensors' file: their values may be anything.
        let n_damaged = bytes.len().min(700);
        changes.iter().for_each(|(at, value)| bytes[at.index(n_damaged)] = *value);
        cut.iter().for_each(|at| bytes.truncate(at.index(bytes.len())));
        fs::write(&target, &bytes).unwrap();
        if let Err(error) = Adapter::open(&path) {
            prop_assert!(error.to_string().contains("adapter"), "{error}");
        }
    }

    #[test]
    fn damaged_gguf_files_never_panic(changes in prop::collection::vec((0..4096usize, any::<u8>()), 1..6)) {
        // Most of what can be wrong is in the header.
        let mut bytes = fs::read(golden("llama").join("adapter.gguf")).unwrap();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("adapter.gguf");
        fs::write(&file, bytes).unwrap();
        let _ = Adapter::open(&file);
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lora").join(name)
}

/// The answer of the model on the host, with adapters or without.
fn logits(model: &Path, loras: &[Scaled]) -> Vec<f32> {
    let builder = Engine::builder(model).text(TextFiles::Skip).device(DeviceChoice::Cpu).ctx_size(16);
    let builder = loras.iter().fold(builder, |builder, Scaled { adapter, scale }| builder.lora(Arc::clone(adapter), *scale));
    let mut engine = pollster::block_on(builder.open()).unwrap_or_else(|error| panic!("{}: {error}", model.display()));
    match pollster::block_on(engine.session().append(&[5, 9, 200, 17, 31], LogitsRequest::All)).unwrap() {
        Logits::All(logits) => logits,
        Logits::Top(_) => panic!("all logits"),
    }
}

/// A model into which adapters were merged answers as the model with them: from folders and from GGUF files, whose rows may be in
/// another order, and where one matrix holds several.
#[test]
fn merged_adapters_answer_as_adapters_do() {
    let root = tempfile::tempdir().unwrap();
    for name in ["llama", "llama-patterns", "llama-norms", "gemma2", "gemma3-norms", "phi3", "gpt2", "gpt_neox"] {
        let base = name.split('-').next().unwrap();
        let folder = families::written(root.path(), base);
        let loras = [Scaled { adapter: Arc::new(Adapter::open(&golden(name)).unwrap()), scale: 0.75 }];
        for model in [folder.clone(), root.path().join(format!("{base}-gguf"))] {
            let out = root.path().join("merged.gguf");
            let options = |file_type: &str| ConvertOptions { file_type: file_type.parse().unwrap(), pure: false };
            convert_with(&model, &loras, &out, options("f32"), &mut |_, _| Ok(())).unwrap_or_else(|error| panic!("{name}: {error}"));
            let (expected, plain) = (logits(&model, &loras), logits(&model, &[]));
            let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let difference =
                |other: &[f32]| expected.iter().zip(other).fold(0.0f32, |most, (one, other)| most.max((one - other).abs())) / largest;
            let what = format!("{name} from {}", model.display());
            assert!(difference(&logits(&out, &[])) < 2e-5, "{what}: {}", difference(&logits(&out, &[])));
            assert!(difference(&plain) > 0.02, "{what}: the adapter does something");
            convert_with(&model, &loras, &out, options("q8_0"), &mut |_, _| Ok(())).unwrap();
            assert!(difference(&logits(&out, &[])) < 0.05, "{what} in Q8_0: {}", difference(&logits(&out, &[])));
        }
    }
}

#[test]
fn what_cannot_be_merged_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    // The head of this one is its embedding.
    let model = families::written(root.path(), "qwen2");
    let settings = Settings::new(2, 2.0, vec!["lm_head".into()]);
    let linears = [("lm_head".to_owned(), linear(&settings, "lm_head", [96, 261], 1.0))].into();
    let adapter = Arc::new(Adapter { path: "an adapter".into(), settings, linears, norms: [].into() });
    let loras = [Scaled { adapter, scale: 1.0 }];
    let out = root.path().join("merged.gguf");
    let options = ConvertOptions { file_type: "f32".parse().unwrap(), pure: false };
    let refused = convert_with(&model, &loras, &out, options, &mut |_, _| Ok(())).unwrap_err().to_string();
    assert!(refused.contains("lm_head") && refused.contains("run it with the adapter") && !out.exists(), "{refused}");
    assert_ne!(logits(&model, &loras), logits(&model, &[]), "it runs");
}

/// llama.cpp's file of an adapter (`tests/golden/lora.py`) does to the file of a model what PEFT's folder does.
#[test]
fn adapters_in_gguf_files_are_those_of_their_folders() {
    let root = tempfile::tempdir().unwrap();
    for name in ["llama", "phi3"] {
        let folder = families::written(root.path(), name);
        let model = root.path().join(format!("{name}-gguf"));
        let [of_folder, of_file] = [golden(name), golden(name).join("adapter.gguf")].map(|path| Adapter::open(&path).unwrap());
        let scaled = |adapter: &Adapter| [Scaled { adapter: Arc::new(adapter.clone()), scale: 1.0 }];
        let expected = logits(&model, &scaled(&of_folder));
        assert_ne!(expected, logits(&model, &[]));
        assert_eq!(logits(&model, &scaled(&of_file)), expected, "{name}");
        let merged = [&of_file, &of_folder].map(|adapter| {
            let (out, options) = (root.path().join("merged.gguf"), ConvertOptions { file_type: "f32".parse().unwrap(), pure: false });
            convert_with(&model, &scaled(adapter), &out, options, &mut |_, _| Ok(())).unwrap();
            fs::read(&out).unwrap()
        });
        assert!(merged[0] == merged[1], "{name}: merged, they are the same, too");
        let builder = Engine::builder(&folder).text(TextFiles::Skip).device(DeviceChoice::Cpu).lora(Arc::new(of_file), 1.0);
        let refused = pollster::block_on(builder.prepare()).err().unwrap().to_string();
        assert!(refused.contains("adapter.gguf") && refused.contains("PEFT's folder"), "{refused}");
    }
}

#[test]
fn broken_gguf_files_of_adapters_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("adapter.gguf");
    let good = fs::read(golden("llama").join("adapter.gguf")).unwrap();
    // In place of the bytes behind the first `before`, so that nothing else moves.
    let changed = |before: &[u8], by: &[u8]| {
        let mut bytes = good.clone();
        let at = good.windows(before.len()).position(|window| window == before).unwrap() + before.len();
        bytes[at..at + by.len()].copy_from_slice(by);
        fs::write(&file, bytes).unwrap();
    };
    // A key is followed by the code of its kind, and a text by its length.
    changed(b"general.type\x08\0\0\0\x07\0\0\0\0\0\0\0", b"mmmodel");
    assert!(refusal(&file).contains("`general.type` is not `adapter`"));
    changed(b"adapter.type\x08\0\0\0\x04\0\0\0\0\0\0\0", b"loha");
    assert!(refusal(&file).contains("`adapter.type` is not `lora`"));
    changed(b"adapter.lora.alpha", &[4]);
    assert!(refusal(&file).contains("adapter.lora.alpha"), "an integer");
    changed(b"adapter.lora.alpha\x06\0\0\0", &f32::NAN.to_le_bytes());
    assert!(refusal(&file).contains("adapter.lora.alpha"));
    changed(b".weight.lora_", b"c");
    assert!(refusal(&file).contains("is no .weight.lora_a and no .weight.lora_b"));
    changed(b".weight.lora_", b"b");
    assert!(Adapter::open(&file).is_err(), "one half is there twice");
    for cut in (0..good.len()).step_by(good.len() / 97) {
        fs::write(&file, &good[..cut]).unwrap();
        assert!(Adapter::open(&file).is_err(), "cut at {cut}");
    }
    // As llama.cpp has it, no alpha means that the product counts as it is.
    changed(b"adapter.lora.alpha\x06\0\0\0", &0.0f32.to_le_bytes());
    assert!(Adapter::open(&file).unwrap().linears.values().all(|linear| linear.scaling == 1.0));
}
