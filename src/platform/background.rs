//! Work beside the caller's thread, where the system has threads to spare.

/// Runs `job` on one of the threads that share the host's cores; returns at once.
#[cfg(not(target_arch = "wasm32"))]
pub fn in_background(job: impl FnOnce() + Send + 'static) {
    rayon::spawn(job);
}

/// As above; a browser's tab has one thread for it, so the job is done before this returns.
#[cfg(target_arch = "wasm32")]
pub fn in_background(job: impl FnOnce() + 'static) {
    job();
}
