//! The expert cache: whatever it holds, logits are those of resident experts, bit for bit, and each forward brings an expert at most once.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;
use tierflow::device::{Device, DeviceChoice, GpuLimits, KernelChoice};
use tierflow::engine::{Engine, EngineBuilder, LoadProgress, TextFiles};
use tierflow::model::Op;
use tierflow::plan::{ExpertCachePlan, ExpertCacheRule, ExpertMisses, Placement, PlacementRule, PlanOptions};
use tierflow::stream::{ExpertStatistics, Lane, Logits, LogitsRequest};
use tierflow::units::Bytes;
use xtask::models::{GgufType, LlamaShape, write_gguf};

use crate::common;
use crate::models::{LOGITS_TOLERANCE, families};

/// Families with mixtures of experts, of different shapes: biases, shared experts, layers without experts, 4-bit floats.
const FAMILIES: [&str; 8] = ["mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "granitemoe", "gpt_oss", "deepseek_v3", "llama4"];
/// A prompt that takes several experts, then single tokens.
const PARTS: [&[u32]; 4] = [&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], &[12], &[13], &[12]];

fn builder(folder: &Path, rule: ExpertCacheRule) -> EngineBuilder {
    let options = PlanOptions { ctx_size: Some(32), ubatch_size: Some(16), expert_cache: rule, ..PlanOptions::default() };
    // Bits of several engines are compared: the fastest kernels may be others once more of them have been measured.
    Engine::builder(folder).plan_options(options).device(DeviceChoice::Gpu).kernels(KernelChoice::Portable).text(TextFiles::Skip)
}

/// The logits after each part, and what the cache was asked for in each.
fn logits(what: &str, builder: EngineBuilder) -> (Vec<Vec<f32>>, Vec<ExpertStatistics>) {
    let mut engine = pollster::block_on(builder.open()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let (mut all, mut statistics, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    for part in PARTS {
        let before = engine.expert_statistics();
        let mut session = engine.resume(tokens.clone());
        let Logits::All(logits) = pollster::block_on(session.append(part, LogitsRequest::All)).unwrap() else { panic!("{what}") };
        tokens.extend_from_slice(part);
        all.push(logits);
        statistics.push(engine.expert_statistics().since(&before));
    }
    for memory in engine.memory_use() {
        assert!(memory.budget.is_none_or(|budget| memory.peak <= budget), "{what}: {memory:?}");
        let used = engine.plan().device(memory.device).unwrap().used.total();
        assert!(memory.peak <= used, "{what}: {memory:?}, planned {used}");
    }
    (all, statistics)
}

/// The bits of the logits after each part, and what the cache was asked for in each.
fn answers(what: &str, builder: EngineBuilder) -> (Vec<Vec<u32>>, Vec<ExpertStatistics>) {
    let (logits, statistics) = logits(what, builder);
    (logits.iter().map(|logits| common::bits(logits)).collect(), statistics)
}

/// The budget with which the cache has room for `n_slots` experts, as of a plan with room for all.
fn budget_of(used: Bytes, cache: &ExpertCachePlan, n_slots: usize) -> Bytes {
    Bytes(used.0 - cache.size_bytes().0 + cache.slot_bytes.0 * n_slots as u64 + cache.table_bytes.0)
}

#[test]
fn the_expert_that_every_token_takes_waits_for_no_choice() {
    let root = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let folder = families::written(root.path(), family);
        let builder = builder(&folder, ExpertCacheRule::Never).device(DeviceChoice::Cpu);
        let model = pollster::block_on(builder.prepare()).unwrap().model;
        let has_shared = model.config.variant.experts.as_ref().unwrap().shared.is_some();
        for unit in &model.units {
            let Some(choice) = unit.ops.iter().position(|op| matches!(op, Op::Route(_))) else { continue };
            let behind = &unit.ops[choice + 1..];
            let first = behind.iter().position(|op| matches!(op, Op::ExpertMatMul(_))).unwrap();
            let n_products = |ops: &[Op]| ops.iter().filter(|op| matches!(op, Op::MatMul { .. })).count();
            assert_eq!(n_products(&behind[..first]) >= 3, has_shared, "{family}: {}", unit.name);
            assert_eq!(n_products(&behind[first..]), 0, "{family}: {}", unit.name);
        }
    }
}

#[test]
fn answers_do_not_depend_on_what_the_cache_holds() {
    if common::gpus().is_empty() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let folder = families::written(root.path(), family);
        let (resident, none) = answers(family, builder(&folder, ExpertCacheRule::Never));
        assert!(none.iter().all(|statistics| *statistics == ExpertStatistics::default()), "{family}");

        let prepared = pollster::block_on(builder(&folder, ExpertCacheRule::Always).prepare()).unwrap();
        let of_gpu = prepared.plan.device(Device::Gpu(0)).unwrap();
        let (used, whole) = (of_gpu.used.total(), of_gpu.expert_cache.expect("a cache"));
        assert_eq!(whole.n_slots, whole.n_experts, "{family}");
        let n_used = prepared.model.config.variant.experts.as_ref().unwrap().n_used;
        for n_slots in [n_used, whole.n_experts / 2, whole.n_experts] {
            let budget = budget_of(used, &whole, n_slots);
            let cached = || builder(&folder, ExpertCacheRule::Always).max_memory(Device::Gpu(0), budget);
            let what = format!("{family} with {n_slots} of {} experts", whole.n_experts);
            let plan = pollster::block_on(cached().prepare()).unwrap().plan;
            assert_eq!(plan.expert_cache(Device::Gpu(0)).map(|cache| cache.n_slots), Some(n_slots), "{what}: the budget is used");
            let (bits, statistics) = answers(&what, cached());
            assert_eq!(bits, resident, "{what}");
            for statistics in &statistics {
                assert!(
                    statistics.n_hits + statistics.n_misses <= whole.n_experts as u64,
                    "{what}: each expert is asked for once a forward"
                );
            }
            let all: ExpertStatistics = statistics.into_iter().sum();
            match n_slots {
                n_slots if n_slots == whole.n_experts => {
                    assert!(all.n_misses == 0 && all.n_hits > 0, "{what}: all of them stay, {all:?}");
                }
                n_slots if n_slots == whole.n_experts / 2 => {
                    let (bits, _) = answers(&what, cached().max_memory(Device::Cpu, Bytes::ZERO));
                    assert_eq!(bits, resident, "{what} from disk");
                }
                _ => {}
            }
        }
        // Slots in several buffers.
        let small = whole.slot_bytes.times(3).max(Bytes::kib(64));
        let limits = GpuLimits { max_binding_bytes: small, max_buffer_bytes: small, ..GpuLimits::default() };
        let (bits, _) = answers(family, builder(&folder, ExpertCacheRule::Always).limits(Some(limits)));
        assert_eq!(bits, resident, "{family} in several buffers");
    }
}

/// A plan with the same placements and so many whole layers in the cache.
fn with_whole(folder: &Path, n_whole: usize, budget: Bytes, ctx_size: usize) -> EngineBuilder {
    let prepared = pollster::block_on(builder(folder, ExpertCacheRule::Always).prepare()).unwrap();
    let written = prepared.plan.to_saved_json(&prepared.checkpoint.catalog, &prepared.model, &prepared.devices);
    let mut placements: Vec<Placement> = serde_json::from_value(written["placements"].clone()).unwrap();
    let misses = placements.iter_mut().filter_map(|placement| placement.expert_misses.as_mut());
    misses.for_each(|misses| *misses = ExpertMisses { n_whole, ..ExpertMisses::default() });
    let placement = PlacementRule::Placed(placements);
    let options = PlanOptions { ctx_size: Some(ctx_size), ubatch_size: Some(16), placement, ..PlanOptions::default() };
    builder(folder, ExpertCacheRule::Always).plan_options(options).max_memory(Device::Gpu(0), budget)
}

#[test]
fn whole_layers_are_computed_without_asking_which_experts_tokens_take() {
    if common::gpus().is_empty() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    for family in ["mixtral", "gpt_oss", "deepseek_v3"] {
        let folder = families::written(root.path(), family);
        let (resident, _) = answers(family, builder(&folder, ExpertCacheRule::Never));
        let prepared = pollster::block_on(builder(&folder, ExpertCacheRule::Always).prepare()).unwrap();
        let of_gpu = prepared.plan.device(Device::Gpu(0)).unwrap();
        let (used, all) = (of_gpu.used.total(), of_gpu.expert_cache.expect("a cache"));
        let n_used = prepared.model.config.variant.experts.as_ref().unwrap().n_used;
        for n_whole in 0..=all.n_layers {
            let n_slots = (n_whole * all.layer_experts + n_used).min(all.n_experts);
            let what = format!("{family} with {n_whole} of {} layers", all.n_layers);
            let whole = || with_whole(&folder, n_whole, budget_of(used, &all, n_slots), 32);
            let plan = pollster::block_on(whole().prepare()).unwrap().plan;
            assert_eq!(plan.expert_cache(Device::Gpu(0)).map(|cache| (cache.n_slots, cache.misses.n_whole)), Some((n_slots, n_whole)));
            let (bits, statistics) = answers(&what, whole());
            assert_eq!(bits, resident, "{what}");
            for of_token in &statistics[1..] {
                assert_eq!((of_token.n_hits + of_token.n_misses) as usize, all.n_layers * n_used, "{what}");
                assert!(of_token.n_hits as usize >= n_whole * n_used, "{what}: {of_token:?}");
            }
            let prepared = pollster::block_on(whole().prepare()).unwrap();
            let n_left = AtomicU64::new(u64::MAX);
            let note = |progress: LoadProgress| _ = n_left.fetch_min(progress.total.0 - progress.done.0, Ordering::Relaxed);
            let mut engine = pollster::block_on(prepared.load(&note)).unwrap();
            assert_eq!(n_left.into_inner(), 0, "{what}: all that is loaded is reported, and no more");
            pollster::block_on(engine.session().append(&[1], LogitsRequest::All)).unwrap();
            let n_asked = engine.trace().spans().iter().filter(|span| span.lane == Lane::Experts).count();
            assert_eq!(n_asked, all.n_layers - n_whole, "{what}: nobody asks about whole layers");
        }
    }
}

#[test]
fn a_cache_that_is_split_anew_gives_the_same_answers() {
    if common::gpus().is_empty() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let folder = families::written(root.path(), "qwen3_moe");
    let tokens: Vec<u32> = (0..300).map(|index| index * 7 % 61 + 1).collect();
    let last = |builder: EngineBuilder| {
        let mut engine = pollster::block_on(builder.open()).unwrap();
        let mut session = engine.session();
        let mut logits = Vec::new();
        for token in &tokens {
            let Logits::All(next) = pollster::block_on(session.append(&[*token], LogitsRequest::All)).unwrap() else { panic!("{token}") };
            logits.extend(common::bits(&next));
        }
        let seen: Vec<ExpertCachePlan> = engine.expert_caches().map(|(_, cache)| *cache).collect();
        let peak = engine.memory_use().into_iter().find(|memory| memory.device == Device::Gpu(0)).unwrap();
        assert!(peak.budget.is_none_or(|budget| peak.peak <= budget), "{peak:?}");
        (logits, seen)
    };
    let options = |rule| PlanOptions { ctx_size: Some(512), ubatch_size: Some(16), expert_cache: rule, ..PlanOptions::default() };
    let of_rule = |rule| builder(&folder, rule).plan_options(options(rule));
    let (resident, none) = last(of_rule(ExpertCacheRule::Never));
    assert!(none.is_empty());
    let prepared = pollster::block_on(of_rule(ExpertCacheRule::Always).prepare()).unwrap();
    let of_gpu = prepared.plan.device(Device::Gpu(0)).unwrap();
    let (used, all) = (of_gpu.used.total(), of_gpu.expert_cache.expect("a cache"));
    let budget = budget_of(used, &all, all.n_experts - 1);
    for n_whole in 0..all.n_layers {
        let begun = with_whole(&folder, n_whole, budget, 512);
        let assumed =
            *pollster::block_on(with_whole(&folder, n_whole, budget, 512).prepare()).unwrap().plan.expert_cache(Device::Gpu(0)).unwrap();
        assert_eq!((assumed.misses.hit_percent, assumed.misses.n_whole), (None, n_whole));
        let (bits, seen) = last(begun);
        assert_eq!(bits, resident, "begun with {n_whole} whole layers");
        assert!(seen[0].misses.hit_percent.is_some(), "what was assumed is replaced by what was seen: {seen:?}");
    }
}

#[test]
fn experts_that_are_left_to_the_host_give_its_logits() {
    if common::gpus().is_empty() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let folder = families::written(root.path(), family);
        let (resident, _) = logits(family, builder(&folder, ExpertCacheRule::Never));
        let prepared = pollster::block_on(builder(&folder, ExpertCacheRule::Always).prepare()).unwrap();
        let of_gpu = prepared.plan.device(Device::Gpu(0)).unwrap();
        let (used, whole) = (of_gpu.used.total(), of_gpu.expert_cache.expect("a cache"));
        let budget = budget_of(used, &whole, whole.n_experts / 2);
        let written = prepared.plan.to_saved_json(&prepared.checkpoint.catalog, &prepared.model, &prepared.devices);
        let placements: Vec<Placement> = serde_json::from_value(written["placements"].clone()).unwrap();
        for (host_percent, from_disk) in [(100, false), (100, true), (60, false), (60, true)] {
            let what = format!("{family}, {host_percent} % by the host{}", if from_disk { ", from disk" } else { "" });
            // The same placements, where the host has its share of what is missing.
            let sharing = |placement: &Placement| Placement {
                expert_misses: placement.expert_misses.map(|_| ExpertMisses { host_percent, ..ExpertMisses::default() }),
                stored_on: placement
                    .stored_on
                    .iter()
                    .map(|&device| if from_disk && device == Device::Cpu { Device::Disk } else { device })
                    .collect(),
                ..*placement
            };
            let placement = PlacementRule::Placed(placements.iter().map(sharing).collect());
            let options = PlanOptions { ctx_size: Some(32), ubatch_size: Some(16), placement, ..PlanOptions::default() };
            let sharing = builder(&folder, ExpertCacheRule::Always).plan_options(options).max_memory(Device::Gpu(0), budget);
            let (shared, statistics) = logits(&what, sharing);
            let statistics: ExpertStatistics = statistics.into_iter().sum();
            assert!(statistics.n_on_host > 0 && statistics.n_on_host <= statistics.n_misses, "{what}: {statistics:?}");
            for (own, expected) in shared.iter().zip(&resident) {
                common::assert_close(own, expected, LOGITS_TOLERANCE, &what);
            }
        }
    }
}

/// What the browser's test of a mixture of experts asks and expects.
#[derive(Deserialize)]
struct OfBrowser {
    /// The chat's prompt.
    prompt: Vec<u32>,
    /// The answer.
    tokens: Vec<u32>,
}

#[test]
fn the_answer_that_the_browsers_test_expects_is_the_native_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/web/tests/support/experts.json");
    let OfBrowser { prompt, tokens } = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("experts.gguf");
    write_gguf(&file, &LlamaShape::small_experts(), 5, GgufType::Q8_0).unwrap();
    let mut devices = vec![DeviceChoice::Cpu];
    devices.extend(common::gpus().first().map(|_| DeviceChoice::Gpu));
    for device in devices {
        let mut engine = pollster::block_on(Engine::builder(&file).device(device).ctx_size(64).open()).unwrap();
        let mut session = engine.session();
        let (mut next, mut found) = (prompt.clone(), Vec::new());
        while found.len() < tokens.len() {
            let Logits::Top(top) = pollster::block_on(session.append(&next, LogitsRequest::TopK(1))).unwrap() else { panic!("{device:?}") };
            found.push(top[0].0);
            next = vec![top[0].0];
        }
        assert_eq!(found, tokens, "{device:?}");
    }
}
