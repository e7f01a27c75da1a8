//! The schedule: a plan as the ordered steps of one forward. Plain data, printable, the same for every executor.

use serde::Serialize;

use crate::device::Device;
use crate::plan::Plan;

/// The steps of a forward. The ring is first in, first out, so a step need not name its slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// Once, before the first forward: the ring's first uploads.
    pub prologue: Vec<Step>,
    /// At every forward. Its last uploads are the next forward's first: the ring runs on across forwards.
    pub steps: Vec<Step>,
}

/// One entry of a schedule; numbers index [`Plan::pieces`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Token ids become vectors on the executing device.
    Embed,
    /// Begin to read a piece from disk and to bring it to the next slot.
    FetchUpload(usize),
    /// Begin to bring a piece from host memory to the next slot.
    Upload(usize),
    /// Compute with a piece that stays on the executing device.
    ComputeResident(usize),
    /// Compute with the oldest slot of the ring, which holds this piece, and free it.
    ComputeStreamed(usize),
    /// Bring the result to the host.
    Readback,
}

impl Schedule {
    /// Orders the steps: each upload begins `lookahead` streamed pieces before its piece is due.
    pub fn new(plan: &Plan) -> Schedule {
        let streamed: Vec<usize> = plan.streamed_pieces().collect();
        let lookahead = plan.ring.map_or(0, |ring| ring.lookahead.min(streamed.len()));
        let upload = |ordinal: usize| {
            let piece = streamed[ordinal % streamed.len()];
            if plan.home(piece) == Device::Disk { Step::FetchUpload(piece) } else { Step::Upload(piece) }
        };
        let mut steps = vec![Step::Embed];
        let mut n_computed = 0;
        for piece in 0..plan.pieces.len() {
            if plan.is_resident(piece) {
                steps.push(Step::ComputeResident(piece));
                continue;
            }
            let before = plan.ring.is_some_and(|ring| lookahead < ring.n_slots);
            if before {
                steps.push(upload(n_computed + lookahead));
            }
            steps.push(Step::ComputeStreamed(piece));
            if !before {
                // With as many uploads under way as there are slots, the next one needs the slot just computed from.
                steps.push(upload(n_computed + lookahead));
            }
            n_computed += 1;
        }
        steps.push(Step::Readback);
        Schedule { prologue: (0..lookahead).map(upload).collect(), steps }
    }
}
