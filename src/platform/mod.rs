//! What differs between operating systems and the browser, behind one interface. Knows no model.

mod background;
#[cfg(not(target_arch = "wasm32"))]
mod cgroup;
pub(crate) mod clock;
mod completions;
mod core_time;
mod direct;
#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
mod expand;
#[cfg(not(target_arch = "wasm32"))]
mod file;
mod folder;
mod gpu_memory;
#[cfg_attr(target_arch = "wasm32", path = "browser.rs")]
mod host;
pub(crate) mod limited;
#[cfg(not(target_arch = "wasm32"))]
mod mapping;
mod pages;
#[cfg_attr(target_arch = "wasm32", path = "browser_parts.rs")]
mod parts;
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
mod process;
#[cfg(not(target_arch = "wasm32"))]
mod process_limits;
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
mod signals;
mod source;
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
mod terminal;
mod text_file;
mod threads;
mod turn;
#[cfg(any(target_os = "linux", target_os = "android", target_os = "windows"))]
mod vulkan_memory;
#[cfg(not(target_arch = "wasm32"))]
mod write;
mod zeroed;

use crate::units::Bytes;
pub use background::{in_background, yield_to_others};
pub use completions::{Completions, Watchdog};
pub use core_time::{CoreTime, waited_since};
pub use direct::{ALIGNMENT as DIRECT_ALIGNMENT, DirectBuffer};
#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
pub(crate) use expand::expanded;
pub use folder::Folder;
pub use gpu_memory::{Heap, largest_local_heap};
pub use host::{
    Checked, MAY_BLOCK, ScratchFile, cache_folder, choose_cache_folder, cpu_name, file_system_of, host_memory, is_same_file, keep, kept,
    largest_cache, n_threads, temporary_folder, with_temporary_file, write_atomically, write_atomically_by, write_with_folder,
};
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
pub(crate) use host::{create_private_folder, state_folder};
#[cfg(not(target_arch = "wasm32"))]
pub use mapping::guard_maps;
pub use pages::Pages;
#[cfg(target_arch = "wasm32")]
pub use parts::{Alone, Spread, run_part, share};
pub(crate) use parts::{for_each_large_part, for_each_part, n_sharing_threads};
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
pub(crate) use process::run_instead;
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
pub(crate) use signals::asked_to_end;
pub use source::{ByteSource, IoMode, open_source};
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
pub(crate) use terminal::take_stdout_apart;
pub use text_file::{decode_text, read_text};
#[cfg(not(target_arch = "wasm32"))]
pub use threads::among_n_threads;
pub use threads::{Readers, block_on, n_compute_threads, start_threads};
pub use turn::Turns;
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
pub(crate) use write::check_folder;
#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
pub(crate) use write::{temporary_called, temporary_in};
pub(crate) use zeroed::{resize, zeroed};

/// The host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// What is built in, or what a container grants.
    pub total: Bytes,
    /// What could be used now without swapping.
    pub available: Bytes,
}

#[cfg(not(target_arch = "wasm32"))]
impl HostMemory {
    /// What both allow.
    fn and(self, other: HostMemory) -> HostMemory {
        HostMemory { total: self.total.min(other.total), available: self.available.min(other.available) }
    }
}
