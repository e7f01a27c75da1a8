//! What differs between operating systems and the browser, behind seams that read the same everywhere. Knows no model.

mod background;
mod direct;
#[cfg(not(target_arch = "wasm32"))]
mod file;
mod gpu_memory;
#[cfg(not(target_arch = "wasm32"))]
mod host;
pub(crate) mod limited;
#[cfg(not(target_arch = "wasm32"))]
mod mapping;
pub mod simd;
mod source;
#[cfg(any(target_os = "linux", target_os = "android", target_os = "windows"))]
mod vulkan_memory;

pub use background::in_background;
pub use direct::DirectBuffer;
pub use gpu_memory::{Heap, largest_local_heap};
#[cfg(not(target_arch = "wasm32"))]
pub use host::{HostMemory, cache_folder, choose_cache_folder, cpu_name, file_system_of, host_memory, n_threads, write_atomically};
pub(crate) use source::read_small_file;
pub use source::{ByteSource, IoMode, open_source};
