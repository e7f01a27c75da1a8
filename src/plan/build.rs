//! From placements to a plan: given which device computes each unit and where it is stored, finds the chunks, the rings and the exact
//! memory of every device.

use std::ops::Range;

use crate::device::{Device, DeviceSpec};
use crate::error::{Advice, Error, Remedy, Setting};
use crate::model::{Op, UnitKind};
use crate::plan::chunks::{Chunk, Cut, SLICE_ALIGNMENT, cut, cut_evenly, n_dispatches_of, share_slots};
use crate::plan::expert_cache::{ExpertCachePlan, expert_shape};
use crate::plan::expert_misses::host_bytes;
use crate::plan::file_layout::{SLICE_PADDING, lay_out_as_in_files, size_as_in_files};
use crate::plan::refusal::Refusal;
use crate::plan::shape::Shape;
use crate::plan::site::{MAX_WORK, Site, Worker, n_slices};
use crate::plan::sizes::{Role, largest_kv_buffer_bytes, largest_state_buffer_bytes};
use crate::plan::{DevicePlan, PLAN_SCHEMA, Placement, Plan, RingPlan, UnitPlan, UploadPath, Usage};
use crate::units::Bytes;

/// Slots are made smaller for the layout of the files only where they are so many times larger than the padding it adds: otherwise the
/// additional chunks would cost more than the copies that it saves.
const SLOT_TO_PADDING: u64 = 16;

/// One try: these budgets, this shape, these placements.
pub(super) struct Build<'a> {
    pub(super) site: &'a Site<'a>,
    pub(super) shape: Shape,
    /// What each worker may use.
    pub(super) budgets: &'a [Bytes],
    /// One per unit.
    pub(super) placements: &'a [Placement],
    /// Dispatches whose parameters are set aside, per worker.
    pub(super) n_dispatches: &'a [usize],
    /// How the ring of each worker is cut.
    pub(super) rings: Rings<'a>,
}

/// How the rings of workers are cut.
#[derive(Clone, Copy)]
pub(super) enum Rings<'a> {
    /// As the memory that is left allows; slots are no larger than this, per worker.
    Fitted(&'a [Bytes]),
    /// Just so, per worker.
    Given(&'a [Option<Cutting>]),
}

/// How streamed chunks are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cutting {
    /// For slots of so many bytes.
    pub(super) slot_bytes: Bytes,
    /// Whether chunks are laid out as in the files.
    pub(super) as_in_files: bool,
}

/// What came of a try.
pub(super) enum Outcome {
    Made(Box<Plan>),
    /// This worker's chunks need so many dispatches, and their parameters were not set aside.
    NeedsDispatches(usize, usize),
}

/// What one worker gets.
struct Part {
    worker: usize,
    /// Chunks of the units that it computes, in the model's order.
    chunks: Vec<Chunk>,
    ring: Option<RingPlan>,
    expert_cache: Option<ExpertCachePlan>,
    used: Usage,
}

/// What a plan says of one worker besides its chunks.
type PartRow = (usize, Option<RingPlan>, Option<ExpertCachePlan>, Usage);

/// What came of one worker.
enum PartOutcome {
    Made(Part),
    NeedsDispatches(usize),
}

/// A worker's units as chunks.
enum Chunks {
    /// The chunks, and how those that stream were cut, if any does.
    Cut(Vec<Chunk>, Option<Cutting>),
    /// So many dispatches are needed, and their parameters were not set aside.
    NeedsDispatches(usize),
}

impl Build<'_> {
    pub(super) fn plan(&self) -> Result<Outcome, Refusal> {
        let mut parts = Vec::new();
        for worker in 0..self.site.workers.len() {
            let units = self.units_of(worker);
            if units.is_empty() {
                continue;
            }
            self.check_limits(worker)?;
            match self.part(worker, &units)? {
                PartOutcome::Made(part) => parts.push(part),
                PartOutcome::NeedsDispatches(needed) => return Ok(Outcome::NeedsDispatches(worker, needed)),
            }
        }
        parts.sort_by_key(|part| part.chunks.first().map(Chunk::unit));
        self.assemble(parts).map(|plan| Outcome::Made(Box::new(plan)))
    }

    /// Units that `worker` computes. The embedding is nobody's: the host gathers its rows.
    fn units_of(&self, worker: usize) -> Vec<usize> {
        let device = self.site.workers[worker].device;
        let is_own = |&unit: &usize| self.placements[unit].execute_on == device && self.site.model.units[unit].kind != UnitKind::Embedding;
        (0..self.placements.len()).filter(is_own).collect()
    }

    fn role(&self, units: &[usize]) -> Role {
        let last = self.placements.len() - 1;
        let next = |unit: usize| self.placements.get(unit + 1).map(|placement| placement.execute_on);
        Role {
            on_host: units.first().is_some_and(|&unit| self.placements[unit].execute_on == Device::Cpu),
            computes_head: units.last() == Some(&last),
            // Whoever has a unit without having the next one passes the residual stream on.
            passes_on: units.iter().any(|&unit| next(unit).is_some_and(|next| next != self.placements[unit].execute_on)),
        }
    }

    /// What a worker uses besides matrices and the ring.
    fn fixed(&self, worker: usize, units: &[usize], n_dispatches: usize) -> Usage {
        let (site, own) = (self.site, &self.site.workers[worker]);
        Usage {
            weights: units.iter().map(|&unit| own.vector_bytes[unit]).sum(),
            kv_cache: units.iter().map(|&unit| site.kv_bytes_of_unit(own, unit, self.shape.ctx_size)).sum(),
            activations: site.working_bytes(self.shape.forward, self.role(units)) + own.params_bytes(n_dispatches),
            ..Usage::default()
        }
    }

    fn check_limits(&self, worker: usize) -> Result<(), Refusal> {
        let (site, shape, own) = (self.site, self.shape, &self.site.workers[worker]);
        let limit = own.largest_buffer();
        let check = |what: &str, needed: Bytes, remedies: &[Remedy]| match needed <= limit {
            true => Ok(()),
            false => Err(Refusal::Limit(Error::ExceedsLimit {
                device: format!("a binding of {} with {what}", own.device),
                needed,
                available: limit,
                advice: Advice { because: Box::default(), remedies: remedies.to_vec() },
            })),
        };
        let kv_buffer = largest_kv_buffer_bytes(site.model, site.kv_caches(own), site.options.n_kv_blocks(shape.ctx_size));
        check(
            "the KV cache of one layer",
            kv_buffer,
            &[Remedy::Lower(Setting::CtxSize, None), Remedy::Use(Setting::KvDType, "f16".into())],
        )?;
        let state = largest_state_buffer_bytes(site.model, site.options.n_seqs);
        check("the recurrent state of one layer", state, &[Remedy::Lower(Setting::NSeqs, None)])?;
        let loras = self.units_of(worker).into_iter().flat_map(|unit| &site.model.units[unit].ops).filter_map(|op| match op {
            Op::LoraMatMul(op) => Some(Bytes(4).times((op.n_rows * op.n_columns) as u64)),
            _ => None,
        });
        check("a matrix of a LoRA adapter", loras.max().unwrap_or_default(), &[Remedy::Use(Setting::Device, "cpu".into())])?;
        let role = self.role(&self.units_of(worker));
        check("the activations of one forward", site.largest_working(shape.forward, role), &[Remedy::Lower(Setting::UbatchSize, None)])
    }

    /// Cuts a worker's units and gives it a ring.
    fn part(&self, worker: usize, units: &[usize]) -> Result<PartOutcome, Refusal> {
        let own = &self.site.workers[worker];
        let chunks = match self.rings {
            Rings::Fitted(slot_limits) => self.fit(worker, units, slot_limits[worker])?,
            Rings::Given(cuttings) => self.cut_as_given(own, units, cuttings[worker])?,
        };
        let (chunks, cutting) = match chunks {
            Chunks::Cut(chunks, cutting) => (chunks, cutting),
            Chunks::NeedsDispatches(needed) => return Ok(PartOutcome::NeedsDispatches(needed)),
        };
        let in_chunks = |resident: bool| {
            let of_kind = chunks.iter().filter(move |chunk| !chunk.is_cached && (chunk.stored_on == own.device) == resident);
            of_kind.map(|chunk| chunk.size_bytes)
        };
        let mut used = self.fixed(worker, units, n_dispatches_of(&chunks));
        used.weights += in_chunks(true).sum();
        let ring = cutting.map(|Cutting { slot_bytes: cut_bytes, as_in_files }| {
            let n_slots = self.shape.n_slots;
            let lookahead = self.site.options.lookahead.unwrap_or(n_slots - 1).clamp(1, n_slots);
            let slot_bytes = in_chunks(false).max().unwrap_or_default();
            RingPlan { n_slots, slot_bytes, cut_bytes, as_in_files, lookahead, upload: own.upload }
        });
        if let Some(ring) = ring {
            used.slots = ring.slot_bytes.times(ring.n_slots as u64);
            if own.is_gpu() && ring.upload == UploadPath::Staged {
                used.staging = used.slots;
            }
        }
        if used.total() > self.budgets[worker] {
            return Err(Refusal::Budget);
        }
        let expert_cache = self.expert_cache(own, units, &chunks, self.budgets[worker].saturating_sub(used.total()))?;
        used.expert_cache = expert_cache.map_or(Bytes::ZERO, |cache| cache.size_bytes());
        Ok(PartOutcome::Made(Part { worker, chunks, ring, expert_cache, used }))
    }

    /// The cache in `room` bytes for the experts of `chunks` that are cached, if any are.
    fn expert_cache(&self, own: &Worker<'_>, units: &[usize], chunks: &[Chunk], room: Bytes) -> Result<Option<ExpertCachePlan>, Refusal> {
        let cached = chunks.iter().filter(|chunk| chunk.is_cached);
        let shapes: Vec<_> = cached.filter_map(|chunk| expert_shape(chunk, self.site.model)).collect();
        if shapes.is_empty() {
            return Ok(None);
        }
        let misses = units.iter().find_map(|&unit| self.placements[unit].expert_misses).unwrap_or_default();
        let profile = self.site.options.expert_profile.as_deref();
        ExpertCachePlan::fitted(&shapes, &own.limits, room, misses, profile).map(Some).ok_or(Refusal::Budget)
    }

    /// Cuts a worker's units for slots that its budget has room for, with parameters for its dispatches set aside.
    fn fit(&self, worker: usize, units: &[usize], slot_limit: Bytes) -> Result<Chunks, Refusal> {
        let own = &self.site.workers[worker];
        let set_aside = self.n_dispatches[worker];
        let fixed = self.fixed(worker, units, set_aside);
        let all: Bytes = units.iter().map(|&unit| own.block_bytes[unit]).sum();
        // Sums saturate: one that reaches the largest number is too large to be counted.
        if fixed.total() > self.budgets[worker] || fixed.total() + all == Bytes(u64::MAX) {
            return Err(Refusal::Budget);
        }
        let resident: Bytes = units.iter().map(|&unit| self.resident_bytes(own, unit)).sum();
        let room = self.budgets[worker].saturating_sub(fixed.total());
        if resident > room {
            return Err(Refusal::Budget);
        }
        let streamed = self.streamed(own, units);
        let slot_bytes = self.slot_bytes(worker, &streamed, room.saturating_sub(resident), slot_limit)?;
        if let Some(slot_bytes) = slot_bytes {
            let at_least = self.least_dispatches(own, units, &streamed, slot_bytes)?;
            if at_least > set_aside {
                return Ok(Chunks::NeedsDispatches(at_least));
            }
        }
        let chunks = self.cut(own, units, slot_bytes.unwrap_or_default())?;
        let (chunks, cutting) = match slot_bytes {
            Some(slot_bytes) if own.device == Device::Cpu => {
                let (chunks, cutting) = self.as_in_files(own, units, chunks, slot_bytes, room)?;
                (chunks, Some(cutting))
            }
            slot_bytes => (chunks, slot_bytes.map(|slot_bytes| Cutting { slot_bytes, as_in_files: false })),
        };
        let needed = n_dispatches_of(&chunks);
        Ok(if needed > set_aside { Chunks::NeedsDispatches(needed) } else { Chunks::Cut(chunks, cutting) })
    }

    /// Cuts a worker's units as they were cut before.
    fn cut_as_given(&self, own: &Worker<'_>, units: &[usize], cutting: Option<Cutting>) -> Result<Chunks, Refusal> {
        let streamed = self.streamed(own, units);
        let cutting = cutting.filter(|_| !streamed.is_empty());
        let slot_bytes = cutting.map(|cutting| cutting.slot_bytes).unwrap_or_default();
        if !streamed.is_empty() {
            if slot_bytes < self.least_slot() {
                return Err(Refusal::Budget);
            }
            self.least_dispatches(own, units, &streamed, slot_bytes)?;
        }
        let mut chunks = self.cut(own, units, slot_bytes)?;
        if cutting.is_some_and(|cutting| cutting.as_in_files) {
            self.lay_out_streamed(own, &mut chunks);
        }
        Ok(Chunks::Cut(chunks, cutting))
    }

    /// Those of `units` of which something streams.
    fn streamed(&self, own: &Worker<'_>, units: &[usize]) -> Vec<usize> {
        units.iter().copied().filter(|&unit| self.matrices_at(unit, |stored_on| stored_on != own.device).next().is_some()).collect()
    }

    /// A slot that holds any row.
    fn least_slot(&self) -> Bytes {
        self.site.row_bytes.align_up(SLICE_ALIGNMENT)
    }

    fn lay_out_streamed(&self, own: &Worker<'_>, chunks: &mut [Chunk]) {
        let streamed = chunks.iter_mut().filter(|chunk| !chunk.is_cached && chunk.stored_on != own.device);
        streamed.for_each(|chunk| lay_out_as_in_files(chunk, self.site.catalog));
    }

    fn is_resident(&self, own: &Worker<'_>, unit: usize) -> bool {
        self.placements[unit].stored_on.iter().all(|&stored_on| stored_on == own.device)
    }

    /// Bytes of a unit that stay on its device; exact only for a unit that stays whole, and never too few.
    fn resident_bytes(&self, own: &Worker<'_>, unit: usize) -> Bytes {
        if self.is_resident(own, unit) {
            return own.block_bytes[unit];
        }
        self.matrices_at(unit, |stored_on| stored_on == own.device).sum()
    }

    /// Sizes of those matrices of a unit that are stored where `is_wanted` says, without the experts that pass through a cache.
    fn matrices_at(&self, unit: usize, is_wanted: impl Fn(Device) -> bool) -> impl Iterator<Item = Bytes> {
        let placement = &self.placements[unit];
        let matrices = self.site.model.units[unit].ops.iter().filter_map(|op| Some((op, op.matrix()?)));
        let is_cached = |op: &Op, stored_on: Device| {
            placement.expert_misses.is_some() && stored_on != placement.execute_on && matches!(op, Op::ExpertMatMul(_))
        };
        matrices
            .zip(&placement.stored_on)
            .filter(move |((op, _), stored_on)| is_wanted(**stored_on) && !is_cached(op, **stored_on))
            .map(|((_, id), _)| self.site.catalog[id].size_bytes.align_up(SLICE_ALIGNMENT))
    }

    /// Bytes of a slot: the largest streamed part of a unit whole, so that it is one large copy, where there is room.
    fn slot_bytes(&self, worker: usize, streamed: &[usize], room: Bytes, limit: Bytes) -> Result<Option<Bytes>, Refusal> {
        let own = &self.site.workers[worker];
        let largest_part = |&unit: &usize| self.matrices_at(unit, |stored_on| stored_on != own.device).sum::<Bytes>();
        let Some(largest) = streamed.iter().map(largest_part).max() else { return Ok(None) };
        let least = self.least_slot();
        let share = Bytes(room.0 / own.ring_copies(self.shape.n_slots)).align_down(SLICE_ALIGNMENT);
        let slot_bytes = largest.max(least).min(share).min(limit);
        if slot_bytes < least { Err(Refusal::Budget) } else { Ok(Some(slot_bytes)) }
    }

    /// A lower bound of the dispatches, by counting, which is cheap where cutting is not. Slices that end early because a slot is full add more.
    fn least_dispatches(&self, own: &Worker<'_>, units: &[usize], streamed: &[usize], slot_bytes: Bytes) -> Result<usize, Refusal> {
        let model = self.site.model;
        let max_slice = slot_bytes.min(own.limits.max_binding_bytes);
        let n_slices = n_slices(self.site.catalog, streamed.iter().flat_map(|&unit| model.units[unit].matrices()), max_slice);
        if n_slices > MAX_WORK {
            return Err(Refusal::Budget);
        }
        let n_ops: usize = streamed.iter().map(|&unit| model.units[unit].ops.len() - model.units[unit].matrices().count()).sum();
        let resident = units.iter().filter(|&&unit| self.is_resident(own, unit)).flat_map(|&unit| &own.blocks[unit]);
        Ok(n_dispatches_of(resident) + n_slices as usize + n_ops.saturating_sub(1))
    }

    fn cut(&self, own: &Worker<'_>, units: &[usize], slot_bytes: Bytes) -> Result<Vec<Chunk>, Refusal> {
        let mut all = Vec::with_capacity(units.len());
        for &unit in units {
            let stored_on = &self.placements[unit].stored_on;
            let caches_experts = self.placements[unit].expert_misses.is_some();
            let how = Cut { catalog: self.site.catalog, limits: &own.limits, stored_on, executor: own.device, slot_bytes, caches_experts };
            all.extend(if self.is_resident(own, unit) {
                own.blocks[unit].clone()
            } else if caches_experts || stored_on.contains(&own.device) {
                cut(unit, &self.site.model.units[unit], &how)?
            } else {
                cut_evenly(unit, &self.site.model.units[unit], &how)?
            });
        }
        Ok(share_slots(all, own.device, slot_bytes.min(own.limits.max_buffer_bytes)))
    }

    /// Lays chunks that the host streams from disk out as in the files, so that they are read into the slots themselves, without a copy.
    /// Where there is no `room` for the padding which that adds to slots of `slot_bytes`, chunks that are a little smaller make some.
    fn as_in_files(
        &self,
        own: &Worker<'_>,
        units: &[usize],
        mut chunks: Vec<Chunk>,
        mut slot_bytes: Bytes,
        room: Bytes,
    ) -> Result<(Vec<Chunk>, Cutting), Refusal> {
        let catalog = self.site.catalog;
        let streams = |chunk: &Chunk| chunk.stored_on != own.device;
        let fits = |chunks: &[Chunk]| {
            let resident: Bytes = chunks.iter().filter(|chunk| !streams(chunk)).map(|chunk| chunk.size_bytes).sum();
            let streamed = chunks.iter().filter(|chunk| streams(chunk));
            let slot = streamed.map(|chunk| size_as_in_files(chunk, catalog)).max().unwrap_or_default();
            resident + slot.times(own.ring_copies(self.shape.n_slots)) <= room
        };
        if !fits(&chunks) {
            let n_slices = chunks.iter().map(|chunk| chunk.slices.len()).max().unwrap_or(0);
            let padding = SLICE_PADDING.times(n_slices as u64);
            let smaller = slot_bytes.saturating_sub(padding).align_down(SLICE_ALIGNMENT);
            if padding.times(SLOT_TO_PADDING) > slot_bytes || smaller < self.least_slot() {
                return Ok((chunks, Cutting { slot_bytes, as_in_files: false }));
            }
            let smaller_chunks = self.cut(own, units, smaller)?;
            if !fits(&smaller_chunks) {
                return Ok((chunks, Cutting { slot_bytes, as_in_files: false }));
            }
            (chunks, slot_bytes) = (smaller_chunks, smaller);
        }
        self.lay_out_streamed(own, &mut chunks);
        Ok((chunks, Cutting { slot_bytes, as_in_files: true }))
    }

    /// Puts the parts together, if host memory has room for all that is stored there.
    fn assemble(&self, parts: Vec<Part>) -> Result<Plan, Refusal> {
        let site = self.site;
        let shared = parts.iter().filter(|part| site.workers[part.worker].shares_host_memory()).map(|part| part.used.total()).sum();
        let host_part = parts.iter().find(|part| site.workers[part.worker].device == Device::Cpu);
        let host_budget = site.host_budget(shared);
        let for_adapters: Bytes =
            parts.iter().filter(|part| site.workers[part.worker].device != Device::Cpu).map(host_resident_bytes).sum();
        let mut host_used = host_part.map(|part| part.used).unwrap_or_default();
        host_used.weights += for_adapters;
        for part in parts.iter().filter(|part| part.expert_cache.is_some_and(|cache| cache.misses.go_to_host())) {
            let of_misses = host_bytes(site.model, site.catalog, &part.chunks);
            host_used.weights += of_misses.weights;
            host_used.activations += of_misses.activations;
        }
        if host_used.total() > host_budget {
            return Err(Refusal::Budget);
        }
        let (embedding_device, embedding_bytes) = self.place_embedding(host_budget.saturating_sub(host_used.total()));
        host_used.weights += embedding_bytes;

        let rows: Vec<PartRow> = parts.iter().map(|part| (part.worker, part.ring, part.expert_cache, part.used)).collect();
        let mut chunks: Vec<Chunk> = parts.into_iter().flat_map(|part| part.chunks).collect();
        // No chunk has units of two devices, and the chunks of one unit keep their order.
        chunks.sort_by_key(Chunk::unit);
        let ranges = chunks_of_units(&chunks, site.model.units.len());
        let unit_plan = |(index, own): (usize, Range<usize>)| {
            let is_embedding = site.model.units[index].kind == UnitKind::Embedding;
            let stored_on = if is_embedding { Some(embedding_device) } else { chunks[own.clone()].first().map(|chunk| chunk.stored_on) };
            UnitPlan {
                name: site.model.units[index].name.clone(),
                kind: site.model.units[index].kind,
                stored_on: stored_on.unwrap_or(Device::Cpu),
                execute_on: if is_embedding { Device::Cpu } else { self.placements[index].execute_on },
                size_bytes: self.unit_bytes(index),
                chunks: own,
            }
        };
        let units: Vec<UnitPlan> = ranges.into_iter().enumerate().map(unit_plan).collect();
        let mut plan = Plan {
            schema: PLAN_SCHEMA,
            devices: Vec::new(),
            units,
            chunks,
            ctx_size: self.shape.ctx_size,
            ctx_size_model: site.model.config.context_length,
            n_seqs: site.options.n_seqs,
            kv_size: site.options.kv_size,
            forward: self.shape.forward,
            kv_dtype: site.options.kv_dtype,
        };
        plan.devices = self.device_rows(&plan, &rows, (host_budget, host_used));
        Ok(plan)
    }

    fn device_rows(&self, plan: &Plan, parts: &[PartRow], host: (Bytes, Usage)) -> Vec<DevicePlan> {
        let site = self.site;
        let n_units = |is_own: &dyn Fn(&UnitPlan) -> bool| plan.units.iter().filter(|unit| is_own(unit)).count();
        let row = |spec: &DeviceSpec, budget: Option<Bytes>, used: Usage, (ring, expert_cache)| DevicePlan {
            device: spec.device,
            name: spec.name.clone(),
            budget,
            budget_source: if budget.is_some() { self.budget_source(spec) } else { String::new() },
            used,
            n_units: n_units(&|unit| unit.stored_on == spec.device),
            n_executed: n_units(&|unit| unit.execute_on == spec.device && !unit.chunks.is_empty()),
            ring,
            expert_cache,
            streamed_bytes: plan
                .streamed_chunks()
                .filter(|&chunk| plan.stored_on(chunk) == spec.device)
                .map(|chunk| plan.chunks[chunk].stored_bytes())
                .sum(),
        };
        let mut rows = Vec::new();
        for &(worker, ring, expert_cache, used) in parts {
            let own = &site.workers[worker];
            let (budget, used) = if own.device == Device::Cpu { host } else { (self.budgets[worker], used) };
            rows.push(row(own.spec, Some(budget), used, (ring, expert_cache)));
        }
        if rows.iter().all(|row| row.device != Device::Cpu) {
            rows.push(row(site.host, Some(host.0), host.1, (None, None)));
        }
        match site.devices.iter().find(|spec| spec.device == Device::Disk) {
            Some(disk) => rows.push(row(disk, None, Usage::default(), (None, None))),
            None => rows.push(row(&nameless_disk(), None, Usage::default(), (None, None))),
        }
        rows
    }

    fn budget_source(&self, spec: &DeviceSpec) -> String {
        let shares = || self.site.workers.iter().any(|worker| worker.shares_host_memory());
        match self.site.options.max_memory.contains_key(&spec.device) {
            true => Setting::MaxMemory.field().to_owned(),
            false if spec.device == Device::Cpu && shares() => format!("{}, less what adapters use of it", spec.capacity_source),
            false => spec.capacity_source.clone(),
        }
    }

    fn unit_bytes(&self, unit: usize) -> Bytes {
        let Site { model, catalog, .. } = self.site;
        match model.units[unit].kind {
            UnitKind::Embedding => model.embeddings().map(|(table, _)| catalog[table].size_bytes).sum(),
            UnitKind::Head if model.config.tied_embeddings => Bytes::ZERO,
            _ => model.units[unit].matrices().map(|id| catalog[id].size_bytes).sum(),
        }
    }

    /// Where the embedding is stored, and the bytes that it takes of host memory for itself. The host gathers a few of its rows per forward,
    /// so it is never stored on a GPU, and reading them from disk costs next to nothing: it takes host memory only where some is left
    /// (`room`), or where a tied head is stored there anyway.
    fn place_embedding(&self, room: Bytes) -> (Device, Bytes) {
        let head_device = self.placements.last().and_then(|head| head.stored_on.first());
        let is_shared = self.site.model.config.tied_embeddings && head_device == Some(&Device::Cpu);
        let own = self.site.model.embeddings().skip(usize::from(is_shared));
        match own.map(|(table, _)| self.site.catalog[table].size_bytes).sum() {
            size_bytes if size_bytes <= room => (Device::Cpu, size_bytes),
            _ => (Device::Disk, Bytes::ZERO),
        }
    }
}

/// Host-resident bytes of a part.
fn host_resident_bytes(part: &Part) -> Bytes {
    part.chunks.iter().filter(|chunk| chunk.stored_on == Device::Cpu).map(|chunk| chunk.size_bytes).sum()
}

/// The range of chunks of each unit.
fn chunks_of_units(chunks: &[Chunk], n_units: usize) -> Vec<Range<usize>> {
    let mut ranges = vec![0..0; n_units];
    for (index, chunk) in chunks.iter().enumerate() {
        for of_unit in &chunk.work {
            let range = &mut ranges[of_unit.unit];
            *range = if range.end == 0 { index..index + 1 } else { range.start..index + 1 };
        }
    }
    ranges
}

fn nameless_disk() -> DeviceSpec {
    DeviceSpec {
        device: Device::Disk,
        name: "the model's files".into(),
        driver: String::new(),
        kind: None,
        capacity: None,
        capacity_source: String::new(),
        limits: None,
        vendor: 0,
        rates: crate::device::Rates::default(),
    }
}
