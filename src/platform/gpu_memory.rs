//! The memory of an adapter, where the system has a way to ask that wgpu has not. Knows nothing of budgets.

use crate::units::Bytes;

/// The largest memory heap that is local to the adapter.
#[derive(Debug, Clone, Copy)]
pub struct Heap {
    /// Its size.
    pub size: Bytes,
    /// What the system lets this process still have, where the driver tells.
    pub free: Option<Bytes>,
}

/// The largest local heap of `adapter`, or `None` where nobody tells: on Apple's systems, in a browser, and under any
/// interface but Vulkan.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "windows"))]
pub fn largest_local_heap(adapter: &wgpu::Adapter) -> Option<Heap> {
    super::vulkan_memory::largest_local_heap(adapter)
}

/// As above; here nobody tells.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "windows")))]
pub fn largest_local_heap(_adapter: &wgpu::Adapter) -> Option<Heap> {
    None
}
