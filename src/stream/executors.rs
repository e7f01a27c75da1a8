//! The executors of all devices that compute, as one: each step of a schedule goes to the device of its chunk, and the residual stream is
//! transferred from one to the next. Knows neither buffers nor rings.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, ObjectCounts};
use crate::plan::sizes::KV_BLOCK_POSITIONS;
use crate::plan::{ExpertCachePlan, KvDType, Plan};
use crate::stream::warm_experts::WarmExperts;
use crate::stream::{Batch, BlockCopy, Executor, GpuExecutor, HostExecutor, KvBlocks, Lane, Logits, Span, Store, Trace};
use crate::units::Bytes;

/// The executors of all devices that compute a plan's chunks.
pub struct Executors {
    plan: Arc<Plan>,
    store: Arc<Store>,
    trace: Trace,
    /// In the order of [`Plan::executors`].
    devices: Vec<(Device, DeviceExecutor)>,
    /// Embedded rows on their way to the first executor; kept from forward to forward.
    hidden: Vec<f32>,
    /// Blocks of the KV caches, the same on all devices.
    blocks: Arc<KvBlocks>,
    n_forwards: usize,
    /// Set while a forward is under way: one that finds it set begins where another stopped.
    is_midway: bool,
}

/// The executor of one device.
pub enum DeviceExecutor {
    /// On an adapter.
    Gpu(Box<GpuExecutor>),
    /// On the host's cores.
    Host(Box<HostExecutor>),
}

impl DeviceExecutor {
    /// Most bytes that it ever held on its device; without what the [`Store`] holds.
    pub fn peak(&self) -> Bytes {
        match self {
            DeviceExecutor::Gpu(gpu) => gpu.peak(),
            DeviceExecutor::Host(host) => host.peak(),
        }
    }

    /// Most bytes of host memory that it ever held for a share of its work that the host computes.
    pub fn peak_on_host(&self) -> Bytes {
        match self {
            DeviceExecutor::Gpu(gpu) => gpu.peak_on_host(),
            DeviceExecutor::Host(_) => Bytes::ZERO,
        }
    }

    /// What computes on an adapter; `None` of the host.
    pub fn gpu(&self) -> Option<&GpuExecutor> {
        match self {
            DeviceExecutor::Gpu(gpu) => Some(gpu),
            DeviceExecutor::Host(_) => None,
        }
    }

    /// Objects that were made for its adapter so far; `None` of the host.
    pub fn object_counts(&self) -> Option<ObjectCounts> {
        match self {
            DeviceExecutor::Gpu(gpu) => Some(gpu.object_counts()),
            DeviceExecutor::Host(_) => None,
        }
    }
}

/// Runs a step on whichever executor it is: both kinds have the same steps.
macro_rules! with_executor {
    ($which:expr, $executor:ident => $step:expr) => {
        match $which {
            DeviceExecutor::Gpu($executor) => $step,
            DeviceExecutor::Host($executor) => $step,
        }
    };
}

impl Executors {
    /// `devices` has one executor for each of [`Plan::executors`], in that order.
    pub fn new(plan: Arc<Plan>, store: Arc<Store>, trace: Trace, devices: Vec<(Device, DeviceExecutor)>) -> Executors {
        let blocks = Arc::new(KvBlocks::new(plan.n_seqs, plan.n_kv_blocks()));
        Executors { plan, store, trace, devices, hidden: Vec::new(), blocks, n_forwards: 0, is_midway: false }
    }

    /// Each device with its executor, in the order of their first chunks.
    pub fn devices(&self) -> &[(Device, DeviceExecutor)] {
        &self.devices
    }

    /// The adapters that compute.
    pub fn gpus(&self) -> impl Iterator<Item = (Device, &Gpu)> {
        self.devices.iter().filter_map(|(device, executor)| match executor {
            DeviceExecutor::Gpu(executor) => Some((*device, executor.gpu())),
            DeviceExecutor::Host(_) => None,
        })
    }

    /// The cause of an error of one of them: the loss of an adapter, where one is lost.
    pub fn cause_of(&self, error: Error) -> Error {
        self.gpus().fold(error, |error, (_, gpu)| gpu.cause_of(error))
    }

    /// Brings the experts to each device's cache that it begins with. `progress` gets the bytes of some at a time, of [`WarmExperts::size`] in all.
    ///
    /// # Errors
    /// Those of reading and of the adapters.
    pub fn warm_experts(&mut self, warm: &BTreeMap<Device, WarmExperts>, progress: &dyn Fn(Bytes)) -> Result<()> {
        for (device, executor) in &mut self.devices {
            if let (DeviceExecutor::Gpu(gpu), Some(warm)) = (executor, warm.get(device)) {
                gpu.warm_experts(warm, progress)?;
            }
        }
        Ok(())
    }

    /// Splits the expert cache of `device` as `cache` says, which has the hits that were seen.
    ///
    /// # Errors
    /// Those of reading and of the adapter.
    pub(crate) fn split_experts(&mut self, device: Device, cache: ExpertCachePlan) -> Result<()> {
        for (own, executor) in &mut self.devices {
            if let (true, DeviceExecutor::Gpu(gpu)) = (*own == device, executor) {
                gpu.split_experts(cache)?;
            }
        }
        Ok(())
    }

    /// Whether the host computes any of it.
    pub(super) fn has_host(&self) -> bool {
        self.devices.iter().any(|(device, _)| *device == Device::Cpu)
    }

    /// Whether the last forward stopped midway, so that [`recover`](crate::stream::recover) must come before the next.
    pub fn is_midway(&self) -> bool {
        self.is_midway
    }

    /// Empties every ring.
    pub(super) async fn recover(&mut self) -> Result<()> {
        for (_, executor) in &mut self.devices {
            with_executor!(executor, executor => executor.recover(self.n_forwards).await)?;
        }
        Ok(())
    }

    /// Marks that the rings are as a forward expects them.
    pub(super) fn end_recovery(&mut self) {
        self.is_midway = false;
    }

    /// Marks that a forward is under way.
    fn begin_forward(&mut self) {
        self.is_midway = true;
    }

    /// Marks that it went to its end.
    pub(super) fn end_forward(&mut self) {
        self.n_forwards += 1;
        self.is_midway = false;
    }

    /// The tokens of half a batch as vectors: a forward begins. `[n_tokens, hidden_size]`
    pub(super) fn embedded(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.begin_forward();
        let mut hidden = Vec::new();
        self.store.embed(&batch.tokens, &mut hidden)?;
        Ok(hidden)
    }

    /// Whether `chunk` is the plan's last.
    pub(super) fn is_last(&self, chunk: usize) -> bool {
        chunk + 1 == self.plan.chunks.len()
    }

    /// Computes a stage, whose chunks are all resident on one device, with this batch; does not wait for an adapter.
    pub(super) fn start_stage(&mut self, mut chunks: RangeInclusive<usize>, batch: &Batch, hidden: &[f32]) -> Result<()> {
        let (forward, blocks) = (self.n_forwards, Arc::clone(&self.blocks));
        with_executor!(self.executor_of(*chunks.start())?, executor => {
            executor.begin(batch, &blocks, forward)?;
            executor.write_hidden(hidden)?;
            chunks.try_for_each(|chunk| executor.compute_resident(chunk))?;
            executor.flush()
        })
    }

    /// The residual stream after the stage that ends with chunk `last`.
    pub(super) async fn finish_stage(&mut self, last: usize) -> Result<Vec<f32>> {
        let start_secs = self.trace.now();
        let hidden = with_executor!(self.executor_of(last)?, executor => executor.read_hidden().await)?;
        self.span(Lane::Transfer, self.plan.executor(last), Bytes(hidden.len() as u64 * 4), start_secs);
        Ok(hidden)
    }

    /// The logits of this batch after the last stage, which ends with chunk `last`.
    pub(super) async fn finish_last_stage(&mut self, last: usize, batch: &Batch) -> Result<Vec<Logits>> {
        let start_secs = self.trace.now();
        let logits = with_executor!(self.executor_of(last)?, executor => executor.readback(batch).await)?;
        self.span(Lane::Readback, self.plan.executor(last), Bytes::ZERO, start_secs);
        Ok(logits)
    }

    /// Begins a forward on every executor and brings `given`, or else the batch's tokens as vectors, to the first.
    pub(super) fn embed(&mut self, batch: &Batch, given: Option<&[f32]>) -> Result<()> {
        if given.is_none() {
            self.store.embed(&batch.tokens, &mut self.hidden)?;
        }
        // What an executor refuses from here on leaves it in the middle.
        self.begin_forward();
        for (_, executor) in &mut self.devices {
            with_executor!(executor, executor => executor.begin(batch, &self.blocks, self.n_forwards))?;
        }
        if let Some((_, first)) = self.devices.first_mut() {
            with_executor!(first, executor => executor.write_hidden(given.unwrap_or(&self.hidden)))?;
        }
        Ok(())
    }

    pub(super) fn upload(&mut self, chunk: usize) -> Result<()> {
        with_executor!(self.executor_of(chunk)?, executor => executor.upload(chunk))
    }

    pub(super) fn compute_resident(&mut self, chunk: usize) -> Result<()> {
        with_executor!(self.executor_of(chunk)?, executor => executor.compute_resident(chunk))
    }

    pub(super) async fn compute_streamed(&mut self, chunk: usize) -> Result<()> {
        with_executor!(self.executor_of(chunk)?, executor => executor.compute_streamed(chunk).await)
    }

    pub(super) async fn compute_cached(&mut self, chunk: usize) -> Result<()> {
        with_executor!(self.executor_of(chunk)?, executor => executor.compute_cached(chunk).await)
    }

    /// Brings the residual stream from one executor to another, bit by bit as it is.
    pub(super) async fn transfer(&mut self, from: Device, to: Device) -> Result<()> {
        let start_secs = self.trace.now();
        let hidden = with_executor!(self.executor(from)?, executor => executor.read_hidden().await)?;
        with_executor!(self.executor(to)?, executor => executor.write_hidden(&hidden))?;
        self.span(Lane::Transfer, from, Bytes(hidden.len() as u64 * 4), start_secs);
        Ok(())
    }

    /// Which blocks of the KV caches each sequence has.
    pub fn kv_blocks(&self) -> &KvBlocks {
        &self.blocks
    }

    /// Lets keys and values of a sequence be written at `positions`: what it has from there on is forgotten.
    ///
    /// # Errors
    /// Those of the devices; where no block is free.
    pub fn make_room(&mut self, sequence: u32, positions: Range<usize>) -> Result<()> {
        let copy = Arc::make_mut(&mut self.blocks).make_room(sequence, positions)?;
        self.copy_block(copy)
    }

    /// Lets the second of two sequences begin with the first `n_positions` of the first one, in place of its own. Whole blocks are then those
    /// of both, and no key or value of them is copied.
    ///
    /// # Errors
    /// As of [`Executors::make_room`].
    pub fn share_positions(&mut self, [from, to]: [u32; 2], n_positions: usize) -> Result<()> {
        let copy = Arc::make_mut(&mut self.blocks).share(from, to, n_positions)?;
        self.copy_block(copy)
    }

    /// Gives back the blocks behind the first `n_positions` of a sequence: they are free, unless others have them, too.
    pub fn truncate_sequence(&mut self, sequence: u32, n_positions: usize) {
        Arc::make_mut(&mut self.blocks).truncate(sequence, n_positions);
    }

    fn copy_block(&mut self, copy: Option<BlockCopy>) -> Result<()> {
        let Some(copy) = copy else { return Ok(()) };
        self.devices.iter_mut().try_for_each(|(_, executor)| with_executor!(executor, executor => executor.copy_block(copy)))
    }

    /// What is kept of the first `n_positions` of a sequence, layer by layer: how it is stored, and its bytes.
    pub fn kept_of_layers(&self, n_layers: usize, n_positions: usize) -> Vec<(usize, String, u64)> {
        // Their bytes are as many in any blocks.
        let table: Vec<u32> = (0..n_positions.div_ceil(KV_BLOCK_POSITIONS) as u32).collect();
        let of_layer = |layer: usize| {
            let of_device = |(device, executor): &(Device, DeviceExecutor)| {
                let ranges = with_executor!(executor, executor => executor.kept(layer, (0, &table), n_positions));
                let place = if *device == Device::Cpu { "the host" } else { "a GPU" };
                let KvDType { keys, values } = self.plan.kv_dtype_of(*device);
                let stored = match keys == values {
                    true => format!("keys and values in {keys} on {place}"),
                    false => format!("keys in {keys} and values in {values} on {place}"),
                };
                (!ranges.is_empty()).then(|| (layer, stored, ranges.iter().map(|(_, range)| range.end - range.start).sum()))
            };
            self.devices.iter().find_map(of_device)
        };
        (0..n_layers).filter_map(of_layer).collect()
    }

    /// The bytes of what is kept of a sequence in one layer.
    ///
    /// # Errors
    /// Those of the devices.
    pub async fn read_layer(&mut self, layer: usize, sequence: u32, n_positions: usize) -> Result<Vec<u8>> {
        let of_sequence = (sequence, self.blocks.table(sequence));
        for (_, executor) in &mut self.devices {
            with_executor!(executor, executor => {
                let ranges = executor.kept(layer, of_sequence, n_positions);
                if !ranges.is_empty() {
                    return executor.read_kept(layer, &ranges).await;
                }
            });
        }
        Ok(Vec::new())
    }

    /// Puts back what [`Executors::read_layer`] gave.
    ///
    /// # Errors
    /// Those of the devices.
    pub fn write_layer(&mut self, layer: usize, sequence: u32, n_positions: usize, bytes: &[u8]) -> Result<()> {
        let of_sequence = (sequence, self.blocks.table(sequence));
        for (_, executor) in &mut self.devices {
            with_executor!(executor, executor => {
                let ranges = executor.kept(layer, of_sequence, n_positions);
                if !ranges.is_empty() {
                    return executor.write_kept(layer, &ranges, bytes);
                }
            });
        }
        Ok(())
    }

    /// Brings the result of the last executor to the host.
    pub(super) async fn readback(&mut self, batch: &Batch) -> Result<Vec<Logits>> {
        self.finish_last_stage(self.plan.chunks.len().saturating_sub(1), batch).await
    }

    fn executor_of(&mut self, chunk: usize) -> Result<&mut DeviceExecutor> {
        self.executor(self.plan.executor(chunk))
    }

    fn executor(&mut self, device: Device) -> Result<&mut DeviceExecutor> {
        let found = self.devices.iter_mut().find(|(own, _)| *own == device);
        found.map(|(_, executor)| executor).ok_or_else(|| Error::internal(format!("the schedule names {device}, which was not opened")))
    }

    fn span(&self, lane: Lane, device: Device, size_bytes: Bytes, start_secs: f64) {
        let end_secs = self.trace.now();
        self.trace.add(Span { lane, device, chunk: None, forward: self.n_forwards, start_secs, end_secs, size_bytes });
    }
}
