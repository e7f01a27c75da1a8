//! What a planner needs to know of a device: plain data, made by `gpu` and `platform` or read from a file.

use serde::{Deserialize, Serialize};

use crate::device::{Device, Rates};
use crate::error::{Advice, Error, Remedy, Setting};
use crate::units::Bytes;

/// Plain data about one device. In a file, `driver`, `capacity_source`, `limits` and `rates` may be left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// How it is addressed.
    pub device: Device,
    /// What its maker calls it.
    pub name: String,
    /// The maker's PCI number, as in [`crate::device::vendor`]; 0 where it is unknown, and for `cpu` and `disk`.
    #[serde(default)]
    pub vendor: u32,
    /// Driver and API, for people.
    #[serde(default)]
    pub driver: String,
    /// What kind of adapter it is; `None` for `cpu` and `disk`.
    pub kind: Option<AdapterKind>,
    /// Memory that a plan may use when no budget is given, margin already taken off; `None` for a disk.
    pub capacity: Option<Bytes>,
    /// Where `capacity` comes from and which margin was taken off, for people.
    #[serde(default)]
    pub capacity_source: String,
    /// Limits of the adapter; `None` for `cpu` and `disk`.
    pub limits: Option<GpuLimits>,
    /// How fast it is; empty until measured.
    #[serde(default)]
    pub rates: Rates,
}

impl DeviceSpec {
    /// Its name in errors, or the device where the name is empty, as it often is in browsers.
    pub fn title(&self) -> String {
        if self.name.is_empty() { self.device.to_string() } else { self.name.clone() }
    }
}

/// An [`Error::NoGpu`] for something that was asked for and that is none of the adapters in `specs`; without adapters it says what to do.
pub fn no_gpu<'a>(asked: String, specs: impl IntoIterator<Item = &'a DeviceSpec>) -> Error {
    let adapters = specs.into_iter().filter(|spec| matches!(spec.device, Device::Gpu(_)));
    let names: Vec<String> = adapters.map(|spec| format!("{} ({})", spec.device, spec.name)).collect();
    if !names.is_empty() {
        return Error::NoGpu { reason: format!("{asked}; there is {}", names.join(", ")), advice: Advice::default() };
    }
    let install = Remedy::other("install a Vulkan driver (on Debian: mesa-vulkan-drivers)");
    let advice = [install, Remedy::Use(Setting::Device, "cpu".into())].into();
    Error::NoGpu { reason: format!("{asked}; there is no adapter"), advice }
}

/// The kinds of adapter that wgpu distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// Own memory, behind a link.
    Discrete,
    /// Shares the host's memory.
    Integrated,
    /// Behind a hypervisor.
    Virtual,
    /// Software that runs on the host's cores.
    Software,
    /// The driver does not say.
    Other,
}

impl AdapterKind {
    /// Whether the adapter's memory *is* host memory, so that both budgets draw on one pool.
    pub fn shares_host_memory(self) -> bool {
        matches!(self, AdapterKind::Integrated | AdapterKind::Software)
    }
}

/// The adapter limits that decide how weights are cut. WebGPU guarantees the values of [`GpuLimits::default`], which stand for
/// those that a file leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpuLimits {
    /// Largest buffer.
    pub max_buffer_bytes: Bytes,
    /// Largest part of a buffer that one storage binding shows to a shader.
    pub max_binding_bytes: Bytes,
    /// Offsets of storage bindings are multiples of this.
    pub storage_alignment: u32,
    /// Largest workgroup count in one dimension of a dispatch.
    pub max_workgroups: u32,
}

impl Default for GpuLimits {
    fn default() -> GpuLimits {
        GpuLimits { max_buffer_bytes: Bytes::mib(256), max_binding_bytes: Bytes::mib(128), storage_alignment: 256, max_workgroups: 65_535 }
    }
}

impl GpuLimits {
    /// These limits, where `own` does not allow less.
    #[must_use]
    pub fn within(self, own: GpuLimits) -> GpuLimits {
        GpuLimits {
            max_buffer_bytes: self.max_buffer_bytes.min(own.max_buffer_bytes),
            max_binding_bytes: self.max_binding_bytes.min(own.max_binding_bytes),
            storage_alignment: self.storage_alignment.max(own.storage_alignment),
            max_workgroups: self.max_workgroups.min(own.max_workgroups),
        }
    }
}
