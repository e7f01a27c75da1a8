//! Greedy placements: units go front to back to a chain of devices, to each as many as fit its budget. What is left over streams to the
//! last one, from host memory while that has room, then from disk.

use crate::device::Device;
use crate::plan::chunks::SLICE_ALIGNMENT;
use crate::plan::refusal::Refusal;
use crate::plan::shape::Shape;
use crate::plan::site::{Site, Worker};
use crate::plan::sizes::Role;
use crate::plan::{Placement, ResidentLayers};
use crate::units::Bytes;

/// Smaller slots are not worth their overhead: the ring takes all the room before its slots get smaller than this.
const SLOT_BYTES_MIN: Bytes = Bytes::kib(64);

/// One try: these devices, these budgets, this shape.
pub(super) struct Greedy<'a> {
    pub(super) site: &'a Site<'a>,
    pub(super) shape: Shape,
    /// What each worker may use.
    pub(super) budgets: &'a [Bytes],
    /// Which workers take part, in this order.
    pub(super) chain: &'a [usize],
    /// Dispatches whose parameters are set aside, per worker.
    pub(super) n_dispatches: &'a [usize],
}

/// Placements, and how large slots may be, per worker.
pub(super) struct Draft {
    pub(super) placements: Vec<Placement>,
    pub(super) slot_limits: Vec<Bytes>,
}

/// Room for weights that stay, and the largest slots that the rest has room for.
#[derive(Debug, Clone, Copy)]
struct Division {
    resident_room: Bytes,
    slot_bytes: Bytes,
}

impl Greedy<'_> {
    pub(super) fn draft(&self) -> Result<Draft, Refusal> {
        let n_units = self.site.model.units.len();
        let mut draft = Draft { placements: Vec::with_capacity(n_units), slot_limits: vec![Bytes(u64::MAX); self.budgets.len()] };
        // The embedding, which has no matrix that is multiplied.
        draft.placements.push(Placement::new(Device::Cpu, Vec::new()));
        let mut shared = Bytes::ZERO;
        for (position, &worker) in self.chain.iter().enumerate() {
            let own = &self.site.workers[worker];
            let first = draft.placements.len();
            let n_left = n_units - first;
            if n_left == 0 {
                break;
            }
            let is_last = position + 1 == self.chain.len();
            if self.n_resident(worker, first, own.alone(), None) == n_left {
                self.keep(own, first, n_left, &mut draft);
            } else if !is_last {
                let n_resident = self.n_resident(worker, first, Role { computes_head: false, passes_on: true, ..own.alone() }, None);
                self.keep(own, first, n_resident.min(n_left - 1), &mut draft);
            } else if self.site.options.resident_layers == ResidentLayers::All {
                return Err(Refusal::Budget);
            } else {
                self.divide_between(worker, first, shared, &mut draft)?;
            }
            if own.shares_host_memory() {
                shared += self.used(worker, first, draft.placements.len());
            }
        }
        Ok(draft)
    }

    /// The next `n_units` stay on `own`.
    fn keep(&self, own: &Worker<'_>, first: usize, n_units: usize, draft: &mut Draft) {
        let stored_on = |unit: usize| vec![own.device; self.site.model.units[unit].matrices().count()];
        draft.placements.extend((first..first + n_units).map(|unit| Placement::new(own.device, stored_on(unit))));
    }

    /// Has `worker` compute everything from `first` on: what fits beside a ring stays, the rest streams.
    fn divide_between(&self, worker: usize, first: usize, shared: Bytes, draft: &mut Draft) -> Result<(), Refusal> {
        let own = &self.site.workers[worker];
        let n_units = self.site.model.units.len();
        let fixed = self.base(worker, own.alone()) + (first..n_units).map(|unit| self.beside(own, unit)).sum();
        let all: Bytes = own.block_bytes[first..].iter().copied().sum();
        // Sums saturate: one that reaches the largest number is too large to be counted.
        if fixed > self.budgets[worker] || fixed + all == Bytes(u64::MAX) {
            return Err(Refusal::Budget);
        }
        let division = self.divide(own, self.budgets[worker].saturating_sub(fixed)).ok_or(Refusal::Budget)?;
        draft.slot_limits[worker] = division.slot_bytes;
        let n_resident = self.n_resident(worker, first, own.alone(), Some(division.resident_room));
        self.keep(own, first, n_resident, draft);
        let resident: Bytes = own.block_bytes[first..first + n_resident].iter().copied().sum();
        let ring = division.slot_bytes.times(own.ring_copies(self.shape.n_slots));
        let shared = if own.shares_host_memory() { shared + fixed + resident + ring } else { shared };
        // What a host that computes does not keep resident comes from disk.
        let mut host_room = own.is_gpu().then(|| self.site.host_budget(shared));
        for unit in first + n_resident..n_units {
            let bytes = self.streamed_bytes(own, unit, division.slot_bytes);
            host_room = host_room.filter(|&room| bytes <= room).map(|room| room.saturating_sub(bytes));
            let stored_on = if host_room.is_some() { Device::Cpu } else { Device::Disk };
            let n_matrices = self.site.model.units[unit].matrices().count();
            draft.placements.push(Placement::new(own.device, vec![stored_on; n_matrices]));
        }
        Ok(())
    }

    /// What a worker uses whatever it computes.
    fn base(&self, worker: usize, role: Role) -> Bytes {
        self.site.working_bytes(self.shape.forward, role) + self.site.workers[worker].params_bytes(self.n_dispatches[worker])
    }

    /// What a worker uses for a unit besides its matrices: vectors, and the KV cache of its layer.
    fn beside(&self, own: &Worker<'_>, unit: usize) -> Bytes {
        own.vector_bytes[unit] + self.site.kv_bytes_of_unit(own, unit, self.shape.ctx_size)
    }

    /// Units from `first` on that `worker` has room for: `room` for their matrices, or its budget for all that they need.
    fn n_resident(&self, worker: usize, first: usize, role: Role, room: Option<Bytes>) -> usize {
        let own = &self.site.workers[worker];
        let (mut taken, room, counts_all) = match room {
            Some(room) => (Bytes::ZERO, room, false),
            None => (self.base(worker, role), self.budgets[worker], true),
        };
        let fits = |unit: &usize| {
            taken += own.block_bytes[*unit];
            if counts_all {
                taken += self.beside(own, *unit);
            }
            taken <= room && taken < Bytes(u64::MAX)
        };
        let end = self.site.model.units.len().min(self.site.resident_limit(own));
        (first..end).take_while(fits).count()
    }

    /// What `worker` uses for the units `first..end`, all resident.
    fn used(&self, worker: usize, first: usize, end: usize) -> Bytes {
        let own = &self.site.workers[worker];
        self.base(worker, own.alone()) + (first..end).map(|unit| own.block_bytes[unit] + self.beside(own, unit)).sum()
    }

    /// Divides the room between what stays and the ring. A slot takes the largest layer part whole, so that it is one
    /// large copy, as long as the ring takes at most a third of the room; it is smaller below that, and it takes more
    /// than a third only to be no smaller than [`SLOT_BYTES_MIN`]. With more room, never less is left for what stays.
    fn divide(&self, own: &Worker<'_>, room: Bytes) -> Option<Division> {
        let copies = own.ring_copies(self.shape.n_slots);
        let largest = |in_layer: bool| {
            let units = self.site.model.units.iter().zip(&own.blocks).filter(|(unit, _)| unit.kind.layer().is_some() == in_layer);
            units.flat_map(|(_, chunks)| chunks).map(|chunk| chunk.size_bytes).max()
        };
        let least = self.site.row_bytes.align_up(SLICE_ALIGNMENT);
        let most = largest(true).or_else(|| largest(false))?.max(least);
        let third = Bytes(room.0 / 3).max(SLOT_BYTES_MIN.times(copies));
        let share = most.times(copies).min(third).min(room).max(least.times(copies));
        if share > room {
            return None;
        }
        Some(Division { resident_room: room.saturating_sub(share), slot_bytes: Bytes(share.0 / copies).align_down(SLICE_ALIGNMENT) })
    }

    /// Most bytes that a unit's chunks take where it streams, padding included.
    fn streamed_bytes(&self, own: &Worker<'_>, unit: usize, slot_bytes: Bytes) -> Bytes {
        let max_slice = slot_bytes.min(own.limits.max_binding_bytes).0.max(1);
        let of_matrix = |size: Bytes, row_bytes: u64| {
            let usable = (max_slice / row_bytes.max(1)).max(1) * row_bytes.max(1);
            size + Bytes(SLICE_ALIGNMENT).times(size.0 / usable + 2)
        };
        let tensors = self.site.model.units[unit].matrices().map(|id| &self.site.catalog[id]);
        tensors.map(|tensor| of_matrix(tensor.size_bytes, tensor.row_bytes())).sum()
    }
}
