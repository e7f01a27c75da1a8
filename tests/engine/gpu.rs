//! The GPU module itself: the account of memory, limits, readback, top-k across the link, errors that arrive out of turn.

use crate::common::{Random, gpus, run, upload};
use tierflow::device::{Device, GpuLimits};
use tierflow::error::Error;
use tierflow::gpu::{self, Gpu, Purpose};
use tierflow::kernels::{Binding, top_k};
use tierflow::platform;
use tierflow::units::Bytes;

const STORAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE;

fn open(budget: Bytes, limits: Option<GpuLimits>) -> Option<Gpu> {
    gpus().first()?;
    let found = pollster::block_on(gpu::list()).expect("listing adapters");
    Some(pollster::block_on(Gpu::open(found.last()?, budget, limits)).expect("opening the adapter"))
}

#[test]
fn adapters_are_numbered_and_say_what_they_can_hold() {
    if gpus().is_empty() {
        return;
    }
    let found = pollster::block_on(gpu::list()).expect("listing adapters");
    for (index, found) in found.iter().enumerate() {
        assert_eq!(found.spec.device, Device::Gpu(index as u32));
        assert_ne!(found.spec.vendor, 0, "{:?}", found.spec);
        assert!(found.spec.capacity.is_some_and(|capacity| capacity > Bytes::mib(64)), "{:?}", found.spec);
        assert!(found.spec.capacity_source.contains('%'), "the margin is stated: {}", found.spec.capacity_source);
    }
}

#[test]
fn the_budget_is_kept_and_memory_comes_back() {
    let Some(gpu) = open(Bytes::mib(1), None) else { return };
    let first = pollster::block_on(gpu.buffer("first", Bytes::kib(700), STORAGE, Purpose::Weights)).expect("it fits");
    let refused = pollster::block_on(gpu.buffer("second", Bytes::kib(400), STORAGE, Purpose::Slots)).expect_err("over budget");
    let Error::DoesNotFit { needed, available, .. } = refused else { panic!("{refused}") };
    assert_eq!((needed, available), (Bytes::kib(400), Bytes::kib(324)));
    drop(first);
    assert_eq!(gpu.ledger.total().in_use, Bytes::ZERO);
    assert_eq!(gpu.ledger.of(Purpose::Weights).peak, Bytes::kib(700));
    pollster::block_on(gpu.buffer("second", Bytes::kib(400), STORAGE, Purpose::Slots)).expect("now it fits");
    gpu.check().expect("a refusal is no error of the device");
}

#[test]
fn artificial_limits_are_in_force() {
    let limits = GpuLimits { max_buffer_bytes: Bytes::mib(16), max_binding_bytes: Bytes::mib(8), ..GpuLimits::default() };
    let Some(gpu) = open(Bytes::gib(1), Some(limits)) else { return };
    assert_eq!(gpu.limits, limits);
    assert_eq!(gpu.device.limits().max_buffer_size, 16 << 20, "the device itself is held to them");
    let refused = pollster::block_on(gpu.buffer("large", Bytes::mib(17), STORAGE, Purpose::Other)).expect_err("over the limit");
    assert!(matches!(refused, Error::ExceedsLimit { available, .. } if available == Bytes::mib(16)), "{refused}");
}

#[test]
fn an_invalid_buffer_is_an_error_and_counts_nothing() {
    let Some(gpu) = open(Bytes::gib(1), None) else { return };
    let usage =
        wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::INDIRECT | wgpu::BufferUsages::BLAS_INPUT;
    assert!(pollster::block_on(gpu.buffer("wrong", Bytes(64), usage, Purpose::Other)).is_err());
    assert_eq!(gpu.ledger.total().in_use, Bytes::ZERO);
    gpu.check().expect("the error was caught where it arose");
}

#[test]
fn readback_returns_the_part_that_was_asked_for() {
    let Some(gpu) = gpus().first() else { return };
    let values: Vec<u32> = (0..1000).collect();
    let buffer = upload(gpu, "values", &values);
    let bytes = pollster::block_on(gpu::read(gpu, &buffer, 40, 400)).expect("a readback");
    assert_eq!(bytemuck::pod_collect_to_vec::<u8, u32>(&bytes), values[10..110]);
    assert!(pollster::block_on(gpu::read(gpu, &buffer, 3996, 8)).is_err(), "past the end");
    assert!(pollster::block_on(gpu::read(gpu, &buffer, 2, 4)).is_err(), "not aligned");
}

#[test]
fn an_uncaptured_error_is_reported_at_the_next_check() {
    let Some(gpu) = open(Bytes::gib(1), None) else { return };
    gpu.check().expect("nothing happened yet");
    // Too large for a buffer: outside any error scope this reaches the handler, which must not panic.
    let _ = gpu.device.create_buffer(&wgpu::BufferDescriptor { label: None, size: 1 << 50, usage: STORAGE, mapped_at_creation: false });
    let error = gpu.check().expect_err("an error").to_string();
    assert!(error.contains("invalid use"), "{error}");
}

#[test]
fn compiled_kernels_are_kept_and_a_damaged_file_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    platform::choose_cache_folder(folder.path().to_owned());
    let compute = || {
        let gpu = open(Bytes::mib(1), None)?;
        let params = top_k::Params::new(1, 100, 1);
        let [logits, candidates] = [upload(&gpu, "logits", &[1.0f32; 100]), upload(&gpu, "candidates", &[0u8; 8])];
        let bindings = top_k::Bindings { logits: Binding::whole(&logits), candidates: Binding::whole(&candidates) };
        run(&gpu, &params, |buffer| top_k::prepare(&gpu, buffer, &params, bindings));
        gpu.keep_pipelines();
        gpu.check().expect("no error");
        gpu.device.features().contains(wgpu::Features::PIPELINE_CACHE).then_some(())
    };
    let Some(()) = compute() else { return };
    let files: Vec<_> = std::fs::read_dir(folder.path().join("pipelines")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("one file for the adapter: {files:?}") };
    let kept = std::fs::read(file).unwrap();
    for damaged in [&kept[..kept.len() - 1], &[kept.clone(), vec![0]].concat(), b"something else"] {
        std::fs::write(file, damaged).unwrap();
        compute();
        assert_eq!(std::fs::read(file).unwrap().len(), kept.len(), "written anew");
    }
}

#[test]
fn top_k_is_exact_across_segments_with_ties_and_nan() {
    for gpu in gpus() {
        for (n_rows, vocab_size) in [(1u32, 1u32), (3, 33), (2, 2048), (1, 2049), (3, 10_007)] {
            for k in [1u32, 3, 40, 64] {
                let params = top_k::Params::new(n_rows, vocab_size, k);
                let mut random = Random(u64::from(vocab_size + k));
                // Coarse steps, so that there are many ties.
                let mut logits: Vec<f32> =
                    random.floats((n_rows * vocab_size) as usize).iter().map(|value| (value * 50.0).round() / 4.0).collect();
                if vocab_size > 100 {
                    let last = logits.len() - 1;
                    logits[last] = f32::NAN;
                    logits[5] = f32::NEG_INFINITY;
                    logits[vocab_size as usize / 2] = f32::INFINITY;
                }
                let expected = top_k::reference(&params, &logits);
                let [logits, candidates] =
                    [upload(gpu, "logits", &logits), upload(gpu, "candidates", &vec![0xA5u8; params.candidates_bytes() as usize])];
                let bindings = top_k::Bindings { logits: Binding::whole(&logits), candidates: Binding::whole(&candidates) };
                run(gpu, &params, |buffer| top_k::prepare(gpu, buffer, &params, bindings));
                let bytes = pollster::block_on(gpu::read(gpu, &candidates, 0, params.candidates_bytes())).expect("a readback");
                let found = top_k::merge(&params, &bytes);
                let words = |rows: &[Vec<top_k::Scored>]| -> Vec<Vec<(u32, u32)>> {
                    rows.iter().map(|row| row.iter().map(|scored| (scored.token, scored.logit.to_bits())).collect()).collect()
                };
                assert_eq!(words(&found), words(&expected), "{k} of {n_rows} × {vocab_size}");
            }
        }
    }
}
