//! Ctrl-C of commands that end in order: what is under way, an answer or a file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the first Ctrl-C sets, to end what is under way; a second one ends the program.
pub(super) fn stopped_by_ctrl_c() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::debug!("Ctrl-C will end the program at once: {error}");
    }
    interrupted
}
