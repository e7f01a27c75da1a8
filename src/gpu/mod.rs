//! One open adapter: device, queue, budget, pipelines and the errors that the driver reports by callback.
//! Knows no model, no tensor and no kernel.

mod adapters;
mod bind_groups;
mod deadline;
mod driver_cache;
mod memory;
mod params;
mod pipelines;
mod readback;
mod tables;
mod write;

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use crate::device::{DeviceSpec, GpuLimits, KernelChoice, MatMulVariants};
use crate::error::{Error, Remedy, Result, Setting};
use crate::platform;
use crate::units::Bytes;
pub use adapters::{AdapterFound, divided, list};
use bind_groups::BindGroups;
pub use bind_groups::ObjectCounts;
pub use deadline::{Deadline, GPU_TIMEOUT};
use deadline::{Late, Waited};
pub use memory::{BUFFER_ALIGNMENT, Buffer, Ledger, Purpose, Usage};
pub use params::{PARAMS_STRIDE, ParamsArena};
pub use pipelines::{Access, Dispatch, KernelSource, Pipeline};
pub use readback::{Readback, read, read_all};
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
    /// How long the adapter may finish nothing before a wait on it fails.
    pub deadline: Arc<Deadline>,
    pipelines: pipelines::Pipelines,
    bind_groups: BindGroups,
    readback: Mutex<Option<Buffer>>,
    tables: tables::Tables,
    errors: Arc<UncapturedErrors>,
}

impl Gpu {
    /// Opens `found` with `budget` bytes to give out. `limits`, where given, replaces the adapter's own larger limits,
    /// and all other limits are then WebGPU's defaults, so that a run shows that the smallest adapter would do.
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
            // Small blocks: memory that the allocator takes in advance would be in nobody's budget.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(|refused| Error::Gpu {
            adapter: found.spec.title(),
            reason: format!("the driver refused to open it: {refused}"),
            advice: [
                Remedy::other("update the driver"),
                Remedy::UseInOrderTo("choose another", Setting::Device, "gpu:N".into()),
                Remedy::Use(Setting::Device, "cpu".into()),
            ]
            .into(),
        })?;
        let errors = Arc::new(UncapturedErrors::default());
        errors.listen(&device);
        let limits = adapters::limits_in_force(&required_limits);
        let mut spec = DeviceSpec { limits: Some(limits), ..found.spec.clone() };
        if found.kernels == KernelChoice::Portable {
            spec.rates.variants = MatMulVariants::default();
        }
        Ok(Gpu {
            pipelines: pipelines::Pipelines::new(&device, &adapter.get_info()),
            bind_groups: BindGroups::default(),
            readback: Mutex::new(None),
            tables: tables::Tables::default(),
            ledger: Arc::new(Ledger::new(budget)),
            deadline: Arc::default(),
            device,
            queue,
            spec,
            limits,
            mappable: features.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            subgroup_lanes: subgroup_lanes(found),
            errors,
        })
    }

    /// The first error that the driver reported by callback (validation, out of memory, device lost), if there was one.
    ///
    /// # Errors
    /// [`Error::Gpu`] or [`Error::DeviceLost`] with the driver's words; the same at every later call, since what was computed since is void.
    pub fn check(&self) -> Result<()> {
        if matches!(self.errors.first(), Some(UncapturedError::OutOfMemory | UncapturedError::Other(_))) {
            // Calls on a lost device fail before the driver reports the loss.
            let _ = self.device.poll(wgpu::PollType::Poll);
        }
        match self.errors.first() {
            Some(UncapturedError::Lost(reason)) => Err(Error::DeviceLost { adapter: self.spec.title(), reason }),
            Some(UncapturedError::Other(reason)) => Err(self.error(reason)),
            Some(UncapturedError::OutOfMemory) => {
                let advice = [Remedy::LowerBudgetOfGpu].into();
                Err(Error::Gpu { adapter: self.spec.title(), reason: "out of memory".into(), advice })
            }
            None => Ok(()),
        }
    }

    /// The cause of `error`, with which work on this device ended: the loss of the device where it is lost.
    pub fn cause_of(&self, error: Error) -> Error {
        if matches!(error, Error::DeviceLost { .. } | Error::DeviceTimeout { .. } | Error::Interrupted) {
            return error;
        }
        let n_looks = if platform::MAY_BLOCK && matches!(error, Error::Gpu { .. } | Error::Internal { .. }) { LOSS_LOOKS } else { 1 };
        for look in 0..n_looks {
            if look > 0 {
                std::thread::sleep(LOSS_LOOK);
            }
            // A loss is reported once the work before it has ended, perhaps by another thread that is just about to do so.
            if let Err(lost @ Error::DeviceLost { .. }) = self.wait(None) {
                return lost;
            }
        }
        error
    }

    /// Waits natively until `submission` has run (`None`: all that was submitted); in a browser it returns at once,
    /// since the event loop does the waiting. Await [`read`] or a callback there.
    ///
    /// # Errors
    /// Those of [`Gpu::check`]; [`Error::DeviceTimeout`] where the adapter finished nothing for as long as [`Gpu::deadline`] allows,
    /// [`Error::DeviceLost`] where it did so twice in a row; a poll that failed.
    pub fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let waited = self.deadline.wait(|timeout| {
            let wait = wgpu::PollType::Wait { submission_index: submission.clone(), timeout: Some(timeout) };
            // wgpu 30 panics where this times out just as another thread finds the queue empty: then the next wait is a short one.
            let polled = std::panic::catch_unwind(AssertUnwindSafe(|| self.device.poll(wait)));
            self.check()?;
            match polled {
                Ok(Ok(_)) => Ok(Waited::Done),
                Ok(Err(wgpu::PollError::Timeout)) => Ok(Waited::TimedOut),
                Err(_) => Ok(Waited::Unsure),
                Ok(Err(failed)) => Err(self.error(format!("waiting for it failed: {failed}"))),
            }
        })?;
        waited.map_err(|late| self.late(late))
    }

    /// Waits until all that was submitted has run, in a browser too.
    ///
    /// # Errors
    /// As of [`Gpu::wait`]; in a browser an error of the device.
    pub async fn finish(&self) -> Result<()> {
        let (sender, receiver) = futures_channel::oneshot::channel();
        self.queue.on_submitted_work_done(move || {
            // Nobody listens any more where the caller was dropped.
            let _ = sender.send(());
        });
        self.wait(None)?;
        receiver.await.map_err(|_| self.error("the end of its work was never told"))?;
        self.check()
    }

    /// The output of `work`, which waits for something that this adapter has to finish first.
    ///
    /// # Errors
    /// Those of `work`; those of [`Gpu::wait`] where the adapter is too late. In a browser there is no deadline.
    pub async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = pin!(work);
        let output = std::future::poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(output),
            Poll::Pending => self.deadline.poll_late(context).map(|late| Err(self.late(late))),
        });
        output.await
    }

    /// After a wait that failed: waits once more for all that was submitted.
    ///
    /// # Errors
    /// Those of [`Gpu::wait`], and of a device that was lost before.
    pub fn recover(&self) -> Result<()> {
        self.check()?;
        if self.deadline.has_passed() { self.wait(None) } else { Ok(()) }
    }

    fn late(&self, late: Late) -> Error {
        match late {
            Late::Once(waited) => Error::DeviceTimeout { adapter: self.spec.title(), waited },
            Late::Again(waited) => {
                let secs = waited.as_secs_f64();
                let reason = format!("it has finished nothing in twice {secs} s; its driver hangs: end what else uses it, or restart");
                self.errors.record(UncapturedError::Lost(reason.clone()));
                Error::DeviceLost { adapter: self.spec.title(), reason }
            }
        }
    }

    /// Runs the callbacks that are due, without waiting.
    ///
    /// # Errors
    /// Those of [`Gpu::check`], or a poll that failed.
    pub fn poll(&self) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::Poll);
        self.check()?;
        polled.map(drop).map_err(|failed| self.error(format!("polling it failed: {failed}")))
    }

    /// An [`Error::Gpu`] about this adapter.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::gpu(self.spec.title(), reason)
    }
}

impl Drop for Gpu {
    /// What the driver says from here on is nobody's business any more.
    fn drop(&mut self) {
        self.errors.is_closed.store(true, Ordering::Relaxed);
        if self.deadline.has_passed() {
            // wgpu waits for a queue without a deadline when it is dropped: one that hangs is left to the system.
            std::mem::forget(self.queue.clone());
        }
    }
}

/// How often a failure is checked for being the loss of the device, and the time between two checks.
const LOSS_LOOKS: usize = 20;
const LOSS_LOOK: Duration = Duration::from_millis(1);

/// What kernels that pass values round in a subgroup need.
const SUBGROUP_FEATURES: wgpu::Features = wgpu::Features::SUBGROUP.union(wgpu::Features::SHADER_INT64);

fn subgroup_lanes(found: &AdapterFound) -> Option<u32> {
    let info = found.adapter.get_info();
    let is_fixed = info.subgroup_min_size == info.subgroup_max_size && found.adapter.features().contains(SUBGROUP_FEATURES);
    (is_fixed && found.kernels == KernelChoice::Auto).then_some(info.subgroup_max_size)
}

/// What the driver reported by callback, which may run on any thread. Only the first error is kept, since the rest follow from it; the loss
/// of the device replaces it.
#[derive(Debug, Default)]
struct UncapturedErrors {
    first: Mutex<Option<UncapturedError>>,
    /// The owner has closed the device.
    is_closed: AtomicBool,
}

/// What went wrong, in the driver's words.
#[derive(Debug, Clone)]
enum UncapturedError {
    /// The device is gone.
    Lost(String),
    /// The driver has no memory left.
    OutOfMemory,
    /// A call failed.
    Other(String),
}

impl UncapturedErrors {
    fn listen(self: &Arc<Self>, device: &wgpu::Device) {
        let errors = Arc::clone(self);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            errors.record(match error {
                wgpu::Error::OutOfMemory { .. } => UncapturedError::OutOfMemory,
                wgpu::Error::Validation { description, .. } => UncapturedError::Other(format!("invalid use: {description}")),
                wgpu::Error::Internal { description, .. } => UncapturedError::Other(format!("internal error: {description}")),
            });
        }));
        let errors = Arc::clone(self);
        device.set_device_lost_callback(move |reason, message| {
            let message = if message.is_empty() { String::new() } else { format!(": {message}") };
            let reason = format!("the device was lost ({reason:?}){message}; the driver may have been reset: run again");
            errors.record(UncapturedError::Lost(reason));
        });
    }

    fn record(&self, reason: UncapturedError) {
        if self.is_closed.load(Ordering::Relaxed) {
            return;
        }
        tracing::error!(?reason, "gpu");
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let is_worse = matches!(
            (&*first, &reason),
            (None, _) | (Some(UncapturedError::OutOfMemory | UncapturedError::Other(_)), UncapturedError::Lost(_))
        );
        if is_worse {
            *first = Some(reason);
        }
    }

    fn first(&self) -> Option<UncapturedError> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
