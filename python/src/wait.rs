//! Waiting for the engine's threads: without the interpreter's lock, and in short steps between which signals are heard.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;

use crate::{errors, logs};

/// How long a signal, a log line or progress waits at most.
const STEP: Duration = Duration::from_millis(20);

/// How far something is, in bytes, as another thread notes it.
#[derive(Clone, Default)]
pub struct Progress(Arc<Mutex<(u64, u64)>>);

impl Progress {
    /// Notes that `done` of `total` are done.
    pub fn note(&self, done: u64, total: u64) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Of threads that note at the same time, one may come late.
        if total != noted.1 || done > noted.0 {
            *noted = (done, total);
        }
    }

    fn get(&self) -> (u64, u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the one value of `receiver`, as long as `goes_on`; `None` where its sender is gone. A signal's exception (Ctrl-C) ends the wait.
pub fn wait_while<T: Send>(py: Python<'_>, receiver: Receiver<T>, goes_on: impl Fn() -> bool) -> PyResult<Option<T>> {
    let ended = || errors::new("ClosedError", "the engine was closed in the meantime");
    wait_with(py, receiver, |_| if goes_on() { Ok(()) } else { Err(ended()) })
}

/// As [`wait_while`]; between its steps `each` is called, whose exception ends the wait.
fn wait_with<T: Send>(py: Python<'_>, receiver: Receiver<T>, mut each: impl FnMut(Python<'_>) -> PyResult<()>) -> PyResult<Option<T>> {
    // A receiver may be used by one thread at a time.
    let mut receiver = Mutex::new(receiver);
    logs::note_level(py)?;
    loop {
        let outcome = py.detach(|| receiver.get_mut().unwrap_or_else(PoisonError::into_inner).recv_timeout(STEP));
        logs::flush(py)?;
        each(py)?;
        match outcome {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
        }
    }
}

/// Does `work` on a thread of its own and waits for it. Python's `callback`, where there is one, is told how far it is. An interrupted wait
/// leaves the work to itself; what it makes is dropped.
pub fn in_background<T: Send + 'static>(
    py: Python<'_>,
    callback: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(&Progress) -> tierflow::Result<T> + Send + 'static,
) -> PyResult<T> {
    let (sender, receiver) = channel();
    let progress = Progress::default();
    let noted = progress.clone();
    let run = move || drop(sender.send(work(&noted)));
    let thread = std::thread::Builder::new().name("tierflow-python".into()).spawn(run);
    thread.map_err(|source| errors::raised(&tierflow::Error::io("start", "a thread", source)))?;
    let mut told = (0, 0);
    let outcome = wait_with(py, receiver, |_| {
        let now = progress.get();
        match callback {
            Some(callback) if now != told => {
                told = now;
                callback.call1(now).map(drop)
            }
            _ => Ok(()),
        }
    })?;
    let outcome =
        outcome.ok_or_else(|| errors::new("EngineError", "a thread of tierflow has panicked; this is a bug, please report it"))?;
    outcome.map_err(|error| errors::raised(&error))
}
