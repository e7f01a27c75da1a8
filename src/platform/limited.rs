//! Work that a stranger's file describes: run beside the caller with a stack of its own and a limit in time, where there are threads.

use std::time::Duration;

use super::clock::Instant;

/// A point in time after which work gives up.
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

/// Why [`run_limited`] has no answer.
#[cfg_attr(target_arch = "wasm32", expect(dead_code, reason = "there it always has one"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfinished {
    /// It ran past the limit; its thread is left to come to its own end.
    TimedOut,
    /// It panicked.
    Panicked,
    /// No thread could be started.
    NotStarted,
}

/// Runs `work` on a thread with `stack_bytes` of stack and waits at most `limit`.
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
    std::thread::Builder::new().name(name.to_owned()).stack_size(stack_bytes).spawn(job).map_err(|_| Unfinished::NotStarted)?;
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
        assert_eq!(run_limited("quick", 1 << 16, Duration::from_secs(5), || 7), Ok(7));
        let slow = run_limited("slow", 1 << 16, Duration::from_millis(5), || std::thread::sleep(Duration::from_millis(200)));
        assert_eq!(slow, Err(Unfinished::TimedOut));
        assert!(Deadline::after(Duration::ZERO).has_passed());
        assert!(!Deadline::after(Duration::from_secs(60)).has_passed());
    }
}
