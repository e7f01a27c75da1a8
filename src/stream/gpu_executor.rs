//! The GPU executor: resident pieces in buffers of their own, streamed ones in the ring, everything a forward needs
//! allocated when it is made. Decoding allocates nothing on the GPU.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use futures_channel::oneshot;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernels::top_k;
use crate::model::{Activation, Model};
use crate::plan::{Plan, WorkingBuffer};
use crate::stream::feeder::{Feeder, stopped_midway, workers_gone};
use crate::stream::gpu_buffers::Buffers;
use crate::stream::gpu_forward::{ForwardShape, Prepared};
use crate::stream::gpu_ring::{MappedSlot, Poller, Ring};
use crate::stream::{Batch, Executor, Lane, Scores, Span, Store, Trace, Want, batch};
use crate::units::Bytes;

/// Shapes of a forward whose dispatches are kept: one for prompts, one for decoding.
const N_SHAPES: usize = 2;
/// Pieces recorded before they are submitted: few enough that the GPU starts early, many enough to hide a submit's cost.
const PIECES_PER_SUBMIT: usize = 8;

/// Computes on one adapter.
pub struct GpuExecutor {
    model: Arc<Model>,
    plan: Arc<Plan>,
    store: Arc<Store>,
    trace: Trace,
    buffers: Buffers,
    inverse_frequencies: Vec<f32>,
    /// Most recently used last.
    shapes: VecDeque<Prepared>,
    /// Pieces on their way, oldest first.
    under_way: VecDeque<(usize, oneshot::Receiver<Result<MappedSlot>>)>,
    /// Pieces that stream in one forward, at least 1.
    n_streamed: usize,
    n_uploads_begun: usize,
    n_forwards: usize,
    /// Set while a forward is under way: one that finds it set begins where another stopped.
    is_midway: bool,
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
    /// Uploads what is resident and allocates the rest. `progress` is told of every resident piece.
    ///
    /// # Errors
    /// Those of reading and of the adapter; [`crate::error::Error::DoesNotFit`] where an allocation would break the budget.
    pub async fn new(
        gpu: Gpu,
        model: &Model,
        plan: Arc<Plan>,
        store: Arc<Store>,
        trace: Trace,
        progress: &(dyn Fn(Bytes) + Sync),
    ) -> Result<GpuExecutor> {
        let gpu = Arc::new(gpu);
        let clock = trace.clone();
        let poller = Poller::start(&gpu, move || clock.now())?;
        let buffers = Buffers::load(&gpu, model, &plan, &store, progress).await?;
        let (mut feeder, mut ring) = (None, None);
        if let Some(ring_plan) = &plan.ring {
            let (started, free) = Feeder::start(&store, &plan, &trace)?;
            feeder = Some(started);
            ring = Some(Ring::new(&gpu, ring_plan, free).await?);
            // Mapping is answered while a submission is waited for.
            poller.watch(gpu.queue.submit([]), |_| {});
        }
        gpu.check()?;
        let n_streamed = plan.streamed_pieces().count().max(1);
        Ok(GpuExecutor {
            inverse_frequencies: model.config.rope.inverse_frequencies(model.config.head_size),
            model: Arc::new(model.clone()),
            plan,
            store,
            trace,
            buffers,
            shapes: VecDeque::new(),
            under_way: VecDeque::new(),
            n_streamed,
            n_uploads_begun: 0,
            n_forwards: 0,
            is_midway: false,
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
        match self.shapes.iter().position(|prepared| prepared.shape == shape) {
            Some(index) => {
                if let Some(prepared) = self.shapes.remove(index) {
                    self.shapes.push_back(prepared);
                }
            }
            None => {
                // The buffers of a dropped shape live on until the GPU is done with them; wgpu sees to that.
                let arena =
                    if self.shapes.len() < N_SHAPES { self.buffers.take_arena() } else { self.shapes.pop_front().map(|old| old.arena) };
                let arena = arena.ok_or_else(|| self.gpu.fault("no parameters are left for another shape of forward"))?;
                let ring = self.ring.as_ref();
                let prepared = Prepared::new(&self.gpu, &self.model, &self.plan, &self.store, &self.buffers, ring, arena, shape)?;
                self.shapes.push_back(prepared);
            }
        }
        Ok(())
    }

    fn record(&mut self, piece: usize, slot: Option<usize>) -> Result<()> {
        let prepared = self.shapes.back().ok_or_else(|| self.gpu.fault("a piece was computed before its forward began"))?;
        let encoder = self.recording.encoder.get_or_insert_with(|| self.gpu.device.create_command_encoder(&Default::default()));
        if let (Some(ring), Some(slot)) = (&self.ring, slot) {
            ring.encode_copy(encoder, slot, self.plan.pieces[piece].size_bytes.0);
        }
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for (dispatch, params_offset) in prepared.dispatches(piece, slot) {
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
        let (trace, forward, last_end) = (self.trace.clone(), self.n_forwards, Arc::clone(&self.last_compute_end));
        let size_bytes = pieces.iter().map(|&piece| self.plan.pieces[piece].size_bytes).sum();
        let piece = pieces.last().copied();
        self.poller.watch(submission, move |end_secs| {
            // The queue runs submissions one after the other: this one began when the one before it ended.
            let mut last_end = last_end.lock().unwrap_or_else(PoisonError::into_inner);
            let start_secs = submitted_secs.max(*last_end);
            *last_end = end_secs;
            trace.add(Span { lane: Lane::Compute, piece, forward, start_secs, end_secs, size_bytes });
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
    type Output = Vec<Scores>;

    fn embed(&mut self, batch: &Batch) -> Result<()> {
        if self.is_midway {
            return Err(stopped_midway());
        }
        let want_k = match batch.want {
            Want::Logits => 0,
            Want::TopK(k) => k,
        };
        self.prepare(ForwardShape { n_tokens: batch.tokens.len(), n_rows: batch.logits_for.len(), top_k: want_k })?;
        let mut hidden = vec![0.0f32; batch.tokens.len() * self.model.config.hidden_size]; // [n_tokens, hidden_size]
        self.store.embed(batch.tokens.iter().map(|token| token.token), &mut hidden)?;
        let tokens: Vec<[u32; 4]> = batch.tokens.iter().map(|token| [token.sequence, token.position, token.position + 1, 0]).collect();
        let cos_sin = batch::cos_sin(batch, &self.inverse_frequencies);
        self.buffers.write(&self.gpu, WorkingBuffer::Activation(Activation::Hidden), bytemuck::cast_slice(&hidden))?;
        self.buffers.write(&self.gpu, WorkingBuffer::Tokens, bytemuck::cast_slice(&tokens))?;
        self.buffers.write(&self.gpu, WorkingBuffer::CosSin, bytemuck::cast_slice(&cos_sin))?;
        self.buffers.write(&self.gpu, WorkingBuffer::PickedRows, bytemuck::cast_slice(&batch.logits_for))?;
        self.is_midway = true;
        Ok(())
    }

    fn upload(&mut self, piece: usize) -> Result<()> {
        let feeder = self.feeder.as_ref().ok_or_else(workers_gone)?;
        self.under_way.push_back((piece, feeder.begin(piece, self.n_uploads_begun / self.n_streamed)?));
        self.n_uploads_begun += 1;
        Ok(())
    }

    fn compute_resident(&mut self, piece: usize) -> Result<()> {
        self.record(piece, None)?;
        if self.recording.pieces.len() >= PIECES_PER_SUBMIT {
            self.submit(None)?;
        }
        Ok(())
    }

    async fn compute_streamed(&mut self, piece: usize) -> Result<()> {
        let (due, mut filled) = self.under_way.pop_front().ok_or_else(workers_gone)?;
        if due != piece {
            return Err(stopped_midway());
        }
        let slot = match filled.try_recv() {
            Ok(Some(slot)) => slot?,
            _ => {
                // What is recorded keeps the GPU busy while the upload is awaited.
                self.submit(None)?;
                let start_secs = self.trace.now();
                let slot = filled.await.map_err(|_| self.gpu.check().err().unwrap_or_else(workers_gone))??;
                let end_secs = self.trace.now();
                let forward = self.n_forwards;
                self.trace.add(Span { lane: Lane::Stall, piece: Some(piece), forward, start_secs, end_secs, size_bytes: Bytes::ZERO });
                slot
            }
        };
        self.record(piece, Some(slot.index))?;
        self.submit(Some(slot.index))
    }

    async fn readback(&mut self, batch: &Batch) -> Result<Vec<Scores>> {
        if let Some(dispatch) = self.shapes.back().and_then(Prepared::top_k) {
            let encoder = self.recording.encoder.get_or_insert_with(|| self.gpu.device.create_command_encoder(&Default::default()));
            let mut pass = encoder.begin_compute_pass(&Default::default());
            dispatch.0.encode(&mut pass, dispatch.1);
        }
        self.submit(None)?;
        let start_secs = self.trace.now();
        let scores = self.scores(batch).await?;
        let end_secs = self.trace.now();
        let (forward, size_bytes) = (self.n_forwards, Bytes::ZERO);
        self.trace.add(Span { lane: Lane::Readback, piece: None, forward, start_secs, end_secs, size_bytes });
        self.n_forwards += 1;
        self.gpu.check()?;
        self.is_midway = false;
        Ok(scores)
    }
}

impl Drop for GpuExecutor {
    /// The workers end before the ring whose memory they write to.
    fn drop(&mut self) {
        self.under_way.clear();
        self.feeder = None;
    }
}
