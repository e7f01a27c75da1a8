//! The planner: the way from options to a plan. Settles the options, tries shapes from what one would like to the least that works, and asks for the
//! best candidate (`candidates.rs`), or for a refusal (`refusal.rs`).

use std::iter::successors;

use crate::device::{Device, DeviceSpec};
use crate::error::{Error, Result, Setting};
use crate::model::Model;
use crate::plan::build::{Build, Outcome, Rings};
use crate::plan::candidates;
use crate::plan::greedy::Greedy;
use crate::plan::refusal::Refusal;
use crate::plan::shape::{N_TOKENS_BUSY, N_TOKENS_FEW, Shape, UBATCH_SIZE};
use crate::plan::site::Site;
use crate::plan::{Context, Objective, Placement, PlacementRule, Plan, PlanOptions, ResidentLayers, Spill};
use crate::units::Bytes;
use crate::weights::Catalog;

/// Most slots that a ring has, whatever the options say.
pub(super) const N_SLOTS_MAX: usize = 64;
/// Rounds in which a plan is given exactly as many dispatches as its chunks need; after them, a few more.
const N_EXACT_ROUNDS: usize = 4;
/// Contexts that are found by trying are multiples of this.
pub(super) const CTX_STEP: usize = 64;

/// Makes the plan, shrinking what the user left open until it fits.
pub(super) fn plan(catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> Result<Plan> {
    if let Some(profile) = &options.expert_profile {
        profile.check(model)?;
    }
    let planner = Planner { catalog, model, devices, options };
    planner.plan_if_it_fits()?.ok_or_else(|| planner.refusal())
}

/// The longest context below `too_long` that works, in steps of [`CTX_STEP`], of which the first does.
pub(super) fn longest_ctx(too_long: usize, works: impl Fn(usize) -> bool) -> usize {
    let (mut enough, mut too_large) = (1, too_long.div_ceil(CTX_STEP));
    while too_large - enough > 1 {
        let middle = enough + (too_large - enough) / 2;
        if works(middle * CTX_STEP) { enough = middle } else { too_large = middle }
    }
    enough * CTX_STEP
}

/// The input of planning, as it was given.
#[derive(Clone, Copy)]
pub(super) struct Planner<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) model: &'a Model,
    pub(super) devices: &'a [DeviceSpec],
    /// As the user gave them.
    pub(super) options: &'a PlanOptions,
}

impl Planner<'_> {
    /// As [`plan`]; `None` where a budget is too small, without looking for one that is not.
    pub(super) fn plan_if_it_fits(&self) -> Result<Option<Plan>> {
        let settled = self.settled()?;
        let site = Site::new(self.catalog, self.model, self.devices, &settled)?;
        match candidates::best(&site) {
            Ok(plan) => self.at_its_context(&settled, plan).map(Some),
            Err(Refusal::Limit(error)) => Err(error),
            Err(Refusal::Budget) => Ok(None),
        }
    }

    /// Plans anew with the context that was chosen for `plan`, and returns the faster plan. Open contexts are found by greedy plans, each with
    /// forwards of one length; for the same context, another length or a search of its own may do better.
    fn at_its_context(&self, settled: &PlanOptions, plan: Plan) -> Result<Plan> {
        let may_gain = plan.streamed_bytes() > Bytes::ZERO || plan.forward.n_tokens < N_TOKENS_BUSY;
        if settled.ctx_size.is_some() || settled.placement != PlacementRule::Auto || !may_gain {
            return Ok(plan);
        }
        let options = PlanOptions { ctx_size: Some(plan.ctx_size), ..settled.clone() };
        let site = Site::new(self.catalog, self.model, self.devices, &options)?;
        let other = candidates::best(&site).ok().filter(|other| candidates::secs_of(&site, other) < candidates::secs_of(&site, &plan));
        Ok(other.unwrap_or(plan))
    }

    /// Options with the number of sequences, and with the context that `--fit` leaves open.
    pub(super) fn settled(&self) -> Result<PlanOptions> {
        let mut options = settle(self.options);
        if options.n_seqs == 0 {
            options.n_seqs = self.n_seqs(&options);
        }
        if options.context == Context::Fit {
            options.resident_layers = ResidentLayers::All;
            if options.ctx_size.is_none() {
                options.ctx_size = Some(self.largest_resident_ctx(&options)?);
            }
        }
        Ok(options)
    }

    /// As many sequences side by side as pay, but no more than a plan is possible with.
    fn n_seqs(&self, options: &PlanOptions) -> usize {
        if options.objective == Objective::Latency {
            return 1;
        }
        let most = candidates::n_seqs_that_pay(self.catalog, self.model, self.devices, options);
        let halves = successors(Some(most), |&n_seqs| (n_seqs > 1).then_some(n_seqs / 2));
        let mut possible = halves.filter(|&n_seqs| self.is_possible(&PlanOptions { n_seqs, ..options.clone() }));
        possible.next().unwrap_or(1)
    }

    /// Whether [`plan`] makes a plan with these options instead, without looking for the best.
    pub(super) fn is_possible(&self, options: &PlanOptions) -> bool {
        let mut settled = settle(options);
        // Where there is room for several sequences, there is room for one.
        settled.n_seqs = settled.n_seqs.max(1);
        if settled.context == Context::Fit {
            settled.resident_layers = ResidentLayers::All;
            if settled.ctx_size.is_none() {
                let (least, most) = self.resident_ctx_range();
                return self.fits(&settled, least) || self.fits(&settled, most);
            }
        }
        Site::new(self.catalog, self.model, self.devices, &settled).is_ok_and(|site| candidates::is_possible(&site))
    }

    /// The shortest and the longest context that `--fit` takes.
    fn resident_ctx_range(&self) -> (usize, usize) {
        let most = self.model.config.context_length;
        (CTX_STEP.min(most), most)
    }

    fn fits(&self, options: &PlanOptions, ctx_size: usize) -> bool {
        let options = PlanOptions { ctx_size: Some(ctx_size), ..options.clone() };
        Site::new(self.catalog, self.model, self.devices, &options).is_ok_and(|site| candidates::is_possible(&site))
    }

    /// The largest context with which every weight stays resident: a multiple of [`CTX_STEP`], or the model's own. Forwards have as many tokens
    /// as fit with the shortest context. Where not even that fits, it is returned, and the refusal says how much is missing.
    fn largest_resident_ctx(&self, options: &PlanOptions) -> Result<usize> {
        // Invalid options are refused here.
        Site::new(self.catalog, self.model, self.devices, options)?;
        let (least, most) = self.resident_ctx_range();
        let lengths = [UBATCH_SIZE, N_TOKENS_BUSY, N_TOKENS_FEW].map(|n_tokens| n_tokens.max(options.n_seqs));
        let lengths = options.ubatch_size.is_none().then_some(lengths).into_iter().flatten();
        let with_length = |n_tokens: usize| PlanOptions { ubatch_size: Some(n_tokens), ..options.clone() };
        let with_room = lengths.map(with_length).find(|options| self.fits(options, least));
        let options = with_room.as_ref().unwrap_or(options);
        if self.fits(options, most) {
            return Ok(most);
        }
        if with_room.is_none() && !self.fits(options, least) {
            return Ok(least);
        }
        Ok(longest_ctx(most, |ctx_size| self.fits(options, ctx_size)).min(most))
    }
}

/// Refuses placements that no schedule can carry out.
pub(super) fn check_placements(site: &Site<'_>, placements: &[Placement]) -> Result<()> {
    let invalid = |reason: String| Error::InvalidArgument { option: Setting::Placement.into(), reason };
    if placements.len() != site.model.units.len() {
        return Err(invalid(format!("{} placements for {} units", placements.len(), site.model.units.len())));
    }
    for (placement, unit) in placements.iter().zip(&site.model.units).skip(1) {
        let (name, device) = (&unit.name, placement.execute_on);
        if site.worker(device).is_none() {
            return Err(invalid(format!("{name} is to be computed by {device}, which does not compute here")));
        }
        if placement.stored_on.len() != unit.matrices().count() {
            return Err(invalid(format!("{} devices for the {} matrices of {name}", placement.stored_on.len(), unit.matrices().count())));
        }
        if let Some(stored_on) = placement.stored_on.iter().find(|stored_on| **stored_on != device && matches!(stored_on, Device::Gpu(_))) {
            return Err(invalid(format!(
                "a part of {name} is stored on {stored_on} and computed by {device}: it can stream from cpu or disk only"
            )));
        }
    }
    Ok(())
}

/// Options within their domains: a size of 0 leaves the choice to the planner.
pub(super) fn settle(options: &PlanOptions) -> PlanOptions {
    PlanOptions {
        kv_dtype: if options.compute_on == [Device::Cpu] { options.kv_dtype.on_host() } else { options.kv_dtype },
        // Positions are u32 in batches and kernels.
        ctx_size: options.ctx_size.filter(|&size| size > 0).map(|size| size.min(u32::MAX as usize)),
        ubatch_size: options.ubatch_size.filter(|&size| size > 0),
        logit_rows: options.logit_rows.max(1),
        n_slots: options.n_slots.map(|n_slots| n_slots.clamp(1, N_SLOTS_MAX)),
        ..options.clone()
    }
}

impl Site<'_> {
    /// The greedy plan along a chain of workers.
    pub(super) fn greedy(&self, chain: &[usize], budgets: &[Bytes]) -> Result<(Shape, Plan), Refusal> {
        self.in_some_shape(chain, budgets, |shape| self.greedy_in(chain, shape, budgets))
    }

    /// The plan with given placements.
    pub(super) fn placed(&self, placements: &[Placement], budgets: &[Bytes]) -> Result<(Shape, Plan), Refusal> {
        self.in_some_shape(&self.chain_of(placements), budgets, |shape| Ok((shape, self.with(placements, shape, budgets)?)))
    }

    /// Whether there is a greedy plan along a chain of workers.
    pub(super) fn has_greedy(&self, chain: &[usize], budgets: &[Bytes]) -> bool {
        self.in_first_shape(&self.shapes(chain, budgets), |shape| self.greedy_in(chain, shape, budgets)).is_ok()
    }

    fn greedy_in(&self, chain: &[usize], shape: Shape, budgets: &[Bytes]) -> Result<(Shape, Plan), Refusal> {
        let plan = self.along(chain, shape, budgets)?;
        if self.options.spill == Spill::Refused && !self.keeps_within(&plan) { Err(Refusal::Budget) } else { Ok((shape, plan)) }
    }

    /// The first shape that works, or one with longer forwards and a shorter context.
    fn in_some_shape(
        &self,
        chain: &[usize],
        budgets: &[Bytes],
        mut make: impl FnMut(Shape) -> Result<(Shape, Plan), Refusal>,
    ) -> Result<(Shape, Plan), Refusal> {
        let shapes = self.shapes(chain, budgets);
        let found = self.in_first_shape(&shapes, &mut make)?;
        let longer = shapes.into_iter().filter(|shape| shape.forward.n_tokens > found.0.forward.n_tokens);
        let longer = longer.flat_map(|shape| self.comfortably_shorter(shape)).find_map(|shape| make(shape).ok());
        Ok(longer.unwrap_or(found))
    }

    /// The first of `shapes`, and of shorter and shorter contexts, that works.
    fn in_first_shape<T>(&self, shapes: &[Shape], mut make: impl FnMut(Shape) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mut refusal = None;
        let shorter = shapes.last().copied().into_iter().flat_map(|least| self.shorter(least, 4));
        for shape in shapes.iter().copied().chain(shorter) {
            match (make(shape), &refusal) {
                (Ok(made), _) => return Ok(made),
                // Where one shape lacks only memory, the limits of others are not the reason.
                (Err(Refusal::Limit(_)), Some(Refusal::Budget)) => {}
                (Err(other), _) => refusal = Some(other),
            }
        }
        Err(refusal.unwrap_or(Refusal::Budget))
    }

    /// One greedy try. Cutting units into chunks adds dispatches, whose parameters take memory, which may cut more: settled
    /// in a few rounds.
    fn along(&self, chain: &[usize], shape: Shape, budgets: &[Bytes]) -> Result<Plan, Refusal> {
        self.settled(|n_dispatches| {
            let draft = Greedy { site: self, shape, budgets, chain, n_dispatches }.draft()?;
            let (placements, rings) = (&draft.placements, Rings::Fitted(&draft.slot_limits));
            Build { site: self, shape, budgets, placements, n_dispatches, rings }.plan()
        })
    }

    /// One try with given placements.
    pub(super) fn with(&self, placements: &[Placement], shape: Shape, budgets: &[Bytes]) -> Result<Plan, Refusal> {
        let slot_limits = vec![Bytes(u64::MAX); self.workers.len()];
        let rings = Rings::Fitted(&slot_limits);
        self.settled(|n_dispatches| Build { site: self, shape, budgets, placements, n_dispatches, rings }.plan())
    }

    fn settled(&self, mut build: impl FnMut(&[usize]) -> Result<Outcome, Refusal>) -> Result<Plan, Refusal> {
        let mut n_dispatches = vec![1; self.workers.len()];
        let mut n_rounds = 0;
        loop {
            match build(&n_dispatches)? {
                Outcome::Made(plan) => return Ok(*plan),
                // Mostly, the exact numbers settle soon; where they do not, a few more do.
                Outcome::NeedsDispatches(worker, needed) if n_rounds < N_EXACT_ROUNDS => n_dispatches[worker] = needed,
                Outcome::NeedsDispatches(worker, needed) => n_dispatches[worker] = needed + needed / 8,
            }
            n_rounds += 1;
        }
    }

    /// The workers that placements name, in the order of their first unit.
    pub(super) fn chain_of(&self, placements: &[Placement]) -> Vec<usize> {
        let mut chain = Vec::new();
        for worker in placements.iter().skip(1).filter_map(|placement| self.worker(placement.execute_on)) {
            if !chain.contains(&worker) {
                chain.push(worker);
            }
        }
        chain
    }
}
