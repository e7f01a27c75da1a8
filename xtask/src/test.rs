//! `cargo xtask test`: everything that must hold before a change is kept.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::steps::{self, Outcome, Result, announce};
use crate::{clients, kit, library, machine, model, python, web};

/// Runs the steps in order, fast ones first; the first that fails ends it with its exit code.
pub fn run() -> Result<()> {
    let mut summary = Summary::default();
    let outcome = run_steps(&mut summary);
    summary.print();
    outcome
}

fn run_steps(summary: &mut Summary) -> Result<()> {
    summary.time("format", || steps::run(&mut steps::cargo(&["fmt", "--all", "--check"])))?;
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    summary.time("clippy", || steps::run(&mut steps::cargo(&clippy)))?;
    let mut doc = steps::cargo(&["doc", "--release", "--workspace", "--no-deps"]);
    summary.time("docs", || steps::run(doc.env("RUSTDOCFLAGS", "-D warnings")))?;
    summary.time("library", library::check)?;
    summary.time("adapter", machine::ensure_adapter)?;
    let model = summary.time("model", model::ensure)?;
    summary.time("tests", || steps::run(&mut tests(&model)))?;
    summary.time("clients", || clients::check(&model))?;
    summary.time("python", || python::check(&model))?;
    summary.time_if_possible("gpu-kit", kit::rehearse)?;
    summary.time("web", web::check)?;
    summary.time_if_possible("browser", web::check_in_browser)
}

/// All tests, none of which may pass for want of an adapter or the model.
fn tests(model: &Path) -> Command {
    let mut command = steps::cargo(&["test", "--release", "--workspace"]);
    command.env("REQUIRE_GPU", "1").env("TIERFLOW_SMOLLM2", model);
    // What tests measure while they load the machine must not stay with the user.
    command.env("TIERFLOW_CACHE", steps::root().join("target/test-cache"));
    machine::ensure_runtime_folder(&mut command);
    command
}

/// Steps that have ended, with their times.
#[derive(Default)]
struct Summary(Vec<(&'static str, Duration, &'static str)>);

impl Summary {
    fn time<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        self.time_as(name, step, |_| "passed")
    }

    /// As [`Summary::time`], for a step that may leave itself out.
    fn time_if_possible(&mut self, name: &'static str, step: impl FnOnce() -> Result<Outcome>) -> Result<()> {
        let word = |outcome: &Outcome| if *outcome == Outcome::Passed { "passed" } else { "LEFT OUT" };
        self.time_as(name, step, word).map(|_| ())
    }

    fn time_as<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>, word: impl FnOnce(&T) -> &'static str) -> Result<T> {
        let start = Instant::now();
        let outcome = step();
        self.0.push((name, start.elapsed(), outcome.as_ref().map_or("FAILED", word)));
        outcome
    }

    fn print(&self) {
        announce("summary");
        for (name, time, outcome) in &self.0 {
            eprintln!("{name:10} {outcome:8} {:8.1} s", time.as_secs_f64());
        }
    }
}
