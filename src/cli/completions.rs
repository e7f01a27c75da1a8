//! `tierflow completions`: a script that completes the command line in a shell.

use clap::CommandFactory;

use crate::cli::args::{Cli, CompletionsArgs};
use crate::cli::terminal::print;
use crate::error::Result;

/// Prints the script for the shell that `args` name.
///
/// # Errors
/// [`crate::error::Error::Io`] where stdout cannot be written.
pub fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tierflow", &mut script);
    print(&String::from_utf8_lossy(&script))
}
