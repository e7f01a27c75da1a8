//! Work beside the caller's thread, where the system has threads to spare.

/// The calling thread takes a core only where others leave one, or nearly so. Where the system has no such thing, nothing changes.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn yield_to_others() {
    // There, a thread is a process to this call. Nobody is refused a lower priority.
    let _ = rustix::process::setpriority_process(None, NICENESS);
}

/// Weighs a tenth of a usual thread: enough not to starve beside a busy program.
#[cfg(any(target_os = "linux", target_os = "android"))]
const NICENESS: i32 = 10;

/// As above.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn yield_to_others() {}

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
