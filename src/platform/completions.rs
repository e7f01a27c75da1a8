//! Tells when a GPU is done with what was submitted. Knows nothing of what that was.

use crate::error::Result;

#[cfg(not(target_arch = "wasm32"))]
mod system {
    use std::sync::mpsc::{Sender, channel};
    use std::thread::JoinHandle;

    use super::Result;
    use crate::error::Error;

    /// Keeps a driver's callbacks going: waits for every submission, in a thread of its own, and tells when it is done. Of each
    /// submission it keeps a `T`.
    pub struct Completions<T> {
        submissions: Option<Sender<(wgpu::SubmissionIndex, Option<T>)>>,
        thread: Option<JoinHandle<()>>,
    }

    impl<T: Send + 'static> Completions<T> {
        /// Starts the thread, which calls `done` when a submission is done.
        ///
        /// # Errors
        /// [`Error::Io`] where the system refuses it.
        pub fn start(device: &wgpu::Device, mut done: impl FnMut(T) + Send + 'static) -> Result<Completions<T>> {
            let (sender, receiver) = channel::<(wgpu::SubmissionIndex, Option<T>)>();
            let device = device.clone();
            let run = move || {
                for (submission_index, watched) in receiver {
                    // An error here is a lost device, which the device's own callback records.
                    let _ = device.poll(wgpu::PollType::Wait { submission_index: Some(submission_index), timeout: None });
                    watched.into_iter().for_each(&mut done);
                }
            };
            let thread = std::thread::Builder::new().name("tierflow-poller".into()).spawn(run);
            let thread = thread.map_err(|source| Error::io("start", "a thread that waits for the GPU", source))?;
            Ok(Completions { submissions: Some(sender), thread: Some(thread) })
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
        fn drop(&mut self) {
            self.submissions = None;
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(target_arch = "wasm32")]
mod system {
    use std::sync::{Arc, Mutex, PoisonError};

    use super::Result;

    /// What is called for each submission that is done.
    type Done<T> = Arc<Mutex<dyn FnMut(T) + Send>>;

    /// The browser calls back by itself whenever its worker waits for something.
    pub struct Completions<T> {
        done: Done<T>,
    }

    impl<T: Send + 'static> Completions<T> {
        /// Nothing needs to be started. `done` is called when a submission is done.
        ///
        /// # Errors
        /// None.
        pub fn start(_device: &wgpu::Device, done: impl FnMut(T) + Send + 'static) -> Result<Completions<T>> {
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
