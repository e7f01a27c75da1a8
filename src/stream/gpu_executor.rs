//! The GPU executor: resident chunks have buffers of their own, streamed ones pass through the ring. All that a forward needs is allocated
//! when the executor is made: decoding allocates nothing on the GPU.

mod experts;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::device::{AdapterKind, Device, Phase};
use crate::error::Result;
use crate::gpu::{self, Gpu, ObjectCounts, ParamsArena, Readback};
use crate::kernels::{attention, top_k};
use crate::model::Model;
use crate::plan::sizes::working_set;
use crate::plan::{Plan, UploadPath, WorkingBuffer, expert_shape, n_to_share};
use crate::stream::expert_cache::ExpertCache;
use crate::stream::gpu_buffers::Buffers;
use crate::stream::gpu_executor::experts::Chosen;
use crate::stream::gpu_forward::{ForwardDispatches, ForwardShape, Parts, PlacedDispatch};
use crate::stream::gpu_ring::{GpuSlot, Ring};
use crate::stream::gpu_submit::Submitter;
use crate::stream::host_experts::HostExperts;
use crate::stream::store::{caches_of, kept_ranges};
use crate::stream::uploader::{SlotMemory, UploadWorkers, Uploader, upload_workers_gone};
use crate::stream::{Batch, BlockCopy, Executor, Kept, KvBlocks, Logits, LogitsRequest, Store, Trace, batch, passed_on};
use crate::units::Bytes;

/// Shapes of a forward whose dispatches are kept: one for prompts, one for decoding.
const N_SHAPES: usize = 2;
/// Bytes of a cache that the queue takes at once.
const WRITE_BYTES: usize = 4 << 20;

/// Computes its share of a plan on one adapter.
pub struct GpuExecutor {
    device: Device,
    model: Arc<Model>,
    plan: Arc<Plan>,
    store: Arc<Store>,
    buffers: Buffers,
    /// Most recently used last.
    shapes: VecDeque<(ForwardDispatches, ParamsArena)>,
    /// Which forward is under way.
    forward: usize,
    submitter: Submitter,
    trace: Trace,
    /// Slots that are free once the adapter is done with what is recorded.
    computed_from: Vec<usize>,
    uploader: Option<Uploader<GpuSlot>>,
    ring: Option<Ring>,
    expert_cache: Option<ExpertCache>,
    /// What computes with experts that are missing in the cache and left to the host.
    host_experts: Option<HostExperts>,
    /// What the tokens take of the experts that come next, on its way to the host.
    chosen: Option<Chosen>,
    gpu: Arc<Gpu>,
}

impl GpuExecutor {
    /// Uploads what is resident on `device` and allocates the rest. `progress` gets the bytes of every resident chunk.
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
        // All buffers that are bound are allocated here and live as long as the executor.
        gpu.keep_bind_groups();
        let gpu = Arc::new(gpu);
        let submitter = Submitter::start(&gpu, device, &trace)?;
        let buffers = Buffers::load(&gpu, device, model, &plan, &store, progress).await?;
        let (mut uploader, mut ring) = (None, None);
        if let Some(ring_plan) = plan.ring(device) {
            let upload_workers = match (ring_plan.upload, gpu.spec.kind) {
                // Writing through the queue waits for nothing, so that the submitting thread may as well do it.
                (UploadPath::Written, _) => UploadWorkers::Caller,
                (_, Some(AdapterKind::Software)) => UploadWorkers::LowPriorityThreads,
                _ => UploadWorkers::Threads,
            };
            let (started, free) = Uploader::start(device, &store, &plan, &trace, upload_workers)?;
            uploader = Some(started);
            ring = Some(Ring::new(&gpu, ring_plan, free).await?);
        }
        let expert_cache = match plan.expert_cache(device) {
            Some(cache) => {
                let shapes = plan.cached_on(device).filter_map(|chunk| Some((chunk, expert_shape(&plan.chunks[chunk], model)?)));
                Some(ExpertCache::new(&gpu, device, cache, shapes, &trace).await?)
            }
            None => None,
        };
        let model = Arc::new(model.clone());
        let host_experts = match plan.expert_cache(device) {
            Some(cache) if cache.misses.go_to_host() => Some(HostExperts::new(&model, &plan, &store, plan.cached_on(device))?),
            _ => None,
        };
        let mut executor = GpuExecutor {
            device,
            model,
            plan,
            store,
            buffers,
            shapes: VecDeque::new(),
            forward: 0,
            submitter,
            trace: trace.clone(),
            computed_from: Vec::new(),
            uploader,
            ring,
            expert_cache,
            host_experts,
            chosen: None,
            gpu,
        };
        let begin_secs = trace.now();
        let n_kernels = executor.compile()?;
        tracing::debug!("{device}: {n_kernels} kernels ready after {:.0} ms", (trace.now() - begin_secs) * 1e3);
        if let Some(ring) = &executor.ring {
            ring.open(&executor.gpu);
            executor.submitter.answer();
        }
        executor.gpu.check()?;
        Ok(executor)
    }

    /// Makes the dispatches of a prompt and of decoding and compiles their kernels, several at a time. Some drivers finish that only when a
    /// kernel is first used, so each is used once, before the slots are mapped. Returns the number of kernels.
    fn compile(&mut self) -> Result<usize> {
        let n_rows = usize::from(self.plan.computes_head(self.device));
        for n_tokens in [self.plan.forward.n_tokens, 1] {
            let attention = attention::phase(n_tokens, 1);
            let n_positions = self.n_positions(attention, n_tokens);
            self.prepare(ForwardShape { n_tokens, n_rows, top_k: n_rows, attention, n_positions })?;
        }
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        let mut n_kernels = 0;
        for placed in self.shapes.iter().flat_map(|(made, _)| made.one_of_each_pipeline()) {
            placed.dispatch.encode_first_use(&mut pass, placed.params_offset);
            n_kernels += 1;
        }
        drop(pass);
        self.gpu.queue.submit([encoder.finish()]);
        self.gpu.keep_pipelines();
        Ok(n_kernels)
    }

    /// Most bytes that were ever allocated on the adapter at once.
    pub fn peak(&self) -> Bytes {
        self.gpu.ledger.total().peak
    }

    /// Most bytes of host memory that it ever held for experts that are left to the host.
    pub fn peak_on_host(&self) -> Bytes {
        self.host_experts.as_ref().map_or(Bytes::ZERO, HostExperts::peak)
    }

    /// The adapter that it computes on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Bind groups and pipelines that were made so far.
    pub fn object_counts(&self) -> ObjectCounts {
        self.gpu.object_counts()
    }

    /// The context length that dispatches are made for: those of a prompt are made anew where its context has doubled, those of decoding
    /// never.
    fn n_positions(&self, attention: Phase, n_positions: usize) -> usize {
        match attention {
            Phase::Prefill => n_positions.next_power_of_two().min(self.plan.ctx_size),
            Phase::Decode => self.plan.ctx_size,
        }
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
        let mut arena = arena.ok_or_else(|| self.gpu.error("no parameters are left for another shape of forward"))?;
        let (gpu, model, plan, store, buffers) = (&self.gpu, &self.model, &self.plan, &self.store, &self.buffers);
        let parts = Parts {
            gpu,
            device: self.device,
            model,
            plan,
            store,
            buffers,
            ring: self.ring.as_ref(),
            expert_cache: self.expert_cache.as_ref(),
        };
        match ForwardDispatches::new(parts, &mut arena, shape) {
            Ok(made) => self.shapes.push_back((made, arena)),
            Err(error) => {
                self.buffers.give_back_arena(arena);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Tokens of the forward that is under way.
    fn n_tokens(&self) -> usize {
        self.shapes.back().map_or(0, |(made, _)| made.shape.n_tokens)
    }

    fn record(&mut self, chunk: usize, slot: Option<usize>) -> Result<()> {
        let size_bytes = self.plan.chunks[chunk].size_bytes;
        if let (Some(ring), Some(slot)) = (&self.ring, slot) {
            ring.encode_copy(self.submitter.encoder(), slot, size_bytes.0);
        }
        let choice = self.shapes.back().and_then(|(made, _)| made.choice(chunk)).filter(|choice| !self.takes_whole(choice.cached));
        let n_before = choice.map_or(0, |choice| choice.n_before);
        if let Some(choice) = choice {
            self.dispatch(chunk, slot, |index, _| index < n_before)?;
            self.send_choice(choice.cached)?;
        }
        self.dispatch(chunk, slot, |index, _| index >= n_before)?;
        self.submitter.end_chunk(size_bytes);
        Ok(())
    }

    /// Records the dispatches of a chunk that `is_needed` says so of, which gets their numbers as well.
    fn dispatch(&mut self, chunk: usize, slot: Option<usize>, is_needed: impl Fn(usize, &PlacedDispatch) -> bool) -> Result<()> {
        let (made, _) = self.shapes.back().ok_or_else(|| self.gpu.error("a chunk was computed before its forward began"))?;
        let mut needed = made.dispatches(chunk, slot).iter().enumerate().filter(|(index, placed)| is_needed(*index, placed));
        needed.try_for_each(|(_, placed)| self.submitter.dispatch(placed, Some(chunk), self.forward))
    }

    /// Submits what is recorded, and frees the slots that it was the last to use.
    fn submit(&mut self) -> Result<()> {
        let (ring, gpu, computed_from) = (&self.ring, &self.gpu, &mut self.computed_from);
        self.submitter.submit(self.forward, || {
            let Some(ring) = ring else { return };
            computed_from.drain(..).for_each(|slot| ring.release(gpu, slot));
        })?;
        Ok(())
    }

    fn submit_if_due(&mut self) -> Result<()> {
        if self.submitter.is_due() { self.submit() } else { Ok(()) }
    }

    /// Submits what is recorded and brings the first `len` bytes of a working buffer, as they are then, to the host.
    async fn read(&mut self, name: WorkingBuffer, len: u64) -> Result<Vec<u8>> {
        self.read_all(&[(name, len)]).await
    }

    /// The same of several buffers, one behind the other.
    async fn read_all(&mut self, wanted: &[(WorkingBuffer, u64)]) -> Result<Vec<u8>> {
        let ranges = ranges_of(&self.buffers, &self.gpu, wanted)?;
        let readback = Readback::record_all(&self.gpu, self.submitter.encoder(), &ranges).await?;
        self.submit()?;
        let bytes = readback.bytes(&self.gpu).await?;
        self.gpu.check()?;
        Ok(bytes)
    }

    async fn logits(&mut self, batch: &Batch) -> Result<Vec<Logits>> {
        let width = self.model.output_width();
        let n_rows = batch.logits_for.len();
        match batch.logits_request {
            LogitsRequest::All => {
                let logits = WorkingBuffer::Value(self.model.logits);
                let bytes = self.read(logits, (n_rows * width * 4) as u64).await?;
                let values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
                Ok(values.chunks_exact(width).map(|row| Logits::All(row.to_vec())).collect())
            }
            LogitsRequest::TopK(k) => {
                let params = top_k::Params::new(n_rows as u32, width as u32, k as u32);
                let bytes = self.read(WorkingBuffer::TopK, params.candidates_bytes()).await?;
                let rows = top_k::merge(&params, &bytes).into_iter();
                Ok(rows.map(|row| Logits::Top(row.into_iter().map(|best| (best.token, best.logit)).collect())).collect())
            }
        }
    }
}

/// The first bytes of working buffers, as a readback wants them.
fn ranges_of<'a>(buffers: &'a Buffers, gpu: &Gpu, wanted: &[(WorkingBuffer, u64)]) -> Result<Vec<(&'a wgpu::Buffer, u64, u64)>> {
    wanted.iter().map(|&(name, len)| Ok((&**buffers.working(gpu, name)?, 0, len))).collect()
}

impl Executor for GpuExecutor {
    fn begin(&mut self, batch: &Batch, blocks: &KvBlocks, forward: usize) -> Result<()> {
        let computes_head = self.plan.computes_head(self.device);
        let top_k = if let LogitsRequest::TopK(k) = batch.logits_request { k } else { 0 };
        let (n_rows, top_k) = if computes_head { (batch.logits_for.len(), top_k) } else { (0, 0) };
        let attention = attention::phase(batch.tokens.len(), batch.n_runs());
        let n_positions = self.n_positions(attention, batch.n_positions());
        self.prepare(ForwardShape { n_tokens: batch.tokens.len(), n_rows, top_k, attention, n_positions })?;
        self.buffers.write(&self.gpu, WorkingBuffer::Tokens, bytemuck::cast_slice(&batch::places(batch, blocks)))?;
        if let Some(id) = self.model.lora_scales {
            let scales = self.store.lora_scales(&batch.tokens);
            self.buffers.write(&self.gpu, WorkingBuffer::Value(id), bytemuck::cast_slice(&scales))?;
        }
        for (table, angles) in self.model.rope_tables.iter().enumerate() {
            let cos_sin = batch::cos_sin(batch, angles, self.plan.ctx_size);
            self.buffers.write(&self.gpu, WorkingBuffer::CosSin { table }, bytemuck::cast_slice(&cos_sin))?;
        }
        if computes_head {
            self.buffers.write(&self.gpu, WorkingBuffer::SelectedRows, bytemuck::cast_slice(&batch.logits_for))?;
        }
        self.forward = forward;
        Ok(())
    }

    fn upload(&mut self, chunk: usize) -> Result<()> {
        self.uploader.as_mut().ok_or_else(upload_workers_gone)?.upload(chunk)
    }

    fn write_hidden(&mut self, hidden: &[f32]) -> Result<()> {
        for (id, rows) in passed_on(&self.model, self.n_tokens(), hidden) {
            self.buffers.write(&self.gpu, WorkingBuffer::Value(id), bytemuck::cast_slice(rows))?;
        }
        Ok(())
    }

    fn compute_resident(&mut self, chunk: usize) -> Result<()> {
        self.record(chunk, None)?;
        self.submit_if_due()
    }

    async fn compute_streamed(&mut self, chunk: usize) -> Result<()> {
        let slot = match self.uploader.as_mut().ok_or_else(upload_workers_gone)?.take(chunk)? {
            Some(slot) => slot,
            None => {
                // What is recorded keeps the GPU busy while the upload is awaited.
                self.submit()?;
                let uploader = self.uploader.as_mut().ok_or_else(upload_workers_gone)?;
                self.gpu.in_time(uploader.wait_for(chunk, self.forward)).await?
            }
        };
        self.computed_from.push(slot.index());
        self.record(chunk, Some(slot.index()))?;
        let may_wait = !self.submitter.is_idle() && self.computed_from.len() < n_to_share(self.ring.as_ref().map_or(1, Ring::n_slots));
        if may_wait && !self.submitter.is_due() { Ok(()) } else { self.submit() }
    }

    async fn compute_cached(&mut self, chunk: usize) -> Result<()> {
        self.compute_experts(chunk).await
    }

    fn flush(&mut self) -> Result<()> {
        self.submit()
    }

    async fn read_hidden(&mut self) -> Result<Vec<f32>> {
        let mut hidden = Vec::new();
        for id in self.model.passed_on().collect::<Vec<_>>() {
            let size = self.n_tokens() * self.model.value(id).width * 4;
            let bytes = self.read(WorkingBuffer::Value(id), size as u64).await?;
            hidden.extend(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes));
        }
        Ok(hidden)
    }

    async fn readback(&mut self, batch: &Batch) -> Result<Vec<Logits>> {
        if let Some(placed) = self.shapes.back().and_then(|(made, _)| made.top_k()) {
            self.submitter.dispatch(placed, None, self.forward)?;
        }
        self.logits(batch).await
    }

    fn copy_block(&mut self, copy: BlockCopy) -> Result<()> {
        let caches = caches_of(&self.model, &self.plan, self.device);
        self.buffers.copy_block(&self.gpu, &self.plan, &caches, copy);
        self.gpu.check()
    }

    fn kept(&self, layer: usize, sequence: (u32, &[u32]), n_positions: usize) -> Vec<(Kept, Range<u64>)> {
        kept_ranges(&self.model, &self.plan, self.device, layer, sequence, n_positions)
    }

    async fn read_kept(&mut self, layer: usize, ranges: &[(Kept, Range<u64>)]) -> Result<Vec<u8>> {
        // No more at once than the plan has room for.
        let planned = working_set(&self.model, self.plan.forward, self.plan.n_seqs, self.plan.role(self.device));
        let most = planned.iter().find(|(name, _)| *name == WorkingBuffer::Readback).map_or(256, |(_, bytes)| bytes.0.max(256));
        let mut pieces = ranges
            .iter()
            .flat_map(|(part, range)| range.clone().step_by(most as usize).map(move |begin| (*part, begin, most.min(range.end - begin))));
        let (mut bytes, mut next) = (Vec::new(), pieces.next());
        while next.is_some() {
            let (mut together, mut n_bytes) = (Vec::new(), 0);
            while let Some((part, begin, len)) = next.filter(|(.., len)| n_bytes + len <= most) {
                together.push((&**self.buffers.kept(&self.gpu, layer, part)?, begin, len));
                n_bytes += len;
                next = pieces.next();
            }
            bytes.extend(gpu::read_all(&self.gpu, &together).await?);
        }
        Ok(bytes)
    }

    fn write_kept(&mut self, layer: usize, ranges: &[(Kept, Range<u64>)], mut bytes: &[u8]) -> Result<()> {
        for (part, range) in ranges {
            let (own, behind) = bytes.split_at((range.end - range.start) as usize);
            let buffer = self.buffers.kept(&self.gpu, layer, *part)?;
            for (begin, some) in (range.start..).step_by(WRITE_BYTES).zip(own.chunks(WRITE_BYTES)) {
                self.gpu.queue.write_buffer(buffer, begin, some);
            }
            bytes = behind;
        }
        // What the queue copied of it is freed.
        self.gpu.queue.submit([]);
        self.gpu.wait(None)
    }

    async fn recover(&mut self, forward: usize) -> Result<()> {
        self.submitter.discard();
        self.chosen = None;
        self.gpu.recover()?;
        if let Some(cache) = &mut self.expert_cache {
            cache.recover()?;
        }
        let (Some(uploader), Some(ring)) = (&mut self.uploader, &self.ring) else { return Ok(()) };
        let (gpu, submitter) = (&self.gpu, &self.submitter);
        let release = |slot: usize| {
            ring.release(gpu, slot);
            submitter.answer();
        };
        self.computed_from.drain(..).for_each(release);
        self.gpu.in_time(uploader.drain(forward, |slot| release(slot.index()))).await
    }
}

impl Drop for GpuExecutor {
    /// The upload workers end before the ring whose memory they write to.
    fn drop(&mut self) {
        self.uploader = None;
        self.gpu.keep_pipelines();
    }
}
