//! The longest time without a finished submission, after which waits on an adapter fail. Knows no adapter.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// The default deadline of an adapter. A submission is planned to take less than a second.
pub const GPU_TIMEOUT: Duration = Duration::from_secs(120);

/// The deadline of one adapter, and how many submissions it has finished.
#[derive(Debug)]
pub struct Deadline {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    timeout: Duration,
    /// Submissions that are known to be done.
    n_done: u64,
    /// The value of `n_done` when a wait last failed.
    gave_up_at: Option<u64>,
    /// Whether the oldest submission under way has passed the deadline.
    is_late: bool,
    /// The tasks that wait for something that the adapter has to finish first.
    waiter: Option<Waker>,
}

/// How a wait on a fence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// The fence was reached.
    Done,
    /// The time was up first.
    TimedOut,
    /// The time was up; the fence may have been reached at that moment.
    Unsure,
}

/// The adapter finished nothing for as long as the deadline allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// For the first time since it last finished something.
    Once(Duration),
    /// Once more, and it has finished nothing in between.
    Again(Duration),
}

impl Default for Deadline {
    fn default() -> Deadline {
        let state = State { timeout: GPU_TIMEOUT, n_done: 0, gave_up_at: None, is_late: false, waiter: None };
        Deadline { state: Mutex::new(state) }
    }
}

impl Deadline {
    /// The longest time without a finished submission.
    pub fn timeout(&self) -> Duration {
        self.state().timeout
    }

    /// Sets it, for waits that begin from now on.
    pub fn set_timeout(&self, timeout: Duration) {
        let mut state = self.state();
        (state.timeout, state.is_late) = (timeout, false);
    }

    /// A submission is done.
    pub fn note_done(&self) {
        let mut state = self.state();
        state.n_done += 1;
        (state.gave_up_at, state.is_late) = (None, false);
    }

    /// The oldest unfinished submission has taken `time`: wakes those who wait in `poll_late` where that is too long.
    pub fn note_late(&self, time: Duration) {
        let waiter = {
            let mut state = self.state();
            if time < state.timeout {
                return;
            }
            state.is_late = true;
            state.waiter.take()
        };
        waiter.into_iter().for_each(Waker::wake);
    }

    /// The submission that had passed the deadline has finished after all.
    pub fn note_ended(&self) {
        self.state().is_late = false;
    }

    /// Waits on a fence: `wait` gets the time that it may take. As long as submissions finish, it waits again.
    pub(super) fn wait<E>(&self, mut wait: impl FnMut(Duration) -> Result<Waited, E>) -> Result<Result<(), Late>, E> {
        loop {
            let (timeout, n_done) = {
                let state = self.state();
                (state.timeout, state.n_done)
            };
            match wait(timeout)? {
                Waited::Done => {
                    let mut state = self.state();
                    (state.gave_up_at, state.is_late) = (None, false);
                    return Ok(Ok(()));
                }
                Waited::Unsure => continue,
                Waited::TimedOut => {}
            }
            if self.state().n_done == n_done {
                return Ok(Err(self.give_up()));
            }
        }
    }

    /// Ready once the deadline has passed while something else is waited for.
    pub(super) fn poll_late(&self, context: &mut Context<'_>) -> Poll<Late> {
        let mut state = self.state();
        if !state.is_late {
            state.waiter = Some(context.waker().clone());
            return Poll::Pending;
        }
        state.is_late = false;
        drop(state);
        Poll::Ready(self.give_up())
    }

    /// Whether a wait failed, and nothing was finished since.
    pub(super) fn has_passed(&self) -> bool {
        self.state().gave_up_at.is_some()
    }

    fn give_up(&self) -> Late {
        let mut state = self.state();
        let n_done = state.n_done;
        match state.gave_up_at.replace(n_done) {
            Some(before) if before == n_done => Late::Again(state.timeout),
            _ => Late::Once(state.timeout),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn deadline() -> Deadline {
        let deadline = Deadline::default();
        deadline.set_timeout(SECOND);
        deadline
    }

    /// Waits on a fence that answers like this, one answer a wait.
    fn wait(deadline: &Deadline, answers: &mut dyn FnMut() -> Waited) -> Result<(), Late> {
        let waited = deadline.wait::<Infallible>(|timeout| {
            assert_eq!(timeout, SECOND);
            Ok(answers())
        });
        waited.expect("it cannot fail")
    }

    #[test]
    fn an_adapter_that_finishes_something_is_waited_for() {
        let deadline = deadline();
        let mut n_waits = 0;
        let mut slow = || {
            n_waits += 1;
            if n_waits < 5 {
                deadline.note_done();
                return Waited::TimedOut;
            }
            Waited::Done
        };
        assert_eq!(wait(&deadline, &mut slow), Ok(()));
        assert_eq!(n_waits, 5);
    }

    #[test]
    fn one_that_finishes_nothing_is_given_up_and_then_lost() {
        let deadline = deadline();
        assert_eq!(wait(&deadline, &mut || Waited::TimedOut), Err(Late::Once(SECOND)));
        assert!(deadline.has_passed());
        assert_eq!(wait(&deadline, &mut || Waited::TimedOut), Err(Late::Again(SECOND)));
        assert_eq!(wait(&deadline, &mut || Waited::Done), Ok(()));
        assert!(!deadline.has_passed());
        assert_eq!(wait(&deadline, &mut || Waited::TimedOut), Err(Late::Once(SECOND)), "it came back in between");
        deadline.note_done();
        assert_eq!(wait(&deadline, &mut || Waited::TimedOut), Err(Late::Once(SECOND)), "as here");
    }

    #[test]
    fn who_waits_for_something_else_is_woken() {
        let deadline = deadline();
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(deadline.poll_late(&mut context), Poll::Pending);
        deadline.note_late(SECOND);
        assert_eq!(deadline.poll_late(&mut context), Poll::Ready(Late::Once(SECOND)));
        assert_eq!(deadline.poll_late(&mut context), Poll::Pending, "it is reported once");
        deadline.note_late(SECOND);
        assert_eq!(deadline.poll_late(&mut context), Poll::Ready(Late::Again(SECOND)));
        for note in [Deadline::note_done, Deadline::note_ended] {
            deadline.note_late(SECOND);
            note(&deadline);
            assert_eq!(deadline.poll_late(&mut context), Poll::Pending, "it was done after all");
        }
    }
}
