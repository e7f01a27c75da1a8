//! The real small model against results of transformers in f32, made from the same GGUF file: token for token, and the
//! logits behind the prompt. Needs `TIERFLOW_SMOLLM2` to name the file; `cargo xtask test` fetches it and sets that.

use std::path::{Path, PathBuf};

use crate::common::program::{Home, wait};
use tierflow::device::{Device, DeviceChoice, GpuLimits, KernelChoice};
use tierflow::engine::{Engine, EngineBuilder};
use tierflow::plan::{PlacementRule, PlanOptions, UploadPath};
use tierflow::session::GenerateOptions;
use tierflow::stream::{Logits, LogitsRequest};
use tierflow::text::{ChatMessage, GenerationPrompt, Sampler, SamplingSettings, Special};
use tierflow::units::Bytes;

use crate::common;

/// Logits may differ from the reference by this share of its largest magnitude: f32 sums in another order.
const LOGITS_TOLERANCE: f32 = 2e-3;

/// One prompt and what transformers made of it.
struct Golden {
    prompt: String,
    templated: String,
    prompt_ids: Vec<u32>,
    new_ids: Vec<u32>,
    /// Behind the prompt. `[vocab_size]`
    last_logits: Vec<f32>,
}

fn model() -> Option<PathBuf> {
    let path = std::env::var_os("TIERFLOW_SMOLLM2").map(PathBuf::from);
    if path.is_none() {
        eprintln!("SKIP: TIERFLOW_SMOLLM2 does not name the model; `cargo xtask test` fetches it");
    }
    path
}

fn gpu_and_model() -> Option<PathBuf> {
    model().filter(|_| !common::gpus().is_empty())
}

fn goldens() -> Vec<Golden> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let ids = |value: &serde_json::Value| value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let item = |(index, item): (usize, &serde_json::Value)| Golden {
        prompt: text(&item["prompt"]),
        templated: text(&item["templated"]),
        prompt_ids: ids(&item["prompt_ids"]),
        new_ids: ids(&item["new_ids"]),
        last_logits: read_npy(&folder.join(format!("logits_last_{index}.npy"))),
    };
    json["items"].as_array().unwrap().iter().enumerate().map(item).collect()
}

/// A one-dimensional little-endian f32 array in numpy's format 1.0: magic, version, header length, header, data.
fn read_npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let header_len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!(bytes.starts_with(b"\x93NUMPY\x01") && bytes[10..10 + header_len].windows(5).any(|part| part == b"'<f4'"));
    bytes[10 + header_len..].as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
}

/// Tokens and logits of every golden, computed by just these devices.
fn check(builder: EngineBuilder, executors: &[Device], what: &str) {
    let mut engine = pollster::block_on(builder.open()).unwrap();
    assert_eq!(engine.plan().executors(), executors, "{what}");
    for golden in goldens() {
        let tokenizer = engine.tokenizer().unwrap();
        let template = engine.chat_template().unwrap();
        let templated = template.render(&[ChatMessage::new("user", &golden.prompt)], GenerationPrompt::Add).unwrap();
        assert_eq!(templated, golden.templated);
        assert_eq!(tokenizer.encode(&templated, Special::Leave).unwrap(), golden.prompt_ids);

        let mut session = engine.session();
        let Logits::All(logits) = pollster::block_on(session.append(&golden.prompt_ids, LogitsRequest::All)).unwrap() else {
            panic!("all logits")
        };
        common::assert_close(&logits, &golden.last_logits, LOGITS_TOLERANCE, what);

        let options = GenerateOptions { max_tokens: Some(golden.new_ids.len()), ..GenerateOptions::default() };
        let sampler = Sampler::new(SamplingSettings::greedy(), 0);
        let mut generation = pollster::block_on(session.generate(&golden.prompt_ids, sampler, options)).unwrap();
        let mut tokens = Vec::new();
        while let Some(step) = pollster::block_on(generation.next()).unwrap() {
            tokens.push(step.token);
        }
        assert_eq!(tokens, golden.new_ids, "{what}: {}", golden.prompt);
    }
    for memory in engine.memory_use() {
        assert!(memory.budget.is_none_or(|budget| memory.peak <= budget), "{what}: {memory:?}");
    }
}

const GPU: Device = Device::Gpu(0);
const OTHER: Device = Device::Gpu(1);

#[test]
fn host() {
    let Some(model) = model() else { return };
    check(Engine::builder(model).device(DeviceChoice::Cpu), &[Device::Cpu], "host");
}

#[test]
fn gpu_all_resident() {
    let Some(model) = gpu_and_model() else { return };
    let builder = Engine::builder(model).device(DeviceChoice::Gpu).ctx_size(256);
    check(builder, &[GPU], "all resident");
}

#[test]
fn gpu_with_40_mib() {
    let Some(model) = gpu_and_model() else { return };
    check(Engine::builder(model).device(DeviceChoice::Gpu).max_memory(GPU, Bytes::mib(40)), &[GPU], "40 MiB");
}

#[test]
fn gpu_with_all_from_disk() {
    let Some(model) = gpu_and_model() else { return };
    let builder = Engine::builder(model).device(DeviceChoice::Gpu).max_memory(GPU, Bytes::mib(40)).max_memory(Device::Cpu, Bytes::ZERO);
    check(builder, &[GPU], "from disk");
}

#[test]
fn two_gpus_one_of_which_streams() {
    let Some(model) = gpu_and_model() else { return };
    let placements = common::placements(&model, |unit, n_units| match unit {
        _ if unit < n_units / 3 => (GPU, GPU),
        _ if unit < n_units / 2 => (OTHER, OTHER),
        _ => (OTHER, Device::Cpu),
    });
    let options = PlanOptions { placement: PlacementRule::Placed(placements), ctx_size: Some(256), ..PlanOptions::default() };
    let builder = Engine::builder(model).plan_options(options).virtual_gpus(2).device(DeviceChoice::Gpu);
    check(builder.max_memory(GPU, Bytes::mib(40)).max_memory(OTHER, Bytes::mib(40)), &[GPU, OTHER], "two GPUs");
}

#[test]
fn a_gpu_and_the_host() {
    let Some(model) = gpu_and_model() else { return };
    // GPU, host, GPU: the residual stream goes there and back.
    let placements = common::placements(&model, |unit, n_units| match unit {
        _ if unit < n_units / 4 => (GPU, GPU),
        _ if unit < n_units / 2 => (Device::Cpu, Device::Cpu),
        _ if unit < n_units * 3 / 4 => (GPU, Device::Cpu),
        _ => (Device::Cpu, Device::Cpu),
    });
    let options = PlanOptions { placement: PlacementRule::Placed(placements), ctx_size: Some(256), ..PlanOptions::default() };
    let builder = Engine::builder(model).plan_options(options).compute_on([GPU, Device::Cpu]).max_memory(GPU, Bytes::mib(40));
    check(builder, &[GPU, Device::Cpu], "a GPU and the host");
}

/// One adapter behind two APIs is two adapters where both are asked for: as one machine with GPUs of two makers.
#[test]
fn vulkan_and_gl_side_by_side() {
    let Some(model) = gpu_and_model() else { return };
    let home = Home::new();
    let json = |arguments: &[&str]| -> serde_json::Value {
        let ran = wait(home.command(arguments).env("TIERFLOW_BACKENDS", "vulkan,gl").spawn().unwrap());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap()
    };
    let devices = json(&["devices", "--json"]);
    let drivers: Vec<&str> = devices["devices"].as_array().unwrap().iter().filter_map(|device| device["driver"].as_str()).collect();
    if !(drivers[0].starts_with("vulkan") && drivers[1].starts_with("gl")) {
        eprintln!("SKIP: Vulkan and GL are not both there; on Debian `apt-get install libegl1` gives GL");
        return;
    }
    let model = model.to_str().unwrap();
    let layers = (0..30).map(|layer| format!("\"model.layers.{layer}\": {}", u8::from(layer >= 12)));
    let rest = ["\"model.embed_tokens\": \"cpu\"", "\"model.norm\": 1", "\"lm_head\": 1"].map(str::to_owned);
    let map = home.path("map.json").display().to_string();
    std::fs::write(&map, format!("{{{}}}", layers.chain(rest).collect::<Vec<_>>().join(", "))).unwrap();
    for golden in goldens() {
        let n_tokens = golden.new_ids.len().to_string();
        let answer = ["run", model, "-p", &golden.prompt, "-n", &n_tokens, "--temp", "0", "-c", "256", "--json"];
        let placement = ["--device", "gpu", "--max-memory", "gpu:0=80MiB,gpu:1=80MiB", "--device-map", &map];
        let ran = json(&[&answer[..], &placement].concat());
        let tokens: Vec<u32> = serde_json::from_value(ran["tokens"].clone()).unwrap();
        assert_eq!(tokens, golden.new_ids, "{}", golden.prompt);
        let peak = |device: usize| ran["memory"][device]["peak"].as_u64().unwrap();
        assert!(ran["memory"][1]["device"] == "gpu:1" && peak(0) > 0 && peak(1) > 0, "{}", ran["memory"]);
    }
}

/// Placement never changes the answer: the same bytes, so the same bits.
#[test]
fn logits_are_bit_identical_wherever_the_weights_live() {
    let Some(model) = gpu_and_model() else { return };
    let tokens = &goldens()[0].prompt_ids;
    let logits = |builder: EngineBuilder, streams: bool| {
        let mut engine = pollster::block_on(builder.open()).unwrap();
        assert_eq!(engine.plan().streamed_chunks().next().is_some(), streams, "{}", engine.plan());
        let mut session = engine.session();
        let prefill = pollster::block_on(session.append(tokens, LogitsRequest::All)).unwrap();
        let decode = pollster::block_on(session.append(&[504], LogitsRequest::All)).unwrap();
        let (Logits::All(prefill), Logits::All(decode)) = (prefill, decode) else { panic!("all logits") };
        (common::bits(&prefill), common::bits(&decode))
    };
    // The same forward size everywhere: another one may take another kernel. Front to back, so that a budget decides what streams.
    let options = |upload| PlanOptions {
        ctx_size: Some(64),
        ubatch_size: Some(64),
        upload,
        placement: PlacementRule::FrontToBack,
        ..PlanOptions::default()
    };
    // The fastest kernels may be others once more of them have been measured.
    let portable = |options| Engine::builder(&model).plan_options(options).device(DeviceChoice::Gpu).kernels(KernelChoice::Portable);
    let engine = || portable(options(None));
    let resident = logits(engine(), false);
    let small = Bytes::mib(24);
    assert!(logits(engine().max_memory(GPU, small), true) == resident, "streamed from the host");
    assert!(logits(engine().max_memory(GPU, small).max_memory(Device::Cpu, Bytes::ZERO), true) == resident, "streamed from disk");
    for upload in [UploadPath::Mapped, UploadPath::Staged, UploadPath::Written] {
        assert!(logits(portable(options(Some(upload))).max_memory(GPU, small), true) == resident, "{upload}");
    }
    let limits = GpuLimits { max_buffer_bytes: Bytes::mib(16), max_binding_bytes: Bytes::mib(8), ..GpuLimits::default() };
    assert!(logits(engine().limits(Some(limits)), false) == resident, "sliced");
    assert!(logits(engine().limits(Some(limits)).max_memory(GPU, small), true) == resident, "sliced and streamed");
    let two = || engine().virtual_gpus(2).max_memory(GPU, Bytes::mib(48));
    assert!(logits(two().max_memory(OTHER, Bytes::gib(1)), false) == resident, "two GPUs");
    assert!(logits(two().max_memory(OTHER, small), true) == resident, "two GPUs, the second of which streams");
}
