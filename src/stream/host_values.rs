//! What changes during a forward on the host (activations, KV caches) and the operations that change it.
//! Knows neither chunks nor where weights are stored: rows of matrices are handed in.

use std::collections::HashMap;
use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::host::simd::simd;
use crate::host::{self, ExpertScratch, Input, InputFormat, KvCache, Operand, Part};
use crate::kernels::rope_kv::Token;
use crate::kernels::{
    BatchShape, MAX_PRODUCTS, add_bias, add_expert_bias, attention, conv, copy_part, delta_rule, expert_matmul, gate_rows, gather_rows,
    layer_norm, matmul, rms_norm, rope, rope_kv, route, sum_experts, weigh_inputs,
};
use crate::model::{Attention, Conv, DeltaRule, Model, Op, Rope, StateKind, StoreKv, ValueId};
use crate::stream::{Batch, Kept, KvBlocks, batch};
use crate::weights::TensorId;

/// Everything that changes during a forward.
pub(crate) struct Values {
    pub(super) model: Arc<Model>,
    pub(crate) values: HashMap<ValueId, Vec<f32>>,
    /// K and V of each layer: `[n_blocks, n_kv_heads, KV_BLOCK_POSITIONS, head_size]`; V is empty where K is V as well.
    pub(super) kv_caches: Vec<[KvCache; 2]>,
    /// What layers keep of each sequence besides: `[n_seqs, …]`.
    pub(super) states: HashMap<(usize, StateKind), Vec<f32>>,
    /// The tokens of a forward, with the tables of their sequences.
    pub(crate) placed: Vec<Token>,
    pub(super) n_tokens: usize,
    /// By each of the model's rotary tables.
    pub(crate) cos_sin: Vec<Vec<f32>>,
    pub(crate) selected_rows: Vec<u32>,
    pub(super) n_seqs: usize,
    pub(super) n_blocks: usize,
    pub(super) ctx_size: usize,
    pub(super) packed: PackedInput,
    pub(super) experts: ExpertScratch,
}

/// The input of the last products, in the format that their kernels read, for other products of the same input.
#[derive(Default)]
pub(super) struct PackedInput {
    /// Of which value, in which format; `None` once the value has changed.
    of: Option<(ValueId, InputFormat)>,
    input: Input,
}

impl PackedInput {
    /// The value has changed.
    pub(super) fn forget(&mut self) {
        self.of = None;
    }

    fn operand<'a>(&'a mut self, product: &Product<'_>, values: &'a [f32]) -> Operand<'a> {
        let format = InputFormat::of(&product.params);
        if format != InputFormat::Floats && self.of != Some((product.input, format)) {
            self.input.fill(format, &product.params, values);
            self.of = Some((product.input, format));
        }
        self.input.operand(format, values)
    }
}

/// Products of one input that the host computes together; the list itself is not allocated.
pub(super) type FusedProducts<'a> = ArrayVec<Product<'a>, MAX_PRODUCTS>;

/// Rows of a matrix times a value.
pub(super) struct Product<'a> {
    pub(super) params: matmul::Params,
    pub(super) rows: &'a [u8],
    pub(super) input: ValueId,
    pub(super) output: ValueId,
}

impl Product<'_> {
    /// Whether it can be computed together with all of these: they have the same input and other outputs.
    pub(super) fn can_fuse(&self, others: &FusedProducts<'_>) -> bool {
        let format = InputFormat::of(&self.params);
        let fits =
            |other: &Product<'_>| self.input == other.input && self.output != other.output && format == InputFormat::of(&other.params);
        !others.is_full() && others.iter().all(fits)
    }
}

impl Values {
    /// Those of a model, without caches and states, before its first forward.
    pub(crate) fn new(model: Arc<Model>) -> Values {
        Values {
            model,
            values: HashMap::new(),
            kv_caches: Vec::new(),
            states: HashMap::new(),
            placed: Vec::new(),
            n_tokens: 0,
            cos_sin: Vec::new(),
            selected_rows: Vec::new(),
            n_seqs: 1,
            n_blocks: 0,
            ctx_size: 1,
            packed: PackedInput::default(),
            experts: ExpertScratch::default(),
        }
    }

    /// Begins a forward of `batch`, whose sequences have these blocks and up to so many positions.
    pub(crate) fn begin(&mut self, batch: &Batch, blocks: &KvBlocks, ctx_size: usize) {
        (self.n_seqs, self.n_blocks, self.ctx_size) = (blocks.n_seqs(), blocks.n_blocks(), ctx_size);
        self.packed.forget();
        (self.placed, self.n_tokens) = (batch::places(batch, blocks), batch.tokens.len());
        self.cos_sin = self.model.rope_tables.iter().map(|table| batch::cos_sin(batch, table, ctx_size)).collect();
        self.selected_rows.clone_from(&batch.logits_for);
    }

    /// Takes a value out, so that others can be read meanwhile.
    pub(crate) fn take(&mut self, id: ValueId) -> Vec<f32> {
        self.values.get_mut(&id).map(std::mem::take).unwrap_or_default()
    }

    pub(crate) fn put(&mut self, id: ValueId, numbers: Vec<f32>) {
        self.packed.of.take_if(|(of, _)| *of == id);
        self.values.insert(id, numbers);
    }

    pub(crate) fn get(&self, id: ValueId) -> &[f32] {
        self.values.get(&id).map(Vec::as_slice).unwrap_or_default()
    }

    /// Computes products that [can be fused](Product::can_fuse).
    pub(super) fn multiply(&mut self, products: &FusedProducts<'_>) {
        let Some(first) = products.first() else { return };
        let mut results: ArrayVec<Vec<f32>, MAX_PRODUCTS> = products.iter().map(|product| self.take(product.output)).collect();
        let values = self.values.get(&first.input).map(Vec::as_slice).unwrap_or_default();
        let operand = self.packed.operand(first, values);
        let mut parts: ArrayVec<Part<'_>, MAX_PRODUCTS> = products
            .iter()
            .zip(&mut results)
            .map(|(product, output)| Part { params: product.params, weight: product.rows, operand, output })
            .collect();
        host::multiply_all(simd(), &mut parts);
        drop(parts);
        for (product, result) in products.iter().zip(results) {
            self.put(product.output, result);
        }
    }

    /// Computes products with the chosen experts' rows of a slice, which are stored as `weight`; without a choice, those of all of them.
    pub(super) fn multiply_experts(
        &mut self,
        (input, routing, output): (ValueId, Option<ValueId>, ValueId),
        params: &expert_matmul::Params,
        weight: (DType, &[u8]),
    ) {
        let mut result = self.take(output);
        let mut scratch = std::mem::take(&mut self.experts);
        let inputs = (self.get(input), routing.map(|routing| self.get(routing)));
        host::multiply_experts(simd(), params, weight, inputs, &mut result, &mut scratch);
        self.experts = scratch;
        self.put(output, result);
    }

    /// The bytes of a part of what is kept of the sequences in a layer.
    pub(super) fn kept(&mut self, layer: usize, part: Kept) -> Result<&mut [u8]> {
        let found = match part {
            Kept::Keys => self.kv_caches.get_mut(layer).map(|[keys, _]| keys.bytes_mut()),
            Kept::Values => self.kv_caches.get_mut(layer).map(|[_, values]| values.bytes_mut()),
            Kept::State(kind) => self.states.get_mut(&(layer, kind)).map(|state| bytemuck::cast_slice_mut(state)),
        };
        found.ok_or_else(|| Error::internal(format!("the host keeps nothing of layer {layer}")))
    }

    pub(crate) fn batch(&self) -> BatchShape {
        BatchShape {
            n_tokens: self.n_tokens as u32,
            n_logit_rows: self.selected_rows.len() as u32,
            n_seqs: self.n_seqs as u32,
            n_blocks: self.n_blocks as u32,
            kv_capacity: self.ctx_size as u32,
            kv_dtypes: [rope_kv::CacheDType::F32; 2],
        }
    }

    /// Runs an operation that needs no matrix.
    pub(crate) fn run(&mut self, op: &Op, vectors: &HashMap<TensorId, Vec<f32>>) {
        let vector = |id: TensorId| vectors.get(&id).map(Vec::as_slice).unwrap_or_default();
        let (model, batch) = (Arc::clone(&self.model), self.batch());
        match *op {
            Op::RmsNorm(norm) => {
                let mut result = self.take(norm.output);
                let params = rms_norm::Params::of(model.value(norm.input), norm.group_size, norm.epsilon, norm.weight_offset, &batch);
                host::rms_norm(&params, self.get(norm.input), norm.weight.map(vector), &mut result);
                self.put(norm.output, result);
            }
            Op::LayerNorm(norm) => {
                let mut result = self.take(norm.output);
                let params = layer_norm::Params::of(model.value(norm.input), norm.group_size, norm.epsilon, norm.weight_offset, &batch);
                host::layer_norm(&params, self.get(norm.input), vector(norm.weight), norm.bias.map(vector), &mut result);
                self.put(norm.output, result);
            }
            Op::AddBias { bias, target } => {
                let mut result = self.take(target);
                add_bias::reference(&add_bias::Params::of(model.value(target), &batch), vector(bias), &mut result);
                self.put(target, result);
            }
            Op::Rope(rope) => self.rope(&rope),
            Op::StoreKv(store) => self.store_kv(&store),
            Op::Attention(attention) => self.attention(&attention, attention.sinks.map(vector)),
            Op::Conv(conv) => self.conv(&conv, vector(conv.weight), conv.bias.map(vector)),
            Op::DeltaRule(rule) => self.delta_rule(&rule, vector(rule.decay), vector(rule.bias)),
            Op::CopyPart(op) => {
                let mut result = self.take(op.output);
                let params = copy_part::Params::of(&op, [model.value(op.input), model.value(op.output)], &batch);
                copy_part::reference(&params, self.get(op.input), &mut result);
                self.put(op.output, result);
            }
            Op::Glu { activation, gate, up, output } => {
                let mut result = self.take(output);
                host::glu(activation, self.get(gate), self.get(up), &mut result);
                self.put(output, result);
            }
            Op::Map { function, target } => {
                let mut result = self.take(target);
                host::map(function, &mut result);
                self.put(target, result);
            }
            Op::Add { input, target } => {
                let mut result = self.take(target);
                host::add(self.get(input), &mut result);
                self.put(target, result);
            }
            Op::GatherRows { input, output } => {
                let mut result = self.take(output);
                let params = gather_rows::Params::of(model.value(input), &batch);
                gather_rows::reference(&params, self.get(input), &self.selected_rows, &mut result);
                self.put(output, result);
            }
            Op::Route(route) => {
                let mut result = self.take(route.routing);
                let params = route::Params::of(&route, model.value(route.logits), &batch);
                route::reference(&params, self.get(route.logits), [route.bias, route.factors].map(|each| each.map(vector)), &mut result);
                self.put(route.routing, result);
            }
            Op::WeighInputs { input, routing, output } => {
                let mut result = self.take(output);
                let params = weigh_inputs::Params::of_inputs(model.value(routing), model.value(input), &batch);
                weigh_inputs::reference(&params, self.get(input), self.get(routing), &mut result);
                self.put(output, result);
            }
            Op::SumExperts { input, routing, output, is_weighted } => {
                let mut result = self.take(output);
                let params = sum_experts::Params::of_sum(model.value(routing), model.value(output), &batch);
                let weights = is_weighted.then(|| self.get(routing));
                sum_experts::reference(&params, self.get(input), weights, &mut result);
                self.put(output, result);
            }
            Op::AddExpertBias { bias, routing, target } => {
                let mut result = self.take(target);
                let params = add_expert_bias::Params::of_each(model.value(routing), model.value(target), &batch);
                add_expert_bias::reference(&params, vector(bias), self.get(routing), &mut result);
                self.put(target, result);
            }
            Op::LoraMatMul(op) => {
                let params = matmul::Params::of_lora(&op, batch.rows_of(model.value(op.input)));
                let product = Product { params, rows: bytemuck::cast_slice(vector(op.matrix)), input: op.input, output: op.output };
                self.multiply(&FusedProducts::from_iter([product]));
            }
            Op::GateRows { gate, target } => {
                let mut result = self.take(target);
                gate_rows::reference(&gate_rows::Params::of(model.value(target), &batch), self.get(gate), &mut result);
                self.put(target, result);
            }
            // The embedding is a step of the schedule, and products are computed with their rows.
            Op::Embed { .. } | Op::MatMul { .. } | Op::ExpertMatMul(_) | Op::HeadMatMul(_) => {}
        }
    }

    fn rope(&mut self, rope: &Rope) {
        let mut heads = self.take(rope.heads);
        host::rope(&rope::Params::of(rope, &self.batch()), &self.cos_sin[rope.table], &mut heads);
        self.put(rope.heads, heads);
    }

    fn store_kv(&mut self, store: &StoreKv) {
        let params = rope_kv::Params::of(store, None, &self.batch());
        let mut caches = std::mem::take(&mut self.kv_caches[store.layer]);
        for (cache, rows) in caches.iter_mut().zip([Some(store.key), store.value].into_iter().flatten()) {
            cache.store(&params, self.get(rows), &self.placed);
        }
        self.kv_caches[store.layer] = caches;
    }

    fn conv(&mut self, op: &Conv, weight: &[f32], bias: Option<&[f32]>) {
        let mut output = self.take(op.output);
        let mut state = self.take_state(op.layer, StateKind::Conv);
        let values = conv::Values { input: self.get(op.input), weight, bias, state: &mut state, output: &mut output };
        conv::reference(&conv::Params::of(op, &self.batch()), &self.placed, values);
        self.states.insert((op.layer, StateKind::Conv), state);
        self.put(op.output, output);
    }

    fn delta_rule(&mut self, op: &DeltaRule, decay: &[f32], bias: &[f32]) {
        let mut output = self.take(op.output);
        let mut state = self.take_state(op.layer, StateKind::DeltaRule);
        let [input, alpha, beta] = [op.input, op.alpha, op.beta].map(|id| self.get(id));
        let inputs = delta_rule::Inputs { input, alpha, beta, decay, is_log: op.decay_is_log, bias };
        host::delta_rule(&delta_rule::Params::of(op, &self.batch()), &self.placed, &inputs, &mut state, &mut output);
        self.states.insert((op.layer, StateKind::DeltaRule), state);
        self.put(op.output, output);
    }

    fn take_state(&mut self, layer: usize, kind: StateKind) -> Vec<f32> {
        self.states.get_mut(&(layer, kind)).map(std::mem::take).unwrap_or_default()
    }

    fn attention(&mut self, op: &Attention, sinks: Option<&[f32]>) {
        let mut output = self.take(op.output);
        let [keys, values] = &self.kv_caches[op.layer];
        let values = if values.is_empty() { keys } else { values };
        let params = attention::Params::of(op, &self.batch());
        host::attention(&params, self.get(op.query), &self.placed, [keys, values], sinks, &mut output);
        self.put(op.output, output);
    }
}
