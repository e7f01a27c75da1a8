//! Search: which device should compute each unit, and where its matrices should be stored, so that a request takes the least time.
//!
//! 1. Enumerate plans as counts (`counts.rs`), with those of `seeds`; a lower bound of their time leaves out what cannot win.
//! 2. Score the others by a dry run (`scorer.rs`) and keep the best of each kind of plan.
//! 3. Improve the counts of the best kinds by hill climbing, one number at a time, then two.
//! 4. Improve the best assignments unit by unit.
//!
//! A model with few units skips all that: every assignment is scored. Work is limited by `effort`, which counts steps and not time, so
//! that the same input always gives the same result.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::device::Device;
use crate::plan::ResidentLayers;
use crate::plan::assignment::{Assignment, Residency, UnitAssignment};
use crate::plan::counts::{Counts, INTERLEAVED, N_KINDS, Parts, PlanKind, Share, Spread};
use crate::plan::scorer::Scorer;
use crate::plan::site::Site;

/// Work of one search, in chunks of dry runs: about half a second on one core.
pub(super) const EFFORT: usize = 4_000_000;
/// Up to so many units, any three are moved at once.
const N_UNITS_FEW: usize = 12;
/// How many of the best assignments are returned.
const N_BEST: usize = 8;
/// Most slots that are tried.
const N_SLOTS_TRIED: usize = 4;
/// A change of units is worth making where it saves this share of the time: smaller ones only make plans irregular.
const LEAST_GAIN: f64 = 1e-3;
/// The same for a change of counts.
const LEAST_GAIN_OF_COUNTS: f64 = 1e-5;
/// Most values of one number that are enumerated: of a larger range, evenly spaced ones.
const N_VALUES: usize = 33;
/// Pairs of workers that are enumerated: all of three workers.
const N_PAIRS: usize = 6;
/// Kinds of plans whose best is improved.
const N_KINDS_IMPROVED: usize = 8;
/// Those of them that are improved unit by unit.
const N_REFINED: usize = 4;
/// Counts whose bound is so many times the best time are left out.
const FAR_FROM_BEST: f64 = 1.1;

/// Searches the placements of one shape.
pub(super) struct Search<'a> {
    scorer: Scorer<'a>,
    parts: Parts,
    /// Whether nothing may stream.
    stays: bool,
    /// Memory for assignments that are tried.
    scratch: Assignment,
}

impl<'a> Search<'a> {
    pub(super) fn new(site: &'a Site<'a>, scorer: Scorer<'a>) -> Search<'a> {
        let stays = site.options.resident_layers == ResidentLayers::All;
        Search { scorer, parts: Parts::of(site), stays, scratch: Assignment::default() }
    }

    fn site(&self) -> &'a Site<'a> {
        self.scorer.site
    }

    /// The best few assignments with their seconds, best first. Besides what is enumerated, `seeds` are improved.
    pub(super) fn best(mut self, seeds: &[Assignment], n_slots: usize, effort: usize) -> Vec<(Assignment, f64)> {
        let slots = match self.site().options.n_slots {
            Some(_) => n_slots..=n_slots,
            None => 1..=N_SLOTS_TRIED,
        };
        let mut found = self.all(slots.clone(), effort).unwrap_or_else(|| {
            let mut found = self.by_counts(seeds, slots.clone(), effort);
            let of_seed = |seed: &Assignment| Some((seed.clone(), self.scorer.secs(seed, None)?));
            found.extend(seeds.iter().filter_map(of_seed));
            found.sort_by(|a, b| a.1.total_cmp(&b.1));
            found.dedup_by(|a, b| a.0 == b.0);
            for (assignment, secs) in found.iter_mut().take(N_REFINED) {
                self.refine(assignment, secs, effort, slots.clone());
            }
            found
        });
        found.sort_by(|a, b| a.1.total_cmp(&b.1));
        found.truncate(N_BEST);
        found
    }

    /// Scores every assignment, where that is no more work than a search; `None` where it is.
    fn all(&mut self, slots: RangeInclusive<usize>, effort: usize) -> Option<Vec<(Assignment, f64)>> {
        let choices = self.choices();
        let n_units = self.site().model.units.len() - 1;
        let n_assignments = choices.len().checked_pow(n_units as u32)?;
        if n_assignments.checked_mul(slots.clone().count() * n_units)? > effort {
            return None;
        }
        let mut best: Vec<(Assignment, f64)> = Vec::new();
        for code in 0..n_assignments {
            let choice = |unit: usize| choices[code / choices.len().pow(unit as u32) % choices.len()];
            let mut assignment = Assignment { units: (0..n_units).map(choice).collect(), n_slots: 0 };
            for n_slots in slots.clone() {
                assignment.n_slots = n_slots;
                let worst = best.last().filter(|_| best.len() >= N_BEST).map_or(f64::INFINITY, |(_, secs)| *secs);
                if !self.is_allowed(&assignment) || self.scorer.bound(&assignment) >= worst {
                    continue;
                }
                if let Some(secs) = self.scorer.secs_once(&assignment).filter(|secs| *secs < worst) {
                    best.truncate(N_BEST - 1);
                    let place = best.partition_point(|(_, other)| *other <= secs);
                    best.insert(place, (assignment.clone(), secs));
                }
            }
        }
        Some(best)
    }

    /// The best of every kind of plan, improved by hill climbing.
    fn by_counts(&mut self, seeds: &[Assignment], slots: RangeInclusive<usize>, effort: usize) -> Vec<(Assignment, f64)> {
        let mut tried: Vec<(f64, Counts)> = Vec::new();
        let seeds = seeds.iter().filter_map(|seed| self.parts.counts(seed));
        let enumerated: Vec<Counts> = seeds.chain(self.enumerate(slots.clone())).collect();
        let mut assignment = Assignment::default();
        for counts in enumerated {
            self.parts.assign(&counts, &mut assignment);
            if self.is_allowed(&assignment) {
                tried.push((self.scorer.bound(&assignment), counts));
            }
        }
        tried.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut of_kind: BTreeMap<PlanKind, (Counts, Assignment, f64)> = BTreeMap::new();
        let mut least = f64::INFINITY;
        for (bound, counts) in tried {
            if bound >= least * FAR_FROM_BEST || self.scorer.n_looked_at >= effort / 2 {
                break;
            }
            let kind = counts.kind();
            let before = of_kind.get(&kind).map_or(f64::INFINITY, |(_, _, secs)| *secs);
            if let Some((assignment, secs)) = self.secs(&counts, before) {
                least = least.min(secs);
                of_kind.insert(kind, (counts, assignment, secs));
            }
        }
        let mut best: Vec<(Counts, Assignment, f64)> = of_kind.into_values().collect();
        best.sort_by(|a, b| a.2.total_cmp(&b.2));
        for (rank, (counts, assignment, secs)) in best.iter_mut().take(N_KINDS_IMPROVED).enumerate() {
            self.climb(counts, assignment, secs, rank < N_REFINED, slots.clone(), effort);
        }
        best.into_iter().map(|(_, assignment, secs)| (assignment, secs)).collect()
    }

    /// The assignment of `counts` with its seconds, where they are less than `before`.
    fn secs(&mut self, counts: &Counts, before: f64) -> Option<(Assignment, f64)> {
        let mut assignment = std::mem::take(&mut self.scratch);
        self.parts.assign(counts, &mut assignment);
        let secs = self.settled_secs(&mut assignment, before);
        if secs.is_none() {
            self.scratch = assignment;
            return None;
        }
        Some((assignment, secs?))
    }

    /// Seconds of an assignment, with what host memory has no room for on disk, where they are less than `before`.
    fn settled_secs(&mut self, assignment: &mut Assignment, before: f64) -> Option<f64> {
        if !self.is_allowed(assignment) || self.scorer.bound(assignment) >= before {
            return None;
        }
        let memory = self.parts.settle_host(&self.scorer, assignment)?;
        self.scorer.secs(assignment, memory).filter(|secs| *secs < before)
    }

    /// Makes the best change of one number for as long as one helps, then any change of two numbers, where `in_pairs`.
    fn climb(
        &mut self,
        counts: &mut Counts,
        assignment: &mut Assignment,
        secs: &mut f64,
        in_pairs: bool,
        slots: RangeInclusive<usize>,
        effort: usize,
    ) {
        *counts = counts.among(self.site().workers.len());
        while self.scorer.n_looked_at < effort {
            let mut best: Option<(Counts, Assignment, f64)> = None;
            for other in counts.neighbours(slots.clone()) {
                let before = best.as_ref().map_or(*secs * (1.0 - LEAST_GAIN_OF_COUNTS), |(_, _, secs)| *secs);
                if let Some((assignment, secs)) = self.secs(&other, before) {
                    best = Some((other, assignment, secs));
                }
            }
            if best.is_none() && in_pairs {
                let before = *secs * (1.0 - LEAST_GAIN_OF_COUNTS);
                best = counts.second_neighbours().find_map(|other| {
                    let (assignment, secs) = self.secs(&other, before)?;
                    Some((other, assignment, secs))
                });
            }
            let Some(better) = best else { return };
            (*counts, *assignment, *secs) = better;
        }
    }

    /// The counts of plans of one worker or two; those of more workers are reached from these by moving parts.
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
            Counts { shares, head: 0, streams_head, interleaved: INTERLEAVED[0], spread: Spread::Evenly, n_slots: *slots.end() }
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
                interleaved: INTERLEAVED[0],
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
            let interleaved = INTERLEAVED.into_iter().filter(|interleaved| (0..N_KINDS).all(|kind| !interleaved[kind] || is_shared(kind)));
            for interleaved in interleaved {
                let base = Counts { interleaved, ..base.clone() };
                // All attention (with the KV caches) on one worker and most of the rest on the other: the first may have to stream its part.
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

    /// Makes every change of units that helps, until none does or the effort is spent.
    fn refine(&mut self, best: &mut Assignment, best_secs: &mut f64, effort: usize, slots: RangeInclusive<usize>) {
        let choices = self.choices();
        let stop_at = self.scorer.n_looked_at + effort / 8;
        loop {
            let before = *best_secs;
            self.try_runs(best, best_secs, stop_at, &choices);
            self.try_swaps(best, best_secs, stop_at);
            if best.units.len() <= N_UNITS_FEW {
                self.try_triples(best, best_secs, stop_at, &choices);
            }
            for n_slots in slots.clone() {
                self.take_if_better(best, best_secs, stop_at, |assignment| assignment.n_slots = n_slots);
            }
            if *best_secs >= before || self.scorer.n_looked_at >= stop_at {
                return;
            }
        }
    }

    /// Tries every choice for runs of consecutive units, long runs first: one unit alone seldom pays for the transfers around it.
    fn try_runs(&mut self, best: &mut Assignment, best_secs: &mut f64, stop_at: usize, choices: &[UnitAssignment]) {
        let n_units = best.units.len();
        let mut run = n_units.next_power_of_two() / 2;
        while run >= 1 {
            for first in (0..n_units).step_by(run) {
                for &choice in choices {
                    let end = (first + run).min(n_units);
                    self.take_if_better(best, best_secs, stop_at, |assignment| assignment.units[first..end].fill(choice));
                }
            }
            run /= 2;
        }
    }

    /// Tries to swap the choices of any two units, so that those stream whose transfers are hidden best.
    fn try_swaps(&mut self, best: &mut Assignment, best_secs: &mut f64, stop_at: usize) {
        for first in 0..best.units.len() {
            for second in first + 1..best.units.len() {
                if best.units[first] != best.units[second] {
                    self.take_if_better(best, best_secs, stop_at, |assignment| assignment.units.swap(first, second));
                }
            }
        }
    }

    /// Tries every choice for any three units: with few units, a large one may have to make room for two small ones.
    fn try_triples(&mut self, best: &mut Assignment, best_secs: &mut f64, stop_at: usize, choices: &[UnitAssignment]) {
        let n_units = best.units.len();
        for first in 0..n_units {
            for second in first + 1..n_units {
                for third in second..n_units {
                    for code in 0..choices.len().pow(3) {
                        let choice = |place: u32| choices[code / choices.len().pow(place) % choices.len()];
                        self.take_if_better(best, best_secs, stop_at, |assignment| {
                            assignment.units[third] = choice(2);
                            assignment.units[second] = choice(1);
                            assignment.units[first] = choice(0);
                        });
                    }
                }
            }
        }
    }

    fn take_if_better(&mut self, best: &mut Assignment, best_secs: &mut f64, stop_at: usize, change: impl FnOnce(&mut Assignment)) {
        if self.scorer.n_looked_at >= stop_at {
            return;
        }
        let mut tried = std::mem::take(&mut self.scratch);
        tried.units.clone_from(&best.units);
        tried.n_slots = best.n_slots;
        change(&mut tried);
        let is_hopeless = tried == *best || !self.is_allowed(&tried) || self.scorer.bound(&tried) >= *best_secs;
        let secs = if is_hopeless { None } else { self.scorer.secs(&tried, None) };
        if let Some(secs) = secs.filter(|secs| *secs < *best_secs * (1.0 - LEAST_GAIN)) {
            std::mem::swap(best, &mut tried);
            *best_secs = secs;
        }
        self.scratch = tried;
    }

    /// All that may be chosen for one unit.
    fn choices(&self) -> Vec<UnitAssignment> {
        let mut choices = Vec::new();
        for (worker, own) in self.site().workers.iter().enumerate() {
            choices.push(UnitAssignment { worker, residency: Residency::Resident });
            if own.device != Device::Cpu {
                choices.push(UnitAssignment { worker, residency: Residency::Host });
            }
            choices.push(UnitAssignment { worker, residency: Residency::Disk });
        }
        choices
    }

    fn is_allowed(&self, assignment: &Assignment) -> bool {
        self.parts.is_allowed(assignment, !self.stays)
    }
}

/// 0 to `n`: all, or evenly spaced ones.
fn values(n: usize) -> impl Iterator<Item = usize> + Clone {
    let n_values = (n + 1).min(N_VALUES);
    (0..n_values).map(move |index| index * n / (n_values - 1).max(1))
}
