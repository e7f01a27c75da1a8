//! Another program in place of this one.

use std::io;
use std::process::Command;

/// Runs `command` with this program's input, output and signals; comes back only where it cannot be started.
#[cfg(unix)]
pub(crate) fn run_instead(command: &mut Command) -> io::Error {
    use std::os::unix::process::CommandExt;

    command.exec()
}

/// Runs `command` and ends with its exit status; comes back only where it cannot be started.
#[cfg(not(unix))]
pub(crate) fn run_instead(command: &mut Command) -> io::Error {
    match command.status() {
        Ok(status) => std::process::exit(status.code().unwrap_or(1)),
        Err(error) => error,
    }
}
