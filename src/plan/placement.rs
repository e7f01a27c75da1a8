//! Greedy placement. What a forward needs besides weights is set aside first, then the ring, then units take their
//! homes front to back: the executing device while there is room, then host memory, then disk.

use crate::device::{Device, DeviceSpec, GpuLimits};
use crate::error::{Error, Result};
use crate::model::{Model, UnitKind};
use crate::plan::pieces::{Piece, SLICE_ALIGNMENT, cut};
use crate::plan::sizes::{ForwardSize, N_PARAMS_SETS, PARAMS_BYTES, kv_buffer_bytes, kv_bytes_per_position, working_set};
use crate::plan::{DevicePlan, KvDType, Plan, PlanOptions, ResidentLayers, RingPlan, UnitPlan, UploadPath, Usage};
use crate::units::Bytes;
use crate::weights::Catalog;

/// Slots of a ring unless told otherwise: one computed from, one ready, one being filled. Published measurements of
/// layer prefetching gain 8 % from a fourth slot and nothing from more.
const N_SLOTS: usize = 3;
/// Tokens per forward unless told otherwise or memory is short.
const UBATCH_SIZE: usize = 512;
/// A slot smaller than this is not worth its overhead; it is gone below only where nothing else fits.
const SLOT_BYTES_MIN: u64 = 64 << 10;

/// Makes the plan, shrinking what the user left open until it fits.
pub(super) fn place(catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> Result<Plan> {
    // The host's caches are f32: there, half the memory would cost more time than it saves.
    let host_options;
    let options = if options.execute_on == Device::Cpu {
        host_options = PlanOptions { kv_dtype: KvDType::F32, ..options.clone() };
        &host_options
    } else {
        options
    };
    let site = Site::new(catalog, model, devices, options)?;
    let mut first_error = None;
    for shape in site.shapes() {
        match site.place(shape) {
            Ok(plan) => return Ok(plan),
            Err(error @ Error::DoesNotFit { .. }) => first_error = Some(error),
            Err(error) => return Err(error),
        }
    }
    // The last shape is the smallest, so its error names the least that works.
    Err(first_error.unwrap_or_else(|| site.too_small(Bytes::ZERO)))
}

/// Sizes that the planner chooses where the user left them open.
#[derive(Debug, Clone, Copy)]
struct Shape {
    forward: ForwardSize,
    ctx_size: usize,
    n_slots: usize,
    slot_bytes_min: u64,
}

/// Everything that stays the same while shapes are tried.
struct Site<'a> {
    catalog: &'a Catalog,
    model: &'a Model,
    options: &'a PlanOptions,
    executor: &'a DeviceSpec,
    host: &'a DeviceSpec,
    limits: GpuLimits,
    budget: Bytes,
    host_budget: Bytes,
    upload: UploadPath,
    vector_bytes: Bytes,
}

impl<'a> Site<'a> {
    fn new(catalog: &'a Catalog, model: &'a Model, devices: &'a [DeviceSpec], options: &'a PlanOptions) -> Result<Site<'a>> {
        let find = |device: Device| {
            devices.iter().find(|spec| spec.device == device).ok_or_else(|| Error::InvalidArgument {
                option: "--device".into(),
                fault: format!("there is no {device}; `tierflow devices` lists what there is"),
            })
        };
        if let Some(unknown) = options.max_memory.keys().find(|device| !devices.iter().any(|spec| spec.device == **device)) {
            find(*unknown)?;
        }
        let (executor, host) = (find(options.execute_on)?, find(Device::Cpu)?);
        let budget_of = |spec: &DeviceSpec| options.max_memory.get(&spec.device).copied().or(spec.capacity);
        let budget = budget_of(executor).unwrap_or(Bytes::ZERO);
        let shares_memory = executor.kind.is_some_and(|kind| kind.shares_host_memory());
        let host_budget = match options.max_memory.get(&Device::Cpu) {
            Some(&asked) => asked,
            // One pool of memory must not be promised twice.
            None if shares_memory => budget_of(host).unwrap_or(Bytes::ZERO).saturating_sub(budget),
            None => budget_of(host).unwrap_or(Bytes::ZERO),
        };
        let host_limits = GpuLimits {
            max_buffer_bytes: Bytes(u64::MAX),
            max_binding_bytes: Bytes(u64::MAX),
            storage_alignment: 1,
            max_workgroups: u32::MAX,
        };
        let mut vectors: Vec<_> = model.units.iter().flat_map(|unit| unit.vectors()).collect();
        vectors.sort_unstable();
        vectors.dedup();
        // Vectors are held decoded, each at a binding's alignment.
        let vector_bytes = vectors.iter().map(|&id| Bytes(catalog[id].n_values() * 4).align_up(SLICE_ALIGNMENT)).sum();
        Ok(Site {
            catalog,
            model,
            options,
            executor,
            host,
            limits: executor.limits.unwrap_or(host_limits),
            budget,
            host_budget,
            upload: choose_upload(executor, options),
            vector_bytes,
        })
    }

    /// From what one would like to the least that works.
    fn shapes(&self) -> Vec<Shape> {
        let config = &self.model.config;
        let logit_rows = self.options.logit_rows.max(self.options.n_seqs).max(1);
        let working = |n_tokens| -> Bytes { working_bytes(self, ForwardSize { n_tokens, n_logit_rows: logit_rows }) };
        let ctx_limit = self.options.ctx_size.unwrap_or(config.context_length);
        let mut n_tokens = UBATCH_SIZE.min(ctx_limit.next_power_of_two());
        while n_tokens > 16
            && (working(n_tokens).0 > self.budget.0 / 8 || self.largest_working(n_tokens, logit_rows) > self.limits.max_binding_bytes)
        {
            n_tokens /= 2;
        }
        let n_slots = self.options.n_slots.unwrap_or(N_SLOTS);
        let row_bytes = self.model.units.iter().flat_map(|unit| unit.matrices()).map(|id| self.catalog[id].row_bytes()).max().unwrap_or(0);
        [(n_tokens, n_slots, SLOT_BYTES_MIN, 256), (16, n_slots, SLOT_BYTES_MIN, 128), (1, 2, 0, 64)]
            .into_iter()
            .map(|(n_tokens, n_slots, slot_bytes_min, ctx_min)| {
                let n_tokens = self.options.ubatch_size.unwrap_or(n_tokens).max(self.options.n_seqs).max(1);
                let forward = ForwardSize { n_tokens, n_logit_rows: logit_rows.min(n_tokens) };
                let n_slots = self.options.n_slots.unwrap_or(n_slots);
                let ctx_size = self.options.ctx_size.unwrap_or_else(|| self.context_that_fits(forward, ctx_min));
                Shape { forward, ctx_size, n_slots, slot_bytes_min: slot_bytes_min.max(row_bytes) }
            })
            .collect()
    }

    fn largest_working(&self, n_tokens: usize, n_logit_rows: usize) -> Bytes {
        working_set(&self.model.config, ForwardSize { n_tokens, n_logit_rows })
            .into_iter()
            .map(|(_, bytes)| bytes)
            .max()
            .unwrap_or_default()
    }

    /// The longest context whose cache leaves all weights resident, else one that takes a quarter of the budget.
    fn context_that_fits(&self, forward: ForwardSize, ctx_min: usize) -> usize {
        let config = &self.model.config;
        let per_position = (kv_bytes_per_position(config, self.options.kv_dtype).0 * self.options.n_seqs as u64).max(1);
        let room = self.budget.saturating_sub(working_bytes(self, forward)).saturating_sub(self.vector_bytes);
        let weights =
            self.model.units.iter().flat_map(|unit| unit.matrices()).map(|id| self.catalog[id].size_bytes.align_up(SLICE_ALIGNMENT)).sum();
        let fitting = (room.saturating_sub(weights).0.max(room.0 / 4) / per_position) as usize;
        let per_buffer = kv_buffer_bytes(config, self.options.kv_dtype, self.options.n_seqs, 1).0.max(1);
        let bindable = (self.limits.max_binding_bytes.0 / per_buffer) as usize;
        let ctx_size = fitting.max(ctx_min).min(bindable).min(config.context_length);
        if ctx_size > 64 { ctx_size / 64 * 64 } else { ctx_size.max(1) }
    }

    fn place(&self, shape: Shape) -> Result<Plan> {
        self.check_limits(shape)?;
        let config = &self.model.config;
        let kv_buffer = kv_buffer_bytes(config, self.options.kv_dtype, self.options.n_seqs, shape.ctx_size);
        let kv_cache = Bytes(kv_buffer.0 * 2 * config.n_layers as u64);
        let mut n_dispatches = self.model.units.iter().map(|unit| unit.ops.len() as u64).sum::<u64>() + 1;
        // Cutting units into pieces adds dispatches, whose parameters take memory, which may cut more: settle in a few rounds.
        loop {
            let params = if self.executes_on_gpu() { Bytes(n_dispatches * PARAMS_BYTES * N_PARAMS_SETS) } else { Bytes::ZERO };
            let activations = working_bytes(self, shape.forward) + params;
            let fixed = Usage { weights: self.vector_bytes, kv_cache, activations, ..Usage::default() };
            let homes = self.choose_homes(shape, fixed)?;
            let needed = n_dispatches_of(&homes.pieces) as u64;
            if needed <= n_dispatches {
                return self.finish(shape, homes, fixed);
            }
            n_dispatches = needed + needed / 8;
        }
    }

    fn executes_on_gpu(&self) -> bool {
        self.executor.limits.is_some()
    }

    fn check_limits(&self, shape: Shape) -> Result<()> {
        let kv_buffer = kv_buffer_bytes(&self.model.config, self.options.kv_dtype, self.options.n_seqs, shape.ctx_size);
        let limit = self.limits.max_binding_bytes;
        let over = |what: &str, needed: Bytes, advice: &str| Error::DoesNotFit {
            device: format!("a binding of {} with {what}", self.executor.device),
            needed,
            available: limit,
            advice: advice.into(),
        };
        if kv_buffer > limit {
            return Err(over("the KV cache of one layer", kv_buffer, "lower --ctx-size, or use --kv-dtype f16"));
        }
        let working = self.largest_working(shape.forward.n_tokens, shape.forward.n_logit_rows);
        if working > limit {
            return Err(over("the activations of one forward", working, "lower --ubatch-size"));
        }
        Ok(())
    }

    /// Gives every unit a home and cuts it into pieces.
    fn choose_homes(&self, shape: Shape, fixed: Usage) -> Result<Homes> {
        let room = self.budget.saturating_sub(fixed.total());
        if fixed.total() > self.budget {
            return Err(self.too_small(fixed.total() + Bytes(shape.slot_bytes_min * self.ring_copies(shape))));
        }
        let resident_limit = self.resident_limit();
        let blocks = self.model.units.iter().enumerate().map(|(index, unit)| match unit.kind {
            UnitKind::Embedding => Ok(Vec::new()),
            _ => cut(index, unit, self.catalog, &self.limits, Bytes(u64::MAX)),
        });
        let blocks: Vec<Vec<Piece>> = blocks.collect::<Result<_>>()?;
        let unit_bytes = |index: usize| -> Bytes { blocks[index].iter().map(|piece| piece.size_bytes).sum() };
        let all: Bytes = (0..blocks.len()).map(unit_bytes).sum();
        if all <= room && resident_limit >= blocks.len() {
            let homes = vec![self.options.execute_on; blocks.len()];
            return Ok(self.homes(homes, blocks, None));
        }
        if self.options.resident_layers == ResidentLayers::All {
            let needed = fixed.total() + all;
            return Err(Error::DoesNotFit {
                device: self.options.execute_on.to_string(),
                needed,
                available: self.budget,
                advice: "drop `-ngl all` so that the rest streams, or raise --max-memory".into(),
            });
        }
        let slot_bytes = self.slot_bytes(shape, room, &blocks).ok_or_else(|| {
            self.too_small(fixed.total() + Bytes(shape.slot_bytes_min.next_multiple_of(SLICE_ALIGNMENT) * self.ring_copies(shape)))
        })?;
        let ring_bytes = Bytes(slot_bytes.0 * self.ring_copies(shape));
        let homes = self.fill(room.saturating_sub(ring_bytes), resident_limit, unit_bytes);
        let pieces = blocks.into_iter().enumerate().map(|(index, block)| match homes[index] {
            home if home == self.options.execute_on || block.is_empty() => Ok(block),
            _ => cut(index, &self.model.units[index], self.catalog, &self.limits, slot_bytes),
        });
        let pieces = pieces.collect::<Result<Vec<_>>>()?;
        let lookahead = self.options.lookahead.unwrap_or(shape.n_slots - 1).clamp(1, shape.n_slots);
        let ring = RingPlan { n_slots: shape.n_slots, slot_bytes, lookahead, upload: self.upload };
        Ok(self.homes(homes, pieces, Some(ring)))
    }

    /// How many units from the front may be resident (`-ngl` counts layers; each is two units after the embedding).
    fn resident_limit(&self) -> usize {
        match self.options.resident_layers {
            ResidentLayers::AtMost(n_layers) if n_layers <= self.model.config.n_layers => 1 + 2 * n_layers,
            _ => usize::MAX,
        }
    }

    /// Slots, and staging buffers beside them, that take device memory.
    fn ring_copies(&self, shape: Shape) -> u64 {
        let copies = if self.executes_on_gpu() && self.upload == UploadPath::Staged { 2 } else { 1 };
        shape.n_slots as u64 * copies
    }

    /// A slot takes the largest layer part whole, so that it is one large copy; where memory is short it is halved until
    /// the ring takes at most a third of the room, and further if it must.
    fn slot_bytes(&self, shape: Shape, room: Bytes, blocks: &[Vec<Piece>]) -> Option<Bytes> {
        let copies = self.ring_copies(shape);
        let largest = |in_layer: bool| {
            let units = self.model.units.iter().zip(blocks).filter(|(unit, _)| unit.kind.layer().is_some() == in_layer);
            units.flat_map(|(_, pieces)| pieces).map(|piece| piece.size_bytes.0).max()
        };
        let mut slot_bytes = largest(true).or(largest(false))?;
        while slot_bytes * copies > room.0 / 3 && slot_bytes / 2 >= shape.slot_bytes_min {
            slot_bytes = (slot_bytes / 2).next_multiple_of(SLICE_ALIGNMENT);
        }
        let least = shape.slot_bytes_min.next_multiple_of(SLICE_ALIGNMENT);
        if slot_bytes * copies > room.0 {
            slot_bytes = least;
        }
        (slot_bytes.max(least) * copies <= room.0).then_some(Bytes(slot_bytes.max(least)))
    }

    /// Homes front to back: the executing device while there is room, host memory while there is room, disk.
    fn fill(&self, mut room: Bytes, resident_limit: usize, unit_bytes: impl Fn(usize) -> Bytes) -> Vec<Device> {
        let below: &[Device] = if self.executes_on_gpu() { &[Device::Cpu, Device::Disk] } else { &[Device::Disk] };
        let mut host_room = self.host_budget;
        let mut at = 0;
        let mut homes = Vec::with_capacity(self.model.units.len());
        for index in 0..self.model.units.len() {
            let size_bytes = unit_bytes(index);
            if at == 0 && (index >= resident_limit || size_bytes > room) {
                at = 1;
            }
            if at == 1 && below[0] == Device::Cpu && size_bytes > host_room {
                at = 2;
            }
            homes.push(match at {
                0 => {
                    room = room.saturating_sub(size_bytes);
                    self.options.execute_on
                }
                1 => {
                    host_room = host_room.saturating_sub(size_bytes);
                    below[0]
                }
                _ => Device::Disk,
            });
        }
        homes
    }

    fn homes(&self, homes: Vec<Device>, pieces_by_unit: Vec<Vec<Piece>>, ring: Option<RingPlan>) -> Homes {
        let mut ranges = Vec::with_capacity(homes.len());
        let mut pieces = Vec::new();
        for unit_pieces in pieces_by_unit {
            let first = pieces.len();
            pieces.extend(unit_pieces);
            ranges.push(first..pieces.len());
        }
        Homes { homes, ranges, pieces, ring }
    }

    fn finish(&self, shape: Shape, mut homes: Homes, fixed: Usage) -> Result<Plan> {
        let bytes_at = |homes: &Homes, device: Device| -> Bytes {
            let units = homes.homes.iter().zip(&homes.ranges).filter(|(home, _)| **home == device);
            units.flat_map(|(_, range)| &homes.pieces[range.clone()]).map(|piece| piece.size_bytes).sum()
        };
        let execute_on = self.options.execute_on;
        let resident = bytes_at(&homes, execute_on);
        let held = if execute_on == Device::Cpu { Bytes::ZERO } else { bytes_at(&homes, Device::Cpu) };
        let embedding_bytes = self.home_of_embedding(&mut homes, fixed, resident, held);

        let mut used = Usage { weights: fixed.weights + resident, ..fixed };
        if let Some(ring) = homes.ring {
            used.slots = Bytes(ring.slot_bytes.0 * ring.n_slots as u64);
            if self.executes_on_gpu() && ring.upload == UploadPath::Staged {
                used.staging = used.slots;
            }
        }
        let mut host_used = Usage { weights: held, ..Usage::default() };
        match homes.homes.first() {
            Some(&Device::Cpu) if execute_on == Device::Cpu => used.weights += embedding_bytes,
            Some(&Device::Cpu) => host_used.weights += embedding_bytes,
            _ => {}
        }
        let n_units = |device| homes.homes.iter().filter(|home| **home == device).count();
        let source = |spec: &DeviceSpec| match self.options.max_memory.contains_key(&spec.device) {
            true => "--max-memory".to_owned(),
            false => spec.capacity_source.clone(),
        };
        let row = |spec: &DeviceSpec, budget: Option<Bytes>, source: String, used: Usage, streamed_bytes: Bytes| DevicePlan {
            device: spec.device,
            name: spec.name.clone(),
            budget,
            budget_source: source,
            used,
            n_units: n_units(spec.device),
            streamed_bytes,
        };
        let mut devices = vec![row(self.executor, Some(self.budget), source(self.executor), used, Bytes::ZERO)];
        if execute_on != Device::Cpu {
            devices.push(row(self.host, Some(self.host_budget), source(self.host), host_used, held));
        }
        devices.push(DevicePlan {
            device: Device::Disk,
            name: "the model's files".into(),
            budget: None,
            budget_source: String::new(),
            used: Usage::default(),
            n_units: n_units(Device::Disk),
            streamed_bytes: bytes_at(&homes, Device::Disk),
        });
        Ok(self.assemble(shape, homes, devices))
    }

    fn assemble(&self, shape: Shape, homes: Homes, devices: Vec<DevicePlan>) -> Plan {
        let embedding = self.model.embedding();
        let units = self.model.units.iter().zip(homes.homes).zip(homes.ranges).map(|((unit, home), pieces)| {
            let size_bytes = match unit.kind {
                UnitKind::Embedding => embedding.map(|id| self.catalog[id].size_bytes).unwrap_or_default(),
                UnitKind::Head if self.model.config.tied_embeddings => Bytes::ZERO,
                _ => unit.matrices().map(|id| self.catalog[id].size_bytes).sum(),
            };
            UnitPlan { name: unit.name.clone(), home, size_bytes, pieces }
        });
        Plan {
            schema: "tierflow.plan/1",
            execute_on: self.options.execute_on,
            devices,
            units: units.collect(),
            pieces: homes.pieces,
            ring: homes.ring,
            ctx_size: shape.ctx_size,
            ctx_size_model: self.model.config.context_length,
            n_seqs: self.options.n_seqs,
            forward: shape.forward,
            kv_dtype: self.options.kv_dtype,
        }
    }

    /// The embedding's rows are gathered on the host, a few per forward, so it never needs a GPU home, and reading
    /// them from disk costs next to nothing: it takes host memory only where some is left, or where a tied head
    /// lies there anyway. Returns the bytes that it takes on the host for itself.
    fn home_of_embedding(&self, homes: &mut Homes, fixed: Usage, resident: Bytes, held: Bytes) -> Bytes {
        let Some(embedding) = self.model.embedding() else { return Bytes::ZERO };
        let size_bytes = self.catalog[embedding].size_bytes;
        let shared = self.model.config.tied_embeddings && homes.homes.last() == Some(&Device::Cpu);
        let ring_bytes = homes.ring.map_or(Bytes::ZERO, |ring| Bytes(ring.slot_bytes.0 * ring.n_slots as u64));
        let room = match self.options.execute_on {
            Device::Cpu => self.budget.saturating_sub(fixed.total() + resident + ring_bytes),
            _ => self.host_budget.saturating_sub(held),
        };
        let (home, own_bytes) = match (shared, size_bytes <= room) {
            (true, _) => (Device::Cpu, Bytes::ZERO),
            (false, true) => (Device::Cpu, size_bytes),
            (false, false) => (Device::Disk, Bytes::ZERO),
        };
        homes.homes[0] = home;
        own_bytes
    }

    fn too_small(&self, needed: Bytes) -> Error {
        let device = self.options.execute_on;
        let advice = match self.options.ctx_size {
            Some(ctx_size) => format!("raise --max-memory {device}=…, or lower --ctx-size ({ctx_size})"),
            None => format!("raise --max-memory {device}=…"),
        };
        Error::DoesNotFit { device: device.to_string(), needed, available: self.budget, advice }
    }
}

/// Homes and pieces while a plan is made.
struct Homes {
    homes: Vec<Device>,
    ranges: Vec<std::ops::Range<usize>>,
    pieces: Vec<Piece>,
    ring: Option<RingPlan>,
}

/// Dispatches of one forward: one per piece of work, and the selection of the best tokens.
pub(super) fn n_dispatches_of(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.work.len()).sum::<usize>() + 1
}

fn working_bytes(site: &Site<'_>, forward: ForwardSize) -> Bytes {
    working_set(&site.model.config, forward).into_iter().map(|(_, bytes)| bytes).sum()
}

/// The faster path by measured rates; unmeasured, mapped slots where the adapter's memory is the host's own.
fn choose_upload(executor: &DeviceSpec, options: &PlanOptions) -> UploadPath {
    let rates = &executor.rates;
    match (options.upload, rates.upload_mapped, rates.upload_staged) {
        (Some(asked), ..) => asked,
        (None, Some(mapped), Some(staged)) if mapped > staged => UploadPath::Mapped,
        _ => UploadPath::Staged,
    }
}
