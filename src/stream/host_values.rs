//! What changes during a forward on the host (activations, KV caches) and the operations that change it.
//! Knows neither pieces nor where weights lie: rows of matrices are handed in.

use std::collections::HashMap;

use arrayvec::ArrayVec;

use crate::host::{self, Input, InputForm, Operand, Part};
use crate::kernels::rope_kv::Token;
use crate::kernels::{MAX_PRODUCTS, add_bias, gather_rows, matmul, rope_kv};
use crate::model::{Activation, Op};
use crate::plan::KvDType;
use crate::platform::simd::simd;
use crate::stream::op_params::OpParams;
use crate::weights::{ModelConfig, TensorId};

/// Everything that changes during a forward.
pub(super) struct Values {
    pub(super) config: ModelConfig,
    pub(super) activations: HashMap<Activation, Vec<f32>>,
    /// K and V of each layer: `[n_seqs, n_kv_heads, ctx_size, head_size]`.
    pub(super) kv_caches: Vec<(Vec<f32>, Vec<f32>)>,
    pub(super) tokens: Vec<Token>,
    pub(super) cos_sin: Vec<f32>,
    pub(super) picked_rows: Vec<u32>,
    pub(super) n_seqs: usize,
    pub(super) ctx_size: usize,
    pub(super) prepared: Prepared,
}

/// The activation that products read last, in the form that they wanted.
#[derive(Default)]
pub(super) struct Prepared {
    /// Which one; `None` once it has changed.
    of: Option<(Activation, InputForm)>,
    input: Input,
}

impl Prepared {
    /// Other numbers stand where the last ones stood.
    pub(super) fn forget(&mut self) {
        self.of = None;
    }

    fn operand<'a>(&'a mut self, product: &Product<'_>, values: &'a [f32]) -> Operand<'a> {
        let form = InputForm::of(&product.params);
        if form != InputForm::Floats && self.of != Some((product.input, form)) {
            self.input.fill(form, &product.params, values);
            self.of = Some((product.input, form));
        }
        self.input.operand(form, values)
    }
}

/// Products that the host computes together; a list of them takes no memory from the allocator.
pub(super) type SideBySide<'a> = ArrayVec<Product<'a>, MAX_PRODUCTS>;

/// Rows of a matrix times an activation.
pub(super) struct Product<'a> {
    pub(super) params: matmul::Params,
    pub(super) rows: &'a [u8],
    pub(super) input: Activation,
    pub(super) output: Activation,
}

impl Product<'_> {
    /// Whether it can be computed beside all of these: from the same numbers, to another place.
    pub(super) fn can_join(&self, others: &SideBySide<'_>) -> bool {
        let form = InputForm::of(&self.params);
        let goes_with =
            |other: &Product<'_>| self.input == other.input && self.output != other.output && form == InputForm::of(&other.params);
        !others.is_full() && others.iter().all(goes_with)
    }
}

impl Values {
    /// Takes an activation out so that others can be read beside it.
    fn take(&mut self, activation: Activation) -> Vec<f32> {
        self.activations.get_mut(&activation).map(std::mem::take).unwrap_or_default()
    }

    fn put(&mut self, activation: Activation, values: Vec<f32>) {
        self.prepared.of.take_if(|(of, _)| *of == activation);
        self.activations.insert(activation, values);
    }

    pub(super) fn get(&self, activation: Activation) -> &[f32] {
        self.activations.get(&activation).map(Vec::as_slice).unwrap_or_default()
    }

    /// Computes products that [go together](Product::can_join).
    pub(super) fn multiply(&mut self, products: &SideBySide<'_>) {
        let Some(first) = products.first() else { return };
        let mut results: ArrayVec<Vec<f32>, MAX_PRODUCTS> = products.iter().map(|product| self.take(product.output)).collect();
        let values = self.activations.get(&first.input).map(Vec::as_slice).unwrap_or_default();
        let operand = self.prepared.operand(first, values);
        let mut parts: ArrayVec<Part<'_>, MAX_PRODUCTS> = products
            .iter()
            .zip(&mut results)
            .map(|(product, output)| Part { params: product.params, weight: product.rows, output })
            .collect();
        host::multiply_all(simd(), &mut parts, operand);
        drop(parts);
        for (product, result) in products.iter().zip(results) {
            self.put(product.output, result);
        }
    }

    pub(super) fn params(&self) -> OpParams<'_> {
        OpParams {
            config: &self.config,
            n_tokens: self.tokens.len(),
            n_rows: self.picked_rows.len(),
            n_seqs: self.n_seqs,
            ctx_size: self.ctx_size,
            kv_dtype: KvDType::F32,
        }
    }

    /// Runs an operation that needs no matrix.
    pub(super) fn run(&mut self, op: &Op, vectors: &HashMap<TensorId, Vec<f32>>) {
        let vector = |id: TensorId| vectors.get(&id).map(Vec::as_slice).unwrap_or_default();
        match *op {
            Op::RmsNorm { input, weight, output } => {
                let mut result = self.take(output);
                host::rms_norm(&self.params().rms_norm(input), self.get(input), vector(weight), &mut result);
                self.put(output, result);
            }
            Op::AddBias { bias, target } => {
                let mut result = self.take(target);
                add_bias::reference(&self.params().add_bias(target), vector(bias), &mut result);
                self.put(target, result);
            }
            Op::RopeKv { layer } => self.rope_kv(layer),
            Op::Attention { layer } => self.attention(layer),
            Op::SwiGlu => {
                let mut result = self.take(Activation::Gated);
                host::swiglu(self.get(Activation::Gate), self.get(Activation::Up), &mut result);
                self.put(Activation::Gated, result);
            }
            Op::AddResidual => {
                let mut hidden = self.take(Activation::Hidden);
                host::add(self.get(Activation::Delta), &mut hidden);
                self.put(Activation::Hidden, hidden);
            }
            Op::PickRows => {
                let mut result = self.take(Activation::Picked);
                gather_rows::reference(&self.params().pick_rows(), self.get(Activation::Hidden), &self.picked_rows, &mut result);
                self.put(Activation::Picked, result);
            }
            // The embedding is the schedule's own step, and products come with their rows.
            Op::Embed { .. } | Op::MatMul { .. } => {}
        }
    }

    fn rope_kv(&mut self, layer: usize) {
        let params = self.params().rope_kv();
        let (mut query, mut key) = (self.take(Activation::Query), self.take(Activation::Key));
        host::rope(&params, params.n_heads, &self.cos_sin, &mut query);
        host::rope(&params, params.n_kv_heads, &self.cos_sin, &mut key);
        let value = self.take(Activation::Value);
        let (keys, values) = &mut self.kv_caches[layer];
        rope_kv::store(&params, &key, &value, &self.tokens, [keys, values]);
        self.put(Activation::Query, query);
        self.put(Activation::Key, key);
        self.put(Activation::Value, value);
    }

    fn attention(&mut self, layer: usize) {
        let mut mixed = self.take(Activation::Mixed);
        let (keys, values) = &self.kv_caches[layer];
        host::attention(&self.params().attention(), self.get(Activation::Query), &self.tokens, (keys, values), &mut mixed);
        self.put(Activation::Mixed, mixed);
    }
}
