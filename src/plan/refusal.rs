//! Refusals: why there is no plan, and the least budget that would be enough. It is found by planning with other budgets, so that it is
//! true.

use std::collections::BTreeMap;

use crate::device::{Device, DeviceSpec};
use crate::error::{Advice, BudgetToSet, Error, Remedy, Setting, Shortfall};
use crate::plan::candidates;
use crate::plan::planner::{Planner, settle};
use crate::plan::site::{MAX_WORK, Site, Worker, budget, find};
use crate::plan::{PlanOptions, Spill};
use crate::units::Bytes;

/// The least budget that is tried where the present one is smaller.
const LEAST_TRIED: Bytes = Bytes::kib(64);
/// The largest budget that can be typed.
const MOST_TYPED: Bytes = Bytes(1 << 62);
/// Rounds in which budgets that must grow together are made smaller again, one after the other.
const N_TOGETHER_ROUNDS: usize = 4;

/// Why a plan cannot be made.
pub(super) enum Refusal {
    /// A device's budget is too small.
    Budget,
    /// Something that no budget changes.
    Limit(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Limit(error)
    }
}

/// Budgets by device, as they are given.
type Budgets = BTreeMap<Device, Bytes>;

/// A device whose budget is too small.
struct Short<'a> {
    spec: &'a DeviceSpec,
    needed: Bytes,
    available: Bytes,
}

impl Short<'_> {
    /// By how much the budget must grow.
    fn growth(&self) -> Bytes {
        self.needed.saturating_sub(self.available)
    }

    /// Whether the device has as much as is needed.
    fn is_there(&self) -> bool {
        self.spec.capacity.is_none_or(|capacity| self.needed <= capacity)
    }
}

impl<'a> Planner<'a> {
    /// The refusal of options for which there is no plan: the budget that is too small, the least that works there with the others
    /// as they are, and what else could be changed.
    pub(super) fn refusal(&self) -> Error {
        let ample = self.ample();
        let shorts = match self.one_short(ample) {
            Some(short) if short.is_there() => vec![short],
            // Where no device of this machine is large enough alone, several may be.
            alone => {
                let together = self.together_short(ample);
                let is_better = !together.is_empty() && (alone.is_none() || together.iter().all(Short::is_there));
                if is_better { together } else { alone.into_iter().collect() }
            }
        };
        let ways = self.ways_out();
        if shorts.is_empty() {
            return self.limit_at(ample).unwrap_or_else(|| no_budget_is_enough(ample, ways));
        }
        let advice = self.advice(&shorts, ways);
        let mut shortfalls: Vec<Shortfall> = shorts.iter().map(Shortfall::from).collect();
        match shortfalls.pop() {
            Some(Shortfall { device, needed, available }) if shortfalls.is_empty() => {
                Error::DoesNotFit { device, needed, available, advice }
            }
            last => Error::DoNotFit { shortfalls: shortfalls.into_iter().chain(last).collect(), advice },
        }
    }

    /// The device that works with the least more, of those that have so much, if one alone is enough.
    fn one_short(&self, ample: Bytes) -> Option<Short<'a>> {
        let mut best: Option<(Short<'_>, Bytes)> = None;
        for spec in self.budgeted() {
            let available = self.present(spec);
            // A device that needs more than the best so far is skipped.
            let is_worse = |best: &Short<'_>| best.is_there() && !self.works_with(spec, available + best.growth());
            if best.as_ref().is_some_and(|(best, _)| is_worse(best)) {
                continue;
            }
            let Some((too_small, needed)) = self.least_alone(spec, ample) else { continue };
            let found = Short { spec, needed, available };
            let rank = |short: &Short<'_>| (!short.is_there(), short.growth());
            if best.as_ref().is_none_or(|(best, _)| rank(&found) < rank(best)) {
                best = Some((found, too_small));
            }
        }
        let (short, too_small) = best?;
        // To the byte: the error rounds it up when it prints, which gives what was found.
        let (_, needed) = narrow(too_small, short.needed, |bytes| bytes, |budget| self.works_with(short.spec, budget));
        Some(Short { needed, ..short })
    }

    /// The limit that is left where every device has `ample`.
    fn limit_at(&self, ample: Bytes) -> Option<Error> {
        let mut options = self.options.clone();
        options.max_memory.extend(self.budgeted().iter().map(|spec| (spec.device, ample)));
        let settled = Planner { options: &options, ..*self }.settled().ok()?;
        let site = Site::new(self.catalog, self.model, self.devices, &settled).ok()?;
        match candidates::best(&site) {
            Err(Refusal::Limit(error)) => Some(error),
            _ => None,
        }
    }

    /// The devices whose budgets must grow together, each to the least that works with the others as they then are. Within the capacities
    /// of this machine, where these are enough.
    fn together_short(&self, ample: Bytes) -> Vec<Short<'a>> {
        let specs = self.budgeted();
        let asked = &self.options.max_memory;
        let with_at_least = |least: &dyn Fn(&DeviceSpec) -> Bytes| {
            let mut budgets = asked.clone();
            budgets.extend(specs.iter().map(|spec| (spec.device, least(spec).max(self.present(spec)).typed_up())));
            budgets
        };
        let starts = [with_at_least(&|spec| spec.capacity.unwrap_or_default()), with_at_least(&|_| ample)];
        let is_typed = |budgets: &Budgets| budgets.values().all(|budget| *budget <= MOST_TYPED);
        let Some(mut budgets) = starts.into_iter().find(|budgets| is_typed(budgets) && self.works(budgets)) else { return Vec::new() };
        for _ in 0..N_TOGETHER_ROUNDS {
            let before = budgets.clone();
            for spec in &specs {
                let with = |budget: Option<Bytes>| {
                    let mut tried = budgets.clone();
                    tried.remove(&spec.device);
                    tried.extend(budget.map(|budget| (spec.device, budget)));
                    tried
                };
                let unchanged = with(asked.get(&spec.device).copied());
                budgets = match budgets.get(&spec.device) {
                    Some(&enough) if !self.works(&unchanged) => {
                        let (_, needed) = narrow(self.present(spec), enough, Bytes::typed_up, |budget| self.works(&with(Some(budget))));
                        with(Some(needed))
                    }
                    _ => unchanged,
                };
            }
            if budgets == before {
                break;
            }
        }
        let changed = specs.into_iter().filter_map(|spec| {
            let needed = *budgets.get(&spec.device)?;
            (asked.get(&spec.device) != Some(&needed)).then(|| Short { spec, needed, available: self.present(spec) })
        });
        changed.collect()
    }

    /// (too small, enough): the least budget of one device that works with the others as they are, in steps that can be typed, and the step
    /// below it. `None` where none up to `ample` works.
    fn least_alone(&self, spec: &DeviceSpec, ample: Bytes) -> Option<(Bytes, Bytes)> {
        let present = self.present(spec);
        // To name a budget can change what others have and where weights may be stored, so even the present one may be enough.
        let mut too_small = if self.works_with(spec, present) { Bytes::ZERO } else { present };
        let mut tried = (present + Bytes(1)).max(LEAST_TRIED).typed_up();
        while !self.works_with(spec, tried) {
            if tried >= ample || tried > MOST_TYPED {
                return None;
            }
            (too_small, tried) = (tried, tried.times(2).typed_up());
        }
        (tried <= MOST_TYPED).then(|| narrow(too_small, tried, Bytes::typed_up, |budget| self.works_with(spec, budget)))
    }

    fn works(&self, budgets: &Budgets) -> bool {
        self.is_possible(&PlanOptions { max_memory: budgets.clone(), ..self.options.clone() })
    }

    /// Whether a plan is possible with this budget for one device, and the others as they are.
    fn works_with(&self, spec: &DeviceSpec, budget: Bytes) -> bool {
        let mut budgets = self.options.max_memory.clone();
        budgets.insert(spec.device, budget);
        self.works(&budgets)
    }

    /// The devices that a budget can be given to: those that may compute, and the host, which stores what streams.
    fn budgeted(&self) -> Vec<&'a DeviceSpec> {
        let mut devices = self.options.compute_on.clone();
        if !devices.contains(&Device::Cpu) {
            devices.push(Device::Cpu);
        }
        devices.into_iter().filter_map(|device| find(self.devices, device).ok()).collect()
    }

    /// What a device may use now: nothing where [`Spill::Refused`] keeps weights off it.
    fn present(&self, spec: &DeviceSpec) -> Bytes {
        let Planner { options, .. } = self;
        let named = &options.max_memory;
        let may_hold = if named.is_empty() { options.compute_on.contains(&spec.device) } else { named.contains_key(&spec.device) };
        if options.spill == Spill::Refused && !may_hold {
            return Bytes::ZERO;
        }
        find(self.devices, Device::Cpu).map_or(Bytes::ZERO, |host| budget(spec, host, options))
    }

    /// More than any device can ever need.
    fn ample(&self) -> Bytes {
        let options = settle(self.options);
        let options = PlanOptions { n_seqs: options.n_seqs.max(1), ..options };
        let Ok(site) = Site::new(self.catalog, self.model, self.devices, &options) else { return Bytes::ZERO };
        let budgets = site.budgets();
        let of_worker = |(worker, own): (usize, &Worker<'_>)| -> Bytes {
            let Some(shape) = site.shapes(&[worker], &budgets).last().copied() else { return Bytes::ZERO };
            let largest = own.block_bytes.iter().copied().max().unwrap_or_default();
            let weights: Bytes = own.block_bytes.iter().chain(&own.vector_bytes).copied().sum();
            let beside = site.working_bytes(shape.forward, own.alone()) + own.params_bytes(MAX_WORK as usize);
            let caches: Bytes = (0..self.model.units.len()).map(|unit| site.kv_bytes_of_unit(own, unit, shape.ctx_size)).sum();
            weights + beside + caches + largest.times(own.ring_copies(shape.n_slots))
        };
        let most = site.workers.iter().enumerate().map(of_worker).max().unwrap_or_default();
        (most + self.catalog.size_bytes()).times(2)
    }

    /// What to change: the budgets, where there is so much, or something else that helps.
    fn advice(&self, shorts: &[Short<'_>], ways: Vec<Remedy>) -> Advice {
        let missing = shorts.iter().filter(|short| !short.is_there());
        let missing = missing.map(|short| {
            let (has, available) = (short.spec.capacity.unwrap_or_default().typed_down(), short.available.typed_down());
            let has = if has == available { "no more" } else { has.as_str() };
            format!("{} of this machine has {has}", short.spec.device)
        });
        let missing: Vec<String> = missing.collect();
        if !missing.is_empty() {
            let others = ["take a smaller model", "a machine with more memory"].map(Remedy::other);
            let remedies = if ways.is_empty() { others.into() } else { ways };
            return Advice { because: missing.join(" and ").into(), remedies };
        }
        let mut budgets: BTreeMap<Device, BudgetToSet> =
            self.options.max_memory.iter().map(|(&device, &bytes)| (device, BudgetToSet::AsGiven(bytes))).collect();
        budgets.extend(shorts.iter().map(|short| (short.spec.device, BudgetToSet::AtLeast(short.needed))));
        let raise = Remedy::Budgets(budgets.into_iter().map(|(device, budget)| (device.to_string(), budget)).collect());
        Advice { because: Box::default(), remedies: std::iter::once(raise).chain(ways).collect() }
    }
}

impl From<&Short<'_>> for Shortfall {
    fn from(short: &Short<'_>) -> Shortfall {
        Shortfall { device: short.spec.device.to_string(), needed: short.needed, available: short.available }
    }
}

/// The refusal where no budget helps: other options stand in the way, or more is needed than can be typed.
fn no_budget_is_enough(ample: Bytes, ways: Vec<Remedy>) -> Error {
    if ways.is_empty() && ample > MOST_TYPED {
        let advice = [Setting::CtxSize, Setting::UbatchSize, Setting::NSeqs].map(|setting| Remedy::Lower(setting, None)).into();
        return Error::ExceedsLimit { device: "what a budget can be".into(), needed: ample, available: MOST_TYPED, advice };
    }
    let contradiction = || vec![Remedy::other("what is asked contradicts itself")];
    let remedies = if ways.is_empty() { contradiction() } else { ways };
    Error::NoBudgetIsEnough { advice: Advice { because: Box::default(), remedies } }
}

/// Bisects between `too_small`, which does not work, and `enough`, which does and is a multiple that `round` rounds up to. Returns (too
/// small, enough) as close to each other as `round` allows.
fn narrow(too_small: Bytes, enough: Bytes, round: impl Fn(Bytes) -> Bytes, works: impl Fn(Bytes) -> bool) -> (Bytes, Bytes) {
    let (mut too_small, mut enough) = (too_small, enough);
    loop {
        let next = round(too_small + Bytes(1));
        if next >= enough {
            return (too_small, enough);
        }
        let middle = round(Bytes(too_small.0 + (enough.0 - too_small.0) / 2));
        let middle = if (next..enough).contains(&middle) { middle } else { next };
        if works(middle) { enough = middle } else { too_small = middle }
    }
}
