//! Log lines on stderr: warnings unless told otherwise, and whatever `RUST_LOG` asks for.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::cli::terminal::has_colour;

/// How much is logged where `RUST_LOG` says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verbosity {
    /// Errors.
    Quiet,
    /// Warnings too.
    Normal,
    /// All that helps to find out why.
    Verbose,
}

/// Sends log lines to stderr from now on. A subscriber that is there already stays.
pub(super) fn install(verbosity: Verbosity) {
    let default = match verbosity {
        Verbosity::Quiet => LevelFilter::ERROR,
        Verbosity::Normal => LevelFilter::WARN,
        Verbosity::Verbose => LevelFilter::DEBUG,
    };
    let filter = EnvFilter::builder().with_default_directive(default.into()).from_env_lossy();
    let colour = has_colour(&io::stderr());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour)
        .with_target(verbosity == Verbosity::Verbose)
        .without_time()
        .try_init();
}
