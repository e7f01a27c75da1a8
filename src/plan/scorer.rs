//! Scores of assignments: what memory they take, and how long the request that the plan is made for takes with them, by the dry run.
//! A lower bound of that time, which costs a hundredth of a dry run, comes first: what cannot win is not run.

use std::collections::HashMap;
use std::ops::Range;

use crate::device::Device;
use crate::model::Model;
use crate::plan::assignment::{Assignment, Residency, UnitAssignment};
use crate::plan::chunks::{Chunk, SLICE_ALIGNMENT};
use crate::plan::costs::{MachineCosts, Workload};
use crate::plan::dry_run::{ChunkCost, DryRun, PartCosts, transfer_bytes};
use crate::plan::schedule::{Layout, Schedule};
use crate::plan::shape::Shape;
use crate::plan::site::Site;
use crate::plan::sizes::Role;
use crate::units::Bytes;

/// Rounds in which the size of slots is settled.
const N_SLOT_ROUNDS: usize = 16;
/// What a second of hidden reading or uploading counts: of plans that are about as fast, the one that streams least is better.
const HIDDEN_COST: f64 = 0.05;
/// The share of a bound that a dry run always takes: at the end of a forward, uploads of the next one overlap.
const BOUND_SHARE: f64 = 0.99;
/// Assignments whose bound is computed in the time of one chunk of a dry run, per unit.
const BOUNDS_PER_CHUNK: usize = 16;

/// Kinds of forwards of a request at most: those of its prompt and those of its answer.
const N_KINDS: usize = 2;
/// Links whose uploads a bound sums separately, and one more for all others.
const N_LINKS: usize = 9;

/// What stays the same while assignments are compared.
pub(super) struct Scorer<'a> {
    pub(super) site: &'a Site<'a>,
    machine: &'a MachineCosts,
    budgets: &'a [Bytes],
    /// Per worker and unit after the embedding.
    units: Vec<Vec<UnitCosts>>,
    /// Per worker: fixed memory as [head, no head].
    base: Vec<[Bytes; 2]>,
    kinds: Vec<ForwardKind>,
    /// From one worker to another.
    transfer_secs: Vec<Vec<PerKind>>,
    /// What was found of every assignment that was asked for: searches meet most of them again.
    scores: HashMap<Vec<u16>, Score>,
    /// The work done until now, in chunks of dry runs; bounds count as fractions of one.
    pub(super) n_looked_at: usize,
}

/// One kind of forward and how often a request needs it.
pub(super) struct ForwardKind {
    pub(super) workload: Workload,
    pub(super) times: f64,
    transfer_bytes: [Bytes; 2],
    /// The halves of its batch, where it has several sequences.
    halves: Option<[Workload; 2]>,
}

impl ForwardKind {
    pub(super) fn new(model: &Model, workload: Workload, times: f64) -> ForwardKind {
        ForwardKind { workload, times, transfer_bytes: transfer_bytes(model, workload), halves: workload.halves() }
    }
}

/// Seconds in each kind; nothing in a kind that there is not.
type PerKind = [f64; N_KINDS];

/// What is known of an assignment.
#[derive(Clone, Copy)]
struct Score {
    /// Seconds of the request; `None` where the assignment does not fit.
    secs: Option<f64>,
    /// The work of finding it, as [`Scorer::n_looked_at`] counts.
    n_looked_at: usize,
}

/// A unit on one worker.
struct UnitCosts {
    block: Bytes,
    beside: Bytes,
    n_dispatches: usize,
    compute_secs: PerKind,
    /// For each half of a batch; nothing where there are no halves.
    half_secs: [PerKind; 2],
    /// To bring it to the worker whole, from host memory.
    upload_secs: f64,
    /// To read it from disk whole.
    fetch_secs: f64,
}

/// What a chunk has part in: whole units that share a slot, or a share of one.
struct Owner {
    units: Range<usize>,
    share: f64,
}

/// What one worker's units take together.
#[derive(Clone, Copy, Default)]
struct Sums {
    fixed: Bytes,
    largest_streamed: Bytes,
    n_dispatches: usize,
    is_used: bool,
}

/// The ring of a worker.
#[derive(Clone, Copy, Default)]
pub(super) struct Ring {
    slot_bytes: Bytes,
}

/// How an assignment divides the memory of all devices.
pub(super) struct Memory {
    /// Per worker.
    rings: Vec<Option<Ring>>,
    /// What host memory has left for weights that stream to adapters.
    pub(super) host_room: Bytes,
}

impl<'a> Scorer<'a> {
    pub(super) fn new(
        site: &'a Site<'a>,
        machine: &'a MachineCosts,
        shape: Shape,
        budgets: &'a [Bytes],
        kinds: Vec<ForwardKind>,
    ) -> Scorer<'a> {
        let per_kind = |secs: &dyn Fn(&ForwardKind) -> f64| std::array::from_fn(|index| kinds.get(index).map_or(0.0, secs));
        let unit_costs = |worker: usize, unit: usize| {
            let own = &site.workers[worker];
            let kv = site.kv_bytes_of_unit(own, unit, shape.ctx_size);
            let costs = machine.of(own.device);
            let secs = |workload: Workload| costs.unit_secs(site.model, &site.model.units[unit], site.catalog, workload);
            let secs_of_half = |half: usize| per_kind(&|kind: &ForwardKind| kind.halves.map_or(0.0, |halves| secs(halves[half])));
            let block = own.block_bytes[unit];
            UnitCosts {
                upload_secs: costs.upload_secs(block, own.upload),
                fetch_secs: machine.disk().fetch_secs(block),
                block,
                beside: own.vector_bytes[unit] + kv,
                n_dispatches: own.blocks[unit].iter().map(Chunk::n_steps).sum(),
                compute_secs: per_kind(&|kind: &ForwardKind| secs(kind.workload)),
                half_secs: [0, 1].map(secs_of_half),
            }
        };
        let n_units = site.model.units.len();
        let units = (0..site.workers.len()).map(|worker| (1..n_units).map(|unit| unit_costs(worker, unit)).collect()).collect();
        let passes_on = site.workers.len() > 1;
        let base = |on_host: bool, computes_head: bool| site.working_bytes(shape.forward, Role { computes_head, passes_on, on_host });
        let base = site.workers.iter().map(|own| [base(!own.is_gpu(), true), base(!own.is_gpu(), false)]).collect();
        let transfer_secs = |from: usize, to: usize| -> PerKind {
            let [from, to] = [from, to].map(|worker| machine.of(site.workers[worker].device));
            per_kind(&|kind: &ForwardKind| from.transfer_secs(Some(to), kind.transfer_bytes[0]))
        };
        let n_workers = site.workers.len();
        let transfer_secs = (0..n_workers).map(|from| (0..n_workers).map(|to| transfer_secs(from, to)).collect()).collect();
        Scorer { site, machine, budgets, units, base, kinds, transfer_secs, scores: HashMap::new(), n_looked_at: 0 }
    }

    /// Seconds of the request that the plan is made for; `None` where the assignment does not fit. `memory` is the assignment's, where
    /// that is known.
    pub(super) fn secs(&mut self, assignment: &Assignment, memory: Option<Memory>) -> Option<f64> {
        let key = assignment.key();
        let known = self.scores.get(&key).copied();
        let score = known.unwrap_or_else(|| {
            let score = self.score(assignment, memory);
            self.scores.insert(key, score);
            score
        });
        // What is found again counts as if it were found anew, so that where a search ends does not depend on what is remembered.
        self.n_looked_at += score.n_looked_at;
        score.secs
    }

    /// As [`Scorer::secs`], of an assignment that will not be met again.
    pub(super) fn secs_once(&mut self, assignment: &Assignment) -> Option<f64> {
        let score = self.score(assignment, None);
        self.n_looked_at += score.n_looked_at;
        score.secs
    }

    fn score(&self, assignment: &Assignment, memory: Option<Memory>) -> Score {
        let mut n_looked_at = assignment.units.len() / BOUNDS_PER_CHUNK + 1;
        let memory = memory.or_else(|| self.memory(assignment));
        let Some(memory) = memory.filter(|memory| self.host_bytes(assignment, &memory.rings) <= memory.host_room) else {
            return Score { secs: None, n_looked_at };
        };
        let (layout, owners) = self.layout(assignment, &memory.rings);
        n_looked_at += assignment.units.len() + owners.len() * self.kinds.len();
        let schedule = Schedule::of(&layout);
        let slots: Vec<(Device, usize)> = self.site.workers.iter().map(|own| (own.device, assignment.n_slots)).collect();
        let costs: Vec<ChunkCost> = owners.iter().map(|owner| self.moving_cost(assignment, owner)).collect();
        let streamed = costs.iter().zip(&layout.chunks).filter(|(_, (executor, stored_on))| executor != stored_on);
        let hidden_secs: f64 = streamed.map(|(cost, _)| cost.fetch_secs + cost.upload_secs).sum();
        let part = |transfer_bytes: [Bytes; 2], secs: &dyn Fn(&UnitCosts) -> f64| {
            let mut chunks = costs.clone();
            for (cost, Owner { units, share }) in chunks.iter_mut().zip(&owners) {
                cost.compute_secs = self.units[cost.executor][units.clone()].iter().map(secs).sum::<f64>() * share;
            }
            PartCosts { chunks, transfer_bytes }
        };
        let pace = |parts: &[PartCosts]| DryRun::new(self.machine, parts, &slots).run(&schedule).secs;
        let mut secs = 0.0;
        for (index, kind) in self.kinds.iter().enumerate() {
            let mut of_forward = pace(&[part(kind.transfer_bytes, &|unit| unit.compute_secs[index])]);
            if let Some(halves) = kind.halves.filter(|_| !schedule.in_halves.is_empty()) {
                let bytes = halves.map(|half| transfer_bytes(self.site.model, half));
                of_forward = of_forward.min(pace(&[0, 1].map(|half| part(bytes[half], &|unit| unit.half_secs[half][index]))));
            }
            secs += kind.times * (of_forward + HIDDEN_COST * hidden_secs);
        }
        Score { secs: Some(secs), n_looked_at }
    }

    /// Seconds that [`Scorer::secs`] never stays below: units are computed one after the other, or each device computes its units for
    /// both halves of a batch, and each link and the disk carry what streams.
    pub(super) fn bound(&mut self, assignment: &Assignment) -> f64 {
        self.n_looked_at += assignment.units.len() / BOUNDS_PER_CHUNK + 1;
        let (mut computes, mut fetches) = ([0.0; N_KINDS], 0.0);
        let (mut uploads, mut of_workers) = ([0.0; N_LINKS], [PerKind::default(); N_LINKS]);
        let add = |computes: &mut PerKind, secs: &PerKind| computes.iter_mut().zip(secs).for_each(|(sum, secs)| *sum += secs);
        let mut before = assignment.units.first().map_or(0, |unit| unit.worker);
        for (index, unit) in assignment.units.iter().enumerate() {
            let costs = &self.units[unit.worker][index];
            add(&mut computes, &costs.compute_secs);
            costs.half_secs.iter().for_each(|half| add(&mut of_workers[unit.worker.min(N_LINKS - 1)], half));
            if unit.worker != before {
                add(&mut computes, &self.transfer_secs[before][unit.worker]);
                before = unit.worker;
            }
            if unit.residency != Residency::Resident {
                uploads[unit.worker.min(N_LINKS - 1)] += costs.upload_secs;
            }
            if unit.residency == Residency::Disk {
                fetches += costs.fetch_secs;
            }
        }
        // Workers beyond the last link share it here, and a sum is no bound.
        let n_links = self.site.workers.len().min(N_LINKS - 1);
        let moves = uploads[..n_links].iter().copied().fold(fetches, f64::max);
        let hidden_secs = uploads.iter().sum::<f64>() + fetches;
        let of_kind = |(index, kind): (usize, &ForwardKind)| {
            let in_halves = || of_workers[..n_links].iter().map(|secs| secs[index]).fold(0.0, f64::max);
            let computes = kind.halves.map_or(computes[index], |_| computes[index].min(in_halves()));
            kind.times * (BOUND_SHARE * moves.max(computes) + HIDDEN_COST * hidden_secs)
        };
        self.kinds.iter().enumerate().map(of_kind).fold(0.0, |secs, of_kind| secs + of_kind)
    }

    /// Chunks as they will be cut, near enough; with each, what it has part in.
    fn layout(&self, assignment: &Assignment, rings: &[Option<Ring>]) -> (Layout, Vec<Owner>) {
        let (mut layout, mut owners): (Layout, Vec<Owner>) = (Layout::default(), Vec::with_capacity(assignment.units.len()));
        // What the slot of the last chunk has left for units that follow with the same worker and residency.
        let mut room = Bytes::ZERO;
        for (index, unit) in assignment.units.iter().enumerate() {
            let device = self.site.workers[unit.worker].device;
            let stored_on = unit.residency.device(device);
            let block = self.units[unit.worker][index].block;
            let slot_bytes = rings[unit.worker].filter(|_| stored_on != device).map_or(Bytes::ZERO, |ring| ring.slot_bytes);
            let follows = index > 0 && assignment.units[index - 1] == *unit;
            if let Some(owner) = owners.last_mut().filter(|_| follows && block <= room) {
                owner.units.end = index + 1;
                room = room.saturating_sub(block);
                continue;
            }
            let n_chunks = block.0.checked_div(slot_bytes.0).map_or(1, |_| block.0.div_ceil(slot_bytes.0).max(1));
            room = if n_chunks == 1 { slot_bytes.saturating_sub(block) } else { Bytes::ZERO };
            for _ in 0..n_chunks {
                layout.chunks.push((device, stored_on));
                owners.push(Owner { units: index..index + 1, share: 1.0 / n_chunks as f64 });
            }
        }
        let lookahead = self.site.options.lookahead.unwrap_or(assignment.n_slots - 1).clamp(1, assignment.n_slots);
        let with_ring = self.site.workers.iter().zip(rings).filter(|(_, ring)| ring.is_some());
        layout.rings = with_ring.map(|(own, _)| (own.device, assignment.n_slots, lookahead)).collect();
        (layout, owners)
    }

    /// What it costs to bring a chunk to its worker.
    fn moving_cost(&self, assignment: &Assignment, Owner { units, share }: &Owner) -> ChunkCost {
        let unit = assignment.units[units.start];
        let (own, costs) = (&self.site.workers[unit.worker], &self.units[unit.worker][units.clone()]);
        let bytes = Bytes((costs.iter().map(|unit| unit.block.0).sum::<u64>() as f64 * share) as u64);
        ChunkCost {
            executor: unit.worker,
            compute_secs: 0.0,
            upload_secs: self.machine.of(own.device).upload_secs(bytes, own.upload),
            fetch_secs: if unit.residency == Residency::Disk { self.machine.disk().fetch_secs(bytes) } else { 0.0 },
            moved_bytes: bytes,
            fetched_bytes: bytes,
            host_secs: 0.0,
            is_whole: false,
        }
    }

    /// The rings that the budgets leave room for, and the host memory that the workers leave free; `None` where the assignment does not fit.
    pub(super) fn memory(&self, assignment: &Assignment) -> Option<Memory> {
        let n_workers = self.site.workers.len();
        let mut sums = vec![Sums::default(); n_workers];
        for (index, unit) in assignment.units.iter().enumerate() {
            let (costs, own) = (&self.units[unit.worker][index], &mut sums[unit.worker]);
            own.fixed += costs.beside;
            own.n_dispatches += costs.n_dispatches;
            own.is_used = true;
            match unit.residency {
                Residency::Resident => own.fixed += costs.block,
                Residency::Host | Residency::Disk => own.largest_streamed = own.largest_streamed.max(costs.block),
            }
        }
        let head = assignment.units.last().map(|unit| unit.worker);
        let mut rings = vec![None; n_workers];
        let (mut shared, mut of_host) = (Bytes::ZERO, Bytes::ZERO);
        for (worker, sums) in sums.into_iter().enumerate().filter(|(_, sums)| sums.is_used) {
            let own = &self.site.workers[worker];
            // One more selects the best tokens.
            let params = own.params_bytes(sums.n_dispatches + 1);
            let mut used = sums.fixed + self.base[worker][usize::from(head != Some(worker))] + params;
            if sums.largest_streamed > Bytes::ZERO {
                let copies = own.ring_copies(assignment.n_slots);
                let room = self.budgets[worker].saturating_sub(used);
                let (slot_bytes, params) = self.largest_slot(assignment, worker, room, copies, sums.largest_streamed)?;
                rings[worker] = Some(Ring { slot_bytes });
                used += params + slot_bytes.times(copies);
            }
            if used > self.budgets[worker] {
                return None;
            }
            if own.shares_host_memory() {
                shared += used;
            }
            if own.device == Device::Cpu {
                of_host = used;
            }
        }
        let host_budget = self.site.host_budget(shared);
        (of_host <= host_budget).then(|| Memory { rings, host_room: host_budget.saturating_sub(of_host) })
    }

    /// What cutting adds to the host-resident bytes that stream to adapters, at most.
    pub(super) fn host_padding(&self, assignment: &Assignment, memory: &Memory) -> Bytes {
        let on_host = assignment.units.iter().enumerate().filter(|(_, unit)| unit.residency == Residency::Host);
        let block_bytes: Bytes = on_host.map(|(index, unit)| self.units[unit.worker][index].block).sum();
        self.host_bytes(assignment, &memory.rings).saturating_sub(block_bytes)
    }

    /// Host-resident bytes that stream to adapters, near enough: every chunk ends with a padding of half an alignment on average.
    fn host_bytes(&self, assignment: &Assignment, rings: &[Option<Ring>]) -> Bytes {
        let on_host = assignment.units.iter().enumerate().filter(|(_, unit)| unit.residency == Residency::Host);
        let bytes = on_host.map(|(index, unit)| {
            let block = self.units[unit.worker][index].block;
            let n_chunks = rings[unit.worker].map_or(1, |ring| block.0 / ring.slot_bytes.0.max(1));
            block + Bytes(SLICE_ALIGNMENT / 2).times(n_chunks)
        });
        bytes.sum()
    }

    /// The largest slots that `room` is enough for, and the parameters of the dispatches that cutting for them adds: smaller
    /// slots mean more dispatches, whose parameters make the slots smaller, settled in a few rounds.
    fn largest_slot(&self, assignment: &Assignment, worker: usize, room: Bytes, copies: u64, largest: Bytes) -> Option<(Bytes, Bytes)> {
        let least = self.site.row_bytes.align_up(SLICE_ALIGNMENT);
        let mut params = Bytes::ZERO;
        for _ in 0..N_SLOT_ROUNDS {
            let slot_bytes = Bytes(room.saturating_sub(params).0 / copies).align_down(SLICE_ALIGNMENT).min(largest);
            if slot_bytes < least {
                return None;
            }
            let needed = self.site.workers[worker].params_bytes(self.n_more_dispatches(assignment, worker, slot_bytes));
            if slot_bytes.times(copies) + needed <= room {
                return Some((slot_bytes, needed));
            }
            params = needed;
        }
        None
    }

    /// Bytes that `worker` computes with of a unit.
    pub(super) fn block_bytes(&self, worker: usize, unit: usize) -> Bytes {
        self.units[worker][unit].block
    }

    /// Dispatches that are added where the streamed units of `worker` are cut for slots of this size.
    fn n_more_dispatches(&self, assignment: &Assignment, worker: usize, slot_bytes: Bytes) -> usize {
        let is_streamed = |unit: &UnitAssignment| unit.worker == worker && unit.residency != Residency::Resident;
        let streamed = assignment.units.iter().zip(&self.units[worker]).filter(|(unit, _)| is_streamed(unit));
        streamed.map(|(_, costs)| (costs.block.0 / slot_bytes.0.max(1)) as usize).sum()
    }
}
