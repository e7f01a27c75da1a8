//! Frozen matrices on the adapter, in parts of some rows: as many as the budget has room for stay, the others pass through two slots.

use std::collections::HashMap;

use super::placing::{GpuPlan, PartPlan};
use super::recorder::Recorder;
use crate::error::Result;
use crate::gpu::{Buffer, Gpu, Purpose, write};
use crate::kernels::matmul;
use crate::train::weights::Weights;
use crate::units::Bytes;
use crate::weights::TensorId;

/// Some rows of a matrix.
struct Part {
    plan: PartPlan,
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
    /// Bytes that came to slots.
    n_streamed: Bytes,
}

impl GpuWeights {
    /// Brings what stays.
    pub(super) async fn new(gpu: &Gpu, host: &Weights, plan: GpuPlan) -> Result<GpuWeights> {
        let catalog = &host.checkpoint().catalog;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let mut slots = Vec::new();
        for size in plan.slot.into_iter().chain(plan.slot) {
            slots.push(Slot { buffer: gpu.buffer("slot", size, usage, Purpose::Slots).await?, holds: None, used_by: None });
        }
        let mut matrices: HashMap<TensorId, (matmul::Params, Vec<Part>)> = HashMap::new();
        for plan in plan.parts {
            let tensor = &catalog[plan.matrix];
            let mut resident = None;
            if plan.is_resident {
                let buffer = gpu.buffer(&tensor.name, plan.size_bytes, usage, Purpose::Weights).await?;
                write(&gpu.queue, &buffer, 0, &host.rows(plan.matrix, plan.first_row, plan.n_rows)?);
                // The queue's copies are freed as they arrive.
                gpu.queue.submit([]);
                gpu.wait(None)?;
                resident = Some(buffer);
            }
            let whole = || (matmul::Params::of_rows(tensor, 0, tensor.n_rows(), 1), Vec::new());
            matrices.entry(plan.matrix).or_insert_with(whole).1.push(Part { plan, resident });
        }
        Ok(GpuWeights { matrices, slots, next: 0, n_streamed: Bytes::ZERO })
    }

    pub(super) fn n_parts(&self, id: TensorId) -> usize {
        self.matrices.get(&id).map_or(0, |(_, parts)| parts.len())
    }

    /// Rows of a part.
    pub(super) fn n_rows(&self, id: TensorId, part: usize) -> u32 {
        self.matrices.get(&id).and_then(|(_, parts)| parts.get(part)).map_or(0, |part| part.plan.n_rows as u32)
    }

    /// Bytes that came to slots up to now.
    pub(super) fn streamed(&self) -> Bytes {
        self.n_streamed
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
        let Part { plan, resident } = &parts[index];
        let params = matmul::Params { n_tokens, ..*params }.slice(plan.first_row as u32, plan.n_rows as u32);
        let buffer = match resident {
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
        let plan = &parts[key.1].plan;
        slot.holds = None;
        write(&gpu.queue, &slot.buffer, 0, &host.rows(key.0, plan.first_row, plan.n_rows)?);
        slot.holds = Some(key);
        self.n_streamed += plan.size_bytes;
        Ok(index)
    }
}
