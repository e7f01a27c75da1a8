//! When the system asks a program to end.

/// Ready when the program shall end: at Ctrl-C, and where there is such a signal, at SIGTERM. Each call waits for the next one, and once it was
/// called, neither ends the program by itself. Needs a runtime of tokio with I/O.
pub(crate) async fn asked_to_end() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    // Where signals cannot be waited for, they end the program at once, as ever.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
