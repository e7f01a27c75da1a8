//! The memory of an adapter, asked from the system where wgpu has no call for it. Knows nothing of budgets.

use crate::units::Bytes;

/// The largest memory heap that is local to the adapter.
#[derive(Debug, Clone, Copy)]
pub struct Heap {
    /// Its size; where the system reports none, what it would let one process have.
    pub size: Bytes,
    /// What the system still lets this process have, where the driver reports it.
    pub free: Option<Bytes>,
}

/// The largest local heap of `adapter`, or `None` where it is not reported, as in a browser.
pub fn largest_local_heap(adapter: &wgpu::Adapter) -> Option<Heap> {
    by_vulkan(adapter).or_else(|| by_system(adapter))
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "windows"))]
use super::vulkan_memory::largest_local_heap as by_vulkan;

/// Here Vulkan is not asked.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "windows")))]
fn by_vulkan(_adapter: &wgpu::Adapter) -> Option<Heap> {
    None
}

/// Asks DXGI for the budget of the adapter's own memory; where that is the host's, of the share that it may use.
#[cfg(windows)]
fn by_system(adapter: &wgpu::Adapter) -> Option<Heap> {
    #[expect(unsafe_code, reason = "wgpu has no safe way to the DXGI adapter, which is only asked for its memory")]
    // SAFETY: the adapter is used for a read-only query while the guard lives, and nothing is destroyed through it.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Dx12>() }?;
    // The default of the segment group is the local one.
    let memory = adapter.raw_adapter().query_video_memory_info(Default::default()).ok()?;
    Some(Heap { size: Bytes(memory.Budget), free: Some(Bytes(memory.Budget).saturating_sub(Bytes(memory.CurrentUsage))) })
}

/// Asks Metal how much it recommends to use at once, and how much this process has. Use by others is unknown to it.
#[cfg(target_vendor = "apple")]
fn by_system(adapter: &wgpu::Adapter) -> Option<Heap> {
    use objc2_metal::MTLDevice;
    #[expect(unsafe_code, reason = "wgpu has no safe way to the Metal device, which is only asked for its memory")]
    // SAFETY: the device is used for read-only queries while the guard lives, and nothing is destroyed through it.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Metal>() }?;
    let device = adapter.raw_device();
    let size = Bytes(device.recommendedMaxWorkingSetSize());
    Some(Heap { size, free: Some(size.saturating_sub(Bytes(device.currentAllocatedSize() as u64))) })
}

/// Here there is nobody else to ask.
#[cfg(not(any(windows, target_vendor = "apple")))]
fn by_system(_adapter: &wgpu::Adapter) -> Option<Heap> {
    None
}
