//! The expert cache: whatever it holds, logits are those of resident experts, bit for bit, and each forward brings an expert at most once.

use std::path::Path;

use tierflow::device::{Device, DeviceChoice, GpuLimits, KernelChoice};
use tierflow::engine::{Engine, EngineBuilder, TextFiles};
use tierflow::plan::{ExpertCachePlan, ExpertCacheRule, PlanOptions};
use tierflow::stream::{ExpertStatistics, Logits, LogitsRequest};
use tierflow::units::Bytes;

use crate::common;
use crate::models::families;

/// Families with mixtures of experts, of different shapes: biases, shared experts, layers without experts, 4-bit floats.
const FAMILIES: [&str; 8] = ["mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "granitemoe", "gpt_oss", "deepseek_v3", "llama4"];
/// A prompt that takes several experts, then single tokens.
const PARTS: [&[u32]; 4] = [&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], &[12], &[13], &[12]];

fn builder(folder: &Path, rule: ExpertCacheRule) -> EngineBuilder {
    let options = PlanOptions { ctx_size: Some(32), ubatch_size: Some(16), expert_cache: rule, ..PlanOptions::default() };
    // Bits of several engines are compared: the fastest kernels may be others once more of them have been measured.
    Engine::builder(folder).plan_options(options).device(DeviceChoice::Gpu).kernels(KernelChoice::Portable).text(TextFiles::Skip)
}

/// The bits of the logits after each part, and what the cache was asked for in each.
fn answers(what: &str, builder: EngineBuilder) -> (Vec<Vec<u32>>, Vec<ExpertStatistics>) {
    let mut engine = pollster::block_on(builder.open()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let (mut bits, mut statistics, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    for part in PARTS {
        let before = engine.expert_statistics();
        let mut session = engine.resume(tokens.clone());
        let Logits::All(logits) = pollster::block_on(session.append(part, LogitsRequest::All)).unwrap() else { panic!("{what}") };
        tokens.extend_from_slice(part);
        bits.push(common::bits(&logits));
        statistics.push(engine.expert_statistics().since(&before));
    }
    for memory in engine.memory_use() {
        assert!(memory.budget.is_none_or(|budget| memory.peak <= budget), "{what}: {memory:?}");
    }
    (bits, statistics)
}

/// The budget with which the cache has room for `n_slots` experts, as of a plan with room for all.
fn budget_of(used: Bytes, cache: &ExpertCachePlan, n_slots: usize) -> Bytes {
    Bytes(used.0 - cache.size_bytes().0 + cache.slot_bytes.0 * n_slots as u64 + cache.table_bytes.0)
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
                    assert!(all.n_misses <= whole.n_experts as u64 && all.n_hits > 0, "{what}: each is brought once, {all:?}");
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
