//! Tells when a GPU is done with what was submitted. Knows nothing of what that was.

use crate::error::Result;

/// What is called once a submission is done.
type Done = Box<dyn FnOnce() + Send>;

#[cfg(not(target_arch = "wasm32"))]
mod system {
    use std::sync::mpsc::{Sender, channel};
    use std::thread::JoinHandle;

    use super::{Done, Result};
    use crate::error::Error;

    /// Keeps a driver's callbacks going: waits for every submission, in a thread of its own, and tells when it is done.
    pub struct Completions {
        submissions: Option<Sender<(wgpu::SubmissionIndex, Done)>>,
        thread: Option<JoinHandle<()>>,
    }

    impl Completions {
        /// Starts the thread.
        ///
        /// # Errors
        /// [`Error::Io`] where the system refuses it.
        pub fn start(device: &wgpu::Device) -> Result<Completions> {
            let (sender, receiver) = channel::<(wgpu::SubmissionIndex, Done)>();
            let device = device.clone();
            let run = move || {
                for (submission_index, done) in receiver {
                    // An error here is a lost device, which the device's own callback records.
                    let _ = device.poll(wgpu::PollType::Wait { submission_index: Some(submission_index), timeout: None });
                    done();
                }
            };
            let thread = std::thread::Builder::new().name("tierflow-poller".into()).spawn(run);
            let thread = thread.map_err(|source| Error::io("start", "a thread that waits for the GPU", source))?;
            Ok(Completions { submissions: Some(sender), thread: Some(thread) })
        }

        /// Calls `done` once `submission`, the latest on `queue`, is done. Callbacks of the device that are due come with it.
        pub fn watch(&self, _queue: &wgpu::Queue, submission: wgpu::SubmissionIndex, done: impl FnOnce() + Send + 'static) {
            if let Some(submissions) = &self.submissions {
                let _ = submissions.send((submission, Box::new(done)));
            }
        }
    }

    impl Drop for Completions {
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
    use super::{Done, Result};

    /// The browser calls back by itself whenever its worker waits for something.
    pub struct Completions;

    impl Completions {
        /// Nothing needs to be started.
        ///
        /// # Errors
        /// None.
        pub fn start(_device: &wgpu::Device) -> Result<Completions> {
            Ok(Completions)
        }

        /// Calls `done` once `submission`, the latest on `queue`, is done.
        pub fn watch(&self, queue: &wgpu::Queue, _submission: wgpu::SubmissionIndex, done: impl FnOnce() + Send + 'static) {
            let done: Done = Box::new(done);
            queue.on_submitted_work_done(done);
        }
    }
}

pub use system::Completions;
