//! From operations to dispatches: every piece of a plan becomes a list that is ready to encode, once per shape of forward.
//! Dispatches are fewer than operations: see `gpu_fusion`.

use std::sync::Arc;

use crate::device::{Device, TokenCount};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu, ParamsArena};
use crate::kernels::{
    Binding, add, add_bias, attention, attention_compact, gather_rows, matmul, rms_norm, rope_kv, rope_kv_padded, swiglu, top_k,
};
use crate::model::{Activation, Model, Op};
use crate::plan::{DeviceCosts, Plan, SUBMIT_SECS, WorkingBuffer};
use crate::stream::Store;
use crate::stream::gpu_buffers::Buffers;
use crate::stream::gpu_fusion::{Fused, Product, Terms, fuse};
use crate::stream::gpu_ring::Ring;
use crate::stream::op_params::OpParams;
use crate::weights::TensorId;

/// What the dispatches of a device's part of a forward depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ForwardShape {
    /// Tokens of the batch.
    pub(super) n_tokens: usize,
    /// Positions whose logits are asked for; 0 where another device computes the head.
    pub(super) n_rows: usize,
    /// Best tokens to select per row; 0 selects nothing.
    pub(super) top_k: usize,
    /// Whether tokens of one sequence follow each other, so that their attention can share keys.
    pub(super) attention: TokenCount,
    /// Positions that a token looks back on, at most.
    pub(super) n_positions: usize,
}

/// A dispatch that is ready to encode.
#[derive(Debug, Clone)]
pub(super) struct PlacedDispatch {
    pub(super) dispatch: Dispatch,
    /// Where its params lie in the arena.
    pub(super) params_offset: u32,
    /// How long it should take, by the adapter's rates.
    pub(super) secs: f64,
}

/// All dispatches of one shape.
pub(super) struct ForwardDispatches {
    pub(super) shape: ForwardShape,
    /// Per piece, per place that it can be computed from: its own buffer, or each slot of the ring. None of pieces that
    /// another device computes.
    pieces: Vec<Vec<Vec<PlacedDispatch>>>,
    top_k: Option<PlacedDispatch>,
}

/// What dispatches are made of, whatever their shape.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) device: Device,
    pub(super) model: &'a Model,
    pub(super) plan: &'a Plan,
    pub(super) store: &'a Store,
    pub(super) buffers: &'a Buffers,
    pub(super) ring: Option<&'a Ring>,
}

/// What stays the same while dispatches of one shape are made.
struct Maker<'a> {
    gpu: &'a Gpu,
    model: &'a Model,
    buffers: &'a Buffers,
    params: OpParams<'a>,
    attention: TokenCount,
}

impl ForwardDispatches {
    /// Makes all dispatches and uploads their params to `arena`, in place of what it held.
    pub(super) fn new(parts: Parts<'_>, arena: &mut ParamsArena, shape: ForwardShape) -> Result<ForwardDispatches> {
        let Parts { gpu, device, model, plan, store, buffers, ring } = parts;
        arena.clear();
        let params = OpParams {
            config: &model.config,
            n_tokens: shape.n_tokens,
            n_rows: shape.n_rows,
            n_seqs: plan.n_seqs,
            ctx_size: plan.ctx_size,
            kv_dtype: plan.kv_dtype,
        };
        let maker = Maker { gpu, model, buffers, params, attention: shape.attention };
        let (costs, max_binding) = (DeviceCosts::new(&gpu.spec), gpu.limits.max_binding_bytes);
        let (catalog, ForwardShape { n_positions, attention, .. }) = (&store.checkpoint().catalog, shape);
        let terms = Terms { params, n_positions, attention, catalog, costs: &costs, max_binding };
        let mut pieces = Vec::with_capacity(plan.pieces.len());
        for (index, piece) in plan.pieces.iter().enumerate() {
            if plan.executor(index) != device {
                pieces.push(Vec::new());
                continue;
            }
            let blocks: Vec<Option<&wgpu::Buffer>> = match ring {
                _ if plan.is_resident(index) => vec![buffers.resident(index).map(|buffer| &**buffer)],
                Some(ring) => (0..ring.n_slots()).map(|slot| Some(ring.block(slot))).collect(),
                None => vec![None],
            };
            let mut places: Vec<Vec<PlacedDispatch>> = vec![Vec::with_capacity(piece.n_steps()); blocks.len()];
            for of_unit in &piece.work {
                let ops = &model.units[of_unit.unit].ops;
                let fused = fuse(of_unit, &piece.slices, ops, &terms);
                for one in fused.ok_or_else(|| gpu.fault("a slice of something that is no matrix product"))? {
                    let secs = terms.secs(&one, ops);
                    // The params are the same for every slot; what is bound is not.
                    let call = maker.call(ops, &one, secs)?;
                    let params_offset = call.push(gpu, arena)?;
                    for (place, block) in places.iter_mut().zip(&blocks) {
                        let dispatches = call.prepare(gpu, arena.buffer(), *block)?;
                        let secs = secs / dispatches.len() as f64;
                        place.extend(dispatches.into_iter().map(|dispatch| PlacedDispatch { dispatch, params_offset, secs }));
                    }
                }
            }
            pieces.push(places);
        }
        let top_k = match shape.top_k {
            0 => None,
            k => {
                let call = maker.top_k(k)?;
                let params_offset = call.push(gpu, arena)?;
                let dispatch = call.prepare(gpu, arena.buffer(), None)?.pop();
                dispatch.map(|dispatch| PlacedDispatch { dispatch, params_offset, secs: 0.0 })
            }
        };
        arena.upload(gpu);
        Ok(ForwardDispatches { shape, pieces, top_k })
    }

    /// What to encode for a piece, computed from a slot or from its own buffer.
    pub(super) fn dispatches(&self, piece: usize, slot: Option<usize>) -> &[PlacedDispatch] {
        &self.pieces[piece][slot.unwrap_or(0)]
    }

    /// All that there is to encode, one of each pipeline.
    pub(super) fn one_of_each_pipeline(&self) -> Vec<&PlacedDispatch> {
        let all = self.pieces.iter().filter_map(|places| places.first()).flatten().chain(&self.top_k);
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

/// A kernel with its params and all it binds, except the block that matrices lie in.
enum Call<'a> {
    Add(add::Params, add::Bindings<'a>),
    AddBias(add_bias::Params, add_bias::Bindings<'a>),
    Attention { params: attention::Params, tokens: TokenCount, cuts: Vec<attention::Bindings<'a>>, compact: Option<Compact<'a>> },
    GatherRows(gather_rows::Params, gather_rows::Bindings<'a>),
    Products { params: Vec<matmul::Params>, begin: u64, size: u64, input: Binding<'a>, outputs: Vec<Binding<'a>> },
    RmsNorm(rms_norm::Params, rms_norm::Bindings<'a>),
    RopeKv(rope_kv::Params, rope_kv::Bindings<'a>),
    RopeKvPadded(rope_kv::Params, rope_kv_padded::Bindings<'a>),
    SwiGlu(swiglu::Params, swiglu::Bindings<'a>),
    TopK(top_k::Params, top_k::Bindings<'a>),
}

/// What puts the heads of each cut side by side, behind all cuts: some tokens are in two of them.
struct Compact<'a> {
    head_size: u32,
    cuts: Vec<attention_compact::Bindings<'a>>,
}

impl Call<'_> {
    fn push(&self, gpu: &Gpu, arena: &mut ParamsArena) -> Result<u32> {
        match self {
            Call::Add(params, _) => arena.push(gpu, params),
            Call::AddBias(params, _) => arena.push(gpu, params),
            Call::Attention { params, .. } => arena.push(gpu, params),
            Call::GatherRows(params, _) => arena.push(gpu, params),
            Call::Products { params, .. } => arena.push(gpu, &matmul::padded(params)),
            Call::RmsNorm(params, _) => arena.push(gpu, params),
            Call::RopeKv(params, _) | Call::RopeKvPadded(params, _) => arena.push(gpu, params),
            Call::SwiGlu(params, _) => arena.push(gpu, params),
            Call::TopK(params, _) => arena.push(gpu, params),
        }
    }

    /// The call's dispatches, in their order: one, except of attention, which may take more.
    fn prepare(&self, gpu: &Gpu, arena: &wgpu::Buffer, block: Option<&wgpu::Buffer>) -> Result<Vec<Dispatch>> {
        let dispatch = match self {
            Call::Add(params, bindings) => add::prepare(gpu, arena, params, *bindings),
            Call::AddBias(params, bindings) => add_bias::prepare(gpu, arena, params, *bindings),
            Call::Attention { params, tokens, cuts, compact } => {
                let of_cuts = cuts.iter().map(|bindings| attention::prepare(gpu, arena, params, *bindings, *tokens));
                let mut dispatches = of_cuts.collect::<Result<Vec<_>>>()?.concat();
                if let Some(Compact { head_size, cuts }) = compact {
                    let of_cuts = cuts.iter().map(|bindings| attention_compact::prepare(gpu, arena, params, *head_size, *bindings));
                    dispatches.extend(of_cuts.collect::<Result<Vec<_>>>()?);
                }
                return Ok(dispatches);
            }
            Call::GatherRows(params, bindings) => gather_rows::prepare(gpu, arena, params, *bindings),
            Call::Products { params, begin, size, input, outputs } => {
                let block = block.ok_or_else(|| gpu.fault("a matrix has neither a buffer nor a slot"))?;
                let weight = Binding::part(block, *begin, *size);
                matmul::prepare_products(gpu, arena, &matmul::Products { params, weight, input: *input, outputs })
            }
            Call::RmsNorm(params, bindings) => rms_norm::prepare(gpu, arena, params, *bindings),
            Call::RopeKv(params, bindings) => rope_kv::prepare(gpu, arena, params, *bindings),
            Call::RopeKvPadded(params, bindings) => rope_kv_padded::prepare(gpu, arena, params, *bindings),
            Call::SwiGlu(params, bindings) => swiglu::prepare(gpu, arena, params, *bindings),
            Call::TopK(params, bindings) => top_k::prepare(gpu, arena, params, *bindings),
        };
        Ok(vec![dispatch?])
    }
}

impl<'a> Maker<'a> {
    /// `secs`: how long it should take.
    fn call(&self, ops: &[Op], one: &Fused, secs: f64) -> Result<Call<'a>> {
        match one {
            Fused::Op(op) => self.op(&ops[*op], secs),
            Fused::Products(products) => self.products(products),
        }
    }

    fn op(&self, op: &Op, secs: f64) -> Result<Call<'a>> {
        Ok(match *op {
            Op::RmsNorm { input, weight, output } => {
                let (weight, output) = (self.vector(weight)?, self.activation(output)?);
                Call::RmsNorm(self.params.rms_norm(input), rms_norm::Bindings { input: self.activation(input)?, weight, output })
            }
            Op::AddBias { bias, target } => {
                let bindings = add_bias::Bindings { bias: self.vector(bias)?, target_values: self.activation(target)? };
                Call::AddBias(self.params.add_bias(target), bindings)
            }
            Op::RopeKv { layer } => self.rope_kv(layer)?,
            Op::Attention { layer } => self.attention(layer, secs)?,
            Op::SwiGlu => {
                let (gate, up) = (self.activation(Activation::Gate)?, self.activation(Activation::Up)?);
                Call::SwiGlu(self.params.swiglu(), swiglu::Bindings { gate, up, output: self.activation(Activation::Gated)? })
            }
            Op::AddResidual => {
                let (input, target_values) = (self.activation(Activation::Delta)?, self.activation(Activation::Hidden)?);
                Call::Add(self.params.add_residual(), add::Bindings { input, target_values })
            }
            Op::PickRows => {
                let (input, output) = (self.activation(Activation::Hidden)?, self.activation(Activation::Picked)?);
                let row_indices = self.working(WorkingBuffer::PickedRows)?;
                Call::GatherRows(self.params.pick_rows(), gather_rows::Bindings { input, row_indices, output })
            }
            Op::Embed { .. } | Op::MatMul { .. } => return Err(self.gpu.fault("an operation stands where it is not computed")),
        })
    }

    /// The slices lie in the order of their offsets, each at a multiple of the alignment that params count in.
    fn products(&self, products: &[Product]) -> Result<Call<'a>> {
        let [first, ..] = products else { return Err(self.gpu.fault("a dispatch of no products")) };
        let begin = first.slice.offset;
        let end = products.iter().map(|product| product.slice.offset + product.slice.size_bytes).max().unwrap_or(begin);
        let placed = |product: &Product| {
            let weight_begin = (product.slice.offset - begin) / matmul::WEIGHT_ALIGNMENT;
            matmul::Params { weight_begin: weight_begin as u32, ..product.params }
        };
        Ok(Call::Products {
            params: products.iter().map(placed).collect(),
            begin,
            size: end - begin,
            input: self.activation(first.input)?,
            outputs: products.iter().map(|product| self.activation(product.output)).collect::<Result<_>>()?,
        })
    }

    /// Turns the queries in place; or, where heads are no whole octets, padded into the buffer that attention's result goes to later.
    fn rope_kv(&self, layer: usize) -> Result<Call<'a>> {
        let (keys, values) = self.buffers.kv_cache(self.gpu, layer)?;
        let (cos_sin, tokens) = (self.working(WorkingBuffer::CosSin)?, self.working(WorkingBuffer::Tokens)?);
        let [key, value, query] = [Activation::Key, Activation::Value, Activation::Query].map(|activation| self.activation(activation));
        let (key, value, query, params) = (key?, value?, query?, self.params.rope_kv());
        let (key_cache, value_cache) = (Binding::whole(keys), Binding::whole(values));
        if params.head_size == rope_kv_padded::padded_size(params.head_size) {
            return Ok(Call::RopeKv(params, rope_kv::Bindings { cos_sin, tokens, key, value, query, key_cache, value_cache }));
        }
        let turned = self.activation(Activation::Mixed)?;
        let bindings = rope_kv_padded::Bindings { cos_sin, tokens, key, value, query, turned, key_cache, value_cache };
        Ok(Call::RopeKvPadded(params, bindings))
    }

    /// Of many tokens, in as many dispatches as keep each short: no watchdog must take the adapter for hung. Few tokens read each
    /// key once, which takes less.
    ///
    /// Padded heads lie the other way round: queries where the result goes at last, what attention makes of them where queries were.
    fn attention(&self, layer: usize, secs: f64) -> Result<Call<'a>> {
        let (keys, values) = self.buffers.kv_cache(self.gpu, layer)?;
        let head_size = self.params.attention().head_size;
        let whole = attention::Params { head_size: rope_kv_padded::padded_size(head_size), ..self.params.attention() };
        let is_padded = whole.head_size != head_size;
        let (query, mixed) = (self.activation(Activation::Query)?, self.activation(Activation::Mixed)?);
        let bindings = attention::Bindings {
            query: if is_padded { mixed } else { query },
            tokens: self.working(WorkingBuffer::Tokens)?,
            key_cache: Binding::whole(keys),
            value_cache: Binding::whole(values),
            parts: self.working(WorkingBuffer::AttentionParts)?,
            mixed: if is_padded { query } else { mixed },
        };
        let tokens = self.attention;
        let n_cuts = if tokens == TokenCount::Many { (secs / SUBMIT_SECS).ceil() as usize } else { 1 };
        let (params, begins) = attention::cut(&whole, n_cuts);
        let cuts = begins.iter().map(|&begin| bindings.from_token(&whole, begin)).collect();
        let compact = attention_compact::Bindings { padded: query, mixed };
        let compact = is_padded
            .then(|| Compact { head_size, cuts: begins.iter().map(|&begin| compact.from_token(&whole, head_size, begin)).collect() });
        Ok(Call::Attention { params, tokens, cuts, compact })
    }

    fn top_k(&self, k: usize) -> Result<Call<'a>> {
        let params = top_k::Params::new(self.params.n_rows as u32, self.model.config.vocab_size as u32, k as u32);
        let bindings = top_k::Bindings { logits: self.activation(Activation::Logits)?, candidates: self.working(WorkingBuffer::TopK)? };
        Ok(Call::TopK(params, bindings))
    }

    fn activation(&self, activation: Activation) -> Result<Binding<'a>> {
        self.working(WorkingBuffer::Activation(activation))
    }

    fn working(&self, name: WorkingBuffer) -> Result<Binding<'a>> {
        Ok(Binding::whole(self.buffers.working(self.gpu, name)?))
    }

    fn vector(&self, id: TensorId) -> Result<Binding<'a>> {
        let buffer = self.buffers.vector(id).ok_or_else(|| self.gpu.fault("a norm weight or bias was not loaded"))?;
        Ok(Binding::whole(buffer))
    }
}
