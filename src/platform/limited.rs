//! Work that untrusted files describe: run beside the caller with a stack of its own and a time limit, where there are threads.

use std::time::Duration;

use super::clock::Instant;
use crate::error::Error;

/// A point in time after which work is given up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    at: Instant,
}

impl Deadline {
    /// So long from now.
    pub(crate) fn after(limit: Duration) -> Deadline {
        Deadline { at: Instant::now() + limit }
    }

    /// Whether it has come.
    pub(crate) fn has_passed(&self) -> bool {
        Instant::now() >= self.at
    }
}

/// Why [`run_limited`] has no result.
#[cfg_attr(target_arch = "wasm32", expect(dead_code, reason = "there it always has one"))]
#[derive(Debug)]
pub(crate) enum Unfinished {
    /// It ran past the limit; its thread is left to come to its own end.
    TimedOut,
    /// It panicked.
    Panicked,
    /// No thread could be started; what the system says.
    NotStarted(Error),
}

/// Runs `work` on a thread for `name` with `stack_bytes` of stack and waits at most `limit`.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn run_limited<T: Send + 'static>(
    name: &str,
    stack_bytes: usize,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let job = move || {
        // Nobody listens after the limit, and then the answer is of no use.
        let _ = sender.send(work());
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(stack_bytes).spawn(job);
    thread.map_err(|reason| Unfinished::NotStarted(super::threads::refused(name, &reason)))?;
    receiver.recv_timeout(limit).map_err(|error| match error {
        std::sync::mpsc::RecvTimeoutError::Timeout => Unfinished::TimedOut,
        std::sync::mpsc::RecvTimeoutError::Disconnected => Unfinished::Panicked,
    })
}

/// Runs `work` at once: a browser's tab has one thread and ends a script that takes too long by itself.
#[cfg(target_arch = "wasm32")]
pub(crate) fn run_limited<T: Send + 'static>(
    _name: &str,
    _stack_bytes: usize,
    _limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    Ok(work())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_ends_in_time_or_is_left_behind() {
        assert!(matches!(run_limited("quick", 1 << 16, Duration::from_secs(5), || 7), Ok(7)));
        let slow = run_limited("slow", 1 << 16, Duration::from_millis(5), || std::thread::sleep(Duration::from_millis(200)));
        assert!(matches!(slow, Err(Unfinished::TimedOut)));
    }

    #[test]
    fn a_thread_that_the_system_refuses_is_reported_with_the_limits() {
        // More than any address space has.
        let Err(Unfinished::NotStarted(error)) = run_limited("large", usize::MAX >> 1, Duration::from_secs(5), || ()) else {
            panic!("no system gives so large a stack")
        };
        let text = error.to_string();
        assert!(text.starts_with("cannot start a thread for large: ") && text.contains("ulimit -u"), "{text}");
    }

    #[test]
    fn deadlines_come() {
        assert!(Deadline::after(Duration::ZERO).has_passed());
        assert!(!Deadline::after(Duration::from_secs(60)).has_passed());
    }
}
