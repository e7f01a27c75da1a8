//! Submissions to an adapter: dispatches are recorded one by one and submitted together, in submissions long enough to hide their fixed
//! cost and short enough that no watchdog takes the adapter for hung. Knows no kernels.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::device::Device;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::plan::SUBMIT_SECS;
use crate::platform::{Completions, Watchdog};
use crate::stream::gpu_forward::PlacedDispatch;
use crate::stream::{Lane, Span, Trace};
use crate::units::Bytes;

/// Chunks recorded before they are submitted: few enough that the GPU starts early, many enough to hide a submit's cost.
const CHUNKS_PER_SUBMIT: usize = 8;
/// A submission of this length is long enough to hide its cost, whatever is in it.
const LONG_SECS: f64 = 0.02;
/// Shorter submissions say nothing about the adapter's speed: their fixed costs prevail.
const TELLING_SECS: f64 = 2e-3;

/// What is recorded and what is under way.
pub(super) struct Submitter {
    device: Device,
    trace: Trace,
    gpu: Arc<Gpu>,
    /// Open as long as dispatches are recorded; it borrows the encoder, which wgpu checks at run time.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
    recorded: Recorded,
    pace: Arc<Pace>,
    n_under_way: Arc<AtomicUsize>,
    completions: Completions<Submitted>,
}

/// What is recorded since the last submission.
#[derive(Debug, Clone, Copy, Default)]
struct Recorded {
    n_chunks: usize,
    /// The last of which something is recorded.
    chunk: Option<usize>,
    size_bytes: Bytes,
    /// How long it should take, by the adapter's rates.
    secs: f64,
}

/// A submission under way.
struct Submitted {
    recorded: Recorded,
    forward: usize,
    secs: f64,
}

impl Submitter {
    /// Starts the thread that waits for submissions and adds their spans to the trace.
    pub(super) fn start(gpu: &Arc<Gpu>, device: Device, trace: &Trace) -> Result<Submitter> {
        let pace = Arc::<Pace>::default();
        let (watched_trace, watched_pace) = (trace.clone(), Arc::clone(&pace));
        let n_under_way = Arc::<AtomicUsize>::default();
        let n_watched = Arc::clone(&n_under_way);
        let mut last_end_secs = 0.0f64;
        let [asked, late, ended, watched_deadline] = std::array::from_fn(|_| Arc::clone(&gpu.deadline));
        let watchdog = Watchdog {
            timeout: Box::new(move || asked.timeout()),
            late: Box::new(move |timeout| late.note_late(timeout)),
            ended: Box::new(move || ended.note_ended()),
        };
        let completions = Completions::start(&gpu.device, watchdog, move |submitted: Submitted| {
            watched_deadline.note_done();
            n_watched.fetch_sub(1, Ordering::Relaxed);
            // The queue runs submissions one after the other: this one began when the one before it ended.
            let (start_secs, end_secs) = (last_end_secs.max(submitted.secs), watched_trace.now());
            last_end_secs = end_secs;
            let Recorded { chunk, size_bytes, secs, .. } = submitted.recorded;
            watched_pace.observe(secs, end_secs - start_secs);
            let forward = submitted.forward;
            watched_trace.add(Span { lane: Lane::Compute, device, chunk, forward, start_secs, end_secs, size_bytes });
        })?;
        let (gpu, trace) = (Arc::clone(gpu), trace.clone());
        Ok(Submitter { device, trace, gpu, pass: None, encoder: None, recorded: Recorded::default(), pace, n_under_way, completions })
    }

    /// The encoder for copies, which come after all that was recorded before.
    pub(super) fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        self.encoder.get_or_insert_with(|| self.gpu.device.create_command_encoder(&Default::default()))
    }

    /// Records a dispatch of `chunk`. Submits what was recorded before first, where both together would take too long.
    pub(super) fn dispatch(&mut self, placed: &PlacedDispatch, chunk: Option<usize>, forward: usize) -> Result<()> {
        if self.recorded.secs > 0.0 && self.recorded.secs + placed.secs > SUBMIT_SECS / self.pace.slowdown() {
            self.submit(forward, || {})?;
        }
        if self.pass.is_none() {
            self.pass = Some(self.encoder().begin_compute_pass(&Default::default()).forget_lifetime());
        }
        if let Some(pass) = &mut self.pass {
            placed.dispatch.encode(pass, placed.params_offset);
        }
        self.recorded.secs += placed.secs;
        self.recorded.chunk = chunk.or(self.recorded.chunk);
        Ok(())
    }

    /// All of a chunk is recorded.
    pub(super) fn end_chunk(&mut self, size_bytes: Bytes) {
        self.recorded.n_chunks += 1;
        self.recorded.size_bytes += size_bytes;
    }

    /// Whether enough is recorded for a submission.
    pub(super) fn is_due(&self) -> bool {
        self.recorded.n_chunks >= CHUNKS_PER_SUBMIT || self.recorded.secs * self.pace.slowdown() >= LONG_SECS
    }

    /// Whether nothing is submitted that the adapter is not done with.
    pub(super) fn is_idle(&self) -> bool {
        self.n_under_way.load(Ordering::Relaxed) == 0
    }

    /// Submits what is recorded, if anything, and says as what; its span is added once the GPU is done with it. `before_waiting` may request callbacks, which are
    /// called while the submission is waited for.
    pub(super) fn submit(&mut self, forward: usize, before_waiting: impl FnOnce()) -> Result<Option<wgpu::SubmissionIndex>> {
        self.pass = None;
        let Some(encoder) = self.encoder.take() else { return Ok(None) };
        let recorded = std::mem::take(&mut self.recorded);
        let secs = self.trace.now();
        let submission = self.gpu.queue.submit([encoder.finish()]);
        self.gpu.check()?;
        before_waiting();
        self.n_under_way.fetch_add(1, Ordering::Relaxed);
        self.completions.watch(&self.gpu.queue, submission.clone(), Some(Submitted { recorded, forward, secs }));
        Ok(Some(submission))
    }

    /// Forgets what is recorded.
    pub(super) fn discard(&mut self) {
        (self.pass, self.encoder, self.recorded) = (None, None, Recorded::default());
    }

    /// Has pending callbacks of the driver called, once all that was submitted is done.
    pub(super) fn answer(&self) {
        self.completions.watch(&self.gpu.queue, self.gpu.queue.submit([]), None);
    }
}

impl std::fmt::Debug for Submitter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Submitter").field("device", &self.device).field("recorded", &self.recorded).finish_non_exhaustive()
    }
}

/// How many times longer submissions take than by the adapter's rates: it may be busy with something else, or hot.
#[derive(Debug)]
struct Pace {
    slowdown_bits: AtomicU64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { slowdown_bits: AtomicU64::new(1.0f64.to_bits()) }
    }
}

impl Pace {
    fn slowdown(&self) -> f64 {
        f64::from_bits(self.slowdown_bits.load(Ordering::Relaxed))
    }

    /// Grows at once and falls slowly: too short a submission costs little, too long a one the adapter.
    fn observe(&self, expected_secs: f64, measured_secs: f64) {
        if expected_secs.max(measured_secs) >= TELLING_SECS && expected_secs > 0.0 {
            let (now, before) = (measured_secs / expected_secs, self.slowdown());
            let slowdown = now.max(0.9 * before + 0.1 * now).clamp(1.0, 1e3);
            self.slowdown_bits.store(slowdown.to_bits(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_adapter_is_noticed_at_once_and_forgiven_slowly() {
        let pace = Pace::default();
        pace.observe(0.01, 0.04);
        assert!((pace.slowdown() - 4.0).abs() < 1e-9);
        pace.observe(0.01, 0.01);
        assert!((pace.slowdown() - 3.7).abs() < 1e-9);
        (0..100).for_each(|_| pace.observe(0.01, 0.001));
        assert_eq!(pace.slowdown(), 1.0, "faster than measured is no reason for longer submissions");
        pace.observe(1e-5, 1e-3);
        assert_eq!(pace.slowdown(), 1.0, "short ones tell nothing");
    }
}
