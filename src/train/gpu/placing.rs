//! Which parts of the frozen matrices stay on an adapter, and what all of it takes of the budget, before anything is loaded.

use super::{MostTokens, adapter, memory, norms, readback_bytes, recorder};
use crate::error::{Error, Remedy, Result};
use crate::model::{Model, Op};
use crate::train::adapter::Adapter;
use crate::units::Bytes;
use crate::weights::{Catalog, TensorId};

/// Bytes of a part, at most. It depends on nothing but the matrix and what the adapter can bind, since sums over rows are cut where parts are.
const PART_BYTES: u64 = 16 << 20;
/// Slices of the head begin at multiples of so many rows, whose bytes are aligned as bindings ask for.
const ALIGNED_ROWS: u64 = 256;

/// Some rows of a matrix.
#[derive(Debug, Clone)]
pub(super) struct PartPlan {
    pub(super) matrix: TensorId,
    pub(super) first_row: u64,
    pub(super) n_rows: u64,
    pub(super) size_bytes: Bytes,
    /// Whether it stays.
    pub(super) is_resident: bool,
}

/// What an adapter holds.
#[derive(Debug)]
pub(in crate::train) struct GpuPlan {
    /// In the order of the model.
    pub(super) parts: Vec<PartPlan>,
    /// Bytes of a slot, of which there are two; `None` where nothing streams.
    pub(super) slot: Option<Bytes>,
    /// Everything but weights and slots.
    fixed: Bytes,
}

impl GpuPlan {
    /// For a budget; `max_binding` is the most that the adapter can bind.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`].
    pub(in crate::train) fn new(
        device: &str,
        [budget, max_binding]: [Bytes; 2],
        (model, catalog): (&Model, &Catalog),
        trained: &Adapter,
        most: MostTokens,
    ) -> Result<GpuPlan> {
        let buffers: Bytes = memory::buffers(model, catalog, most).into_iter().map(|(_, size)| size).sum();
        let of_trained = adapter::size_bytes(model, trained, most) + norms::size_bytes(model, trained, most);
        let fixed = buffers + of_trained + recorder::size_bytes() + readback_bytes(model, trained, most);
        let mut plan = GpuPlan { parts: parts_of(model, catalog, max_binding), slot: None, fixed };
        let mut room = budget.saturating_sub(fixed);
        let (all, largest) = (plan.parts.iter().map(|part| part.size_bytes).sum::<Bytes>(), plan.largest_part());
        let slots = if all > room || fixed > budget { largest.times(2) } else { Bytes::ZERO };
        if fixed + slots > budget {
            let remedies =
                [Remedy::other("train with shorter sequences or fewer examples at once"), Remedy::RaiseBudget(device.to_owned())];
            let (device, needed) = (device.to_owned(), fixed + slots);
            return Err(Error::DoesNotFit { device, needed, available: budget, advice: remedies.into() });
        }
        plan.slot = (slots > Bytes::ZERO).then_some(largest);
        room = room.saturating_sub(slots);
        for part in &mut plan.parts {
            part.is_resident = part.size_bytes <= room;
            if part.is_resident {
                room = room.saturating_sub(part.size_bytes);
            }
        }
        Ok(plan)
    }

    fn largest_part(&self) -> Bytes {
        self.parts.iter().map(|part| part.size_bytes).max().unwrap_or_default()
    }

    /// Bytes of parts that stay, and of those that stream.
    pub(in crate::train) fn weights(&self) -> [Bytes; 2] {
        [true, false].map(|stays| self.parts.iter().filter(|part| part.is_resident == stays).map(|part| part.size_bytes).sum())
    }

    /// The most bytes that are in use at once.
    pub(in crate::train) fn peak(&self) -> Bytes {
        self.fixed + self.weights()[0] + self.slot.unwrap_or_default().times(2)
    }
}

/// The products of the model, each once, in its order, in parts.
fn parts_of(model: &Model, catalog: &Catalog, max_binding: Bytes) -> Vec<PartPlan> {
    let mut parts: Vec<PartPlan> = Vec::new();
    for op in model.units.iter().flat_map(|unit| &unit.ops) {
        let Op::MatMul { weight: matrix, .. } = *op else { continue };
        if parts.iter().any(|part| part.matrix == matrix) {
            continue;
        }
        let (n_rows, row_bytes) = (catalog[matrix].n_rows(), catalog[matrix].row_bytes().max(1));
        let most = (PART_BYTES.min(max_binding.0) / row_bytes).max(1);
        let at_once = if most >= ALIGNED_ROWS { most / ALIGNED_ROWS * ALIGNED_ROWS } else { most };
        parts.extend((0..n_rows).step_by(at_once as usize).map(|first_row| {
            let n_rows = at_once.min(n_rows - first_row);
            PartPlan { matrix, first_row, n_rows, size_bytes: Bytes(n_rows * row_bytes).align_up(256), is_resident: false }
        }));
    }
    parts
}
