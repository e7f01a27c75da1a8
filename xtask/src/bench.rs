//! `cargo xtask bench --peers`: tierflow beside llama.cpp and Accelerate, in one run on this machine.
//!
//! The contestants of a case take turns, in an order that rotates from round to round, so that whatever else the machine
//! does falls on all of them; the figures are medians over the rounds. A program that cannot be installed or fails is
//! left out, and the report says so.

mod cases;
mod chart;
mod contest;
mod peer;
mod report;
mod weights;

use std::path::{Path, PathBuf};

use crate::machine;
use crate::steps::{self, Failure, Result, announce};
use contest::{Case, Field};
use peer::{Environments, Program};
use report::Report;

/// What the command line may say.
struct Options {
    rounds: usize,
    threads: usize,
    only: Option<String>,
    json: Option<PathBuf>,
    llama_venv: Option<PathBuf>,
    accelerate_venv: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Options> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut options = Options { rounds: 3, threads, only: None, json: None, llama_venv: None, accelerate_venv: None };
        let mut words = arguments.iter();
        let mut has_peers = false;
        while let Some(word) = words.next() {
            if word == "--peers" {
                has_peers = true;
                continue;
            }
            let value = words.next().ok_or_else(|| Failure::new(format!("{word} needs a value, or is no option of bench")))?;
            let number =
                || value.parse().ok().filter(|number| *number > 0).ok_or_else(|| Failure::new(format!("{word} {value}: a number above 0")));
            match word.as_str() {
                "--rounds" => options.rounds = number()?,
                "--threads" => options.threads = number()?,
                "--only" => options.only = Some(value.clone()),
                "--json" => options.json = Some(value.into()),
                "--llama-venv" => options.llama_venv = Some(value.into()),
                "--accelerate-venv" => options.accelerate_venv = Some(value.into()),
                _ => return Err(Failure::new(format!("bench has no option {word}"))),
            }
        }
        if has_peers {
            Ok(options)
        } else {
            Err(Failure::new("bench compares with other programs: say --peers; `cargo bench` measures tierflow alone"))
        }
    }
}

/// Measures every case and prints the report; see the usage of `cargo xtask`.
///
/// # Errors
/// Where the arguments are wrong, tierflow does not build, or the report cannot be written.
pub fn run(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    // Before anything of its own loads the machine.
    let mut report = Report::new(options.rounds, options.threads);
    if let Err(failure) = machine::ensure_adapter() {
        eprintln!("no adapter: {}", failure.text);
    }
    steps::run(&mut steps::cargo(&["build", "--release"]))?;
    let environments = Environments::prepare(
        [(Program::LlamaCpp, options.llama_venv.as_deref()), (Program::Accelerate, options.accelerate_venv.as_deref())],
        &mut report,
    );
    let field = Field::survey(environments, options.threads, &mut report)?;
    let weights = weights::prepare(&field, &mut report)?;
    let (chosen, others): (Vec<Case>, Vec<Case>) = cases::all(&field, &weights)
        .into_iter()
        .partition(|case| options.only.as_ref().is_none_or(|only| case.title().contains(only.as_str())));
    if let Some(only) = options.only.as_ref().filter(|_| chosen.is_empty()) {
        let titles: Vec<String> = others.iter().map(Case::title).collect();
        return Err(Failure::new(format!("--only {only}: no case has this in its name; there are\n  {}", titles.join("\n  "))));
    }
    for case in chosen {
        announce(&case.title());
        contest::run(case, &field, options.rounds, &mut report);
    }
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", report.to_json());
        std::fs::write(path, text).map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))?;
    }
    print!("{}", report.markdown());
    Ok(())
}

/// Draws the chart of a report that `--json` wrote.
///
/// # Errors
/// Where a file cannot be read or written, or is no such report.
pub fn draw(json: &Path, out: &Path) -> Result<()> {
    let text = std::fs::read(json).map_err(|error| Failure::new(format!("cannot read {}: {error}", json.display())))?;
    let value = serde_json::from_slice(&text).map_err(|error| Failure::new(format!("{}: {error}", json.display())))?;
    let rows = report::rows_of(&value).ok_or_else(|| Failure::new(format!("{} is no report of `bench --peers`", json.display())))?;
    std::fs::write(out, chart::svg(&rows)).map_err(|error| Failure::new(format!("cannot write {}: {error}", out.display())))
}
