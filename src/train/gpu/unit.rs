//! The operations of a unit, forward and back, as dispatches.

use std::collections::BTreeSet;

use super::GpuPasses;
use super::memory::{Holds, KeptKey, keys_of, needed_back};
use crate::error::{Error, Result};
use crate::kernels::back::{attention as back_attention, norms, products, values};
use crate::kernels::{Binding, add, add_bias, attention, gather_rows, glu, layer_norm, map, matmul, rms_norm, rope};
use crate::model::{Attention, Function, Model, Op, StoreKv, ValueId};
use crate::train::weights::Weights;
use crate::weights::TensorId;

impl GpuPasses {
    /// Records the operations of a unit; with `kept`, the copies that their way back needs.
    pub(super) fn run(&mut self, host: &Weights, ops: &[Op], kept: Option<&BTreeSet<KeptKey>>) -> Result<()> {
        for (index, op) in ops.iter().enumerate() {
            let (read, given) = needed_back(op, keys_of(&self.model, op));
            self.keep(index, &read, kept)?;
            self.run_one(host, op)?;
            self.keep(index, &given, kept)?;
        }
        Ok(())
    }

    fn keep(&mut self, index: usize, ids: &[ValueId], kept: Option<&BTreeSet<KeptKey>>) -> Result<()> {
        for id in ids {
            let key = (index, *id);
            if kept.is_some_and(|kept| kept.contains(&key)) {
                let len = self.len_of(*id) * 4;
                self.memory.keep(&self.gpu, &mut self.recorder, key, len)?;
            }
        }
        Ok(())
    }

    /// Numbers of a value in this batch.
    fn len_of(&self, id: ValueId) -> u64 {
        let value = self.model.value(id);
        u64::from(self.batch.rows_of(value)) * value.width as u64
    }

    fn run_one(&mut self, host: &Weights, op: &Op) -> Result<()> {
        let GpuPasses { gpu, model, recorder, memory, batch, .. } = self;
        let value = |id: ValueId| memory.bind(gpu, Holds::Value(id));
        match *op {
            Op::RmsNorm(norm) => {
                let params = rms_norm::Params::of(model.value(norm.input), norm.group_size, norm.epsilon, norm.weight_offset, batch);
                let weight = norm.weight.map(|weight| memory.vector(gpu, weight)).transpose()?;
                let bindings = rms_norm::Bindings { input: value(norm.input)?, weight, output: value(norm.output)? };
                recorder.dispatch(gpu, &params, |arena| rms_norm::prepare(gpu, arena, &params, bindings))
            }
            Op::LayerNorm(norm) => {
                let params = layer_norm::Params::of(model.value(norm.input), norm.group_size, norm.epsilon, norm.weight_offset, batch);
                let weight = memory.vector(gpu, norm.weight)?;
                let bias = norm.bias.map(|bias| memory.vector(gpu, bias)).transpose()?;
                let bindings = layer_norm::Bindings { input: value(norm.input)?, weight, bias, output: value(norm.output)? };
                recorder.dispatch(gpu, &params, |arena| layer_norm::prepare(gpu, arena, &params, bindings))
            }
            Op::MatMul { input, weight, output } => self.multiply(host, input, weight, output),
            Op::AddBias { bias, target } => {
                let params = add_bias::Params::of(model.value(target), batch);
                let bindings = add_bias::Bindings { bias: memory.vector(gpu, bias)?, target_values: value(target)? };
                recorder.dispatch(gpu, &params, |arena| add_bias::prepare(gpu, arena, &params, bindings))
            }
            Op::Rope(turn) => {
                let params = rope::Params::of(&turn, batch);
                let bindings = rope::Bindings { cos_sin: memory.bind(gpu, Holds::Angles(turn.table, false))?, heads: value(turn.heads)? };
                recorder.dispatch(gpu, &params, |arena| rope::prepare(gpu, arena, &params, bindings))
            }
            // Keys and values are read where attention is.
            Op::StoreKv(_) => Ok(()),
            Op::Attention(ref attention) => self.attend(attention),
            Op::Glu { activation, gate, up, output } => {
                let params = glu::Params::of(model.value(output), batch);
                let bindings = glu::Bindings { gate: value(gate)?, up: value(up)?, output: value(output)? };
                recorder.dispatch(gpu, &params, |arena| glu::prepare(gpu, arena, &params, activation, bindings))
            }
            Op::Map { function, target } => {
                let (params, target) = (map::Params::of(function, model.value(target), batch), value(target)?);
                recorder.dispatch(gpu, &params, |arena| map::prepare(gpu, arena, &params, function, target))
            }
            Op::Add { input, target } => {
                let params = add::Params::of(model.value(target), batch);
                let bindings = add::Bindings { input: value(input)?, target_values: value(target)? };
                recorder.dispatch(gpu, &params, |arena| add::prepare(gpu, arena, &params, bindings))
            }
            Op::GatherRows { input, output } => {
                let params = gather_rows::Params::of(model.value(input), batch);
                let row_indices = memory.bind(gpu, Holds::Rows)?;
                let bindings = gather_rows::Bindings { input: value(input)?, row_indices, output: value(output)? };
                recorder.dispatch(gpu, &params, |arena| gather_rows::prepare(gpu, arena, &params, bindings))
            }
            ref op => Err(Error::internal(format!("{op:?} is not trained through"))),
        }
    }

    fn multiply(&mut self, host: &Weights, input: ValueId, weight: TensorId, output: ValueId) -> Result<()> {
        let GpuPasses { gpu, recorder, memory, weights, adapter, batch, .. } = self;
        let (input, output) = (memory.bind(gpu, Holds::Value(input))?, memory.bind(gpu, Holds::Value(output))?);
        for part in 0..weights.n_parts(weight) {
            let (params, block) = weights.part(gpu, host, recorder, weight, part, batch.n_tokens)?;
            let bindings = matmul::Bindings { weight: Binding::whole(&block), input, output };
            recorder.dispatch(gpu, &matmul::padded(&[params]), |arena| matmul::prepare(gpu, arena, &params, bindings))?;
            recorder.count(gpu, &params);
        }
        adapter.add(gpu, recorder, weight, batch.n_tokens, [input, output])
    }

    fn attend(&mut self, op: &Attention) -> Result<()> {
        let GpuPasses { gpu, model, recorder, memory, batch, .. } = self;
        let store = keys(model, op)?;
        let value = |id: ValueId| memory.bind(gpu, Holds::Value(id));
        let inputs = back_attention::Inputs {
            query: value(op.query)?,
            keys: value(store.key)?,
            values: value(values_of(&store)?)?,
            runs: memory.bind(gpu, Holds::Runs)?,
        };
        let sinks = op.sinks.map(|sinks| memory.vector(gpu, sinks)).transpose()?;
        let outputs = [value(op.output)?, memory.bind(gpu, Holds::AttentionTotals)?];
        let params = attention::Params::of(op, batch);
        recorder.dispatch(gpu, &params, |arena| back_attention::prepare(gpu, arena, &params, inputs, sinks, outputs))
    }

    /// Records the vector-Jacobian product of an operation; `kept` are its unit's copies.
    pub(super) fn undo(&mut self, host: &Weights, index: usize, op: &Op, kept: &BTreeSet<KeptKey>) -> Result<()> {
        match *op {
            Op::RmsNorm(_) | Op::LayerNorm(_) => self.undo_norm(index, op, kept),
            Op::MatMul { input, weight, output } => self.undo_multiply(host, index, (input, weight, output), kept),
            Op::Rope(turn) => {
                let GpuPasses { gpu, recorder, memory, batch, .. } = self;
                let Some(gradient) = memory.known_gradient(turn.heads) else { return Ok(()) };
                let bindings =
                    rope::Bindings { cos_sin: memory.bind(gpu, Holds::Angles(turn.table, true))?, heads: Binding::whole(&gradient) };
                let params = rope::Params::of(&turn, batch);
                recorder.dispatch(gpu, &params, |arena| rope::prepare(gpu, arena, &params, bindings))
            }
            Op::Attention(ref attention) => self.undo_attention(index, attention, kept),
            Op::Glu { activation, gate, up, output } => {
                let GpuPasses { gpu, model, recorder, memory, batch, .. } = self;
                let Some(upward) = memory.end_of(output) else { return Ok(()) };
                let (of_gate, of_up) = (memory.gradient(gpu, recorder, gate)?, memory.gradient(gpu, recorder, up)?);
                let bindings = values::GluBindings {
                    gate: memory.kept(gpu, kept, (index, gate))?,
                    up: memory.kept(gpu, kept, (index, up))?,
                    upward: Binding::whole(&upward),
                    of_gate: Binding::whole(&of_gate),
                    of_up: Binding::whole(&of_up),
                };
                let params = glu::Params::of(model.value(output), batch);
                recorder.dispatch(gpu, &params, |arena| values::prepare_glu(gpu, arena, &params, activation, bindings))
            }
            Op::Map { function, target } => {
                let GpuPasses { gpu, model, recorder, memory, batch, .. } = self;
                let Some(gradient) = memory.known_gradient(target) else { return Ok(()) };
                let (params, gradient) = (map::Params::of(function, model.value(target), batch), Binding::whole(&gradient));
                if let Function::Scale(_) = function {
                    return recorder.dispatch(gpu, &params, |arena| map::prepare(gpu, arena, &params, function, gradient));
                }
                let bindings = [memory.kept(gpu, kept, (index, target))?, gradient];
                recorder.dispatch(gpu, &params, |arena| values::prepare_map(gpu, arena, &params, function, bindings))
            }
            Op::Add { input, target } => {
                let GpuPasses { gpu, model, recorder, memory, batch, .. } = self;
                let Some(upward) = memory.known_gradient(target) else { return Ok(()) };
                let into = memory.gradient(gpu, recorder, input)?;
                let bindings = add::Bindings { input: Binding::whole(&upward), target_values: Binding::whole(&into) };
                let params = add::Params::of(model.value(target), batch);
                recorder.dispatch(gpu, &params, |arena| add::prepare(gpu, arena, &params, bindings))
            }
            Op::GatherRows { input, output } => {
                let GpuPasses { gpu, model, recorder, memory, batch, .. } = self;
                let Some(upward) = memory.end_of(output) else { return Ok(()) };
                let into = memory.gradient(gpu, recorder, input)?;
                let width = model.value(input).width as u32;
                let params = values::ScatterParams { n_rows: batch.n_logit_rows, n_output_rows: batch.n_tokens, width };
                let bindings = [Binding::whole(&upward), memory.bind(gpu, Holds::Rows)?, Binding::whole(&into)];
                recorder.dispatch(gpu, &params, |arena| values::prepare_scatter(gpu, arena, &params, bindings))
            }
            // What is added does not depend on what is trained.
            Op::AddBias { .. } | Op::StoreKv(_) => Ok(()),
            ref op => Err(Error::internal(format!("no gradient of {op:?}"))),
        }
    }

    fn undo_norm(&mut self, index: usize, op: &Op, kept: &BTreeSet<KeptKey>) -> Result<()> {
        let GpuPasses { gpu, model, recorder, memory, norms: trained, batch, .. } = self;
        let (input, output, weight, shape) = match *op {
            Op::RmsNorm(norm) => (norm.input, norm.output, norm.weight, (norm.group_size, norm.epsilon, norm.weight_offset)),
            Op::LayerNorm(norm) => (norm.input, norm.output, Some(norm.weight), (norm.group_size, norm.epsilon, norm.weight_offset)),
            _ => return Err(Error::internal("no norm")),
        };
        let Some(upward) = memory.end_of(output) else { return Ok(()) };
        let into = memory.gradient(gpu, recorder, input)?;
        let bindings = norms::Bindings {
            input: memory.kept(gpu, kept, (index, input))?,
            weight: weight.map(|weight| memory.vector(gpu, weight)).transpose()?,
            upward: Binding::whole(&upward),
            into: Binding::whole(&into),
        };
        let (group_size, epsilon, weight_offset) = shape;
        let params = rms_norm::Params::of(model.value(input), group_size, epsilon, weight_offset, batch);
        let prepare = if matches!(op, Op::RmsNorm(_)) { norms::prepare_rms } else { norms::prepare_layer };
        recorder.dispatch(gpu, &params, |arena| prepare(gpu, arena, &params, bindings))?;
        trained.undo(gpu, recorder, op, &params, [bindings.input, bindings.upward])
    }

    fn undo_multiply(
        &mut self,
        host: &Weights,
        index: usize,
        (input, weight, output): (ValueId, TensorId, ValueId),
        kept: &BTreeSet<KeptKey>,
    ) -> Result<()> {
        let GpuPasses { gpu, recorder, memory, weights, adapter, batch, .. } = self;
        let Some(upward) = memory.end_of(output) else { return Ok(()) };
        let into = memory.gradient(gpu, recorder, input)?;
        let (upward, into) = (Binding::whole(&upward), Binding::whole(&into));
        for part in 0..weights.n_parts(weight) {
            let (params, block) = weights.part(gpu, host, recorder, weight, part, batch.n_tokens)?;
            let bindings = products::Bindings { weight: Binding::whole(&block), upward, into };
            recorder.dispatch(gpu, &params, |arena| products::prepare(gpu, arena, &params, bindings))?;
            recorder.count(gpu, &params);
        }
        let read = memory.kept(gpu, kept, (index, input))?;
        adapter.backward(gpu, recorder, weight, batch.n_tokens, read, [upward, into])
    }

    fn undo_attention(&mut self, index: usize, op: &Attention, kept: &BTreeSet<KeptKey>) -> Result<()> {
        let GpuPasses { gpu, model, recorder, memory, batch, .. } = self;
        let store = keys(model, op)?;
        let value_id = values_of(&store)?;
        let Some(upward) = memory.end_of(op.output) else { return Ok(()) };
        let of_query = memory.gradient(gpu, recorder, op.query)?;
        let (of_keys, of_values) = (memory.gradient(gpu, recorder, store.key)?, memory.gradient(gpu, recorder, value_id)?);
        let read = |id: ValueId| memory.kept(gpu, kept, (index, id));
        let runs = memory.bind(gpu, Holds::Runs)?;
        let inputs = back_attention::Inputs { query: read(op.query)?, keys: read(store.key)?, values: read(value_id)?, runs };
        let (totals, params, upward) =
            (memory.bind(gpu, Holds::AttentionTotals)?, attention::Params::of(op, batch), Binding::whole(&upward));
        let own = [read(op.output)?, upward, Binding::whole(&of_query), totals];
        recorder.dispatch(gpu, &params, |arena| back_attention::prepare_query(gpu, arena, &params, inputs, own))?;
        let own = [totals, upward, Binding::whole(&of_keys), Binding::whole(&of_values)];
        recorder.dispatch(gpu, &params, |arena| back_attention::prepare_keys(gpu, arena, &params, inputs, own))
    }
}

fn keys(model: &Model, op: &Attention) -> Result<StoreKv> {
    model.cache_of(op.layer).copied().ok_or_else(|| Error::internal("attention without keys"))
}

fn values_of(store: &StoreKv) -> Result<ValueId> {
    store.value.ok_or_else(|| Error::internal("attention without values"))
}
