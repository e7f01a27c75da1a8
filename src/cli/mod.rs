//! The command line: one subcommand a file. Prints, and decides nothing that a library user would have to decide again.

pub mod args;
pub mod completions;
pub mod locate;
pub mod ls;
pub mod prompt;
pub mod pull;
pub mod short_flags;
pub mod terminal;

use std::ffi::OsString;

use crate::error::Result;
use args::{Cli, Command};

/// Reads the arguments (program name first) and runs the subcommand they name.
///
/// Bad usage and `--help` print and end the process here, with clap's exit codes 2 and 0.
///
/// # Errors
/// What the subcommand failed at; [`crate::error::Error::exit_code`] is the process's.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    match Cli::read(arguments).command {
        Command::Pull(args) => pull::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}
