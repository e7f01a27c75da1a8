//! The passes of a batch on an adapter. Kernels forward are those of inference, but attention's, which reads this batch's own keys and values; those
//! back are in [`crate::kernels::back`].
//!
//! The adapter's budget holds the values of one unit and their gradients, the matrices that are trained with theirs, and as many frozen weights as
//! then have room; the others stream through two slots, from wherever the host has them, while the adapter computes with the one before. What each
//! unit has read is kept in host memory (or in a file), and so is the optimiser's state. Which weights stream changes no bit: products are cut the same way.

mod adapter;
mod dropout;
mod head;
mod memory;
mod norms;
mod placing;
mod recorder;
mod unit;
mod weights;

use std::sync::Arc;

use self::adapter::GpuAdapter;
pub(super) use self::dropout::mask_bytes;
use self::memory::Memory;
use self::norms::GpuNorms;
pub(super) use self::placing::GpuPlan;
use self::recorder::Recorder;
use self::weights::GpuWeights;
use super::adapter::{Adapter, Layer};
use super::kept::KeptInputs;
use super::weights::Weights;
use crate::error::Result;
use crate::gpu::{self, AdapterFound, Gpu};
use crate::kernels::BatchShape;
use crate::kernels::rope_kv::CacheDType;
use crate::model::Model;
use crate::platform;
use crate::stream::Batch;
use crate::stream::batch::cos_sin;
use crate::units::Bytes;

/// What forward and backward passes need on one adapter, from one batch to the next.
pub(super) struct GpuPasses {
    gpu: Arc<Gpu>,
    model: Arc<Model>,
    recorder: Recorder,
    memory: Memory,
    weights: GpuWeights,
    adapter: GpuAdapter,
    norms: GpuNorms,
    /// Bytes of weights that stay and that stream; the most in use at once.
    planned: ([Bytes; 2], Bytes),
    /// What the first unit reads, until it has run.
    embedded: Option<Vec<f32>>,
    inputs: KeptInputs,
    batch: BatchShape,
    /// The draw of the dropout.
    draw: Option<u64>,
}

/// What training uses of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuUse {
    /// The GPU's name.
    pub adapter: String,
    /// What training may use of its memory.
    pub budget: Bytes,
    /// The most that the plan has in use at once.
    pub planned: Bytes,
    /// The most that was in use at once.
    pub peak: Bytes,
    /// Frozen matrices that stay there.
    pub resident: Bytes,
    /// Those that stream through it.
    pub streamed: Bytes,
}

/// Bytes that are read back at once, at most.
fn readback_bytes(model: &Model, trained: &Adapter, most: MostTokens) -> Bytes {
    memory::largest_readback(model, most).max(adapter::largest_matrix(trained))
}

/// The largest batch that passes have room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct MostTokens(pub(super) usize);

impl GpuPasses {
    /// Opens the adapter with `budget` and gives it what is trained, and as many weights as there is room for.
    ///
    /// # Errors
    /// [`Error::Gpu`]; [`Error::DoesNotFit`]; those of reading.
    pub(super) async fn open(
        found: &AdapterFound,
        budget: Bytes,
        model: &Arc<Model>,
        host: &Weights,
        trained: &Adapter,
        most: MostTokens,
        inputs: KeptInputs,
    ) -> Result<GpuPasses> {
        let gpu = Arc::new(Gpu::open(found, budget, None).await?);
        gpu.keep_bind_groups();
        let catalog = &host.checkpoint().catalog;
        let limits = [budget, gpu.limits.max_binding_bytes];
        let plan = GpuPlan::new(&gpu.spec.device.to_string(), limits, (model, catalog), trained, most)?;
        let planned = (plan.weights(), plan.peak());
        let recorder = Recorder::new(&gpu).await?;
        let memory = Memory::new(&gpu, model, host, most).await?;
        let adapter = GpuAdapter::new(&gpu, model, trained, most).await?;
        let norms = GpuNorms::new(&gpu, model, trained, most).await?;
        let weights = GpuWeights::new(&gpu, host, plan).await?;
        gpu.wait(None)?;
        let batch =
            BatchShape { n_tokens: 0, n_logit_rows: 0, n_seqs: 1, n_blocks: 0, kv_capacity: u32::MAX, kv_dtypes: [CacheDType::F32; 2] };
        Ok(GpuPasses {
            gpu,
            model: Arc::clone(model),
            recorder,
            memory,
            weights,
            adapter,
            norms,
            planned,
            embedded: None,
            inputs,
            batch,
            draw: None,
        })
    }

    /// What they use of the adapter.
    pub(super) fn gpu_use(&self) -> GpuUse {
        let ([resident, streamed], planned) = self.planned;
        let (budget, peak) = (self.gpu.ledger.budget(), self.gpu.ledger.total().peak);
        GpuUse { adapter: self.gpu.spec.title(), budget, planned, peak, resident, streamed }
    }

    /// Bytes of weights that have streamed up to now.
    pub(super) fn streamed(&self) -> Bytes {
        self.weights.streamed()
    }

    /// Takes the values of what is trained; its gradients are zero then.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    pub(super) fn begin(&mut self, trained: &Adapter) -> Result<()> {
        self.adapter.begin(&self.gpu, trained, &mut self.recorder);
        self.norms.begin(&self.gpu, trained, &self.memory, &mut self.recorder)
    }

    /// Embeds the tokens of a batch. `draw` names the draw of the dropout; none is without.
    pub(super) fn begin_batch(&mut self, host: &Weights, batch: &Batch, draw: Option<u64>) -> Result<()> {
        self.draw = draw;
        self.inputs.clear();
        self.memory.forget_gradients();
        let (n_tokens, n_logit_rows) = (batch.tokens.len() as u32, batch.logits_for.len() as u32);
        self.batch = BatchShape { n_tokens, n_logit_rows, ..self.batch };
        let mut hidden = Vec::new();
        host.store().embed(&batch.tokens, &mut hidden)?;
        for (table, angles) in self.model.rope_tables.iter().enumerate() {
            self.memory.write_angles(&self.gpu, table, cos_sin(batch, angles, batch.n_positions()))?;
        }
        self.memory.write_batch(&self.gpu, batch)?;
        self.memory.write_value(&self.gpu, self.model.hidden, &hidden)?;
        self.embedded = Some(hidden);
        Ok(())
    }

    /// Runs a unit; with `keeps`, what it has read is kept for [`GpuPasses::backward`].
    pub(super) async fn forward(&mut self, host: &Weights, unit: usize, keeps: bool) -> Result<()> {
        let embedded = self.embedded.take();
        if keeps {
            let input = match embedded {
                Some(embedded) => embedded,
                None => self.read_hidden(host, unit).await?,
            };
            self.inputs.keep(unit, input)?;
        }
        let model = Arc::clone(&self.model);
        self.adapter.draw(&self.gpu, &mut self.recorder, unit, self.batch.n_tokens, self.draw);
        self.run(host, &model.units[unit].ops, None)?;
        self.end_of_unit().await
    }

    /// Submits what was recorded. A browser is waited for, so that it holds no more than one unit's weights on their way.
    async fn end_of_unit(&mut self) -> Result<()> {
        self.recorder.submit(&self.gpu);
        if !platform::MAY_BLOCK {
            self.gpu.finish().await?;
        }
        self.gpu.check()
    }

    /// The residual stream as it is now. What unit `next` reads first is brought to its slot meanwhile.
    async fn read_hidden(&mut self, host: &Weights, next: usize) -> Result<Vec<f32>> {
        self.recorder.submit(&self.gpu);
        self.weights.prefetch(&self.gpu, host, &mut self.recorder, self.model.units[next].matrices())?;
        let hidden = self.memory.value(&self.gpu, self.model.hidden)?;
        let len = u64::from(self.batch.n_tokens) * self.model.value(self.model.hidden).width as u64 * 4;
        let bytes = gpu::read(&self.gpu, hidden, 0, len).await?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    /// Carries the gradient of the residual stream back through a unit, and adds those of the trained matrices to what is kept of them.
    pub(super) async fn backward(&mut self, host: &Weights, unit: usize) -> Result<()> {
        let input = self.inputs.take(unit)?;
        self.recorder.submit(&self.gpu);
        self.memory.write_value(&self.gpu, self.model.hidden, &input)?;
        let model = Arc::clone(&self.model);
        let ops = &model.units[unit].ops;
        let kept = self.memory.kept_in(unit);
        self.adapter.draw(&self.gpu, &mut self.recorder, unit, self.batch.n_tokens, self.draw);
        self.run(host, ops, Some(&kept))?;
        for (index, op) in ops.iter().enumerate().rev() {
            self.undo(host, index, op, &kept)?;
        }
        self.memory.forget_gradients_but(self.model.hidden);
        self.end_of_unit().await
    }

    /// Adds the gradients of what is trained to `into`.
    pub(super) async fn add_gradients(&mut self, trained: &Adapter, into: &mut [Layer]) -> Result<()> {
        self.recorder.submit(&self.gpu);
        self.norms.add_gradients(&self.gpu, trained, into).await?;
        self.adapter.add_gradients(&self.gpu, trained, into).await
    }
}
