//! The command line: one subcommand a file. Prints, and decides nothing that a library user would have to decide again.

pub mod args;
mod batch;
mod bench;
mod chat;
mod completions;
mod config;
mod convert;
mod ctrl_c;
mod devices;
mod doctor;
mod embed;
mod event_file;
mod expert_profile;
pub mod familiar;
mod form;
mod inspect;
mod launch;
mod locate;
mod logging;
mod logits;
mod ls;
mod model;
mod output;
mod plan;
mod plan_text;
mod prompt;
mod pull;
mod run;
mod serve;
mod serve_many;
mod similar;
mod statistics;
mod terminal;
mod tokenize;
mod trace_file;
mod train;
mod words;
mod wrap;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::Result;
use crate::platform::{choose_cache_folder, guard_maps};
use args::{Cli, Command, Read, blame_variable};
use config::ConfigFile;
use logging::Verbosity;
use terminal::note;
pub use terminal::tell_error;

/// Reads the arguments (program name first) and runs the subcommand they name.
///
/// Bad usage and `--help` print and end the process here, with clap's exit codes 2 and 0.
///
/// # Errors
/// What is wrong with the config file, or what the subcommand failed at; [`crate::error::Error::exit_code`] is the process's.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(rest) = launch::arguments(&arguments) {
        return launch::run(rest);
    }
    let file = ConfigFile::load();
    let Read { command, verb, matches, notes } = Cli::read(arguments, file.as_ref().map_or(&BTreeMap::new(), ConfigFile::values));
    let verbosity = match &command {
        Command::Run(args) if args.quiet => Verbosity::Quiet,
        Command::Serve(args) if args.quiet => Verbosity::Quiet,
        Command::Batch(args) if args.quiet => Verbosity::Quiet,
        Command::Train(args) if args.quiet => Verbosity::Quiet,
        Command::Run(args) if args.verbose => Verbosity::Verbose,
        _ => Verbosity::Normal,
    };
    logging::install(verbosity);
    guard_maps(" (or use --io pread)");
    if verbosity != Verbosity::Quiet {
        notes.iter().for_each(|line| note(&format!("{line}\n")));
    }
    if let Ok(file) = &file {
        file.log_read_error();
    }
    // `config` is the one command that works on a file that is broken or not there.
    let file = if matches!(command, Command::Config(_)) { file } else { Ok(file?.demand()?) };
    if let Ok(Some(folder)) = matches.try_get_one::<PathBuf>("cache_dir") {
        choose_cache_folder(folder.clone());
    }
    let outcome = match command {
        Command::Run(args) => run::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Batch(args) => batch::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Launch(args) => launch::run(&args.arguments),
        Command::Doctor(args) => doctor::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Config(args) => config::run(&args, file, &matches),
        Command::Completions(args) => completions::run(&args),
    };
    outcome.map_err(|error| blame_variable(error, &verb, &matches))
}
