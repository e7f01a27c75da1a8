//! `tierflow train`: an adapter for a model from a file of records, or the model itself.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use crate::cli::args::{IoArg, TrainArgs, WrittenArg};
use crate::cli::event_file::EventFile;
use crate::cli::locate::locate;
use crate::cli::terminal::{Progress, Visibility, note, print, print_path, progress_bar};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::machine::Measure;
use crate::platform;
use crate::train::{DataSet, GpuUse, StepReport, Trainer, curve_svg};
use crate::units::{Bytes, counted};

/// Names in the folder that is written.
const LOG_NAME: &str = "training.jsonl";
const CURVE_NAME: &str = "loss.svg";
const CHECKPOINTS_NAME: &str = "checkpoints";

/// A line of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    /// A step.
    Step(StepReport),
    /// An evaluation behind a step.
    Evaluation { step: u64, eval_loss: f64 },
}

/// Trains as `args` say. The folder of the adapter or the model goes to stdout, all else to stderr.
///
/// # Errors
/// Those of finding and reading the model and the data; as of [`Trainer::step`]; [`Error::Io`] naming what cannot be written.
pub fn run(args: &TrainArgs) -> Result<()> {
    let source = args.model.source()?;
    let visibility = if args.quiet || args.json { Visibility::Hidden } else { Visibility::Auto };
    platform::start_threads(args.threads.map(|n_threads| n_threads as usize))?;
    std::fs::create_dir_all(&args.out).map_err(|error| Error::io("make", args.out.display(), error))?;
    let model = locate(&source, visibility)?;
    let mut trainer = open(args, &model, visibility)?;
    if args.shape.full {
        trainer.check_folder(&args.out)?;
    }
    let data = DataSet::read(&args.data, trainer.text(), args.data_options())?;
    let eval = args.eval_data.as_ref().map(|path| DataSet::read(path, trainer.text(), args.data_options())).transpose()?;
    trainer.set_epochs(&data, args.epochs, args.steps, args.warmup)?;
    let n_steps = trainer.options().n_steps;
    let checkpoints = args.out.join(CHECKPOINTS_NAME);
    let resumed = args.resume && trainer.resume(&checkpoints)?;
    let n_done = trainer.progress().n_done;
    let mut log = Log::open(&args.out.join(LOG_NAME), if resumed { n_done } else { 0 })?;
    log.events = args.logging_dir.as_ref().map(|folder| EventFile::create(folder, n_done + 1)).transpose()?;
    if !args.quiet {
        note(&introduction(&trainer, &data, resumed));
    }
    let mut shown = Shown::new(visibility, n_steps, n_done);
    let eval_every = args.eval_every.map_or_else(|| trainer.steps_per_epoch(&data), u64::from);
    while let Some(report) = platform::block_on(trainer.step(&data))? {
        let step = report.step;
        shown.step(&report);
        log.write(Line::Step(report), args.json)?;
        if let Some(eval) = eval.as_ref().filter(|_| step % eval_every == 0 || step == n_steps) {
            let eval_loss = platform::block_on(trainer.evaluate(eval))?;
            shown.evaluation(step, eval_loss, args.quiet);
            log.write(Line::Evaluation { step, eval_loss }, args.json)?;
        }
        if args.save_every.is_some_and(|every| step % u64::from(every) == 0) || step == n_steps {
            trainer.save_checkpoint(&checkpoints)?;
            platform::write_atomically(&args.out.join(CURVE_NAME), log.curve().as_bytes())?;
        }
    }
    shown.bar.finish_and_clear();
    if args.shape.full {
        trainer.save_model(&args.out, args.dtype.map(WrittenArg::dtype))?;
    } else {
        trainer.save_adapter(&args.out)?;
    }
    if !args.quiet {
        note(&shown.conclusion(&trainer, &log));
    }
    if args.json { Ok(()) } else { print_path(&args.out) }
}

fn open(args: &TrainArgs, model: &Path, visibility: Visibility) -> Result<Trainer> {
    let mut builder = Engine::builder(model).device(args.device).io(IoArg::mode(args.io)).measure(Measure::Never);
    for (device, budget) in args.max_memory.iter().flat_map(|budgets| budgets.iter()) {
        builder = builder.max_memory(device, budget);
    }
    let bar = Progress::new(visibility);
    let trainer = platform::block_on(Trainer::open(builder, args.options(), &|loaded| bar.update("loading", loaded.done, loaded.total)));
    bar.finish();
    trainer
}

fn introduction(trainer: &Trainer, data: &DataSet, resumed: bool) -> String {
    let adapter = trainer.adapter();
    let n_norms = adapter.layers.iter().filter(|layer| layer.is_norm()).count();
    let (records, n_values) = (counted(data.examples.len(), "record"), adapter.n_values());
    let mut text = if adapter.is_whole {
        format!("{records} train {n_values} values of the model itself, in {}", counted(adapter.layers.len(), "tensor"))
    } else {
        format!("{records} train {n_values} values beside {}", counted(adapter.layers.len() - n_norms, "linear layer"))
    };
    if n_norms > 0 && !adapter.is_whole {
        text.push_str(&format!(" and of {}", counted(n_norms, "norm")));
    }
    if data.n_too_long > 0 {
        text.push_str(&format!("; {} longer than {} tokens left out", counted(data.n_too_long, "record"), trainer.options().seq_len));
    }
    if data.n_truncated > 0 {
        text.push_str(&format!("; {} cut to {} tokens", counted(data.n_truncated, "record"), trainer.options().seq_len));
    }
    if let Some(GpuUse { adapter, resident, streamed, .. }) = trainer.gpu_use() {
        text.push_str(&format!("; {adapter} computes, with {resident} of the weights in its memory"));
        if streamed > Bytes::ZERO {
            text.push_str(&format!(" and {streamed} that stream"));
        }
    }
    if trainer.spills() {
        text.push_str("; what layers have read waits on disk");
    }
    if resumed {
        text.push_str(&format!("; going on behind step {}", trainer.progress().n_done));
    }
    text + "\n"
}

/// What a terminal shows of training.
struct Shown {
    bar: ProgressBar,
    begin: Instant,
    /// Weights that came to what computes.
    streamed: Bytes,
}

impl Shown {
    fn new(visibility: Visibility, n_steps: u64, n_done: u64) -> Shown {
        let bar = progress_bar(visibility, "step {pos}/{len} {wide_bar} {msg} {eta} left", n_steps, n_done);
        bar.reset_eta();
        Shown { bar, begin: Instant::now(), streamed: Bytes::ZERO }
    }

    fn step(&mut self, report: &StepReport) {
        self.streamed += report.streamed_bytes;
        self.bar.set_message(format!("loss {:.4}, {:.1} tokens/s{}", report.loss, report.tokens_per_sec(), self.streamed()));
        self.bar.inc(1);
    }

    /// What has streamed, behind a comma.
    fn streamed(&self) -> String {
        if self.streamed > Bytes::ZERO { format!(", {} streamed", self.streamed) } else { String::new() }
    }

    fn evaluation(&self, step: u64, loss: f64, is_quiet: bool) {
        if !is_quiet {
            self.bar.suspend(|| note(&format!("step {step}: evaluation loss {loss:.4}\n")));
        }
    }

    fn conclusion(&self, trainer: &Trainer, log: &Log) -> String {
        let secs = self.begin.elapsed().as_secs_f64();
        let progress = trainer.progress();
        let mut text = format!("{} in {secs:.1} s", counted(log.n_written, "step"));
        if let Some((_, loss)) = log.losses.last() {
            text.push_str(&format!(", the last with a loss of {loss:.4}"));
        }
        text.push_str(&format!("; {:.1} tokens/s{}", log.n_tokens as f64 / secs.max(1e-9), self.streamed()));
        if progress.n_skipped > 0 {
            text.push_str(&format!("; {} skipped, whose loss was not finite", counted(progress.n_skipped as usize, "step")));
        }
        text + "\n"
    }
}

/// The log, a line for each step and evaluation.
struct Log {
    path: PathBuf,
    file: std::fs::File,
    /// The same for TensorBoard.
    events: Option<EventFile>,
    losses: Vec<(u64, f64)>,
    evaluations: Vec<(u64, f64)>,
    n_written: usize,
    n_tokens: usize,
}

impl Log {
    /// Opens it behind the lines of the first `n_done` steps.
    fn open(path: &Path, n_done: u64) -> Result<Log> {
        let failed = |what: &'static str| move |error| Error::io(what, path.display(), error);
        let former = match std::fs::read(path) {
            Ok(former) if n_done > 0 => former,
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("read")(error)),
            _ => Vec::new(),
        };
        let (mut losses, mut evaluations, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for line in former.split_inclusive(|byte| *byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(Line::Step(report)) if report.step <= n_done => losses.push((report.step, report.loss)),
                Ok(Line::Evaluation { step, eval_loss }) if step <= n_done => evaluations.push((step, eval_loss)),
                _ => break,
            }
            kept.extend_from_slice(line);
        }
        platform::write_atomically(path, &kept)?;
        let file = OpenOptions::new().append(true).open(path).map_err(failed("open"))?;
        Ok(Log { path: path.to_owned(), file, events: None, losses, evaluations, n_written: 0, n_tokens: 0 })
    }

    fn write(&mut self, line: Line, prints: bool) -> Result<()> {
        let text = serde_json::to_string(&line).map_err(|error| Error::internal(error.to_string()))? + "\n";
        self.file.write_all(text.as_bytes()).map_err(|error| Error::io("write", self.path.display(), error))?;
        if let Some(events) = &mut self.events {
            write_event(events, &line)?;
        }
        match line {
            Line::Step(report) => {
                self.losses.push((report.step, report.loss));
                self.n_written += 1;
                self.n_tokens += report.n_tokens;
            }
            Line::Evaluation { step, eval_loss } => self.evaluations.push((step, eval_loss)),
        }
        if prints { print(&text) } else { Ok(()) }
    }

    fn curve(&self) -> String {
        curve_svg(&self.losses, &self.evaluations)
    }
}

/// A line as TensorBoard shows it, under transformers' names.
fn write_event(events: &mut EventFile, line: &Line) -> Result<()> {
    match line {
        Line::Step(report) => events.scalars(
            report.step,
            &[
                ("train/loss", report.loss),
                ("train/grad_norm", report.grad_norm),
                ("train/learning_rate", report.learning_rate),
                ("train/epoch", report.epoch),
                ("train/tokens_per_second", report.tokens_per_sec()),
            ],
        ),
        Line::Evaluation { step, eval_loss } => events.scalars(*step, &[("eval/loss", *eval_loss)]),
    }
}
