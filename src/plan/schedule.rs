//! The schedule: a plan as the ordered steps of one forward. Plain data, printable, the same for every executor.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::device::Device;
use crate::plan::Plan;

/// The steps of a forward. Each device's ring is first in, first out, so a step need not name its slot; which device
/// a chunk belongs to is in the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// Once, before the first forward: the rings' first uploads.
    pub prologue: Vec<Step>,
    /// At every forward. Its last uploads are the next forward's first: the rings run on across forwards.
    pub steps: Vec<Step>,
    /// The same forward with its batch in two micro-batches of about half of the sequences each, the second a stage behind the first, so
    /// that one device computes the first while another computes the second. Empty where one device computes, and where weights stream:
    /// they would have to stream twice. A forward takes it instead of `steps` where [`predict`](crate::plan::predict) finds it faster.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub in_halves: Vec<Step>,
}

/// One entry of a schedule; numbers index [`Plan::chunks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Token ids become vectors on the first device that computes.
    Embed,
    /// Begin to read a chunk from disk and to bring it to the next slot.
    FetchUpload(usize),
    /// Begin to bring a chunk from host memory to the next slot.
    Upload(usize),
    /// Compute with a chunk that stays on the device that computes it.
    ComputeResident(usize),
    /// Compute with the oldest slot of the ring, which holds this chunk, and free it.
    ComputeStreamed(usize),
    /// Wait until it is known which experts of a chunk the tokens take, bring those to the expert cache that it lacks, and compute with them.
    ComputeCached(usize),
    /// Bring the residual stream from one device that computes to the next.
    Transfer {
        /// Who has it.
        from: Device,
        /// Who needs it.
        to: Device,
    },
    /// Bring the result to the host.
    Readback,
    /// Begin to compute half of a batch (0 or 1) with the chunks of a stage, which are resident on one device.
    StartStage {
        /// Which half.
        half: usize,
        /// The stage's first chunk.
        first: usize,
        /// Its last chunk.
        last: usize,
    },
    /// Wait until a stage is computed for half of a batch, and bring its residual stream, or after the last stage its result, to the host.
    FinishStage {
        /// Which half.
        half: usize,
        /// The stage's last chunk.
        last: usize,
    },
}

/// What a schedule is made from: which device computes with each chunk, which stores it, and the rings.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    /// Every chunk's executor and the device that stores it, in the order of the computation.
    pub(super) chunks: Vec<(Device, Device)>,
    /// Of these, those whose experts pass through a cache.
    pub(super) cached: BTreeSet<usize>,
    /// Slots and lookahead of every device that something streams to.
    pub(super) rings: Vec<(Device, usize, usize)>,
}

impl Layout {
    fn of(plan: &Plan) -> Layout {
        let rings = plan.devices.iter().filter_map(|device| device.ring.map(|ring| (device.device, ring.n_slots, ring.lookahead)));
        Layout {
            chunks: (0..plan.chunks.len()).map(|chunk| (plan.executor(chunk), plan.stored_on(chunk))).collect(),
            cached: (0..plan.chunks.len()).filter(|&chunk| plan.chunks[chunk].is_cached).collect(),
            rings: rings.collect(),
        }
    }
}

/// Consecutive chunks that one device computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Who computes them.
    pub device: Device,
    /// Which they are: a range of [`Plan::chunks`].
    pub chunks: std::ops::Range<usize>,
}

impl Stage {
    /// The stages of chunks that these devices compute.
    pub(super) fn all(executors: impl Iterator<Item = Device>) -> Vec<Stage> {
        let mut stages: Vec<Stage> = Vec::new();
        for (chunk, device) in executors.enumerate() {
            match stages.last_mut() {
                Some(stage) if stage.device == device => stage.chunks.end = chunk + 1,
                _ => stages.push(Stage { device, chunks: chunk..chunk + 1 }),
            }
        }
        stages
    }
}

impl Layout {
    /// See [`Schedule::in_halves`].
    fn in_halves(&self) -> Vec<Step> {
        let streams = |&(executor, stored_on): &(Device, Device)| executor != stored_on;
        let one_computes = self.chunks.windows(2).all(|pair| pair[0].0 == pair[1].0);
        if one_computes || self.chunks.iter().any(streams) {
            return Vec::new();
        }
        let stages = Stage::all(self.chunks.iter().map(|(executor, _)| *executor));
        let mut steps = vec![Step::Embed];
        for tick in 0..=stages.len() {
            // Neighbouring stages are on different devices, so no device has two jobs at a time.
            let stage_of = |half: usize| Some((half, tick.checked_sub(half).and_then(|stage| stages.get(stage))?));
            let mut jobs: Vec<(usize, &Stage)> = (0..2).filter_map(stage_of).collect();
            // Adapters first: they compute on their own, and the host computes in the thread that walks the steps.
            jobs.sort_by_key(|(_, stage)| stage.device);
            steps.extend(jobs.iter().map(|&(half, Stage { chunks, .. })| Step::StartStage {
                half,
                first: chunks.start,
                last: chunks.end - 1,
            }));
            steps.extend(jobs.iter().map(|&(half, Stage { chunks, .. })| Step::FinishStage { half, last: chunks.end - 1 }));
        }
        steps
    }
}

impl Schedule {
    /// The schedule of a plan.
    pub fn new(plan: &Plan) -> Schedule {
        Schedule::of(&Layout::of(plan))
    }

    /// Orders the steps: the upload of a chunk begins `lookahead` chunks of the same ring before it is computed with.
    pub(super) fn of(layout: &Layout) -> Schedule {
        let mut queues: Vec<UploadQueue> = layout.rings.iter().map(|ring| UploadQueue::new(layout, *ring)).collect();
        let prologue = queues.iter().flat_map(|queue| (0..queue.lookahead).map(|ordinal| queue.upload(layout, ordinal))).collect();
        // An upload and a computation for each, at most, and what stands before and behind.
        let mut steps = Vec::with_capacity(2 * layout.chunks.len() + 2);
        steps.push(Step::Embed);
        let mut before: Option<Device> = None;
        for (chunk, &(executor, stored_on)) in layout.chunks.iter().enumerate() {
            if let Some(from) = before.replace(executor).filter(|&from| from != executor) {
                steps.push(Step::Transfer { from, to: executor });
            }
            match queues.iter_mut().find(|queue| queue.device == executor) {
                _ if layout.cached.contains(&chunk) => steps.push(Step::ComputeCached(chunk)),
                Some(queue) if stored_on != executor => queue.compute(layout, chunk, &mut steps),
                _ => steps.push(Step::ComputeResident(chunk)),
            }
        }
        steps.push(Step::Readback);
        Schedule { prologue, steps, in_halves: layout.in_halves() }
    }
}

/// The chunks that stream to one device, in order, and how many of them were computed with.
struct UploadQueue {
    device: Device,
    chunks: Vec<usize>,
    lookahead: usize,
    n_slots: usize,
    n_computed: usize,
}

impl UploadQueue {
    fn new(layout: &Layout, (device, n_slots, lookahead): (Device, usize, usize)) -> UploadQueue {
        let streams = |chunk: &usize| {
            let (executor, stored_on) = layout.chunks[*chunk];
            executor == device && stored_on != device && !layout.cached.contains(chunk)
        };
        let chunks: Vec<usize> = (0..layout.chunks.len()).filter(streams).collect();
        UploadQueue { device, lookahead: lookahead.min(chunks.len()), n_slots, chunks, n_computed: 0 }
    }

    /// The upload of the streamed chunk that is the `ordinal`-th, counted on across forwards.
    fn upload(&self, layout: &Layout, ordinal: usize) -> Step {
        let chunk = self.chunks[ordinal % self.chunks.len()];
        if layout.chunks[chunk].1 == Device::Disk { Step::FetchUpload(chunk) } else { Step::Upload(chunk) }
    }

    fn compute(&mut self, layout: &Layout, chunk: usize, steps: &mut Vec<Step>) {
        let upload = self.upload(layout, self.n_computed + self.lookahead);
        // With as many uploads under way as there are slots, the next one needs the slot just computed from.
        let order =
            if self.lookahead < self.n_slots { [upload, Step::ComputeStreamed(chunk)] } else { [Step::ComputeStreamed(chunk), upload] };
        steps.extend(order);
        self.n_computed += 1;
    }
}
