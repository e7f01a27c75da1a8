//! Plans of models with experts: what a cache takes is counted, what is predicted agrees with its size, and files give the plan again.

use std::sync::Arc;

use tierflow::model::{Checkpoint, Model};
use tierflow::plan::{ExpertCacheRule, ExpertMissRule, HostLayers, SavedPlan, Schedule, Step, Workload, predict};
use tierflow::platform::IoMode;
use xtask::models::{LlamaShape, Stored, write_hf_headers};

use super::*;

/// The headers of a small model with 192 experts, and a machine with an adapter of its own memory.
fn model() -> (Checkpoint, Vec<DeviceSpec>) {
    let folder = tempfile::tempdir().unwrap();
    write_hf_headers(folder.path(), &LlamaShape::small_experts(), Stored::BF16, 1).unwrap();
    let checkpoint = Checkpoint::open(folder.path(), IoMode::Pread).unwrap();
    (checkpoint, models::devices(Bytes::gib(1), AdapterKind::Discrete, GpuLimits::default(), Bytes::gib(1)))
}

fn options(gpu: Bytes, rule: ExpertCacheRule) -> PlanOptions {
    let max_memory = [(Device::Gpu(0), gpu)].into();
    PlanOptions { max_memory, ctx_size: Some(256), ubatch_size: Some(64), expert_cache: rule, ..PlanOptions::default() }
}

#[test]
fn a_cache_fills_the_budget_that_all_else_leaves() {
    let (checkpoint, devices) = model();
    let model = Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape)).unwrap();
    let make = |gpu: Bytes| plan(&checkpoint.catalog, &model, &devices, &options(gpu, ExpertCacheRule::Always)).unwrap();
    let mut before = 0;
    for mib in [14, 18, 24, 40] {
        let made = make(Bytes::mib(mib));
        let row = made.device(Device::Gpu(0)).unwrap();
        let cache = row.expert_cache.unwrap();
        assert!(cache.n_slots > before && cache.n_experts == 192, "{mib} MiB: {cache:?}");
        assert_eq!(row.used.expert_cache, cache.size_bytes());
        assert!(row.used.total() <= Bytes::mib(mib), "{mib} MiB: {:?}", row.used);
        let is_whole = cache.n_slots == cache.n_experts;
        assert!(is_whole || row.used.total() + cache.slot_bytes > Bytes::mib(mib), "{mib} MiB: another slot has room");
        before = cache.n_slots;

        let steps = Schedule::new(&made).steps;
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::ComputeCached(_))).count(), 6, "one a layer");
        let decode = predict(&made, &checkpoint.catalog, &model, &devices, Workload::decode(16));
        let asked = cache.slot_bytes.0 * 24;
        let moved = decode.streamed_bytes.0 as f64 / asked as f64;
        let expected = (1.0 - cache.expected_hit_rate()) * (6 - cache.misses.n_whole) as f64 / 6.0;
        assert!((moved - expected).abs() < 0.01, "{mib} MiB: {moved} of {asked} B, not {expected}");

        let json = made.to_saved_json(&checkpoint.catalog, &model, &devices).to_string();
        let saved = Some(Arc::new(SavedPlan::from_json(&json, "plan.json").unwrap()));
        let again = plan(&checkpoint.catalog, &model, &devices, &PlanOptions { saved, ..PlanOptions::default() }).unwrap();
        assert_eq!(again, made, "{mib} MiB");
    }
}

#[test]
fn experts_are_where_options_say() {
    let (checkpoint, devices) = model();
    let model = Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape)).unwrap();
    let both = vec![Device::Gpu(0), Device::Cpu];
    let make = |options: PlanOptions| plan(&checkpoint.catalog, &model, &devices, &options);
    let never = make(options(Bytes::mib(18), ExpertCacheRule::Never)).unwrap();
    assert!(never.chunks.iter().all(|chunk| !chunk.is_cached));
    let auto = make(options(Bytes::gib(1), ExpertCacheRule::Auto)).unwrap();
    assert!(auto.chunks.iter().all(|chunk| !chunk.is_cached), "all experts are resident where there is room");

    for n_layers in [0, 2, usize::MAX] {
        let placement = PlacementRule::ExpertsOnHost(HostLayers::First(n_layers));
        let made = make(PlanOptions { placement, compute_on: both.clone(), ..options(Bytes::gib(1), ExpertCacheRule::Auto) }).unwrap();
        let on_host = |unit: &&tierflow::plan::UnitPlan| unit.execute_on == Device::Cpu && unit.kind != UnitKind::Embedding;
        let kinds: Vec<UnitKind> = made.units.iter().filter(on_host).map(|unit| unit.kind).collect();
        let expected: Vec<UnitKind> = (0..6.min(n_layers)).map(|layer| UnitKind::FeedForward { layer }).collect();
        assert_eq!(kinds, expected);
        assert_eq!(made.streamed_bytes(), Bytes::ZERO);
    }
    let placement = PlacementRule::ExpertsOnHost(HostLayers::First(1));
    let refused = make(PlanOptions { placement, ..options(Bytes::gib(1), ExpertCacheRule::Auto) }).unwrap_err().to_string();
    assert!(refused.contains("does not compute here"), "{refused}");
}

#[test]
fn missing_experts_are_shared_out_by_the_rates() {
    let (checkpoint, mut devices) = model();
    let model = Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape)).unwrap();
    let both = vec![Device::Gpu(0), Device::Cpu];
    let make = |devices: &[DeviceSpec], compute_on: &[Device], expert_misses: ExpertMissRule| {
        let options = options(Bytes::mib(18), ExpertCacheRule::Always);
        plan(&checkpoint.catalog, &model, devices, &PlanOptions { compute_on: compute_on.to_vec(), expert_misses, ..options }).unwrap()
    };
    let percent = |plan: &Plan| plan.expert_cache(Device::Gpu(0)).unwrap().misses.host_percent;
    let used = |plan: &Plan| plan.device(Device::Cpu).unwrap().used.total();
    let alone = make(&devices, &both[..1], ExpertMissRule::Auto);
    assert_eq!(percent(&alone), 0, "the host does not compute here");
    assert_eq!(percent(&make(&devices, &both, ExpertMissRule::Upload)), 0);
    assert_eq!(percent(&make(&devices, &both[..1], ExpertMissRule::Host)), 100);

    let mut before = 0;
    for rate in [1.0e9, 8.0e9, 64.0e9] {
        let host = devices.iter_mut().find(|spec| spec.device == Device::Cpu).unwrap();
        host.rates.matvec.insert(DType::BF16, BytesPerSec(rate));
        let made = make(&devices, &both, ExpertMissRule::Auto);
        let (share, cache) = (percent(&made), made.expert_cache(Device::Gpu(0)).unwrap());
        assert!(share > before && share < 100, "{rate}: the host has {share} %, and {before} % when it is slower");
        before = share;
        let decode = predict(&made, &checkpoint.catalog, &model, &devices, Workload::decode(16));
        let asked = cache.slot_bytes.0 * 24 * (6 - cache.misses.n_whole as u64) / 6;
        let n_shared = |plan: &Plan| (6 - plan.expert_cache(Device::Gpu(0)).unwrap().misses.n_whole) as f64;
        let moved = decode.streamed_bytes.0 as f64 / asked as f64;
        let expected = (1.0 - cache.expected_hit_rate()) * (1.0 - f64::from(share) / 100.0);
        assert!((moved - expected).abs() < 0.01, "{rate}: {moved} of {asked} B, not {expected}");
        let of_uploads = predict(&alone, &checkpoint.catalog, &model, &devices, Workload::decode(16));
        assert!(decode.secs < of_uploads.secs, "{rate}: {} s, and {} s without the host", decode.secs, of_uploads.secs);
        assert!(used(&made) > used(&alone), "what the host needs for it is counted");
        let prompt = [&made, &alone].map(|plan| predict(plan, &checkpoint.catalog, &model, &devices, Workload::prefill(64)).streamed_bytes);
        let of_layer = [prompt[0].0 as f64 / n_shared(&made), prompt[1].0 as f64 / n_shared(&alone)];
        assert!((of_layer[0] - of_layer[1]).abs() < 8.0, "long prompts leave nothing to the host: {prompt:?}");

        let json = made.to_saved_json(&checkpoint.catalog, &model, &devices).to_string();
        let saved = Some(Arc::new(SavedPlan::from_json(&json, "plan.json").unwrap()));
        let again = plan(&checkpoint.catalog, &model, &devices, &PlanOptions { saved, ..PlanOptions::default() }).unwrap();
        assert_eq!(again, made, "{rate}");
    }
}

#[test]
fn as_many_layers_are_whole_as_the_rates_make_worth_it() {
    let (checkpoint, mut devices) = model();
    let model = Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape)).unwrap();
    let mut before = 0;
    for round_trip_secs in [0.0, 1.0e-4, 1.0] {
        let gpu = devices.iter_mut().find(|spec| spec.device == Device::Gpu(0)).unwrap();
        gpu.rates.round_trip_secs = Some(round_trip_secs);
        let made = plan(&checkpoint.catalog, &model, &devices, &options(Bytes::mib(24), ExpertCacheRule::Always)).unwrap();
        let cache = made.expert_cache(Device::Gpu(0)).unwrap();
        let n_whole = cache.misses.n_whole;
        assert!(n_whole >= before && n_whole <= 6, "{round_trip_secs} s: {n_whole} layers, and {before} where less is to be waited for");
        assert!(n_whole * cache.layer_experts <= cache.n_slots, "{cache:?}");
        before = n_whole;
        let decode = predict(&made, &checkpoint.catalog, &model, &devices, Workload::decode(16));
        assert!(decode.secs >= round_trip_secs * (6 - n_whole) as f64, "whoever asks waits: {decode:?}");

        let json = made.to_saved_json(&checkpoint.catalog, &model, &devices).to_string();
        let saved = Some(Arc::new(SavedPlan::from_json(&json, "plan.json").unwrap()));
        let again = plan(&checkpoint.catalog, &model, &devices, &PlanOptions { saved, ..PlanOptions::default() }).unwrap();
        assert_eq!(again, made, "{round_trip_secs} s");
    }
    assert!(before > 0, "where asking takes a second, some layers are not asked");
}
