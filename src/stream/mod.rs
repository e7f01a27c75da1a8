//! Streaming: the overlap loop, which walks a schedule, and the executors that carry out its steps.

pub(crate) mod batch;
mod executors;
mod expert_cache;
mod expert_parts;
mod fetch;
mod gpu_buffers;
mod gpu_executor;
mod gpu_forward;
mod gpu_fusion;
mod gpu_ring;
mod gpu_submit;
mod halves;
mod host_executor;
mod host_experts;
pub(crate) mod host_values;
pub(crate) mod kv_blocks;
mod slot_pool;
pub(crate) mod store;
mod trace;
mod uploader;
mod warm_experts;

use std::ops::Range;

use crate::error::{Error, Result};
use crate::host;
use crate::model::{Model, ValueId};
use crate::plan::{Schedule, Step};
use crate::platform::{self, Turns};
pub use batch::{Batch, BatchToken, CachedPositions, Logits, LogitsRequest, MAX_TOKENS_TOGETHER};
pub use executors::{DeviceExecutor, Executors};
pub use expert_cache::ExpertStatistics;
pub use gpu_executor::GpuExecutor;
pub use halves::Halves;
pub use host_executor::HostExecutor;
pub use kv_blocks::{BlockCopy, KvBlocks};
pub use slot_pool::{Reserved, SlotPolicy, SlotPool};
pub use store::{Kept, Store};
pub use trace::{Lane, Span, Trace, TraceSummary};
pub use warm_experts::WarmExperts;

/// Asked before each step of a forward whether it shall end there.
pub type Cancelled<'a> = dyn Fn() -> bool + Sync + 'a;

/// The rows of each value that is passed on, of which `hidden` has one behind the other, as many as it has.
fn passed_on<'a>(model: &'a Model, n_tokens: usize, mut hidden: &'a [f32]) -> impl Iterator<Item = (ValueId, &'a [f32])> {
    model.passed_on().map_while(move |id| {
        let (rows, behind) = hidden.split_at_checked(n_tokens * model.value(id).width).filter(|(rows, _)| !rows.is_empty())?;
        hidden = behind;
        Some((id, rows))
    })
}

/// What a device that computes does for its share of a schedule.
pub trait Executor {
    /// Begins forward number `forward`, counted from 0, with this batch, whose sequences have these blocks.
    fn begin(&mut self, batch: &Batch, blocks: &KvBlocks, forward: usize) -> Result<()>;

    /// Begins to bring a chunk from disk or host memory to the next slot of the ring; does not wait.
    fn upload(&mut self, chunk: usize) -> Result<()>;

    /// Sets the residual stream and what is passed on with it: of each of [`Model::passed_on`] `[n_tokens, width]`, one behind the other.
    /// Values that `hidden` ends before stay as they are.
    fn write_hidden(&mut self, hidden: &[f32]) -> Result<()>;

    /// Computes with a chunk that stays on this device.
    fn compute_resident(&mut self, chunk: usize) -> Result<()>;

    /// Waits until `chunk` is in the oldest slot of the ring, computes with it, and frees the slot.
    fn compute_streamed(&mut self, chunk: usize) -> impl Future<Output = Result<()>>;

    /// Waits until it is known which experts of `chunk` the tokens take, brings those to the expert cache that it lacks, and computes with them.
    fn compute_cached(&mut self, chunk: usize) -> impl Future<Output = Result<()>>;

    /// Hands over what is recorded, so that the device computes while others do; does not wait.
    fn flush(&mut self) -> Result<()>;

    /// The residual stream and what is passed on with it, once they are computed; as [`Executor::write_hidden`] has them.
    fn read_hidden(&mut self) -> impl Future<Output = Result<Vec<f32>>>;

    /// Brings the logits to the host, in the order in which the batch asks for them.
    fn readback(&mut self, batch: &Batch) -> impl Future<Output = Result<Vec<Logits>>>;

    /// Copies keys and values of a block to another one, between forwards.
    fn copy_block(&mut self, copy: BlockCopy) -> Result<()>;

    /// Where it keeps what it keeps of the first `n_positions` of a sequence in a layer, in these blocks: ranges of bytes, none where others
    /// compute the layer.
    fn kept(&self, layer: usize, sequence: (u32, &[u32]), n_positions: usize) -> Vec<(Kept, Range<u64>)>;

    /// The bytes of such ranges, one behind the other, between forwards.
    fn read_kept(&mut self, layer: usize, ranges: &[(Kept, Range<u64>)]) -> impl Future<Output = Result<Vec<u8>>>;

    /// Puts them back.
    fn write_kept(&mut self, layer: usize, ranges: &[(Kept, Range<u64>)], bytes: &[u8]) -> Result<()>;

    /// Forgets a forward that stopped midway: nothing is recorded any more and the ring is empty. What comes next is forward `forward`.
    fn recover(&mut self, forward: usize) -> impl Future<Output = Result<()>>;
}

/// The overlap loop: one forward over the schedule. Uploads only begin here; they run while devices compute. With `halves` of the
/// batch, which [`halves_pay`](crate::plan::halves_pay) decides on, they are pipelined, so that devices compute at the same time. A whole
/// batch begins with its tokens, or with the residual stream that is `given` for them. Once `cancelled` says so, it ends before its next
/// step.
///
/// # Errors
/// Those of the executors, and [`Error::Interrupted`]. After an error, or where the future is dropped before its end, the rings have other
/// chunks in them than the next forward expects: call [`recover`] before it.
pub async fn forward(
    schedule: &Schedule,
    executors: &mut Executors,
    batch: &Batch,
    given: Option<&[f32]>,
    mut halves: Option<Halves>,
    cancelled: &Cancelled<'_>,
) -> Result<Vec<Logits>> {
    let mut logits = Vec::new();
    let mut turns = Turns::new();
    let waits = |step: &Step| !matches!(step, Step::FetchUpload(_) | Step::Upload(_) | Step::ComputeResident(_));
    let steps = if halves.is_some() { &schedule.in_halves } else { &schedule.steps };
    for steps in steps.chunk_by(|before, after| !waits(before) && !waits(after)) {
        check_cancelled(cancelled)?;
        match (steps[0], &mut halves) {
            (Step::Embed, None) => executors.embed(batch, given)?,
            (Step::Embed, Some(halves)) => halves.embed(executors)?,
            (Step::FetchUpload(_) | Step::Upload(_) | Step::ComputeResident(_), _) => {
                for some in steps.chunks(STEPS_AT_ONCE) {
                    run_steps(executors, some, cancelled)?;
                    turns.give().await;
                }
            }
            (Step::ComputeStreamed(chunk), _) => executors.compute_streamed(chunk).await?,
            (Step::ComputeCached(chunk), _) => executors.compute_cached(chunk).await?,
            (Step::Transfer { from, to }, _) => executors.transfer(from, to).await?,
            (Step::Readback, _) => logits = executors.readback(batch).await?,
            (Step::StartStage { half, first, last }, Some(halves)) => halves.start_stage(executors, half, first, last)?,
            (Step::FinishStage { half, last }, Some(halves)) => halves.finish_stage(executors, half, last).await?,
            (Step::StartStage { .. } | Step::FinishStage { .. }, None) => return Err(halves::no_such_half()),
        }
    }
    executors.end_forward();
    Ok(halves.map_or(logits, Halves::into_logits))
}

/// Steps that wait for nothing are started so many at a time: where the thread may not be kept for long, it is given back after each.
const STEPS_AT_ONCE: usize = if platform::MAY_BLOCK { usize::MAX } else { 1 };

/// # Errors
/// [`Error::Interrupted`] where it is.
fn check_cancelled(cancelled: &Cancelled<'_>) -> Result<()> {
    if cancelled() { Err(Error::Interrupted) } else { Ok(()) }
}

/// Runs steps that wait for nothing. Where the host computes, its thread pool gets them all at once, since each time costs two handovers:
/// with fused products, that made decoding of a small model a fifth faster on two cores.
fn run_steps(executors: &mut Executors, steps: &[Step], cancelled: &Cancelled<'_>) -> Result<()> {
    let has_host = executors.has_host();
    let mut all = || {
        steps.iter().try_for_each(|step| {
            check_cancelled(cancelled)?;
            match *step {
                Step::FetchUpload(chunk) | Step::Upload(chunk) => executors.upload(chunk),
                Step::ComputeResident(chunk) => executors.compute_resident(chunk),
                _ => Ok(()),
            }
        })
    };
    if has_host { host::among_threads(all) } else { all() }
}

/// After a forward that failed or was dropped midway: empties the rings and begins them anew.
///
/// # Errors
/// Those of the executors; [`crate::error::Error::DeviceLost`] where an adapter is gone, after which the model must be loaded again.
pub async fn recover(schedule: &Schedule, executors: &mut Executors) -> Result<()> {
    executors.recover().await?;
    prologue(schedule, executors)?;
    executors.end_recovery();
    Ok(())
}

/// Begins the rings' first uploads; once, before the first forward.
///
/// # Errors
/// Those of the executors.
pub fn prologue(schedule: &Schedule, executors: &mut Executors) -> Result<()> {
    run_steps(executors, &schedule.prologue, &|| false)
}
