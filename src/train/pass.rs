//! A batch forward through units and back: forward keeps what each unit has read, backward takes the units in reverse, computes each anew
//! and carries the gradient of the residual stream through its operations.
//!
//! Operations change values in place or replace them, and the same value serves many units. So the gradient of a value that an operation
//! replaces ends there: what was in it before has no part in what follows.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::adapter::{Adapter, Layer, LoraRead};
use super::attention::Read;
use super::kept::KeptInputs;
use super::vjp::{self, NormOf};
use super::weights::Weights;
use super::whole::Matrices;
use crate::error::{Error, Result};
use crate::host;
use crate::kernels::{attention, rope};
use crate::model::{Function, Model, Op, StoreKv, Unit, UnitKind, ValueId};
use crate::platform;
use crate::stream::host_values::Values;
use crate::stream::{Batch, BatchToken, KvBlocks};
use crate::weights::TensorId;

/// The passes of a batch, on the host's cores.
pub(super) struct HostPasses<'a> {
    model: &'a Arc<Model>,
    weights: &'a Weights,
    adapter: &'a Adapter,
    matrices: Matrices<'a>,
    values: Values,
    /// Norm weights and biases, those that are trained as they are now.
    vectors: Arc<HashMap<TensorId, Vec<f32>>>,
    inputs: &'a mut KeptInputs,
    /// The gradients of values.
    gradients: HashMap<ValueId, Vec<f32>>,
    /// The draw of the dropout.
    draw: Option<u64>,
}

/// Whose rows tokens name.
#[derive(Clone, Copy)]
struct Embedding {
    table: TensorId,
    scale: f32,
    positions: Option<TensorId>,
}

/// What the backward pass of an operation needs of its forward.
enum Kept {
    Nothing,
    Input(Vec<f32>),
    Two(Vec<f32>, Vec<f32>),
    Attention(Box<Read>),
    Lora(LoraRead),
}

/// Refuses a model with operations whose gradients are not computed here.
pub(super) fn check(model: &Model, path: &str) -> Result<()> {
    let unsupported = |what: &str| {
        let reason = format!("models of family `{}` are not trained here: {what}", model.config.family.name);
        Err(Error::UnsupportedModel { path: path.to_owned(), reason })
    };
    if !model.has_head() || model.is_encoder() {
        return unsupported("they predict no tokens");
    }
    if !model.carried.is_empty() {
        return unsupported("their layers pass on more than the residual stream");
    }
    for op in model.units.iter().flat_map(|unit| &unit.ops) {
        let reason = match op {
            Op::Conv(_) => "they have convolutions",
            Op::DeltaRule(_) => "they have the gated delta rule",
            Op::HeadMatMul(_) | Op::CopyPart(_) | Op::StoreKv(StoreKv { value: None, .. }) => "they have latent attention",
            Op::Route(_) | Op::ExpertMatMul(_) | Op::WeighInputs { .. } | Op::SumExperts { .. } | Op::AddExpertBias { .. } => {
                "they are mixtures of experts"
            }
            Op::GateRows { .. } => "they gate rows",
            Op::Glu { activation, .. } | Op::Map { function: Function::Activation(activation), .. }
                if vjp::activation(*activation).is_none() =>
            {
                "their activation is clamped"
            }
            _ => continue,
        };
        return unsupported(reason);
    }
    Ok(())
}

impl<'a> HostPasses<'a> {
    pub(super) fn new(model: &'a Arc<Model>, weights: &'a Weights, adapter: &'a Adapter, inputs: &'a mut KeptInputs) -> HostPasses<'a> {
        let (values, vectors) = (Values::new(Arc::clone(model)), adapter.vectors(&weights.vectors));
        let matrices = Matrices { weights, adapter };
        HostPasses { model, weights, adapter, matrices, values, vectors, inputs, gradients: HashMap::new(), draw: None }
    }

    /// Runs the operations of a unit; with `keeps`, what their backward passes need.
    fn run(&mut self, unit: &Unit, keeps: bool) -> Result<Vec<Kept>> {
        let mut all = Vec::new();
        let mut stored = None;
        for op in &unit.ops {
            let kept = match *op {
                Op::MatMul { input, weight, output } => self.multiply(input, weight, output, keeps)?,
                Op::StoreKv(store) => {
                    stored = Some(store);
                    Kept::Nothing
                }
                Op::Attention(ref op) => {
                    let store = stored.ok_or_else(|| Error::internal("attention without keys"))?;
                    let params = attention::Params::of(op, &self.values.batch());
                    let sinks = op.sinks.and_then(|id| self.vectors.get(&id)).cloned();
                    let rows = [self.values.get(store.key), store.value.map_or(&[][..], |value| self.values.get(value))];
                    let read = Read::new(params, self.values.get(op.query).to_vec(), rows, &self.values.placed, sinks);
                    let mut output = self.values.take(op.output);
                    read.attend(&self.values.placed, &mut output);
                    self.values.put(op.output, output);
                    if keeps { Kept::Attention(Box::new(read)) } else { Kept::Nothing }
                }
                ref op => {
                    let kept = if keeps { self.read_by(op) } else { Kept::Nothing };
                    self.values.run(op, &self.vectors);
                    kept
                }
            };
            all.push(kept);
        }
        Ok(all)
    }

    fn read_by(&self, op: &Op) -> Kept {
        let own = |id: ValueId| self.values.get(id).to_vec();
        match op {
            Op::RmsNorm(norm) => Kept::Input(own(norm.input)),
            Op::LayerNorm(norm) => Kept::Input(own(norm.input)),
            Op::Glu { gate, up, .. } => Kept::Two(own(*gate), own(*up)),
            Op::Map { function: Function::Softcap(_) | Function::Activation(_), target } => Kept::Input(own(*target)),
            _ => Kept::Nothing,
        }
    }

    fn multiply(&mut self, input: ValueId, weight: TensorId, output: ValueId, keeps: bool) -> Result<Kept> {
        let mut result = self.values.take(output);
        let n_rows = self.weights.checkpoint().catalog[weight].n_rows();
        self.matrices.multiply(weight, [0, n_rows], self.values.get(input), &mut result)?;
        if keeps && self.adapter.whole(weight).is_some() {
            self.values.put(output, result);
            return Ok(Kept::Input(self.values.get(input).to_vec()));
        }
        let read = self.adapter.beside(weight).map(|layer| self.adapter.add(layer, self.values.get(input), &mut result, self.draw));
        self.values.put(output, result);
        Ok(read.filter(|_| keeps).map_or(Kept::Nothing, Kept::Lora))
    }

    /// The gradient of a value, which ends here.
    fn end_of(&mut self, id: ValueId) -> Option<Vec<f32>> {
        self.gradients.remove(&id)
    }

    /// The gradient of a value, to be added to: zeros where it has none.
    fn gradient(&mut self, id: ValueId) -> &mut Vec<f32> {
        let len = self.values.get(id).len();
        self.gradients.entry(id).or_insert_with(|| vec![0.0; len])
    }

    fn add_gradient(&mut self, id: ValueId, added: Vec<f32>) {
        match self.gradients.entry(id) {
            Entry::Vacant(entry) => {
                entry.insert(added);
            }
            Entry::Occupied(mut entry) => {
                entry.get_mut().iter_mut().zip(&added).for_each(|(own, added)| *own += added);
            }
        }
    }

    /// The vector-Jacobian product of one operation.
    fn undo(&mut self, op: &Op, kept: Kept, gradients: &mut [Layer]) -> Result<()> {
        let vectors = Arc::clone(&self.vectors);
        let vector = |id: TensorId| vectors.get(&id).map(Vec::as_slice).unwrap_or_default();
        match (op, kept) {
            (Op::RmsNorm(norm), Kept::Input(input)) => {
                let of = NormOf {
                    weight: norm.weight.map(vector),
                    weight_offset: norm.weight_offset,
                    group_size: norm.group_size,
                    epsilon: norm.epsilon,
                };
                if let Some(upward) = self.end_of(norm.output) {
                    vjp::add_rms_norm(of, &input, &upward, self.gradient(norm.input));
                    self.adapter.add_norm_gradients([norm.weight, None], || vjp::rms_normed(of, &input), &upward, gradients);
                }
            }
            (Op::LayerNorm(norm), Kept::Input(input)) => {
                let of = NormOf {
                    weight: Some(vector(norm.weight)),
                    weight_offset: norm.weight_offset,
                    group_size: norm.group_size,
                    epsilon: norm.epsilon,
                };
                if let Some(upward) = self.end_of(norm.output) {
                    vjp::add_layer_norm(of, &input, &upward, self.gradient(norm.input));
                    let ids = [Some(norm.weight), norm.bias];
                    self.adapter.add_norm_gradients(ids, || vjp::layer_normed(of, &input), &upward, gradients);
                }
            }
            (&Op::MatMul { input, weight, output }, kept) => {
                let Some(upward) = self.end_of(output) else { return Ok(()) };
                let n_rows = self.weights.checkpoint().catalog[weight].n_rows();
                let matrices = self.matrices;
                matrices.add_transposed(weight, [0, n_rows], &upward, self.gradient(input))?;
                match (self.adapter.beside(weight), kept) {
                    (Some(layer), Kept::Lora(read)) => {
                        let (adapter, draw) = (self.adapter, self.draw);
                        adapter.backward(layer, &read, &upward, &mut gradients[layer], self.gradient(input), draw);
                    }
                    (_, Kept::Input(input)) => matrices.add_gradient(weight, [0, n_rows], &input, &upward, gradients),
                    _ => {}
                }
            }
            (Op::Rope(turn), _) => {
                let params = rope::Params::of(turn, &self.values.batch());
                // The other way round; lengths change by the same factor.
                let mut back = self.values.cos_sin[turn.table].clone();
                back.iter_mut().skip(1).step_by(2).for_each(|sin| *sin = -*sin);
                if let Some(gradient) = self.gradients.get_mut(&turn.heads) {
                    host::rope(&params, &back, gradient);
                }
            }
            (Op::Attention(op), Kept::Attention(read)) => {
                let Some(upward) = self.end_of(op.output) else { return Ok(()) };
                let found = read.backward(&self.values.placed, &upward);
                self.add_gradient(op.query, found.query);
                let store = self.model.cache_of(op.layer).copied();
                let store = store.ok_or_else(|| Error::internal("attention without keys"))?;
                self.add_gradient(store.key, found.key);
                if let Some(value) = store.value {
                    self.add_gradient(value, found.value);
                }
            }
            (&Op::Glu { activation, gate, up, output }, Kept::Two(of_gate, of_up)) => {
                let function = vjp::activation(activation).ok_or_else(|| Error::internal("a clamped activation"))?;
                if let Some(upward) = self.end_of(output) {
                    let (of_gate, of_up) = vjp::glu(function, &of_gate, &of_up, &upward);
                    self.add_gradient(gate, of_gate);
                    self.add_gradient(up, of_up);
                }
            }
            (&Op::Map { function, target }, kept) => {
                let input = if let Kept::Input(input) = kept { input } else { Vec::new() };
                if let Some(gradient) = self.gradients.get_mut(&target)
                    && !vjp::map(function, &input, gradient)
                {
                    return Err(Error::internal("a clamped activation"));
                }
            }
            (&Op::Add { input, target }, _) => {
                if let Some(upward) = self.gradients.get(&target).cloned() {
                    self.add_gradient(input, upward);
                }
            }
            (&Op::AddBias { bias, target }, _) => {
                if let (Some(upward), Some(into)) = (self.gradients.get(&target), self.adapter.gradient_of(bias, gradients)) {
                    vjp::add_rows(None, upward, into);
                }
            }
            // Keys and values are read where attention is.
            (Op::StoreKv(_), _) => {}
            (op, _) => return Err(Error::internal(format!("no gradient of {op:?}"))),
        }
        Ok(())
    }

    /// The head as it is read here: its product, what norms before it, and what each logit goes through.
    fn head(&self) -> Result<Head<'a>> {
        let unit = self.model.units.last().filter(|unit| unit.kind == UnitKind::Head);
        let ops = unit.map(|unit| &unit.ops[..]).unwrap_or_default();
        let product = ops.iter().position(|op| matches!(op, Op::MatMul { output, .. } if *output == self.model.logits));
        let (before, rest) = ops.split_at(product.ok_or_else(|| Error::internal("a head without a product"))?);
        let [Op::MatMul { input, weight, .. }, behind @ ..] = rest else { return Err(Error::internal("a head without a product")) };
        Ok(Head { before, input: *input, weight: *weight, behind })
    }
}

impl HostPasses<'_> {
    /// Runs a unit; with `keeps`, what it has read is kept for [`HostPasses::backward`].
    pub(super) fn forward(&mut self, unit: usize, keeps: bool) -> Result<()> {
        if keeps {
            self.inputs.keep(unit, self.values.get(self.model.hidden).to_vec())?;
        }
        let model = self.model;
        self.run(&model.units[unit], false)?;
        Ok(())
    }

    /// Embeds the tokens of a batch. `draw` names the draw of the dropout; none is without.
    pub(super) fn begin(&mut self, batch: &Batch, draw: Option<u64>) -> Result<()> {
        self.draw = draw;
        self.inputs.clear();
        self.gradients.clear();
        let n_positions = batch.n_positions();
        self.values.begin(batch, &KvBlocks::of(batch)?, n_positions);
        let (n_tokens, n_rows) = (batch.tokens.len(), batch.logits_for.len());
        // Logits are computed some at a time.
        for (id, value) in self.model.values().filter(|(id, value)| value.width > 0 && *id != self.model.logits) {
            let len = value.n_rows(n_tokens, n_rows) * value.width;
            platform::resize(self.values.values.entry(id).or_default(), len, "activations")?;
        }
        let mut hidden = self.values.take(self.model.hidden);
        match self.trained_embedding() {
            Some(embedding) => self.embed(embedding, &batch.tokens, &mut hidden)?,
            None => self.weights.store().embed(&batch.tokens, &mut hidden)?,
        }
        self.values.put(self.model.hidden, hidden);
        Ok(())
    }

    /// The embedding, where some of it is trained.
    fn trained_embedding(&self) -> Option<Embedding> {
        let (table, scale) = self.model.embeddings().next()?;
        let positions = self.model.positions();
        let trains = |id: TensorId| self.adapter.trains(id);
        (trains(table) || positions.is_some_and(trains)).then_some(Embedding { table, scale, positions })
    }

    /// As [`Store::embed`](crate::stream::Store::embed), with what is trained as it is now.
    fn embed(&self, embedding: Embedding, tokens: &[BatchToken], hidden: &mut [f32]) -> Result<()> {
        let Embedding { table, scale, positions } = embedding;
        let catalog = &self.weights.checkpoint().catalog;
        let width = catalog[table].n_columns() as usize;
        let mut learned = vec![0.0; if positions.is_some() { width } else { 0 }];
        for (&BatchToken { token, position, .. }, values) in tokens.iter().zip(hidden.chunks_exact_mut(width)) {
            if u64::from(token) >= catalog[table].n_rows() {
                return Err(Error::TokenOutOfVocabulary { token, vocab_size: catalog[table].n_rows() as usize });
            }
            self.matrices.row(table, token.into(), values)?;
            if scale != 1.0 {
                values.iter_mut().for_each(|value| *value *= scale);
            }
            if let Some(positions) = positions {
                self.matrices.row(positions, position.into(), &mut learned)?;
                values.iter_mut().zip(&learned).for_each(|(value, learned)| *value += learned);
            }
        }
        Ok(())
    }

    /// Adds the gradient of the rows that the batch has read, once that of the first unit's input is known.
    pub(super) fn backward_embedding(&mut self, tokens: &[BatchToken], gradients: &mut [Layer]) {
        let (Some(embedding), Some(upward)) = (self.trained_embedding(), self.gradients.get(&self.model.hidden)) else { return };
        let Embedding { table, scale, positions } = embedding;
        let rows = [(Some(table), scale, false), (positions, 1.0, true)];
        for (layer, scale, by_position) in rows.into_iter().filter_map(|(id, scale, by)| Some((self.adapter.whole(id?)?, scale, by))) {
            let width = gradients[layer].n_inputs;
            for (token, upward) in tokens.iter().zip(upward.chunks_exact(width)) {
                let row = if by_position { token.position } else { token.token } as usize;
                let into = &mut gradients[layer].a[row * width..][..width];
                into.iter_mut().zip(upward).for_each(|(into, upward)| *into += scale * upward);
            }
        }
    }

    /// The loss of the batch: the sum over its rows of minus the logarithm of `targets`' probabilities. With a factor, the gradient of the
    /// loss times it becomes that of the residual stream, and those of what is trained of the head are added to the layers beside it.
    pub(super) fn loss(&mut self, targets: &[u32], gradient_of: Option<(f32, &mut [Layer])>) -> Result<f64> {
        let head = self.head()?;
        let before = Unit { name: String::new(), kind: UnitKind::Head, ops: head.before.to_vec() };
        let kept = self.run(&before, gradient_of.is_some())?;
        let (matrices, vectors) = (self.matrices, Arc::clone(&self.vectors));
        let logits = Logits { matrices, vectors, head: &head, input: self.values.get(head.input).to_vec(), targets };
        let (loss, totals) = logits.loss()?;
        let Some((factor, gradients)) = gradient_of else { return Ok(loss) };
        let of_input = logits.backward(&totals, factor, gradients)?;
        self.gradients.insert(head.input, of_input);
        for (op, kept) in before.ops.iter().zip(kept).rev() {
            match op {
                Op::GatherRows { input, output } => {
                    let upward = self.end_of(*output).unwrap_or_default();
                    let width = self.model.value(*input).width;
                    let rows = self.values.selected_rows.clone();
                    let gradient = self.gradient(*input);
                    for (row, upward) in rows.iter().zip(upward.chunks_exact(width)) {
                        let own = &mut gradient[*row as usize * width..][..width];
                        own.iter_mut().zip(upward).for_each(|(own, upward)| *own += upward);
                    }
                }
                op => self.undo(op, kept, gradients)?,
            }
        }
        Ok(loss)
    }

    /// Carries the gradient of the residual stream back through a unit, and adds those of the adapter's matrices to `gradients`.
    pub(super) fn backward(&mut self, unit: usize, gradients: &mut [Layer]) -> Result<()> {
        let input = self.inputs.take(unit)?;
        self.values.put(self.model.hidden, input);
        let model = Arc::clone(self.model);
        let unit = &model.units[unit];
        let kept = self.run(unit, true)?;
        for (op, kept) in unit.ops.iter().zip(kept).rev() {
            self.undo(op, kept, gradients)?;
        }
        let hidden = self.model.hidden;
        self.gradients.retain(|id, _| *id == hidden);
        Ok(())
    }
}

/// The parts of a head.
struct Head<'a> {
    before: &'a [Op],
    input: ValueId,
    weight: TensorId,
    behind: &'a [Op],
}

/// Cross-entropy fused with the product of the head: logits are computed for a slice of the vocabulary at a time, once for their sum and
/// once more for their gradient.
struct Logits<'a> {
    matrices: Matrices<'a>,
    vectors: Arc<HashMap<TensorId, Vec<f32>>>,
    head: &'a Head<'a>,
    /// `[n_rows, hidden_size]`
    input: Vec<f32>,
    targets: &'a [u32],
}

/// Values of logits that are held at once.
const LOGITS_AT_ONCE: usize = 4 << 20;

/// Of one row: its greatest logit, and the sum of exponentials of the distances from it.
#[derive(Clone, Copy)]
struct Total {
    most: f32,
    sum: f64,
}

impl Logits<'_> {
    fn vocab_size(&self) -> u64 {
        self.matrices.weights.checkpoint().catalog[self.head.weight].n_rows()
    }

    /// Slices of the vocabulary: how many depends on the sizes alone.
    fn slices(&self) -> impl Iterator<Item = [u64; 2]> + use<> {
        let vocab_size = self.vocab_size();
        let width = (LOGITS_AT_ONCE / self.targets.len().max(1)).clamp(256, 16_384);
        (0..vocab_size).step_by(width).map(move |begin| [begin, vocab_size.min(begin + width as u64)])
    }

    /// Logits of a slice, `[n_rows, width]`, and the slopes by which they depend on the products.
    fn of_slice(&self, slice: [u64; 2], slopes: Option<&mut Vec<f32>>) -> Result<Vec<f32>> {
        let width = (slice[1] - slice[0]) as usize;
        let mut logits = vec![0.0; self.targets.len() * width];
        self.matrices.multiply(self.head.weight, slice, &self.input, &mut logits)?;
        let mut own = vec![1.0; if slopes.is_some() { logits.len() } else { 0 }];
        for op in self.head.behind {
            match op {
                Op::AddBias { bias, .. } => {
                    let bias = self.vectors.get(bias).map(|bias| &bias[slice[0] as usize..slice[1] as usize]).unwrap_or_default();
                    for row in logits.chunks_exact_mut(width) {
                        row.iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias);
                    }
                }
                Op::Map { function, .. } => {
                    if !own.is_empty() {
                        vjp::map(*function, &logits, &mut own);
                    }
                    host::map(*function, &mut logits);
                }
                op => return Err(Error::internal(format!("no gradient of {op:?} of a head"))),
            }
        }
        if let Some(slopes) = slopes {
            *slopes = own;
        }
        Ok(logits)
    }

    /// The loss, and what the gradients of its rows are computed from.
    fn loss(&self) -> Result<(f64, Vec<Total>)> {
        let mut totals = vec![Total { most: f32::NEG_INFINITY, sum: 0.0 }; self.targets.len()];
        let mut of_targets = vec![0.0f32; self.targets.len()];
        for slice in self.slices() {
            let width = (slice[1] - slice[0]) as usize;
            let logits = self.of_slice(slice, None)?;
            for (row, logits) in logits.chunks_exact(width).enumerate() {
                let Total { most, sum } = totals[row];
                // A NaN stays one.
                let now = logits.iter().fold(most, |most, logit| if *logit > most || logit.is_nan() { *logit } else { most });
                let added: f64 = logits.iter().map(|logit| f64::from((logit - now).exp())).sum();
                let former = if most == f32::NEG_INFINITY { 0.0 } else { sum * f64::from(most - now).exp() };
                totals[row] = Total { most: now, sum: former + added };
                if let Some(logit) = u64::from(self.targets[row]).checked_sub(slice[0]).and_then(|at| logits.get(at as usize)) {
                    of_targets[row] = *logit;
                }
            }
        }
        let rows = totals.iter().zip(&of_targets);
        Ok((rows.map(|(total, logit)| f64::from(total.most) + total.sum.ln() - f64::from(*logit)).sum(), totals))
    }

    /// The gradient of `factor` times the loss with respect to what the product reads; those of what is trained of it are added to
    /// `gradients`.
    fn backward(&self, totals: &[Total], factor: f32, gradients: &mut [Layer]) -> Result<Vec<f32>> {
        let mut of_input = vec![0.0; self.input.len()];
        let mut slopes = Vec::new();
        for slice in self.slices() {
            let width = (slice[1] - slice[0]) as usize;
            let mut logits = self.of_slice(slice, Some(&mut slopes))?;
            for (row, (logits, slopes)) in logits.chunks_exact_mut(width).zip(slopes.chunks_exact(width)).enumerate() {
                let Total { most, sum } = totals[row];
                let share = (1.0 / sum) as f32;
                logits.iter_mut().for_each(|logit| *logit = (*logit - most).exp() * share);
                if let Some(target) = u64::from(self.targets[row]).checked_sub(slice[0]).and_then(|at| logits.get_mut(at as usize)) {
                    *target -= 1.0;
                }
                logits.iter_mut().zip(slopes).for_each(|(logit, slope)| *logit *= slope * factor);
            }
            self.matrices.add_transposed(self.head.weight, slice, &logits, &mut of_input)?;
            self.matrices.add_gradient(self.head.weight, slice, &self.input, &logits, gradients);
            self.add_bias_gradient(slice, &logits, gradients)?;
        }
        Ok(of_input)
    }

    /// Adds the gradient of a slice of the bias, if there is one that is trained: that of the product, which it is added to.
    fn add_bias_gradient(&self, slice: [u64; 2], upward: &[f32], gradients: &mut [Layer]) -> Result<()> {
        let adapter = self.matrices.adapter;
        for (index, op) in self.head.behind.iter().enumerate() {
            let Op::AddBias { bias, .. } = op else { continue };
            let Some(into) = adapter.gradient_of(*bias, gradients) else { continue };
            if self.head.behind[..index].iter().any(|op| matches!(op, Op::Map { .. })) {
                return Err(Error::internal("a bias behind a function of a head"));
            }
            vjp::add_rows(None, upward, &mut into[slice[0] as usize..slice[1] as usize]);
        }
        Ok(())
    }
}
