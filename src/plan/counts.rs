//! Counts: plans as a few numbers. Layers are alike, so it is enough to say how many attention and feed-forward parts each device
//! computes, in which order of devices, how many of them stream, and which device computes the head. The search enumerates counts and
//! changes them number by number; each becomes an assignment to be scored.

use crate::device::Device;
use crate::model::UnitKind;
use crate::plan::assignment::{Assignment, Residency, UnitAssignment};
use crate::plan::scorer::{Memory, Scorer};
use crate::plan::site::Site;
use crate::units::Bytes;

/// Kinds of parts that every layer has one of: attention and feed-forward.
pub(super) const N_KINDS: usize = 2;
/// The sets of kinds that are changed together, as flags.
const KINDS: [[bool; N_KINDS]; 3] = [[true, true], [true, false], [false, true]];
/// Which kinds may alternate between workers.
pub(super) const INTERLEAVED: [[bool; N_KINDS]; 4] = [[false, false], [true, false], [false, true], [true, true]];
/// The largest step of a change that is made together with another one.
const STEP_TOGETHER: usize = 4;

/// One plan as numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Counts {
    /// Who computes, each with its share of the layers, in the order of the layers.
    pub(super) shares: Vec<Share>,
    /// Who computes the head: an index of `shares`.
    pub(super) head: usize,
    pub(super) streams_head: bool,
    /// Per kind, whether the parts of different workers alternate evenly, instead of being consecutive.
    pub(super) interleaved: [bool; N_KINDS],
    pub(super) spread: Spread,
    pub(super) n_slots: usize,
}

/// What plans of one kind have in common: the workers in order, and whether they alternate; who computes the head, and whether it streams;
/// to which workers parts stream, per kind of part.
pub(super) type PlanKind = (Vec<usize>, [bool; N_KINDS], usize, bool, Vec<[bool; N_KINDS]>);

/// What one worker does. Both arrays are per kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Share {
    pub(super) worker: usize,
    /// Parts that it computes.
    pub(super) computed: [usize; N_KINDS],
    /// How many of them stream to it.
    pub(super) streamed: [usize; N_KINDS],
}

/// Which of a worker's parts stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Spread {
    /// Evenly spaced ones, so that each is uploaded while resident ones are computed.
    Evenly,
    /// The first.
    First,
    /// The last, as the layers beyond `-ngl`.
    Last,
}

impl Spread {
    pub(super) const ALL: [Spread; 3] = [Spread::Evenly, Spread::First, Spread::Last];

    /// Which of `n` parts are the `n_streamed`, one after the other.
    fn picked(self, n: usize, n_streamed: usize) -> Picked {
        let n_as_first = match self {
            Spread::Evenly => 0,
            Spread::First => n_streamed,
            Spread::Last => n.saturating_sub(n_streamed),
        };
        Picked { spread: self, n, n_streamed, n_as_first, rest: 0 }
    }
}

/// Where [`Spread::picked`] is.
struct Picked {
    spread: Spread,
    n: usize,
    n_streamed: usize,
    /// Parts that are as the first one, of those that are left, where they are not spread evenly.
    n_as_first: usize,
    /// Where they are, what has come together for the next one that is picked, in `n`ths.
    rest: usize,
}

impl Picked {
    /// Whether the next part is one of them.
    fn next(&mut self) -> bool {
        if self.spread == Spread::Evenly {
            self.rest += self.n_streamed;
            let is_picked = self.rest >= self.n;
            self.rest -= if is_picked { self.n } else { 0 };
            return is_picked;
        }
        let is_as_first = self.n_as_first > 0;
        self.n_as_first = self.n_as_first.saturating_sub(1);
        is_as_first == (self.spread == Spread::First)
    }
}

impl Share {
    /// Computes `n` layers, of which `n_streamed` stream.
    pub(super) fn of_layers(worker: usize, n: usize, n_streamed: usize) -> Share {
        Share { worker, computed: [n; N_KINDS], streamed: [n_streamed; N_KINDS] }
    }
}

/// The parts of a model by kind, and where they may be stored.
pub(super) struct Parts {
    /// Per kind, the index of each layer's part among the units after the embedding.
    of_kind: [Vec<usize>; N_KINDS],
    head: Option<usize>,
    n_units: usize,
    /// Whether weights that stream to adapters may be stored in host memory, and on disk.
    pub(super) may_hold: [bool; 2],
    /// Per worker.
    rules: Vec<Rules>,
}

/// What is asked of one worker.
struct Rules {
    /// Whether `--strict` lets it hold weights.
    may_hold: bool,
    /// How many units from the front, the embedding among them, may be resident.
    resident_limit: usize,
    /// Where its parts lie that stream.
    streamed_residency: Residency,
}

impl Parts {
    pub(super) fn of(site: &Site<'_>) -> Parts {
        let may_hold = [Device::Cpu, Device::Disk].map(|device| site.may_hold(device));
        let rules = site.workers.iter().map(|own| Rules {
            may_hold: site.may_hold(own.device),
            resident_limit: site.resident_limit(own),
            streamed_residency: if own.is_gpu() && may_hold[0] { Residency::Host } else { Residency::Disk },
        });
        let n_units = site.model.units.len() - 1;
        let mut parts = Parts { of_kind: [Vec::new(), Vec::new()], head: None, n_units, may_hold, rules: rules.collect() };
        for (index, unit) in site.model.units.iter().skip(1).enumerate() {
            match unit.kind {
                UnitKind::Attention { .. } | UnitKind::Layer { .. } => parts.of_kind[0].push(index),
                UnitKind::FeedForward { .. } => parts.of_kind[1].push(index),
                UnitKind::Head => parts.head = Some(index),
                UnitKind::Embedding => {}
            }
        }
        parts
    }

    pub(super) fn n_layers(&self) -> usize {
        self.of_kind[0].len()
    }

    /// The counts of an assignment, approximately. `None` where a worker's parts are not consecutive.
    pub(super) fn counts(&self, assignment: &Assignment) -> Option<Counts> {
        let mut shares: Vec<Share> = Vec::new();
        for kind in 0..N_KINDS {
            let mut last = 0;
            for &unit in &self.of_kind[kind] {
                let unit = assignment.units[unit];
                let place = shares.iter().position(|share| share.worker == unit.worker).unwrap_or_else(|| {
                    shares.push(Share::of_layers(unit.worker, 0, 0));
                    shares.len() - 1
                });
                if place < last {
                    return None;
                }
                last = place;
                shares[place].computed[kind] += 1;
                shares[place].streamed[kind] += usize::from(unit.residency != Residency::Resident);
            }
        }
        let head = assignment.units[self.head?];
        let place = shares.iter().position(|share| share.worker == head.worker).unwrap_or_else(|| {
            shares.push(Share::of_layers(head.worker, 0, 0));
            shares.len() - 1
        });
        let streams_head = head.residency != Residency::Resident;
        Some(Counts { shares, head: place, streams_head, interleaved: INTERLEAVED[0], spread: Spread::Last, n_slots: assignment.n_slots })
    }

    /// Makes `assignment` that of `counts`, with all that streams to adapters in host memory; what may not stay by `-ngl` streams too.
    pub(super) fn assign(&self, counts: &Counts, assignment: &mut Assignment) {
        let assigned = &mut assignment.units;
        assigned.clear();
        assigned.resize(self.n_units, UnitAssignment { worker: 0, residency: Residency::Resident });
        let assign = |worker: usize, unit: usize, streams: bool| {
            let rules = &self.rules[worker];
            let streams = streams || unit + 1 >= rules.resident_limit;
            UnitAssignment { worker, residency: if streams { rules.streamed_residency } else { Residency::Resident } }
        };
        for (kind, units) in self.of_kind.iter().enumerate() {
            let picked = |share: &Share| counts.spread.picked(share.computed[kind], share.streamed[kind]);
            if counts.interleaved[kind] {
                let (mut taken, mut picked) = (vec![0; counts.shares.len()], counts.shares.iter().map(picked).collect::<Vec<_>>());
                for (layer, &unit) in units.iter().enumerate() {
                    let Some(place) = counts.furthest_behind(kind, layer, &taken) else { break };
                    assigned[unit] = assign(counts.shares[place].worker, unit, picked[place].next());
                    taken[place] += 1;
                }
            } else {
                let mut rest = units.as_slice();
                for share in &counts.shares {
                    let (own, behind) = rest.split_at(share.computed[kind].min(rest.len()));
                    let mut picked = picked(share);
                    for &unit in own {
                        assigned[unit] = assign(share.worker, unit, picked.next());
                    }
                    rest = behind;
                }
            }
        }
        if let Some(head) = self.head {
            assigned[head] = assign(counts.shares[counts.head].worker, head, counts.streams_head);
        }
        assignment.n_slots = counts.n_slots;
    }

    /// Whether an assignment keeps to `-ngl` and `--strict`, and streams nothing where nothing `may_stream`.
    pub(super) fn is_allowed(&self, assignment: &Assignment, may_stream: bool) -> bool {
        assignment.units.iter().enumerate().all(|(index, unit)| {
            let rules = &self.rules[unit.worker];
            rules.may_hold
                && match unit.residency {
                    Residency::Resident => index + 1 < rules.resident_limit,
                    Residency::Host => may_stream && self.may_hold[0],
                    Residency::Disk => may_stream && self.may_hold[1],
                }
        })
    }

    /// Moves evenly spread host-resident units to disk where host memory has no room for all of them; `None` where nothing helps.
    /// Gives the assignment's memory, which that does not change, where it was looked at.
    pub(super) fn settle_host(&self, scorer: &Scorer<'_>, assignment: &mut Assignment) -> Option<Option<Memory>> {
        let on_host = |unit: &UnitAssignment| unit.residency == Residency::Host;
        let bytes = |(index, unit): (usize, &UnitAssignment)| u128::from(scorer.block_bytes(unit.worker, index).0);
        let total: u128 = assignment.units.iter().enumerate().filter(|(_, unit)| on_host(unit)).map(bytes).sum();
        if total == 0 {
            return Some(None);
        }
        let memory = scorer.memory(assignment)?;
        let room = memory.host_room.saturating_sub(scorer.host_padding(assignment, &memory));
        if u128::from(room.0) >= total {
            return Some(Some(memory));
        }
        if !self.may_hold[1] {
            return None;
        }
        let (mut passed, mut kept) = (0u128, 0u128);
        for (index, unit) in assignment.units.iter_mut().enumerate().filter(|(_, unit)| on_host(unit)) {
            let Bytes(block) = scorer.block_bytes(unit.worker, index);
            passed += u128::from(block);
            // The host keeps its share of what has been passed so far.
            if (kept + u128::from(block)) * total <= u128::from(room.0) * passed {
                kept += u128::from(block);
            } else {
                unit.residency = Residency::Disk;
            }
        }
        Some(Some(memory))
    }
}

impl Counts {
    /// What is alike in plans of its kind.
    pub(super) fn kind(&self) -> PlanKind {
        let computes = |share: &&Share| share.computed.iter().any(|n| *n > 0);
        let workers = self.shares.iter().filter(computes).map(|share| share.worker).collect();
        let streams = self.shares.iter().filter(computes).map(|share| share.streamed.map(|n| n > 0)).collect();
        (workers, self.interleaved, self.shares[self.head].worker, self.streams_head, streams)
    }

    /// The same with an empty share for each of `n_workers` that has none, so that parts can move there.
    pub(super) fn among(&self, n_workers: usize) -> Counts {
        let mut all = self.clone();
        for worker in (0..n_workers).filter(|&worker| self.shares.iter().all(|share| share.worker != worker)) {
            all.shares.push(Share::of_layers(worker, 0, 0));
        }
        all
    }

    /// Which share computes a layer's part of a kind where they are interleaved, after `taken` parts of each share were computed before it:
    /// the share that is furthest behind an even distribution; of equals the first.
    fn furthest_behind(&self, kind: usize, layer: usize, taken: &[usize]) -> Option<usize> {
        let open = (0..self.shares.len()).filter(|&place| taken[place] < self.shares[place].computed[kind]);
        let n_layers: usize = self.shares.iter().map(|share| share.computed[kind]).sum();
        let behind = |place: usize| (self.shares[place].computed[kind] * (layer + 1)) as isize - (taken[place] * n_layers) as isize;
        open.reduce(|most, next| if behind(next) > behind(most) { next } else { most })
    }

    /// All counts that differ in one number, in the head or in the spread.
    pub(super) fn neighbours(&self, n_slots: std::ops::RangeInclusive<usize>) -> Vec<Counts> {
        let mut all: Vec<Counts> = self.changes(usize::MAX).into_iter().filter_map(|change| change.of(self)).collect();
        for head in 0..self.shares.len() {
            for streams_head in [false, true] {
                all.push(Counts { head, streams_head, ..self.clone() });
            }
        }
        all.extend(Spread::ALL.map(|spread| Counts { spread, ..self.clone() }));
        all.extend(INTERLEAVED.map(|interleaved| Counts { interleaved, ..self.clone() }));
        all.extend(n_slots.map(|n_slots| Counts { n_slots, ..self.clone() }));
        all.retain(|other| other != self);
        all
    }

    /// All counts that differ in two numbers by a little.
    pub(super) fn second_neighbours(&self) -> impl Iterator<Item = Counts> + '_ {
        let changes = self.changes(STEP_TOGETHER);
        let pairs = (0..changes.len()).flat_map(move |first| (first + 1..changes.len()).map(move |second| [first, second]));
        let changes = self.changes(STEP_TOGETHER);
        pairs.filter_map(move |[first, second]| changes[second].of(&changes[first].of(self)?))
    }

    /// Every change of one number by a power of two up to `most`.
    fn changes(&self, most: usize) -> Vec<Change> {
        let n_layers: usize = self.shares.iter().map(|share| share.computed[0]).sum();
        let steps = || (0..usize::BITS).map(|bit| 1isize << bit).take_while(|&step| step <= n_layers.min(most) as isize);
        let signed = || steps().flat_map(|step| [step, -step]);
        let mut changes = Vec::new();
        for share in 0..self.shares.len() {
            for kinds in KINDS {
                changes.extend(signed().map(|step| Change { share, kinds, step, moves: false }));
                if share + 1 < self.shares.len() {
                    changes.extend(signed().map(|step| Change { share, kinds, step, moves: true }));
                }
            }
        }
        changes
    }
}

/// A change of [`Counts`].
#[derive(Debug, Clone, Copy)]
struct Change {
    /// Whose numbers.
    share: usize,
    kinds: [bool; N_KINDS],
    step: isize,
    /// Whether parts move here from the next share; otherwise, parts that were resident stream.
    moves: bool,
}

impl Change {
    /// What it makes of `counts`; `None` where a number would leave its bounds.
    fn of(self, counts: &Counts) -> Option<Counts> {
        let mut changed = counts.clone();
        for kind in (0..N_KINDS).filter(|&kind| self.kinds[kind]) {
            if self.moves {
                let (before, behind) = changed.shares.split_at_mut(self.share + 1);
                let (own, next) = (&mut before[self.share], &mut behind[0]);
                own.computed[kind] = own.computed[kind].checked_add_signed(self.step)?;
                next.computed[kind] = next.computed[kind].checked_add_signed(-self.step)?;
                own.streamed[kind] = own.streamed[kind].min(own.computed[kind]);
                next.streamed[kind] = next.streamed[kind].min(next.computed[kind]);
            } else {
                let own = &mut changed.shares[self.share];
                own.streamed[kind] = own.streamed[kind].checked_add_signed(self.step)?;
                if own.streamed[kind] > own.computed[kind] {
                    return None;
                }
            }
        }
        Some(changed)
    }
}
