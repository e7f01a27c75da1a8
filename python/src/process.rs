//! Which process the engine's threads are of: a fork has none of them, and whatever it asked would never be answered.

use std::sync::atomic::{AtomicU32, Ordering};

use pyo3::prelude::*;

use crate::errors;

/// The process that first used the engine; 0 before.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Refuses to go on in a fork of the process whose threads compute.
pub fn check() -> PyResult<()> {
    let here = std::process::id();
    match OWNER.compare_exchange(0, here, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => Ok(()),
        Err(owner) if owner == here => Ok(()),
        Err(owner) => Err(errors::new(
            "ForkError",
            &format!(
                "process {here} is a fork of {owner}, which has the engine's threads; start processes with \
                 multiprocessing.get_context(\"spawn\"), and open the engine there"
            ),
        )),
    }
}

/// Whether this is a fork of the process `owner`.
pub fn is_fork_of(owner: u32) -> bool {
    std::process::id() != owner
}
