//! What differs between operating systems and the browser, behind seams that read the same everywhere. Knows no model.

#[cfg(not(target_arch = "wasm32"))]
mod file;
#[cfg(not(target_arch = "wasm32"))]
mod mapping;
mod source;

pub(crate) use source::read_small_file;
pub use source::{ByteSource, IoMode, open_source};
