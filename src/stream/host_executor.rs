//! The host executor: the same steps on the CPU. It is the reference for the GPU executor, it runs where there is no adapter, and it
//! computes the layers that a plan leaves to the host beside one.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::host;
use crate::kernels::{expert_matmul, matmul};
use crate::model::{Model, Op, State, StoreKv};
use crate::plan::sizes::{KvCache, expert_rows_bytes, kv_buffer_bytes, packed_input_bytes, position_ranges, state_buffer_bytes};
use crate::plan::{CacheDType, Plan, Slice, Work};
use crate::platform::{self, Pages};
use crate::stream::host_values::{FusedProducts, Product, Values};
use crate::stream::store::{caches_of, kept_ranges, states_of, vectors_of};
use crate::stream::uploader::{SlotMemory, Slots, UploadWorkers, Uploader, upload_workers_gone};
use crate::stream::{Batch, BlockCopy, Executor, Kept, KvBlocks, Lane, Logits, LogitsRequest, Span, Store, Trace, passed_on};
use crate::units::Bytes;
use crate::weights::TensorId;

/// Computes its share of a plan on the host's cores.
pub struct HostExecutor {
    model: Arc<Model>,
    plan: Arc<Plan>,
    store: Arc<Store>,
    trace: Trace,
    values: Values,
    vectors: HashMap<TensorId, Vec<f32>>,
    uploader: Option<(Uploader<HostSlot>, Slots<HostSlot>)>,
    /// Which forward is under way.
    forward: usize,
    activations_peak: Bytes,
}

/// The device of a plan that this executor is.
const DEVICE: Device = Device::Cpu;

/// A slot of the host's ring, into which streamed weights are read from disk.
struct HostSlot {
    index: usize,
    memory: Pages,
}

impl SlotMemory for HostSlot {
    fn index(&self) -> usize {
        self.index
    }

    fn memory(&mut self) -> Option<&mut [u8]> {
        Some(&mut self.memory)
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.memory[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

impl HostExecutor {
    /// Allocates caches and slots and reads the vectors; `store` has the chunks.
    ///
    /// # Errors
    /// Those of reading.
    pub fn new(model: &Model, plan: Arc<Plan>, store: Arc<Store>, trace: Trace) -> Result<HostExecutor> {
        let mut vectors = HashMap::new();
        for id in vectors_of(model, &plan, DEVICE) {
            vectors.insert(id, store.checkpoint().vector(id)?);
        }
        let [keys, values] = plan.kv_caches_of(DEVICE);
        let cache = |layer: Option<&StoreKv>, kept: KvCache| -> Result<host::KvCache> {
            let n_bytes = layer.map_or(0, |layer| kv_buffer_bytes(layer, kept, plan.n_kv_blocks()).0 as usize);
            let what = "keys and values of a layer";
            let (KvCache::Host(dtype) | KvCache::Gpu(dtype)) = kept;
            let blocks = match dtype {
                CacheDType::Q8_0 => Some(DType::Q8_0),
                CacheDType::Q4_0 => Some(DType::Q4_0),
                CacheDType::F32 | CacheDType::F16 => None,
            };
            Ok(match blocks {
                Some(dtype) => host::KvCache::Blocks(dtype, platform::zeroed(n_bytes, what)?),
                None => host::KvCache::Floats(platform::zeroed(n_bytes / 4, what)?),
            })
        };
        let has_values = |layer: &&StoreKv| layer.value.is_some();
        let of_layer = |layer: Option<&StoreKv>| Ok([cache(layer, keys)?, cache(layer.filter(has_values), values)?]);
        let kv_caches = caches_of(model, &plan, DEVICE).into_iter().map(of_layer).collect::<Result<_>>()?;
        let zeroed = |state: &State| platform::zeroed((state_buffer_bytes(state, plan.n_seqs).0 / 4) as usize, "the state of a layer");
        let states = states_of(model, &plan, DEVICE).into_iter().map(|state| Ok(((state.layer, state.kind), zeroed(&state)?)));
        let states = states.collect::<Result<_>>()?;
        let uploader = match plan.ring(DEVICE) {
            Some(ring) => {
                let (uploader, slots) = Uploader::start(DEVICE, &store, &plan, &trace, UploadWorkers::USUAL)?;
                for (index, memory) in Pages::several(ring.n_slots, ring.slot_bytes)?.into_iter().enumerate() {
                    slots.give(HostSlot { index, memory });
                }
                Some((uploader, slots))
            }
            None => None,
        };
        let model = Arc::new(model.clone());
        let values = Values { kv_caches, states, ..Values::new(Arc::clone(&model)) };
        Ok(HostExecutor { model, plan, store, trace, values, vectors, uploader, forward: 0, activations_peak: Bytes::ZERO })
    }

    fn compute(&mut self, index: usize, slot: Option<&HostSlot>) -> Result<()> {
        let start_secs = self.trace.now();
        let (plan, model, store) = (Arc::clone(&self.plan), Arc::clone(&self.model), Arc::clone(&self.store));
        let chunk = &plan.chunks[index];
        let (values, vectors) = (&mut self.values, &self.vectors);
        host::among_threads(|| -> Result<()> {
            // Products that read the same input, such as query, key and value, are fused.
            let mut products = FusedProducts::new();
            let steps = chunk.work.iter().flat_map(|of_unit| of_unit.steps.iter().map(|step| (&model.units[of_unit.unit].ops, step)));
            for (ops, step) in steps {
                let product = match *step {
                    Work::Op(_) => None,
                    Work::Rows { op, slice } => {
                        let slice = &chunk.slices[slice];
                        let rows = match slot {
                            Some(slot) => &slot.memory[slice.offset as usize..][..slice.size_bytes as usize],
                            None => rows(&store, &plan, index, slice)?,
                        };
                        let tensor = &store.checkpoint().catalog[slice.tensor];
                        match ops[op] {
                            Op::MatMul { input, output, .. } => {
                                let n_tokens = values.batch().rows_of(model.value(input));
                                let params = matmul::Params::of_rows(tensor, slice.first_row, slice.n_rows, n_tokens);
                                Some(Product { params, rows, input, output })
                            }
                            Op::ExpertMatMul(op) => {
                                values.multiply(&products);
                                products.clear();
                                let (input, places) = (model.value(op.input), [slice.first_row, slice.n_rows]);
                                let params = expert_matmul::Params::of(&op, input, places, &values.batch());
                                values.multiply_experts((op.input, Some(op.routing), op.output), &params, (tensor.dtype, rows));
                                None
                            }
                            Op::HeadMatMul(op) => {
                                values.multiply(&products);
                                products.clear();
                                let params = expert_matmul::Params::of_heads(&op, [slice.first_row, slice.n_rows], &values.batch());
                                values.multiply_experts((op.input, None, op.output), &params, (tensor.dtype, rows));
                                None
                            }
                            _ => None,
                        }
                    }
                };
                if !product.as_ref().is_some_and(|product| product.can_fuse(&products)) {
                    values.multiply(&products);
                    products.clear();
                }
                products.extend(product);
                if let Work::Op(op) = *step {
                    values.run(&ops[op], vectors);
                }
            }
            values.multiply(&products);
            Ok(())
        })?;
        let (forward, size_bytes, end_secs) = (self.forward, chunk.size_bytes, self.trace.now());
        self.trace.add(Span { lane: Lane::Compute, device: DEVICE, chunk: Some(index), forward, start_secs, end_secs, size_bytes });
        Ok(())
    }

    /// Bytes that this executor has allocated, besides the store, by its own count: what the plan promised.
    pub fn peak(&self) -> Bytes {
        let values = |values: &[f32]| Bytes(values.len() as u64 * 4);
        let caches: Bytes = self.values.kv_caches.iter().flatten().map(|cache| Bytes(cache.n_bytes() as u64)).sum();
        let states: Bytes = self.values.states.values().map(|state| values(state)).sum();
        let vectors: Bytes = self.vectors.values().map(|vector| values(vector)).sum();
        let ring = self.plan.ring(DEVICE).map_or(Bytes::ZERO, |ring| ring.slot_bytes.times(ring.n_slots as u64));
        caches + states + self.activations_peak + vectors + ring
    }
}

impl Executor for HostExecutor {
    fn begin(&mut self, batch: &Batch, blocks: &KvBlocks, forward: usize) -> Result<()> {
        let (n_tokens, n_rows) = (batch.tokens.len(), batch.logits_for.len());
        let computes_head = self.plan.computes_head(DEVICE);
        let mut n_values = 0;
        for (id, value) in self.model.values().filter(|(_, value)| value.width > 0 && (computes_head || !value.is_of_head())) {
            let len = value.n_rows(n_tokens, n_rows) * value.width;
            platform::resize(self.values.values.entry(id).or_default(), len, "activations")?;
            n_values += len as u64;
        }
        if let Some(id) = self.model.lora_scales {
            self.values.values.insert(id, self.store.lora_scales(&batch.tokens));
        }
        let scratch = packed_input_bytes(&self.model, n_tokens) + expert_rows_bytes(&self.model, n_tokens).unwrap_or_default();
        self.activations_peak = self.activations_peak.max(Bytes(n_values * 4) + scratch);
        self.values.begin(batch, blocks, self.plan.ctx_size);
        self.forward = forward;
        Ok(())
    }

    fn upload(&mut self, chunk: usize) -> Result<()> {
        let (uploader, _) = self.uploader.as_mut().ok_or_else(upload_workers_gone)?;
        uploader.upload(chunk)
    }

    fn write_hidden(&mut self, hidden: &[f32]) -> Result<()> {
        for (id, rows) in passed_on(&self.model, self.values.n_tokens, hidden) {
            let own = self.values.values.entry(id).or_default();
            own.clear();
            own.extend_from_slice(rows);
        }
        self.values.packed.forget();
        Ok(())
    }

    fn compute_resident(&mut self, chunk: usize) -> Result<()> {
        self.compute(chunk, None)
    }

    async fn compute_streamed(&mut self, chunk: usize) -> Result<()> {
        let (uploader, _) = self.uploader.as_mut().ok_or_else(upload_workers_gone)?;
        let slot = match uploader.take(chunk)? {
            Some(slot) => slot,
            None => uploader.wait_for(chunk, self.forward).await?,
        };
        let computed = self.compute(chunk, Some(&slot));
        if let Some((_, slots)) = &self.uploader {
            slots.give(slot);
        }
        computed
    }

    async fn compute_cached(&mut self, chunk: usize) -> Result<()> {
        Err(Error::internal(format!("the host has no expert cache for {}", self.plan.chunk_name(chunk))))
    }

    /// The host computes at once.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    async fn read_hidden(&mut self) -> Result<Vec<f32>> {
        Ok(self.model.passed_on().flat_map(|id| self.values.get(id)).copied().collect())
    }

    async fn readback(&mut self, batch: &Batch) -> Result<Vec<Logits>> {
        let width = self.model.output_width();
        let logits = self.values.get(self.model.logits);
        Ok(logits.chunks_exact(width).take(batch.logits_for.len()).map(|row| select(row, batch.logits_request)).collect())
    }

    fn copy_block(&mut self, copy: BlockCopy) -> Result<()> {
        let (kept, n_blocks) = (self.plan.kv_caches_of(DEVICE), self.plan.n_kv_blocks());
        let [from, to] = [[copy.from], [copy.to]];
        for (layer, cached) in caches_of(&self.model, &self.plan, DEVICE).into_iter().zip(&mut self.values.kv_caches) {
            let Some(layer) = layer else { continue };
            for (cached, kept) in cached.iter_mut().zip(KvCache::of_layer(kept, layer)) {
                let [sources, targets] = [&from, &to].map(|block| position_ranges(layer, kept, n_blocks, block, copy.n_positions));
                for (source, target) in sources.zip(targets) {
                    cached.copy_within(source.start as usize..source.end as usize, target.start as usize);
                }
            }
        }
        Ok(())
    }

    fn kept(&self, layer: usize, sequence: (u32, &[u32]), n_positions: usize) -> Vec<(Kept, Range<u64>)> {
        kept_ranges(&self.model, &self.plan, DEVICE, layer, sequence, n_positions)
    }

    async fn read_kept(&mut self, layer: usize, ranges: &[(Kept, Range<u64>)]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for (part, range) in ranges {
            bytes.extend_from_slice(&self.values.kept(layer, *part)?[range.start as usize..range.end as usize]);
        }
        Ok(bytes)
    }

    fn write_kept(&mut self, layer: usize, ranges: &[(Kept, Range<u64>)], mut bytes: &[u8]) -> Result<()> {
        for (part, range) in ranges {
            let (own, behind) = bytes.split_at((range.end - range.start) as usize);
            self.values.kept(layer, *part)?[range.start as usize..range.end as usize].copy_from_slice(own);
            bytes = behind;
        }
        Ok(())
    }

    async fn recover(&mut self, forward: usize) -> Result<()> {
        match &mut self.uploader {
            Some((uploader, slots)) => uploader.drain(forward, |slot| slots.give(slot)).await,
            None => Ok(()),
        }
    }
}

/// The stored bytes of a host-resident slice.
fn rows<'a>(store: &'a Store, plan: &Plan, chunk: usize, slice: &Slice) -> Result<&'a [u8]> {
    if let Some(block) = store.host_resident(chunk) {
        return Ok(&block[slice.offset as usize..][..slice.size_bytes as usize]);
    }
    if let Some(rows) = store.mapped(chunk, slice) {
        return Ok(rows);
    }
    // A mapped file that changed is not shown any more; reading it says why.
    let first = slice.first_row * store.checkpoint().catalog[slice.tensor].row_bytes();
    store.checkpoint().read(slice.tensor, first, &mut vec![0; slice.size_bytes as usize])?;
    Err(Error::NotMapped { path: plan.chunk_name(chunk), reason: "its file is not shown any more".into() })
}

/// All logits of a row, or its best: higher first, ties in order of the token, NaN above all so that nobody misses it.
fn select(row: &[f32], logits_request: LogitsRequest) -> Logits {
    let LogitsRequest::TopK(k) = logits_request else { return Logits::All(row.to_vec()) };
    let mut best: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
    let rank = |logit: f32| if logit.is_nan() { f32::INFINITY } else { logit };
    let better = |a: &(u32, f32), b: &(u32, f32)| rank(b.1).total_cmp(&rank(a.1)).then(a.0.cmp(&b.0));
    if k < best.len() && k > 0 {
        best.select_nth_unstable_by(k - 1, better);
        best.truncate(k);
    }
    best.sort_by(better);
    Logits::Top(best)
}
