//! From operations to dispatches: every chunk of a plan becomes a list of dispatches that are ready to encode, once per shape of forward.
//! There are fewer dispatches than operations: see `gpu_fusion`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;

use crate::device::{Device, Phase};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu, ParamsArena};
use crate::kernels::{
    BatchShape, Binding, add, add_bias, add_expert_bias, attention, conv, copy_part, delta_rule, expert_matmul, gate_rows, gather_rows,
    glu, layer_norm, map, matmul, rms_norm, rope, rope_kv, rope_kv_blocks, rope_kv_padded, route, sum_experts, top_k, weigh_inputs,
};
use crate::model::{Attention, Conv, DeltaRule, ExpertMatMul, HeadMatMul, LoraMatMul, Model, Op, StateKind, StoreKv, ValueId};
use crate::plan::{CacheDType, Chunk, DeviceCosts, Plan, SUBMIT_SECS, Slice, WorkingBuffer, expert_shape, rotated_by};
use crate::stream::Store;
use crate::stream::expert_cache::ExpertCache;
use crate::stream::gpu_buffers::Buffers;
use crate::stream::gpu_fusion::{Fused, Product, Terms, fuse};
use crate::stream::gpu_ring::Ring;
use crate::units::Bytes;
use crate::weights::{Catalog, TensorId};

/// The shape of a device's part of a forward, on which its dispatches depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ForwardShape {
    /// Tokens of the batch.
    pub(super) n_tokens: usize,
    /// Positions whose logits are asked for; 0 where another device computes the head.
    pub(super) n_rows: usize,
    /// Best tokens to select per row; 0 selects nothing.
    pub(super) top_k: usize,
    /// Whether many tokens of one sequence follow each other, so that their attention can share keys.
    pub(super) attention: Phase,
    /// Most positions that a token attends to.
    pub(super) n_positions: usize,
}

/// A dispatch that is ready to encode.
#[derive(Debug, Clone)]
pub(super) struct PlacedDispatch {
    pub(super) dispatch: Dispatch,
    /// Offset of its params in the arena.
    pub(super) params_offset: u32,
    /// How long it should take, by the adapter's rates.
    pub(super) secs: f64,
    /// The buffer of the expert cache that it reads, if it reads one: it may be left out where that has no expert that is wanted.
    pub(super) experts: Option<usize>,
}

/// All dispatches of one shape.
pub(super) struct ForwardDispatches {
    pub(super) shape: ForwardShape,
    /// Per chunk, for each buffer that it can be in: its own, or each slot of the ring. Of chunks whose experts are cached, [`OF_EACH_GROUP`] and
    /// [`OF_ALL`]. Empty for chunks that another device computes.
    chunks: Vec<Vec<Vec<PlacedDispatch>>>,
    /// By chunk that computes a choice of experts.
    choices: BTreeMap<usize, Choice>,
    top_k: Option<PlacedDispatch>,
}

/// Where it is known which of a later chunk's cached experts the tokens take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    /// So many dispatches of the chunk come before.
    pub(super) n_before: usize,
    /// The chunk whose experts they are.
    pub(super) cached: usize,
}

/// What dispatches are made from, besides the shape.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) device: Device,
    pub(super) model: &'a Model,
    pub(super) plan: &'a Plan,
    pub(super) store: &'a Store,
    pub(super) buffers: &'a Buffers,
    pub(super) ring: Option<&'a Ring>,
    pub(super) expert_cache: Option<&'a ExpertCache>,
}

/// The dispatches of a chunk whose experts are cached: those that are made for each group of experts, and those that follow once.
pub(super) const OF_EACH_GROUP: usize = 0;
/// See [`OF_EACH_GROUP`].
pub(super) const OF_ALL: usize = 1;

/// What stays the same while dispatches of one shape are made.
struct Maker<'a> {
    gpu: &'a Gpu,
    model: &'a Model,
    buffers: &'a Buffers,
    catalog: &'a Catalog,
    batch: BatchShape,
    attention: Phase,
    max_binding: Bytes,
}

/// The part of a block of `block_bytes` to bind for weights that are in `used` of it: all of it where the adapter can bind that much, else
/// one of few parts, each of which begins in the middle of the one before. So the weights of all layers share bind groups. Only what lies
/// across several parts is bound by itself. `used` must begin at a multiple of [`matmul::WEIGHT_ALIGNMENT`], and so does the part.
fn bound_part(block_bytes: u64, used: Range<u64>, max_binding: Bytes) -> Range<u64> {
    let most = max_binding.0.min(u64::from(u32::MAX)) / matmul::WEIGHT_ALIGNMENT * matmul::WEIGHT_ALIGNMENT;
    if block_bytes <= most {
        return 0..block_bytes;
    }
    let step = (most / 2).next_multiple_of(matmul::WEIGHT_ALIGNMENT);
    let begin = used.start.checked_div(step).unwrap_or(0) * step;
    let part = begin..(begin + most).min(block_bytes);
    if used.end <= part.end { part } else { used }
}

impl ForwardDispatches {
    /// Makes all dispatches and uploads their params to `arena`, whose former contents are discarded.
    pub(super) fn new(parts: Parts<'_>, arena: &mut ParamsArena, shape: ForwardShape) -> Result<ForwardDispatches> {
        let Parts { gpu, device, model, plan, store, buffers, ring, expert_cache } = parts;
        arena.clear();
        let batch = BatchShape {
            n_tokens: shape.n_tokens as u32,
            n_logit_rows: shape.n_rows as u32,
            n_seqs: plan.n_seqs as u32,
            n_blocks: plan.n_kv_blocks() as u32,
            kv_capacity: plan.ctx_size as u32,
            kv_dtypes: [plan.kv_dtype.keys, plan.kv_dtype.values].map(|dtype| match dtype {
                CacheDType::F32 => rope_kv::CacheDType::F32,
                CacheDType::F16 => rope_kv::CacheDType::F16,
                CacheDType::Q8_0 => rope_kv::CacheDType::Q8_0,
                CacheDType::Q4_0 => rope_kv::CacheDType::Q4_0,
            }),
        };
        let (catalog, ForwardShape { n_positions, attention, .. }) = (&store.checkpoint().catalog, shape);
        let (costs, max_binding) = (DeviceCosts::new(&gpu.spec), gpu.limits.max_binding_bytes);
        let maker = Maker { gpu, model, buffers, catalog, batch, attention, max_binding };
        let terms = Terms { model, batch, n_positions, attention, catalog, costs: &costs, max_binding };
        let mut chunks = Vec::with_capacity(plan.chunks.len());
        let mut choices = BTreeMap::new();
        for (index, chunk) in plan.chunks.iter().enumerate() {
            if plan.executor(index) != device {
                chunks.push(Vec::new());
                continue;
            }
            if chunk.is_cached {
                let cache = expert_cache.ok_or_else(|| gpu.error("there is no expert cache"))?;
                chunks.push(maker.cached((index, chunk), cache, &terms, arena)?.into());
                continue;
            }
            let blocks: Vec<Option<&wgpu::Buffer>> = match ring {
                _ if plan.is_resident(index) => vec![buffers.resident(index).map(|buffer| &**buffer)],
                Some(ring) => (0..ring.n_slots()).map(|slot| Some(ring.block(slot))).collect(),
                None => vec![None],
            };
            // All slots have one size.
            let block_bytes = blocks.iter().flatten().map(|block| block.size()).next().unwrap_or(0);
            let mut places: Vec<Vec<PlacedDispatch>> = vec![Vec::with_capacity(chunk.n_steps()); blocks.len()];
            for of_unit in &chunk.work {
                let ops = &model.units[of_unit.unit].ops;
                let fused = fuse(of_unit, &chunk.slices, ops, &terms);
                for one in fused.ok_or_else(|| gpu.error("a slice of something that is no matrix product"))? {
                    let secs = terms.secs(&one, ops);
                    // The params are the same for every slot; the bindings are not.
                    let call = maker.call(ops, &one, secs, block_bytes)?;
                    let params_offset = arena.push_bytes(gpu, &call.params)?;
                    for (place, block) in places.iter_mut().zip(&blocks) {
                        let dispatches = (call.prepare)(arena.buffer(), *block)?;
                        let secs = secs / dispatches.len() as f64;
                        let placed = |dispatch| PlacedDispatch { dispatch, params_offset, secs, experts: None };
                        place.extend(dispatches.into_iter().map(placed));
                    }
                    if is_choice(&one, ops)
                        && let Some(cached) = cached_behind(plan, index, of_unit.unit)
                    {
                        choices.insert(index, Choice { n_before: places.first().map_or(0, Vec::len), cached });
                    }
                }
            }
            chunks.push(places);
        }
        let top_k = match shape.top_k {
            0 => None,
            k => {
                let call = maker.top_k(k)?;
                let params_offset = arena.push_bytes(gpu, &call.params)?;
                let dispatch = (call.prepare)(arena.buffer(), None)?.pop();
                dispatch.map(|dispatch| PlacedDispatch { dispatch, params_offset, secs: 0.0, experts: None })
            }
        };
        arena.upload(gpu);
        Ok(ForwardDispatches { shape, chunks, choices, top_k })
    }

    /// The dispatches of a chunk that is in a slot, or in its own buffer.
    pub(super) fn dispatches(&self, chunk: usize, slot: Option<usize>) -> &[PlacedDispatch] {
        &self.chunks[chunk][slot.unwrap_or(0)]
    }

    /// Where `chunk` computes a choice of cached experts.
    pub(super) fn choice(&self, chunk: usize) -> Option<Choice> {
        self.choices.get(&chunk).copied()
    }

    /// One dispatch of each pipeline.
    pub(super) fn one_of_each_pipeline(&self) -> Vec<&PlacedDispatch> {
        let all = self.chunks.iter().flatten().flatten().chain(&self.top_k);
        let mut each: Vec<&PlacedDispatch> = all.collect();
        each.sort_by_key(|placed| Arc::as_ptr(&placed.dispatch.pipeline));
        each.dedup_by_key(|placed| Arc::as_ptr(&placed.dispatch.pipeline));
        each
    }

    /// The selection of the best tokens, if the shape asks for it.
    pub(super) fn top_k(&self) -> Option<&PlacedDispatch> {
        self.top_k.as_ref()
    }
}

/// Whether this is the last operation that experts wait for: their choice, and what they read where that depends on it.
fn is_choice(one: &Fused, ops: &[Op]) -> bool {
    let Fused::Op(op) = one else { return false };
    match ops[*op] {
        Op::Route(_) => !matches!(ops.get(op + 1), Some(Op::WeighInputs { .. })),
        Op::WeighInputs { .. } => true,
        _ => false,
    }
}

/// The chunk behind `chunk` that has the cached experts of a unit, where it has such.
fn cached_behind(plan: &Plan, chunk: usize, unit: usize) -> Option<usize> {
    let of_unit = |chunk: &usize| plan.chunks[*chunk].work.iter().any(|of_unit| of_unit.unit == unit);
    (chunk + 1..plan.chunks.len()).take_while(of_unit).find(|&chunk| plan.chunks[chunk].is_cached)
}

/// A kernel with its params and its bindings, except the block that has the matrices.
struct Call<'a> {
    params: Vec<u8>,
    prepare: Box<Prepare<'a>>,
}

/// Makes the dispatches of a call, in order, from the buffer of its params and the block that has the matrices.
type Prepare<'a> = dyn Fn(&wgpu::Buffer, Option<&wgpu::Buffer>) -> Result<Vec<Dispatch>> + 'a;

impl<'a> Call<'a> {
    /// A call of one dispatch without a matrix.
    fn simple<P: Pod>(params: P, prepare: impl Fn(&wgpu::Buffer, &P) -> Result<Dispatch> + 'a) -> Call<'a> {
        Call::new(&params, move |arena, _| Ok(vec![prepare(arena, &params)?]))
    }

    fn new<P: Pod>(params: &P, prepare: impl Fn(&wgpu::Buffer, Option<&wgpu::Buffer>) -> Result<Vec<Dispatch>> + 'a) -> Call<'a> {
        Call { params: bytemuck::bytes_of(params).to_vec(), prepare: Box::new(prepare) }
    }
}

impl<'a> Maker<'a> {
    /// `secs`: how long it should take; `block_bytes`: the size of the block that has its matrices.
    fn call(&self, ops: &[Op], one: &Fused, secs: f64, block_bytes: u64) -> Result<Call<'a>> {
        match one {
            Fused::Op(op) => self.op(ops, *op, secs),
            Fused::Products(products) => self.products(products, block_bytes),
            Fused::Experts(op, slice) => self.experts(op, *slice),
            Fused::Heads(op, slice) => self.heads(op, *slice),
        }
    }

    fn op(&self, ops: &[Op], op: usize, secs: f64) -> Result<Call<'a>> {
        let (gpu, model, batch) = (self.gpu, self.model, &self.batch);
        Ok(match ops[op] {
            Op::RmsNorm(norm) => {
                let (input, output) = (self.value(norm.input)?, self.value(norm.output)?);
                let bindings = rms_norm::Bindings { input, weight: norm.weight.map(|weight| self.vector(weight)).transpose()?, output };
                let params = rms_norm::Params::of(model.value(norm.input), norm.group_size, norm.epsilon, norm.weight_offset, batch);
                Call::simple(params, move |arena, params| rms_norm::prepare(gpu, arena, params, bindings))
            }
            Op::LayerNorm(norm) => {
                let bias = norm.bias.map(|bias| self.vector(bias)).transpose()?;
                let (input, output) = (self.value(norm.input)?, self.value(norm.output)?);
                let bindings = layer_norm::Bindings { input, weight: self.vector(norm.weight)?, bias, output };
                let params = layer_norm::Params::of(model.value(norm.input), norm.group_size, norm.epsilon, norm.weight_offset, batch);
                Call::simple(params, move |arena, params| layer_norm::prepare(gpu, arena, params, bindings))
            }
            Op::AddBias { bias, target } => {
                let bindings = add_bias::Bindings { bias: self.vector(bias)?, target_values: self.value(target)? };
                let params = add_bias::Params::of(model.value(target), batch);
                Call::simple(params, move |arena, params| add_bias::prepare(gpu, arena, params, bindings))
            }
            Op::Rope(rope) => {
                let cos_sin = self.working(WorkingBuffer::CosSin { table: rope.table })?;
                let bindings = rope::Bindings { cos_sin, heads: self.value(rope.heads)? };
                Call::simple(rope::Params::of(&rope, batch), move |arena, params| rope::prepare(gpu, arena, params, bindings))
            }
            Op::StoreKv(store) => self.store_kv(&store, ops, op)?,
            Op::Attention(attention) => self.attention(&attention, secs)?,
            Op::Conv(conv) => self.conv(&conv)?,
            Op::DeltaRule(rule) => self.delta_rule(&rule)?,
            Op::CopyPart(op) => {
                let params = copy_part::Params::of(&op, [model.value(op.input), model.value(op.output)], batch);
                let bindings = copy_part::Bindings { input: self.value(op.input)?, output: self.value(op.output)? };
                Call::simple(params, move |arena, params| copy_part::prepare(gpu, arena, params, bindings))
            }
            Op::Glu { activation, gate, up, output } => {
                let params = glu::Params::of(model.value(gate), batch);
                let bindings = glu::Bindings { gate: self.value(gate)?, up: self.value(up)?, output: self.value(output)? };
                Call::simple(params, move |arena, params| glu::prepare(gpu, arena, params, activation, bindings))
            }
            Op::Map { function, target } => {
                let (params, values) = (map::Params::of(function, model.value(target), batch), self.value(target)?);
                Call::simple(params, move |arena, params| map::prepare(gpu, arena, params, function, values))
            }
            Op::Add { input, target } => {
                let bindings = add::Bindings { input: self.value(input)?, target_values: self.value(target)? };
                let params = add::Params::of(model.value(target), batch);
                Call::simple(params, move |arena, params| add::prepare(gpu, arena, params, bindings))
            }
            Op::GatherRows { input, output } => {
                let params = gather_rows::Params::of(model.value(input), batch);
                let (input, output) = (self.value(input)?, self.value(output)?);
                let bindings = gather_rows::Bindings { input, row_indices: self.working(WorkingBuffer::SelectedRows)?, output };
                Call::simple(params, move |arena, params| gather_rows::prepare(gpu, arena, params, bindings))
            }
            Op::Route(op) => {
                let vector = |id: Option<TensorId>| id.map(|id| self.vector(id)).transpose();
                let (bias, factors) = (vector(op.bias)?, vector(op.factors)?);
                let bindings = route::Bindings { logits: self.value(op.logits)?, bias, factors, routing: self.value(op.routing)? };
                let params = route::Params::of(&op, model.value(op.logits), batch);
                Call::simple(params, move |arena, params| route::prepare(gpu, arena, params, bindings))
            }
            Op::WeighInputs { input, routing, output } => {
                let params = weigh_inputs::Params::of_inputs(model.value(routing), model.value(input), batch);
                let [input, routing, output] = [self.value(input)?, self.value(routing)?, self.value(output)?];
                let bindings = weigh_inputs::Bindings { input, routing, output };
                Call::simple(params, move |arena, params| weigh_inputs::prepare(gpu, arena, params, bindings))
            }
            Op::SumExperts { input, routing, output, is_weighted } => {
                let params = sum_experts::Params::of_sum(model.value(routing), model.value(output), batch);
                let [input, routing, output] = [self.value(input)?, self.value(routing)?, self.value(output)?];
                let bindings = sum_experts::Bindings { input, routing: is_weighted.then_some(routing), output };
                Call::simple(params, move |arena, params| sum_experts::prepare(gpu, arena, params, bindings))
            }
            Op::AddExpertBias { bias, routing, target } => {
                let params = add_expert_bias::Params::of_each(model.value(routing), model.value(target), batch);
                let [routing, target_values] = [self.value(routing)?, self.value(target)?];
                let bindings = add_expert_bias::Bindings { bias: self.vector(bias)?, routing, target_values };
                Call::simple(params, move |arena, params| add_expert_bias::prepare(gpu, arena, params, bindings))
            }
            Op::LoraMatMul(op) => self.lora(&op)?,
            Op::GateRows { gate, target } => {
                let bindings = gate_rows::Bindings { gate: self.value(gate)?, target_values: self.value(target)? };
                let params = gate_rows::Params::of(model.value(target), batch);
                Call::simple(params, move |arena, params| gate_rows::prepare(gpu, arena, params, bindings))
            }
            // The embedding is a step of the schedule, and products are fused with their rows.
            Op::Embed { .. } | Op::MatMul { .. } | Op::ExpertMatMul(_) | Op::HeadMatMul(_) => {
                return Err(self.gpu.error("an operation is in a place where it is not computed"));
            }
        })
    }

    /// The slices must be in the order of their offsets, each at a multiple of the alignment that params count in.
    fn products(&self, products: &[Product], block_bytes: u64) -> Result<Call<'a>> {
        let [first, ..] = products else { return Err(self.gpu.error("a dispatch of no products")) };
        let begin = first.slice.offset;
        let end = products.iter().map(|product| product.slice.offset + product.slice.size_bytes).max().unwrap_or(begin);
        let part = bound_part(block_bytes, begin..end, self.max_binding);
        let placed = |product: &Product| {
            let weight_begin = (product.slice.offset - part.start) / matmul::WEIGHT_ALIGNMENT;
            matmul::Params { weight_begin: weight_begin as u32, ..product.params }
        };
        let params: Vec<matmul::Params> = products.iter().map(placed).collect();
        let input = self.value(first.input)?;
        let outputs: Vec<Binding<'a>> = products.iter().map(|product| self.value(product.output)).collect::<Result<_>>()?;
        let gpu = self.gpu;
        Ok(Call::new(&matmul::padded(&params), move |arena, block| {
            let block = block.ok_or_else(|| gpu.error("a matrix has neither a buffer nor a slot"))?;
            let weight = Binding::part(block, part.start, part.end - part.start);
            Ok(vec![matmul::prepare_products(gpu, arena, &matmul::Products { params: &params, weight, input, outputs: &outputs })?])
        }))
    }

    /// A product with a matrix of a LoRA adapter, which has a buffer of its own.
    fn lora(&self, op: &LoraMatMul) -> Result<Call<'a>> {
        let gpu = self.gpu;
        let params = matmul::Params::of_lora(op, self.batch.rows_of(self.model.value(op.input)));
        let (weight, input, output) = (self.vector(op.matrix)?, self.value(op.input)?, self.value(op.output)?);
        Ok(Call::new(&matmul::padded(&[params]), move |arena, _| {
            Ok(vec![matmul::prepare(gpu, arena, &params, matmul::Bindings { weight, input, output })?])
        }))
    }

    /// The dispatches of a chunk whose experts are cached: [`OF_EACH_GROUP`], up to the last product with experts, and [`OF_ALL`].
    fn cached(
        &self,
        (index_of_chunk, chunk): (usize, &Chunk),
        cache: &'a ExpertCache,
        terms: &Terms<'_>,
        arena: &mut ParamsArena,
    ) -> Result<[Vec<PlacedDispatch>; 2]> {
        let gpu = self.gpu;
        let shape = expert_shape(chunk, self.model).ok_or_else(|| gpu.error("a chunk of experts has none"))?;
        let mut begins = shape.matrices.iter().map(|(begin, _)| *begin);
        let mut dispatches = [Vec::new(), Vec::new()];
        for of_unit in &chunk.work {
            let ops = &self.model.units[of_unit.unit].ops;
            let fused = fuse(of_unit, &chunk.slices, ops, terms);
            let fused = fused.ok_or_else(|| gpu.error("a slice of something that is no matrix product"))?;
            let last = fused.iter().rposition(|one| matches!(one, Fused::Experts(..)));
            for (index, one) in fused.iter().enumerate() {
                let secs = terms.secs(one, ops);
                let of_experts = matches!(one, Fused::Experts(..));
                let call = match one {
                    Fused::Experts(op, slice) => {
                        let begin = begins.next().ok_or_else(|| gpu.error("an expert has more matrices than its chunk"))?;
                        self.cached_experts(op, *slice, cache, (index_of_chunk, begin))?
                    }
                    _ => self.call(ops, one, secs, 0)?,
                };
                let place = if last.is_some_and(|last| index <= last) { OF_EACH_GROUP } else { OF_ALL };
                let params_offset = arena.push_bytes(gpu, &call.params)?;
                let made = (call.prepare)(arena.buffer(), None)?;
                let secs = secs / made.len() as f64;
                let placed = |(block, dispatch)| PlacedDispatch { dispatch, params_offset, secs, experts: of_experts.then_some(block) };
                dispatches[place].extend(made.into_iter().enumerate().map(placed));
            }
        }
        Ok(dispatches)
    }

    /// Products with the chosen experts' rows that are in slots, one for each buffer of slots; the matrix of this chunk begins at `begin` in
    /// a slot.
    fn cached_experts(&self, op: &ExpertMatMul, slice: Slice, cache: &'a ExpertCache, (chunk, begin): (usize, u64)) -> Result<Call<'a>> {
        let (gpu, dtype) = (self.gpu, self.catalog[slice.tensor].dtype);
        let params = expert_matmul::Params::of(op, self.model.value(op.input), [slice.first_row, slice.n_rows], &self.batch);
        let params = params.in_slots(cache.slot_bytes().0 as u32, begin as u32);
        let (input, routing, output) = (self.value(op.input)?, self.value(op.routing)?, self.value(op.output)?);
        Ok(Call::new(&params, move |arena, _| {
            let of_block = |[weight, slots]: [Binding<'_>; 2]| {
                let bindings = expert_matmul::Bindings { weight, input, routing: Some(routing), slots: Some(slots), output };
                expert_matmul::prepare(gpu, arena, &params, dtype, bindings)
            };
            cache.bindings(chunk).map(of_block).collect()
        }))
    }

    /// Products with the chosen experts' rows that are in one slice.
    fn experts(&self, op: &ExpertMatMul, slice: Slice) -> Result<Call<'a>> {
        let params = expert_matmul::Params::of(op, self.model.value(op.input), [slice.first_row, slice.n_rows], &self.batch);
        self.matrices_of_each(params, [op.input, op.output], Some(op.routing), slice)
    }

    /// Products of heads with the rows of their matrices that are in one slice.
    fn heads(&self, op: &HeadMatMul, slice: Slice) -> Result<Call<'a>> {
        let params = expert_matmul::Params::of_heads(op, [slice.first_row, slice.n_rows], &self.batch);
        self.matrices_of_each(params, [op.input, op.output], None, slice)
    }

    fn matrices_of_each(
        &self,
        params: expert_matmul::Params,
        [input, output]: [ValueId; 2],
        routing: Option<ValueId>,
        slice: Slice,
    ) -> Result<Call<'a>> {
        let (gpu, dtype) = (self.gpu, self.catalog[slice.tensor].dtype);
        let (input, output) = (self.value(input)?, self.value(output)?);
        let routing = routing.map(|routing| self.value(routing)).transpose()?;
        Ok(Call::new(&params, move |arena, block| {
            let block = block.ok_or_else(|| gpu.error("a matrix has neither a buffer nor a slot"))?;
            let weight = Binding::part(block, slice.offset, slice.size_bytes);
            let bindings = expert_matmul::Bindings { weight, input, routing, slots: None, output };
            Ok(vec![expert_matmul::prepare(gpu, arena, &params, dtype, bindings)?])
        }))
    }

    /// Stores keys and values, and rotates queries and keys before, where `ops` say so. Queries are rotated in place; where the head size is no
    /// multiple of 8, they are padded into the buffer that later gets the attention output.
    fn store_kv(&self, store: &StoreKv, ops: &[Op], index: usize) -> Result<Call<'a>> {
        let gpu = self.gpu;
        let reader = |op: &Op| if let Op::Attention(attention) = op { Some(*attention) } else { None };
        let reader = ops[index..].iter().find_map(reader).ok_or_else(|| gpu.error("keys that no attention reads"))?;
        let rotations = rotated_by(ops, index);
        let query_rope = rotations.map(|[query, _]| query);
        let params = rope_kv::Params::of(store, query_rope, &self.batch);
        let is_padded = params.head_size != rope_kv_padded::padded_size(params.head_size);
        let (keys, values) = self.buffers.kv_cache(gpu, store.layer)?;
        let tokens = self.working(WorkingBuffer::Tokens)?;
        // Without a rotation, no angle is read.
        let cos_sin = query_rope.map_or(Ok(tokens), |rope| self.working(WorkingBuffer::CosSin { table: rope.table }))?;
        let (key, query) = (self.value(store.key)?, self.value(reader.query)?);
        let value = store.value.map(|value| self.value(value)).transpose()?;
        // Where keys are the values as well, something must be bound all the same that nobody uses now.
        let unused = self.working(WorkingBuffer::AttentionParts)?;
        let (key_cache, value_cache) = (Binding::whole(keys), values.map_or(unused, |values| Binding::whole(values)));
        if !is_padded {
            let bindings = rope_kv::Bindings { cos_sin, tokens, key, value, query, key_cache, value_cache };
            if params.stores_blocks() {
                return Ok(Call::simple(params, move |arena, params| rope_kv_blocks::prepare(gpu, arena, params, bindings)));
            }
            return Ok(Call::simple(params, move |arena, params| rope_kv::prepare(gpu, arena, params, bindings)));
        }
        let (rotated_query, params) = (self.value(reader.output)?, rope_kv::Params { n_heads: reader.n_heads as u32, ..params });
        let bindings = rope_kv_padded::Bindings { cos_sin, tokens, key, value, query, rotated_query, key_cache, value_cache };
        Ok(Call::simple(params, move |arena, params| rope_kv_padded::prepare(gpu, arena, params, bindings)))
    }

    /// Attention of a prompt takes several dispatches, each short enough that no watchdog takes the adapter for hung. That of decoding reads
    /// each key once, and one dispatch is short enough.
    ///
    /// With padded heads, the buffers change roles: queries are in the output buffer, and the padded output goes to the query buffer.
    fn attention(&self, op: &Attention, secs: f64) -> Result<Call<'a>> {
        let (gpu, tokens) = (self.gpu, self.attention);
        let (keys, values) = self.buffers.kv_cache(gpu, op.layer)?;
        let params = attention::Params::of(op, &self.batch);
        // Where keys are the values as well, these are read as they are stored.
        let value_dtype = if values.is_some() { params.value_dtype } else { params.key_dtype };
        let params = attention::Params { value_dtype, ..params };
        let head_size = params.head_size;
        let whole = attention::Params { head_size: rope_kv_padded::padded_size(head_size), ..params };
        let is_padded = whole.head_size != head_size;
        let (query, attention_output) = (self.value(op.query)?, self.value(op.output)?);
        let bindings = attention::Bindings {
            query: if is_padded { attention_output } else { query },
            tokens: self.working(WorkingBuffer::Tokens)?,
            key_cache: Binding::whole(keys),
            value_cache: Binding::whole(values.unwrap_or(keys)),
            sinks: op.sinks.map(|sinks| self.vector(sinks)).transpose()?,
            parts: self.working(WorkingBuffer::AttentionParts)?,
            attention_output: if is_padded { query } else { attention_output },
        };
        let n_cuts = if tokens == Phase::Prefill { (secs / SUBMIT_SECS).ceil() as usize } else { 1 };
        let (params, begins) = attention::cut(&whole, n_cuts);
        let compact = attention::compact::Bindings { padded: query, attention_output };
        Ok(Call::new(&params, move |arena, _| {
            let mut dispatches = Vec::new();
            for &begin in &begins {
                dispatches.extend(attention::prepare(gpu, arena, &params, bindings.from_token(&whole, begin), tokens)?);
            }
            // Padding is removed after all cuts, since some tokens are in two of them.
            for &begin in begins.iter().filter(|_| is_padded) {
                let bindings = compact.from_token(&whole, head_size, begin);
                dispatches.push(attention::compact::prepare(gpu, arena, &params, head_size, bindings)?);
            }
            Ok(dispatches)
        }))
    }

    fn conv(&self, op: &Conv) -> Result<Call<'a>> {
        let (gpu, params) = (self.gpu, conv::Params::of(op, &self.batch));
        let bindings = conv::Bindings {
            tokens: self.working(WorkingBuffer::Tokens)?,
            input: self.value(op.input)?,
            weight: self.vector(op.weight)?,
            bias: op.bias.map(|bias| self.vector(bias)).transpose()?,
            state: Binding::whole(self.buffers.state(gpu, op.layer, StateKind::Conv)?),
            output: self.value(op.output)?,
        };
        Ok(Call::simple(params, move |arena, params| conv::prepare(gpu, arena, params, bindings)))
    }

    fn delta_rule(&self, op: &DeltaRule) -> Result<Call<'a>> {
        let (gpu, params, is_log) = (self.gpu, delta_rule::Params::of(op, &self.batch), op.decay_is_log);
        let bindings = delta_rule::Bindings {
            tokens: self.working(WorkingBuffer::Tokens)?,
            input: self.value(op.input)?,
            alpha: self.value(op.alpha)?,
            beta: self.value(op.beta)?,
            decay: self.vector(op.decay)?,
            bias: self.vector(op.bias)?,
            state: Binding::whole(self.buffers.state(gpu, op.layer, StateKind::DeltaRule)?),
            output: self.value(op.output)?,
        };
        Ok(Call::simple(params, move |arena, params| delta_rule::prepare(gpu, arena, params, is_log, bindings)))
    }

    fn top_k(&self, k: usize) -> Result<Call<'a>> {
        let (gpu, logits) = (self.gpu, self.model.logits);
        let params = top_k::Params::new(self.batch.n_logit_rows, self.model.value(logits).width as u32, k as u32);
        let bindings = top_k::Bindings { logits: self.value(logits)?, candidates: self.working(WorkingBuffer::TopK)? };
        Ok(Call::simple(params, move |arena, params| top_k::prepare(gpu, arena, params, bindings)))
    }

    fn value(&self, id: ValueId) -> Result<Binding<'a>> {
        self.working(WorkingBuffer::Value(id))
    }

    fn working(&self, name: WorkingBuffer) -> Result<Binding<'a>> {
        Ok(Binding::whole(self.buffers.working(self.gpu, name)?))
    }

    fn vector(&self, id: TensorId) -> Result<Binding<'a>> {
        let buffer = self.buffers.vector(id).ok_or_else(|| self.gpu.error("a norm weight or bias was not loaded"))?;
        Ok(Binding::whole(buffer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_to_bind_are_few_and_cover_what_is_used() {
        let max_binding = Bytes(2000);
        assert_eq!(bound_part(1792, 512..700, max_binding), 0..1792, "all that an adapter can bind");
        let mut parts = std::collections::BTreeSet::new();
        for begin in (0..10_240).step_by(256) {
            for size in [1, 256, 700, 1024] {
                let used = begin..(begin + size).min(10_240);
                let part = bound_part(10_240, used.clone(), max_binding);
                assert!(part.start <= used.start && used.end <= part.end && part.end - part.start <= max_binding.0, "{used:?} in {part:?}");
                assert!(part.start.is_multiple_of(matmul::WEIGHT_ALIGNMENT));
                parts.insert((part.start, part.end));
            }
        }
        assert!(parts.len() <= 12, "{parts:?}");
        assert_eq!(bound_part(10_240, 768..2560, max_binding), 768..2560, "across two parts");
    }
}
