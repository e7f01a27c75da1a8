//! Asks a Vulkan driver about its memory heaps, which wgpu does not report. Allocates nothing; knows nothing of budgets.

use ash::vk;

use super::gpu_memory::Heap;
use crate::units::Bytes;

/// The largest device-local heap of `adapter`, or `None` where it is no Vulkan adapter.
/// `free` is `heapBudget − heapUsage` of `VK_EXT_memory_budget`.
pub(super) fn largest_local_heap(adapter: &wgpu::Adapter) -> Option<Heap> {
    #[expect(unsafe_code, reason = "wgpu has no safe way to the Vulkan handle, which is only asked for its properties")]
    // SAFETY: the handle is used for read-only queries while the guard lives, and nothing is destroyed through it.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let capabilities = adapter.physical_device_capabilities();
    // The query by `pNext` chain belongs to Vulkan 1.1; older drivers lack the function.
    if capabilities.properties().api_version < vk::API_VERSION_1_1 {
        return None;
    }
    let has_budget = capabilities.supports_extension(ash::ext::memory_budget::NAME);
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
    if has_budget {
        properties = properties.push_next(&mut budget);
    }
    let instance = adapter.shared_instance().raw_instance();
    #[expect(unsafe_code, reason = "every call of ash is unsafe")]
    // SAFETY: the physical device belongs to this instance, both outlive the call (the guard holds them), and the chained
    // structure is one that the driver says it knows.
    unsafe {
        instance.get_physical_device_memory_properties2(adapter.raw_physical_device(), &mut properties);
    }
    let heaps = properties.memory_properties;
    let (index, heap) = heaps
        .memory_heaps_as_slice()
        .iter()
        .enumerate()
        .filter(|(_, heap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL))
        .max_by_key(|(_, heap)| heap.size)?;
    let free = has_budget.then(|| Bytes(budget.heap_budget[index].saturating_sub(budget.heap_usage[index])));
    Some(Heap { size: Bytes(heap.size), free })
}
