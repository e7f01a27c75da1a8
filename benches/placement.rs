//! Predicted against measured: the decode rate of several placements of one model, under budgets from 10 % to 120 % of it.
//!
//! `cargo bench --bench placement -- MODEL [N_TOKENS [N_ROUNDS]]` (default 16 tokens and 5 rounds; the model is a folder or a
//! .gguf file). The placements of a budget are all open and take turns, so that a noisy machine disturbs them alike; medians
//! of single tokens.
//!
//! `cargo bench --bench placement -- MODEL changing-load`: ten runs of the program on each of three placements while other work comes
//! and goes, with rates that are measured at the first of them.

#[path = "placement/changing_load.rs"]
mod changing_load;

use std::path::PathBuf;
use std::time::Instant;

use tierflow::accelerate::DeviceMapMode;
use tierflow::device::{Device, DeviceChoice};
use tierflow::engine::{Engine, EngineBuilder, TextFiles};
use tierflow::plan::{PlacementRule, PlanOptions, ResidentLayers, Workload};
use tierflow::stream::{Logits, LogitsRequest};
use tierflow::units::Bytes;

const GPU: Device = Device::Gpu(0);
/// Budgets as shares of the model's bytes.
const SHARES: [f64; 8] = [0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.2];
const PROMPT: [u32; 8] = [1, 504, 28, 253, 30, 2, 198, 9];

/// A way to place a model.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Auto,
    Sequential,
    AllOnCpu,
    AllStreamed,
}

const WAYS: [(Way, &str); 4] =
    [(Way::Auto, "auto"), (Way::Sequential, "sequential"), (Way::AllOnCpu, "all on cpu"), (Way::AllStreamed, "all streamed")];

fn main() {
    // `cargo bench` adds flags of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let Some(model) = arguments.first().map(PathBuf::from) else {
        println!("placement: name a model: cargo bench --bench placement -- MODEL");
        return;
    };
    if arguments.get(1).is_some_and(|mode| mode == "changing-load") {
        return changing_load::run(&model);
    }
    let number = |index: usize, default: usize| arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (n_tokens, n_rounds) = (number(1, 16), number(2, 5));
    let size = pollster::block_on(builder(&model, Way::AllOnCpu, Bytes::ZERO).prepare()).expect("a model").checkpoint.catalog.size_bytes();
    println!("{}: {size}; decode in t/s, predicted → measured\n", model.display());
    println!("| budget of gpu:0 | {} | auto / best other |", WAYS.map(|(_, name)| name).join(" | "));
    println!("|---|{}---|", "---|".repeat(WAYS.len()));
    let mut errors = Vec::new();
    for share in SHARES {
        let budget = Bytes((size.0 as f64 * share) as u64);
        let mut runs = WAYS.map(|(way, _)| Run::open(&model, way, budget, n_tokens));
        for _ in 0..n_rounds {
            runs.iter_mut().flatten().for_each(|run| run.decode(n_tokens));
        }
        let rates = runs.map(|run| run.map(|run| (run.predicted, run.measured())));
        errors.extend(rates.iter().flatten().map(|(predicted, measured)| (predicted / measured - 1.0).abs()));
        let cells =
            rates.iter().map(|rates| rates.map_or("refused".into(), |(predicted, measured)| format!("{predicted:.2} → {measured:.2}")));
        let others = rates[1..].iter().flatten().map(|(_, measured)| *measured).fold(0.0, f64::max);
        let auto = rates[0].map_or(0.0, |(_, measured)| measured / others);
        println!("| {budget} ({:.0} %) | {} | {auto:.2} |", share * 100.0, cells.collect::<Vec<_>>().join(" | "));
    }
    errors.sort_by(f64::total_cmp);
    if let (Some(median), Some(worst)) = (errors.get(errors.len() / 2), errors.last()) {
        println!("\nerror of the prediction: {:.0} % at the median, {:.0} % at worst", median * 100.0, worst * 100.0);
    }
}

fn builder(model: &PathBuf, way: Way, budget: Bytes) -> EngineBuilder {
    let options = PlanOptions {
        ctx_size: Some(64),
        ubatch_size: Some(16),
        placement: if way == Way::Sequential { PlacementRule::Accelerate(DeviceMapMode::Sequential) } else { PlacementRule::Auto },
        resident_layers: if way == Way::AllStreamed { ResidentLayers::AtMost(0) } else { ResidentLayers::Auto },
        ..PlanOptions::default()
    };
    let builder = Engine::builder(model).text(TextFiles::Skip).plan_options(options);
    match way {
        Way::AllOnCpu => builder.device(DeviceChoice::Cpu),
        Way::AllStreamed => builder.device(DeviceChoice::GpuAt(0)).max_memory(GPU, budget),
        Way::Auto | Way::Sequential => builder.device(DeviceChoice::Auto).max_memory(GPU, budget),
    }
}

/// A placement that is open.
struct Run {
    engine: Engine,
    /// Tokens per second.
    predicted: f64,
    /// Of each token.
    secs: Vec<f64>,
}

impl Run {
    /// `None` where the budget is too small for any plan.
    fn open(model: &PathBuf, way: Way, budget: Bytes, n_tokens: usize) -> Option<Run> {
        let mut engine = pollster::block_on(builder(model, way, budget).open()).ok()?;
        let predicted = engine.prepared().predict(Workload::decode(PROMPT.len() + n_tokens / 2)).tokens_per_sec();
        // The first forwards compile kernels and touch memory.
        pollster::block_on(engine.session().append(&PROMPT, LogitsRequest::TopK(1))).expect("a forward");
        Some(Run { engine, predicted, secs: Vec::new() })
    }

    fn decode(&mut self, n_tokens: usize) {
        let mut session = self.engine.session();
        let mut logits = pollster::block_on(session.append(&PROMPT, LogitsRequest::TopK(1))).expect("a forward");
        for _ in 0..n_tokens {
            let Logits::Top(best) = &logits else { unreachable!("the best was asked for") };
            let begin = Instant::now();
            logits = pollster::block_on(session.append(&[best[0].0], LogitsRequest::TopK(1))).expect("a forward");
            self.secs.push(begin.elapsed().as_secs_f64());
        }
    }

    /// Tokens per second at the median.
    fn measured(mut self) -> f64 {
        self.secs.sort_by(f64::total_cmp);
        1.0 / self.secs[self.secs.len() / 2]
    }
}
