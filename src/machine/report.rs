//! What drivers say of their adapters, for reports: plans need none of it.

use serde::Serialize;

use crate::device::Device;
use crate::error::Result;
use crate::gpu;
use crate::platform::largest_local_heap;
use crate::units::Bytes;

/// One adapter.
#[derive(Debug, Clone, Serialize)]
pub struct AdapterReport {
    /// By which name tierflow knows it.
    pub device: Device,
    /// The driver's name for it.
    pub name: String,
    /// The API and the driver's own version.
    pub driver: String,
    /// The largest heap of its own memory, where the driver tells.
    pub memory_size: Option<Bytes>,
    /// What the driver lets this process still have of it: Vulkan's `heapBudget − heapUsage`.
    pub memory_free: Option<Bytes>,
    /// Fewest and most lanes of a subgroup.
    pub subgroup_lanes: [u32; 2],
    /// Most lanes of a workgroup.
    pub workgroup_lanes: u32,
    /// Memory that they can share.
    pub workgroup_memory: Bytes,
    /// Features that kernels or uploads could use, by wgpu's names.
    pub features: Vec<String>,
}

/// All usable adapters, in the order of their numbers. Opens none of them.
///
/// # Errors
/// Those of asking the drivers.
pub async fn adapter_reports() -> Result<Vec<AdapterReport>> {
    let report = |found: gpu::AdapterFound| {
        let (info, limits, heap) = (found.adapter.get_info(), found.adapter.limits(), largest_local_heap(&found.adapter));
        AdapterReport {
            device: found.spec.device,
            name: found.spec.name,
            driver: found.spec.driver,
            memory_size: heap.map(|heap| heap.size),
            memory_free: heap.and_then(|heap| heap.free),
            subgroup_lanes: [info.subgroup_min_size, info.subgroup_max_size],
            workgroup_lanes: limits.max_compute_invocations_per_workgroup,
            workgroup_memory: Bytes(limits.max_compute_workgroup_storage_size.into()),
            features: found.features,
        }
    };
    Ok(gpu::list().await?.into_iter().map(report).collect())
}
