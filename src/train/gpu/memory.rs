//! Buffers of values, of their gradients, and of copies of what an operation has read where a later one of its unit writes over it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::MostTokens;
use super::recorder::Recorder;
use crate::error::Result;
use crate::gpu::{Buffer, Gpu, Purpose};
use crate::kernels::Binding;
use crate::model::{Function, Model, Op, StoreKv, ValueId};
use crate::stream::Batch;
use crate::train::weights::Weights;
use crate::units::Bytes;
use crate::weights::TensorId;

/// An operation of a unit, and a value that it has read or given.
pub(super) type KeptKey = (usize, ValueId);

/// Logits that are held at once.
const LOGITS_AT_ONCE: usize = 4 << 20;
/// Tokens of the vocabulary whose logits are computed together, at most.
const MOST_LOGITS_OF_ROW: usize = 16 << 10;

/// All of them, for batches up to a number of tokens.
pub(super) struct Memory {
    values: HashMap<ValueId, Buffer>,
    gradients: HashMap<ValueId, Buffer>,
    /// Values that have a gradient now.
    has_gradient: HashSet<ValueId>,
    kept: HashMap<KeptKey, Buffer>,
    /// By unit, the head last: what is copied.
    copied: Vec<BTreeSet<KeptKey>>,
    vectors: HashMap<TensorId, Buffer>,
    /// By table: angles forward, and those that turn back.
    angles: Vec<[Buffer; 2]>,
    /// `[n_tokens, 2]`: first and end of each token's sequence.
    pub(super) runs: Buffer,
    /// `[n_tokens, n_heads, 2]`
    pub(super) attention_totals: Buffer,
    /// `[n_rows]`
    pub(super) rows: Buffer,
    /// `[n_rows]`
    pub(super) targets: Buffer,
    /// `[n_rows, 4]`
    pub(super) loss_totals: Buffer,
    /// Tokens of the vocabulary whose logits are computed together: a multiple of 256.
    pub(super) logits_at_once: u32,
    /// `[n_rows, logits_at_once]`
    pub(super) logits: Buffer,
    largest_readback: Bytes,
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
        let MostTokens(n_tokens) = most;
        let maker = Maker { gpu };
        let (mut values, mut gradients) = (HashMap::new(), HashMap::new());
        for (id, value) in model.values().filter(|(id, value)| value.width > 0 && *id != model.logits) {
            let len = n_tokens * value.width;
            values.insert(id, maker.make(value.name, len).await?);
            gradients.insert(id, maker.make(value.name, len).await?);
        }
        let copied: Vec<BTreeSet<KeptKey>> =
            model.units.iter().map(|unit| &unit.ops[..]).chain([head_ops(model)]).map(|ops| copied_of(model, ops)).collect();
        let mut kept = HashMap::new();
        for key in copied.iter().flatten().collect::<BTreeSet<_>>() {
            kept.insert(*key, maker.make("kept", n_tokens * model.value(key.1).width).await?);
        }
        let mut vectors = HashMap::new();
        for (id, values) in host.vectors.iter().collect::<BTreeMap<_, _>>() {
            let buffer = maker.make("a norm weight or bias", values.len()).await?;
            gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(values));
            vectors.insert(*id, buffer);
        }
        let mut angles = Vec::new();
        for table in &model.rope_tables {
            let len = n_tokens * table.of_context(1).len().max(table.of_context(usize::MAX).len()) * 2;
            angles.push([maker.make("angles", len).await?, maker.make("angles back", len).await?]);
        }
        let n_heads = model.units.iter().flat_map(|unit| &unit.ops).map(|op| if let Op::Attention(op) = op { op.n_heads } else { 0 }).max();
        let hidden = n_tokens * model.value(model.hidden).width;
        Ok(Memory {
            values,
            gradients,
            has_gradient: HashSet::new(),
            kept,
            copied,
            vectors,
            angles,
            runs: maker.make("sequences", n_tokens * 2).await?,
            attention_totals: maker.make("totals of attention", n_tokens * n_heads.unwrap_or(1) * 2).await?,
            rows: maker.make("rows of logits", n_tokens).await?,
            targets: maker.make("targets", n_tokens).await?,
            loss_totals: maker.make("totals of the loss", n_tokens * 4).await?,
            logits_at_once: logits_of_row(n_tokens) as u32,
            logits: maker.make("logits", n_tokens * logits_of_row(n_tokens).min(model.value(model.logits).width)).await?,
            largest_readback: Bytes((hidden.max(n_tokens * 4) * 4) as u64),
        })
    }

    /// Bytes that are read back at once.
    pub(super) fn largest_readback(&self) -> Bytes {
        self.largest_readback
    }

    pub(super) fn value(&self, gpu: &Gpu, id: ValueId) -> Result<&Buffer> {
        self.values.get(&id).ok_or_else(|| gpu.error("a value has no buffer"))
    }

    pub(super) fn vector(&self, gpu: &Gpu, id: TensorId) -> Result<Binding<'_>> {
        self.vectors.get(&id).map(|buffer| Binding::whole(buffer)).ok_or_else(|| gpu.error("a norm weight or bias was not loaded"))
    }

    /// Cosines and sines of a table: those forward, or those back.
    pub(super) fn angles(&self, table: usize, is_back: bool) -> Binding<'_> {
        Binding::whole(&self.angles[table][usize::from(is_back)])
    }

    /// What a value was for an operation, of a unit whose copies are `kept`.
    pub(super) fn kept(&self, gpu: &Gpu, kept: &BTreeSet<KeptKey>, key: KeptKey) -> Result<Binding<'_>> {
        let copy = self.kept.get(&key).filter(|_| kept.contains(&key));
        Ok(Binding::whole(match copy {
            Some(copy) => copy,
            None => self.value(gpu, key.1)?,
        }))
    }

    /// Copies a value for an operation.
    pub(super) fn keep(&self, gpu: &Gpu, recorder: &mut Recorder, key: KeptKey, len: u64) -> Result<()> {
        if let Some(copy) = self.kept.get(&key) {
            recorder.copy(self.value(gpu, key.1)?, copy, len);
        }
        Ok(())
    }

    /// What is copied in a unit; behind the last one, in the operations of the head before its product.
    pub(super) fn kept_in(&self, unit: usize) -> BTreeSet<KeptKey> {
        self.copied.get(unit).cloned().unwrap_or_default()
    }

    /// As [`Memory::kept_in`], of the head.
    pub(super) fn kept_in_head(&self) -> BTreeSet<KeptKey> {
        self.copied.last().cloned().unwrap_or_default()
    }

    /// The gradient of a value, to be added to: zeros where it has none yet.
    pub(super) fn gradient(&mut self, gpu: &Gpu, recorder: &mut Recorder, id: ValueId) -> Result<wgpu::Buffer> {
        let buffer = self.gradients.get(&id).ok_or_else(|| gpu.error("a value has no buffer for its gradient"))?;
        if self.has_gradient.insert(id) {
            recorder.clear(buffer);
        }
        Ok((**buffer).clone())
    }

    /// The gradient of a value, if it has one.
    pub(super) fn known_gradient(&self, id: ValueId) -> Option<wgpu::Buffer> {
        self.gradients.get(&id).filter(|_| self.has_gradient.contains(&id)).map(|buffer| (**buffer).clone())
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
    pub(super) fn write_angles(&self, gpu: &Gpu, table: usize, mut cos_sin: Vec<f32>) {
        gpu.queue.write_buffer(&self.angles[table][0], 0, bytemuck::cast_slice(&cos_sin));
        cos_sin.iter_mut().skip(1).step_by(2).for_each(|sin| *sin = -*sin);
        gpu.queue.write_buffer(&self.angles[table][1], 0, bytemuck::cast_slice(&cos_sin));
    }

    /// Writes where the sequences of a batch are, and its rows of logits.
    pub(super) fn write_batch(&self, gpu: &Gpu, batch: &Batch) -> Result<()> {
        if batch.tokens.len() as u64 * 8 > self.runs.size() {
            return Err(gpu.error(format!("a batch of {} tokens is larger than was planned", batch.tokens.len())));
        }
        let mut runs: Vec<[u32; 2]> = Vec::with_capacity(batch.tokens.len());
        for run in batch.tokens.chunk_by(|a, b| a.sequence == b.sequence) {
            let begin = runs.len() as u32;
            runs.extend(run.iter().map(|_| [begin, begin + run.len() as u32]));
        }
        gpu.queue.write_buffer(&self.runs, 0, bytemuck::cast_slice(&runs));
        gpu.queue.write_buffer(&self.rows, 0, bytemuck::cast_slice(&batch.logits_for));
        Ok(())
    }
}

/// Makes buffers of four-byte values.
struct Maker<'a> {
    gpu: &'a Gpu,
}

impl Maker<'_> {
    async fn make(&self, label: &str, len: usize) -> Result<Buffer> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        self.gpu.buffer(label, Bytes(len as u64 * 4).align_up(256), usage, Purpose::Activations).await
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
    model.caches().find(|store| store.layer == attention.layer)
}
