//! Models with known answers. Every subfolder of `TIERFLOW_TEST_MODELS` that holds an `expected.json` is checked, and so
//! are folders that this test makes: seeded models in both formats, their answers from a Llama in double precision.
//!
//! `expected.json`: `{"cases": [{"prompt": [ids], "last_logits": [floats], "greedy": [ids]}]}`.

pub mod families;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::reference::Reference;
use families::Golden;
use tierflow::device::{Device, DeviceChoice, GpuLimits, KernelChoice};
use tierflow::engine::{Engine, EngineBuilder, Prepared, TextFiles};
use tierflow::error::Error;
use tierflow::model::{Checkpoint, Model};
use tierflow::plan::sizes::{self, KvCache};
use tierflow::plan::{CacheDType, KvDType, PlacementRule, PlanOptions, ResidentLayers};
use tierflow::platform::IoMode;
use tierflow::session::Session;
use tierflow::stream::{Batch, BatchToken, Logits, LogitsRequest};
use tierflow::units::Bytes;
use xtask::models::{Dtypes, Family, GgufType, LlamaShape, RopeScaling, Stored, write_gguf, write_hf, write_mixed_gguf};

use crate::common;

/// Logits may differ by this share of the largest magnitude: f32 against double precision.
pub const LOGITS_TOLERANCE: f32 = 2e-3;
/// Tokens that the made cases continue by.
const N_GREEDY: usize = 6;

/// One case of an `expected.json`.
#[derive(serde::Deserialize, serde::Serialize)]
struct Case {
    prompt: Vec<u32>,
    last_logits: Vec<f32>,
    greedy: Vec<u32>,
}

#[derive(serde::Deserialize, serde::Serialize)]
struct Expected {
    cases: Vec<Case>,
}

impl Expected {
    /// Positions that the longest case takes.
    fn n_positions(&self) -> usize {
        self.cases.iter().map(|case| case.prompt.len() + case.greedy.len()).max().unwrap_or(0).max(1)
    }
}

/// Checks every folder below `root` and says how many there were.
fn check_folders(root: &Path) -> usize {
    let mut n_folders = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(text) = std::fs::read(folder.join("expected.json")) else { continue };
        let expected: Expected = serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        n_folders += 1;
        check(&folder, &expected, "host", |builder| builder.device(DeviceChoice::Cpu));
        if common::gpus().is_empty() {
            continue;
        }
        check(&folder, &expected, "gpu", |builder| builder.device(DeviceChoice::Gpu));
        let budget = streaming_budget(&folder, &expected);
        check(&folder, &expected, "gpu, streamed from disk", |builder| {
            builder.device(DeviceChoice::Gpu).max_memory(Device::Gpu(0), budget).max_memory(Device::Cpu, Bytes::ZERO)
        });
    }
    n_folders
}

/// Half of the weights, or the least that works where that is more: most of the model streams.
fn streaming_budget(folder: &Path, expected: &Expected) -> Bytes {
    let half = Bytes(Checkpoint::open(folder, IoMode::Pread).unwrap().catalog.size_bytes().0 / 2);
    let builder = Engine::builder(folder)
        .text(TextFiles::Skip)
        .ctx_size(expected.n_positions())
        .device(DeviceChoice::Gpu)
        .max_memory(Device::Gpu(0), half);
    match pollster::block_on(builder.prepare()) {
        Err(Error::DoesNotFit { needed, .. }) => needed,
        _ => half,
    }
}

fn check(folder: &Path, expected: &Expected, how: &str, place: impl Fn(EngineBuilder) -> EngineBuilder) {
    let builder = Engine::builder(folder).text(TextFiles::Skip).ctx_size(expected.n_positions());
    let mut engine = pollster::block_on(place(builder).open()).unwrap_or_else(|error| panic!("{} on {how}: {error}", folder.display()));
    for (index, case) in expected.cases.iter().enumerate() {
        let what = format!("{} case {index} on {how}", folder.display());
        let mut session = engine.session();
        let Logits::All(logits) = pollster::block_on(session.append(&case.prompt, LogitsRequest::All)).unwrap() else { panic!("{what}") };
        common::assert_close(&logits, &case.last_logits, LOGITS_TOLERANCE, &what);
        let mut token = best(&logits);
        let mut greedy = vec![token];
        while greedy.len() < case.greedy.len() {
            let Logits::Top(top) = pollster::block_on(session.append(&[token], LogitsRequest::TopK(1))).unwrap() else { panic!("{what}") };
            token = top[0].0;
            greedy.push(token);
        }
        greedy.truncate(case.greedy.len());
        assert_eq!(greedy, case.greedy, "{what}");
    }
}

fn best(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(token, _)| token as u32)
}

/// Whether the two best logits differ by more than two results may that keep the tolerance.
fn is_clear(logits: &[f32]) -> bool {
    let largest = logits.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
    let mut sorted = logits.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    sorted.len() < 2 || sorted[0] - sorted[1] > 2.0 * LOGITS_TOLERANCE * largest
}

/// Writes `expected.json` for a model that lies in `folder`; greedy tokens up to the first that may as well be another one.
fn expect(folder: &Path) {
    let checkpoint = Checkpoint::open(folder, IoMode::Pread).unwrap();
    let reference = Reference::new(&checkpoint);
    let vocab_size = checkpoint.config.vocab_size as u32;
    let cases = [1u32, 5, 33].map(|len| {
        let prompt: Vec<u32> = (0..len).map(|i| (i * 37 + len) % vocab_size).collect();
        let mut tokens = prompt.clone();
        let mut last_logits = Vec::new();
        for _ in 0..N_GREEDY {
            let logits: Vec<f32> = reference.logits(&tokens).pop().unwrap().iter().map(|&x| x as f32).collect();
            let token = is_clear(&logits).then(|| best(&logits));
            if last_logits.is_empty() {
                last_logits = logits;
            }
            let Some(token) = token else { break };
            tokens.push(token);
        }
        Case { greedy: tokens.split_off(prompt.len()), prompt, last_logits }
    });
    let n_compared: usize = cases.iter().map(|case| case.greedy.len()).sum();
    assert!(n_compared >= N_GREEDY, "{}: {n_compared} greedy tokens are clear", folder.display());
    std::fs::write(folder.join("expected.json"), serde_json::to_vec(&Expected { cases: cases.into() }).unwrap()).unwrap();
}

#[test]
fn made_models_answer_as_the_reference_does() {
    let root = tempfile::tempdir().unwrap();
    let tiny = LlamaShape::tiny();
    let hf = |name: &str, shape: &LlamaShape, stored: Stored, n_shards: usize| {
        let folder = root.path().join(name);
        write_hf(&folder, shape, 7, stored, n_shards).unwrap();
        expect(&folder);
    };
    hf("hf-f32", &tiny, Stored::F32, 1);
    hf("hf-f16-untied", &LlamaShape { tied: false, ..tiny.clone() }, Stored::F16, 2);
    hf("hf-bf16-window", &LlamaShape { sliding_window: Some(8), ..tiny.clone() }, Stored::BF16, 3);
    hf("hf-f32-biases", &LlamaShape { attention_bias: true, mlp_bias: true, ..tiny.clone() }, Stored::F32, 1);
    let qwen2 = LlamaShape { family: Family::Qwen2, n_heads: 6, n_kv_heads: 2, ..tiny.clone() };
    hf("hf-bf16-qwen2", &qwen2, Stored::BF16, 1);
    hf("hf-f32-qwen2-tied", &LlamaShape { tied: true, head_size: 20, ..qwen2.clone() }, Stored::F32, 1);
    let qwen3 = LlamaShape { family: Family::Qwen3, head_size: 24, ..qwen2.clone() };
    hf("hf-f16-qwen3", &qwen3, Stored::F16, 1);
    hf("hf-f32-qwen3-odd", &LlamaShape { head_size: 20, n_heads: 3, n_kv_heads: 1, hidden_size: 52, ..qwen3.clone() }, Stored::F32, 1);
    let stretched = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context_length: 32 };
    hf("hf-f32-llama3", &LlamaShape { rope_scaling: Some(stretched), ..tiny.clone() }, Stored::F32, 1);
    hf("hf-f32-linear", &LlamaShape { rope_scaling: Some(RopeScaling::Linear { factor: 4.0 }), ..tiny.clone() }, Stored::F32, 1);
    // Sizes that are multiples of nothing, and a head wider than the hidden size over the heads.
    hf(
        "hf-f16-odd",
        &LlamaShape { vocab_size: 277, hidden_size: 54, ffn_size: 99, head_size: 24, n_heads: 6, n_kv_heads: 3, ..tiny.clone() },
        Stored::F16,
        1,
    );
    for (name, dtype) in [
        ("gguf-f32", GgufType::F32),
        ("gguf-f16", GgufType::F16),
        ("gguf-bf16", GgufType::BF16),
        ("gguf-q8_0", GgufType::Q8_0),
        ("gguf-q4_0", GgufType::Q4_0),
        ("gguf-q4_1", GgufType::Q4_1),
        ("gguf-q5_0", GgufType::Q5_0),
        ("gguf-q5_1", GgufType::Q5_1),
        ("gguf-iq4_nl", GgufType::IQ4NL),
        ("gguf-mxfp4", GgufType::MXFP4),
    ] {
        let folder = root.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        write_gguf(&folder.join("model.gguf"), &tiny, 7, dtype).unwrap();
        expect(&folder);
    }
    for (name, shape) in [("gguf-q8_0-qwen2", &qwen2), ("gguf-q8_0-qwen3", &LlamaShape { head_size: 32, ..qwen3 })] {
        let folder = root.path().join(name);
        write_gguf(&folder.join("model.gguf"), shape, 7, GgufType::Q8_0).unwrap();
        expect(&folder);
    }
    let wide = LlamaShape { hidden_size: 256, ffn_size: 96, n_layers: 2, ..tiny };
    // As llama-quantize mixes them: the head and some matrices in Q6_K, and where 256 values do not divide a row, another dtype.
    let whole = LlamaShape { ffn_size: 256, head_size: 64, tied: false, ..wide.clone() };
    for (name, layers) in [
        ("gguf-q4_k", GgufType::Q4K),
        ("gguf-q5_k", GgufType::Q5K),
        ("gguf-q3_k", GgufType::Q3K),
        ("gguf-iq4_xs", GgufType::IQ4XS),
        ("gguf-q2_k", GgufType::Q2K),
        ("gguf-tq1_0", GgufType::TQ1_0),
        ("gguf-tq2_0", GgufType::TQ2_0),
        ("gguf-iq3_xxs", GgufType::IQ3XXS),
        ("gguf-iq3_s", GgufType::IQ3S),
        ("gguf-iq2_xxs", GgufType::IQ2XXS),
        ("gguf-iq2_xs", GgufType::IQ2XS),
        ("gguf-iq2_s", GgufType::IQ2S),
        ("gguf-iq1_s", GgufType::IQ1S),
        ("gguf-iq1_m", GgufType::IQ1M),
    ] {
        let folder = root.path().join(name);
        write_mixed_gguf(&folder.join("model.gguf"), &whole, 7, Dtypes { layers, head: GgufType::Q6K }).unwrap();
        expect(&folder);
    }
    for (name, tied, head) in [("gguf-q4_0-head-q6_k", false, GgufType::Q6K), ("gguf-q4_1-embedding-q6_k", true, GgufType::Q6K)] {
        let folder = root.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let layers = if tied { GgufType::Q4_1 } else { GgufType::Q4_0 };
        write_mixed_gguf(&folder.join("model.gguf"), &LlamaShape { tied, ..wide.clone() }, 7, Dtypes { layers, head }).unwrap();
        expect(&folder);
    }
    assert_eq!(check_folders(root.path()), 39);
}

#[test]
fn models_of_others_answer_as_they_say() {
    let Some(root) = std::env::var_os("TIERFLOW_TEST_MODELS") else { return };
    assert!(check_folders(Path::new(&root)) > 0, "TIERFLOW_TEST_MODELS holds no folder with an expected.json");
}

/// Tests of families that run side by side, each of every so many golden answers.
const N_FAMILY_TESTS: usize = 6;

/// As folders and as GGUF files, on the host, on a GPU, and streamed there.
fn families_answer_as_transformers_does(number: usize) {
    let root = tempfile::tempdir().unwrap();
    let n_written: usize =
        Golden::all().iter().skip(number).step_by(N_FAMILY_TESTS).map(|(name, golden)| golden.write(root.path(), name)).sum();
    assert_eq!(check_folders(root.path()), n_written);
}

macro_rules! family_tests {
    ($($name:ident: $number:literal),*) => {
        $(#[test]
        fn $name() {
            families_answer_as_transformers_does($number);
        })*

        #[test]
        fn each_family_has_a_golden_and_each_golden_a_test() {
            assert!([$($number),*].into_iter().eq(0..N_FAMILY_TESTS));
            let root = tempfile::tempdir().unwrap();
            let family = |(name, golden): &(String, Golden)| {
                golden.write(root.path(), name);
                Checkpoint::open(&root.path().join(name), IoMode::Pread).unwrap().config.family.name
            };
            let found: std::collections::BTreeSet<&str> = Golden::all().iter().map(family).collect();
            let all: std::collections::BTreeSet<&str> = tierflow::model::families::FAMILIES.iter().map(|family| family.name).collect();
            assert_eq!(found, all);
        }
    };
}

family_tests! {
    every_family_answers_as_transformers_does_0: 0,
    every_family_answers_as_transformers_does_1: 1,
    every_family_answers_as_transformers_does_2: 2,
    every_family_answers_as_transformers_does_3: 3,
    every_family_answers_as_transformers_does_4: 4,
    every_family_answers_as_transformers_does_5: 5
}

/// Keys and values that layers share, and the embeddings of layers, go from device to device wherever a model is cut.
#[test]
fn what_layers_share_goes_from_device_to_device() {
    if common::gpus().is_empty() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "gemma4-small");
    let expected: Expected = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let (gpu, host) = (Device::Gpu(0), Device::Cpu);
    for cut in [None, Some(1), Some(6), Some(9), Some(12), Some(15)] {
        // Without a cut, devices take turns.
        let is_on_host = |unit: usize| cut.map_or(unit.is_multiple_of(2), |cut| unit >= cut);
        let device = |unit| if is_on_host(unit) { host } else { gpu };
        let placements = common::placements(&folder, |unit, _| (device(unit), device(unit)));
        let options = PlanOptions {
            ctx_size: Some(expected.n_positions()),
            placement: PlacementRule::Placed(placements),
            resident_layers: ResidentLayers::Auto,
            ..PlanOptions::default()
        };
        check(&folder, &expected, &format!("cut at {cut:?}"), |builder| builder.plan_options(options.clone()).compute_on([gpu, host]));
    }
    // A plan's device map says where every weight is, so that it gives the plan again.
    let prepared = pollster::block_on(Engine::builder(&folder).text(TextFiles::Skip).device(DeviceChoice::Gpu).prepare()).unwrap();
    let map_of = |prepared: &Prepared| prepared.plan.device_map(&prepared.checkpoint.catalog, &prepared.model);
    let map = map_of(&prepared);
    let again = PlanOptions { placement: PlacementRule::Given(map.clone()), ..PlanOptions::default() };
    let again = pollster::block_on(Engine::builder(&folder).text(TextFiles::Skip).device(DeviceChoice::Gpu).plan_options(again).prepare());
    assert_eq!(map_of(&again.unwrap()), map);
}

/// One latent vector of a position is cached for keys and values of all heads; where a config says another width of it than the tensors
/// have, both numbers are named.
#[test]
fn latent_vectors_are_cached_once_and_must_be_as_wide_as_the_tensors_say() {
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "deepseek_v3");
    let checkpoint = Checkpoint::open(&folder, IoMode::Pread).unwrap();
    let model = Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape)).unwrap();
    // 20 values and 8 that turn, in each of 4 layers; on GPUs 28 are padded to 32.
    let position_bytes = |caches| sizes::kv_bytes_per_position(&model, caches);
    assert_eq!(position_bytes(KvCache::both(KvDType::F32, true)), Bytes(4 * 28 * 4));
    // They are keys: what is asked for values has no part.
    let of_keys = KvDType { keys: CacheDType::F16, values: CacheDType::F32 };
    assert_eq!(position_bytes(KvCache::both(of_keys, false)), Bytes(4 * 32 * 2));
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    for (changed, numbers) in [("\"kv_lora_rank\":22", ["22", "20"]), ("\"v_head_dim\":11", ["150", "144"])] {
        let (key, _) = changed.split_once(':').unwrap();
        let (before, behind) = config.split_once(key).unwrap();
        let behind = behind.split_once(',').unwrap().1;
        std::fs::write(folder.join("config.json"), format!("{before}{changed},{behind}")).unwrap();
        let refused = Checkpoint::open(&folder, IoMode::Pread).unwrap_err().to_string();
        assert!(refused.contains("kv_b_proj") && numbers.iter().all(|number| refused.contains(number)), "{refused}");
    }
}

/// What keeps states goes on in parts, beside other sequences, after it was cut short, and after a forward that was interrupted.
#[test]
fn recurrent_states_follow_their_sequence() {
    let root = tempfile::tempdir().unwrap();
    for name in ["lfm2", "qwen3_5"] {
        let folder = families::written(root.path(), name);
        let expected: Expected = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let cases: Vec<&Case> = expected.cases.iter().filter(|case| case.prompt.len() > 1).collect();
        for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
            if device == DeviceChoice::Gpu && common::gpus().is_empty() {
                continue;
            }
            let options = PlanOptions { n_seqs: 2, ctx_size: Some(64), logit_rows: 2, ..PlanOptions::default() };
            let builder = Engine::builder(&folder).plan_options(options).device(device).text(TextFiles::Skip);
            let mut engine = pollster::block_on(builder.open()).unwrap();
            follow_sequences(&mut engine, &cases, &format!("{name} on {device:?}"));
        }
    }
}

fn follow_sequences(engine: &mut Engine, cases: &[&Case], what: &str) {
    let assert_answers = |logits: Logits, case: &Case, how: &str| {
        let Logits::All(logits) = logits else { panic!("{what} {how}") };
        common::assert_close(&logits, &case.last_logits, LOGITS_TOLERANCE, &format!("{what} {how}"));
    };
    let [short, long] = [cases[0], cases[1]];
    let tokens = |case: &Case, sequence: u32| {
        let tokens = (0..).zip(case.prompt.clone());
        tokens.map(move |(position, token)| BatchToken { token, sequence, position }).collect::<Vec<_>>()
    };
    // Both at once: the short one's tokens between those of the long one.
    let mut both: Vec<BatchToken> = tokens(long, 1);
    for (index, token) in tokens(short, 0).into_iter().enumerate() {
        both.insert(3 * index + 1, token);
    }
    let last_of = |sequence: u32| both.iter().rposition(|token| token.sequence == sequence).unwrap() as u32;
    let batch = Batch { logits_for: vec![last_of(0), last_of(1)], tokens: both.clone(), ..Batch::default() };
    let [of_short, of_long] = <[Logits; 2]>::try_from(pollster::block_on(engine.forward(&batch)).unwrap()).unwrap();
    assert_answers(of_short, short, "beside the other");
    assert_answers(of_long, long, "beside the other");

    let back = Batch { tokens: vec![tokens(long, 1)[4]], logits_for: vec![0], ..Batch::default() };
    let refused = pollster::block_on(engine.forward(&back)).unwrap_err().to_string();
    assert!(refused.contains("recurrent states"), "{what}: {refused}");

    let mut session = engine.session_of(1, Vec::new()).unwrap();
    let append = |session: &mut Session<'_>, tokens: &[u32]| pollster::block_on(session.append(tokens, LogitsRequest::All));
    append(&mut session, &long.prompt[..2]).unwrap();
    append(&mut session, &long.prompt[2..9]).unwrap();
    assert_answers(append(&mut session, &long.prompt[9..]).unwrap(), long, "in parts");
    session.truncate(7);
    assert_answers(append(&mut session, &long.prompt[7..]).unwrap(), long, "cut short");
    session.truncate(long.prompt.len() - 1);
    session.cancel_with(Arc::new(AtomicBool::new(true)));
    assert!(append(&mut session, &long.prompt[long.prompt.len() - 1..]).is_err(), "{what}: interrupted");
    session.cancel_with(Arc::default());
    assert_answers(append(&mut session, &long.prompt[long.prompt.len() - 1..]).unwrap(), long, "after an interruption");
}

/// Both formats hold the same weights, so they give the same logits, up to the order of sums in the rotary embedding.
#[test]
fn both_formats_of_one_model_agree() {
    let root = tempfile::tempdir().unwrap();
    let logits = |path: &Path| {
        let builder = Engine::builder(path).device(DeviceChoice::Cpu).ctx_size(16);
        let mut engine = pollster::block_on(builder.open()).unwrap();
        match pollster::block_on(engine.session().append(&[5, 9, 200, 17], LogitsRequest::All)).unwrap() {
            Logits::All(logits) => logits,
            Logits::Top(_) => panic!("all logits"),
        }
    };
    for family in [Family::Llama, Family::Qwen2, Family::Qwen3] {
        let (name, shape) = (&format!("{family:?}"), LlamaShape { family, ..LlamaShape::tiny() });
        let (folder, file) = (root.path().join(name), root.path().join(format!("{name}.gguf")));
        write_hf(&folder, &shape, 3, Stored::F32, 1).unwrap();
        write_gguf(&file, &shape, 3, GgufType::F32).unwrap();
        common::assert_close(&logits(&folder), &logits(&file), 1e-5, name);
    }
}

/// Placement never changes the answer, on models of every dtype, down to slices of a few rows.
#[test]
fn logits_are_bit_identical_wherever_the_weights_live() {
    if common::gpus().is_empty() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let shape = LlamaShape { vocab_size: 1000, hidden_size: 96, ffn_size: 224, n_layers: 3, tied: false, ..LlamaShape::tiny() };
    let of_one = [GgufType::F32, GgufType::F16, GgufType::BF16, GgufType::Q8_0, GgufType::Q4_0, GgufType::Q4_1];
    let mut stored: Vec<(LlamaShape, Dtypes)> = of_one.map(|dtype| (shape.clone(), Dtypes { layers: dtype, head: dtype })).into();
    // As llama-quantize writes what it calls Q4_0; and wholly in blocks of 256.
    let wide = LlamaShape { hidden_size: 256, ffn_size: 256, n_layers: 2, ..shape };
    stored.push((wide.clone(), Dtypes { layers: GgufType::Q4_0, head: GgufType::Q6K }));
    stored.push((LlamaShape { head_size: 64, ..wide }, Dtypes { layers: GgufType::Q6K, head: GgufType::Q6K }));
    for (shape, dtype) in stored {
        let path = root.path().join(format!("{dtype:?}.gguf"));
        write_mixed_gguf(&path, &shape, 11, dtype).unwrap();
        let options = PlanOptions { ctx_size: Some(32), ubatch_size: Some(16), ..PlanOptions::default() };
        let builder = || {
            let builder = Engine::builder(&path).plan_options(options.clone()).device(DeviceChoice::Gpu);
            // The fastest kernels may be others once more of them have been measured.
            builder.kernels(KernelChoice::Portable).text(TextFiles::Skip)
        };
        let logits = |place: &dyn Fn(EngineBuilder) -> EngineBuilder| -> Vec<u32> {
            let mut engine = pollster::block_on(place(builder()).open()).unwrap();
            let mut session = engine.session();
            let mut bits = Vec::new();
            for part in [&[1u32, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11][..], &[12], &[13]] {
                let Logits::All(logits) = pollster::block_on(session.append(part, LogitsRequest::All)).unwrap() else {
                    panic!("all logits")
                };
                bits.extend(common::bits(&logits));
            }
            bits
        };
        let resident = logits(&|builder| builder);
        // The least that works is what a refusal names.
        let refused = builder().max_memory(Device::Gpu(0), Bytes::kib(1)).prepare();
        let Err(Error::DoesNotFit { needed: budget, .. }) = pollster::block_on(refused) else { panic!("1 KiB cannot do") };
        assert!(logits(&|builder| builder.max_memory(Device::Gpu(0), budget)) == resident, "{dtype:?} from the host");
        assert!(
            logits(&|builder| builder.max_memory(Device::Gpu(0), budget).max_memory(Device::Cpu, Bytes::ZERO)) == resident,
            "{dtype:?} from disk"
        );
        assert!(logits(&|builder| builder.max_memory(Device::Gpu(0), budget).io(IoMode::Mmap)) == resident, "{dtype:?} from a map");
        let limits = GpuLimits { max_buffer_bytes: Bytes::kib(128), max_binding_bytes: Bytes::kib(64), ..GpuLimits::default() };
        assert!(logits(&|builder| builder.limits(Some(limits))) == resident, "{dtype:?} sliced");
    }
}

/// A model of two layers, and how it is stored.
struct Odd {
    shape: LlamaShape,
    dtype: GgufType,
    kv_dtype: KvDType,
}

/// Head sizes that are no whole octets, hidden sizes of 8·k + 4, odd feed-forward sizes, vocabularies of 1 to 3 rows more than a
/// block, each number of heads that share a key head; and every dtype, where its blocks divide the rows.
fn odd_shapes() -> Vec<Odd> {
    let odd = |[n_heads, n_kv_heads, head_size]: [usize; 3], [hidden_size, ffn_size, vocab_size]: [usize; 3], dtype, kv_dtype| {
        let shape = LlamaShape { n_heads, n_kv_heads, head_size, hidden_size, ffn_size, vocab_size, n_layers: 2, ..LlamaShape::tiny() };
        Odd { shape, dtype, kv_dtype }
    };
    vec![
        odd([3, 3, 2], [68, 33, 321], GgufType::F32, KvDType::F32),
        odd([4, 2, 4], [12, 1, 322], GgufType::F16, KvDType::F16),
        odd([3, 1, 6], [100, 157, 323], GgufType::BF16, KvDType::F16),
        odd([8, 2, 10], [36, 95, 2049], GgufType::F32, KvDType::F16),
        odd([5, 1, 12], [60, 159, 2050], GgufType::F16, KvDType::F32),
        odd([6, 1, 20], [92, 31, 2051], GgufType::BF16, KvDType::F32),
        odd([7, 1, 36], [44, 77, 513], GgufType::F16, KvDType::F16),
        odd([8, 1, 50], [76, 255, 514], GgufType::F32, KvDType::F16),
        odd([2, 2, 100], [196, 257, 515], GgufType::F16, KvDType::F16),
        odd([2, 1, 250], [20, 65, 273], GgufType::BF16, KvDType::F16),
        odd([1, 1, 256], [28, 63, 274], GgufType::F16, KvDType::F32),
        odd([8, 2, 100], [96, 160, 321], GgufType::Q8_0, KvDType::F16),
        odd([8, 4, 12], [160, 96, 322], GgufType::Q4_0, KvDType::F16),
        odd([16, 2, 36], [32, 32, 323], GgufType::Q4_1, KvDType::F32),
    ]
}

/// What a plan lets through runs, and answers as the host does, with every kernel and from everywhere.
#[test]
fn odd_shapes_run_as_they_are_planned() {
    if common::gpus().is_empty() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    for (index, odd) in odd_shapes().into_iter().enumerate() {
        let path = root.path().join(format!("{index}.gguf"));
        write_gguf(&path, &odd.shape, 17, odd.dtype).unwrap();
        let what = format!("{:?} {:?}", odd.dtype, odd.shape);
        // Long enough for parts of a context.
        let options = PlanOptions { ctx_size: Some(300), ubatch_size: Some(16), kv_dtype: odd.kv_dtype, ..PlanOptions::default() };
        let builder = || Engine::builder(&path).plan_options(options.clone()).text(TextFiles::Skip);
        let logits = |how: &str, builder: EngineBuilder| -> Vec<f32> {
            let mut engine = pollster::block_on(builder.open()).unwrap_or_else(|error| panic!("{what} {how}: {error}"));
            let mut session = engine.session();
            let mut all = Vec::new();
            for part in [&[1u32, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11][..], &[12], &[13]] {
                let logits =
                    pollster::block_on(session.append(part, LogitsRequest::All)).unwrap_or_else(|error| panic!("{what} {how}: {error}"));
                let Logits::All(logits) = logits else { panic!("all logits") };
                all.extend(logits);
            }
            all
        };
        let host = logits("on the host", builder().device(DeviceChoice::Cpu));
        for kernels in [KernelChoice::Auto, KernelChoice::Portable] {
            let on_gpu = || builder().device(DeviceChoice::Gpu).kernels(kernels);
            let resident = logits("resident", on_gpu());
            common::assert_close(&resident, &host, LOGITS_TOLERANCE, &format!("{what} {kernels:?}"));
            let refused = on_gpu().max_memory(Device::Gpu(0), Bytes::kib(1)).prepare();
            let Err(Error::DoesNotFit { needed: budget, .. }) = pollster::block_on(refused) else { panic!("1 KiB cannot do") };
            let streamed = logits("streamed", on_gpu().max_memory(Device::Gpu(0), budget).max_memory(Device::Cpu, Bytes::ZERO));
            common::assert_close(&streamed, &host, LOGITS_TOLERANCE, &format!("{what} {kernels:?} streamed"));
            // The fastest kernels may be others once more of them have been measured.
            if kernels == KernelChoice::Portable {
                assert!(common::bits(&streamed) == common::bits(&resident), "{what} streamed");
            }
        }
    }
}
