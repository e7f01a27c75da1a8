//! Which adapters there are, as device specs. Opens none of them.

use crate::device::{AdapterKind, Device, DeviceSpec, GpuLimits, KernelChoice, Rates, vendor};
use crate::error::{Error, Result};
use crate::platform::{Heap, largest_local_heap};
use crate::units::Bytes;

/// An adapter that can be opened with [`crate::gpu::Gpu::open`].
#[derive(Debug, Clone)]
pub struct AdapterFound {
    /// What the planner needs to know.
    pub spec: DeviceSpec,
    /// wgpu's handle.
    pub adapter: wgpu::Adapter,
    /// The API that reaches it.
    pub backend: wgpu::Backend,
    /// Features that kernels or uploads could use, by wgpu's names.
    pub features: Vec<String>,
    /// Which kernels it may run.
    pub kernels: KernelChoice,
}

/// Share of the memory that is left to others when no budget is given.
const MARGIN_PERCENT: u64 = 10;

/// Drivers refuse new buffers above this share of what the system lets the process have, instead of spilling silently.
const RESOURCE_BUDGET_PERCENT: u8 = 95;

/// Names the APIs to list adapters of, such as `vulkan,gl`; by default those through which a system's GPUs are best reached.
const BACKENDS_VARIABLE: &str = "TIERFLOW_BACKENDS";

/// All usable adapters, numbered `gpu:0`, `gpu:1`, ...: real GPUs first, software last; one entry per GPU,
/// or per API that `TIERFLOW_BACKENDS` names.
///
/// # Errors
/// [`Error::InvalidArgument`] for an API that is unknown; an empty list where there is no adapter.
pub async fn list() -> Result<Vec<AdapterFound>> {
    let asked = std::env::var(BACKENDS_VARIABLE).ok().filter(|words| !words.is_empty());
    let backends = match &asked {
        Some(words) => backends_of(words)?,
        None => wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12 | wgpu::Backends::BROWSER_WEBGPU,
    };
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    descriptor.memory_budget_thresholds.for_resource_creation = Some(RESOURCE_BUDGET_PERCENT);
    let instance = wgpu::Instance::new(descriptor);
    let mut adapters: Vec<(wgpu::AdapterInfo, wgpu::Adapter)> =
        instance.enumerate_adapters(backends).await.into_iter().map(|adapter| (adapter.get_info(), adapter)).collect();
    // Stable: adapters of one kind keep the driver's order, so the numbers do not change from run to run.
    adapters.sort_by_key(|(info, _)| (rank_of_kind(kind_of(info.device_type)), rank_of_backend(info.backend)));
    let mut seen: Vec<(u32, u32, wgpu::Backend)> = Vec::new();
    let mut found = Vec::new();
    for (info, adapter) in adapters {
        // The same hardware behind a second API is no second GPU, unless that API was asked for; two equal cards behind one API are.
        let is_seen = |&(vendor, device, backend): &(u32, u32, wgpu::Backend)| {
            (vendor, device) == (info.vendor, info.device) && backend != info.backend
        };
        if asked.is_none() && seen.iter().any(is_seen) {
            continue;
        }
        seen.push((info.vendor, info.device, info.backend));
        let index = u32::try_from(found.len()).unwrap_or(u32::MAX);
        found.push(describe(index, &info, adapter));
    }
    Ok(found)
}

/// `vulkan,gl` as wgpu's set of APIs.
fn backends_of(words: &str) -> Result<wgpu::Backends> {
    words.split(',').try_fold(wgpu::Backends::empty(), |backends, word| match word.trim() {
        "vulkan" => Ok(backends | wgpu::Backends::VULKAN),
        "metal" => Ok(backends | wgpu::Backends::METAL),
        "dx12" => Ok(backends | wgpu::Backends::DX12),
        "gl" => Ok(backends | wgpu::Backends::GL),
        unknown => Err(Error::InvalidArgument {
            option: BACKENDS_VARIABLE.into(),
            reason: format!(
                "`{unknown}` is no API that adapters are reached by; write vulkan, metal, dx12 or gl, with commas between them"
            ),
        }),
    })
}

/// Every adapter `n` times, each with its share of the memory, renumbered: to try out several adapters on a machine with one.
pub fn divided(found: Vec<AdapterFound>, n: usize) -> Vec<AdapterFound> {
    if n <= 1 {
        return found;
    }
    let shares = found.iter().flat_map(|whole| (1..=n).map(move |k| (whole, k)));
    let share = |(index, (whole, k)): (usize, (&AdapterFound, usize))| {
        let mut share = whole.clone();
        share.spec.device = Device::Gpu(u32::try_from(index).unwrap_or(u32::MAX));
        share.spec.name = format!("{} (virtual {k}/{n})", whole.spec.name);
        share.spec.capacity = whole.spec.capacity.map(|capacity| Bytes(capacity.0 / n as u64));
        share.spec.capacity_source = format!("{}, shared by {n}", whole.spec.capacity_source);
        share
    };
    shares.enumerate().map(share).collect()
}

fn describe(index: u32, info: &wgpu::AdapterInfo, adapter: wgpu::Adapter) -> AdapterFound {
    let limits = limits_in_force(&adapter.limits());
    let kind = kind_of(info.device_type);
    let (whole, source) = memory(&adapter, &limits);
    let driver = [info.backend.to_str(), &info.driver, &info.driver_info];
    let spec = DeviceSpec {
        device: Device::Gpu(index),
        name: info.name.clone(),
        vendor: vendor_of(info),
        driver: driver.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" "),
        kind: Some(kind),
        capacity: None,
        capacity_source: String::new(),
        limits: Some(limits),
        rates: Rates::default(),
    };
    let wanted = wgpu::Features::MAPPABLE_PRIMARY_BUFFERS
        | wgpu::Features::SHADER_F16
        | wgpu::Features::SHADER_INT64
        | wgpu::Features::SUBGROUP
        | wgpu::Features::TIMESTAMP_QUERY
        | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    let features = (adapter.features() & wanted).iter_names().map(|(name, _)| name.to_owned()).collect();
    let mut found = AdapterFound { spec, backend: info.backend, features, kernels: KernelChoice::Auto, adapter };
    found.set_memory(whole, &source);
    found
}

impl AdapterFound {
    /// Sets the memory to plan with when no budget is given: `whole` less a margin. `source` says where the number comes from.
    pub fn set_memory(&mut self, whole: Bytes, source: &str) {
        let shared = self.spec.kind.is_some_and(AdapterKind::shares_host_memory);
        let shared = if shared { "; this is host memory, shared with the cpu budget" } else { "" };
        self.spec.capacity = Some(Bytes(whole.0 / 100 * (100 - MARGIN_PERCENT)));
        self.spec.capacity_source = format!("{source}, less {MARGIN_PERCENT} %{shared}");
    }

    /// Whether the driver says how much memory there is; where not, a plan starts from a guess.
    pub fn reports_memory(&self) -> bool {
        largest_local_heap(&self.adapter).is_some()
    }
}

/// How much memory the driver reports, and where the number comes from.
fn memory(adapter: &wgpu::Adapter, limits: &GpuLimits) -> (Bytes, String) {
    match largest_local_heap(adapter) {
        Some(Heap { size, free: Some(free) }) => (free, format!("{free} free of {size} by the driver's budget")),
        Some(Heap { size, free: None }) => (size, format!("{size} heap by the driver, use by others unknown")),
        None => (limits.max_buffer_bytes, "no report: taken as large as the largest buffer".to_owned()),
    }
}

/// The wgpu limits to ask for: all that the adapter has, or WebGPU's defaults with `wanted` in place of the four that matter.
pub(super) fn required_limits(available: &wgpu::Limits, wanted: Option<GpuLimits>) -> wgpu::Limits {
    let Some(wanted) = wanted else { return available.clone() };
    let mut required = wgpu::Limits::default().or_worse_values_from(available);
    required.max_buffer_size = wanted.max_buffer_bytes.0.min(available.max_buffer_size);
    required.max_storage_buffer_binding_size = wanted.max_binding_bytes.0.min(available.max_storage_buffer_binding_size);
    required.min_storage_buffer_offset_alignment = wanted.storage_alignment.max(available.min_storage_buffer_offset_alignment);
    required.max_compute_workgroups_per_dimension = wanted.max_workgroups.min(available.max_compute_workgroups_per_dimension);
    required
}

/// The four limits that decide how weights are cut and kernels dispatched.
pub(super) fn limits_in_force(limits: &wgpu::Limits) -> GpuLimits {
    GpuLimits {
        max_buffer_bytes: Bytes(limits.max_buffer_size),
        max_binding_bytes: Bytes(limits.max_storage_buffer_binding_size),
        storage_alignment: limits.min_storage_buffer_offset_alignment,
        max_workgroups: limits.max_compute_workgroups_per_dimension,
    }
}

/// The maker's PCI number. Metal reports none; what it drives counts as Apple's, as it does for PyTorch's `mps`.
fn vendor_of(info: &wgpu::AdapterInfo) -> u32 {
    match (info.vendor, info.backend) {
        (0, wgpu::Backend::Metal) => vendor::APPLE,
        (vendor, _) => vendor,
    }
}

fn kind_of(device_type: wgpu::DeviceType) -> AdapterKind {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
        wgpu::DeviceType::Other => AdapterKind::Other,
    }
}

fn rank_of_kind(kind: AdapterKind) -> u32 {
    match kind {
        AdapterKind::Discrete => 0,
        AdapterKind::Integrated => 1,
        AdapterKind::Virtual => 2,
        AdapterKind::Other => 3,
        AdapterKind::Software => 4,
    }
}

/// Vulkan before DX12: only there a mapped buffer can lie in the GPU's own memory.
fn rank_of_backend(backend: wgpu::Backend) -> u32 {
    match backend {
        wgpu::Backend::Vulkan => 0,
        wgpu::Backend::Metal => 1,
        wgpu::Backend::Dx12 => 2,
        wgpu::Backend::BrowserWebGpu => 3,
        wgpu::Backend::Gl | wgpu::Backend::Noop => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asked_limits_replace_larger_ones_and_never_exceed_the_adapter() {
        let available = wgpu::Limits { max_buffer_size: 1 << 31, min_storage_buffer_offset_alignment: 32, ..wgpu::Limits::default() };
        let wanted = GpuLimits { max_buffer_bytes: Bytes::mib(16), max_binding_bytes: Bytes::gib(64), ..GpuLimits::default() };
        let limits = limits_in_force(&required_limits(&available, Some(wanted)));
        assert_eq!(limits.max_buffer_bytes, Bytes::mib(16));
        assert_eq!(limits.max_binding_bytes, Bytes::mib(128));
        assert_eq!(limits.storage_alignment, 256);
        assert_eq!(limits_in_force(&required_limits(&available, None)).max_buffer_bytes, Bytes::gib(2));
    }
}
