//! The schedule: a plan as the ordered steps of one forward. Plain data, printable, the same for every executor.

use serde::Serialize;

use crate::device::Device;
use crate::plan::Plan;

/// The steps of a forward. Each device's ring is first in, first out, so a step need not name its slot; a piece's device
/// is the plan's matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// Once, before the first forward: the rings' first uploads.
    pub prologue: Vec<Step>,
    /// At every forward. Its last uploads are the next forward's first: the rings run on across forwards.
    pub steps: Vec<Step>,
}

/// One entry of a schedule; numbers index [`Plan::pieces`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Token ids become vectors on the first device that computes.
    Embed,
    /// Begin to read a piece from disk and to bring it to the next slot.
    FetchUpload(usize),
    /// Begin to bring a piece from host memory to the next slot.
    Upload(usize),
    /// Compute with a piece that stays on the device that computes it.
    ComputeResident(usize),
    /// Compute with the oldest slot of the ring, which holds this piece, and free it.
    ComputeStreamed(usize),
    /// Bring the residual stream from one device that computes to the next.
    Hop {
        /// Who has it.
        from: Device,
        /// Who needs it.
        to: Device,
    },
    /// Bring the result to the host.
    Readback,
}

impl Schedule {
    /// Orders the steps: each upload begins `lookahead` streamed pieces, of the same ring, before its piece is due.
    pub fn new(plan: &Plan) -> Schedule {
        let mut feeds: Vec<Feed> = plan.executors().into_iter().map(|device| Feed::new(plan, device)).collect();
        let prologue = feeds.iter().flat_map(|feed| (0..feed.lookahead).map(|ordinal| feed.upload(plan, ordinal))).collect();
        let mut steps = vec![Step::Embed];
        let mut before: Option<Device> = None;
        for piece in 0..plan.pieces.len() {
            let device = plan.executor(piece);
            if let Some(from) = before.replace(device).filter(|&from| from != device) {
                steps.push(Step::Hop { from, to: device });
            }
            match feeds.iter_mut().find(|feed| feed.device == device) {
                Some(feed) if !plan.is_resident(piece) => feed.compute(plan, piece, &mut steps),
                _ => steps.push(Step::ComputeResident(piece)),
            }
        }
        steps.push(Step::Readback);
        Schedule { prologue, steps }
    }
}

/// What streams to one device, and how far the computation has come with it.
struct Feed {
    device: Device,
    pieces: Vec<usize>,
    lookahead: usize,
    n_slots: usize,
    n_computed: usize,
}

impl Feed {
    fn new(plan: &Plan, device: Device) -> Feed {
        let pieces: Vec<usize> = plan.streamed_to(device).collect();
        let ring = plan.ring(device);
        let lookahead = ring.map_or(0, |ring| ring.lookahead.min(pieces.len()));
        Feed { device, lookahead, n_slots: ring.map_or(0, |ring| ring.n_slots), pieces, n_computed: 0 }
    }

    /// The upload of the streamed piece that is the `ordinal`-th, counted on across forwards.
    fn upload(&self, plan: &Plan, ordinal: usize) -> Step {
        let piece = self.pieces[ordinal % self.pieces.len()];
        if plan.home(piece) == Device::Disk { Step::FetchUpload(piece) } else { Step::Upload(piece) }
    }

    fn compute(&mut self, plan: &Plan, piece: usize, steps: &mut Vec<Step>) {
        let upload = self.upload(plan, self.n_computed + self.lookahead);
        // With as many uploads under way as there are slots, the next one needs the slot just computed from.
        let order = if self.lookahead < self.n_slots { [upload, Step::ComputeStreamed(piece)] } else { [Step::ComputeStreamed(piece), upload] };
        steps.extend(order);
        self.n_computed += 1;
    }
}
