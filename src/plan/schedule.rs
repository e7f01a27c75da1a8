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

/// What a schedule is made from: who computes each piece, where it lives, and the rings.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    /// Executor and home of every piece, in the order of the computation.
    pub(super) pieces: Vec<(Device, Device)>,
    /// Slots and lookahead of every device that something streams to.
    pub(super) rings: Vec<(Device, usize, usize)>,
}

impl Layout {
    fn of(plan: &Plan) -> Layout {
        let rings = plan.devices.iter().filter_map(|device| device.ring.map(|ring| (device.device, ring.n_slots, ring.lookahead)));
        Layout { pieces: (0..plan.pieces.len()).map(|piece| (plan.executor(piece), plan.home(piece))).collect(), rings: rings.collect() }
    }
}

impl Schedule {
    /// The schedule of a plan.
    pub fn new(plan: &Plan) -> Schedule {
        Schedule::of(&Layout::of(plan))
    }

    /// Orders the steps: each upload begins `lookahead` streamed pieces, of the same ring, before its piece is due.
    pub(super) fn of(layout: &Layout) -> Schedule {
        let mut feeds: Vec<Feed> = layout.rings.iter().map(|ring| Feed::new(layout, *ring)).collect();
        let prologue = feeds.iter().flat_map(|feed| (0..feed.lookahead).map(|ordinal| feed.upload(layout, ordinal))).collect();
        let mut steps = vec![Step::Embed];
        let mut before: Option<Device> = None;
        for (piece, &(executor, home)) in layout.pieces.iter().enumerate() {
            if let Some(from) = before.replace(executor).filter(|&from| from != executor) {
                steps.push(Step::Hop { from, to: executor });
            }
            match feeds.iter_mut().find(|feed| feed.device == executor) {
                Some(feed) if home != executor => feed.compute(layout, piece, &mut steps),
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
    fn new(layout: &Layout, (device, n_slots, lookahead): (Device, usize, usize)) -> Feed {
        let streams = |piece: &usize| layout.pieces[*piece].0 == device && layout.pieces[*piece].1 != device;
        let pieces: Vec<usize> = (0..layout.pieces.len()).filter(streams).collect();
        Feed { device, lookahead: lookahead.min(pieces.len()), n_slots, pieces, n_computed: 0 }
    }

    /// The upload of the streamed piece that is the `ordinal`-th, counted on across forwards.
    fn upload(&self, layout: &Layout, ordinal: usize) -> Step {
        let piece = self.pieces[ordinal % self.pieces.len()];
        if layout.pieces[piece].1 == Device::Disk { Step::FetchUpload(piece) } else { Step::Upload(piece) }
    }

    fn compute(&mut self, layout: &Layout, piece: usize, steps: &mut Vec<Step>) {
        let upload = self.upload(layout, self.n_computed + self.lookahead);
        // With as many uploads under way as there are slots, the next one needs the slot just computed from.
        let order =
            if self.lookahead < self.n_slots { [upload, Step::ComputeStreamed(piece)] } else { [Step::ComputeStreamed(piece), upload] };
        steps.extend(order);
        self.n_computed += 1;
    }
}
