//! Search: from how many parts each device computes and keeps to the placements that a dry run finds fastest. Layers are alike, so
//! plans are enumerated as counts (`counts.rs`); a bound leaves out what cannot win, the dry run judges the rest, and what it finds
//! best is changed number by number, then unit by unit, for as long as that helps. The same input always takes the same way.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::device::Device;
use crate::plan::ResidentLayers;
use crate::plan::counts::{Counts, MINGLED, N_KINDS, Parts, PlanKind, Share, Spread};
use crate::plan::scorer::Scorer;
use crate::plan::site::Site;
use crate::plan::sketch::{Sketch, Spot, SpotHome};

/// Work of one search, in pieces of dry runs: about half a second on one core.
pub(super) const EFFORT: usize = 4_000_000;
/// Up to so many units, any three are moved at once.
const N_UNITS_FEW: usize = 12;
/// How many of all sketches are remembered.
const N_BEST: usize = 8;
/// Most slots that are tried.
const N_SLOTS_TRIED: usize = 4;
/// A change of units is worth making where it saves this share of the time: smaller ones only make plans ragged.
const LEAST_GAIN: f64 = 1e-3;
/// The same for a change of counts.
const LEAST_GAIN_OF_COUNTS: f64 = 1e-5;
/// Values of one number that are enumerated; of more, so many that lie evenly.
const N_VALUES: usize = 33;
/// Pairs of workers that are enumerated: all of three workers.
const N_PAIRS: usize = 6;
/// Kinds of plans of which the best is improved.
const N_KINDS_IMPROVED: usize = 8;
/// Those of them that are improved unit by unit.
const N_POLISHED: usize = 4;
/// A kind of plan whose bound is so many times the best is left out.
const FAR_FROM_BEST: f64 = 1.1;

/// Searches the placements of one shape.
pub(super) struct Search<'a> {
    scorer: Scorer<'a>,
    parts: Parts,
    /// Whether nothing may stream.
    stays: bool,
}

impl<'a> Search<'a> {
    pub(super) fn new(site: &'a Site<'a>, scorer: Scorer<'a>) -> Search<'a> {
        Search { scorer, parts: Parts::of(site), stays: site.options.resident_layers == ResidentLayers::All }
    }

    fn site(&self) -> &'a Site<'a> {
        self.scorer.site
    }

    /// The best few sketches with their seconds, best first. `seeds` are improved beside what is enumerated.
    pub(super) fn best(mut self, seeds: &[Sketch], n_slots: usize, effort: usize) -> Vec<(Sketch, f64)> {
        let slots = match self.site().options.n_slots {
            Some(_) => n_slots..=n_slots,
            None => 1..=N_SLOTS_TRIED,
        };
        let mut found = self.all(slots.clone(), effort).unwrap_or_else(|| {
            let mut found = self.by_counts(seeds, slots.clone(), effort);
            let of_seed = |seed: &Sketch| Some((seed.clone(), self.scorer.secs(seed)?));
            found.extend(seeds.iter().filter_map(of_seed));
            found.sort_by(|a, b| a.1.total_cmp(&b.1));
            found.dedup_by(|a, b| a.0 == b.0);
            for (sketch, secs) in found.iter_mut().take(N_POLISHED) {
                self.polish(sketch, secs, effort, slots.clone());
            }
            found
        });
        found.sort_by(|a, b| a.1.total_cmp(&b.1));
        found.truncate(N_BEST);
        found
    }

    /// Every sketch that there is, where that is no more work than a search.
    fn all(&mut self, slots: RangeInclusive<usize>, effort: usize) -> Option<Vec<(Sketch, f64)>> {
        let spots = self.spots();
        let n_units = self.site().model.units.len() - 1;
        let n_sketches = spots.len().checked_pow(n_units as u32)?;
        if n_sketches.checked_mul(slots.clone().count() * n_units)? > effort {
            return None;
        }
        let mut best: Vec<(Sketch, f64)> = Vec::new();
        for code in 0..n_sketches {
            let spot = |place: usize| spots[code / spots.len().pow(place as u32) % spots.len()];
            for n_slots in slots.clone() {
                let sketch = Sketch { spots: (0..n_units).map(spot).collect(), n_slots };
                let worst = best.last().filter(|_| best.len() >= N_BEST).map_or(f64::INFINITY, |(_, secs)| *secs);
                if !self.is_allowed(&sketch) || self.scorer.bound(&sketch) >= worst {
                    continue;
                }
                if let Some(secs) = self.scorer.secs(&sketch).filter(|secs| *secs < worst) {
                    best.truncate(N_BEST - 1);
                    let place = best.partition_point(|(_, other)| *other <= secs);
                    best.insert(place, (sketch, secs));
                }
            }
        }
        Some(best)
    }

    /// The best of every kind of plan, improved number by number.
    fn by_counts(&mut self, seeds: &[Sketch], slots: RangeInclusive<usize>, effort: usize) -> Vec<(Sketch, f64)> {
        let mut tried: Vec<(f64, Counts)> = Vec::new();
        let seeds = seeds.iter().filter_map(|seed| self.parts.counts(seed));
        let enumerated: Vec<Counts> = seeds.chain(self.enumerate(slots.clone())).collect();
        for counts in enumerated {
            let sketch = self.parts.sketch(self.site(), &counts);
            if self.is_allowed(&sketch) {
                tried.push((self.scorer.bound(&sketch), counts));
            }
        }
        tried.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut of_kind: BTreeMap<PlanKind, (Counts, Sketch, f64)> = BTreeMap::new();
        let mut least = f64::INFINITY;
        for (bound, counts) in tried {
            if bound >= least * FAR_FROM_BEST || self.scorer.n_looked_at >= effort / 2 {
                break;
            }
            let kind = counts.kind();
            let before = of_kind.get(&kind).map_or(f64::INFINITY, |(_, _, secs)| *secs);
            if let Some((sketch, secs)) = self.secs(&counts, before) {
                least = least.min(secs);
                of_kind.insert(kind, (counts, sketch, secs));
            }
        }
        let mut best: Vec<(Counts, Sketch, f64)> = of_kind.into_values().collect();
        best.sort_by(|a, b| a.2.total_cmp(&b.2));
        for (rank, (counts, sketch, secs)) in best.iter_mut().take(N_KINDS_IMPROVED).enumerate() {
            self.climb(counts, sketch, secs, rank < N_POLISHED, slots.clone(), effort);
        }
        best.into_iter().map(|(_, sketch, secs)| (sketch, secs)).collect()
    }

    /// The sketch of `counts` with its seconds, where they are less than `before`.
    fn secs(&mut self, counts: &Counts, before: f64) -> Option<(Sketch, f64)> {
        let mut sketch = self.parts.sketch(self.site(), counts);
        if !self.is_allowed(&sketch) || self.scorer.bound(&sketch) >= before {
            return None;
        }
        self.parts.settle_host(&self.scorer, &mut sketch)?;
        let secs = self.scorer.secs(&sketch)?;
        (secs < before).then_some((sketch, secs))
    }

    /// Takes the best change of one number for as long as there is one, then any of two numbers where `in_pairs`.
    fn climb(
        &mut self,
        counts: &mut Counts,
        sketch: &mut Sketch,
        secs: &mut f64,
        in_pairs: bool,
        slots: RangeInclusive<usize>,
        effort: usize,
    ) {
        *counts = counts.among(self.site().workers.len());
        while self.scorer.n_looked_at < effort {
            let mut best: Option<(Counts, Sketch, f64)> = None;
            for other in counts.neighbours(slots.clone()) {
                let before = best.as_ref().map_or(*secs * (1.0 - LEAST_GAIN_OF_COUNTS), |(_, _, secs)| *secs);
                if let Some((sketch, secs)) = self.secs(&other, before) {
                    best = Some((other, sketch, secs));
                }
            }
            if best.is_none() && in_pairs {
                let before = *secs * (1.0 - LEAST_GAIN_OF_COUNTS);
                best = counts.second_neighbours().find_map(|other| {
                    let (sketch, secs) = self.secs(&other, before)?;
                    Some((other, sketch, secs))
                });
            }
            let Some(better) = best else { return };
            (*counts, *sketch, *secs) = better;
        }
    }

    /// Plans of one worker or two, by their numbers; others are reached from these by moving parts.
    fn enumerate(&self, slots: RangeInclusive<usize>) -> Vec<Counts> {
        let (n_workers, n_layers) = (self.site().workers.len(), self.parts.n_layers());
        let mut all = Vec::new();
        for worker in 0..n_workers {
            self.enumerate_alone(worker, slots.clone(), &mut all);
        }
        let pairs = (0..n_workers).flat_map(|first| (0..n_workers).map(move |second| [first, second]));
        for pair in pairs.filter(|[first, second]| first != second).take(N_PAIRS) {
            for n in values(n_layers) {
                for n_attention in [n, (n + 1).min(n_layers)].into_iter().chain(values(n_layers)) {
                    self.enumerate_pair(pair, [n_attention, n], slots.clone(), &mut all);
                }
            }
        }
        all
    }

    /// Plans in which one worker computes everything.
    fn enumerate_alone(&self, worker: usize, slots: RangeInclusive<usize>, all: &mut Vec<Counts>) {
        let n_layers = self.parts.n_layers();
        let counts = |streamed: [usize; N_KINDS], streams_head: bool| {
            let share = Share { streamed, ..Share::of_layers(worker, n_layers, 0) };
            let shares = vec![share];
            Counts { shares, head: 0, streams_head, mingled: MINGLED[0], spread: Spread::Evenly, n_slots: *slots.end() }
        };
        all.push(counts([0, 0], false));
        for n in values(n_layers).filter(|_| !self.stays) {
            for (streamed, streams_head) in [[n, n], [n, 0], [0, n]].into_iter().flat_map(|of| [(of, false), (of, true)]) {
                let with = |spread| slots.clone().map(move |n_slots| (spread, n_slots));
                let with = Spread::ALL.into_iter().flat_map(with);
                all.extend(with.map(|(spread, n_slots)| Counts { spread, n_slots, ..counts(streamed, streams_head) }));
            }
        }
    }

    /// Plans in which `first` computes so many parts of each kind, `second` the others.
    fn enumerate_pair(&self, [first, second]: [usize; 2], computed: [usize; N_KINDS], slots: RangeInclusive<usize>, all: &mut Vec<Counts>) {
        let n_layers = self.parts.n_layers();
        let rest = computed.map(|n| n_layers - n);
        let shares = [(first, computed), (second, rest)].map(|(worker, computed)| Share { worker, computed, streamed: [0, 0] });
        let is_whole = computed[0] == computed[1];
        for head in 0..2 {
            let base = Counts {
                shares: shares.to_vec(),
                head,
                streams_head: false,
                mingled: MINGLED[0],
                spread: Spread::Evenly,
                n_slots: *slots.end(),
            };
            for own in (0..2).filter(|_| is_whole && !self.stays) {
                let n = shares[own].computed[0];
                let few_slots = [2.clamp(*slots.start(), *slots.end()), *slots.end()];
                for (n_streamed, n_slots) in values(n).skip(1).flat_map(|n| few_slots.map(|n_slots| (n, n_slots))) {
                    for streamed in [[n_streamed; 2], [0, n_streamed]] {
                        let mut counts = Counts { n_slots, ..base.clone() };
                        counts.shares[own].streamed = streamed;
                        all.push(counts);
                    }
                }
            }
            // Parts alternate where one worker has some of a kind and the other one the rest.
            let is_shared = |kind: usize| computed[kind] > 0 && rest[kind] > 0;
            let mingled = MINGLED.into_iter().filter(|mingled| (0..N_KINDS).all(|kind| !mingled[kind] || is_shared(kind)));
            for mingled in mingled {
                let base = Counts { mingled, ..base.clone() };
                // Attention beside the caches on one worker, most of the rest on the other: the one may have to stream what it has.
                if computed[0] == n_layers && !is_whole && !self.stays {
                    let streamed = [n_layers / 2, n_layers].map(|streamed| [streamed, 0]);
                    all.extend(streamed.map(|streamed| {
                        let mut counts = base.clone();
                        counts.shares[0].streamed = streamed;
                        counts
                    }));
                }
                all.push(base);
            }
        }
    }

    /// Takes every change of units that helps, until none does or enough was tried.
    fn polish(&mut self, best: &mut Sketch, best_secs: &mut f64, effort: usize, slots: RangeInclusive<usize>) {
        let spots = self.spots();
        let stop_at = self.scorer.n_looked_at + effort / 8;
        loop {
            let before = *best_secs;
            self.try_runs(best, best_secs, stop_at, &spots);
            self.try_swaps(best, best_secs, stop_at);
            if best.spots.len() <= N_UNITS_FEW {
                self.try_triples(best, best_secs, stop_at, &spots);
            }
            for n_slots in slots.clone() {
                self.take_if_better(best, best_secs, stop_at, |sketch| sketch.n_slots = n_slots);
            }
            if *best_secs >= before || self.scorer.n_looked_at >= stop_at {
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
        if self.scorer.n_looked_at >= stop_at {
            return;
        }
        let mut tried = best.clone();
        change(&mut tried);
        if tried == *best || !self.is_allowed(&tried) {
            return;
        }
        if self.scorer.bound(&tried) >= *best_secs {
            return;
        }
        if let Some(secs) = self.scorer.secs(&tried).filter(|secs| *secs < *best_secs * (1.0 - LEAST_GAIN)) {
            (*best, *best_secs) = (tried, secs);
        }
    }

    /// Every spot that a unit may take.
    fn spots(&self) -> Vec<Spot> {
        let mut spots = Vec::new();
        for (worker, own) in self.site().workers.iter().enumerate() {
            spots.push(Spot { worker, home: SpotHome::Resident });
            if own.device != Device::Cpu {
                spots.push(Spot { worker, home: SpotHome::Host });
            }
            spots.push(Spot { worker, home: SpotHome::Disk });
        }
        spots
    }

    /// Whether `-ngl` and `--strict` allow it, and nothing streams where nothing may.
    fn is_allowed(&self, sketch: &Sketch) -> bool {
        let site = self.site();
        sketch.spots.iter().enumerate().all(|(index, spot)| {
            let own = &site.workers[spot.worker];
            site.may_hold(own.device)
                && match spot.home {
                    SpotHome::Resident => index + 1 < site.resident_limit(own),
                    SpotHome::Host => !self.stays && self.parts.may_hold[0],
                    SpotHome::Disk => !self.stays && self.parts.may_hold[1],
                }
        })
    }
}

/// 0 to `n`: all, or so many that lie evenly.
fn values(n: usize) -> impl Iterator<Item = usize> + Clone {
    let n_values = (n + 1).min(N_VALUES);
    (0..n_values).map(move |index| index * n / (n_values - 1).max(1))
}
