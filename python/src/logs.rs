//! The library's log lines, which come from any thread, on their way to Python's `logging`: they wait in a queue until a thread of Python's
//! has the interpreter's lock anyway.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::errors;

/// Lines that wait; the oldest of more are forgotten.
const MAX_LINES: usize = 1000;

static LINES: Mutex<VecDeque<Line>> = Mutex::new(VecDeque::new());

/// The level of Python's logger, a multiple of ten.
static LEVEL: AtomicU8 = AtomicU8::new(WARNING);

const DEBUG: u8 = 10;
const INFO: u8 = 20;
const WARNING: u8 = 30;
const ERROR: u8 = 40;

struct Line {
    /// The logger's name.
    logger: String,
    level: u8,
    text: String,
}

struct Queue;

impl Subscriber for Queue {
    // The level of a logger may change at any time.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tierflow") && level_of(metadata.level()) >= LEVEL.load(Ordering::Relaxed)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let logger = event.metadata().target().replace("::", ".");
        let line = Line { logger, level: level_of(event.metadata().level()), text: text.whole() };
        let mut lines = lines();
        if lines.len() >= MAX_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The text of an event: the argument that it is about and its value, whatever else it carries, then its message.
#[derive(Default)]
struct Text {
    message: String,
    setting: String,
    value: String,
    fields: String,
}

impl Text {
    fn whole(self) -> String {
        let value = if self.value.is_empty() { String::new() } else { format!("={}", self.value) };
        let before = format!("{}{value} {}", errors::argument_of(&self.setting), self.fields);
        match before.trim() {
            "" => self.message,
            before => format!("{before}: {}", self.message),
        }
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a text does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "setting" => write!(self.setting, "{value:?}"),
            "value" => write!(self.value, "{value:?}"),
            name => write!(self.fields, "{name}={value:?} "),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

fn level_of(level: &Level) -> u8 {
    match *level {
        Level::ERROR => ERROR,
        Level::WARN => WARNING,
        Level::INFO => INFO,
        Level::DEBUG | Level::TRACE => DEBUG,
    }
}

fn lines() -> MutexGuard<'static, VecDeque<Line>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on lines are kept for Python, unless something else in this process takes them already.
pub fn start() {
    let _ = tracing::subscriber::set_global_default(Queue);
}

/// Asks Python which lines it wants.
pub fn note_level(py: Python<'_>) -> PyResult<()> {
    let level: u32 = py.import("logging")?.call_method1("getLogger", ("tierflow",))?.call_method0("getEffectiveLevel")?.extract()?;
    LEVEL.store(u8::try_from(level).unwrap_or(u8::MAX), Ordering::Relaxed);
    Ok(())
}

/// Gives what has come to Python's loggers.
pub fn flush(py: Python<'_>) -> PyResult<()> {
    // The lock is free while Python runs.
    let lines = std::mem::take(&mut *lines());
    for Line { logger, level, text } in lines {
        py.import("logging")?.call_method1("getLogger", (logger,))?.call_method1("log", (level, "%s", text))?;
    }
    Ok(())
}
