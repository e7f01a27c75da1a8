//! Notices when a GPU has finished a submission, whatever was submitted.

use std::time::Duration;

use crate::error::Result;

/// Callbacks for submissions that finish too late.
pub struct Watchdog {
    /// How long one may take after the one before it.
    pub timeout: Box<dyn Fn() -> Duration + Send + Sync>,
    /// Called each time when the timeout has passed.
    pub late: Box<dyn Fn(Duration) + Send + Sync>,
    /// Called when a late one has finished after all.
    pub ended: Box<dyn Fn() + Send + Sync>,
}

#[cfg(not(target_arch = "wasm32"))]
mod system {
    use std::sync::mpsc::{Sender, channel};
    use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};

    use super::{Result, Watchdog};
    use crate::error::Error;

    /// How often the watchdog looks, at least and at most.
    const LOOKS: [Duration; 2] = [Duration::from_millis(1), Duration::from_secs(1)];

    /// Keeps a driver's callbacks going: waits for every submission, in a thread of its own, and reports when it is done. Of each
    /// submission it keeps a `T`.
    pub struct Completions<T> {
        submissions: Option<Sender<(wgpu::SubmissionIndex, Option<T>)>>,
        waiting: Arc<Waiting>,
        /// The thread that waits, and the watchdog.
        threads: Option<[JoinHandle<()>; 2]>,
    }

    /// The state that the two threads share.
    #[derive(Default)]
    struct Waiting {
        state: Mutex<State>,
        closed: Condvar,
    }

    #[derive(Default)]
    struct State {
        /// When the wait for the current submission began.
        since: Option<Instant>,
        /// Whether the current one has passed the deadline.
        is_late: bool,
        is_closed: bool,
    }

    impl Waiting {
        fn state(&self) -> MutexGuard<'_, State> {
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Reports submissions that finish too late to the watchdog, until the thread is closed. It never asks the driver
        /// itself: wgpu 30 panics where a wait of one thread times out while another one finds the queue empty.
        fn watch(&self, watchdog: &Watchdog) {
            let mut state = self.state();
            while !state.is_closed {
                let timeout = (watchdog.timeout)();
                if state.since.is_some_and(|since| since.elapsed() >= timeout) {
                    (state.since, state.is_late) = (Some(Instant::now()), true);
                    (watchdog.late)(timeout);
                }
                let look = (timeout / 4).clamp(LOOKS[0], LOOKS[1]);
                state = self.closed.wait_timeout(state, look).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    impl<T: Send + 'static> Completions<T> {
        /// Starts the threads, which call `done` when a submission is done and the watchdog when one comes too late.
        ///
        /// # Errors
        /// [`Error::Io`] where the system refuses one.
        pub fn start(device: &wgpu::Device, watchdog: Watchdog, mut done: impl FnMut(T) + Send + 'static) -> Result<Completions<T>> {
            let (sender, receiver) = channel::<(wgpu::SubmissionIndex, Option<T>)>();
            let device = device.clone();
            let (waiting, watchdog) = (Arc::<Waiting>::default(), Arc::new(watchdog));
            let of_poller = Arc::clone(&watchdog);
            let (own, others) = (Arc::clone(&waiting), Arc::clone(&waiting));
            let wait = move || {
                for (submission_index, watched) in receiver {
                    own.state().since = Some(Instant::now());
                    // An error here is a lost device, which the device's own callback records.
                    let _ = device.poll(wgpu::PollType::Wait { submission_index: Some(submission_index), timeout: None });
                    watched.into_iter().for_each(&mut done);
                    let mut state = own.state();
                    if std::mem::take(&mut state.is_late) {
                        (of_poller.ended)();
                    }
                    state.since = None;
                }
            };
            let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
                let thread = std::thread::Builder::new().name(name.into()).spawn(run);
                thread.map_err(|source| Error::io("start", "a thread that waits for the GPU", source))
            };
            let mut completions = Completions { submissions: Some(sender), waiting, threads: None };
            let poller = spawn("tierflow-poller", Box::new(wait))?;
            completions.threads = Some([poller, spawn("tierflow-watchdog", Box::new(move || others.watch(&watchdog)))?]);
            Ok(completions)
        }

        /// Waits for `submission`, the latest on `queue`; what is `watched`, if anything, is handed over when it is done.
        /// Callbacks of the device that are due come with it.
        pub fn watch(&self, _queue: &wgpu::Queue, submission: wgpu::SubmissionIndex, watched: Option<T>) {
            if let Some(submissions) = &self.submissions {
                let _ = submissions.send((submission, watched));
            }
        }
    }

    impl<T> Drop for Completions<T> {
        /// Ends the threads. One that waits for a device that hangs is left to the system.
        fn drop(&mut self) {
            self.submissions = None;
            let is_late = {
                let mut state = self.waiting.state();
                state.is_closed = true;
                state.is_late
            };
            self.waiting.closed.notify_all();
            let Some([poller, watchdog]) = self.threads.take() else { return };
            let _ = watchdog.join();
            if !is_late {
                let _ = poller.join();
            }
        }
    }
}

#[cfg(target_arch = "wasm32")]
mod system {
    use std::sync::{Arc, Mutex, PoisonError};

    use super::{Result, Watchdog};

    /// What is called for each submission that is done.
    type Done<T> = Arc<Mutex<dyn FnMut(T) + Send>>;

    /// The browser calls back by itself whenever its worker waits for something.
    pub struct Completions<T> {
        done: Done<T>,
    }

    impl<T: Send + 'static> Completions<T> {
        /// Nothing needs to be started. `done` is called when a submission is done. Browsers have watchdogs of their own, which take a
        /// device away that hangs.
        ///
        /// # Errors
        /// None.
        pub fn start(_device: &wgpu::Device, _watchdog: Watchdog, done: impl FnMut(T) + Send + 'static) -> Result<Completions<T>> {
            Ok(Completions { done: Arc::new(Mutex::new(done)) })
        }

        /// What is `watched`, if anything, is handed over when `submission`, the latest on `queue`, is done.
        pub fn watch(&self, queue: &wgpu::Queue, _submission: wgpu::SubmissionIndex, watched: Option<T>) {
            if let Some(watched) = watched {
                let done = Arc::clone(&self.done);
                queue.on_submitted_work_done(move || done.lock().unwrap_or_else(PoisonError::into_inner)(watched));
            }
        }
    }
}

pub use system::Completions;
