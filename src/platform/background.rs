//! Work beside the caller's thread, where the system has threads to spare.

/// From now on the calling thread runs only on cores that no other thread wants, and is preempted by any of them. Beside a program
/// that keeps every core busy it hardly runs. Where the system has no such scheduling class, nothing changes.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn yield_to_others() {
    // A high niceness would still hold a core for a slice of time, and keep the system from taking that core for free. Nobody
    // is refused this; where a sandbox does so, the thread goes on as it was. The call of musl's library only refuses.
    let priority: libc::c_int = 0;
    #[expect(unsafe_code, reason = "a call of the system that reads `priority`; the first zero is the calling thread")]
    // SAFETY: the call reads `priority`, which outlives it, and concerns this thread alone.
    let _ = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_IDLE, &raw const priority) };
}

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
