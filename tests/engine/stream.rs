//! The executors in earnest, on a tiny model: sequences side by side, prompts in parts, and engines that are dropped midway.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Waker};
use std::time::Duration;

use tierflow::device::{Device, DeviceChoice, KernelChoice, Rates};
use tierflow::dtype::DType;
use tierflow::engine::{Engine, EngineBuilder, TextFiles};
use tierflow::error::{Error, Result};
use tierflow::gpu;
use tierflow::handle::MAX_UNREAD;
use tierflow::model::Checkpoint;
use tierflow::plan::{CacheDType, KvDType, PlacementRule, PlanOptions, ResidentLayers, RingPlan, Schedule, UploadPath};
use tierflow::platform::{ByteSource, IoMode, open_source};
use tierflow::session::{FinishReason, GenerateOptions};
use tierflow::stream::{Batch, BatchToken, Lane, Logits, LogitsRequest, MAX_TOKENS_TOGETHER};
use tierflow::text::{Sampler, SamplingSettings};
use tierflow::units::{Bytes, BytesPerSec};
use tierflow::{Sequence, TokenStream};
use xtask::models::{LlamaShape, Stored, write_hf};

use crate::common;

/// Relative to the largest score: rows are computed by other kernels where a forward has more tokens.
const TOLERANCE: f32 = 2e-5;

pub struct TestModel {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl TestModel {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

pub fn test_model(sliding_window: Option<usize>) -> TestModel {
    model_of(&LlamaShape { sliding_window, ..LlamaShape::tiny() })
}

/// Without a window and with one; heads that adapters pad.
pub fn shapes() -> [LlamaShape; 3] {
    let tiny = LlamaShape::tiny();
    [tiny.clone(), LlamaShape { sliding_window: Some(5), ..tiny.clone() }, LlamaShape { head_size: 12, n_heads: 5, n_kv_heads: 1, ..tiny }]
}

pub fn model_of(shape: &LlamaShape) -> TestModel {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    write_hf(&path, shape, 5, Stored::BF16, 1).unwrap();
    TestModel { _folder: folder, path }
}

pub const GPU: Device = Device::Gpu(0);
/// The other half of the one adapter, opened on its own.
const OTHER: Device = Device::Gpu(1);

/// Sets of devices that compute together: the host always, adapters where there is one.
pub fn executor_sets() -> Vec<&'static [Device]> {
    let mut sets: Vec<&[Device]> = vec![&[Device::Cpu]];
    if has_gpu() {
        sets.extend([&[GPU][..], &[GPU, OTHER], &[GPU, Device::Cpu]]);
    }
    sets
}

pub fn has_gpu() -> bool {
    let found = !pollster::block_on(gpu::list()).unwrap().is_empty();
    if !found {
        assert!(std::env::var_os("REQUIRE_GPU").is_none_or(|value| value != "1"), "REQUIRE_GPU=1, but there is no adapter");
        eprintln!("SKIP: no adapter; on Debian `apt-get install mesa-vulkan-drivers` gives a software one");
    }
    found
}

fn builder(model: &TestModel, executors: &[Device], options: PlanOptions) -> EngineBuilder {
    let builder = Engine::builder(&model.path).compute_on(executors.iter().copied()).virtual_gpus(2);
    // Bits of several engines are compared: the fastest kernels may be others once more of them have been measured.
    builder.kernels(KernelChoice::Portable).text(TextFiles::Skip).plan_options(options)
}

pub fn open(model: &TestModel, executors: &[Device], options: PlanOptions) -> Result<Engine> {
    pollster::block_on(builder(model, executors, options).open())
}

pub fn options() -> PlanOptions {
    PlanOptions {
        n_seqs: 3,
        ctx_size: Some(64),
        ubatch_size: Some(64),
        resident_layers: ResidentLayers::AtMost(2),
        // Every executor has a part, whatever its rates.
        placement: PlacementRule::FrontToBack,
        // Keys that differ in their last bit would differ in f16's, where a rounding tips over.
        kv_dtype: KvDType::F32,
        ..PlanOptions::default()
    }
}

pub fn tokens(sequence: u32, n_tokens: u32) -> Vec<BatchToken> {
    (0..n_tokens).map(|position| BatchToken { token: (position * 37 + sequence * 11 + 3) % 320, sequence, position }).collect()
}

/// The logits after the last token of each of `rows`.
pub fn forward(engine: &mut Engine, tokens: &[BatchToken], rows: &[usize]) -> Vec<Vec<f32>> {
    let logits_for = rows.iter().map(|&row| row as u32).collect();
    let batch = Batch { tokens: tokens.to_vec(), logits_for, logits_request: LogitsRequest::All };
    let logits = pollster::block_on(engine.forward(&batch)).unwrap();
    logits.into_iter().map(|logits| if let Logits::All(logits) = logits { logits } else { panic!("all were asked for") }).collect()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    assert!(largest > 0.0 && found.len() == expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        // Written so that a NaN fails.
        assert!((found - expected).abs() <= TOLERANCE * largest, "{what}: {found} where {expected} is expected (largest {largest})");
    }
}

/// Runs `work` in a thread of its own; a hang fails.
fn within(secs: u64, what: &str, work: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    match finished.recv_timeout(Duration::from_secs(secs)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} hangs"),
        _ => thread.join().expect("the work itself"),
    }
}

#[test]
fn sequences_side_by_side_are_what_each_is_alone() {
    for shape in shapes() {
        let model = model_of(&shape);
        for executors in executor_sets() {
            let lengths = [7u32, 1, 12];
            let alone: Vec<Vec<f32>> = (0..3u32)
                .map(|sequence| {
                    let mut engine = open(&model, executors, PlanOptions { n_seqs: 1, ..options() }).unwrap();
                    let own: Vec<BatchToken> =
                        tokens(sequence, lengths[sequence as usize]).iter().map(|token| BatchToken { sequence: 0, ..*token }).collect();
                    forward(&mut engine, &own, &[own.len() - 1]).remove(0)
                })
                .collect();
            let mut engine = open(&model, executors, options()).unwrap();
            // Interleaved: the first tokens of all sequences, then the second ones.
            let mut all: Vec<BatchToken> = (0..3).flat_map(|sequence| tokens(sequence, lengths[sequence as usize])).collect();
            all.sort_by_key(|token| (token.position, token.sequence));
            let last = |sequence: u32| all.iter().rposition(|token| token.sequence == sequence).unwrap();
            let together = forward(&mut engine, &all, &[last(0), last(1), last(2)]);
            for (sequence, (found, expected)) in together.iter().zip(&alone).enumerate() {
                assert_close(found, expected, &format!("sequence {sequence} on {executors:?}, {shape:?}"));
            }
        }
    }
}

#[test]
fn a_prompt_in_parts_is_the_prompt_at_once() {
    for shape in shapes() {
        let model = model_of(&shape);
        for executors in executor_sets() {
            let prompt = tokens(1, 40);
            let mut engine = open(&model, executors, options()).unwrap();
            let at_once = forward(&mut engine, &prompt, &[39]).remove(0);
            for part in [1, 7, 39] {
                let mut engine = open(&model, executors, options()).unwrap();
                let mut logits = Vec::new();
                for tokens in prompt.chunks(part) {
                    logits = forward(&mut engine, tokens, &[tokens.len() - 1]).remove(0);
                }
                assert_close(&logits, &at_once, &format!("parts of {part} on {executors:?}, {shape:?}"));
            }
        }
    }
}

#[test]
fn every_ring_computes_the_same_bits() {
    let model = test_model(None);
    let adapters = pollster::block_on(gpu::list()).unwrap();
    let has_mapped_slots = adapters.first().is_some_and(|found| found.features.iter().any(|name| name == "MAPPABLE_PRIMARY_BUFFERS"));
    for executors in executor_sets() {
        let prompt = tokens(0, 9);
        // A host beside an adapter gets layers only where the adapter may not keep them all; two adapters compute what one does.
        let resident_layers = if executors == [GPU, Device::Cpu] { ResidentLayers::AtMost(1) } else { ResidentLayers::Auto };
        let resident = PlanOptions { resident_layers, ..options() };
        let mut engine = open(&model, executors, resident).unwrap();
        assert!(engine.plan().streamed_chunks().next().is_none());
        let expected: Vec<Vec<f32>> = (0..2).map(|_| forward(&mut engine, &prompt, &[8]).remove(0)).collect();
        assert_eq!(expected[0], expected[1]);
        for host in [Bytes::ZERO, Bytes::gib(1)] {
            for n_slots in 1..=4 {
                for lookahead in 1..=n_slots {
                    let ring = PlanOptions {
                        n_slots: Some(n_slots),
                        lookahead: Some(lookahead),
                        resident_layers: ResidentLayers::AtMost(1),
                        upload: Some(match (n_slots + lookahead) % 3 {
                            0 => UploadPath::Written,
                            1 if has_mapped_slots => UploadPath::Mapped,
                            _ => UploadPath::Staged,
                        }),
                        // What `-ngl` is to an adapter, a budget is to a host that computes: the least that works streams the most.
                        max_memory: [(Device::Cpu, if executors.contains(&Device::Cpu) { Bytes(1) } else { host })].into(),
                        ..options()
                    };
                    let opened = match open(&model, executors, ring.clone()) {
                        Err(Error::DoesNotFit { needed, .. }) => {
                            open(&model, executors, PlanOptions { max_memory: [(Device::Cpu, needed)].into(), ..ring })
                        }
                        opened => opened,
                    };
                    let mut engine = opened.unwrap();
                    assert!(engine.plan().streamed_chunks().next().is_some());
                    assert_eq!(engine.plan().executors(), executors);
                    for expected in &expected {
                        let found = forward(&mut engine, &prompt, &[8]).remove(0);
                        assert!(found == *expected, "{n_slots} slots, lookahead {lookahead}, {host} of host memory on {executors:?}");
                    }
                }
            }
        }
    }
}

/// Every adapter has a ring of its own, whose uploads go on while the other one computes.
#[test]
fn two_rings_side_by_side_compute_the_same_bits() {
    if !has_gpu() {
        return;
    }
    let model = test_model(None);
    let prompt = tokens(0, 9);
    let mut engine = open(&model, &[GPU], PlanOptions { resident_layers: ResidentLayers::Auto, ..options() }).unwrap();
    let expected: Vec<Vec<f32>> = (0..3).map(|_| forward(&mut engine, &prompt, &[8]).remove(0)).collect();
    for (n_slots, lookahead) in [(1, 1), (2, 1), (3, 3)] {
        let options = PlanOptions { n_slots: Some(n_slots), lookahead: Some(lookahead), ..options() };
        let mut prepared = pollster::block_on(builder(&model, &[GPU, OTHER], options).prepare()).unwrap();
        let mut plan = (*prepared.plan).clone();
        let own: Vec<usize> = (0..plan.chunks.len()).filter(|&chunk| plan.executor(chunk) == GPU).collect();
        own.iter().for_each(|&chunk| plan.chunks[chunk].stored_on = Device::Cpu);
        let slot_bytes = own.iter().map(|&chunk| plan.chunks[chunk].size_bytes).max().unwrap();
        let ring = RingPlan { slot_bytes, ..*plan.ring(OTHER).unwrap() };
        plan.devices.iter_mut().find(|device| device.device == GPU).unwrap().ring = Some(ring);
        prepared.schedule = Schedule::new(&plan);
        prepared.plan = Arc::new(plan);
        let mut engine = pollster::block_on(prepared.load(&|_| {})).unwrap();
        for expected in &expected {
            assert!(forward(&mut engine, &prompt, &[8]).remove(0) == *expected, "{n_slots} slots, lookahead {lookahead}");
        }
        let spans = engine.trace().spans();
        for device in [GPU, OTHER] {
            assert!(spans.iter().any(|span| span.device == device && span.lane == Lane::Upload), "nothing streamed to {device}");
        }
    }
}

#[test]
fn what_each_device_holds_stays_within_its_budget() {
    for executors in executor_sets() {
        let model = test_model(None);
        let mut engine = open(&model, executors, PlanOptions { resident_layers: ResidentLayers::AtMost(1), ..options() }).unwrap();
        forward(&mut engine, &tokens(0, 30), &[29]);
        forward(&mut engine, &tokens(1, 1), &[0]);
        for memory in engine.memory_use() {
            let planned = engine.plan().device(memory.device).unwrap();
            assert!(memory.peak <= planned.used.total(), "{memory:?} where {} is planned", planned.used.total());
        }
        assert!(
            executors.iter().all(|device| engine.memory_use().iter().any(|memory| memory.device == *device && memory.peak > Bytes::ZERO))
        );
    }
}

/// The bits of all logits behind the last of `batch`.
fn bits_of(engine: &mut Engine, batch: &Batch) -> Vec<u32> {
    match pollster::block_on(engine.forward(batch)).unwrap().remove(0) {
        Logits::All(logits) => common::bits(&logits),
        Logits::Top(_) => panic!("all logits"),
    }
}

#[test]
fn a_forward_dropped_midway_leaves_the_engine_usable() {
    static STOPPED: AtomicUsize = AtomicUsize::new(0);
    let model = test_model(None);
    for executors in executor_sets() {
        for n_slots in 1..=4 {
            for lookahead in 1..=n_slots {
                let ring = PlanOptions {
                    n_slots: Some(n_slots),
                    lookahead: Some(lookahead),
                    // Everybody but the last keeps a layer.
                    resident_layers: ResidentLayers::AtMost(executors.len() - 1),
                    ..options()
                };
                let mut engine = open(&model, executors, ring).unwrap();
                within(60, &format!("{n_slots} slots, lookahead {lookahead} on {executors:?}"), move || {
                    let batch = Batch { tokens: tokens(0, 5), logits_for: vec![4], logits_request: LogitsRequest::All };
                    let expected = bits_of(&mut engine, &batch);
                    // Stopped where it first waits, then a little later, and twice in a row.
                    for n_polls in [1, 2, 3, 1] {
                        let stopped = {
                            let mut midway = pin!(engine.forward(&batch));
                            let mut is_pending = || midway.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
                            (0..n_polls).all(|_| is_pending())
                        };
                        STOPPED.fetch_add(usize::from(stopped), Ordering::Relaxed);
                        if n_polls == 1 {
                            continue;
                        }
                        assert_eq!(bits_of(&mut engine, &batch), expected);
                    }
                    assert_eq!(bits_of(&mut engine, &batch), expected);
                    // Dropped midway, it does not hang.
                    {
                        let mut midway = pin!(engine.forward(&batch));
                        let _ = midway.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                    }
                    drop(engine);
                });
            }
        }
    }
    assert!(STOPPED.load(Ordering::Relaxed) > 0, "no forward ever waited for an upload");
}

/// A source that asks before each read.
struct Watched {
    name: String,
    source: Arc<dyn ByteSource>,
    before_read: Arc<BeforeRead>,
}

/// Gets the name of the file.
type BeforeRead = dyn Fn(&str) -> Result<()> + Send + Sync;

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl ByteSource for Watched {
    fn path(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        (self.before_read)(&self.name)?;
        self.source.read_at(offset, buffer)
    }
}

/// The model, whose every read comes after this.
fn watched(model: &TestModel, before_read: impl Fn(&str) -> Result<()> + Send + Sync + 'static) -> Arc<Checkpoint> {
    let before_read: Arc<BeforeRead> = Arc::new(before_read);
    let sources = std::fs::read_dir(&model.path).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let (name, before_read) = (path.file_name().unwrap().to_str().unwrap().to_owned(), Arc::clone(&before_read));
        Arc::new(Watched { name, source: open_source(&path, IoMode::Pread).unwrap(), before_read }) as Arc<dyn ByteSource>
    });
    Arc::new(Checkpoint::from_sources(sources.collect()).unwrap())
}

#[test]
fn a_read_that_fails_leaves_the_engine_usable() {
    let model = test_model(None);
    let mut n_failed = 0;
    for executors in executor_sets() {
        let n_left = Arc::new(AtomicUsize::new(usize::MAX));
        let left = Arc::clone(&n_left);
        // Refuses reads once a number of them is used up.
        let checkpoint = watched(&model, move |name| {
            let used = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            used.map(drop).map_err(|_| Error::invalid_file(name, "its disk is out"))
        });
        let ring = PlanOptions { resident_layers: ResidentLayers::AtMost(executors.len() - 1), ..options() };
        let mut builder = Engine::builder_of(checkpoint).compute_on(executors.iter().copied()).virtual_gpus(2);
        builder = builder.text(TextFiles::Skip).plan_options(ring);
        if !executors.contains(&Device::Cpu) {
            builder = builder.max_memory(Device::Cpu, Bytes::ZERO);
        }
        let mut engine = pollster::block_on(builder.open()).unwrap();
        let batch = Batch { tokens: tokens(0, 5), logits_for: vec![4], logits_request: LogitsRequest::All };
        let expected = bits_of(&mut engine, &batch);
        for n_reads in 0..6 {
            n_left.store(n_reads, Ordering::SeqCst);
            n_failed += usize::from(pollster::block_on(engine.forward(&batch)).is_err());
            n_left.store(usize::MAX, Ordering::SeqCst);
            assert_eq!(bits_of(&mut engine, &batch), expected, "{n_reads} reads on {executors:?}");
        }
    }
    assert!(n_failed > 0, "no read ever failed");
}

/// Rings that stream and ones that do not, where an adapter computes.
fn with_adapters() -> Vec<(&'static [Device], PlanOptions)> {
    let on_gpus = executor_sets().into_iter().filter(|executors| executors[0] == GPU);
    let streams = |executors: &[Device]| PlanOptions { resident_layers: ResidentLayers::AtMost(executors.len() - 1), ..options() };
    on_gpus
        .flat_map(|executors| {
            [(executors, streams(executors)), (executors, PlanOptions { resident_layers: ResidentLayers::Auto, ..options() })]
        })
        .collect()
}

#[test]
fn an_adapter_that_comes_too_late_leaves_the_engine_usable() {
    let model = test_model(None);
    for (executors, options) in with_adapters() {
        let mut engine = open(&model, executors, options).unwrap();
        within(120, &format!("waiting on {executors:?}"), move || {
            let batch = Batch { tokens: tokens(0, 40), logits_for: vec![39], logits_request: LogitsRequest::All };
            let expected = bits_of(&mut engine, &batch);
            let names: Vec<String> = engine.prepared().devices.iter().map(|spec| spec.title()).collect();
            let mut n_late = 0;
            for _ in 0..10 {
                // No work is done in no time.
                engine.set_gpu_timeout(Duration::ZERO);
                match pollster::block_on(engine.forward(&batch)) {
                    Err(Error::DeviceTimeout { adapter, waited: Duration::ZERO }) if names.contains(&adapter) => n_late += 1,
                    other => drop(other.unwrap()),
                }
                engine.set_gpu_timeout(gpu::GPU_TIMEOUT);
                assert_eq!(bits_of(&mut engine, &batch), expected, "{executors:?}");
            }
            assert!(n_late > 0, "{executors:?}");
        });
    }
}

#[test]
fn an_adapter_that_is_lost_midway_is_named_and_opens_anew() {
    static FAILED: AtomicUsize = AtomicUsize::new(0);
    let model = test_model(None);
    for (executors, options) in with_adapters() {
        let options = PlanOptions { n_slots: Some(1), lookahead: Some(1), ..options };
        let batch = Batch { tokens: tokens(0, 40), logits_for: vec![39], logits_request: LogitsRequest::All };
        // While this is locked, a forward that streams waits for what is uploaded.
        let gate = Arc::new(Mutex::new(()));
        let held = Arc::clone(&gate);
        let checkpoint = watched(&model, move |_| {
            if std::thread::current().name().is_some_and(|name| name.starts_with("tierflow-gpu:")) {
                drop(held.lock().unwrap());
            }
            Ok(())
        });
        let builder = move || {
            let builder = Engine::builder_of(Arc::clone(&checkpoint)).compute_on(executors.iter().copied()).virtual_gpus(2);
            let builder = builder.text(TextFiles::Skip).plan_options(options.clone());
            if executors.contains(&Device::Cpu) { builder } else { builder.max_memory(Device::Cpu, Bytes::ZERO) }
        };
        let mut engine = pollster::block_on(builder().open()).unwrap();
        let expected = bits_of(&mut engine, &batch);
        within(120, &format!("a loss on {executors:?}"), move || {
            let name = engine.prepared().devices[0].title();
            let is_named = |error: &Error| matches!(error, Error::DeviceLost { adapter, .. } if *adapter == name);
            let lose = engine.loss_of(GPU).expect("it computes");
            {
                let closed = gate.lock().unwrap();
                let mut midway = pin!(engine.forward(&batch));
                let first = midway.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                lose();
                drop(closed);
                // Where the adapter had done its part, others finish theirs.
                if first.is_pending()
                    && let Err(error) = pollster::block_on(midway)
                {
                    assert!(is_named(&error), "{error}");
                    FAILED.fetch_add(1, Ordering::Relaxed);
                }
            }
            for _ in 0..2 {
                let error = pollster::block_on(engine.forward(&batch)).unwrap_err();
                assert!(is_named(&error), "{error}");
            }
            drop(engine);
            let mut anew = pollster::block_on(builder().open()).unwrap();
            assert_eq!(bits_of(&mut anew, &batch), expected, "{executors:?}");
        });
    }
    assert!(FAILED.load(Ordering::Relaxed) > 0 || !has_gpu(), "no forward was under way as its adapter was lost");
}

#[test]
fn a_generation_whose_adapter_is_lost_ends_and_so_does_the_next() {
    let model = test_model(None);
    let prompt: Vec<u32> = tokens(0, 10).iter().map(|token| token.token).collect();
    for (executors, options) in with_adapters() {
        let engine = open(&model, executors, options).unwrap();
        let prompt = prompt.clone();
        within(120, &format!("a loss on {executors:?}"), move || {
            let lose = engine.loss_of(GPU).expect("it computes");
            let handle = engine.spawn().unwrap();
            let mut sequence = pollster::block_on(handle.sequence()).unwrap();
            let mut stream = sequence.generate(prompt.clone(), greedy(), at_most(50)).unwrap();
            pollster::block_on(stream.next()).unwrap().expect("a first token");
            // From another thread, wherever the engine's is.
            lose();
            let mut rest = std::iter::from_fn(|| pollster::block_on(stream.next()).transpose());
            let ended = rest.find_map(Result::err);
            // What was generated meanwhile may have been all of it.
            assert!(matches!(ended, None | Some(Error::DeviceLost { .. })), "{ended:?} on {executors:?}");
            let mut next = sequence.generate(prompt, greedy(), at_most(50)).unwrap();
            let error = pollster::block_on(next.next()).unwrap_err();
            assert!(matches!(error, Error::DeviceLost { .. }), "{error} on {executors:?}");
            drop((sequence, handle));
        });
    }
}

/// Takes an adapter away.
type Lose = Box<dyn FnOnce() + Send>;

/// Generations go on where they were once the engine is open again, and what is lost at every forward ends in an error.
#[test]
fn a_lost_adapter_is_opened_again_and_generations_go_on() {
    if !has_gpu() {
        return;
    }
    let model = Arc::new(test_model(None));
    let prompts: Vec<Vec<u32>> = (0..3).map(|sequence| ids(&tokens(sequence, 4 + sequence))).collect();
    let options = || PlanOptions { ctx_size: Some(128), ..options() };
    for executors in executor_sets().into_iter().filter(|executors| executors[0] == GPU) {
        let mut engine = open(&model, executors, options()).unwrap();
        let expected: Vec<Vec<u32>> = prompts.iter().map(|prompt| generated_alone(&mut engine, prompt, MAX_UNREAD + 6)).collect();
        let lose = engine.loss_of(GPU).expect("it computes");
        let losses: Arc<Mutex<Vec<Lose>>> = Arc::new(Mutex::new(vec![Box::new(lose)]));
        let is_always_lost = Arc::new(AtomicBool::new(false));
        let (known, is_lost_at_once, model) = (Arc::clone(&losses), Arc::clone(&is_always_lost), Arc::clone(&model));
        let reopen = move || {
            let engine = open(&model, executors, options())?;
            let lose = engine.loss_of(GPU).expect("it computes");
            if is_lost_at_once.load(Ordering::SeqCst) {
                lose();
            } else {
                known.lock().unwrap().push(Box::new(lose));
            }
            Ok(engine)
        };
        let handle = engine.spawn_reopening(reopen).unwrap();
        let mut sequences: Vec<Sequence> = (0..3).map(|_| pollster::block_on(handle.sequence()).unwrap()).collect();
        let start =
            |(sequence, prompt): (&mut Sequence, &Vec<u32>)| sequence.generate(prompt.clone(), greedy(), at_most(MAX_UNREAD + 6)).unwrap();
        let first = |stream: &mut TokenStream| vec![pollster::block_on(stream.next()).unwrap().unwrap().token];
        let rest = |stream: &mut TokenStream| -> Vec<u32> {
            std::iter::from_fn(|| pollster::block_on(stream.next()).unwrap()).map(|step| step.token).collect()
        };
        let lose = || losses.lock().unwrap().pop().expect("it is open")();
        let mut streams: Vec<TokenStream> = sequences.iter_mut().zip(&prompts).map(start).collect();
        let mut found: Vec<Vec<u32>> = streams.iter_mut().map(first).collect();
        // More tokens are to come than a stream holds unread, so that none of them has ended.
        lose();
        streams.iter_mut().zip(&mut found).for_each(|(stream, found)| found.extend(rest(stream)));
        assert_eq!(found, expected, "{executors:?}");

        is_always_lost.store(true, Ordering::SeqCst);
        lose();
        let mut stream = start((&mut sequences[0], &prompts[0]));
        let error = pollster::block_on(stream.next()).unwrap_err();
        assert!(matches!(error, Error::DeviceLost { .. }), "{error} on {executors:?}");
        is_always_lost.store(false, Ordering::SeqCst);
        assert_eq!(rest(&mut start((&mut sequences[0], &prompts[0]))), expected[0], "{executors:?}");
    }
}

/// No answer is taken for a whole one where the engine cannot be opened again.
#[test]
fn generations_end_in_errors_where_an_engine_cannot_be_opened_again() {
    if !has_gpu() {
        return;
    }
    let model = test_model(None);
    let engine = open(&model, &[GPU], PlanOptions { ctx_size: Some(128), ..options() }).unwrap();
    let lose = engine.loss_of(GPU).expect("it computes");
    let handle = engine.spawn_reopening(|| Err(Error::AllSequencesInUse { n_seqs: 0 })).unwrap();
    let mut sequences: Vec<Sequence> = (0..3).map(|_| pollster::block_on(handle.sequence()).unwrap()).collect();
    let start = |sequence: &mut Sequence| sequence.generate(ids(&tokens(0, 4)), greedy(), at_most(MAX_UNREAD + 6)).unwrap();
    let mut streams: Vec<TokenStream> = sequences.iter_mut().map(start).collect();
    streams.iter_mut().for_each(|stream| drop(pollster::block_on(stream.next()).unwrap().expect("a first token")));
    lose();
    let ended = |stream: &mut TokenStream| std::iter::from_fn(|| pollster::block_on(stream.next()).transpose()).find_map(Result::err);
    let errors: Vec<Error> = streams.iter_mut().map(|stream| ended(stream).expect("an error")).collect();
    assert_eq!(errors.iter().filter(|error| matches!(error, Error::AllSequencesInUse { .. })).count(), 1, "{errors:?}");
    assert_eq!(errors.iter().filter(|error| matches!(error, Error::EngineGone)).count(), 2, "{errors:?}");
    assert!(matches!(ended(&mut start(&mut sequences[0])), Some(Error::EngineGone)));
    assert!(matches!(pollster::block_on(handle.sequence()).err(), Some(Error::EngineGone)));
}

/// What a session of its own generates after `prompt`.
fn generated_alone(engine: &mut Engine, prompt: &[u32], n_tokens: usize) -> Vec<u32> {
    let mut session = engine.session();
    let mut generation = pollster::block_on(session.generate(prompt, greedy(), at_most(n_tokens))).unwrap();
    let mut tokens = Vec::new();
    while let Some(step) = pollster::block_on(generation.next()).unwrap() {
        tokens.push(step.token);
    }
    tokens
}

pub fn greedy() -> Sampler {
    Sampler::new(SamplingSettings::greedy(), 0)
}

pub fn at_most(n_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: Some(n_tokens), ..GenerateOptions::default() }
}

#[test]
fn sequences_of_a_handle_live_side_by_side() {
    let model = test_model(None);
    let prompts: Vec<Vec<u32>> = (0..3).map(|sequence| tokens(sequence, 4 + sequence).iter().map(|token| token.token).collect()).collect();
    for executors in executor_sets() {
        let mut engine = open(&model, executors, options()).unwrap();
        let expected: Vec<Vec<u32>> = prompts.iter().map(|prompt| generated_alone(&mut engine, prompt, 8)).collect();
        let handle = engine.spawn().unwrap();
        let mut sequences: Vec<Sequence> = (0..3).map(|_| pollster::block_on(handle.sequence()).unwrap()).collect();
        let refused = pollster::block_on(handle.sequence()).err().unwrap();
        assert!(matches!(refused, Error::AllSequencesInUse { n_seqs: 3 }), "{refused}");
        let start = |(sequence, prompt): (&mut Sequence, &Vec<u32>)| sequence.generate(prompt.clone(), greedy(), at_most(8)).unwrap();
        let mut streams: Vec<TokenStream> = sequences.iter_mut().zip(&prompts).map(start).collect();
        for (stream, expected) in streams.iter_mut().zip(&expected) {
            let mut found = Vec::new();
            while let Some(step) = pollster::block_on(stream.next()).unwrap() {
                found.push(step.token);
            }
            assert_eq!(&found, expected, "{executors:?}");
            assert_eq!(stream.finish_reason(), Some(FinishReason::Length));
        }
        drop(sequences.pop());
        pollster::block_on(handle.clone().sequence()).expect("one is free again");
    }
}

/// Tokens of `text` from position `begin` on, part by part; the bits of the last logits.
fn read_on(engine: &mut Engine, sequence: u32, text: &[BatchToken], begin: usize) -> Vec<u32> {
    let mut bits = Vec::new();
    for part in text[begin..].chunks(8) {
        let tokens: Vec<BatchToken> = part.iter().map(|token| BatchToken { sequence, ..*token }).collect();
        let logits_for = vec![tokens.len() as u32 - 1];
        bits = bits_of(engine, &Batch { tokens, logits_for, logits_request: LogitsRequest::All });
    }
    bits
}

/// Heads of one block, and of three, whose scales fill no whole words.
fn shapes_of_blocks() -> [LlamaShape; 2] {
    let tiny = LlamaShape::tiny();
    [
        LlamaShape { head_size: 32, sliding_window: Some(70), ..tiny.clone() },
        LlamaShape { head_size: 96, n_heads: 3, n_kv_heads: 1, ..tiny },
    ]
}

const BLOCKS: [KvDType; 2] = [KvDType::Q8_0, KvDType::Q4_0];
/// Keys and values in different dtypes, blocks on either side or both, as the host has them as well.
const MIXED: [KvDType; 3] = [
    KvDType { keys: CacheDType::Q8_0, values: CacheDType::Q4_0 },
    KvDType { keys: CacheDType::Q8_0, values: CacheDType::F32 },
    KvDType { keys: CacheDType::F32, values: CacheDType::Q4_0 },
];

#[test]
fn caches_of_blocks_give_the_same_bits_wherever_weights_are() {
    for shape in shapes_of_blocks() {
        let model = model_of(&shape);
        for kv_dtype in BLOCKS.into_iter().chain(MIXED) {
            let logits = |executors: &[Device], resident_layers: ResidentLayers| {
                let options = PlanOptions { kv_dtype, ctx_size: Some(128), ubatch_size: Some(40), resident_layers, ..options() };
                let mut engine = open(&model, executors, options).unwrap();
                assert!(engine.plan().devices.iter().all(|row| engine.plan().kv_dtype_of(row.device) == kv_dtype));
                let text = tokens(0, 101);
                let found: Vec<Vec<f32>> = [&text[..40], &text[40..80], &text[80..100], &text[100..]]
                    .into_iter()
                    .map(|part| forward(&mut engine, part, &[part.len() - 1]).remove(0))
                    .collect();
                for memory in engine.memory_use() {
                    assert!(memory.budget.is_none_or(|budget| memory.peak <= budget), "{memory:?}");
                    let planned = engine.plan().device(memory.device).map_or(Bytes::ZERO, |row| row.used.total());
                    assert!(memory.peak <= planned, "{memory:?} where {planned} is planned, {kv_dtype:?}");
                }
                found.concat()
            };
            let host = logits(&[Device::Cpu], ResidentLayers::Auto);
            if !has_gpu() {
                continue;
            }
            let resident = logits(&[GPU], ResidentLayers::All);
            assert!(resident == logits(&[GPU], ResidentLayers::AtMost(0)), "{kv_dtype:?} streamed, {shape:?}");
            assert!(resident == logits(&[GPU, OTHER], ResidentLayers::AtMost(1)), "{kv_dtype:?} on two, {shape:?}");
            // A key that differs in its last bit may be rounded to the next integer: some do, of tens of thousands.
            for found in [&resident, &logits(&[GPU, Device::Cpu], ResidentLayers::AtMost(1))] {
                common::assert_close(found, &host, 2e-2, &format!("{kv_dtype:?} beside the host, {shape:?}"));
            }
        }
    }
}

/// How far logits are from those of caches in f32: farther with a dtype that rounds more, of keys and of values, and no farther than with that
/// dtype for both.
#[test]
fn keys_and_values_in_different_dtypes_err_as_both_do() {
    let model = model_of(&shapes_of_blocks()[1]);
    let executors: Vec<Device> = [Device::Cpu, GPU].into_iter().take(if has_gpu() { 2 } else { 1 }).collect();
    for device in executors {
        let logits = |keys: CacheDType, values: CacheDType| {
            let kv_dtype = KvDType { keys, values };
            let options = PlanOptions { kv_dtype, ctx_size: Some(128), resident_layers: ResidentLayers::Auto, ..options() };
            let mut engine = open(&model, &[device], options).unwrap();
            let text = tokens(0, 60);
            (0..60).map(|at| forward(&mut engine, &text[at..=at], &[0]).remove(0)).collect::<Vec<_>>().concat()
        };
        let exact = logits(CacheDType::F32, CacheDType::F32);
        let error = |keys, values| {
            let squares = logits(keys, values).iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            (squares / exact.len() as f64).sqrt()
        };
        let (floats, bytes, nibbles) = (CacheDType::F32, CacheDType::Q8_0, CacheDType::Q4_0);
        let [of_bytes, of_nibbles] = [bytes, nibbles].map(|dtype| error(dtype, dtype));
        for (keys, values, least, most) in [
            (bytes, floats, 0.0, of_bytes),
            (floats, bytes, 0.0, of_bytes),
            (bytes, nibbles, of_bytes, of_nibbles),
            (nibbles, bytes, of_bytes, of_nibbles),
            (nibbles, floats, of_bytes, of_nibbles),
            (floats, nibbles, of_bytes, of_nibbles),
        ] {
            let error = error(keys, values);
            assert!(least < error && error < most, "{keys}/{values} on {device}: {error}, not between {least} and {most}");
        }
    }
}

#[test]
fn heads_that_are_no_whole_blocks_are_refused_by_name() {
    let model = test_model(None);
    for kv_dtype in BLOCKS {
        for executors in executor_sets() {
            let of_values = KvDType { keys: CacheDType::F32, ..kv_dtype };
            for asked in [kv_dtype, of_values, KvDType { values: CacheDType::F16, ..kv_dtype }] {
                let refused = open(&model, executors, PlanOptions { kv_dtype: asked, ..options() }).err().expect("a refusal").to_string();
                assert!(refused.contains(&format!("{kv_dtype} stores blocks of 32 numbers, and the model's heads have 16")), "{refused}");
            }
        }
    }
}

#[test]
fn positions_that_were_copied_give_the_bits_of_those_that_were_computed() {
    let floats = shapes().into_iter().map(|shape| (shape, vec![KvDType::F32, KvDType::F16]));
    let blocks = || BLOCKS.into_iter().chain(MIXED).collect();
    for (shape, kv_dtypes) in floats.chain(shapes_of_blocks().into_iter().skip(1).map(|shape| (shape, blocks()))) {
        let model = model_of(&shape);
        for executors in executor_sets() {
            for &kv_dtype in &kv_dtypes {
                // More positions than any working buffer of an adapter has room for.
                let options = PlanOptions { kv_dtype, ctx_size: Some(256), ubatch_size: Some(8), ..options() };
                let mut engine = open(&model, executors, options).unwrap();
                let (text, other) = (tokens(0, 213), tokens(1, 30));
                read_on(&mut engine, 1, &text[..201], 0);
                read_on(&mut engine, 2, &other, 0);
                engine.copy_sequence(1, 2, 197).unwrap();
                let found = read_on(&mut engine, 2, &text, 197);
                assert!(found == read_on(&mut engine, 1, &text, 197), "{kv_dtype:?} on {executors:?}, {shape:?}");
                // Sequences beside it are as they were.
                read_on(&mut engine, 0, &other, 0);
                assert!(read_on(&mut engine, 1, &tokens(0, 214), 213) == read_on(&mut engine, 2, &tokens(0, 214), 213));
                for (from, to, n_tokens, expected) in
                    [(0, 1, 31, "31 positions of sequence 0 were to be copied, 30 are cached"), (0, 3, 1, "there is no sequence 3")]
                {
                    let refused = engine.copy_sequence(from, to, n_tokens).unwrap_err().to_string();
                    assert!(refused.contains(expected), "{refused}");
                }
            }
        }
    }
}

#[test]
fn prompts_that_begin_alike_are_read_once_so_far() {
    let model = test_model(None);
    let prompt = |sequence: u32| ids(&[tokens(0, 40), tokens(sequence, 3 + sequence)].concat());
    let prompts: Vec<Vec<u32>> = (1..4).map(prompt).collect();
    for executors in executor_sets() {
        let mut engine = open(&model, executors, PlanOptions { ubatch_size: Some(8), ..options() }).unwrap();
        let expected: Vec<Vec<u32>> = prompts.iter().map(|prompt| generated_alone(&mut engine, prompt, 8)).collect();
        let handle = engine.spawn().unwrap();
        let mut sequences: Vec<Sequence> = (0..3).map(|_| pollster::block_on(handle.sequence()).unwrap()).collect();
        let start = |(sequence, prompt): (&mut Sequence, &Vec<u32>)| sequence.generate(prompt.clone(), greedy(), at_most(8)).unwrap();
        let mut streams: Vec<TokenStream> = sequences.iter_mut().zip(&prompts).map(start).collect();
        let mut all = |stream: &mut TokenStream| -> Vec<u32> {
            std::iter::from_fn(|| pollster::block_on(stream.next()).unwrap()).map(|step| step.token).collect()
        };
        let found: Vec<Vec<u32>> = streams.iter_mut().map(&mut all).collect();
        assert_eq!(found, expected, "{executors:?}");
        let n_read: Vec<usize> = streams.iter().map(TokenStream::n_prompt).collect();
        assert_eq!(n_read, [44, 5, 6], "{executors:?}");
    }
}

/// Of an engine itself nobody makes room: it says what is missing, and where there is some, nothing is lost.
#[test]
fn a_cache_that_is_full_says_so_before_anything_is_computed() {
    let model = test_model(None);
    for executors in executor_sets() {
        let sizes = PlanOptions { ctx_size: Some(96), kv_size: Some(96), ubatch_size: Some(8), ..options() };
        let mut engine = open(&model, executors, sizes).unwrap();
        read_on(&mut engine, 1, &tokens(0, 64), 0);
        read_on(&mut engine, 0, &tokens(1, 32), 0);
        // Whole blocks are there once, whoever has them.
        engine.copy_sequence(1, 2, 64).unwrap();
        let more: Vec<BatchToken> = tokens(0, 65)[64..].iter().map(|token| BatchToken { sequence: 2, ..*token }).collect();
        let batch = Batch { tokens: more, logits_for: vec![0], logits_request: LogitsRequest::All };
        match pollster::block_on(engine.forward(&batch)) {
            Err(Error::KvCacheFull { needed: 32, available: 0 }) => {}
            other => panic!("{other:?} on {executors:?}"),
        }
        assert!(engine.copy_sequence(1, 2, 40).is_err(), "the last block would be a copy");
        engine.copy_sequence(1, 2, 64).unwrap();
        engine.clear_sequence(0);
        let found = read_on(&mut engine, 2, &tokens(0, 65), 64);
        engine.clear_sequence(2);
        assert!(found == read_on(&mut engine, 1, &tokens(0, 65), 64), "{executors:?}");
    }
}

/// A cache with room for one context, and three sequences: they are under way together where they begin alike or are short, and wait where not.
#[test]
fn sequences_share_a_cache_that_has_no_room_for_all_their_contexts() {
    let model = test_model(None);
    let alike: Vec<Vec<u32>> = (1..4).map(|sequence| ids(&[tokens(0, 70), tokens(sequence, 3 + sequence)].concat())).collect();
    let others: Vec<Vec<u32>> = (1..4).map(|sequence| ids(&tokens(sequence, 100 + sequence))).collect();
    for executors in executor_sets() {
        let sizes = PlanOptions { ctx_size: Some(160), kv_size: Some(160), ubatch_size: Some(8), ..options() };
        let full = PlanOptions { kv_size: None, ..sizes.clone() };
        let mut engine = open(&model, executors, full).unwrap();
        let full_bytes = engine.plan().kv_cache_bytes();
        let expected: Vec<Vec<u32>> = alike.iter().chain(&others).map(|prompt| generated_alone(&mut engine, prompt, 20)).collect();
        drop(engine);
        let engine = open(&model, executors, sizes).unwrap();
        assert!(engine.plan().kv_cache_bytes().0 * 2 < full_bytes.0, "{executors:?}");
        let handle = engine.spawn().unwrap();
        let mut sequences: Vec<Sequence> = (0..3).map(|_| pollster::block_on(handle.sequence()).unwrap()).collect();
        let mut n_read = Vec::new();
        for (prompts, expected) in [(&alike, &expected[..3]), (&others, &expected[3..]), (&alike, &expected[..3])] {
            let start = |(sequence, prompt): (&mut Sequence, &Vec<u32>)| sequence.generate(prompt.clone(), greedy(), at_most(20)).unwrap();
            let mut streams: Vec<TokenStream> = sequences.iter_mut().zip(prompts).map(start).collect();
            // The last one is read first: none waits for its neighbour's reader.
            let rest = |stream: &mut TokenStream| {
                std::iter::from_fn(|| pollster::block_on(stream.next()).unwrap()).map(|step| step.token).collect()
            };
            let mut found: Vec<Vec<u32>> = streams.iter_mut().rev().map(rest).collect();
            found.reverse();
            assert_eq!(found, expected, "{executors:?}");
            n_read.extend(streams.iter().map(TokenStream::n_prompt));
        }
        assert_eq!(n_read[..3], [74, 5, 6], "{executors:?}");
        assert_eq!(n_read[3..6], [101, 102, 103], "{executors:?}");
        assert_eq!(n_read[6..], [74, 5, 6], "{executors:?}");
    }
}

#[test]
fn a_stream_that_is_dropped_or_cancelled_ends_and_the_next_is_whole() {
    let model = test_model(None);
    let prompt: Vec<u32> = tokens(0, 30).iter().map(|token| token.token).collect();
    for executors in executor_sets() {
        let mut engine = open(&model, executors, PlanOptions { ctx_size: Some(256), ubatch_size: Some(8), ..options() }).unwrap();
        let expected = generated_alone(&mut engine, &prompt, 6);
        let handle = engine.spawn().unwrap();
        let mut sequence = pollster::block_on(handle.sequence()).unwrap();
        // More than a stream holds unread, so that it cannot have ended before it is cancelled.
        let n_tokens = 3 * MAX_UNREAD;
        drop(sequence.generate(prompt.clone(), greedy(), at_most(n_tokens)).unwrap());
        let mut some = sequence.generate(prompt.clone(), greedy(), at_most(n_tokens)).unwrap();
        assert_eq!(pollster::block_on(some.next()).unwrap().unwrap().token, expected[0]);
        some.cancel_flag().store(true, Ordering::Relaxed);
        let mut n_more = 0;
        while pollster::block_on(some.next()).unwrap().is_some() {
            n_more += 1;
        }
        assert!(n_more <= MAX_UNREAD + 1 && some.finish_reason().is_none(), "{n_more} more on {executors:?}");
        let mut whole = sequence.generate(prompt.clone(), greedy(), at_most(6)).unwrap();
        let found: Vec<u32> = std::iter::from_fn(|| pollster::block_on(whole.next()).unwrap()).map(|step| step.token).collect();
        assert_eq!(found, expected, "{executors:?}");
        drop((sequence, handle));
    }
}

#[test]
fn a_few_tokens_together_are_bit_for_bit_what_each_is_alone() {
    for shape in shapes() {
        let model = model_of(&shape);
        for executors in executor_sets() {
            let mut engine = open(&model, executors, PlanOptions { n_seqs: MAX_TOKENS_TOGETHER, ..options() }).unwrap();
            let last: Vec<BatchToken> = (0..MAX_TOKENS_TOGETHER as u32)
                .map(|sequence| {
                    let own = tokens(sequence, 12 - sequence);
                    forward(&mut engine, &own, &[own.len() - 1]);
                    own[own.len() - 1]
                })
                .collect();
            let alone: Vec<Vec<u32>> = last.iter().map(|token| common::bits(&forward(&mut engine, &[*token], &[0])[0])).collect();
            for n_tokens in 2..=MAX_TOKENS_TOGETHER {
                let rows: Vec<usize> = (0..n_tokens).collect();
                let together: Vec<Vec<u32>> =
                    forward(&mut engine, &last[..n_tokens], &rows).iter().map(|logits| common::bits(logits)).collect();
                assert!(together == alone[..n_tokens], "{n_tokens} tokens on {executors:?}, {shape:?}");
            }
        }
    }
}

/// The tokens of all that a stream is still to give.
pub fn rest_of(stream: &mut TokenStream) -> Vec<u32> {
    std::iter::from_fn(|| pollster::block_on(stream.next()).unwrap()).map(|step| step.token).collect()
}

pub fn ids(tokens: &[BatchToken]) -> Vec<u32> {
    tokens.iter().map(|token| token.token).collect()
}

#[test]
fn sequences_of_a_handle_share_forwards() {
    let model = test_model(None);
    for executors in executor_sets().into_iter().filter(|executors| executors[0] == GPU) {
        // No forward goes on while this is locked: every one of them reads.
        let gate = Arc::new(Mutex::new(()));
        let held = Arc::clone(&gate);
        let checkpoint = watched(&model, move |_| {
            drop(held.lock().unwrap());
            Ok(())
        });
        let resident_layers = ResidentLayers::AtMost(executors.len() - 1);
        let ring = PlanOptions { n_slots: Some(1), lookahead: Some(1), resident_layers, ..options() };
        let mut builder = Engine::builder_of(checkpoint).compute_on(executors.iter().copied()).virtual_gpus(2);
        builder = builder.text(TextFiles::Skip).plan_options(ring);
        if !executors.contains(&Device::Cpu) {
            builder = builder.max_memory(Device::Cpu, Bytes::ZERO);
        }
        let mut engine = pollster::block_on(builder.open()).unwrap();
        let prompts: Vec<Vec<u32>> = (0..3).map(|sequence| ids(&tokens(sequence, 4 + sequence))).collect();
        let expected: Vec<Vec<u32>> = prompts.iter().map(|prompt| generated_alone(&mut engine, prompt, 8)).collect();
        engine.trace().clear();
        let handle = engine.spawn().unwrap();
        let mut sequences: Vec<Sequence> = (0..3).map(|_| pollster::block_on(handle.sequence()).unwrap()).collect();
        let closed = gate.lock().unwrap();
        let start = |(sequence, prompt): (&mut Sequence, &Vec<u32>)| sequence.generate(prompt.clone(), greedy(), at_most(8)).unwrap();
        let mut streams: Vec<TokenStream> = sequences.iter_mut().zip(&prompts).map(start).collect();
        drop(closed);
        let found: Vec<Vec<u32>> = streams.iter_mut().map(rest_of).collect();
        assert_eq!(found, expected, "{executors:?}");
        // Each begins one round after the other, and computes seven tokens after its prompt.
        let spans = handle.trace().spans();
        let forwards: BTreeSet<usize> = spans.iter().filter(|span| span.lane == Lane::Readback).map(|span| span.forward).collect();
        assert_eq!(forwards.len(), 3 + (7 + 2), "{executors:?}: alone they take 3 · (1 + 7)");
    }
}

#[test]
fn a_long_prompt_lets_others_go_on_between_its_parts() {
    let model = test_model(None);
    for executors in executor_sets() {
        let mut engine = open(&model, executors, PlanOptions { ubatch_size: Some(8), ..options() }).unwrap();
        let (short, long) = (ids(&tokens(0, 4)), ids(&tokens(1, 40)));
        let expected = [generated_alone(&mut engine, &short, 30), generated_alone(&mut engine, &long, 3)];
        let handle = engine.spawn().unwrap();
        let [mut first, mut second] = [(); 2].map(|()| pollster::block_on(handle.sequence()).unwrap());
        let mut goes_on = first.generate(short, greedy(), at_most(30)).unwrap();
        let mut reads = second.generate(long, greedy(), at_most(3)).unwrap();
        let begun = pollster::block_on(reads.next()).unwrap().unwrap().token;
        assert!(goes_on.n_unread() > 40 / 8, "{} steps beside five parts on {executors:?}", goes_on.n_unread());
        let read = [vec![begun], rest_of(&mut reads)].concat();
        assert_eq!([rest_of(&mut goes_on), read], expected, "{executors:?}");
    }
}

#[test]
fn a_stream_that_is_dropped_does_not_disturb_those_beside_it() {
    let model = test_model(None);
    for executors in executor_sets() {
        let mut engine = open(&model, executors, options()).unwrap();
        let prompts: Vec<Vec<u32>> = (0..3).map(|sequence| ids(&tokens(sequence, 5))).collect();
        let expected: Vec<Vec<u32>> = prompts.iter().map(|prompt| generated_alone(&mut engine, prompt, 40)).collect();
        let handle = engine.spawn().unwrap();
        let mut sequences: Vec<Sequence> = (0..3).map(|_| pollster::block_on(handle.sequence()).unwrap()).collect();
        let start = |(sequence, prompt): (&mut Sequence, &Vec<u32>)| sequence.generate(prompt.clone(), greedy(), at_most(40)).unwrap();
        let mut streams: Vec<TokenStream> = sequences.iter_mut().zip(&prompts).map(start).collect();
        let mut dropped = streams.remove(1);
        for expected in &expected[1][..3] {
            assert_eq!(pollster::block_on(dropped.next()).unwrap().unwrap().token, *expected);
        }
        drop(dropped);
        streams[0].cancel_flag().store(true, Ordering::Relaxed);
        assert_eq!(rest_of(&mut streams[1]), expected[2], "{executors:?}");
        let cancelled = rest_of(&mut streams[0]);
        assert_eq!(cancelled, expected[0][..cancelled.len()], "{executors:?}");
        assert_eq!(rest_of(&mut sequences[1].generate(prompts[1].clone(), greedy(), at_most(40)).unwrap()), expected[1], "{executors:?}");
    }
}

#[test]
fn a_stream_that_nobody_reads_pauses_until_it_is_read() {
    let model = test_model(None);
    for executors in executor_sets() {
        let mut engine = open(&model, executors, PlanOptions { ctx_size: Some(256), ..options() }).unwrap();
        let prompts = [ids(&tokens(0, 5)), ids(&tokens(1, 6))];
        let n_tokens = 2 * MAX_UNREAD;
        let expected = prompts.clone().map(|prompt| generated_alone(&mut engine, &prompt, n_tokens));
        let handle = engine.spawn().unwrap();
        let [mut first, mut second] = [(); 2].map(|()| pollster::block_on(handle.sequence()).unwrap());
        let [of_first, of_second] = prompts;
        let mut unread = first.generate(of_first, greedy(), at_most(n_tokens)).unwrap();
        let mut read = second.generate(of_second, greedy(), at_most(n_tokens)).unwrap();
        assert_eq!(rest_of(&mut read), expected[1], "{executors:?}");
        assert_eq!(unread.n_unread(), MAX_UNREAD, "{executors:?}");
        assert_eq!(rest_of(&mut unread), expected[0], "{executors:?}");
        assert_eq!(unread.finish_reason(), Some(FinishReason::Length));
    }
}

#[test]
fn forwards_of_every_shape_bind_what_those_before_them_bound() {
    if !has_gpu() {
        return;
    }
    let model = test_model(None);
    let some = PlanOptions { n_seqs: 8, ubatch_size: Some(40), resident_layers: ResidentLayers::AtMost(2), ..options() };
    let mut engine = open(&model, &[GPU], some).unwrap();
    let mut round = || {
        for n_seqs in 1..=8 {
            for n_tokens in (1..=40 / n_seqs).rev() {
                let all: Vec<BatchToken> = (0..n_seqs).flat_map(|sequence| tokens(sequence, n_tokens)).collect();
                let logits_for = (0..n_seqs).map(|sequence| (sequence + 1) * n_tokens - 1).collect();
                let logits_request = if n_tokens % 2 == 0 { LogitsRequest::All } else { LogitsRequest::TopK(1 + n_tokens as usize) };
                pollster::block_on(engine.forward(&Batch { tokens: all, logits_for, logits_request })).unwrap();
            }
        }
        engine.object_counts()
    };
    let after_first = round();
    assert_eq!(round(), after_first);
}

/// Layers that stream through the same slots bind their weights together, however many layers there are and however they are cut.
#[test]
fn bind_groups_of_products_do_not_grow_with_the_layers_that_stream() {
    if !has_gpu() {
        return;
    }
    let products_of = |n_layers: usize, slot: Option<u64>| {
        let model = model_of(&LlamaShape { n_layers, ..LlamaShape::tiny() });
        let some = PlanOptions { n_slots: Some(2), resident_layers: ResidentLayers::AtMost(0), ..options() };
        let most = slot.map(|bytes| (GPU, Bytes(bytes)));
        let some = PlanOptions { max_memory: most.into_iter().collect(), ..some };
        let opened = match open(&model, &[GPU], some.clone()) {
            Err(Error::DoesNotFit { needed, .. }) => open(&model, &[GPU], PlanOptions { max_memory: [(GPU, needed)].into(), ..some }),
            opened => opened,
        };
        let mut engine = opened.unwrap();
        forward(&mut engine, &tokens(0, 9), &[8]);
        forward(&mut engine, &tokens(1, 1), &[0]);
        let n_streamed = engine.plan().streamed_chunks().count();
        let counts = engine.object_counts().remove(0).1.bind_groups;
        (n_streamed, counts.into_iter().filter(|(kernel, _)| kernel.starts_with("matmul")).map(|(_, n)| n).sum::<usize>())
    };
    // With as much memory as there is, and with so little that layers are cut in many ways.
    for slot in [None, Some(1)] {
        let (few, many) = (products_of(6, slot), products_of(18, slot));
        assert!(many.0 >= few.0 + 12, "{} chunks stream, and {} of the smaller model", many.0, few.0);
        assert!(many.1 > 0 && many.1 <= few.1, "{} bind groups of products for {} chunks, {} for {}", few.1, few.0, many.1, many.0);
    }
}

#[test]
fn batches_that_were_not_planned_for_are_refused() {
    let model = test_model(None);
    let mut engine = open(&model, &[Device::Cpu], options()).unwrap();
    let good = Batch { tokens: tokens(0, 3), logits_for: vec![2], logits_request: LogitsRequest::All };
    let token = good.tokens[0];
    let bad = [
        Batch { tokens: vec![], ..good.clone() },
        Batch { logits_for: vec![], ..good.clone() },
        Batch { logits_for: vec![3], ..good.clone() },
        Batch { logits_request: LogitsRequest::TopK(0), ..good.clone() },
        Batch { logits_request: LogitsRequest::TopK(65), ..good.clone() },
        Batch { tokens: vec![BatchToken { sequence: 3, ..token }; 3], ..good.clone() },
        Batch { tokens: vec![BatchToken { position: 64, ..token }; 3], ..good.clone() },
        Batch { tokens: vec![BatchToken { token: 320, ..token }; 3], ..good.clone() },
        Batch { tokens: vec![token; 65], ..good.clone() },
    ];
    for batch in bad {
        let error = pollster::block_on(engine.forward(&batch)).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. } | Error::ContextFull { .. } | Error::TokenOutOfVocabulary { .. }), "{error}");
    }
    assert_eq!(pollster::block_on(engine.forward(&good)).unwrap().len(), 1, "a refusal harms nothing");
}

/// An adapter and the host with two sequences: each computes with one of them while the other computes with the other.
#[test]
fn devices_compute_side_by_side_with_different_sequences() {
    if !has_gpu() {
        return;
    }
    let model = test_model(None);
    let (gpu, host) = (Device::Gpu(0), Device::Cpu);
    let placements = common::placements(&model.path, |unit, n_units| if unit < n_units / 2 { (gpu, gpu) } else { (host, host) });
    let options = PlanOptions { placement: PlacementRule::Placed(placements), resident_layers: ResidentLayers::Auto, ..options() };
    let builder = Engine::builder(&model.path).text(TextFiles::Skip).plan_options(options).compute_on([gpu, host]);
    let mut prepared = pollster::block_on(builder.prepare()).unwrap();
    // A batch goes in halves where that is predicted to be faster: as with these rates, where arithmetic takes all of the time.
    for spec in &mut prepared.devices {
        let matmul = DType::ALL.map(|dtype| (dtype, 1e6)).into();
        let matvec = DType::ALL.map(|dtype| (dtype, BytesPerSec(1e15))).into();
        spec.rates =
            Rates { matmul, matvec, dispatch_secs: Some(0.0), submit_secs: Some(0.0), round_trip_secs: Some(0.0), ..Rates::default() };
    }
    let mut engine = pollster::block_on(prepared.load(&|_| {})).unwrap();
    assert_eq!(engine.plan().executors(), [gpu, host]);
    // Interleaved and with rows in another order than the tokens.
    let mut all: Vec<BatchToken> = (0..3).flat_map(|sequence| tokens(sequence, 20)).collect();
    all.sort_by_key(|token| (token.position, token.sequence));
    let rows = [59, 3, 58];
    let together = forward(&mut engine, &all, &rows);
    let mut alone = pollster::block_on(
        Engine::builder(&model.path).text(TextFiles::Skip).plan_options(self::options()).device(DeviceChoice::Gpu).open(),
    )
    .unwrap();
    for (row, found) in rows.iter().zip(&together) {
        let asked = all[*row];
        let own: Vec<BatchToken> = tokens(asked.sequence, asked.position + 1);
        let expected = forward(&mut alone, &own, &[own.len() - 1]).remove(0);
        assert_close(found, &expected, &format!("row {row}"));
    }
    engine.trace().clear();
    let mut overlaps = 0;
    for _ in 0..5 {
        forward(&mut engine, &all, &rows);
    }
    let spans = engine.trace().spans();
    let on = |device: Device| spans.iter().filter(move |span| span.lane == Lane::Compute && span.device == device);
    for span in on(gpu) {
        overlaps += on(host).filter(|other| span.start_secs < other.end_secs && other.start_secs < span.end_secs).count();
    }
    assert!(overlaps > 0, "no computation of the adapter lies beside one of the host: {spans:?}");
}
