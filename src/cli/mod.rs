//! The command line: one subcommand a file. Prints, and decides nothing that a library user would have to decide again.

pub mod args;
mod bench;
mod chat;
mod completions;
mod devices;
mod doctor;
mod inspect;
mod locate;
mod logging;
mod logits;
mod ls;
mod model;
mod plan;
mod prompt;
mod pull;
mod run;
pub mod short_flags;
mod statistics;
mod terminal;
mod trace_file;

use std::ffi::OsString;

use crate::error::Result;
use args::{Cli, Command};
use logging::Verbosity;

/// Reads the arguments (program name first) and runs the subcommand they name.
///
/// Bad usage and `--help` print and end the process here, with clap's exit codes 2 and 0.
///
/// # Errors
/// What the subcommand failed at; [`crate::error::Error::exit_code`] is the process's.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    let command = Cli::read(arguments).command;
    logging::install(match &command {
        Command::Run(args) if args.quiet => Verbosity::Quiet,
        Command::Run(args) if args.verbose => Verbosity::Verbose,
        _ => Verbosity::Normal,
    });
    match command {
        Command::Run(args) => run::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}
