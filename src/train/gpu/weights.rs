//! Frozen matrices on the adapter, in parts of some rows: as many as the budget has room for stay, the others pass through two slots.

use std::collections::HashMap;

use super::recorder::Recorder;
use crate::error::{Error, Remedy, Result};
use crate::gpu::{Buffer, Gpu, Purpose, write};
use crate::kernels::matmul;
use crate::model::{Model, Op};
use crate::train::weights::Weights;
use crate::units::Bytes;
use crate::weights::TensorId;

/// Bytes of a part. It depends on nothing but the matrix, since sums over rows are cut where parts are.
const PART_BYTES: u64 = 16 << 20;

/// Some rows of a matrix.
struct Part {
    first_row: u64,
    n_rows: u64,
    size_bytes: Bytes,
    resident: Option<Buffer>,
}

/// Memory that parts pass through.
struct Slot {
    buffer: Buffer,
    holds: Option<(TensorId, usize)>,
    /// The submission that has used it last.
    used_by: Option<wgpu::SubmissionIndex>,
}

/// All matrices that passes multiply with.
pub(super) struct GpuWeights {
    /// What a part's params are a slice of, for one token; and its parts.
    matrices: HashMap<TensorId, (matmul::Params, Vec<Part>)>,
    slots: Vec<Slot>,
    next: usize,
}

/// The products of the model, each once, in its order.
fn products(model: &Model) -> Vec<TensorId> {
    let mut all = Vec::new();
    for op in model.units.iter().flat_map(|unit| &unit.ops) {
        if let Op::MatMul { weight, .. } = op
            && !all.contains(weight)
        {
            all.push(*weight);
        }
    }
    all
}

impl GpuWeights {
    /// Gives as many parts as there is room for a buffer of their own; `reserve` is left free of the budget.
    pub(super) async fn new(gpu: &Gpu, model: &Model, host: &Weights, reserve: Bytes) -> Result<GpuWeights> {
        let catalog = &host.checkpoint().catalog;
        let mut matrices = HashMap::new();
        let mut order = Vec::new();
        for id in products(model) {
            let tensor = &catalog[id];
            let params = matmul::Params::of_rows(tensor, 0, tensor.n_rows(), 1);
            let row_bytes = tensor.row_bytes().max(1);
            // Slices of the head begin at multiples of 256 rows, whose bytes are aligned as bindings ask for.
            let at_once = PART_BYTES.min(gpu.limits.max_binding_bytes.0) / row_bytes;
            let at_once = if at_once >= 256 { at_once / 256 * 256 } else { at_once.max(1) };
            let part = |first_row: u64| {
                let n_rows = at_once.min(tensor.n_rows() - first_row);
                Part { first_row, n_rows, size_bytes: Bytes(n_rows * row_bytes).align_up(256), resident: None }
            };
            let parts: Vec<Part> = (0..tensor.n_rows()).step_by(at_once as usize).map(part).collect();
            order.extend((0..parts.len()).map(|part| (id, part)));
            matrices.insert(id, (params, parts));
        }
        let mut weights = GpuWeights { matrices, slots: Vec::new(), next: 0 };
        weights.place(gpu, host, &order, reserve).await?;
        Ok(weights)
    }

    /// Chooses what stays, the first ones first, and brings it.
    async fn place(&mut self, gpu: &Gpu, host: &Weights, order: &[(TensorId, usize)], reserve: Bytes) -> Result<()> {
        let free = gpu.ledger.budget().saturating_sub(gpu.ledger.total().in_use);
        let size = |weights: &GpuWeights, (id, part): (TensorId, usize)| weights.matrices[&id].1[part].size_bytes;
        let all: Bytes = order.iter().map(|key| size(self, *key)).sum();
        let largest = order.iter().map(|key| size(self, *key)).max().unwrap_or_default();
        let mut room = free.saturating_sub(reserve);
        if all > room {
            let slots = largest.times(2);
            if slots > room {
                let remedies = [
                    Remedy::other("train with shorter sequences or fewer examples at once"),
                    Remedy::RaiseBudget(gpu.spec.device.to_string()),
                ];
                let (needed, available) = (gpu.ledger.total().in_use + reserve + slots, gpu.ledger.budget());
                return Err(Error::DoesNotFit { device: gpu.spec.device.to_string(), needed, available, advice: remedies.into() });
            }
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
            for _ in 0..2 {
                let buffer = gpu.buffer("slot", largest, usage, Purpose::Slots).await?;
                self.slots.push(Slot { buffer, holds: None, used_by: None });
            }
            room = room.saturating_sub(slots);
        }
        for &(id, index) in order {
            let size_bytes = size(self, (id, index));
            if size_bytes > room {
                continue;
            }
            room = room.saturating_sub(size_bytes);
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
            let buffer = gpu.buffer(&host.checkpoint().catalog[id].name, size_bytes, usage, Purpose::Weights).await?;
            if let Some((_, parts)) = self.matrices.get_mut(&id) {
                let part = &mut parts[index];
                write(&gpu.queue, &buffer, 0, &host.rows(id, part.first_row, part.n_rows)?);
                part.resident = Some(buffer);
            }
            // The queue's copies are freed as they arrive.
            gpu.queue.submit([]);
            gpu.wait(None)?;
        }
        Ok(())
    }

    /// Bytes of parts that stay, and of those that stream.
    pub(super) fn bytes(&self) -> [Bytes; 2] {
        let parts = || self.matrices.values().flat_map(|(_, parts)| parts);
        [true, false].map(|stays| parts().filter(|part| part.resident.is_some() == stays).map(|part| part.size_bytes).sum())
    }

    pub(super) fn n_parts(&self, id: TensorId) -> usize {
        self.matrices.get(&id).map_or(0, |(_, parts)| parts.len())
    }

    /// Rows of a part.
    pub(super) fn n_rows(&self, id: TensorId, part: usize) -> u32 {
        self.matrices.get(&id).and_then(|(_, parts)| parts.get(part)).map_or(0, |part| part.n_rows as u32)
    }

    /// A part, brought to a slot where it has no buffer of its own, and the params of its product.
    pub(super) fn part(
        &mut self,
        gpu: &Gpu,
        host: &Weights,
        recorder: &mut Recorder,
        id: TensorId,
        index: usize,
        n_tokens: u32,
    ) -> Result<(matmul::Params, wgpu::Buffer)> {
        let (params, parts) = self.matrices.get(&id).ok_or_else(|| gpu.error("a matrix that no pass multiplies with"))?;
        let part = &parts[index];
        let params = matmul::Params { n_tokens, ..*params }.slice(part.first_row as u32, part.n_rows as u32);
        let buffer = match &part.resident {
            Some(buffer) => (**buffer).clone(),
            None => {
                let slot = self.bring(gpu, host, recorder, (id, index))?;
                (*self.slots[slot].buffer).clone()
            }
        };
        Ok((params, buffer))
    }

    /// Brings the first part of these matrices that streams to a slot, so that it is there when it is asked for.
    pub(super) fn prefetch(
        &mut self,
        gpu: &Gpu,
        host: &Weights,
        recorder: &mut Recorder,
        matrices: impl Iterator<Item = TensorId>,
    ) -> Result<()> {
        let streams = |id: &TensorId| self.matrices.get(id).and_then(|(_, parts)| parts.iter().position(|part| part.resident.is_none()));
        let first = matrices.filter_map(|id| Some((id, streams(&id)?))).next();
        if let Some(key) = first {
            self.bring(gpu, host, recorder, key)?;
        }
        Ok(())
    }

    /// The slot that has a part. What was recorded up to now is submitted before the slot is written to, and what has used it last is waited for, so
    /// that no more than two parts are on their way.
    fn bring(&mut self, gpu: &Gpu, host: &Weights, recorder: &mut Recorder, key: (TensorId, usize)) -> Result<usize> {
        if let Some(slot) = self.slots.iter().position(|slot| slot.holds == Some(key)) {
            return Ok(slot);
        }
        recorder.submit(gpu);
        let n_slots = self.slots.len().max(1);
        // What is submitted has used the slot that was filled before this one.
        if let Some(before) = self.slots.get_mut((self.next + n_slots - 1) % n_slots) {
            before.used_by = recorder.last();
        }
        let index = self.next;
        self.next = (index + 1) % n_slots;
        let slot = self.slots.get_mut(index).ok_or_else(|| gpu.error("there is no slot to stream through"))?;
        if let Some(used_by) = slot.used_by.take() {
            gpu.wait(Some(used_by))?;
        }
        let (_, parts) = self.matrices.get(&key.0).ok_or_else(|| gpu.error("a matrix that no pass multiplies with"))?;
        let part = &parts[key.1];
        slot.holds = None;
        write(&gpu.queue, &slot.buffer, 0, &host.rows(key.0, part.first_row, part.n_rows)?);
        slot.holds = Some(key);
        Ok(index)
    }
}
