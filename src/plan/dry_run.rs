//! The dry run: the schedule that the engine will run, walked on a virtual clock. Both what the planner compares and what it predicts
//! to the user are computed here.

use std::collections::{BTreeSet, VecDeque};

use serde::Serialize;

use crate::device::{Device, DeviceSpec, Origin};
use crate::model::{Model, Op};
use crate::plan::costs::{DeviceCosts, MachineCosts, Workload, hidden_bytes};
use crate::plan::expert_cache::{cached_shapes, expert_products, missed_bytes};
use crate::plan::expert_misses::HOST_MISS_TOKENS;
use crate::plan::schedule::{Schedule, Step};
use crate::plan::{Chunk, Plan, UnitWork, UploadPath, Work};
use crate::units::Bytes;
use crate::weights::Catalog;

/// What one forward is predicted to cost, in the steady state.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// What the forward does.
    pub workload: Workload,
    /// Seconds of it.
    pub secs: f64,
    /// Whether its batch goes in two halves, because that is faster (see [`Schedule::in_halves`]).
    pub in_halves: bool,
    /// Seconds of it in which a device that computes waits for an upload.
    pub stall_secs: f64,
    /// Seconds in which the residual stream moves between devices and the result to the host.
    pub transfer_secs: f64,
    /// Bytes that stream in it.
    pub streamed_bytes: Bytes,
    /// How long each device that computes is busy.
    pub devices: Vec<Busy>,
    /// Seconds in which the disk reads.
    pub fetch_secs: f64,
    /// Bytes that it reads.
    pub fetched_bytes: Bytes,
    /// Whether the rates that it is based on were measured.
    pub rates: Origin,
}

/// How long a device is busy in one forward.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Busy {
    /// Which device.
    pub device: Device,
    /// Seconds in which it computes.
    pub compute_secs: f64,
    /// Seconds in which weights move to it.
    pub upload_secs: f64,
    /// Bytes of them, without the gaps between slices.
    pub streamed_bytes: Bytes,
}

/// What takes the time of a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// The devices compute, one after the other.
    Compute,
    /// Weights cross the link to this device.
    Upload(Device),
    /// Weights are read from disk.
    Disk,
}

impl Prediction {
    /// Tokens per second.
    pub fn tokens_per_sec(&self) -> f64 {
        if self.secs > 0.0 { self.workload.n_tokens as f64 / self.secs } else { 0.0 }
    }

    /// What takes the most time.
    pub fn bound(&self) -> Bound {
        let compute = (self.devices.iter().map(|busy| busy.compute_secs).sum::<f64>(), Bound::Compute);
        let uploads = self.devices.iter().map(|busy| (busy.upload_secs, Bound::Upload(busy.device)));
        let most = |best: (f64, Bound), next: (f64, Bound)| if next.0 > best.0 { next } else { best };
        uploads.chain([(self.fetch_secs, Bound::Disk)]).fold(compute, most).1
    }
}

/// Predicts one forward of a plan on these devices.
pub fn predict(plan: &Plan, catalog: &Catalog, model: &Model, devices: &[DeviceSpec], workload: Workload) -> Prediction {
    let predictor = Predictor::new(plan, catalog, model, devices);
    let halves = workload.halves().filter(|halves| predictor.halves_pay(workload, *halves));
    let parts: Vec<PartCosts> = match halves {
        Some(halves) => halves.map(|half| predictor.costs(half)).into(),
        None => vec![predictor.costs(workload)],
    };
    let Predictor { machine, executors, .. } = &predictor;
    let pace = predictor.pace(&parts);
    let mut origins: Vec<Origin> = executors.iter().map(|&device| machine.of(device).origin()).collect();
    if (0..plan.chunks.len()).any(|chunk| plan.stored_on(chunk) == Device::Disk) {
        origins.push(machine.disk().origin());
    }
    // What moves is the same in every part.
    let moving = &parts[0].chunks;
    let busy = |&device: &Device| {
        let own = || (0..plan.chunks.len()).filter(|&chunk| plan.executor(chunk) == device);
        Busy {
            device,
            compute_secs: parts.iter().flat_map(|part| own().map(|chunk| part.chunks[chunk].compute_secs)).sum(),
            upload_secs: own().filter(|&chunk| !plan.is_resident(chunk)).map(|chunk| moving[chunk].upload_secs).sum(),
            streamed_bytes: own().filter(|&chunk| !plan.is_resident(chunk)).map(|chunk| moving[chunk].moved_bytes).sum(),
        }
    };
    Prediction {
        workload,
        secs: pace.secs,
        in_halves: halves.is_some(),
        stall_secs: pace.stall_secs,
        transfer_secs: pace.transfer_secs,
        streamed_bytes: (0..plan.chunks.len()).filter(|&chunk| !plan.is_resident(chunk)).map(|chunk| moving[chunk].moved_bytes).sum(),
        devices: executors.iter().map(busy).collect(),
        fetch_secs: moving.iter().map(|cost| cost.fetch_secs).sum(),
        fetched_bytes: (0..plan.chunks.len())
            .filter(|&chunk| plan.stored_on(chunk) == Device::Disk)
            .map(|chunk| moving[chunk].fetched_bytes)
            .sum(),
        rates: origins.into_iter().reduce(Origin::and).unwrap_or_default(),
    }
}

/// Whether a batch of this workload takes less time in these halves than whole, as [`predict`] decides it. Contexts count as the next
/// power of two, so that the answer seldom changes from forward to forward.
pub fn halves_pay(plan: &Plan, catalog: &Catalog, model: &Model, devices: &[DeviceSpec], whole: Workload, halves: [Workload; 2]) -> bool {
    Predictor::new(plan, catalog, model, devices).halves_pay(whole, halves)
}

/// What predictions of one plan have in common.
struct Predictor<'a> {
    plan: &'a Plan,
    catalog: &'a Catalog,
    model: &'a Model,
    machine: MachineCosts,
    /// The devices that compute.
    executors: Vec<Device>,
    /// Chunks of as many layers as are whole in expert caches: which ones these are changes nothing here.
    whole: BTreeSet<usize>,
    schedule: Schedule,
}

impl<'a> Predictor<'a> {
    fn new(plan: &'a Plan, catalog: &'a Catalog, model: &'a Model, devices: &[DeviceSpec]) -> Predictor<'a> {
        let (machine, executors, schedule) = (MachineCosts::new(devices), plan.executors(), Schedule::new(plan));
        let n_whole = |device: Device| plan.expert_cache(device).map_or(0, |cache| cache.misses.n_whole);
        let whole = executors.iter().flat_map(|&device| plan.cached_on(device).take(n_whole(device))).collect();
        Predictor { plan, catalog, model, machine, executors, whole, schedule }
    }

    /// What it takes to compute a batch, or half of one.
    fn costs(&self, workload: Workload) -> PartCosts {
        let hit_rates: Vec<f64> = self.executors.iter().map(|&device| self.hit_rate(device, workload)).collect();
        let cost = |(index, chunk): (usize, &Chunk)| {
            let device = self.plan.executor(index);
            let executor = self.executors.iter().position(|other| *other == device).unwrap_or(0); // All of them are listed.
            if chunk.is_cached {
                return self.cached_cost((index, chunk), (executor, device), hit_rates[executor], workload);
            }
            let upload = self.plan.ring(device).map_or(UploadPath::Staged, |ring| ring.upload);
            ChunkCost {
                executor,
                compute_secs: chunk_secs(chunk, &self.machine, device, self.catalog, self.model, workload),
                upload_secs: self.machine.of(device).upload_secs(chunk.size_bytes, upload),
                fetch_secs: self.fetch_secs(chunk, chunk.stored_bytes()),
                moved_bytes: chunk.stored_bytes(),
                fetched_bytes: chunk.stored_bytes(),
                host_secs: 0.0,
                is_whole: false,
            }
        };
        let chunks = self.plan.chunks.iter().enumerate().map(cost).collect();
        PartCosts { chunks, transfer_bytes: transfer_bytes(self.model, workload) }
    }

    /// The costs of a chunk whose experts are cached, with this share of hits.
    fn cached_cost(
        &self,
        (index, chunk): (usize, &Chunk),
        (executor, device): (usize, Device),
        hit_rate: f64,
        workload: Workload,
    ) -> ChunkCost {
        let costs = self.machine.of(device);
        let is_whole = self.whole.contains(&index);
        let hit_rate = if is_whole { 1.0 } else { hit_rate };
        let missed = missed_bytes(chunk, self.model, workload.n_tokens, hit_rate);
        let host_share = self.plan.expert_cache(device).map_or(0.0, |cache| cache.misses.host_share(workload.n_tokens));
        let on_host = (1.0 - hit_rate) * host_share;
        let experts_secs = |costs: &DeviceCosts| -> f64 {
            let products = expert_products(chunk, self.model);
            products.map(|(op, slice)| costs.expert_secs(op, &self.catalog[slice.tensor], slice.n_rows, workload.n_tokens)).sum()
        };
        let moved_bytes = Bytes((missed.0 as f64 * (1.0 - host_share)) as u64);
        ChunkCost {
            executor,
            compute_secs: chunk_secs(chunk, &self.machine, device, self.catalog, self.model, workload) - on_host * experts_secs(costs),
            upload_secs: costs.upload_secs(moved_bytes, UploadPath::Written),
            fetch_secs: self.fetch_secs(chunk, missed),
            moved_bytes,
            fetched_bytes: missed,
            host_secs: on_host * experts_secs(self.machine.of(Device::Cpu)),
            is_whole: is_whole && workload.n_tokens <= HOST_MISS_TOKENS,
        }
    }

    /// Seconds to read so much of a chunk, where it is on disk.
    fn fetch_secs(&self, chunk: &Chunk, bytes: Bytes) -> f64 {
        if chunk.stored_on == Device::Disk { self.machine.disk().fetch_secs(bytes) } else { 0.0 }
    }

    /// The share of a forward's experts that is expected to be in the expert cache of `device`.
    fn hit_rate(&self, device: Device, workload: Workload) -> f64 {
        let Some(cache) = self.plan.expert_cache(device) else { return 0.0 };
        let shapes = cached_shapes(self.plan, self.model, device);
        cache.hit_rate(shapes.iter().map(|shape| shape.n_taken(workload.n_tokens)).sum())
    }

    /// The dry run of a whole batch, or of both halves of one.
    fn pace(&self, parts: &[PartCosts]) -> Pace {
        let ring = |&device: &Device| (device, self.plan.ring(device).map_or(0, |ring| ring.n_slots));
        let rings: Vec<(Device, usize)> = self.executors.iter().map(ring).collect();
        DryRun::new(&self.machine, parts, &rings).run(&self.schedule)
    }

    fn halves_pay(&self, whole: Workload, halves: [Workload; 2]) -> bool {
        if self.schedule.in_halves.is_empty() {
            return false;
        }
        let costs = |workload: Workload| self.costs(Workload { position: workload.position.next_power_of_two(), ..workload });
        self.pace(&halves.map(costs)).secs < self.pace(&[costs(whole)]).secs
    }
}

fn chunk_secs(chunk: &Chunk, machine: &MachineCosts, device: Device, catalog: &Catalog, model: &Model, workload: Workload) -> f64 {
    let costs = machine.of(device);
    let step_secs = |ops: &[Op], index: usize, step: &Work| match *step {
        Work::Op(op) => costs.fixed_secs(ops, op) + costs.op_secs(model, &ops[op], workload),
        Work::Rows { op, slice } => {
            let slice = &chunk.slices[slice];
            // Rows of one matrix are computed slice by slice, and operations of different chunks are never fused.
            let may_fuse = slice.first_row == 0 && index > 0;
            let fixed = if may_fuse { costs.fixed_secs(ops, op) } else { costs.dispatch_secs() };
            fixed + costs.rows_secs(model, &ops[op], &catalog[slice.tensor], slice.n_rows, workload)
        }
    };
    let unit_secs = |of_unit: &UnitWork| -> f64 {
        let steps = of_unit.steps.iter().enumerate();
        steps.map(|(index, step)| step_secs(&model.units[of_unit.unit].ops, index, step)).sum()
    };
    chunk.work.iter().map(unit_secs).sum()
}

/// Bytes that a transfer and the last readback move.
pub(super) fn transfer_bytes(model: &Model, workload: Workload) -> [Bytes; 2] {
    // The best tokens are chosen on the device: what comes back of the logits is small.
    [hidden_bytes(model, workload), Bytes(model.output_width() as u64 / 4).times(workload.n_logit_rows as u64)]
}

/// What it takes to bring a chunk to its device and to compute with it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ChunkCost {
    /// Index of who computes it, among the devices of the run.
    pub(super) executor: usize,
    pub(super) compute_secs: f64,
    pub(super) upload_secs: f64,
    pub(super) fetch_secs: f64,
    /// Bytes of weights that are moved to its device for it, of a chunk that is not resident.
    pub(super) moved_bytes: Bytes,
    /// Of a chunk that is on disk, bytes that are read.
    pub(super) fetched_bytes: Bytes,
    /// Seconds in which the host computes with experts that are left to it, beside the executor.
    pub(super) host_secs: f64,
    /// Whether all its experts are cached, so that nobody asks which ones tokens take.
    pub(super) is_whole: bool,
}

/// What it takes to compute a batch, or half of one.
#[derive(Debug, Clone, Default)]
pub(super) struct PartCosts {
    /// Of every chunk.
    pub(super) chunks: Vec<ChunkCost>,
    /// Bytes of a transfer and of the last readback.
    pub(super) transfer_bytes: [Bytes; 2],
}

/// The times of a forward in the steady state.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    pub(super) secs: f64,
    pub(super) stall_secs: f64,
    pub(super) transfer_secs: f64,
}

/// A virtual machine: a disk, and per device a link and a processor, each busy until some time.
pub(super) struct DryRun<'a> {
    machine: &'a MachineCosts,
    /// The whole batch, or its halves.
    parts: &'a [PartCosts],
    devices: Vec<Virtual<'a>>,
    disk_free: f64,
    /// When the overlap loop reaches the next step. A GPU computes while the loop goes on, the host does not.
    now: f64,
    stall_secs: f64,
    transfer_secs: f64,
}

/// One device of the virtual machine.
struct Virtual<'a> {
    device: Device,
    costs: &'a DeviceCosts,
    upload_free: f64,
    compute_free: f64,
    /// When each uploaded chunk is ready, oldest first.
    ready: VecDeque<f64>,
    /// When each free slot became so.
    free_slots: VecDeque<f64>,
    /// Slots computed from that are free once what they share a submission with is computed.
    computed_from: usize,
    /// Most of them.
    n_to_share: usize,
    /// What a chunk that stays, and one that streams, adds for its share of a submission.
    submit_secs: [f64; 2],
    round_trip_secs: f64,
}

impl Virtual<'_> {
    /// Ends a submission: its slots are free once it is computed and the host knows.
    fn submit(&mut self) {
        let free = self.compute_free + self.round_trip_secs;
        self.free_slots.extend(std::iter::repeat_n(free, std::mem::take(&mut self.computed_from)));
    }
}

/// Chunks recorded before they are submitted, as the GPU executor does it.
const CHUNKS_PER_SUBMIT: usize = 8;

/// Streamed chunks that share a submission, as long as the adapter has another one to compute: half of the slots, so that the
/// others can be filled meanwhile.
pub(crate) fn n_to_share(n_slots: usize) -> usize {
    (n_slots / 2).max(1)
}

/// Forwards until the steady state: the first ones fill the rings.
const N_FORWARDS: usize = 3;

impl<'a> DryRun<'a> {
    /// `parts` is one of a whole batch, or two halves, of which there must be the steps in the schedule. `rings` names every device that
    /// computes, with its slots.
    pub(super) fn new(machine: &'a MachineCosts, parts: &'a [PartCosts], rings: &[(Device, usize)]) -> DryRun<'a> {
        let virtual_device = |&(device, n_slots): &(Device, usize)| {
            let costs = machine.of(device);
            let n_to_share = if device == Device::Cpu { 1 } else { n_to_share(n_slots) };
            Virtual {
                device,
                costs,
                upload_free: 0.0,
                compute_free: 0.0,
                ready: VecDeque::with_capacity(n_slots),
                free_slots: vec![0.0; n_slots].into(),
                computed_from: 0,
                n_to_share,
                submit_secs: [CHUNKS_PER_SUBMIT, n_to_share].map(|n_chunks| 1.0 / n_chunks as f64 * costs.submit_secs()),
                round_trip_secs: costs.round_trip_secs(),
            }
        };
        let devices = rings.iter().map(virtual_device).collect();
        DryRun { machine, parts, devices, disk_free: 0.0, now: 0.0, stall_secs: 0.0, transfer_secs: 0.0 }
    }

    /// The last of a few forwards.
    pub(super) fn run(mut self, schedule: &Schedule) -> Pace {
        let steps = if self.parts.len() > 1 { &schedule.in_halves } else { &schedule.steps };
        schedule.prologue.iter().for_each(|step| self.step(*step));
        let mut before = (0.0, 0.0, 0.0);
        for _ in 0..N_FORWARDS {
            before = (self.now, self.stall_secs, self.transfer_secs);
            steps.iter().for_each(|step| self.step(*step));
        }
        Pace { secs: self.now - before.0, stall_secs: self.stall_secs - before.1, transfer_secs: self.transfer_secs - before.2 }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Embed => {}
            Step::FetchUpload(chunk) | Step::Upload(chunk) => self.upload(chunk),
            Step::ComputeResident(chunk) => self.compute(0, chunk, 0.0, false),
            Step::ComputeStreamed(chunk) => self.compute_streamed(chunk),
            Step::ComputeCached(chunk) => self.compute_cached(chunk),
            Step::Transfer { from, to } => self.transfer(0, from, Some(to)),
            Step::Readback => {
                if let Some(from) = self.parts[0].chunks.len().checked_sub(1).and_then(|last| self.executor(last)) {
                    self.transfer(0, from, None);
                }
            }
            Step::StartStage { half, first, last } => (first..=last).for_each(|chunk| self.compute(half, chunk, 0.0, false)),
            Step::FinishStage { half, last } => {
                if let Some(from) = self.executor(last) {
                    self.transfer(half, from, self.executor(last + 1));
                }
            }
        }
    }

    /// Who computes a chunk; `None` behind the last one.
    fn executor(&self, chunk: usize) -> Option<Device> {
        self.parts[0].chunks.get(chunk).map(|cost| self.devices[cost.executor].device)
    }

    fn device(&mut self, device: Device) -> Option<&mut Virtual<'a>> {
        self.devices.iter_mut().find(|own| own.device == device)
    }

    fn upload(&mut self, chunk: usize) {
        let (now, disk_free, cost) = (self.now, self.disk_free, self.parts[0].chunks[chunk]);
        let request_secs = self.machine.disk().request_secs();
        let own = &mut self.devices[cost.executor];
        let begin = own.free_slots.pop_front().unwrap_or(own.compute_free).max(now);
        let fetched = if cost.fetch_secs > 0.0 { disk_free.max(begin + request_secs) + cost.fetch_secs } else { begin };
        // A chunk moves on while it is still being read.
        let moved = (own.upload_free.max(begin) + cost.upload_secs).max(fetched);
        own.upload_free = moved;
        own.compute_free += own.costs.delay_secs(cost.upload_secs);
        own.ready.push_back(moved);
        if cost.fetch_secs > 0.0 {
            self.disk_free = fetched;
        }
    }

    fn compute(&mut self, part: usize, chunk: usize, earliest: f64, streams: bool) {
        let (now, cost) = (self.now, self.parts[part].chunks[chunk]);
        let own = &mut self.devices[cost.executor];
        let secs = cost.compute_secs + own.submit_secs[usize::from(streams)];
        let end = own.compute_free.max(earliest).max(now) + secs;
        own.compute_free = end;
        if own.device == Device::Cpu {
            self.now = end;
        }
    }

    fn compute_streamed(&mut self, chunk: usize) {
        let (now, executor) = (self.now, self.parts[0].chunks[chunk].executor);
        let own = &mut self.devices[executor];
        let ready = own.ready.pop_front().unwrap_or(0.0);
        let idle_from = own.compute_free.max(now);
        if ready > now {
            own.submit();
        }
        self.stall_secs += (ready - idle_from).max(0.0);
        self.now = now.max(ready);
        self.compute(0, chunk, ready, true);
        let own = &mut self.devices[executor];
        own.computed_from += 1;
        if own.computed_from >= own.n_to_share {
            own.submit();
        }
    }

    /// What was recorded is computed before it is known which experts are needed; those that are missing are brought before any is used,
    /// while the host computes with those that are left to it.
    fn compute_cached(&mut self, chunk: usize) {
        let (now, disk_free, cost) = (self.now, self.disk_free, self.parts[0].chunks[chunk]);
        if cost.is_whole {
            return self.compute(0, chunk, 0.0, false);
        }
        let request_secs = if cost.fetch_secs > 0.0 { self.machine.disk().request_secs() } else { 0.0 };
        let own = &mut self.devices[cost.executor];
        own.submit();
        let known = own.compute_free.max(now) + own.round_trip_secs;
        let fetched = if cost.fetch_secs > 0.0 { disk_free.max(known + request_secs) + cost.fetch_secs } else { known };
        let there = (own.upload_free.max(known) + cost.upload_secs).max(fetched);
        own.upload_free = there;
        self.stall_secs += there - known;
        let host_done = if cost.host_secs > 0.0 { fetched + cost.host_secs } else { there };
        if cost.fetch_secs > 0.0 {
            self.disk_free = fetched;
        }
        self.compute(0, chunk, there, false);
        self.now = there.max(host_done);
        let own = &mut self.devices[cost.executor];
        own.compute_free = own.compute_free.max(host_done);
    }

    /// Transfers the residual stream of a part from one device to the next, or its result to the host.
    fn transfer(&mut self, part: usize, from: Device, to: Option<Device>) {
        let [residual_bytes, result_bytes] = self.parts[part].transfer_bytes;
        let bytes = if to.is_some() { residual_bytes } else { result_bytes };
        let moves = self.machine.of(from).transfer_secs(to.map(|to| self.machine.of(to)), bytes);
        if let Some(own) = self.device(from) {
            own.submit();
        }
        let done = self.device(from).map_or(0.0, |own| own.compute_free).max(self.now);
        self.now = done + moves;
        self.transfer_secs += moves;
    }
}
