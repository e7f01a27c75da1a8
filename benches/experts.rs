//! A model with experts that is larger than the adapter's budget: what a token costs with each way to have its experts, under budgets that
//! have room for 10 to 75 % of them.
//!
//! `cargo bench --bench experts -- MODEL [N_TOKENS [N_ROUNDS [PERCENT,…]]]` (default 24 tokens, 3 rounds and 10,25,50,75; the model is a
//! folder or a .gguf file). The ways of a budget are all open and take turns. In each round all of them read the same tokens, which the
//! host has drawn before at temperature 1 and which no round has twice, so that caches find what they find in an answer that goes on.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tierflow::device::{Device, DeviceChoice};
use tierflow::engine::{Engine, EngineBuilder, TextFiles};
use tierflow::plan::{ExpertCacheRule, ExpertMissRule, HostLayers, PlacementRule, PlanOptions, Workload};
use tierflow::session::GenerateOptions;
use tierflow::stream::{ExpertStatistics, LogitsRequest};
use tierflow::text::{Sampler, SamplingSettings};
use tierflow::units::Bytes;

const GPU: Device = Device::Gpu(0);
const PROMPT: [u32; 8] = [1, 504, 28, 253, 30, 2, 198, 9];
const CONTEXT: usize = 256;

/// A way to have experts.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// What the planner chooses, with the host beside the adapter.
    Auto,
    /// Through the cache, the missing ones uploaded.
    Uploaded,
    /// Through the cache, the missing ones computed by the host.
    ByHost,
    /// Whole layers stream where there is no room for them.
    WholeLayers,
    /// The host computes with all experts, the adapter all else.
    AllOnHost,
}

const WAYS: [(Way, &str); 5] = [
    (Way::Auto, "auto"),
    (Way::Uploaded, "cache, misses uploaded"),
    (Way::ByHost, "cache, misses by the host"),
    (Way::WholeLayers, "whole layers streamed"),
    (Way::AllOnHost, "experts by the host"),
];

fn main() {
    // `cargo bench` adds flags of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let Some(model) = arguments.first().map(PathBuf::from) else {
        println!("experts: name a model: cargo bench --bench experts -- MODEL");
        return;
    };
    let number = |index: usize, default: usize| arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (n_tokens, n_rounds) = (number(1, 24), number(2, 3));
    let percents = arguments.get(3).map_or("10,25,50,75", String::as_str).split(',').filter_map(|text| text.parse().ok());
    let texts = texts(&model, n_tokens, n_rounds + 1);
    println!("{}; decode in t/s at the median of {n_rounds} rounds of {n_tokens} tokens, predicted → measured\n", model.display());
    println!("| experts with room | way | t/s | MiB a token | found | expected | by the host |");
    println!("|---|---|---:|---:|---:|---:|---:|");
    let mut errors = Vec::new();
    for percent in percents {
        errors.extend(compare(&model, percent, &texts));
    }
    errors.sort_by(f64::total_cmp);
    if let (Some(median), Some(worst)) = (errors.get(errors.len() / 2), errors.last()) {
        println!("\nerror of the prediction: {:.0} % at the median, {:.0} % at worst", median * 100.0, worst * 100.0);
    }
}

/// Prints the rows of one budget; returns how far off predictions were.
fn compare(model: &Path, percent: usize, texts: &[Vec<u32>]) -> Vec<f64> {
    let budget = budget(model, percent);
    let mut runs: Vec<(&str, Run)> = WAYS.iter().filter_map(|(way, name)| Some((*name, Run::open(model, *way, budget)?))).collect();
    for (round, text) in texts.iter().enumerate() {
        runs.iter_mut().for_each(|(_, run)| run.decode(text, round > 0));
    }
    let mut errors = Vec::new();
    for (name, run) in &mut runs {
        let (measured, found) = (run.measured(), run.found.hit_rate());
        let of_share = |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.0} %", share * 100.0));
        let moved = run.moved.0 as f64 / f64::from(1 << 20) / run.n_tokens as f64;
        let expected = run.engine.plan().expert_cache(GPU).map(|cache| cache.expected_hit_rate());
        println!(
            "| {percent} %, {budget} | {name} | {:.2} → {measured:.2} | {moved:.1} | {} | {} | {} |",
            run.predicted,
            of_share(found),
            of_share(expected),
            of_share(run.found.host_share())
        );
        errors.push((run.predicted / measured - 1.0).abs());
    }
    errors
}

/// Texts of `n_tokens` that follow each other, drawn on the host.
fn texts(model: &Path, n_tokens: usize, n_texts: usize) -> Vec<Vec<u32>> {
    let builder = builder(model, Way::Auto, Bytes::ZERO).device(DeviceChoice::Cpu);
    let mut engine = pollster::block_on(builder.open()).expect("a model");
    let mut draw = |seed: u64| {
        let sampler = Sampler::new(SamplingSettings { temperature: 1.0, ..SamplingSettings::default() }, seed);
        let options = GenerateOptions { max_tokens: Some(n_tokens), ignore_eos: true, ..GenerateOptions::default() };
        let mut session = engine.session();
        let mut generation = pollster::block_on(session.generate(&PROMPT, sampler, options)).expect("a forward");
        let mut text = Vec::new();
        while let Some(next) = pollster::block_on(generation.next()).expect("a forward") {
            text.push(next.token);
        }
        text
    };
    (0..n_texts as u64).map(&mut draw).collect()
}

/// The smallest budget whose cache has room for `percent` of all experts.
fn budget(model: &Path, percent: usize) -> Bytes {
    let n_slots = |budget: Bytes| {
        let prepared = pollster::block_on(builder(model, Way::Uploaded, budget).prepare()).ok()?;
        prepared.plan.expert_cache(GPU).map(|cache| (cache.n_slots, cache.n_experts))
    };
    let is_enough = |mib: u64| n_slots(Bytes::mib(mib)).is_some_and(|(n_slots, n_experts)| n_slots * 100 >= n_experts * percent);
    let size = pollster::block_on(builder(model, Way::Auto, Bytes::ZERO).device(DeviceChoice::Cpu).prepare()).expect("a model");
    let (mut least, mut most) = (0, size.checkpoint.catalog.size_bytes().0 / (1 << 20) + 512);
    while most - least > 1 {
        let middle = (least + most) / 2;
        if is_enough(middle) { most = middle } else { least = middle }
    }
    Bytes::mib(most)
}

fn builder(model: &Path, way: Way, budget: Bytes) -> EngineBuilder {
    let options = PlanOptions {
        ctx_size: Some(CONTEXT),
        ubatch_size: Some(16),
        placement: if way == Way::AllOnHost { PlacementRule::ExpertsOnHost(HostLayers::First(usize::MAX)) } else { PlacementRule::Auto },
        expert_cache: match way {
            Way::Auto => ExpertCacheRule::Auto,
            Way::Uploaded | Way::ByHost => ExpertCacheRule::Always,
            Way::WholeLayers | Way::AllOnHost => ExpertCacheRule::Never,
        },
        expert_misses: match way {
            Way::Uploaded => ExpertMissRule::Upload,
            Way::ByHost => ExpertMissRule::Host,
            _ => ExpertMissRule::Auto,
        },
        ..PlanOptions::default()
    };
    let device = if way == Way::Auto { DeviceChoice::Auto } else { DeviceChoice::GpuAt(0) };
    Engine::builder(model).text(TextFiles::Skip).plan_options(options).device(device).max_memory(GPU, budget)
}

/// A way that is open.
struct Run {
    engine: Engine,
    /// Tokens per second.
    predicted: f64,
    /// Of each round.
    measured: Vec<f64>,
    /// Of all rounds.
    n_tokens: usize,
    moved: Bytes,
    found: ExpertStatistics,
}

impl Run {
    /// `None` where the budget is too small for it.
    fn open(model: &Path, way: Way, budget: Bytes) -> Option<Run> {
        let engine = pollster::block_on(builder(model, way, budget).open()).ok()?;
        let predicted = engine.prepared().predict(Workload::decode(PROMPT.len() + 16)).tokens_per_sec();
        Some(Run { engine, predicted, measured: vec![], n_tokens: 0, moved: Bytes::ZERO, found: ExpertStatistics::default() })
    }

    /// Reads `text` token by token; the first one, where kernels are compiled and memory is touched, does not count.
    fn decode(&mut self, text: &[u32], counts: bool) {
        let mut session = self.engine.session();
        pollster::block_on(session.append(&PROMPT, LogitsRequest::TopK(1))).expect("a forward");
        session.engine().trace().clear();
        let before = session.engine().expert_statistics();
        let begin = Instant::now();
        for token in text {
            pollster::block_on(session.append(&[*token], LogitsRequest::TopK(1))).expect("a forward");
        }
        let secs = begin.elapsed().as_secs_f64();
        if counts {
            self.measured.push(text.len() as f64 / secs);
            self.n_tokens += text.len();
            self.moved += self.engine.trace().summary().uploaded;
            self.found = [self.found, self.engine.expert_statistics().since(&before)].into_iter().sum();
        }
    }

    /// Tokens per second at the median.
    fn measured(&mut self) -> f64 {
        self.measured.sort_by(f64::total_cmp);
        self.measured.get(self.measured.len() / 2).copied().unwrap_or(0.0)
    }
}
