//! The GPU executor's buffers besides the ring: resident chunks, vectors, KV caches and states, working buffers and parameters. All of them are
//! allocated here, once.

use std::collections::HashMap;

use futures_channel::oneshot;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use crate::device::Device;
use crate::error::Result;
use crate::gpu::{Buffer, Gpu, ParamsArena, Purpose};
use crate::model::{Model, StateKind, StoreKv};
use crate::plan::sizes::{KvCache, N_PARAMS_SETS, kv_buffer_bytes, position_ranges, state_buffer_bytes, working_set};
use crate::plan::{Plan, WorkingBuffer};
use crate::platform;
use crate::stream::store::{caches_of, states_of, vectors_of};
use crate::stream::{BlockCopy, Kept, Store};
use crate::units::Bytes;
use crate::weights::TensorId;

/// Bytes that one step of loading moves: large enough for a link's full speed, small compared with any budget.
const LOAD_STEP_BYTES: u64 = 4 << 20;
/// Steps that are read at once.
const LOAD_STEPS_AT_ONCE: usize = 4;

/// The buffers that exist as long as the executor.
pub(super) struct Buffers {
    /// Per chunk; `None` where it streams, or another device computes it.
    resident: Vec<Option<Buffer>>,
    vectors: HashMap<TensorId, Buffer>,
    /// K and V of each layer whose attention is computed here: `[n_blocks, n_kv_heads, KV_BLOCK_POSITIONS, padded head_size]`; no V where K is V as well.
    kv_caches: Vec<Option<(Buffer, Option<Buffer>)>>,
    /// What layers keep of each sequence besides: `[n_seqs, …]`.
    states: HashMap<(usize, StateKind), Buffer>,
    working: Vec<(WorkingBuffer, Buffer)>,
    arenas: Vec<ParamsArena>,
}

/// Consecutive bytes of a tensor and where they go.
struct LoadStep {
    chunk: usize,
    block_offset: u64,
    tensor: TensorId,
    tensor_offset: u64,
    len: u64,
}

impl Buffers {
    /// Allocates what `device` needs for its units, and uploads what is resident.
    pub(super) async fn load(
        gpu: &Gpu,
        device: Device,
        model: &Model,
        plan: &Plan,
        store: &Store,
        progress: &(dyn Fn(Bytes) + Sync),
    ) -> Result<Buffers> {
        let resident = load_resident(gpu, device, plan, store, progress).await?;
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let mut vectors = HashMap::new();
        for id in vectors_of(model, plan, device) {
            let values = store.checkpoint().vector(id)?;
            let size = Bytes(values.len() as u64 * 4).align_up(256);
            let buffer = gpu.buffer(&store.checkpoint().catalog[id].name, size, storage, Purpose::Weights).await?;
            gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&values));
            vectors.insert(id, buffer);
        }
        let mut kv_caches = Vec::with_capacity(model.config.n_layers);
        for (layer, cache) in caches_of(model, plan, device).into_iter().enumerate() {
            let Some(cache) = cache else {
                kv_caches.push(None);
                continue;
            };
            let [keys_bytes, values_bytes] = plan.kv_caches_of(device).map(|kept| kv_buffer_bytes(cache, kept, plan.n_kv_blocks()));
            let usage = storage | wgpu::BufferUsages::COPY_SRC;
            let keys = gpu.buffer(&format!("keys of layer {layer}"), keys_bytes, usage, Purpose::KvCache).await?;
            let values = match cache.value {
                Some(_) => Some(gpu.buffer(&format!("values of layer {layer}"), values_bytes, usage, Purpose::KvCache).await?),
                None => None,
            };
            kv_caches.push(Some((keys, values)));
        }
        let mut states = HashMap::new();
        for state in states_of(model, plan, device) {
            let (label, size) = (format!("state of layer {}", state.layer), state_buffer_bytes(&state, plan.n_seqs));
            let usage = storage | wgpu::BufferUsages::COPY_SRC;
            states.insert((state.layer, state.kind), gpu.buffer(&label, size, usage, Purpose::KvCache).await?);
        }
        let mut working = Vec::new();
        for (name, size) in working_set(model, plan.forward, plan.n_seqs, plan.role(device)) {
            // The readback buffer is made by the readback itself.
            if name != WorkingBuffer::Readback {
                let usage = storage | wgpu::BufferUsages::COPY_SRC;
                let label = match name {
                    WorkingBuffer::Value(id) => model.value(id).name.to_owned(),
                    other => format!("{other:?}"),
                };
                working.push((name, gpu.buffer(&label, size, usage, Purpose::Activations).await?));
            }
        }
        let arenas = ParamsArena::several(gpu, N_PARAMS_SETS as usize, plan.n_dispatches(device)).await?;
        Ok(Buffers { resident, vectors, kv_caches, states, working, arenas })
    }

    /// A set of parameters that nobody uses yet.
    pub(super) fn take_arena(&mut self) -> Option<ParamsArena> {
        self.arenas.pop()
    }

    /// Returns a set of parameters that was not used after all.
    pub(super) fn give_back_arena(&mut self, arena: ParamsArena) {
        self.arenas.push(arena);
    }

    /// The buffer of a resident chunk.
    pub(super) fn resident(&self, chunk: usize) -> Option<&Buffer> {
        self.resident[chunk].as_ref()
    }

    /// A norm weight or a bias.
    pub(super) fn vector(&self, id: TensorId) -> Option<&Buffer> {
        self.vectors.get(&id)
    }

    /// K of a layer, and V where it is not the same.
    pub(super) fn kv_cache(&self, gpu: &Gpu, layer: usize) -> Result<(&Buffer, Option<&Buffer>)> {
        let cache = self.kv_caches.get(layer).and_then(Option::as_ref);
        cache.map(|(keys, values)| (keys, values.as_ref())).ok_or_else(|| gpu.error(format!("there is no cache for layer {layer}")))
    }

    /// A state of a layer.
    pub(super) fn state(&self, gpu: &Gpu, layer: usize, kind: StateKind) -> Result<&Buffer> {
        self.states.get(&(layer, kind)).ok_or_else(|| gpu.error(format!("there is no state for layer {layer}")))
    }

    /// The buffer of a part of what is kept of the sequences in a layer.
    pub(super) fn kept(&self, gpu: &Gpu, layer: usize, part: Kept) -> Result<&Buffer> {
        let nothing = || gpu.error(format!("there are no values for layer {layer}"));
        match part {
            Kept::Keys => Ok(self.kv_cache(gpu, layer)?.0),
            Kept::Values => self.kv_cache(gpu, layer)?.1.ok_or_else(nothing),
            Kept::State(kind) => self.state(gpu, layer, kind),
        }
    }

    /// Copies positions of a block to another one; `caches` are those of each layer. They pass through a working buffer, since no buffer can
    /// be copied to itself.
    pub(super) fn copy_block(&self, gpu: &Gpu, plan: &Plan, caches: &[Option<&StoreKv>], copy: BlockCopy) {
        let n_blocks = plan.n_kv_blocks();
        let Some((_, through)) = self.working.iter().max_by_key(|(_, buffer)| buffer.size()) else { return };
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("copy of a block") });
        for (cache, buffers) in caches.iter().zip(&self.kv_caches) {
            let (Some(cache), Some((keys, values))) = (cache, buffers) else { continue };
            let kept = KvCache::both(plan.kv_dtype, false);
            for (buffer, kept) in [keys].into_iter().chain(values).zip(kept) {
                let [from, to] = [[copy.from], [copy.to]];
                let [sources, targets] = [&from, &to].map(|block| position_ranges(cache, kept, n_blocks, block, copy.n_positions));
                for (source, target) in sources.zip(targets.map(|range| range.start)) {
                    for begin in source.clone().step_by(through.size() as usize) {
                        let len = through.size().min(source.end - begin);
                        encoder.copy_buffer_to_buffer(buffer, begin, through, 0, len);
                        encoder.copy_buffer_to_buffer(through, 0, buffer, target + begin - source.start, len);
                    }
                }
            }
        }
        gpu.queue.submit([encoder.finish()]);
    }

    /// Writes the beginning of a working buffer; the queue keeps the order.
    pub(super) fn write(&self, gpu: &Gpu, name: WorkingBuffer, bytes: &[u8]) -> Result<()> {
        self.write_at(gpu, name, 0, bytes)
    }

    /// Writes behind the first `begin` bytes of a working buffer; both lengths are multiples of 4.
    pub(super) fn write_at(&self, gpu: &Gpu, name: WorkingBuffer, begin: u64, bytes: &[u8]) -> Result<()> {
        gpu.queue.write_buffer(self.working(gpu, name)?, begin, bytes);
        Ok(())
    }

    /// A working buffer.
    pub(super) fn working(&self, gpu: &Gpu, name: WorkingBuffer) -> Result<&Buffer> {
        let found = self.working.iter().find(|(candidate, _)| *candidate == name);
        found.map(|(_, buffer)| buffer).ok_or_else(|| gpu.error(format!("there is no buffer for {name:?}")))
    }
}

async fn load_resident(
    gpu: &Gpu,
    device: Device,
    plan: &Plan,
    store: &Store,
    progress: &(dyn Fn(Bytes) + Sync),
) -> Result<Vec<Option<Buffer>>> {
    // Staging takes only the room of what is allocated later, so that it never breaks the budget.
    let room = plan.device(device).map_or(0, |device| device.used.total().saturating_sub(device.used.weights).0);
    let step_bytes = LOAD_STEP_BYTES.min(room / 256 * 256).max(256);
    let mut resident = Vec::with_capacity(plan.chunks.len());
    let mut steps = Vec::new();
    for (index, chunk) in plan.chunks.iter().enumerate() {
        if chunk.stored_on != device || chunk.slices.is_empty() {
            resident.push(None);
            continue;
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        resident.push(Some(gpu.buffer(&plan.chunk_name(index), chunk.size_bytes, usage, Purpose::Weights).await?));
        for slice in &chunk.slices {
            let begin = slice.first_row * store.checkpoint().catalog[slice.tensor].row_bytes();
            steps.extend((0..slice.size_bytes).step_by(step_bytes as usize).map(|done| LoadStep {
                chunk: index,
                block_offset: slice.offset + done,
                tensor: slice.tensor,
                tensor_offset: begin + done,
                len: step_bytes.min(slice.size_bytes - done),
            }));
        }
    }
    let Some(largest) = steps.iter().map(|step| step.len).max() else { return Ok(resident) };
    let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
    let staging = gpu.buffer("load staging", Bytes(largest).align_up(256), usage, Purpose::Staging).await?;
    for group in steps.chunks(LOAD_STEPS_AT_ONCE) {
        let read = |step: &LoadStep| {
            let mut bytes = platform::zeroed(step.len as usize, "a part of the weights")?;
            store.checkpoint().read(step.tensor, step.tensor_offset, &mut bytes)?;
            Ok(bytes)
        };
        let parts: Vec<Vec<u8>> = group.par_iter().map(read).collect::<Result<_>>()?;
        for (step, bytes) in group.iter().zip(&parts) {
            if let Some(block) = &resident[step.chunk] {
                copy_through(gpu, &staging, bytes, block, step.block_offset).await?;
            }
            progress(Bytes(step.len));
        }
    }
    gpu.wait(None)?;
    Ok(resident)
}

/// Brings `bytes` to `offset` of `target` through `staging`.
async fn copy_through(gpu: &Gpu, staging: &Buffer, bytes: &[u8], target: &Buffer, offset: u64) -> Result<()> {
    let (sender, receiver) = oneshot::channel();
    staging.slice(..).map_async(wgpu::MapMode::Write, move |mapped| drop(sender.send(mapped)));
    gpu.wait(None)?;
    let mapped = receiver.await.map_err(|_| gpu.error("mapping the load staging was never answered"))?;
    mapped.map_err(|reason| gpu.error(format!("cannot map the load staging: {reason}")))?;
    // Copies are multiples of 4 bytes; blocks are padded to 256, so the tail stays inside the block.
    let padded = (bytes.len() as u64).next_multiple_of(4);
    {
        let view = staging.slice(..padded).get_mapped_range_mut();
        let mut view = view.map_err(|reason| gpu.error(format!("cannot write to the load staging: {reason}")))?;
        view.slice(..bytes.len()).copy_from_slice(bytes);
    }
    staging.unmap();
    let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("load") });
    encoder.copy_buffer_to_buffer(staging, 0, target, offset, padded);
    gpu.queue.submit([encoder.finish()]);
    Ok(())
}
