//! `tierflow bench`: prefill and decode rates, as llama-bench measures and names them, with the bytes that bound them.

mod drafts;
mod report;

use std::path::PathBuf;
use std::time::Instant;

use crate::cli::args::{BenchArgs, BenchOutput, GpuLayers, PlacementArgs, PlacementLists, TestArgs};
use crate::cli::locate::locate;
use crate::cli::model::{Placement, load_with_draft, prepare_with_draft, warn_of_vain_drafts};
use crate::cli::plan_text::note_plan;
use crate::cli::statistics::LayerExperts;
use crate::cli::terminal::Visibility;
use crate::cli::{expert_profile, trace_file};
use crate::engine::{Engine, EngineBuilder, Prepared, TextFiles};
use crate::error::{Error, Result};
use crate::plan::{Forwards, Plan, PlanOptions};
use crate::platform;
use crate::session::DraftSource;
use crate::stream::{Batch, BatchToken, LogitsRequest, TraceSummary};
use report::{Report, Row};

/// What one row is about, in tokens of each sequence; prompt and generated tokens are not both zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Test {
    n_prompt: u32,
    n_gen: u32,
    /// Tokens that are in the context beforehand.
    n_depth: u32,
}

impl Test {
    /// llama-bench's name for it, and the number of sequences where they are several.
    fn name(self, n_seqs: usize) -> String {
        let mut name = match self {
            Test { n_gen: 0, n_prompt, .. } => format!("pp{n_prompt}"),
            Test { n_prompt: 0, n_gen, .. } => format!("tg{n_gen}"),
            Test { n_prompt, n_gen, .. } => format!("pp{n_prompt}+tg{n_gen}"),
        };
        if self.n_depth > 0 {
            name.push_str(&format!(" @ d{}", self.n_depth));
        }
        if n_seqs > 1 {
            name.push_str(&format!(" × {n_seqs}"));
        }
        name
    }

    /// Positions of the context of each sequence that it fills.
    fn n_positions(self) -> u32 {
        [self.n_depth, self.n_prompt, self.n_gen].into_iter().fold(0, u32::saturating_add)
    }

    /// Tokens of each sequence that are measured.
    fn n_tokens(self) -> u32 {
        self.n_prompt.saturating_add(self.n_gen)
    }

    /// The forwards of its prompts and of its generated tokens, by `plan`.
    fn forwards(self, plan: &Plan) -> [Forwards; 2] {
        let [n_depth, n_prompt, n_gen] = [self.n_depth, self.n_prompt, self.n_gen].map(|n_tokens| n_tokens as usize);
        let prompt = Forwards::of_prompt(n_depth, n_prompt, n_tokens_each(plan));
        [prompt, Forwards::of_answer(n_depth + n_prompt, n_gen)].map(|forwards| forwards.side_by_side(plan.n_seqs))
    }
}

/// What an engine is planned with, of the options that are lists.
#[derive(Debug, Clone, Copy)]
struct Choice {
    n_gpu_layers: GpuLayers,
    /// `None` for one sequence, or as many as a plan from a file is for.
    n_seqs: Option<u32>,
    batch_size: Option<u32>,
    ubatch_size: Option<u32>,
}

/// What was measured of one test.
struct Measured {
    test: Test,
    n_threads: usize,
    n_gpu_layers: GpuLayers,
    /// Seconds of each repetition.
    secs: Vec<f64>,
    /// What moved and computed during the last one.
    traced: TraceSummary,
    /// What expert caches were asked for during the last one, by each layer.
    experts: Vec<LayerExperts>,
    /// The same test with drafts, where tokens are generated and drafts asked for.
    drafted: Option<drafts::Measured>,
}

/// Measures and prints.
///
/// # Errors
/// [`Error::InvalidArgument`] where there is nothing to measure, or the context that is asked for is too small for it; those of
/// the engine.
pub fn run(args: &BenchArgs) -> Result<()> {
    let tests = tests(&args.tests)?;
    args.trace.as_deref().map_or(Ok(()), platform::check_folder)?;
    let plans = Plans::of(args, &tests)?;
    // All is planned before anything is loaded.
    let prepared = plans.choices().into_iter().map(|choice| Ok((choice, plans.prepare(choice)?))).collect::<Result<Vec<_>>>()?;
    let speculation = args.placement.drafts.speculation();
    let threads = thread_counts(&args.lists.threads);
    let output = if args.json { BenchOutput::Json } else { args.output };
    let mut report = Report::new(output, args, prepared.iter().map(|(_, prepared)| &prepared.plan));
    for (choice, prepared) in prepared {
        let (prepared, draft) = plans.with_draft(choice, prepared)?;
        note_plan(&prepared.summary());
        warn_of_vain_drafts(&prepared, &speculation);
        let mut engine = load_with_draft(prepared, draft, Visibility::Auto)?;
        if args.trace.is_some() {
            engine.trace().keep_many();
        }
        for &n_threads in &threads {
            for &test in &tests {
                let mut measured = || -> Result<_> {
                    let plain = measure(&mut engine, test, args.tests.repetitions)?;
                    let has_drafts = speculation.source != DraftSource::None && test.n_gen > 0;
                    let drafted = has_drafts.then(|| drafts::measure(&mut engine, test, args.tests.repetitions, speculation));
                    Ok((plain, drafted.transpose()?))
                };
                // Threads are started once; a list of numbers needs further ones.
                let measured = if threads.len() > 1 { platform::among_n_threads(n_threads, measured)? } else { measured() };
                let ((secs, traced, experts), drafted) = measured?;
                let n_gpu_layers = choice.n_gpu_layers;
                report.add(Row::new(&engine, &Measured { test, n_threads, n_gpu_layers, secs, traced, experts, drafted }))?;
            }
        }
        report.add_memory(engine.memory_use());
        if let Some(file) = &args.trace {
            trace_file::write(file, &engine)?;
        }
        if let Some(file) = &args.placement.expert_profile {
            expert_profile::write(file, engine.expert_profile().as_ref())?;
        }
    }
    report.finish()
}

/// The tests in llama-bench's order: at each depth the prompts, the generations, and both in turn.
fn tests(args: &TestArgs) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for &n_depth in &args.n_depth {
        tests.extend(args.n_prompt.iter().map(|&n_prompt| Test { n_prompt, n_gen: 0, n_depth }));
        tests.extend(args.n_gen.iter().map(|&n_gen| Test { n_prompt: 0, n_gen, n_depth }));
        tests.extend(args.pg.iter().map(|pair| Test { n_prompt: pair.n_prompt, n_gen: pair.n_gen, n_depth }));
    }
    tests.retain(|test| test.n_tokens() > 0);
    if tests.is_empty() {
        let reason = "and --n-gen are both 0; there is nothing to measure".into();
        return Err(Error::InvalidArgument { option: "--n-prompt".into(), reason });
    }
    Ok(tests)
}

/// How the model is planned, for every number of layers and every size of batches that is asked for, each time with room for all tests.
struct Plans<'a> {
    args: &'a BenchArgs,
    placement: PlacementArgs,
    path: PathBuf,
    longest: Test,
}

impl<'a> Plans<'a> {
    fn of(args: &'a BenchArgs, tests: &[Test]) -> Result<Plans<'a>> {
        let mut placement = PlacementArgs { threads: args.lists.threads.iter().copied().max(), ..args.placement.clone() };
        let longest = tests.iter().max_by_key(|test| test.n_positions()).copied();
        let longest = longest.ok_or_else(|| Error::internal("there is nothing to measure"))?;
        match placement.ctx_size {
            0 => placement.ctx_size = longest.n_positions().checked_next_multiple_of(64).unwrap_or(longest.n_positions()),
            // A plan from a file has a context of its own.
            _ if placement.plan.is_some() => {}
            asked => check_context(longest, "--ctx-size", asked as usize)?,
        }
        let source = args.model.source()?;
        Placement::of(&placement, PlanOptions::default())?;
        let path = locate(&source, Visibility::Auto)?;
        Ok(Plans { args, placement, path, longest })
    }

    /// A plan from a file is the only one.
    fn choices(&self) -> Vec<Choice> {
        match &self.placement.plan {
            Some(_) => vec![Choice { n_gpu_layers: GpuLayers::Auto, n_seqs: None, batch_size: None, ubatch_size: None }],
            None => choices(&self.args.lists),
        }
    }

    fn builder(&self, choice: Choice) -> Result<EngineBuilder> {
        let Choice { n_gpu_layers, n_seqs, batch_size, ubatch_size } = choice;
        let placement = PlacementArgs { n_gpu_layers, n_seqs, batch_size, ubatch_size, ..self.placement.clone() };
        let placed = Placement::of(&placement, PlanOptions::default())?;
        let placed = if n_seqs > Some(1) { placed.of_many_sequences() } else { placed.of_one_sequence() };
        // Two models need the same vocabulary; one is measured without its texts.
        let text = if self.placement.drafts.model_draft.is_some() { TextFiles::Read } else { TextFiles::Skip };
        Ok(placed.builder(&self.path)?.text(text))
    }

    fn prepare(&self, choice: Choice) -> Result<Prepared> {
        let prepared = pollster::block_on(self.builder(choice)?.prepare())?;
        if self.placement.plan.is_some() {
            check_context(self.longest, "--plan", prepared.plan.ctx_size)?;
        }
        if prepared.plan.n_seqs > 1 && self.placement.drafts.speculation().source != DraftSource::None {
            let reason = "drafts are measured with one sequence; leave out --spec-type and --model-draft, or further sequences".into();
            return Err(Error::InvalidArgument { option: "--n-seqs".into(), reason });
        }
        Ok(prepared)
    }

    /// The plan beside the model that drafts, where there is one, which is loaded by then.
    fn with_draft(&self, choice: Choice, prepared: Prepared) -> Result<(Prepared, Option<Engine>)> {
        match self.placement.drafts.model_draft {
            Some(_) => prepare_with_draft(&self.placement, Visibility::Auto, || self.builder(choice)),
            None => Ok((prepared, None)),
        }
    }
}

/// Refuses a context, given by `option`, that is too small for a test.
fn check_context(longest: Test, option: &str, ctx_size: usize) -> Result<()> {
    let n_positions = longest.n_positions();
    if ctx_size >= n_positions as usize {
        return Ok(());
    }
    let reason = format!("a context of {ctx_size} is less than the {n_positions} positions that {} fills", longest.name(1));
    Err(Error::InvalidArgument { option: option.into(), reason })
}

/// Every combination of the lists.
fn choices(lists: &PlacementLists) -> Vec<Choice> {
    let each =
        |sizes: &[u32]| -> Vec<Option<u32>> { if sizes.is_empty() { vec![None] } else { sizes.iter().copied().map(Some).collect() } };
    let (batch_sizes, ubatch_sizes) = (each(&lists.batch_size), each(&lists.ubatch_size));
    let mut choices = Vec::new();
    for &n_gpu_layers in &lists.n_gpu_layers {
        for n_seqs in each(&lists.n_seqs) {
            for &batch_size in &batch_sizes {
                choices.extend(ubatch_sizes.iter().map(|&ubatch_size| Choice { n_gpu_layers, n_seqs, batch_size, ubatch_size }));
            }
        }
    }
    choices
}

/// How many threads compute in each pass, never more than can run at once.
fn thread_counts(asked: &[u32]) -> Vec<usize> {
    let most = platform::n_threads();
    let counts = asked.iter().map(|&n_threads| if n_threads == 0 { most } else { most.min(n_threads as usize) });
    let mut counts: Vec<usize> = if asked.is_empty() { vec![most] } else { counts.collect() };
    counts.dedup();
    counts
}

/// Seconds of each of `n_runs` runs of `test`, after one that warms up, and what moved and computed during the last.
fn measure(engine: &mut Engine, test: Test, n_runs: u32) -> Result<(Vec<f64>, TraceSummary, Vec<LayerExperts>)> {
    let (mut secs, mut traced, mut experts) = (Vec::new(), TraceSummary::default(), Vec::new());
    let [before, prompt, generated] = [test.n_depth, test.n_prompt, test.n_gen].map(|n_tokens| some_tokens(engine, n_tokens));
    for run in 0..=n_runs {
        append(engine, 0, &before)?;
        engine.trace().clear();
        let experts_before = LayerExperts::of(engine);
        let begin = Instant::now();
        append(engine, test.n_depth, &prompt)?;
        for (position, token) in (test.n_depth + test.n_prompt..).zip(&generated) {
            append(engine, position, std::slice::from_ref(token))?;
        }
        if run > 0 {
            secs.push(begin.elapsed().as_secs_f64());
        }
        traced = engine.trace().summary();
        experts = LayerExperts::since(engine, &experts_before).0;
    }
    Ok((secs, traced, experts))
}

/// So many tokens of the model, always the same ones.
fn some_tokens(engine: &Engine, n_tokens: u32) -> Vec<u32> {
    let vocab_size = engine.config().vocab_size as u32;
    (0..n_tokens).map(|index| (index.wrapping_mul(7919).wrapping_add(13)) % vocab_size).collect()
}

/// Most tokens of each sequence in one forward by `plan`.
fn n_tokens_each(plan: &Plan) -> usize {
    (plan.forward.n_tokens / plan.n_seqs.max(1)).max(1)
}

/// Appends `tokens` to every sequence of the plan, from position `first` on, side by side.
fn append(engine: &mut Engine, first: u32, tokens: &[u32]) -> Result<()> {
    let (n_seqs, n_tokens_each) = (engine.plan().n_seqs as u32, n_tokens_each(engine.plan()));
    for (part, first) in tokens.chunks(n_tokens_each).zip((first..).step_by(n_tokens_each)) {
        let of_sequence = |sequence| (first..).zip(part).map(move |(position, &token)| BatchToken { token, sequence, position });
        let batch = Batch {
            tokens: (0..n_seqs).flat_map(of_sequence).collect(),
            logits_for: (1..=n_seqs).map(|end| end * part.len() as u32 - 1).collect(),
            logits_request: LogitsRequest::TopK(1),
        };
        pollster::block_on(engine.forward(&batch))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(n_prompt: u32, n_gen: u32, n_depth: u32) -> Test {
        Test { n_prompt, n_gen, n_depth }
    }

    #[test]
    fn tests_are_named_as_llama_bench_names_them() {
        for (test, name, n_positions) in [
            (test(512, 0, 0), "pp512", 512),
            (test(0, 128, 0), "tg128", 128),
            (test(16, 4, 0), "pp16+tg4", 20),
            (test(0, 8, 64), "tg8 @ d64", 72),
        ] {
            assert_eq!((test.name(1).as_str(), test.n_positions()), (name, n_positions));
        }
        assert_eq!(test(0, 8, 64).name(32), "tg8 @ d64 × 32");
    }

    #[test]
    fn tests_are_every_length_at_every_depth() {
        let args = |n_prompt: &[u32], n_gen: &[u32], n_depth: &[u32]| TestArgs {
            n_prompt: n_prompt.into(),
            n_gen: n_gen.into(),
            pg: vec!["3,2".parse().unwrap()],
            n_depth: n_depth.into(),
            repetitions: 1,
        };
        let all = tests(&args(&[8, 0, 16], &[4], &[0, 9])).unwrap();
        let names: Vec<String> = all.into_iter().map(|test| test.name(1)).collect();
        assert_eq!(names, ["pp8", "pp16", "tg4", "pp3+tg2", "pp8 @ d9", "pp16 @ d9", "tg4 @ d9", "pp3+tg2 @ d9"]);
        let nothing = TestArgs { pg: vec![], ..args(&[0], &[0], &[5]) };
        assert_eq!(tests(&nothing).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn lists_are_measured_in_every_combination() {
        let lists = |batch_size: &[u32], ubatch_size: &[u32]| PlacementLists {
            threads: vec![],
            n_gpu_layers: vec![GpuLayers::Auto, GpuLayers::Count(3)],
            n_seqs: vec![],
            batch_size: batch_size.into(),
            ubatch_size: ubatch_size.into(),
        };
        let sizes = |lists: &PlacementLists| choices(lists).iter().map(|it| (it.batch_size, it.ubatch_size)).collect::<Vec<_>>();
        assert_eq!(sizes(&lists(&[], &[])), [(None, None); 2]);
        let of_one = [(Some(8), Some(4)), (Some(8), Some(2)), (Some(16), Some(4)), (Some(16), Some(2))];
        assert_eq!(sizes(&lists(&[8, 16], &[4, 2])), [of_one, of_one].concat());
        let side_by_side = choices(&PlacementLists { n_seqs: vec![1, 8], ..lists(&[], &[]) });
        assert_eq!(side_by_side.iter().map(|it| it.n_seqs).collect::<Vec<_>>(), [Some(1), Some(8), Some(1), Some(8)]);
    }

    #[test]
    fn no_more_threads_compute_than_run_at_once() {
        let most = platform::n_threads();
        assert_eq!(thread_counts(&[]), [most]);
        assert_eq!(thread_counts(&[0]), [most]);
        assert_eq!(thread_counts(&[u32::MAX, 0]), [most]);
        assert_eq!(thread_counts(&[1])[0], 1);
    }
}
