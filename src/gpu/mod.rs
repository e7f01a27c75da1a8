//! One open adapter: device, queue, budget, pipelines and the errors that arrive out of turn.
//! Knows no model, no tensor and no kernel.

mod adapters;
mod bind_groups;
mod driver_cache;
mod memory;
mod params;
mod pipelines;
mod readback;
mod write;

use std::sync::{Arc, Mutex, PoisonError};

use crate::device::{DeviceSpec, GpuLimits, KernelChoice, MatMulForms};
use crate::error::{Error, Result};
use crate::units::Bytes;
pub use adapters::{AdapterFound, divided, list};
use bind_groups::BindGroups;
pub use bind_groups::ObjectCounts;
pub use memory::{BUFFER_ALIGNMENT, Buffer, Ledger, Purpose, Usage};
pub use params::{PARAMS_STRIDE, ParamsArena};
pub use pipelines::{Access, Dispatch, KernelSource, Pipeline};
pub use readback::{Readback, read};
pub use write::write;

/// An adapter opened for computing under a budget.
#[derive(Debug)]
pub struct Gpu {
    /// The wgpu device.
    pub device: wgpu::Device,
    /// Its one queue.
    pub queue: wgpu::Queue,
    /// What the planner knows of it; `limits` are those in force.
    pub spec: DeviceSpec,
    /// The limits in force: the adapter's own, or smaller ones that were asked for.
    pub limits: GpuLimits,
    /// Whether a buffer may be mapped and read by shaders at once (`MAPPABLE_PRIMARY_BUFFERS`).
    pub mappable: bool,
    /// Lanes of every subgroup, where all have the same number and kernels may use them and 64-bit words.
    pub subgroup_lanes: Option<u32>,
    /// Every byte that [`Gpu::buffer`] gave out.
    pub ledger: Arc<Ledger>,
    pipelines: pipelines::Pipelines,
    bind_groups: BindGroups,
    readback: Mutex<Option<Buffer>>,
    faults: Arc<Faults>,
}

impl Gpu {
    /// Opens `found` with `budget` bytes to give out. `limits`, where given, replaces the adapter's own larger limits,
    /// and everything else is then held to WebGPU's defaults, so that a run shows that the smallest adapter would do.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the driver refuses the device.
    pub async fn open(found: &AdapterFound, budget: Bytes, limits: Option<GpuLimits>) -> Result<Gpu> {
        let adapter = &found.adapter;
        let required_limits = adapters::required_limits(&adapter.limits(), limits);
        let features = adapter.features() & (wgpu::Features::MAPPABLE_PRIMARY_BUFFERS | wgpu::Features::PIPELINE_CACHE | SUBGROUP_FEATURES);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("tierflow"),
            required_features: features,
            required_limits: required_limits.clone(),
            // Small blocks: memory that the allocator takes ahead of need would count against nobody's budget.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(|refused| Error::Gpu {
            adapter: found.spec.title(),
            fault: format!(
                "the driver refused to open it: {refused}; update the driver, choose another with --device gpu:N, or use --device cpu"
            ),
        })?;
        let faults = Arc::new(Faults::default());
        faults.listen(&device);
        let limits = adapters::limits_in_force(&required_limits);
        let mut spec = DeviceSpec { limits: Some(limits), ..found.spec.clone() };
        if found.kernels == KernelChoice::Portable {
            spec.rates.forms = MatMulForms::default();
        }
        Ok(Gpu {
            pipelines: pipelines::Pipelines::new(&device, &adapter.get_info()),
            bind_groups: BindGroups::default(),
            readback: Mutex::new(None),
            ledger: Arc::new(Ledger::new(budget)),
            device,
            queue,
            spec,
            limits,
            mappable: features.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            subgroup_lanes: subgroup_lanes(found),
            faults,
        })
    }

    /// The first error that arrived out of turn (validation, out of memory, device lost), if any did.
    ///
    /// # Errors
    /// [`Error::Gpu`] or [`Error::DeviceLost`] with the driver's words; the same at every later call, since what was computed since is void.
    pub fn check(&self) -> Result<()> {
        match self.faults.first() {
            Some(Fault::Lost(fault)) => Err(Error::DeviceLost { adapter: self.spec.title(), fault }),
            Some(Fault::Other(fault)) => Err(self.fault(fault)),
            None => Ok(()),
        }
    }

    /// Waits natively until `submission` has run (`None`: all that was submitted); in a browser it returns at once,
    /// since the event loop does the waiting. Await [`read`] or a callback there.
    ///
    /// # Errors
    /// Those of [`Gpu::check`], or a poll that failed.
    pub fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::Wait { submission_index: submission, timeout: None });
        self.check()?;
        polled.map(drop).map_err(|failed| self.fault(format!("waiting for it failed: {failed}")))
    }

    /// Runs the callbacks that are due, without waiting.
    ///
    /// # Errors
    /// Those of [`Gpu::check`], or a poll that failed.
    pub fn poll(&self) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::Poll);
        self.check()?;
        polled.map(drop).map_err(|failed| self.fault(format!("polling it failed: {failed}")))
    }

    /// An [`Error::Gpu`] about this adapter.
    pub fn fault(&self, fault: impl Into<String>) -> Error {
        Error::Gpu { adapter: self.spec.title(), fault: fault.into() }
    }
}

/// What kernels that pass values round in a subgroup need.
const SUBGROUP_FEATURES: wgpu::Features = wgpu::Features::SUBGROUP.union(wgpu::Features::SHADER_INT64);

fn subgroup_lanes(found: &AdapterFound) -> Option<u32> {
    let info = found.adapter.get_info();
    let is_fixed = info.subgroup_min_size == info.subgroup_max_size && found.adapter.features().contains(SUBGROUP_FEATURES);
    (is_fixed && found.kernels == KernelChoice::Auto).then_some(info.subgroup_max_size)
}

/// What the driver said out of turn. The callbacks may run on any thread; only the first fault is kept, the rest follow from it.
#[derive(Debug, Default)]
struct Faults {
    first: Mutex<Option<Fault>>,
}

/// What went wrong, in the driver's words.
#[derive(Debug, Clone)]
enum Fault {
    /// The device is gone.
    Lost(String),
    /// A call failed.
    Other(String),
}

impl Faults {
    fn listen(self: &Arc<Self>, device: &wgpu::Device) {
        let faults = Arc::clone(self);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            faults.record(Fault::Other(match error {
                wgpu::Error::OutOfMemory { .. } => "out of memory; lower --max-memory for this GPU".to_owned(),
                wgpu::Error::Validation { description, .. } => format!("invalid use: {description}"),
                wgpu::Error::Internal { description, .. } => format!("internal error: {description}"),
            }));
        }));
        let faults = Arc::clone(self);
        device.set_device_lost_callback(move |reason, message| {
            // A device that its owner dropped or destroyed is gone on purpose.
            if reason != wgpu::DeviceLostReason::Destroyed {
                let fault = format!("the device was lost ({reason:?}): {message}; the driver may have been reset: run again");
                faults.record(Fault::Lost(fault));
            }
        });
    }

    fn record(&self, fault: Fault) {
        tracing::error!(?fault, "gpu");
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
    }

    fn first(&self) -> Option<Fault> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
