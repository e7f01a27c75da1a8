//! Buffers of values, of their gradients, and of copies of what an operation has read where a later one of its unit writes over it.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::MostTokens;
use super::recorder::Recorder;
use crate::error::Result;
use crate::gpu::{Buffer, Gpu, Purpose};
use crate::kernels::Binding;
use crate::model::{Function, Model, Op, StoreKv, ValueId};
use crate::stream::Batch;
use crate::train::weights::Weights;
use crate::units::Bytes;
use crate::weights::{Catalog, TensorId};

/// An operation of a unit, and a value that it has read or given.
pub(super) type KeptKey = (usize, ValueId);

/// Logits that are held at once.
const LOGITS_AT_ONCE: usize = 4 << 20;
/// Tokens of the vocabulary whose logits are computed together, at most.
const MOST_LOGITS_OF_ROW: usize = 16 << 10;

/// What a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Holds {
    Value(ValueId),
    /// The gradient of a value.
    Gradient(ValueId),
    /// A copy of what an operation has read or given.
    Kept(KeptKey),
    /// A norm weight or a bias.
    Vector(TensorId),
    /// Cosines and sines of a table; those that turn back.
    Angles(usize, bool),
    /// `[n_tokens, 2]`: first and end of each token's sequence.
    Runs,
    /// `[n_tokens, n_heads, 2]`
    AttentionTotals,
    /// `[n_rows]`: which tokens have logits.
    Rows,
    /// `[n_rows]`
    Targets,
    /// `[n_rows, 4]`
    LossTotals,
    /// `[n_rows, logits_at_once]`
    Logits,
}

/// All of them, for batches up to a number of tokens.
pub(super) struct Memory {
    buffers: HashMap<Holds, Buffer>,
    /// Values that have a gradient now.
    has_gradient: HashSet<ValueId>,
    /// By unit, the head last: what is copied.
    copied: Vec<BTreeSet<KeptKey>>,
    /// Tokens of the vocabulary whose logits are computed together.
    pub(super) logits_at_once: u32,
}

/// The buffers that a model needs for so many tokens, in order, and their sizes. `catalog` has the sizes of vectors.
pub(super) fn buffers(model: &Model, catalog: &Catalog, most: MostTokens) -> Vec<(Holds, Bytes)> {
    let MostTokens(n_tokens) = most;
    let mut all: Vec<(Holds, usize)> = Vec::new();
    for (id, value) in model.values().filter(|(id, value)| value.width > 0 && *id != model.logits) {
        all.extend([Holds::Value(id), Holds::Gradient(id)].map(|holds| (holds, n_tokens * value.width)));
    }
    let kept: BTreeSet<KeptKey> = copies(model).into_iter().flatten().collect();
    all.extend(kept.into_iter().map(|key| (Holds::Kept(key), n_tokens * model.value(key.1).width)));
    let vectors: BTreeSet<TensorId> = model.units.iter().flat_map(|unit| unit.vectors()).collect();
    all.extend(vectors.into_iter().map(|id| (Holds::Vector(id), catalog[id].shape.iter().product::<u64>() as usize)));
    for (index, table) in model.rope_tables.iter().enumerate() {
        let n_pairs = table.of_context(1).len().max(table.of_context(usize::MAX).len());
        all.extend([false, true].map(|is_back| (Holds::Angles(index, is_back), n_tokens * n_pairs * 2)));
    }
    let heads = model.units.iter().flat_map(|unit| &unit.ops).map(|op| if let Op::Attention(op) = op { op.n_heads } else { 1 });
    let logits = n_tokens * logits_of_row(n_tokens).min(model.value(model.logits).width);
    all.extend([
        (Holds::Runs, n_tokens * 2),
        (Holds::AttentionTotals, n_tokens * heads.max().unwrap_or(1) * 2),
        (Holds::Rows, n_tokens),
        (Holds::Targets, n_tokens),
        (Holds::LossTotals, n_tokens * 4),
        (Holds::Logits, logits),
    ]);
    all.into_iter().map(|(holds, len)| (holds, Bytes(len as u64 * 4).align_up(256))).collect()
}

/// Bytes that are read back at once, at most.
pub(super) fn largest_readback(model: &Model, most: MostTokens) -> Bytes {
    Bytes((most.0 * model.value(model.hidden).width.max(4) * 4) as u64)
}

/// By unit, and of the head before its product: what is copied.
fn copies(model: &Model) -> Vec<BTreeSet<KeptKey>> {
    model.units.iter().map(|unit| &unit.ops[..]).chain([head_ops(model)]).map(|ops| copied_of(model, ops)).collect()
}

/// The operations of a head before its product, as a unit of their own.
pub(super) fn head_ops(model: &Model) -> &[Op] {
    let ops = model.units.last().map(|unit| &unit.ops[..]).unwrap_or_default();
    let product = ops.iter().position(|op| matches!(op, Op::MatMul { output, .. } if *output == model.logits));
    &ops[..product.unwrap_or(0)]
}

/// Tokens of the vocabulary whose logits are computed together, of so many rows: a multiple of 256.
fn logits_of_row(n_rows: usize) -> usize {
    (LOGITS_AT_ONCE / n_rows.max(1)).clamp(256, MOST_LOGITS_OF_ROW) / 256 * 256
}

impl Memory {
    pub(super) async fn new(gpu: &Gpu, model: &Model, host: &Weights, most: MostTokens) -> Result<Memory> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let mut made = HashMap::new();
        for (holds, size) in buffers(model, &host.checkpoint().catalog, most) {
            let buffer = gpu.buffer(&format!("{holds:?}"), size, usage, Purpose::Activations).await?;
            if let Holds::Vector(id) = holds {
                let values = host.vectors.get(&id).ok_or_else(|| gpu.error("a norm weight or bias was not loaded"))?;
                gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(values));
            }
            made.insert(holds, buffer);
        }
        let logits_at_once = logits_of_row(most.0) as u32;
        Ok(Memory { buffers: made, has_gradient: HashSet::new(), copied: copies(model), logits_at_once })
    }

    pub(super) fn buffer(&self, gpu: &Gpu, holds: Holds) -> Result<&Buffer> {
        self.buffers.get(&holds).ok_or_else(|| gpu.error(format!("there is no buffer for {holds:?}")))
    }

    pub(super) fn bind(&self, gpu: &Gpu, holds: Holds) -> Result<Binding<'_>> {
        Ok(Binding::whole(self.buffer(gpu, holds)?))
    }

    pub(super) fn value(&self, gpu: &Gpu, id: ValueId) -> Result<&Buffer> {
        self.buffer(gpu, Holds::Value(id))
    }

    pub(super) fn vector(&self, gpu: &Gpu, id: TensorId) -> Result<Binding<'_>> {
        self.bind(gpu, Holds::Vector(id))
    }

    /// What a value was for an operation, of a unit whose copies are `kept`.
    pub(super) fn kept(&self, gpu: &Gpu, kept: &BTreeSet<KeptKey>, key: KeptKey) -> Result<Binding<'_>> {
        self.bind(gpu, if kept.contains(&key) { Holds::Kept(key) } else { Holds::Value(key.1) })
    }

    /// Copies a value for an operation.
    pub(super) fn keep(&self, gpu: &Gpu, recorder: &mut Recorder, key: KeptKey, len: u64) -> Result<()> {
        recorder.copy(self.value(gpu, key.1)?, self.buffer(gpu, Holds::Kept(key))?, len);
        Ok(())
    }

    /// What is copied in a unit; behind the last one, in the operations of the head before its product.
    pub(super) fn kept_in(&self, unit: usize) -> BTreeSet<KeptKey> {
        self.copied.get(unit).cloned().unwrap_or_default()
    }

    /// The gradient of a value, to be added to: zeros where it has none yet.
    pub(super) fn gradient(&mut self, gpu: &Gpu, recorder: &mut Recorder, id: ValueId) -> Result<wgpu::Buffer> {
        let buffer = (**self.buffer(gpu, Holds::Gradient(id))?).clone();
        if self.has_gradient.insert(id) {
            recorder.clear(&buffer);
        }
        Ok(buffer)
    }

    /// The gradient of a value, if it has one.
    pub(super) fn known_gradient(&self, id: ValueId) -> Option<wgpu::Buffer> {
        self.buffers.get(&Holds::Gradient(id)).filter(|_| self.has_gradient.contains(&id)).map(|buffer| (**buffer).clone())
    }

    /// The gradient of a value, which ends here.
    pub(super) fn end_of(&mut self, id: ValueId) -> Option<wgpu::Buffer> {
        let found = self.known_gradient(id);
        self.has_gradient.remove(&id);
        found
    }

    pub(super) fn forget_gradients(&mut self) {
        self.has_gradient.clear();
    }

    pub(super) fn forget_gradients_but(&mut self, id: ValueId) {
        self.has_gradient.retain(|other| *other == id);
    }

    pub(super) fn write_value(&self, gpu: &Gpu, id: ValueId, values: &[f32]) -> Result<()> {
        gpu.queue.write_buffer(self.value(gpu, id)?, 0, bytemuck::cast_slice(values));
        Ok(())
    }

    /// Writes a table's angles, and those that turn back; lengths change by the same factor either way.
    pub(super) fn write_angles(&self, gpu: &Gpu, table: usize, mut cos_sin: Vec<f32>) -> Result<()> {
        gpu.queue.write_buffer(self.buffer(gpu, Holds::Angles(table, false))?, 0, bytemuck::cast_slice(&cos_sin));
        cos_sin.iter_mut().skip(1).step_by(2).for_each(|sin| *sin = -*sin);
        gpu.queue.write_buffer(self.buffer(gpu, Holds::Angles(table, true))?, 0, bytemuck::cast_slice(&cos_sin));
        Ok(())
    }

    /// Writes where the sequences of a batch are, and its rows of logits.
    pub(super) fn write_batch(&self, gpu: &Gpu, batch: &Batch) -> Result<()> {
        let of_runs = self.buffer(gpu, Holds::Runs)?;
        if batch.tokens.len() as u64 * 8 > of_runs.size() {
            return Err(gpu.error(format!("a batch of {} tokens is larger than was planned", batch.tokens.len())));
        }
        let mut runs: Vec<[u32; 2]> = Vec::with_capacity(batch.tokens.len());
        for run in batch.tokens.chunk_by(|a, b| a.sequence == b.sequence) {
            let begin = runs.len() as u32;
            runs.extend(run.iter().map(|_| [begin, begin + run.len() as u32]));
        }
        gpu.queue.write_buffer(of_runs, 0, bytemuck::cast_slice(&runs));
        gpu.queue.write_buffer(self.buffer(gpu, Holds::Rows)?, 0, bytemuck::cast_slice(&batch.logits_for));
        Ok(())
    }
}

/// What the backward pass of an operation needs of its forward: values as it reads them, and as it gives them.
pub(super) fn needed_back(op: &Op, keys: Option<&StoreKv>) -> (Vec<ValueId>, Vec<ValueId>) {
    match op {
        Op::RmsNorm(norm) => (vec![norm.input], Vec::new()),
        Op::LayerNorm(norm) => (vec![norm.input], Vec::new()),
        Op::MatMul { input, .. } => (vec![*input], Vec::new()),
        Op::Glu { gate, up, .. } => (vec![*gate, *up], Vec::new()),
        Op::Map { function: Function::Softcap(_) | Function::Activation(_), target } => (vec![*target], Vec::new()),
        Op::Attention(op) => {
            let read = keys.map(|store| [Some(store.key), store.value]).into_iter().flatten().flatten();
            ([op.query].into_iter().chain(read).collect(), vec![op.output])
        }
        _ => (Vec::new(), Vec::new()),
    }
}

fn written_by(op: &Op) -> Option<ValueId> {
    match op {
        Op::RmsNorm(norm) => Some(norm.output),
        Op::LayerNorm(norm) => Some(norm.output),
        Op::MatMul { output, .. } | Op::Glu { output, .. } | Op::GatherRows { output, .. } => Some(*output),
        Op::Rope(rope) => Some(rope.heads),
        Op::Attention(op) => Some(op.output),
        Op::AddBias { target, .. } | Op::Map { target, .. } | Op::Add { target, .. } => Some(*target),
        _ => None,
    }
}

/// What of [`needed_back`] is written over by an operation itself or by a later one.
fn copied_of(model: &Model, ops: &[Op]) -> BTreeSet<KeptKey> {
    let mut copied = BTreeSet::new();
    for (index, op) in ops.iter().enumerate() {
        let (read, given) = needed_back(op, keys_of(model, op));
        let is_written = |first: usize, id: ValueId| ops[first..].iter().any(|op| written_by(op) == Some(id));
        copied.extend(read.into_iter().filter(|id| is_written(index, *id)).map(|id| (index, id)));
        copied.extend(given.into_iter().filter(|id| is_written(index + 1, *id)).map(|id| (index, id)));
    }
    copied
}

/// The keys and values that attention reads.
pub(super) fn keys_of<'a>(model: &'a Model, op: &Op) -> Option<&'a StoreKv> {
    let Op::Attention(attention) = op else { return None };
    model.cache_of(attention.layer)
}
