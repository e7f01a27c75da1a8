//! Search: from a few first drafts to the placements that a dry run finds fastest, one unit, a run of units or a pair at a
//! time. Works on whole units, so that thousands of drafts are compared in the time of a blink; pieces come later.

use std::ops::Range;

use crate::device::Device;
use crate::plan::costs::MachineCosts;
use crate::plan::dry_run::{DryRun, Transfer};
use crate::plan::pieces::{Piece, SLICE_ALIGNMENT};
use crate::plan::schedule::{Layout, Schedule};
use crate::plan::shape::Shape;
use crate::plan::site::Site;
use crate::plan::sizes::Role;
use crate::plan::{Load, Placement};
use crate::units::Bytes;

/// Pieces of all sketches that are looked at: about a quarter of a second on one core.
pub(super) const EFFORT: usize = 2_000_000;
/// Up to so many units, any three are moved at once.
const N_UNITS_FEW: usize = 12;
/// How many of all sketches are remembered.
const N_BEST: usize = 8;
/// Units that are shaken at once.
const N_SHAKEN: usize = 4;
/// After so many shakes that led nowhere a search ends.
const N_IN_VAIN: usize = 30;
/// Most slots that are tried.
const N_SLOTS_TRIED: usize = 4;
/// Rounds in which the size of slots is settled.
const N_SLOT_ROUNDS: usize = 16;
/// What a second of reading or uploading counts for where it is hidden: of placements that are about as fast, the one that streams
/// least is wanted.
const HIDDEN_COST: f64 = 0.05;
/// A change is worth making where it saves this share of the time: smaller ones only make plans ragged.
const LEAST_GAIN: f64 = 1e-3;

/// Where a unit lives, and who computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Spot {
    /// Index of the worker that computes it.
    pub(super) worker: usize,
    pub(super) home: SpotHome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum SpotHome {
    /// With the worker.
    Resident,
    /// Held in host memory.
    Host,
    /// On disk.
    Disk,
}

/// A spot for every unit after the embedding, and the number of slots of each ring.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Sketch {
    pub(super) spots: Vec<Spot>,
    pub(super) n_slots: usize,
}

impl Sketch {
    /// What is asked of a build.
    pub(super) fn placements(&self, site: &Site<'_>) -> Vec<Placement> {
        let of = |(index, spot): (usize, &Spot)| {
            let device = site.workers[spot.worker].device;
            let home = match spot.home {
                SpotHome::Resident => device,
                SpotHome::Host => Device::Cpu,
                SpotHome::Disk => Device::Disk,
            };
            Placement { execute_on: device, homes: vec![home; site.model.units[index + 1].matrices().count()] }
        };
        let embedding = Placement { execute_on: Device::Cpu, homes: Vec::new() };
        std::iter::once(embedding).chain(self.spots.iter().enumerate().map(of)).collect()
    }

    /// The sketch of placements whose units are whole.
    pub(super) fn of(site: &Site<'_>, placements: &[Placement], n_slots: usize) -> Option<Sketch> {
        let spot = |placement: &Placement| {
            let home = match *placement.homes.first()? {
                home if home == placement.execute_on => SpotHome::Resident,
                Device::Cpu => SpotHome::Host,
                Device::Disk => SpotHome::Disk,
                Device::Gpu(_) => return None,
            };
            let is_whole = placement.homes.iter().all(|other| *other == placement.homes[0]);
            is_whole.then_some(Spot { worker: site.worker(placement.execute_on)?, home })
        };
        Some(Sketch { spots: placements.iter().skip(1).map(spot).collect::<Option<_>>()?, n_slots })
    }
}

/// What stays the same while sketches are compared.
pub(super) struct Search<'a> {
    site: &'a Site<'a>,
    machine: &'a MachineCosts,
    budgets: &'a [Bytes],
    /// Per worker and unit after the embedding.
    units: Vec<Vec<UnitCosts>>,
    /// Per worker: fixed memory as [head, no head].
    base: Vec<[Bytes; 2]>,
    phases: Vec<Phase>,
    /// Whether nothing may stream.
    stays: bool,
    n_looked_at: usize,
}

/// One kind of forward and how often an exchange needs it.
pub(super) struct Phase {
    pub(super) load: Load,
    pub(super) times: f64,
    pub(super) hop_bytes: [Bytes; 2],
}

/// A unit on one worker.
struct UnitCosts {
    block: Bytes,
    beside: Bytes,
    n_dispatches: usize,
    /// Per phase.
    compute_secs: Vec<f64>,
}

/// What a piece has part in: whole units that share a slot, or a share of one.
struct Owner {
    units: Range<usize>,
    share: f64,
}

/// How a worker's memory is divided.
#[derive(Clone, Copy, Default)]
struct Ring {
    slot_bytes: Bytes,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        site: &'a Site<'a>,
        machine: &'a MachineCosts,
        shape: Shape,
        budgets: &'a [Bytes],
        phases: Vec<Phase>,
        stays: bool,
    ) -> Search<'a> {
        let config = &site.model.config;
        let unit_costs = |worker: usize, unit: usize| {
            let own = &site.workers[worker];
            let kv = if site.is_attention(unit) { site.kv_bytes_of_layer(own, shape.ctx_size) } else { Bytes::ZERO };
            let costs = machine.of(own.device);
            let secs = |phase: &Phase| costs.unit_secs(&site.model.units[unit], site.catalog, config, phase.load);
            UnitCosts {
                block: own.block_bytes[unit],
                beside: own.vector_bytes[unit] + kv,
                n_dispatches: own.blocks[unit].iter().map(Piece::n_steps).sum(),
                compute_secs: phases.iter().map(secs).collect(),
            }
        };
        let n_units = site.model.units.len();
        let units = (0..site.workers.len()).map(|worker| (1..n_units).map(|unit| unit_costs(worker, unit)).collect()).collect();
        let passes_on = site.workers.len() > 1;
        let base = |on_host: bool, computes_head: bool| site.working_bytes(shape.forward, Role { computes_head, passes_on, on_host });
        let base = site.workers.iter().map(|own| [base(!own.is_gpu(), true), base(!own.is_gpu(), false)]).collect();
        Search { site, machine, budgets, units, base, phases, stays, n_looked_at: 0 }
    }

    /// Seconds of the exchange that the plan is made for; `None` where the sketch does not fit.
    pub(super) fn secs(&mut self, sketch: &Sketch) -> Option<f64> {
        self.n_looked_at += sketch.spots.len();
        let rings = self.rings(sketch)?;
        let (layout, owners) = self.layout(sketch, &rings);
        self.n_looked_at += owners.len() * self.phases.len();
        let schedule = Schedule::of(&layout);
        let slots: Vec<(Device, usize)> = self.site.workers.iter().map(|own| (own.device, sketch.n_slots)).collect();
        let mut secs = 0.0;
        for (index, phase) in self.phases.iter().enumerate() {
            let transfers: Vec<Transfer> = owners.iter().map(|owner| self.transfer(sketch, owner, index)).collect();
            let streamed = transfers.iter().zip(&layout.pieces).filter(|(_, (executor, home))| executor != home);
            let hidden_secs: f64 = streamed.map(|(transfer, _)| transfer.fetch_secs + transfer.upload_secs).sum();
            let pace = DryRun::new(self.machine, &transfers, &slots, phase.hop_bytes).run(&schedule);
            secs += phase.times * (pace.secs + HIDDEN_COST * hidden_secs);
        }
        Some(secs)
    }

    /// Pieces as they will be cut, near enough; with each, what it has part in.
    fn layout(&self, sketch: &Sketch, rings: &[Option<Ring>]) -> (Layout, Vec<Owner>) {
        let (mut layout, mut owners): (Layout, Vec<Owner>) = (Layout::default(), Vec::with_capacity(sketch.spots.len()));
        // What the slot of the last piece has left for units that follow with the same spot.
        let mut room = Bytes::ZERO;
        for (index, spot) in sketch.spots.iter().enumerate() {
            let device = self.site.workers[spot.worker].device;
            let home = match spot.home {
                SpotHome::Resident => device,
                SpotHome::Host => Device::Cpu,
                SpotHome::Disk => Device::Disk,
            };
            let block = self.units[spot.worker][index].block;
            let slot_bytes = rings[spot.worker].filter(|_| home != device).map_or(Bytes::ZERO, |ring| ring.slot_bytes);
            let follows = index > 0 && sketch.spots[index - 1] == *spot;
            if let Some(owner) = owners.last_mut().filter(|_| follows && block <= room) {
                owner.units.end = index + 1;
                room = room.saturating_sub(block);
                continue;
            }
            let n_pieces = block.0.checked_div(slot_bytes.0).map_or(1, |_| block.0.div_ceil(slot_bytes.0).max(1));
            room = if n_pieces == 1 { slot_bytes.saturating_sub(block) } else { Bytes::ZERO };
            for _ in 0..n_pieces {
                layout.pieces.push((device, home));
                owners.push(Owner { units: index..index + 1, share: 1.0 / n_pieces as f64 });
            }
        }
        let lookahead = self.site.options.lookahead.unwrap_or(sketch.n_slots - 1).clamp(1, sketch.n_slots);
        let with_ring = self.site.workers.iter().zip(rings).filter(|(_, ring)| ring.is_some());
        layout.rings = with_ring.map(|(own, _)| (own.device, sketch.n_slots, lookahead)).collect();
        (layout, owners)
    }

    fn transfer(&self, sketch: &Sketch, Owner { units, share }: &Owner, phase: usize) -> Transfer {
        let spot = sketch.spots[units.start];
        let (own, costs) = (&self.site.workers[spot.worker], &self.units[spot.worker][units.clone()]);
        let bytes = Bytes((costs.iter().map(|unit| unit.block.0).sum::<u64>() as f64 * share) as u64);
        Transfer {
            executor: spot.worker,
            compute_secs: costs.iter().map(|unit| unit.compute_secs[phase]).sum::<f64>() * share,
            upload_secs: self.machine.of(own.device).upload_secs(bytes, own.upload),
            fetch_secs: if spot.home == SpotHome::Disk { self.machine.disk().fetch_secs(bytes) } else { 0.0 },
        }
    }

    /// The rings that the budgets leave room for; `None` where something does not fit.
    fn rings(&self, sketch: &Sketch) -> Option<Vec<Option<Ring>>> {
        let n_workers = self.site.workers.len();
        let (mut fixed, mut largest) = (vec![Bytes::ZERO; n_workers], vec![Bytes::ZERO; n_workers]);
        let (mut n_dispatches, mut is_used) = (vec![1usize; n_workers], vec![false; n_workers]);
        for (index, spot) in sketch.spots.iter().enumerate() {
            let costs = &self.units[spot.worker][index];
            fixed[spot.worker] += costs.beside;
            n_dispatches[spot.worker] += costs.n_dispatches;
            is_used[spot.worker] = true;
            match spot.home {
                SpotHome::Resident => fixed[spot.worker] += costs.block,
                SpotHome::Host | SpotHome::Disk => largest[spot.worker] = largest[spot.worker].max(costs.block),
            }
        }
        let head = sketch.spots.last().map(|spot| spot.worker);
        let mut rings = vec![None; n_workers];
        let (mut shared, mut of_host) = (Bytes::ZERO, Bytes::ZERO);
        for worker in (0..n_workers).filter(|&worker| is_used[worker]) {
            let own = &self.site.workers[worker];
            let mut used = fixed[worker] + self.base[worker][usize::from(head != Some(worker))] + own.params_bytes(n_dispatches[worker]);
            if largest[worker] > Bytes::ZERO {
                let copies = own.ring_copies(sketch.n_slots);
                let room = self.budgets[worker].saturating_sub(used);
                let (slot_bytes, params) = self.largest_slot(sketch, worker, room, copies, largest[worker])?;
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
        (of_host + self.held_bytes(sketch, &rings) <= self.site.host_budget(shared)).then_some(rings)
    }

    /// Bytes that the host holds for adapters, near enough: every piece ends with a padding of half an alignment on average.
    fn held_bytes(&self, sketch: &Sketch, rings: &[Option<Ring>]) -> Bytes {
        let held = sketch.spots.iter().enumerate().filter(|(_, spot)| spot.home == SpotHome::Host);
        let bytes = held.map(|(index, spot)| {
            let block = self.units[spot.worker][index].block;
            let n_pieces = rings[spot.worker].map_or(1, |ring| block.0 / ring.slot_bytes.0.max(1));
            block + Bytes(SLICE_ALIGNMENT / 2).times(n_pieces)
        });
        bytes.sum()
    }

    /// The largest slots that `room` is enough for, and the parameters of the dispatches that cutting for them adds: smaller
    /// slots mean more dispatches, whose parameters make the slots smaller, settled in a few rounds.
    fn largest_slot(&self, sketch: &Sketch, worker: usize, room: Bytes, copies: u64, largest: Bytes) -> Option<(Bytes, Bytes)> {
        let least = self.site.row_bytes.align_up(SLICE_ALIGNMENT);
        let mut params = Bytes::ZERO;
        for _ in 0..N_SLOT_ROUNDS {
            let slot_bytes = Bytes(room.saturating_sub(params).0 / copies).align_down(SLICE_ALIGNMENT).min(largest);
            if slot_bytes < least {
                return None;
            }
            let needed = self.site.workers[worker].params_bytes(self.n_more_dispatches(sketch, worker, slot_bytes));
            if slot_bytes.times(copies) + needed <= room {
                return Some((slot_bytes, needed));
            }
            params = needed;
        }
        None
    }

    /// Dispatches that are added where the streamed units of `worker` are cut for slots of this size.
    fn n_more_dispatches(&self, sketch: &Sketch, worker: usize, slot_bytes: Bytes) -> usize {
        let is_streamed = |spot: &Spot| spot.worker == worker && spot.home != SpotHome::Resident;
        let streamed = sketch.spots.iter().zip(&self.units[worker]).filter(|(spot, _)| is_streamed(spot));
        streamed.map(|(_, costs)| (costs.block.0 / slot_bytes.0.max(1)) as usize).sum()
    }

    /// Every sketch that there is, where that is no more work than a search: the best few with their seconds.
    pub(super) fn all(&mut self, n_slots: usize, effort: usize) -> Option<Vec<(Sketch, f64)>> {
        let spots = self.spots();
        let n_units = self.site.model.units.len() - 1;
        let slots = match self.site.options.n_slots {
            Some(_) => n_slots..=n_slots,
            None => 1..=N_SLOTS_TRIED,
        };
        let n_sketches = spots.len().checked_pow(n_units as u32)?;
        if n_sketches.checked_mul(slots.clone().count() * n_units * 4)? > effort {
            return None;
        }
        let mut best: Vec<(Sketch, f64)> = Vec::new();
        for code in 0..n_sketches {
            let spot = |place: usize| spots[code / spots.len().pow(place as u32) % spots.len()];
            for n_slots in slots.clone() {
                let sketch = Sketch { spots: (0..n_units).map(spot).collect(), n_slots };
                let worst = best.last().filter(|_| best.len() >= N_BEST).map_or(f64::INFINITY, |(_, secs)| *secs);
                if !self.is_allowed(&sketch) {
                    continue;
                }
                if let Some(secs) = self.secs(&sketch).filter(|secs| *secs < worst) {
                    best.truncate(N_BEST - 1);
                    let place = best.partition_point(|(_, other)| *other <= secs);
                    best.insert(place, (sketch, secs));
                }
            }
        }
        Some(best)
    }

    /// Improves a sketch; where nothing small helps any more, shakes a few units and goes on from there, until enough was
    /// tried. Returns the best with its seconds.
    pub(super) fn improve(&mut self, seed: Sketch, effort: usize) -> Option<(Sketch, f64)> {
        let stop_at = self.n_looked_at + effort;
        let spots = self.spots();
        let (mut best, mut best_secs) = (seed.clone(), self.secs(&seed)?);
        self.descend(&mut best, &mut best_secs, stop_at, &spots);
        let mut random = Lcg(1);
        let mut n_in_vain = 0;
        while self.n_looked_at < stop_at && n_in_vain < N_IN_VAIN {
            n_in_vain += 1;
            let mut tried = best.clone();
            for _ in 0..N_SHAKEN {
                let unit = random.below(tried.spots.len());
                tried.spots[unit] = spots[random.below(spots.len())];
            }
            if !self.is_allowed(&tried) {
                continue;
            }
            let Some(mut secs) = self.secs(&tried) else { continue };
            self.descend(&mut tried, &mut secs, stop_at, &spots);
            if secs < best_secs * (1.0 - LEAST_GAIN) {
                (best, best_secs) = (tried, secs);
                n_in_vain = 0;
            }
        }
        Some((best, best_secs))
    }

    /// Takes every small change that helps, until none does or enough was tried.
    fn descend(&mut self, best: &mut Sketch, best_secs: &mut f64, stop_at: usize, spots: &[Spot]) {
        loop {
            let before = *best_secs;
            self.try_runs(best, best_secs, stop_at, spots);
            self.try_swaps(best, best_secs, stop_at);
            if best.spots.len() <= N_UNITS_FEW {
                self.try_triples(best, best_secs, stop_at, spots);
            }
            if self.site.options.n_slots.is_none() {
                for n_slots in 1..=N_SLOTS_TRIED {
                    self.take_if_better(best, best_secs, stop_at, |sketch| sketch.n_slots = n_slots);
                }
            }
            if *best_secs >= before || self.n_looked_at >= stop_at {
                return;
            }
        }
    }

    /// Runs of units to another spot; the long ones first, since one unit alone seldom pays for the hops around it.
    fn try_runs(&mut self, best: &mut Sketch, best_secs: &mut f64, stop_at: usize, spots: &[Spot]) {
        let n_units = best.spots.len();
        let mut run = n_units.next_power_of_two() / 2;
        while run >= 1 {
            for first in (0..n_units).step_by(run) {
                for &spot in spots {
                    let end = (first + run).min(n_units);
                    self.take_if_better(best, best_secs, stop_at, |sketch| sketch.spots[first..end].fill(spot));
                }
            }
            run /= 2;
        }
    }

    /// Two units change places, so that what streams lies where it is hidden best.
    fn try_swaps(&mut self, best: &mut Sketch, best_secs: &mut f64, stop_at: usize) {
        for first in 0..best.spots.len() {
            for second in first + 1..best.spots.len() {
                if best.spots[first] != best.spots[second] {
                    self.take_if_better(best, best_secs, stop_at, |sketch| sketch.spots.swap(first, second));
                }
            }
        }
    }

    /// Any three units to any spots: with few units, one large one may have to make room for two small ones.
    fn try_triples(&mut self, best: &mut Sketch, best_secs: &mut f64, stop_at: usize, spots: &[Spot]) {
        let n_units = best.spots.len();
        for first in 0..n_units {
            for second in first + 1..n_units {
                for third in second..n_units {
                    for code in 0..spots.len().pow(3) {
                        let spot = |place: u32| spots[code / spots.len().pow(place) % spots.len()];
                        self.take_if_better(best, best_secs, stop_at, |sketch| {
                            sketch.spots[third] = spot(2);
                            sketch.spots[second] = spot(1);
                            sketch.spots[first] = spot(0);
                        });
                    }
                }
            }
        }
    }

    fn take_if_better(&mut self, best: &mut Sketch, best_secs: &mut f64, stop_at: usize, change: impl FnOnce(&mut Sketch)) {
        if self.n_looked_at >= stop_at {
            return;
        }
        let mut tried = best.clone();
        change(&mut tried);
        if tried == *best || !self.is_allowed(&tried) {
            return;
        }
        if let Some(secs) = self.secs(&tried).filter(|secs| *secs < *best_secs * (1.0 - LEAST_GAIN)) {
            (*best, *best_secs) = (tried, secs);
        }
    }

    /// Every spot that a unit may take.
    fn spots(&self) -> Vec<Spot> {
        let mut spots = Vec::new();
        for (worker, own) in self.site.workers.iter().enumerate() {
            spots.push(Spot { worker, home: SpotHome::Resident });
            if own.device != Device::Cpu {
                spots.push(Spot { worker, home: SpotHome::Host });
            }
            spots.push(Spot { worker, home: SpotHome::Disk });
        }
        spots
    }

    /// Whether `-ngl` allows it, and nothing streams where nothing may.
    fn is_allowed(&self, sketch: &Sketch) -> bool {
        if self.stays && sketch.spots.iter().any(|spot| spot.home != SpotHome::Resident) {
            return false;
        }
        let limit_of = |spot: &Spot| self.site.resident_limit(&self.site.workers[spot.worker]);
        sketch.spots.iter().enumerate().all(|(index, spot)| spot.home != SpotHome::Resident || index + 1 < limit_of(spot))
    }
}

/// Numbers that look random and are the same every time: Knuth's MMIX multiplier and increment.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }
}
