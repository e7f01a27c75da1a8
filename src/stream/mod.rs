//! Streaming: the overlap loop, and the executors that walk the one schedule as a team.

mod batch;
mod feeder;
mod fetch;
mod gpu_buffers;
mod gpu_executor;
mod gpu_forward;
mod gpu_fusion;
mod gpu_ring;
mod gpu_submit;
mod host_executor;
mod host_values;
mod pipeline;
mod store;
mod team;
mod trace;

use crate::error::{Error, Result};
use crate::host;
use crate::plan::{Schedule, Step};
use crate::platform::{self, Turns};
pub use batch::{Batch, BatchToken, CachedPositions, MAX_TOKENS_TOGETHER, Scores, Want};
pub use gpu_executor::GpuExecutor;
pub use host_executor::HostExecutor;
pub use store::Store;
pub use team::{Member, Team};
pub use trace::{Lane, Span, Trace, TraceSummary};

/// Asked before each step of a forward whether it shall end there.
pub type Cancelled<'a> = dyn Fn() -> bool + Sync + 'a;

/// What a device that computes does for its share of a schedule.
pub trait Executor {
    /// Begins a forward, counted from 0: everything that its units need to know of the batch.
    fn begin(&mut self, batch: &Batch, forward: usize) -> Result<()>;

    /// Begins to bring a piece from disk or host memory to the next slot of the ring; does not wait.
    fn upload(&mut self, piece: usize) -> Result<()>;

    /// Takes the residual stream, `[n_tokens, hidden_size]`.
    fn write_hidden(&mut self, hidden: &[f32]) -> Result<()>;

    /// Computes with a piece that stays on this device.
    fn compute_resident(&mut self, piece: usize) -> Result<()>;

    /// Computes with the oldest slot of the ring, which holds `piece`, once it is there, and frees the slot.
    fn compute_streamed(&mut self, piece: usize) -> impl Future<Output = Result<()>>;

    /// Hands over what is recorded, so that the device computes while others do; does not wait.
    fn flush(&mut self) -> Result<()>;

    /// Gives the residual stream away, once it is computed. `[n_tokens, hidden_size]`
    fn read_hidden(&mut self) -> impl Future<Output = Result<Vec<f32>>>;

    /// Brings the scores to the host, in the order in which the batch asks for them.
    fn readback(&mut self, batch: &Batch) -> impl Future<Output = Result<Vec<Scores>>>;

    /// Forgets a forward that stopped midway: nothing is recorded any more and the ring is empty. What comes next is forward `forward`.
    fn recover(&mut self, forward: usize) -> impl Future<Output = Result<()>>;
}

/// The overlap loop: one forward over the schedule. Uploads only begin here; they run beside the computation. Several
/// sequences on several devices that stream nothing go in two halves, so that the devices compute side by side. Once `cancelled`
/// says so, it ends before its next step.
///
/// # Errors
/// Those of the executors, and [`Error::Interrupted`]. After an error, or where the future is dropped before its end, the rings hold other pieces than a forward
/// expects: [`recover`] comes before the next one.
pub async fn forward(schedule: &Schedule, team: &mut Team, batch: &Batch, cancelled: &Cancelled<'_>) -> Result<Vec<Scores>> {
    if let Some(halves) = pipeline::halves(team.plan(), batch) {
        team.begin_forward();
        let scores = pipeline::forward(team, halves, cancelled).await?;
        team.end_forward();
        return Ok(scores);
    }
    let mut scores = Vec::new();
    let mut turns = Turns::new();
    let waits = |step: &Step| !matches!(step, Step::FetchUpload(_) | Step::Upload(_) | Step::ComputeResident(_));
    for steps in schedule.steps.chunk_by(|before, after| !waits(before) && !waits(after)) {
        check_cancelled(cancelled)?;
        match steps[0] {
            Step::Embed => team.embed(batch)?,
            Step::FetchUpload(_) | Step::Upload(_) | Step::ComputeResident(_) => {
                for some in steps.chunks(STEPS_AT_ONCE) {
                    go_on(team, some, cancelled)?;
                    turns.give().await;
                }
            }
            Step::ComputeStreamed(piece) => team.compute_streamed(piece).await?,
            Step::Hop { from, to } => team.hop(from, to).await?,
            Step::Readback => scores = team.readback(batch).await?,
        }
    }
    Ok(scores)
}

/// So many steps that wait for nothing are one: where a thread may not be kept for long, it hears between two of them.
const STEPS_AT_ONCE: usize = if platform::MAY_BLOCK { usize::MAX } else { 1 };

/// # Errors
/// [`Error::Interrupted`] where it is.
fn check_cancelled(cancelled: &Cancelled<'_>) -> Result<()> {
    if cancelled() { Err(Error::Interrupted) } else { Ok(()) }
}

/// Steps that wait for nothing. Where the host computes, they go over to its threads together, since each time is two handovers:
/// with products of one input side by side, that made decoding of a small model a fifth faster on two cores.
fn go_on(team: &mut Team, steps: &[Step], cancelled: &Cancelled<'_>) -> Result<()> {
    let has_host = team.has_host();
    let mut all = || {
        steps.iter().try_for_each(|step| {
            check_cancelled(cancelled)?;
            match *step {
                Step::FetchUpload(piece) | Step::Upload(piece) => team.upload(piece),
                Step::ComputeResident(piece) => team.compute_resident(piece),
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
pub async fn recover(schedule: &Schedule, team: &mut Team) -> Result<()> {
    team.recover().await?;
    prologue(schedule, team)?;
    team.end_recovery();
    Ok(())
}

/// Begins the rings' first uploads; once, before the first forward.
///
/// # Errors
/// Those of the executors.
pub fn prologue(schedule: &Schedule, team: &mut Team) -> Result<()> {
    go_on(team, &schedule.prologue, &|| false)
}
