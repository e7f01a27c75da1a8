//! What every plan keeps, over random models, devices, budgets and options; recomputed here from the plan's parts.

mod experts;
mod refusals;
mod saved;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::test_runner::RngSeed;
use tierflow::device::{AdapterKind, Device, DeviceSpec, GpuLimits, Rates};
use tierflow::dtype::DType;
use tierflow::error::Error;
use tierflow::host::{Input, Operand};
use tierflow::kernels::kv_tables::BLOCK_POSITIONS;
use tierflow::kernels::{attention, matmul, rope_kv_padded};
use tierflow::model::{Model, ModelConfig, Op, UnitKind};
use tierflow::plan::{
    CacheDType, Chunk, FILE_ALIGNMENT, ForwardSize, KvDType, Placement, PlacementRule, Plan, PlanOptions, ResidentLayers, SLICE_ALIGNMENT,
    Slice, UploadPath, Work, file_ranges, plan, request_secs, sizes,
};
use tierflow::units::{Bytes, BytesPerSec};
use tierflow::weights::Catalog;

use crate::models;

/// How far apart two searches may end that should find the same: twice what is allowed where everything is tried
/// (`tests/data/planner.rs`).
const SEARCH_MISSES: f64 = 1.10;

#[derive(Debug, Clone)]
struct Case {
    config: ModelConfig,
    dtypes: Vec<DType>,
    devices: Vec<DeviceSpec>,
    options: PlanOptions,
}

impl Case {
    fn model(&self) -> (Catalog, Model) {
        models::model(&self.config, |name| self.dtypes[name.len() % self.dtypes.len()])
    }

    /// The same with another budget for `device`.
    fn with_budget(&self, device: Device, budget: Bytes) -> PlanOptions {
        let mut options = self.options.clone();
        options.max_memory.insert(device, budget);
        options
    }

    fn spec(&self, device: Device) -> &DeviceSpec {
        self.devices.iter().find(|spec| spec.device == device).expect("plans name devices that there are")
    }
}

fn configs() -> impl Strategy<Value = ModelConfig> {
    let sizes = (1usize..200, 1usize..9, 1usize..300, 1usize..6, 1usize..4, 1usize..4, 1usize..17, 1usize..5000);
    (sizes, any::<[bool; 4]>()).prop_map(|((vocab, hidden, ffn, n_layers, n_kv_heads, group, half_head, context_length), flags)| {
        ModelConfig {
            vocab_size: vocab * 13,
            hidden_size: hidden * 32,
            ffn_size: ffn,
            n_layers,
            n_heads: n_kv_heads * group,
            n_kv_heads,
            head_size: half_head * 2,
            context_length,
            attention_bias: flags[0],
            attention_output_bias: flags[1],
            ffn_bias: flags[2],
            tied_embeddings: flags[3],
            ..models::config()
        }
    })
}

fn option_sets(kv_dtypes: impl Strategy<Value = KvDType>) -> impl Strategy<Value = PlanOptions> {
    let budget = prop_oneof![2 => (0u32..40).prop_map(|bits| Some(Bytes(1 << bits))), 6 => (10_000u64..4_000_000).prop_map(|n| Some(Bytes(n))), 1 => Just(None), 1 => Just(Some(Bytes(u64::MAX)))];
    let sizes = (
        prop_oneof![3 => Just(None), 3 => (0usize..600).prop_map(Some), 1 => Just(Some(1 << 31))],
        prop_oneof![3 => Just(None), 3 => (0usize..64).prop_map(Some), 1 => Just(Some(100_000))],
        prop_oneof![4 => 0usize..6, 1 => Just(1000)],
        prop_oneof![4 => 0usize..6, 1 => Just(1000)],
    );
    let ring = (
        prop_oneof![3 => Just(None), 3 => (0usize..6).prop_map(Some), 1 => Just(Some(1000))],
        prop_oneof![3 => Just(None), 3 => (0usize..6).prop_map(Some), 1 => Just(Some(1000))],
        prop_oneof![Just(None), Just(Some(UploadPath::Mapped)), Just(Some(UploadPath::Staged)), Just(Some(UploadPath::Written))],
    );
    let teams = proptest::sample::select(vec![
        vec![Device::Cpu],
        vec![Device::Gpu(0)],
        vec![Device::Gpu(0), Device::Gpu(1)],
        vec![Device::Gpu(0), Device::Cpu],
        vec![Device::Gpu(1), Device::Gpu(0), Device::Cpu],
    ]);
    let layers =
        prop_oneof![4 => Just(ResidentLayers::Auto), 1 => Just(ResidentLayers::All), 2 => (0usize..8).prop_map(ResidentLayers::AtMost)];
    let budgets = (budget.clone(), budget.clone(), budget);
    (budgets, sizes, ring, layers, teams, kv_dtypes).prop_map(|((gpu, second, cpu), sizes, ring, resident_layers, compute_on, kv_dtype)| {
        let mut max_memory = BTreeMap::new();
        max_memory.extend(gpu.map(|budget| (Device::Gpu(0), budget)));
        max_memory.extend(second.map(|budget| (Device::Gpu(1), budget)));
        max_memory.extend(cpu.map(|budget| (Device::Cpu, budget)));
        PlanOptions {
            compute_on,
            max_memory,
            ctx_size: sizes.0,
            n_seqs: sizes.2,
            ubatch_size: sizes.1,
            logit_rows: sizes.3,
            kv_dtype,
            resident_layers,
            n_slots: ring.0,
            lookahead: ring.1,
            upload: ring.2,
            ..PlanOptions::default()
        }
    })
}

fn cases() -> impl Strategy<Value = Case> {
    let of_each = || proptest::sample::select(CacheDType::ALL.to_vec());
    cases_with((of_each(), of_each()).prop_map(|(keys, values)| KvDType { keys, values }))
}

fn cases_with(kv_dtypes: impl Strategy<Value = KvDType>) -> impl Strategy<Value = Case> {
    let limits = (12u32..28, 0u32..3).prop_map(|(bits, more)| GpuLimits {
        max_binding_bytes: Bytes((1 << bits) + 12),
        max_buffer_bytes: Bytes((1 << (bits + more)) + 100),
        ..GpuLimits::default()
    });
    let kinds = prop_oneof![Just(AdapterKind::Discrete), Just(AdapterKind::Integrated)];
    let devices =
        ([limits.clone(), limits], [kinds.clone(), kinds], [10u32..34, 10u32..34, 10u32..34]).prop_map(|(limits, kinds, bits)| {
            let [gpu, second, host] = bits.map(|bits| Bytes(1 << bits));
            let mut devices = models::devices(gpu, kinds[0], limits[0], host);
            let second = DeviceSpec { capacity: Some(second), kind: Some(kinds[1]), limits: Some(limits[1]), ..devices[0].clone() };
            devices.insert(1, DeviceSpec { device: Device::Gpu(1), ..second });
            devices
        });
    let dtypes = proptest::collection::vec(proptest::sample::select(DType::ALL.to_vec()), 1..5);
    (configs(), dtypes, devices, option_sets(kv_dtypes)).prop_map(|(mut config, dtypes, devices, options)| {
        // Other heads are refused.
        let KvDType { keys, values } = options.kv_dtype;
        config.head_size = config.head_size.next_multiple_of(keys.block_len().max(values.block_len()));
        Case { config, dtypes, devices, options }
    })
}

/// Everything that holds of a plan that was made.
fn check(case: &Case, catalog: &Catalog, model: &Model, made: &Plan) {
    check_memory(case, catalog, model, made);
    check_rows(catalog, model, made);
    assert_eq!(made.units.len(), model.units.len());
    for (index, chunk) in made.chunks.iter().enumerate() {
        let executor = made.executor(index);
        assert!(case.options.compute_on.contains(&executor), "{executor} was not asked to compute");
        assert!([executor, Device::Cpu, Device::Disk].contains(&chunk.stored_on), "{executor} computes what lies on {}", chunk.stored_on);
        assert!(chunk.work.windows(2).all(|pair| pair[0].unit + 1 == pair[1].unit), "only neighbours share a slot");
        assert!(chunk.work.iter().all(|of_unit| made.units[of_unit.unit].chunks.contains(&index)));
        assert!(chunk.work.iter().all(|of_unit| made.units[of_unit.unit].execute_on == executor));
        assert!(chunk.slices.iter().all(|slice| slice.offset + slice.size_bytes <= chunk.size_bytes.0));
        check_places(catalog, chunk, executor);
        if let Some(limits) = case.spec(executor).limits {
            assert!(chunk.size_bytes <= limits.max_buffer_bytes);
            assert!(chunk.slices.iter().all(|slice| slice.size_bytes.next_multiple_of(4) <= limits.max_binding_bytes.0));
        }
        if !made.is_resident(index) {
            assert!(made.ring(executor).is_some_and(|ring| chunk.size_bytes <= ring.slot_bytes), "no slot is too small");
        }
    }
    for device in &made.devices {
        let Some(ring) = device.ring else { continue };
        assert!((1..=64).contains(&ring.n_slots) && (1..=ring.n_slots).contains(&ring.lookahead), "{ring:?}");
        assert!(made.streamed_to(device.device).next().is_some(), "a ring that nothing passes through");
    }
    // -ngl speaks of GPUs; a host that computes holds what it can.
    if let ResidentLayers::AtMost(most) = case.options.resident_layers {
        let in_layers = model.units.iter().zip(&made.units).filter(|(unit, _)| unit.kind.layer().is_some());
        let n_resident = in_layers.filter(|(_, planned)| matches!(planned.stored_on, Device::Gpu(_))).count();
        assert!(n_resident <= 2 * most, "-ngl {most} and {n_resident} parts of layers resident");
    }
}

/// What executors allocate, counted from the chunks; nothing here asks the plan for a sum.
fn check_memory(case: &Case, catalog: &Catalog, model: &Model, made: &Plan) {
    let executors = made.executors();
    let mut host = held_for_others(model, made);
    let mut pool = 0u128;
    for &device in &executors {
        let own = allocated(catalog, model, made, device);
        if device == Device::Cpu {
            host += own;
            continue;
        }
        let planned = made.device(device).expect("every executor has its row");
        assert!(own <= u128::from(planned.budget.expect("an executor has a budget").0), "{own} of {:?} on {device}", planned.budget);
        assert_eq!(own, u128::from(planned.used.total().0), "the plan's own sum on {device}");
        if case.spec(device).kind == Some(AdapterKind::Integrated) {
            pool += own;
        }
    }
    let planned = made.device(Device::Cpu).expect("the host takes part");
    assert!(host <= u128::from(planned.budget.expect("the host has a budget").0), "{host} of {:?}", planned.budget);
    assert_eq!(host, u128::from(planned.used.total().0), "the plan's own sum on the host");
    if case.options.max_memory.is_empty() && pool > 0 {
        let capacity = case.spec(Device::Cpu).capacity.expect("known");
        assert!(pool + host <= u128::from(capacity.0), "one pool is promised twice");
    }
}

/// What the executor on `device` allocates for itself.
fn allocated(catalog: &Catalog, model: &Model, made: &Plan, device: Device) -> u128 {
    let is_gpu = device != Device::Cpu;
    let padded = |bytes: u128| bytes.div_ceil(256) * 256;
    let is_own = |unit: usize| made.units[unit].execute_on == device && !made.units[unit].chunks.is_empty();
    let units: Vec<usize> = (0..model.units.len()).filter(|&unit| is_own(unit)).collect();
    let vectors = units.iter().flat_map(|&unit| model.units[unit].vectors());
    let mut sum: u128 = vectors.map(|id| padded(u128::from(catalog[id].n_values()) * 4)).sum();
    let passes_on = (1..made.units.len() - 1).any(|unit| is_own(unit) && !is_own(unit + 1));
    let role = sizes::Role { computes_head: is_own(made.units.len() - 1), passes_on, on_host: device == Device::Cpu };
    sum += sizes::working_set(model, made.forward, made.n_seqs, role).iter().map(|(_, bytes)| u128::from(bytes.0)).sum::<u128>();
    let kv_dtype = if is_gpu { made.kv_dtype } else { made.kv_dtype.on_host() };
    // Adapters hold heads of whole octets.
    let head_size = if is_gpu { model.config.head_size.next_multiple_of(8) } else { model.config.head_size };
    let cache_bytes = |dtype: CacheDType| {
        let [values, scales] = dtype.row_bytes(head_size);
        // Adapters hold a head's scales in whole words.
        let head_bytes = values + if is_gpu { scales.next_multiple_of(4) } else { scales };
        // Sequences have whole blocks of 32 positions.
        let n_positions = made.ctx_size.next_multiple_of(32) as u128;
        padded(made.n_seqs as u128 * n_positions * model.config.n_kv_heads as u128 * u128::from(head_bytes))
    };
    let n_caches = units.iter().filter(|&&unit| matches!(model.units[unit].kind, UnitKind::Attention { .. })).count();
    sum += (cache_bytes(kv_dtype.keys) + cache_bytes(kv_dtype.values)) * n_caches as u128;
    let chunks = || made.chunks.iter().filter(|chunk| is_own(chunk.unit()));
    sum += chunks().filter(|chunk| chunk.stored_on == device).map(|chunk| u128::from(chunk.size_bytes.0)).sum::<u128>();
    if let Some(ring) = made.ring(device) {
        let copies = if is_gpu && ring.upload == UploadPath::Staged { 2 } else { 1 };
        sum += u128::from(ring.slot_bytes.0) * ring.n_slots as u128 * copies;
    }
    if is_gpu {
        sum += 2 * 256 * (chunks().map(|chunk| chunk.n_steps() as u128).sum::<u128>() + 1);
        // The lists that blocks of the model's dtypes choose from.
        let dtypes: BTreeSet<DType> = model.units.iter().flat_map(|unit| unit.matrices()).map(|id| catalog[id].dtype).collect();
        sum += dtypes.into_iter().filter_map(DType::grid).map(|grid| size_of_val(grid) as u128).sum::<u128>();
    }
    sum
}

/// What the host holds besides what it computes with: what streams from it, and the embedding.
fn held_for_others(model: &Model, made: &Plan) -> u128 {
    let is_host_resident = |index: &usize| made.stored_on(*index) == Device::Cpu && made.executor(*index) != Device::Cpu;
    let chunks: u128 = (0..made.chunks.len()).filter(is_host_resident).map(|index| u128::from(made.chunks[index].size_bytes.0)).sum();
    let tied_head_is_host_resident = model.config.tied_embeddings && made.units.last().is_some_and(|head| head.stored_on == Device::Cpu);
    let has_embedding = made.units[0].stored_on == Device::Cpu && !tied_head_is_host_resident;
    chunks + if has_embedding { u128::from(made.units[0].size_bytes.0) } else { 0 }
}

/// Slices lie side by side: in the order of their use and where bindings may begin, or, where the host streams them, as in the files.
fn check_places(catalog: &Catalog, chunk: &Chunk, executor: Device) {
    let as_in_files = file_ranges(chunk, catalog).filter(|_| executor == Device::Cpu && chunk.stored_on == Device::Disk);
    let mut slices: Vec<&Slice> = chunk.slices.iter().collect();
    if as_in_files.is_some() {
        slices.sort_by_key(|slice| slice.offset);
    } else {
        assert!(slices.iter().all(|slice| slice.offset % SLICE_ALIGNMENT == 0));
    }
    let mut end = 0;
    for slice in slices {
        assert!(slice.offset >= end, "slices overlap");
        end = slice.offset + slice.size_bytes;
    }
    if let Some(ranges) = as_in_files {
        let (mut ends, mut n_found) = ((0, 0, 0), 0);
        for range in ranges {
            assert_eq!((range.file_offset % FILE_ALIGNMENT, range.block_offset % FILE_ALIGNMENT), (0, 0));
            let begins = (range.shard, range.file_offset, range.block_offset);
            assert!(begins.2 >= ends.2 && begins >= ends, "what is read for one range would be written over by another");
            ends = (range.shard, range.file_offset + range.len, (range.block_offset + range.len).next_multiple_of(FILE_ALIGNMENT));
            for slice in &chunk.slices {
                let tensor = &catalog[slice.tensor];
                let offset = tensor.offset + slice.first_row * tensor.row_bytes();
                if tensor.shard == range.shard && (range.file_offset..range.file_offset + range.len).contains(&offset) {
                    assert_eq!(slice.offset - range.block_offset, offset - range.file_offset, "a slice lies as in its file");
                    assert!(offset + slice.size_bytes <= range.file_offset + range.len);
                    n_found += 1;
                }
            }
        }
        assert!(ends.2 <= chunk.size_bytes.0 && n_found == chunk.slices.len());
    }
}

/// Every row of every matrix stands in one slice, in order, and every operation is computed once, in order.
fn check_rows(catalog: &Catalog, model: &Model, made: &Plan) {
    for (index, (unit, planned)) in model.units.iter().zip(&made.units).enumerate() {
        let mut expected: Vec<(usize, u64)> = Vec::new();
        for (op, operation) in unit.ops.iter().enumerate() {
            match (operation, operation.matrix()) {
                (Op::Embed { .. }, _) => {}
                (_, weight) => expected.push((op, weight.map_or(0, |weight| catalog[weight].n_rows()))),
            }
        }
        let mut found: Vec<(usize, u64)> = Vec::new();
        for chunk in &made.chunks[planned.chunks.clone()] {
            let of_unit = chunk.work.iter().filter(|of_unit| of_unit.unit == index);
            for step in of_unit.flat_map(|of_unit| &of_unit.steps) {
                match *step {
                    Work::Op(op) => found.push((op, 0)),
                    Work::Rows { op, slice } => {
                        let slice = chunk.slices[slice];
                        assert_eq!(slice.size_bytes, slice.n_rows * catalog[slice.tensor].row_bytes());
                        if found.last().is_none_or(|last| last.0 != op) {
                            found.push((op, 0));
                        }
                        let last = found.last_mut().expect("just pushed");
                        assert_eq!(last.1, slice.first_row);
                        last.1 += slice.n_rows;
                    }
                }
            }
        }
        assert_eq!(found, expected, "{}", planned.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_keeps_its_promises_and_a_refusal_is_true(case in cases()) {
        let (catalog, model) = case.model();
        match plan(&catalog, &model, &case.devices, &case.options) {
            Ok(made) => {
                check(&case, &catalog, &model, &made);
                let again = plan(&catalog, &model, &case.devices, &case.options).expect("as before");
                prop_assert_eq!(serde_json::to_string(&made).expect("plain data"), serde_json::to_string(&again).expect("plain data"));
                prop_assert!(!made.to_string().is_empty());
            }
            Err(Error::DoesNotFit { device, needed, .. }) => {
                let device: Device = device.parse().expect("a device");
                let enough = Case { options: case.with_budget(device, needed), ..case.clone() };
                let made = plan(&catalog, &model, &case.devices, &enough.options).expect("what is needed is enough");
                check(&enough, &catalog, &model, &made);
                let less = plan(&catalog, &model, &case.devices, &case.with_budget(device, Bytes(needed.0 - 1)));
                prop_assert!(matches!(less, Err(Error::DoesNotFit { .. })), "less than the least works");
            }
            Err(Error::DoNotFit { shortfalls, .. }) => {
                let mut options = case.options.clone();
                options.max_memory.extend(shortfalls.iter().map(|short| (short.device.parse().expect("a device"), short.needed)));
                let enough = Case { options, ..case.clone() };
                let made = plan(&catalog, &model, &case.devices, &enough.options).expect("what is needed is enough");
                check(&enough, &catalog, &model, &made);
            }
            Err(Error::ExceedsLimit { device, needed, available, .. }) => {
                let is_known = device.contains("binding") || device.contains("budget");
                prop_assert!(is_known && needed > available, "{} {:?} {:?}", device, needed, available);
            }
            Err(other) => return Err(proptest::test_runner::TestCaseError::fail(other.to_string())),
        }
    }

}

#[test]
fn a_slow_adapter_takes_so_few_tokens_at_a_time_that_no_watchdog_bites() {
    let config = ModelConfig { context_length: 1024, ffn_size: 4096, ..models::config() };
    let (catalog, model) = models::model(&config, |_| DType::F32);
    let mut devices = models::devices(Bytes::gib(1), AdapterKind::Integrated, GpuLimits::default(), Bytes::gib(1));
    let options = PlanOptions { compute_on: vec![Device::Gpu(0)], ..PlanOptions::default() };
    let flops_of_token = 2.0 * (config.hidden_size * config.ffn_size) as f64;
    let mut n_tokens = |secs_of_token: f64, ubatch_size: Option<usize>| {
        // One token alone takes as long as one of many, so that many in one forward lose nothing.
        let bytes_per_sec = BytesPerSec(2.0 * flops_of_token / secs_of_token);
        let (matvec, matmul) = ([(DType::F32, bytes_per_sec)].into(), [(DType::F32, flops_of_token / secs_of_token)].into());
        devices[0].rates = Rates { matvec, matmul, ..Rates::default() };
        plan(&catalog, &model, &devices, &PlanOptions { ubatch_size, ..options.clone() }).unwrap().forward.n_tokens
    };
    assert_eq!(n_tokens(0.0001, None), 512, "51 ms");
    assert_eq!(n_tokens(0.001, None), 256, "512 tokens take 512 ms, 256 take 256 ms");
    assert_eq!(n_tokens(0.1, None), 64, "fewer do not pay");
    assert_eq!(n_tokens(0.1, Some(512)), 512, "as asked");
}

/// KV caches of floats.
fn float_caches() -> impl Strategy<Value = KvDType> {
    any::<bool>().prop_map(|half| if half { KvDType::F16 } else { KvDType::F32 })
}

proptest! {
    // Many plans each, and the same ones every time: a search may miss a case that another seed finds.
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn a_larger_budget_is_never_much_slower(case in cases_with(float_caches()), budgets in proptest::collection::vec(10_000u64..2_000_000, 2..12)) {
        let (catalog, model) = case.model();
        let options = PlanOptions { ctx_size: Some(64), ubatch_size: Some(4), n_seqs: 1, logit_rows: 1, n_slots: Some(3), ..case.options.clone() };
        let case = Case { options, ..case };
        // What the others cannot keep goes to the last: its budget decides.
        let last = *case.options.compute_on.last().expect("somebody computes");
        let mut budgets = budgets;
        budgets.sort_unstable();
        let mut least: Option<f64> = None;
        for budget in budgets {
            match (plan(&catalog, &model, &case.devices, &case.with_budget(last, Bytes(budget))), least) {
                (Ok(made), before) => {
                    // What fits on adapters stays there, even where the host would be faster.
                    let secs = request_secs(&made, &catalog, &model, &case.devices, &case.options);
                    let is_free = made.streamed_bytes() > Bytes::ZERO;
                    prop_assert!(!is_free || before.is_none_or(|before| secs <= before * SEARCH_MISSES), "{secs} s after {before:?} s with {budget}");
                    least = Some(least.map_or(secs, |least| least.min(secs)));
                }
                (Err(_), None) => {}
                (Err(error), Some(_)) => return Err(proptest::test_runner::TestCaseError::fail(format!("{budget}: {error}"))),
            }
        }
        // Enough for everything, where its limits let the last compute alone: nothing streams, and there is no ring.
        let mut options = PlanOptions { resident_layers: ResidentLayers::Auto, ..case.with_budget(last, Bytes(1 << 40)) };
        // An integrated GPU takes it from the host.
        options.max_memory.insert(Device::Cpu, Bytes(1 << 40));
        let alone = PlanOptions { compute_on: vec![last], ..options.clone() };
        if plan(&catalog, &model, &case.devices, &alone).is_ok() {
            let made = plan(&catalog, &model, &case.devices, &options).expect("as one of them could alone");
            let streams = made.devices.iter().any(|device| device.ring.is_some()) || made.streamed_bytes() > Bytes::ZERO;
            prop_assert!(!streams, "{}", made);
        }
    }
}

#[test]
fn everything_is_resident_with_a_long_context_where_the_budget_suffices() {
    let (catalog, model) = models::model(&models::config(), |_| DType::F16);
    let devices = models::devices(Bytes::mib(64), AdapterKind::Discrete, GpuLimits::default(), Bytes::gib(1));
    let made = plan(&catalog, &model, &devices, &PlanOptions::default()).unwrap();
    assert_eq!((made.ring(Device::Gpu(0)), made.ctx_size), (None, 512));
    let made =
        plan(&catalog, &model, &devices, &PlanOptions { resident_layers: ResidentLayers::AtMost(0), ..PlanOptions::default() }).unwrap();
    assert!(made.units[1..].iter().all(|unit| unit.stored_on == Device::Cpu), "-ngl 0 streams all layers and the head");
}

#[test]
fn a_cache_of_all_sequences_together_takes_what_it_is_given() {
    let (catalog, model) = models::model(&models::config(), |_| DType::F16);
    let devices = models::devices(Bytes::mib(64), AdapterKind::Discrete, GpuLimits::default(), Bytes::gib(1));
    let made =
        |n_seqs, ctx_size, kv_size| plan(&catalog, &model, &devices, &PlanOptions { n_seqs, ctx_size, kv_size, ..PlanOptions::default() });
    let bytes = |n_seqs, ctx_size, kv_size| made(n_seqs, ctx_size, kv_size).unwrap().kv_cache_bytes();
    assert_eq!(bytes(8, Some(256), Some(1024)), bytes(4, Some(256), None));
    assert_eq!(bytes(8, Some(256), Some(1 << 20)), bytes(8, Some(256), None), "no more than all contexts have");
    // What all have, one may have.
    let of_one = made(8, None, Some(320)).unwrap();
    assert_eq!((of_one.ctx_size, of_one.n_kv_blocks(), of_one.n_seqs), (320, 10, 8));
    for (ctx_size, kv_size, reason) in [(Some(256), 255, "fewer than the context of one, 256"), (None, 0, "no room for a token")] {
        let refused = made(2, ctx_size, Some(kv_size)).unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
    }
}

#[test]
fn no_plan_has_less_room_for_the_parts_of_attention_than_its_kernels_need() {
    assert_eq!(sizes::ATTENTION_PARTS_MAX as u32, attention::MAX_PARTS);
    assert_eq!(sizes::ATTENTION_PART_POSITIONS_MIN as u32, attention::MIN_PART_POSITIONS);
    assert_eq!(sizes::ATTENTION_PARTS_TOKENS as u32, matmul::MAX_DECODE_TOKENS);
    assert_eq!(sizes::KV_BLOCK_POSITIONS as u32, BLOCK_POSITIONS);
    let config = models::config();
    let (_, model) = models::model(&config, |_| DType::F16);
    for n_tokens in [1, 3, 8, 9, 64] {
        let capacities = [1, 255, 256, 257, 8191, 8192, 8193, 131_072];
        for (index, kv_capacity) in capacities.into_iter().enumerate() {
            let params = attention::Params {
                n_tokens,
                n_heads: config.n_heads as u32,
                n_kv_heads: config.n_kv_heads as u32,
                head_size: config.head_size as u32,
                n_blocks: 4096,
                kv_capacity,
                window: 0,
                scale: 1.0,
                key_dtype: 0,
                value_dtype: 0,
                softcap: 0.0,
                is_causal: 1,
                in_chunks: 0,
            };
            // A plan counts before it settles its context, which may become shorter.
            for n_positions in &capacities[index..] {
                let size = ForwardSize { n_tokens: n_tokens as usize, n_logit_rows: 1, n_positions: *n_positions as usize };
                let room = sizes::attention_parts_bytes(&model, size);
                assert!(attention::parts_bytes(&params) <= room.0, "{n_tokens} tokens, {kv_capacity} of {n_positions} positions");
            }
        }
    }
}

#[test]
fn a_plan_counts_layers_and_the_parts_of_others() {
    let config = ModelConfig { n_layers: 6, ..models::config() };
    let (catalog, model) = models::model(&config, |_| DType::F16);
    let devices = models::devices(Bytes::mib(64), AdapterKind::Discrete, GpuLimits::default(), Bytes::gib(1));
    let on = |device: Device, unit: usize| Placement::new(device, vec![device; model.units[unit].matrices().count()]);
    let alternating = (0..model.units.len()).map(|unit| on(if unit % 2 == 0 { Device::Cpu } else { Device::Gpu(0) }, unit)).collect();
    let options = PlanOptions {
        compute_on: vec![Device::Gpu(0), Device::Cpu],
        placement: PlacementRule::Placed(alternating),
        ..PlanOptions::default()
    };
    let text = plan(&catalog, &model, &devices, &options).unwrap().to_string();
    assert!(text.contains("         computes 6 attention parts and the head\n"), "{text}");
    assert!(text.contains("         computes 6 MLP parts; holds the embedding\n"), "{text}");
    let text = plan(&catalog, &model, &devices, &PlanOptions::default()).unwrap().to_string();
    assert!(text.contains("         computes 6 of 6 layers and the head\n") && text.contains("         holds the embedding\n"), "{text}");
}

#[test]
fn what_a_plan_tells_of_the_disk_adds_up() {
    for tied_embeddings in [false, true] {
        let config = ModelConfig { n_layers: 3, tied_embeddings, ..models::config() };
        let (catalog, model) = models::model(&config, |_| DType::F16);
        let devices = models::devices(Bytes::mib(8), AdapterKind::Discrete, GpuLimits::default(), Bytes::ZERO);
        let on_disk = |unit: usize| {
            let execute_on = if unit == 0 { Device::Cpu } else { Device::Gpu(0) };
            Placement::new(execute_on, vec![Device::Disk; model.units[unit].matrices().count()])
        };
        let options =
            PlanOptions { placement: PlacementRule::Placed((0..model.units.len()).map(on_disk).collect()), ..PlanOptions::default() };
        let made = plan(&catalog, &model, &devices, &options).unwrap();
        let matrices: Bytes = catalog.tensors.iter().filter(|tensor| tensor.shape.len() > 1).map(|tensor| tensor.size_bytes).sum();
        let text = made.to_string();
        let line = format!("\n  disk   holds 3 layers, the embedding and the head: {matrices}\n");
        assert!(text.contains(&line), "{text}\n{line}");
        let streamed = made.streamed_bytes();
        assert!(text.contains(&format!("\n         streams 3 layers and the head: {streamed} from disk per token\n")), "{text}");
    }
}

#[test]
fn a_forward_takes_no_more_tokens_than_the_context_has_positions() {
    let config = ModelConfig { context_length: 2048, n_layers: 64, ..models::config() };
    let (catalog, model) = models::model(&config, |_| DType::F16);
    let made = |asked: usize, ctx_size: Option<usize>, gpu: Bytes, n_seqs: usize| {
        let devices = models::devices(gpu, AdapterKind::Discrete, GpuLimits::default(), Bytes::gib(1));
        let options =
            PlanOptions { ubatch_size: Some(asked), ctx_size, n_seqs, placement: PlacementRule::FrontToBack, ..PlanOptions::default() };
        plan(&catalog, &model, &devices, &options)
    };
    for (asked, ctx_size, n_seqs, expected) in
        [(100_000, Some(256), 1, 256), (100_000, Some(256), 2, 512), (128, Some(256), 1, 128), (100_000, None, 1, 2048)]
    {
        assert_eq!(made(asked, ctx_size, Bytes::gib(1), n_seqs).unwrap().forward.n_tokens, expected, "{asked} in {ctx_size:?}");
    }
    // Where the context is open, it depends on what is left beside the forward.
    let shorter = (1..64).filter_map(|size| made(100_000, None, Bytes::mib(size), 1).ok()).filter(|made| made.ctx_size < 2048);
    let shorter: Vec<(usize, usize)> = shorter.map(|made| (made.forward.n_tokens, made.ctx_size)).collect();
    assert!(!shorter.is_empty() && shorter.iter().all(|(n_tokens, ctx_size)| n_tokens <= ctx_size), "{shorter:?}");
}

#[test]
fn heads_that_no_kernel_holds_are_refused_before_anything_loads() {
    assert_eq!(sizes::HEAD_SIZE_MAX as u32, attention::MAX_HEAD_SIZE, "the kernel's own bound");
    assert_eq!(sizes::HEAD_PADDING as u32, rope_kv_padded::OCTET, "the kernel's own bound");
    let config = ModelConfig { head_size: 1026, ..models::config() };
    let (catalog, model) = models::model(&config, |_| DType::F16);
    let devices = models::devices(Bytes::gib(1), AdapterKind::Discrete, GpuLimits::default(), Bytes::gib(1));
    let error = plan(&catalog, &model, &devices, &PlanOptions::default()).unwrap_err();
    assert!(matches!(error, Error::UnsupportedOnGpu { .. }) && error.to_string().contains("1026"), "{error}");
    plan(&catalog, &model, &devices, &PlanOptions { compute_on: vec![Device::Cpu], ..PlanOptions::default() }).unwrap();
}

#[test]
fn a_thousand_layers_are_planned_and_twice_the_same() {
    let config =
        ModelConfig { n_layers: 1000, hidden_size: 8192, ffn_size: 28_672, n_heads: 64, n_kv_heads: 8, head_size: 128, ..models::config() };
    let (catalog, model) = models::model(&config, |_| DType::Q4_0);
    let devices = models::devices(Bytes::gib(24), AdapterKind::Discrete, GpuLimits::default(), Bytes::gib(64));
    for budget in [Bytes::gib(24), Bytes::mib(900), Bytes::ZERO] {
        let options = PlanOptions { max_memory: [(Device::Gpu(0), budget)].into(), ..PlanOptions::default() };
        let [first, second] = [(); 2].map(|()| plan(&catalog, &model, &devices, &options));
        assert_eq!(format!("{first:?}"), format!("{second:?}"), "{budget}");
        if let Ok(plan) = first {
            assert_eq!(plan.units.len(), model.units.len(), "{budget}");
        }
    }
}

#[test]
fn absurd_sizes_neither_panic_nor_hang() {
    let most = 1 << 24;
    let sizes = [
        ModelConfig {
            vocab_size: most,
            hidden_size: most,
            ffn_size: most,
            n_layers: 1024,
            n_heads: 1 << 16,
            n_kv_heads: 1 << 16,
            head_size: 256,
            context_length: 1 << 28,
            ..models::config()
        },
        ModelConfig { vocab_size: most, hidden_size: 32, ffn_size: most, n_layers: 1024, context_length: 1 << 28, ..models::config() },
    ];
    for config in &sizes {
        let (catalog, model) = models::model(config, |_| DType::F32);
        for limits in [
            GpuLimits::default(),
            GpuLimits { max_buffer_bytes: Bytes(u64::MAX), max_binding_bytes: Bytes(u64::MAX), ..GpuLimits::default() },
        ] {
            let devices = models::devices(Bytes::gib(8), AdapterKind::Integrated, limits, Bytes(u64::MAX));
            let (gpu, host, both) = (vec![Device::Gpu(0)], vec![Device::Cpu], vec![Device::Gpu(0), Device::Cpu]);
            for (budget, compute_on) in
                [(0, &gpu), (u64::MAX, &gpu), (1 << 40, &gpu), (1 << 40, &host), (u64::MAX, &host), (1 << 40, &both), (u64::MAX, &both)]
            {
                let max_memory: BTreeMap<Device, Bytes> = compute_on.iter().map(|&device| (device, Bytes(budget))).collect();
                let options = PlanOptions {
                    compute_on: compute_on.clone(),
                    max_memory: max_memory.clone(),
                    ctx_size: Some(1 << 31),
                    n_seqs: 1000,
                    ubatch_size: Some(usize::MAX),
                    logit_rows: usize::MAX,
                    n_slots: Some(1000),
                    lookahead: Some(1000),
                    ..PlanOptions::default()
                };
                let _ = plan(&catalog, &model, &devices, &options);
                let open = PlanOptions { compute_on: compute_on.clone(), max_memory, ..PlanOptions::default() };
                let _ = plan(&catalog, &model, &devices, &open);
            }
        }
    }
}

#[test]
fn a_packed_input_takes_no_more_than_plans_count() {
    let config = models::config();
    let (_, model) = models::model(&config, |_| DType::F16);
    for n_tokens in [1, 2, 5, 6, 7, 64] {
        let bytes = sizes::packed_input_bytes(&model, n_tokens);
        for dtype in DType::ALL {
            let n_columns = config.ffn_size.max(config.hidden_size);
            let params = matmul::Params::new(dtype, 1, n_columns as u32, n_tokens as u32);
            let taken = match Input::default().prepare(&params, &vec![1.0; n_tokens * n_columns]) {
                Operand::Floats(_) => 0,
                Operand::Tiles(tiles) => size_of_val(tiles),
                Operand::Blocks(blocks) => size_of_val(blocks),
            };
            assert!(Bytes(taken as u64) <= bytes, "{dtype}, {n_tokens} tokens: {taken} of {bytes}");
        }
    }
}
