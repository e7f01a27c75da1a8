//! The GPU executor: resident pieces in buffers of their own, streamed ones in the ring, everything a forward needs
//! allocated when it is made. Decoding allocates nothing on the GPU.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::Device;
use crate::error::Result;
use crate::gpu::{Gpu, ParamsArena};
use crate::kernels::{attention, top_k};
use crate::model::{Activation, Model};
use crate::plan::{Plan, WorkingBuffer};
use crate::stream::feeder::{Feeder, workers_gone};
use crate::stream::gpu_buffers::Buffers;
use crate::stream::gpu_forward::{ForwardDispatches, ForwardShape, Parts};
use crate::stream::gpu_ring::{MappedSlot, Poller, Ring};
use crate::stream::{Batch, Executor, Lane, Scores, Span, Store, Trace, Want, batch};
use crate::units::Bytes;

/// Shapes of a forward whose dispatches are kept: one for prompts, one for decoding.
const N_SHAPES: usize = 2;
/// Pieces recorded before they are submitted: few enough that the GPU starts early, many enough to hide a submit's cost.
const PIECES_PER_SUBMIT: usize = 8;

/// Computes its share of a plan on one adapter.
pub struct GpuExecutor {
    device: Device,
    model: Arc<Model>,
    plan: Arc<Plan>,
    store: Arc<Store>,
    trace: Trace,
    buffers: Buffers,
    inverse_frequencies: Vec<f32>,
    /// Most recently used last.
    shapes: VecDeque<(ForwardDispatches, ParamsArena)>,
    /// Which forward is under way.
    forward: usize,
    recording: Recording,
    last_compute_end: Arc<Mutex<f64>>,
    feeder: Option<Feeder<MappedSlot>>,
    ring: Option<Ring>,
    poller: Poller,
    gpu: Arc<Gpu>,
}

/// Commands that are recorded but not yet submitted.
#[derive(Default)]
struct Recording {
    encoder: Option<wgpu::CommandEncoder>,
    pieces: Vec<usize>,
}

impl GpuExecutor {
    /// Uploads what is resident on `device` and allocates the rest. `progress` is told of every resident piece.
    ///
    /// # Errors
    /// Those of reading and of the adapter; [`crate::error::Error::DoesNotFit`] where an allocation would break the budget.
    pub async fn new(
        gpu: Gpu,
        device: Device,
        model: &Model,
        plan: Arc<Plan>,
        store: Arc<Store>,
        trace: Trace,
        progress: &(dyn Fn(Bytes) + Sync),
    ) -> Result<GpuExecutor> {
        let gpu = Arc::new(gpu);
        let clock = trace.clone();
        let poller = Poller::start(&gpu, move || clock.now())?;
        let buffers = Buffers::load(&gpu, device, model, &plan, &store, progress).await?;
        let (mut feeder, mut ring) = (None, None);
        if let Some(ring_plan) = plan.ring(device) {
            let (started, free) = Feeder::start(device, &store, &plan, &trace)?;
            feeder = Some(started);
            ring = Some(Ring::new(&gpu, ring_plan, free).await?);
            // Mapping is answered while a submission is waited for.
            poller.watch(gpu.queue.submit([]), |_| {});
        }
        gpu.check()?;
        Ok(GpuExecutor {
            device,
            inverse_frequencies: model.config.rope.inverse_frequencies(model.config.head_size),
            model: Arc::new(model.clone()),
            plan,
            store,
            trace,
            buffers,
            shapes: VecDeque::new(),
            forward: 0,
            recording: Recording::default(),
            last_compute_end: Arc::default(),
            feeder,
            ring,
            poller,
            gpu,
        })
    }

    /// Most bytes that were ever allocated on the adapter at once.
    pub fn peak(&self) -> Bytes {
        self.gpu.ledger.total().peak
    }

    /// Makes the dispatches of this batch's shape current.
    fn prepare(&mut self, shape: ForwardShape) -> Result<()> {
        if let Some(index) = self.shapes.iter().position(|(made, _)| made.shape == shape) {
            let made = self.shapes.remove(index);
            self.shapes.extend(made);
            return Ok(());
        }
        // The buffers of a dropped shape live on until the GPU is done with them; wgpu sees to that.
        let is_full = self.shapes.len() >= N_SHAPES;
        let arena = if is_full { self.shapes.pop_front().map(|(_, arena)| arena) } else { self.buffers.take_arena() };
        let mut arena = arena.ok_or_else(|| self.gpu.fault("no parameters are left for another shape of forward"))?;
        let (gpu, model, plan, store, buffers) = (&self.gpu, &self.model, &self.plan, &self.store, &self.buffers);
        let parts = Parts { gpu, device: self.device, model, plan, store, buffers, ring: self.ring.as_ref() };
        match ForwardDispatches::new(parts, &mut arena, shape) {
            Ok(made) => self.shapes.push_back((made, arena)),
            Err(error) => {
                self.buffers.give_back_arena(arena);
                return Err(error);
            }
        }
        Ok(())
    }

    fn record(&mut self, piece: usize, slot: Option<usize>) -> Result<()> {
        let (made, _) = self.shapes.back().ok_or_else(|| self.gpu.fault("a piece was computed before its forward began"))?;
        let encoder = self.recording.encoder.get_or_insert_with(|| self.gpu.device.create_command_encoder(&Default::default()));
        if let (Some(ring), Some(slot)) = (&self.ring, slot) {
            ring.encode_copy(encoder, slot, self.plan.pieces[piece].size_bytes.0);
        }
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for (dispatch, params_offset) in made.dispatches(piece, slot) {
            dispatch.encode(&mut pass, *params_offset);
        }
        drop(pass);
        self.recording.pieces.push(piece);
        Ok(())
    }

    /// Submits what is recorded; its span is added once the GPU is done with it. `freed` is a slot that it is the last to use.
    fn submit(&mut self, freed: Option<usize>) -> Result<()> {
        let Some(encoder) = self.recording.encoder.take() else { return Ok(()) };
        let pieces = std::mem::take(&mut self.recording.pieces);
        let submitted_secs = self.trace.now();
        let submission = self.gpu.queue.submit([encoder.finish()]);
        self.gpu.check()?;
        if let (Some(ring), Some(slot)) = (&self.ring, freed) {
            // Asked before the submission is waited for: waiting is what answers it.
            ring.release(&self.gpu, slot);
        }
        let (trace, device, forward, last_end) = (self.trace.clone(), self.device, self.forward, Arc::clone(&self.last_compute_end));
        let size_bytes = pieces.iter().map(|&piece| self.plan.pieces[piece].size_bytes).sum();
        let piece = pieces.last().copied();
        self.poller.watch(submission, move |end_secs| {
            // The queue runs submissions one after the other: this one began when the one before it ended.
            let mut last_end = last_end.lock().unwrap_or_else(PoisonError::into_inner);
            let start_secs = submitted_secs.max(*last_end);
            *last_end = end_secs;
            trace.add(Span { lane: Lane::Compute, device, piece, forward, start_secs, end_secs, size_bytes });
        });
        Ok(())
    }

    async fn scores(&mut self, batch: &Batch) -> Result<Vec<Scores>> {
        let vocab_size = self.model.config.vocab_size;
        let n_rows = batch.logits_for.len();
        match batch.want {
            Want::Logits => {
                let logits = self.buffers.working(&self.gpu, WorkingBuffer::Activation(Activation::Logits))?;
                let bytes = crate::gpu::read(&self.gpu, logits, 0, (n_rows * vocab_size * 4) as u64).await?;
                let values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
                Ok(values.chunks_exact(vocab_size).map(|row| Scores::All(row.to_vec())).collect())
            }
            Want::TopK(k) => {
                let params = top_k::Params::new(n_rows as u32, vocab_size as u32, k as u32);
                let candidates = self.buffers.working(&self.gpu, WorkingBuffer::TopK)?;
                let bytes = crate::gpu::read(&self.gpu, candidates, 0, params.candidates_bytes()).await?;
                let rows = top_k::merge(&params, &bytes).into_iter();
                Ok(rows.map(|row| Scores::Top(row.into_iter().map(|best| (best.token, best.logit)).collect())).collect())
            }
        }
    }
}

impl Executor for GpuExecutor {
    fn begin(&mut self, batch: &Batch, forward: usize) -> Result<()> {
        let computes_head = self.plan.role(self.device).computes_head;
        let top_k = if let Want::TopK(k) = batch.want { k } else { 0 };
        let (n_rows, top_k) = if computes_head { (batch.logits_for.len(), top_k) } else { (0, 0) };
        let attention = attention::token_count(batch.tokens.len(), batch.n_runs());
        self.prepare(ForwardShape { n_tokens: batch.tokens.len(), n_rows, top_k, attention })?;
        let tokens: Vec<[u32; 4]> = batch.tokens.iter().map(|token| [token.sequence, token.position, token.position + 1, 0]).collect();
        let cos_sin = batch::cos_sin(batch, &self.inverse_frequencies);
        self.buffers.write(&self.gpu, WorkingBuffer::Tokens, bytemuck::cast_slice(&tokens))?;
        self.buffers.write(&self.gpu, WorkingBuffer::CosSin, bytemuck::cast_slice(&cos_sin))?;
        if computes_head {
            self.buffers.write(&self.gpu, WorkingBuffer::PickedRows, bytemuck::cast_slice(&batch.logits_for))?;
        }
        self.forward = forward;
        Ok(())
    }

    fn upload(&mut self, piece: usize) -> Result<()> {
        self.feeder.as_mut().ok_or_else(workers_gone)?.upload(piece)
    }

    fn write_hidden(&mut self, hidden: &[f32]) -> Result<()> {
        self.buffers.write(&self.gpu, WorkingBuffer::Activation(Activation::Hidden), bytemuck::cast_slice(hidden))
    }

    fn compute_resident(&mut self, piece: usize) -> Result<()> {
        self.record(piece, None)?;
        if self.recording.pieces.len() >= PIECES_PER_SUBMIT {
            self.submit(None)?;
        }
        Ok(())
    }

    async fn compute_streamed(&mut self, piece: usize) -> Result<()> {
        let slot = match self.feeder.as_mut().ok_or_else(workers_gone)?.take(piece)? {
            Some(slot) => slot,
            None => {
                // What is recorded keeps the GPU busy while the upload is awaited.
                self.submit(None)?;
                let feeder = self.feeder.as_mut().ok_or_else(workers_gone)?;
                feeder.wait_for(piece, self.forward).await.map_err(|error| self.gpu.check().err().unwrap_or(error))?
            }
        };
        self.record(piece, Some(slot.index))?;
        self.submit(Some(slot.index))
    }

    fn flush(&mut self) -> Result<()> {
        self.submit(None)
    }

    async fn read_hidden(&mut self) -> Result<Vec<f32>> {
        self.submit(None)?;
        let n_tokens = self.shapes.back().map_or(0, |(made, _)| made.shape.n_tokens);
        let hidden = self.buffers.working(&self.gpu, WorkingBuffer::Activation(Activation::Hidden))?;
        let bytes = crate::gpu::read(&self.gpu, hidden, 0, (n_tokens * self.model.config.hidden_size * 4) as u64).await?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    async fn readback(&mut self, batch: &Batch) -> Result<Vec<Scores>> {
        if let Some((dispatch, params_offset)) = self.shapes.back().and_then(|(made, _)| made.top_k()) {
            let encoder = self.recording.encoder.get_or_insert_with(|| self.gpu.device.create_command_encoder(&Default::default()));
            let mut pass = encoder.begin_compute_pass(&Default::default());
            dispatch.encode(&mut pass, *params_offset);
        }
        self.submit(None)?;
        let scores = self.scores(batch).await?;
        self.gpu.check()?;
        Ok(scores)
    }
}

impl Drop for GpuExecutor {
    /// The workers end before the ring whose memory they write to.
    fn drop(&mut self) {
        self.feeder = None;
    }
}
