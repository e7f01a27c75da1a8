//! Placement: tries the sizes that the user left open, from what one would like to the least that works, and says exactly
//! what would be enough where nothing fits.

use crate::device::{Device, DeviceSpec};
use crate::error::{Error, Result};
use crate::model::{Model, Op};
use crate::plan::build::{Build, Outcome};
use crate::plan::candidates;
use crate::plan::costs::{DeviceCosts, SUBMIT_SECS};
use crate::plan::greedy::Greedy;
use crate::plan::pieces::{SLICE_ALIGNMENT, Work, n_dispatches_of};
use crate::plan::site::Site;
use crate::plan::sizes::{ForwardSize, Role, kv_buffer_bytes, kv_bytes_per_position};
use crate::plan::{Context, Homes, KvDType, Objective, Placement, Plan, PlanOptions, ResidentLayers, Spill};
use crate::units::Bytes;
use crate::weights::Catalog;

/// Slots of a ring unless told otherwise: one computed from, one ready, one being filled. Published measurements of
/// layer prefetching gain 8 % from a fourth slot and nothing from more.
const N_SLOTS: usize = 3;
/// Most slots that a ring has, whatever is asked.
const N_SLOTS_MAX: usize = 64;
/// Tokens per forward unless told otherwise, memory is short or an adapter slow.
const UBATCH_SIZE: usize = 512;
/// Tokens that keep an adapter busy: fewer would gain little by being in a forward of their own.
const N_TOKENS_BUSY: usize = 64;
/// Rounds in which a plan is given just the dispatches that its pieces need.
const N_EXACT_ROUNDS: usize = 4;
/// Rounds in which a refusal's advice is tried as it would be followed.
const N_NAMED_ROUNDS: usize = 8;
/// Contexts that are found by trying are multiples of this.
const CTX_STEP: usize = 64;
/// A context that one can work with: a longer one is not bought by streaming weights that could be resident.
const COMFORTABLE_CTX: usize = 2048;

/// Makes the plan, shrinking what the user left open until it fits.
pub(super) fn place(catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> Result<Plan> {
    let mut options = settle(options);
    if options.n_seqs == 0 {
        let is_throughput = options.objective == Objective::Throughput;
        options.n_seqs = if is_throughput { candidates::n_seqs_that_pay(catalog, model, devices, &options) } else { 1 };
    }
    if options.context == Context::Fit && options.ctx_size.is_none() {
        options.resident_layers = ResidentLayers::All;
        options.ctx_size = Some(largest_resident_ctx(catalog, model, devices, &options)?);
    }
    let site = Site::new(catalog, model, devices, &options)?;
    match candidates::best(&site) {
        Ok(plan) => Ok(plan),
        Err(Refusal::Limit(error)) => Err(error),
        Err(Refusal::Budget) => Err(match &options.homes {
            Homes::Placed(placements) => site.placements_too_large(placements),
            _ => site.too_small(),
        }),
    }
}

/// The largest context with which every weight stays resident: a multiple of [`CTX_STEP`], or the model's own.
fn largest_resident_ctx(catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> Result<usize> {
    let fits = |ctx_size: usize| -> Result<bool> {
        let options = PlanOptions { ctx_size: Some(ctx_size), ..options.clone() };
        let site = Site::new(catalog, model, devices, &options)?;
        Ok(candidates::is_possible(&site))
    };
    let most = model.config.context_length;
    if fits(most)? {
        return Ok(most);
    }
    // In steps: the first too large, the last that fits.
    let (mut enough, mut too_large) = (0, most.div_ceil(CTX_STEP));
    while too_large - enough > 1 {
        let middle = enough + (too_large - enough) / 2;
        if fits(middle * CTX_STEP)? { enough = middle } else { too_large = middle }
    }
    // Where not even the least fits, the refusal says how much is missing.
    Ok(enough.max(1) * CTX_STEP)
}

/// Refuses placements that no schedule can carry out.
pub(super) fn check_placements(site: &Site<'_>, placements: &[Placement]) -> Result<()> {
    let invalid = |fault: String| Error::InvalidArgument { option: "--device-map".into(), fault };
    if placements.len() != site.model.units.len() {
        return Err(invalid(format!("{} placements for {} units", placements.len(), site.model.units.len())));
    }
    for (placement, unit) in placements.iter().zip(&site.model.units).skip(1) {
        let (name, device) = (&unit.name, placement.execute_on);
        if site.worker(device).is_none() {
            return Err(invalid(format!("{name} is to be computed by {device}, which does not compute here")));
        }
        if placement.homes.len() != unit.matrices().count() {
            return Err(invalid(format!("{} homes for the {} matrices of {name}", placement.homes.len(), unit.matrices().count())));
        }
        if let Some(home) = placement.homes.iter().find(|home| **home != device && matches!(home, Device::Gpu(_))) {
            return Err(invalid(format!(
                "a part of {name} lives on {home} and is computed by {device}: it can come from cpu or disk only"
            )));
        }
    }
    Ok(())
}

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

/// Options within their domains: a size of 0 leaves the choice to the planner.
pub(super) fn settle(options: &PlanOptions) -> PlanOptions {
    PlanOptions {
        // The host's caches are f32: there, half the memory would cost more time than it saves.
        kv_dtype: if options.compute_on == [Device::Cpu] { KvDType::F32 } else { options.kv_dtype },
        // Positions are u32 in batches and kernels.
        ctx_size: options.ctx_size.filter(|&size| size > 0).map(|size| size.min(u32::MAX as usize)),
        ubatch_size: options.ubatch_size.filter(|&size| size > 0),
        logit_rows: options.logit_rows.max(1),
        n_slots: options.n_slots.map(|n_slots| n_slots.clamp(1, N_SLOTS_MAX)),
        ..options.clone()
    }
}

/// Sizes that the planner chooses where the user left them open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) forward: ForwardSize,
    pub(super) ctx_size: usize,
    pub(super) n_slots: usize,
}

impl Site<'_> {
    /// The greedy plan along a chain of workers.
    pub(super) fn greedy(&self, chain: &[usize], budgets: &[Bytes]) -> Result<(Shape, Plan), Refusal> {
        self.in_some_shape(chain, budgets, |shape| {
            let plan = self.along(chain, shape, budgets)?;
            if self.options.spill == Spill::Refused && !self.keeps_within(&plan) { Err(Refusal::Budget) } else { Ok((shape, plan)) }
        })
    }

    /// The plan with given placements.
    pub(super) fn placed(&self, placements: &[Placement], budgets: &[Bytes]) -> Result<(Shape, Plan), Refusal> {
        self.in_some_shape(&self.chain_of(placements), budgets, |shape| Ok((shape, self.with(placements, shape, budgets)?)))
    }

    /// The first shape that works.
    fn in_some_shape<T>(
        &self,
        chain: &[usize],
        budgets: &[Bytes],
        mut make: impl FnMut(Shape) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut refusal = None;
        for shape in self.shapes(chain, budgets) {
            match (make(shape), &refusal) {
                (Ok(made), _) => return Ok(made),
                // A shape that breaks a limit is no reason where another one lacks memory only.
                (Err(Refusal::Limit(_)), Some(Refusal::Budget)) => {}
                (Err(other), _) => refusal = Some(other),
            }
        }
        Err(refusal.unwrap_or(Refusal::Budget))
    }

    /// One greedy try. Cutting units into pieces adds dispatches, whose parameters take memory, which may cut more: settled
    /// in a few rounds.
    fn along(&self, chain: &[usize], shape: Shape, budgets: &[Bytes]) -> Result<Plan, Refusal> {
        self.settled(|n_dispatches| {
            let draft = Greedy { site: self, shape, budgets, chain, n_dispatches }.draft()?;
            let (placements, slot_limits) = (&draft.placements, &draft.slot_limits);
            Build { site: self, shape, budgets, placements, n_dispatches, slot_limits }.plan()
        })
    }

    /// One try with given placements.
    pub(super) fn with(&self, placements: &[Placement], shape: Shape, budgets: &[Bytes]) -> Result<Plan, Refusal> {
        let slot_limits = vec![Bytes(u64::MAX); self.workers.len()];
        self.settled(|n_dispatches| Build { site: self, shape, budgets, placements, n_dispatches, slot_limits: &slot_limits }.plan())
    }

    fn settled(&self, mut build: impl FnMut(&[usize]) -> Result<Outcome, Refusal>) -> Result<Plan, Refusal> {
        let mut n_dispatches = vec![1; self.workers.len()];
        let mut n_rounds = 0;
        loop {
            match build(&n_dispatches)? {
                Outcome::Made(plan) => return Ok(*plan),
                // Exactly what is needed settles soon, or else a little more does.
                Outcome::NeedsDispatches(worker, needed) if n_rounds < N_EXACT_ROUNDS => n_dispatches[worker] = needed,
                Outcome::NeedsDispatches(worker, needed) => n_dispatches[worker] = needed + needed / 8,
            }
            n_rounds += 1;
        }
    }

    /// The workers that placements name, in the order of their first unit.
    fn chain_of(&self, placements: &[Placement]) -> Vec<usize> {
        let mut chain = Vec::new();
        for worker in placements.iter().skip(1).filter_map(|placement| self.worker(placement.execute_on)) {
            if !chain.contains(&worker) {
                chain.push(worker);
            }
        }
        chain
    }

    /// The refusal of placements that are not the planner's to change.
    fn placements_too_large(&self, placements: &[Placement]) -> Error {
        let available = self.chain_of(placements).iter().map(|&worker| self.workers[worker].budget).sum();
        let advice = "raise --max-memory, lower --ctx-size, or let the planner choose the homes (--device-map auto)".into();
        Error::DoesNotFit { device: "these homes".into(), needed: self.needed(placements), available, advice }
    }

    /// Bytes of the matrices that placements keep with those who compute them, for a refusal.
    fn needed(&self, placements: &[Placement]) -> Bytes {
        let of_unit = |(unit, placement): (usize, &Placement)| -> Bytes {
            let matrices = self.model.units[unit].matrices().zip(&placement.homes);
            matrices.filter(|(_, home)| **home == placement.execute_on).map(|(id, _)| self.catalog[id].size_bytes).sum()
        };
        placements.iter().enumerate().map(of_unit).sum()
    }

    /// From what one would like to the least that works.
    fn shapes(&self, chain: &[usize], budgets: &[Bytes]) -> Vec<Shape> {
        let options = self.options;
        let budget: Bytes = chain.iter().map(|&worker| budgets[worker]).sum();
        let largest_buffer = chain.iter().map(|&worker| self.workers[worker].largest_buffer()).min().unwrap_or_default();
        let logit_rows = options.logit_rows.max(options.n_seqs);
        let ctx_limit = options.ctx_size.unwrap_or(self.model.config.context_length);
        let mut n_tokens = UBATCH_SIZE.min(ctx_limit).next_power_of_two();
        let is_too_large = |n_tokens: usize| {
            let forward = ForwardSize { n_tokens, n_logit_rows: logit_rows, n_positions: ctx_limit };
            self.working_bytes(forward, Role::ALONE).0 > budget.0 / 8 || self.largest_working(forward, Role::ALONE) > largest_buffer
        };
        while n_tokens > 16 && is_too_large(n_tokens) {
            n_tokens /= 2;
        }
        // A product that computes for so long waits for no weights, so that more forwards cost nothing.
        while n_tokens > N_TOKENS_BUSY && chain.iter().any(|&worker| self.longest_product_secs(worker, n_tokens) > SUBMIT_SECS) {
            n_tokens /= 2;
        }
        let shapes = [(n_tokens, N_SLOTS, 256), (16, N_SLOTS, 128), (1, 2, 64)].into_iter().map(|(n_tokens, n_slots, ctx_min)| {
            let n_tokens = options.ubatch_size.unwrap_or(n_tokens).max(options.n_seqs);
            let forward = ForwardSize { n_tokens, n_logit_rows: logit_rows.min(n_tokens), n_positions: ctx_limit };
            let fitting = || self.context_that_fits(chain, budget, largest_buffer, forward, ctx_min);
            Shape { forward, ctx_size: options.ctx_size.unwrap_or_else(fitting), n_slots: options.n_slots.unwrap_or(n_slots) }
        });
        shapes.collect()
    }

    /// Seconds of the longest dispatch of a product of `n_tokens` on an adapter, by its rates.
    fn longest_product_secs(&self, worker: usize, n_tokens: usize) -> f64 {
        let own = &self.workers[worker];
        if !own.is_gpu() {
            return 0.0;
        }
        let costs = DeviceCosts::new(own.spec);
        let n_logit_rows = self.options.logit_rows.max(self.options.n_seqs).min(n_tokens);
        let secs = own.blocks.iter().flatten().flat_map(|piece| {
            let ops = &self.model.units[piece.unit].ops;
            let costs = &costs;
            piece.work.iter().filter_map(move |work| {
                let Work::Rows { op, slice } = *work else { return None };
                let Op::MatMul { input, .. } = ops[op] else { return None };
                let slice = piece.slices[slice];
                Some(costs.product_secs(&self.catalog[slice.tensor], slice.n_rows, input.n_rows(n_tokens, n_logit_rows)))
            })
        });
        secs.fold(0.0, f64::max)
    }

    /// The longest context that leaves all weights resident, if one can work with it, else one that takes a quarter of the budget.
    fn context_that_fits(&self, chain: &[usize], budget: Bytes, largest_buffer: Bytes, forward: ForwardSize, ctx_min: usize) -> usize {
        let config = &self.model.config;
        let own = &self.workers[chain.first().copied().unwrap_or(0)];
        let kv_dtype = self.kv_dtype(own);
        let per_position = kv_bytes_per_position(config, kv_dtype).times(self.options.n_seqs as u64).0.max(1);
        let vectors: Bytes = own.vector_bytes.iter().copied().sum();
        let blocks: Bytes = own.block_bytes.iter().copied().sum();
        let params = own.params_bytes(n_dispatches_of(own.blocks.iter().flatten()));
        let room = budget.saturating_sub(self.working_bytes(forward, own.alone()) + vectors + params);
        // Caches of short contexts are padded to a binding's alignment.
        let padding = Bytes(2 * SLICE_ALIGNMENT * config.n_layers as u64);
        let beside_weights = (room.saturating_sub(blocks).saturating_sub(padding).0 / per_position) as usize;
        let fitting = match beside_weights >= COMFORTABLE_CTX.min(config.context_length) {
            true => beside_weights,
            false => beside_weights.max((room.0 / 4 / per_position) as usize),
        };
        let of_one = kv_buffer_bytes(config, kv_dtype, self.options.n_seqs, 64).0.max(1);
        let bindable = (largest_buffer.0 / of_one) as usize * 64;
        let ctx_size = fitting.max(ctx_min).min(bindable).min(config.context_length);
        if ctx_size > 64 { ctx_size / 64 * 64 } else { ctx_size.max(1) }
    }

    /// The refusal, with the least budget that works.
    fn too_small(&self) -> Error {
        let tried = self.workers.len() - 1;
        let (device, available) = (self.workers[tried].device, self.workers[tried].budget);
        let mut advice = format!("raise --max-memory {device}=…");
        match (self.options.context, self.options.resident_layers) {
            (Context::Fit, _) => advice.push_str(", or drop --fit so that a part streams"),
            (_, ResidentLayers::All) => advice.push_str(", or drop `-ngl all` so that a part streams"),
            _ => {}
        }
        if self.options.spill == Spill::Refused {
            advice.push_str(", or drop --strict so that weights may live elsewhere");
        }
        if let Some(ctx_size) = self.options.ctx_size {
            advice.push_str(&format!(", or lower --ctx-size ({ctx_size})"));
        }
        if let Some(ubatch_size) = self.options.ubatch_size.filter(|&size| size > 1) {
            advice.push_str(&format!(", or lower --ubatch-size ({ubatch_size})"));
        }
        let needed = match self.least_named_budget(tried) {
            Ok(needed) => needed,
            Err(Refusal::Limit(error)) => return error,
            Err(Refusal::Budget) => Bytes(u64::MAX),
        };
        Error::DoesNotFit { device: device.to_string(), needed, available, advice }
    }

    /// As [`Site::least_budget`], but enough too where it is named: then others that share the memory may get less.
    fn least_named_budget(&self, worker: usize) -> Result<Bytes, Refusal> {
        let mut needed = self.least_budget(worker)?;
        if self.workers.len() == 1 {
            return Ok(needed);
        }
        let mut options = self.options.clone();
        for _ in 0..N_NAMED_ROUNDS {
            options.max_memory.insert(self.workers[worker].device, needed);
            let named = Site::new(self.catalog, self.model, self.devices, &options)?;
            if candidates::is_possible(&named) {
                return Ok(needed);
            }
            needed = named.least_budget(worker)?.max(Bytes(needed.0.saturating_add(needed.0 / 8)));
        }
        Err(Refusal::Budget)
    }

    /// The least budget of `worker` above the present one, which is too small: found by trying, so that it is true.
    fn least_budget(&self, worker: usize) -> Result<Bytes, Refusal> {
        let mut budgets = self.budgets();
        let chain: Vec<usize> = (0..self.workers.len()).collect();
        let mut place = |budget: Bytes| {
            budgets[worker] = budget;
            self.greedy(&chain, &budgets).map(drop)
        };
        let (mut too_small, mut enough) = (self.workers[worker].budget, self.workers[worker].budget.max(Bytes::kib(64)));
        while let Err(refusal) = place(enough) {
            if enough == Bytes(u64::MAX) || matches!(refusal, Refusal::Limit(_)) {
                return Err(refusal);
            }
            (too_small, enough) = (enough, enough.times(2));
        }
        while enough.0 - too_small.0 > 1 {
            let middle = Bytes(too_small.0 + (enough.0 - too_small.0) / 2);
            match place(middle) {
                Ok(()) => enough = middle,
                Err(_) => too_small = middle,
            }
        }
        Ok(enough)
    }
}
