//! Writes a trace as Chrome/Perfetto JSON.

use std::path::Path;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::platform::write_atomically;

/// Writes what the engine's trace holds; chunks are labelled with their names.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub fn write(file: &Path, engine: &Engine) -> Result<()> {
    let plan = engine.plan();
    let name = |chunk: usize| if chunk < plan.chunks.len() { plan.chunk_name(chunk) } else { String::new() };
    let json = engine.trace().to_chrome_json(&name);
    let bytes = serde_json::to_vec(&json).map_err(|error| Error::io("write", file.display(), error.into()))?;
    write_atomically(file, &bytes)
}
