//! Shape: the sizes of a plan that do not depend on who computes what: tokens of a forward, context, slots of a ring. Where the user
//! left them open, several shapes are tried, from what one would like to the least that works.

use std::iter::successors;

use crate::plan::chunks::{SLICE_ALIGNMENT, n_dispatches_of};
use crate::plan::costs::{DeviceCosts, SUBMIT_SECS, Workload};
use crate::plan::site::Site;
use crate::plan::sizes::{ForwardSize, Role, kv_bytes_per_position, largest_kv_buffer_bytes, state_bytes};
use crate::plan::{Chunk, Work};
use crate::units::Bytes;

/// Slots of a ring by default: one computed from, one ready, one being filled. Published measurements of
/// layer prefetching gain 8 % from a fourth slot and nothing from more.
const N_SLOTS: usize = 3;
/// Tokens per forward, unless memory is short or an adapter slow.
pub(super) const UBATCH_SIZE: usize = 512;
/// Tokens that keep an adapter busy: forwards of fewer tokens would gain little.
pub(super) const N_TOKENS_BUSY: usize = 64;
/// Tokens of a forward where memory is short.
pub(super) const N_TOKENS_FEW: usize = 16;
/// The shortest context that the planner chooses.
const CTX_LEAST: usize = 64;
/// A context that is long enough for most work: weights do not stream for the sake of a longer one.
const COMFORTABLE_CTX: usize = 2048;
/// How often a context is halved for the sake of longer forwards.
const N_HALVED: usize = 3;

/// The sizes of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) forward: ForwardSize,
    pub(super) ctx_size: usize,
    pub(super) n_slots: usize,
}

impl Shape {
    /// The shape with another context, and no more tokens in a forward than all contexts have positions.
    fn with_ctx_size(self, ctx_size: usize, n_seqs: usize) -> Shape {
        let n_tokens = self.forward.n_tokens.min(ctx_size.saturating_mul(n_seqs).max(1));
        let forward = ForwardSize { n_tokens, n_logit_rows: self.forward.n_logit_rows.min(n_tokens), ..self.forward };
        Shape { forward, ctx_size, ..self }
    }
}

impl Site<'_> {
    /// The shapes to try, from what one would like to the least that works.
    pub(super) fn shapes(&self, chain: &[usize], budgets: &[Bytes]) -> Vec<Shape> {
        let options = self.options;
        let budget: Bytes = chain.iter().map(|&worker| budgets[worker]).sum();
        // A device that has no room for any part of the model sets no limits to the others.
        let has_room = |worker: usize| self.workers[worker].block_bytes.iter().any(|&bytes| (Bytes(1)..=budgets[worker]).contains(&bytes));
        let with_room: Vec<usize> = chain.iter().copied().filter(|&worker| has_room(worker)).collect();
        let limiting = if with_room.is_empty() { chain } else { &with_room };
        let largest_buffer = limiting.iter().map(|&worker| self.workers[worker].largest_buffer()).min().unwrap_or_default();
        let logit_rows = options.logit_rows.max(options.n_seqs);
        let ctx_limit = options.ctx_size.unwrap_or(self.model.config.context_length);
        let mut n_tokens = UBATCH_SIZE.min(ctx_limit).next_power_of_two();
        let is_too_large = |n_tokens: usize| {
            let forward = ForwardSize { n_tokens, n_logit_rows: logit_rows.min(n_tokens), n_positions: ctx_limit };
            self.working_bytes(forward, Role::ALONE).0 > budget.0 / 8 || self.largest_working(forward, Role::ALONE) > largest_buffer
        };
        while n_tokens > N_TOKENS_FEW && is_too_large(n_tokens) {
            n_tokens /= 2;
        }
        // Half as many tokens still compute for longer than the weights take to arrive, so that twice as many forwards cost next to nothing.
        while n_tokens > N_TOKENS_BUSY && chain.iter().any(|&worker| self.longest_product_secs(worker, n_tokens) > 2.0 * SUBMIT_SECS) {
            n_tokens /= 2;
        }
        let shapes =
            [(n_tokens, N_SLOTS, 256), (N_TOKENS_FEW, N_SLOTS, 128), (1, 2, CTX_LEAST)].into_iter().map(|(n_tokens, n_slots, ctx_min)| {
                let n_tokens = options.ubatch_size.unwrap_or(n_tokens).max(options.n_seqs);
                let forward = ForwardSize { n_tokens, n_logit_rows: logit_rows.min(n_tokens), n_positions: ctx_limit };
                let fitting = || self.context_that_fits(chain, budget, largest_buffer, forward, ctx_min);
                let shape = Shape { forward, ctx_size: ctx_limit, n_slots: options.n_slots.unwrap_or(n_slots) };
                shape.with_ctx_size(options.ctx_size.unwrap_or_else(fitting), options.n_seqs)
            });
        shapes.collect()
    }

    /// The shape with a few shorter, still comfortable contexts, where the context is open.
    pub(super) fn comfortably_shorter(&self, shape: Shape) -> impl Iterator<Item = Shape> {
        let comfortable = COMFORTABLE_CTX.min(self.model.config.context_length);
        self.shorter(shape, 2).take(N_HALVED).take_while(move |shorter| shorter.ctx_size >= comfortable)
    }

    /// The shape with shorter and shorter contexts, where the context is open, each `times` shorter than the one before: a context that fits
    /// all devices together may be too long for one of them.
    pub(super) fn shorter(&self, shape: Shape, times: usize) -> impl Iterator<Item = Shape> {
        let is_open = self.options.ctx_size.is_none();
        let shorter = move |shape: &Shape| {
            let ctx_size = (shape.ctx_size / times).max(CTX_LEAST);
            (is_open && ctx_size < shape.ctx_size).then(|| shape.with_ctx_size(ctx_size, self.options.n_seqs))
        };
        successors(shorter(&shape), shorter)
    }

    /// Seconds of the longest matrix product of `n_tokens` on an adapter, by its rates. The head's does not count: it computes few rows.
    fn longest_product_secs(&self, worker: usize, n_tokens: usize) -> f64 {
        let own = &self.workers[worker];
        if !own.is_gpu() {
            return 0.0;
        }
        let costs = DeviceCosts::new(own.spec);
        let of_layers = own.blocks.iter().flatten().filter(|chunk| self.model.units[chunk.unit()].kind.layer().is_some());
        let workload = Workload::prefill(n_tokens);
        let secs_of = |chunk: &Chunk| {
            let steps = chunk.work.iter().flat_map(|of_unit| of_unit.steps.iter().map(|step| (&self.model.units[of_unit.unit].ops, *step)));
            let secs = steps.map(|(ops, step)| match step {
                Work::Op(_) => 0.0,
                Work::Rows { op, slice } => {
                    let slice = &chunk.slices[slice];
                    costs.rows_secs(self.model, &ops[op], &self.catalog[slice.tensor], slice.n_rows, workload)
                }
            });
            secs.fold(0.0, f64::max)
        };
        of_layers.map(secs_of).fold(0.0, f64::max)
    }

    /// The longest context that leaves all weights resident, if it is comfortable; else one that takes a quarter of the budget.
    fn context_that_fits(&self, chain: &[usize], budget: Bytes, largest_buffer: Bytes, forward: ForwardSize, ctx_min: usize) -> usize {
        let config = &self.model.config;
        let own = &self.workers[chain.first().copied().unwrap_or(0)];
        let kv_caches = self.kv_caches(own);
        let per_position = kv_bytes_per_position(self.model, kv_caches).times(self.options.n_seqs as u64).0.max(1);
        let vectors: Bytes = own.vector_bytes.iter().copied().sum();
        let blocks: Bytes = own.block_bytes.iter().copied().sum();
        let params = own.params_bytes(n_dispatches_of(own.blocks.iter().flatten()));
        let states: Bytes = self.model.units.iter().map(|unit| state_bytes(unit, self.options.n_seqs)).sum();
        let room = budget.saturating_sub(self.working_bytes(forward, own.alone()) + vectors + params + states);
        // Caches of short contexts are padded to a binding's alignment.
        let padding = Bytes(2 * SLICE_ALIGNMENT * config.n_layers as u64);
        let beside_weights = (room.saturating_sub(blocks).saturating_sub(padding).0 / per_position) as usize;
        let fitting = match beside_weights >= COMFORTABLE_CTX.min(config.context_length) {
            true => beside_weights,
            false => beside_weights.max((room.0 / 4 / per_position) as usize),
        };
        let of_one = largest_kv_buffer_bytes(self.model, kv_caches, self.options.n_kv_blocks(64)).0.max(1);
        let bindable = (largest_buffer.0 / of_one) as usize * 64;
        let ctx_size = fitting.max(ctx_min).min(bindable).min(config.context_length);
        if ctx_size > 64 { ctx_size / 64 * 64 } else { ctx_size.max(1) }
    }
}
