//! What differs between operating systems and the browser, behind seams that read the same everywhere. Knows no model.

#[cfg(not(target_arch = "wasm32"))]
mod file;
#[cfg(not(target_arch = "wasm32"))]
mod host;
pub(crate) mod limited;
#[cfg(not(target_arch = "wasm32"))]
mod mapping;
mod source;

#[cfg(not(target_arch = "wasm32"))]
pub use host::{HostMemory, cache_folder, cpu_name, host_memory, n_threads, peak_resident_memory, write_atomically};
pub(crate) use source::read_small_file;
pub use source::{ByteSource, IoMode, open_source};
