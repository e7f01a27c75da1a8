//! Streaming: the overlap loop, and the executors that walk the one schedule.

mod batch;
mod dry_run;
mod feeder;
mod gpu_buffers;
mod gpu_executor;
mod gpu_forward;
mod gpu_ring;
mod host_executor;
mod host_values;
mod op_params;
mod store;
mod trace;

use crate::error::Result;
use crate::plan::{Schedule, Step};
pub use batch::{Batch, BatchToken, Scores, Want};
pub use dry_run::{DryRun, Prediction, predict};
pub use gpu_executor::GpuExecutor;
pub use host_executor::HostExecutor;
pub use store::Store;
pub use trace::{Lane, Span, Trace, TraceSummary};

/// Whoever can walk a schedule: a GPU, the host, or a virtual clock.
pub trait Executor {
    /// What a forward yields.
    type Output;

    /// Brings the batch's tokens, as vectors, to the executing device.
    fn embed(&mut self, batch: &Batch) -> Result<()>;

    /// Begins to bring a piece from disk or host memory to the next slot of the ring; does not wait.
    fn upload(&mut self, piece: usize) -> Result<()>;

    /// Computes with a piece that stays on the executing device.
    fn compute_resident(&mut self, piece: usize) -> Result<()>;

    /// Computes with the oldest slot of the ring, which holds `piece`, once it is there, and frees the slot.
    fn compute_streamed(&mut self, piece: usize) -> impl Future<Output = Result<()>>;

    /// Brings the result to the host.
    fn readback(&mut self, batch: &Batch) -> impl Future<Output = Result<Self::Output>>;
}

/// The overlap loop: one forward over the schedule. Uploads only begin here; they run beside the computation.
///
/// # Errors
/// Those of the executor. After an error the ring is in an unknown state: the executor must not be used again.
pub async fn forward<E: Executor>(schedule: &Schedule, executor: &mut E, batch: &Batch) -> Result<Option<E::Output>> {
    let mut output = None;
    for step in &schedule.steps {
        match *step {
            Step::Embed => executor.embed(batch)?,
            Step::FetchUpload(piece) | Step::Upload(piece) => executor.upload(piece)?,
            Step::ComputeResident(piece) => executor.compute_resident(piece)?,
            Step::ComputeStreamed(piece) => executor.compute_streamed(piece).await?,
            Step::Readback => output = Some(executor.readback(batch).await?),
        }
    }
    Ok(output)
}

/// Begins the ring's first uploads; once, before the first forward.
///
/// # Errors
/// Those of the executor.
pub fn prologue<E: Executor>(schedule: &Schedule, executor: &mut E) -> Result<()> {
    for step in &schedule.prologue {
        if let Step::FetchUpload(piece) | Step::Upload(piece) = *step {
            executor.upload(piece)?;
        }
    }
    Ok(())
}
