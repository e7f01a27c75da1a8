//! Log lines on stderr: warnings by default, and whatever `RUST_LOG` asks for.

use std::fmt;
use std::io::{self, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

use crate::cli::terminal::{Stream, has_colour, wrapped};
use crate::cli::words::Options;
use crate::error::{Setting, Words};

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
        .fmt_fields(OptionFirst)
        .with_env_filter(filter)
        .with_writer(|| Lines)
        .with_ansi(colour)
        .with_target(verbosity == Verbosity::Verbose)
        .without_time()
        .try_init();
}

/// Writes the fields of an event: a `setting` by its option and its `value` before the message, others behind it.
struct OptionFirst;

impl<'w> FormatFields<'w> for OptionFirst {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = Line::default();
        fields.record(&mut line);
        let Line { option, value, message, rest } = line;
        match (option.is_empty(), value.is_empty()) {
            (true, _) => write!(writer, "{message}{rest}"),
            (false, true) => write!(writer, "{option}: {message}{rest}"),
            (false, false) => write!(writer, "{option} {value}: {message}{rest}"),
        }
    }
}

#[derive(Default)]
struct Line {
    option: String,
    value: String,
    message: String,
    rest: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, text: &str) {
        let setting = Setting::ALL.iter().find(|setting| setting.field() == text);
        match (field.name(), setting) {
            ("setting", Some(setting)) => self.option = Options.setting(*setting),
            ("value", _) => self.value = text.to_owned(),
            _ => self.record_debug(field, &text),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "value" => self.value = format!("{value:?}"),
            name => self.rest.push_str(&format!(" {name}={value:?}")),
        }
    }
}

/// stderr, on a terminal with lines that fit it. Gets an event at once; its message is fit for a terminal already.
struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        io::stderr().lock().write_all(wrapped(&text, Stream::Stderr.width()).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
