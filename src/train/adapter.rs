//! What is trained: two small matrices beside each chosen linear layer (LoRA, Hu et al. 2021), whose product is added to its weight:
//! `y = W·x + scale · B·(A·x)`; and the weights of chosen norms themselves. Or the model's own tensors ([`super::whole`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::dense::{add_sums, products, transposed};
use super::vjp;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Format, Model, Norm, Op, UnitKind};
use crate::plan::Chunk;
use crate::units::listed;
use crate::weights::TensorId;

/// Which layers get matrices, and of what size.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// The product is scaled by `alpha / rank`.
    pub alpha: f32,
    /// Ends of the names of linear layers (`q_proj`, `mlp.up_proj`); none means all of the model's layers.
    pub targets: Vec<String>,
    /// Share of the inputs of A that are zeroed in training, from 0 to less than 1; the others grow by as much.
    pub dropout: f32,
    /// Ends of the names of norms whose own weights are trained (`norm`, `input_layernorm`), as PEFT has them.
    pub modules_to_save: Vec<String>,
}

impl Default for LoraOptions {
    fn default() -> LoraOptions {
        LoraOptions { rank: 16, alpha: 32.0, targets: Vec::new(), dropout: 0.0, modules_to_save: Vec::new() }
    }
}

/// The two matrices of one linear layer, or the weights of a norm, or a tensor of the model itself; also their gradients, and what an optimiser
/// keeps of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// The layer's name in a Hugging Face checkpoint: `model.layers.0.self_attn.q_proj`; of a tensor its own.
    pub module: String,
    /// Columns of the weight; values that are normed together.
    pub n_inputs: usize,
    /// Rows of the weight; 0 of a norm and of any vector.
    pub n_outputs: usize,
    /// `[rank, n_inputs]`; of a norm its weights, as transformers has them; of a tensor all of it.
    pub a: Vec<f32>,
    /// `[n_outputs, rank]`; of a norm its bias, if it has one.
    pub b: Vec<f32>,
}

impl Layer {
    /// Whether it is a norm, or another vector, from which no share is taken away.
    pub fn is_norm(&self) -> bool {
        self.n_outputs == 0
    }

    /// Zeros of its shape.
    fn zeros(&self) -> Layer {
        let Layer { n_inputs, n_outputs, .. } = *self;
        Layer { module: self.module.clone(), n_inputs, n_outputs, a: vec![0.0; self.a.len()], b: vec![0.0; self.b.len()] }
    }

    /// All values: A, then B.
    pub fn values(&self) -> impl Iterator<Item = &f32> {
        self.a.iter().chain(&self.b)
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut f32> {
        self.a.iter_mut().chain(&mut self.b)
    }
}

/// All that is trained of a model.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Rows of each A.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f32,
    /// Share of inputs that are zeroed in training.
    pub dropout: f32,
    /// Linear layers in the order of the model's operations, then norms; or tensors in that order.
    pub layers: Vec<Layer>,
    /// Ends of the names of norms that are trained.
    pub modules_to_save: Vec<String>,
    /// For each row of a layer's weight the row that it is in transformers.
    pub(super) rows: Vec<Vec<usize>>,
    /// The layer of each weight.
    by_weight: HashMap<TensorId, usize>,
    /// Vectors that are trained: of norms, and biases.
    pub(super) vectors: HashMap<TensorId, TrainedVector>,
    /// Matrices that are trained themselves, where the model's own weights are.
    pub(super) wholes: HashMap<TensorId, usize>,
    /// Whether these are the model's own weights, each layer one of its tensors.
    pub is_whole: bool,
}

/// Weights or the bias of a norm, or another bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrainedVector {
    pub(super) layer: usize,
    pub(super) is_bias: bool,
    /// What stored values are larger by than those of the layer.
    pub(super) stored_offset: f32,
}

/// A layer's inputs as the forward pass had them.
#[derive(Debug)]
pub(super) struct LoraRead {
    /// Behind the dropout, `[n_tokens, n_inputs]`.
    input: Vec<f32>,
    /// `A·x`, `[n_tokens, rank]`.
    inner: Vec<f32>,
}

impl Adapter {
    /// A drawn as PEFT draws it (uniform in `±1/√n_inputs`), B zero: training begins with the model as it is.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where a size is not possible, or a target is no linear layer of the model.
    pub fn new(checkpoint: &Checkpoint, model: &Model, options: &LoraOptions, seed: u64) -> Result<Adapter> {
        let LoraOptions { rank, alpha, dropout, .. } = *options;
        let invalid = |option: &str, reason: String| Err(Error::InvalidArgument { option: option.into(), reason });
        if !(1..=4096).contains(&rank) {
            return invalid("the rank of the adapter", format!("is {rank}; it is from 1 to 4096"));
        }
        if !(alpha.is_finite() && alpha > 0.0) {
            return invalid("alpha of the adapter", format!("is {alpha}; it is above 0"));
        }
        if !(0.0..1.0).contains(&dropout) {
            return invalid("dropout", format!("is {dropout}; it is from 0 to less than 1"));
        }
        let candidates = candidates(checkpoint, model);
        check_targets(&candidates, &options.targets)?;
        let is_wanted = |module: &str| options.targets.is_empty() || options.targets.iter().any(|target| is_called(module, target));
        let linears = model.linears(&checkpoint.catalog, matches!(checkpoint.format, Format::Gguf));
        let (mut layers, mut rows, mut by_weight) = (Vec::new(), Vec::new(), HashMap::new());
        for (id, module) in candidates {
            if by_weight.contains_key(&id) || module.contains(':') || !is_wanted(&module) {
                continue;
            }
            let tensor = &checkpoint.catalog[id];
            let (n_outputs, n_inputs) = (tensor.n_rows() as usize, tensor.n_columns() as usize);
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(1 + layers.len() as u64);
            let bound = 1.0 / (n_inputs as f32).sqrt();
            let a = (0..rank * n_inputs).map(|_| (unit(&mut random) * 2.0 - 1.0) * bound).collect();
            by_weight.insert(id, layers.len());
            let part = linears.get(&module).and_then(|linear| linear.parts.first());
            rows.push(part.map_or_else(|| (0..n_outputs).collect(), |part| part.rows.clone()));
            layers.push(Layer { module, n_inputs, n_outputs, a, b: vec![0.0; n_outputs * rank] });
        }
        let modules_to_save = options.modules_to_save.clone();
        let mut adapter =
            Adapter { rank, alpha, dropout, layers, modules_to_save, rows, by_weight, is_whole: false, ..Adapter::of_weights() };
        norms_to_train(checkpoint, model, &adapter)?.into_iter().for_each(|(module, norm)| adapter.add_norm(module, norm));
        Ok(adapter)
    }

    /// One of the model's own weights, none as yet.
    pub(super) fn of_weights() -> Adapter {
        Adapter {
            rank: 1,
            alpha: 1.0,
            dropout: 0.0,
            layers: Vec::new(),
            modules_to_save: Vec::new(),
            rows: Vec::new(),
            by_weight: HashMap::new(),
            vectors: HashMap::new(),
            wholes: HashMap::new(),
            is_whole: true,
        }
    }

    /// Appends a norm, whose values are zeros up to [`Adapter::begin_norms`].
    fn add_norm(&mut self, module: String, norm: Norm) {
        let (layer, n_inputs) = (self.layers.len(), norm.width);
        let mut trains = |id: TensorId, is_bias: bool, stored_offset: f32| {
            self.vectors.insert(id, TrainedVector { layer, is_bias, stored_offset });
            vec![0.0; n_inputs]
        };
        let a = trains(norm.weight, false, norm.stored_offset);
        let b = norm.bias.map_or(Vec::new(), |id| trains(id, true, 0.0));
        self.layers.push(Layer { module, n_inputs, n_outputs: 0, a, b });
        self.rows.push(Vec::new());
    }

    /// Norms begin with the weights of the model.
    pub(super) fn begin_norms(&mut self, stored: &HashMap<TensorId, Vec<f32>>) {
        for (id, TrainedVector { layer, is_bias, stored_offset }) in &self.vectors {
            let layer = &mut self.layers[*layer];
            let own = if *is_bias { &mut layer.b } else { &mut layer.a };
            own.iter_mut().zip(stored.get(id).into_iter().flatten()).for_each(|(own, stored)| *own = stored - stored_offset);
        }
    }

    /// The layers with matrices.
    pub(super) fn linears(&self) -> &[Layer] {
        let end = self.layers.iter().position(Layer::is_norm).unwrap_or(self.layers.len());
        &self.layers[..end]
    }

    /// Whether norms are trained.
    pub(super) fn trains_norms(&self) -> bool {
        !self.vectors.is_empty()
    }

    /// Whether a tensor of the model is trained itself.
    pub(super) fn trains(&self, tensor: TensorId) -> bool {
        self.vectors.contains_key(&tensor) || self.wholes.contains_key(&tensor)
    }

    /// The vectors that are trained, in the order of the model's tensors, as the model stores them.
    pub(super) fn stored_vectors(&self) -> impl Iterator<Item = (TensorId, Vec<f32>)> {
        let mut ids: Vec<&TensorId> = self.vectors.keys().collect();
        ids.sort_unstable();
        ids.into_iter().map(|id| {
            let TrainedVector { layer, is_bias, stored_offset } = self.vectors[id];
            let layer = &self.layers[layer];
            let own = if is_bias { &layer.b } else { &layer.a };
            (*id, own.iter().map(|value| value + stored_offset).collect())
        })
    }

    /// The gradient of a vector, if it is trained.
    pub(super) fn gradient_of<'g>(&self, vector: TensorId, gradients: &'g mut [Layer]) -> Option<&'g mut Vec<f32>> {
        let TrainedVector { layer, is_bias, .. } = self.vectors.get(&vector)?;
        let layer = &mut gradients[*layer];
        Some(if *is_bias { &mut layer.b } else { &mut layer.a })
    }

    /// The vectors of the model with those that are trained.
    pub(super) fn vectors(&self, stored: &Arc<HashMap<TensorId, Vec<f32>>>) -> Arc<HashMap<TensorId, Vec<f32>>> {
        if !self.trains_norms() {
            return Arc::clone(stored);
        }
        let mut all = HashMap::clone(stored);
        all.extend(self.stored_vectors());
        Arc::new(all)
    }

    /// Adds the gradients of the weights and the bias of a norm, as far as they are trained, to `gradients`; from the gradient of what it gives,
    /// and from `normed`, what it gives without both.
    pub(super) fn add_norm_gradients(
        &self,
        [weight, bias]: [Option<TensorId>; 2],
        normed: impl FnOnce() -> Vec<f32>,
        upward: &[f32],
        gradients: &mut [Layer],
    ) {
        if let Some(of_weight) = weight.and_then(|id| self.gradient_of(id, gradients)) {
            vjp::add_rows(Some(&normed()), upward, of_weight);
        }
        if let Some(of_bias) = bias.and_then(|id| self.gradient_of(id, gradients)) {
            vjp::add_rows(None, upward, of_bias);
        }
    }

    /// What the product of both matrices is multiplied by.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// Zeros of the shape of what is trained.
    pub(super) fn zeros(&self) -> Vec<Layer> {
        self.layers.iter().map(Layer::zeros).collect()
    }

    /// Values that are trained.
    pub fn n_values(&self) -> usize {
        // The model's own are not there before it is loaded.
        let of = |layer: &Layer| if self.is_whole { layer.n_inputs * layer.n_outputs.max(1) } else { layer.a.len() + layer.b.len() };
        self.layers.iter().map(of).sum()
    }

    /// Whether all of a chunk is trained itself, so that nobody reads it as it is stored.
    pub(super) fn is_all_of(&self, chunk: &Chunk) -> bool {
        self.is_whole && chunk.slices.iter().all(|slice| self.trains(slice.tensor))
    }

    /// The layer that a matrix is, if it is trained itself.
    pub(super) fn whole(&self, matrix: TensorId) -> Option<usize> {
        self.wholes.get(&matrix).copied()
    }

    /// The tensors that are trained themselves, in the order of the layers where all are.
    pub(super) fn tensors(&self) -> Vec<TensorId> {
        let vectors = self.vectors.iter().map(|(id, vector)| (vector.layer, *id));
        let mut tensors: Vec<(usize, TensorId)> = self.wholes.iter().map(|(id, layer)| (*layer, *id)).chain(vectors).collect();
        tensors.sort_unstable();
        tensors.into_iter().map(|(_, id)| id).collect()
    }

    /// The layer beside a weight, if it has one.
    pub(super) fn beside(&self, weight: TensorId) -> Option<usize> {
        self.by_weight.get(&weight).copied()
    }

    /// The layer of each weight that has one.
    pub(super) fn by_weight(&self) -> &HashMap<TensorId, usize> {
        &self.by_weight
    }

    /// Adds what the layer gives for `input`, `[n_tokens, n_inputs]`, to `output`, `[n_tokens, n_outputs]`. `draw` names the draw of the
    /// dropout; none is without.
    pub(super) fn add(&self, layer: usize, input: &[f32], output: &mut [f32], draw: Option<u64>) -> LoraRead {
        let own = &self.layers[layer];
        let mut input = input.to_vec();
        self.drop_out(layer, &mut input, draw);
        let inner = products(own.n_inputs, &own.a, &input);
        let added = products(self.rank, &own.b, &inner);
        let scale = self.scale();
        output.iter_mut().zip(&added).for_each(|(output, added)| *output += scale * added);
        LoraRead { input, inner }
    }

    /// From the gradient of the output, `[n_tokens, n_outputs]`: adds that of both matrices to `gradients` and that of the input to `into`.
    pub(super) fn backward(
        &self,
        layer: usize,
        read: &LoraRead,
        upward: &[f32],
        gradients: &mut Layer,
        into: &mut [f32],
        draw: Option<u64>,
    ) {
        let own = &self.layers[layer];
        let scale = self.scale();
        let scaled: Vec<f32> = upward.iter().map(|gradient| scale * gradient).collect();
        add_sums(self.rank, &read.inner, &transposed(own.n_outputs, &scaled), &mut gradients.b);
        let n_tokens = read.inner.len() / self.rank;
        let mut of_inner = vec![0.0; n_tokens * self.rank];
        add_sums(self.rank, &own.b, &scaled, &mut of_inner);
        add_sums(own.n_inputs, &read.input, &transposed(self.rank, &of_inner), &mut gradients.a);
        let mut of_input = vec![0.0; n_tokens * own.n_inputs];
        add_sums(own.n_inputs, &own.a, &of_inner, &mut of_input);
        self.drop_out(layer, &mut of_input, draw);
        into.iter_mut().zip(&of_input).for_each(|(into, gradient)| *into += gradient);
    }

    fn drop_out(&self, layer: usize, values: &mut [f32], draw: Option<u64>) {
        let Some(draw) = draw.filter(|_| self.dropout > 0.0) else { return };
        values.iter_mut().zip(mask(self.dropout, layer, draw)).for_each(|(value, factor)| *value *= factor);
    }
}

/// What the inputs of a layer are multiplied by: a share of them by zero, always the same of one draw, the others by what makes up for it.
pub(super) fn mask(dropout: f32, layer: usize, draw: u64) -> impl Iterator<Item = f32> {
    let mut random = ChaCha8Rng::seed_from_u64(draw);
    random.set_stream(1 + layer as u64);
    let keep = 1.0 / (1.0 - dropout);
    std::iter::repeat_with(move || if unit(&mut random) < dropout { 0.0 } else { keep })
}

/// A number from 0 to less than 1.
fn unit(random: &mut ChaCha8Rng) -> f32 {
    (random.next_u32() >> 8) as f32 / (1u32 << 24) as f32
}

/// The linear layers of a model but its head, by weight and name.
fn candidates(checkpoint: &Checkpoint, model: &Model) -> Vec<(TensorId, String)> {
    let units = model.units.iter().filter(|unit| unit.kind != UnitKind::Head);
    let weights = units.flat_map(|unit| &unit.ops).filter_map(|op| match op {
        Op::MatMul { weight, .. } => Some(*weight),
        _ => None,
    });
    weights.map(|id| (id, checkpoint.catalog[id].name.replacen(".weight", "", 1))).collect()
}

/// The norms that options name, by their modules.
fn norms_to_train(checkpoint: &Checkpoint, model: &Model, adapter: &Adapter) -> Result<BTreeMap<String, Norm>> {
    let mut norms = model.norms(&checkpoint.catalog, matches!(checkpoint.format, Format::Gguf));
    // Tokens are embedded apart from the passes.
    let embeds =
        |id: TensorId| model.units.iter().filter(|unit| unit.kind == UnitKind::Embedding).any(|unit| unit.vectors().any(|own| own == id));
    norms.retain(|_, norm| !embeds(norm.weight));
    for end in &adapter.modules_to_save {
        if norms.keys().any(|module| module.ends_with(end.as_str())) && !end.is_empty() {
            continue;
        }
        let mut leaves: Vec<&str> = norms.keys().map(|module| module.rsplit('.').next().unwrap_or(module)).collect();
        leaves.sort_unstable();
        leaves.dedup();
        let reason = format!("`{end}` is no norm of this model, and norms alone are trained whole; it has {}", listed(&leaves));
        return Err(Error::InvalidArgument { option: "modules to save".into(), reason });
    }
    norms.retain(|module, _| adapter.modules_to_save.iter().any(|end| module.ends_with(end.as_str())));
    Ok(norms)
}

pub(super) fn is_called(module: &str, target: &str) -> bool {
    module == target || module.strip_suffix(target).is_some_and(|before| before.ends_with('.'))
}

fn check_targets(candidates: &[(TensorId, String)], targets: &[String]) -> Result<()> {
    let mut leaves: Vec<&str> = candidates.iter().map(|(_, module)| module.rsplit('.').next().unwrap_or(module)).collect();
    leaves.sort_unstable();
    leaves.dedup();
    leaves.retain(|leaf| !leaf.contains(':'));
    let invalid = |reason: String| Err(Error::InvalidArgument { option: "target".into(), reason });
    for target in targets {
        if candidates.iter().any(|(_, module)| is_called(module, target)) {
            continue;
        }
        if candidates.iter().any(|(_, module)| module.split_once(':').is_some_and(|(whole, _)| is_called(whole, target))) {
            return invalid(format!("`{target}` holds several matrices in one, which is not trained; name others: {}", listed(&leaves)));
        }
        return invalid(format!("`{target}` is no linear layer of this model; it has {}", listed(&leaves)));
    }
    if leaves.is_empty() {
        return invalid("none of the model's linear layers stands for itself, so that none can be trained".into());
    }
    Ok(())
}
