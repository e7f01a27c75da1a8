//! Homes for one budget and one shape. What a forward needs besides weights is set aside first, then the ring, then units
//! take their homes front to back: the executing device while there is room, then host memory, then disk.

use crate::device::{Device, DeviceSpec};
use crate::error::Error;
use crate::model::UnitKind;
use crate::plan::pieces::{Piece, SLICE_ALIGNMENT, cut_evenly};
use crate::plan::placement::{MAX_WORK, Refusal, Shape, Site, n_dispatches_of, n_slices};
use crate::plan::sizes::kv_buffer_bytes;
use crate::plan::{DevicePlan, Plan, ResidentLayers, RingPlan, UnitPlan, UploadPath, Usage};
use crate::units::Bytes;

/// A smaller slot is not worth its overhead: the ring takes all the room before its slots get smaller than this.
const SLOT_BYTES_MIN: Bytes = Bytes::kib(64);

/// One try: this budget, this shape.
pub(super) struct Attempt<'a> {
    pub(super) site: &'a Site<'a>,
    pub(super) budget: Bytes,
    pub(super) shape: Shape,
}

/// Homes and pieces while a plan is made.
struct Homes {
    homes: Vec<Device>,
    ranges: Vec<std::ops::Range<usize>>,
    pieces: Vec<Piece>,
    ring: Option<RingPlan>,
    host_budget: Bytes,
}

/// What came of choosing homes.
enum Choice {
    Made(Homes),
    /// The pieces will need so many dispatches, and their parameters were not provided for.
    NeedsDispatches(usize),
}

/// Room for weights that stay, and the largest slots that the rest has room for.
#[derive(Debug, Clone, Copy)]
struct Division {
    resident_room: Bytes,
    slot_bytes: Bytes,
}

impl Attempt<'_> {
    pub(super) fn place(&self) -> Result<Plan, Refusal> {
        self.check_limits()?;
        let mut n_dispatches = n_dispatches_of(self.site.blocks.iter().flatten());
        // Cutting units into pieces adds dispatches, whose parameters take memory, which may cut more: settle in a few rounds.
        loop {
            let needed = match self.choose_homes(n_dispatches)? {
                Choice::Made(homes) => {
                    let needed = n_dispatches_of(&homes.pieces);
                    if needed <= n_dispatches {
                        return Ok(self.finish(homes, self.fixed(needed)));
                    }
                    needed
                }
                Choice::NeedsDispatches(needed) => needed,
            };
            n_dispatches = needed + needed / 8;
        }
    }

    /// What the executing device holds besides matrices and the ring.
    fn fixed(&self, n_dispatches: usize) -> Usage {
        let Site { model, options, .. } = self.site;
        let kv_buffer = kv_buffer_bytes(&model.config, options.kv_dtype, options.n_seqs, self.shape.ctx_size);
        Usage {
            weights: self.site.vector_bytes,
            kv_cache: kv_buffer.times(2 * model.config.n_layers as u64),
            activations: self.site.working_bytes(self.shape.forward) + self.site.params_bytes(n_dispatches),
            ..Usage::default()
        }
    }

    fn check_limits(&self) -> Result<(), Refusal> {
        let (site, shape) = (self.site, self.shape);
        let limit = site.largest_buffer();
        let check = |what: &str, needed: Bytes, advice: &str| match needed <= limit {
            true => Ok(()),
            false => Err(Refusal::Limit(Error::DoesNotFit {
                device: format!("a binding of {} with {what}", site.executor.device),
                needed,
                available: limit,
                advice: advice.into(),
            })),
        };
        let kv_buffer = kv_buffer_bytes(&site.model.config, site.options.kv_dtype, site.options.n_seqs, shape.ctx_size);
        check("the KV cache of one layer", kv_buffer, "lower --ctx-size, or use --kv-dtype f16")?;
        check("the activations of one forward", site.largest_working(shape.forward), "lower --ubatch-size")
    }

    /// Gives every unit a home and cuts it into pieces, with parameters for `n_dispatches` set aside.
    fn choose_homes(&self, n_dispatches: usize) -> Result<Choice, Refusal> {
        let site = self.site;
        let fixed = self.fixed(n_dispatches);
        // Sums stop at the largest number: what reaches it is more than can be counted.
        if fixed.total() > self.budget || fixed.total() + site.block_bytes == Bytes(u64::MAX) {
            return Err(Refusal::Budget);
        }
        let room = self.budget.saturating_sub(fixed.total());
        let resident_limit = self.resident_limit();
        if site.block_bytes <= room && resident_limit >= site.blocks.len() {
            let homes = vec![site.options.execute_on; site.blocks.len()];
            let host_budget = site.host_budget(fixed.total() + site.block_bytes);
            return Ok(Choice::Made(Homes::new(homes, site.blocks.clone(), None, host_budget)));
        }
        if site.options.resident_layers == ResidentLayers::All {
            return Err(Refusal::Budget);
        }
        let division = self.divide(room).ok_or(Refusal::Budget)?;
        let n_resident = self.n_resident(division.resident_room, resident_limit);
        let (resident, streamed) = site.blocks.split_at(n_resident);
        let streamed_units = || (n_resident..).zip(&site.model.units[n_resident..]);
        let max_slice = division.slot_bytes.min(site.limits.max_binding_bytes);
        let n_streamed_slices = n_slices(site.catalog, streamed_units().flat_map(|(_, unit)| unit.matrices()), max_slice);
        if n_streamed_slices > MAX_WORK {
            return Err(Refusal::Budget);
        }
        // Counting is cheap and cutting is not; slices end early where a slot is full, so there may be more.
        let n_ops: usize = streamed_units().map(|(_, unit)| unit.ops.len() - unit.matrices().count()).sum();
        let at_least = n_dispatches_of(resident.iter().flatten()) + n_streamed_slices as usize + n_ops.saturating_sub(1);
        if at_least > n_dispatches {
            return Ok(Choice::NeedsDispatches(at_least));
        }
        let mut pieces = resident.to_vec();
        for ((index, unit), block) in streamed_units().zip(streamed) {
            pieces.push(match unit.kind {
                UnitKind::Embedding => block.clone(),
                _ => cut_evenly(index, unit, site.catalog, &site.limits, division.slot_bytes)?,
            });
        }
        let slot_bytes = pieces[n_resident..].iter().flatten().map(|piece| piece.size_bytes).max().unwrap_or(division.slot_bytes);
        let n_slots = self.shape.n_slots;
        let lookahead = site.options.lookahead.unwrap_or(n_slots - 1).clamp(1, n_slots);
        let ring = RingPlan { n_slots, slot_bytes, lookahead, upload: site.upload };
        let resident_bytes: Bytes = resident.iter().flatten().map(|piece| piece.size_bytes).sum();
        let host_budget = site.host_budget(fixed.total() + resident_bytes + slot_bytes.times(self.ring_copies()));
        let homes = self.homes_front_to_back(n_resident, &pieces, host_budget);
        Ok(Choice::Made(Homes::new(homes, pieces, Some(ring), host_budget)))
    }

    /// How many units from the front may be resident (`-ngl` counts layers; each is two units after the embedding).
    fn resident_limit(&self) -> usize {
        match self.site.options.resident_layers {
            // `-ngl` speaks of GPUs: a host that computes holds what it can.
            ResidentLayers::AtMost(n_layers) if self.site.executes_on_gpu() && n_layers <= self.site.model.config.n_layers => {
                1 + 2 * n_layers
            }
            _ => usize::MAX,
        }
    }

    /// Slots, and staging buffers beside them, that take device memory.
    fn ring_copies(&self) -> u64 {
        let copies = if self.site.executes_on_gpu() && self.site.upload == UploadPath::Staged { 2 } else { 1 };
        self.shape.n_slots as u64 * copies
    }

    /// Divides the room between what stays and the ring. A slot takes the largest layer part whole, so that it is one
    /// large copy, as long as the ring takes at most a third of the room; it is smaller below that, and it takes more
    /// than a third only to be no smaller than [`SLOT_BYTES_MIN`]. A larger room never leaves less for what stays.
    fn divide(&self, room: Bytes) -> Option<Division> {
        let site = self.site;
        let copies = self.ring_copies();
        let largest = |in_layer: bool| {
            let units = site.model.units.iter().zip(&site.blocks).filter(|(unit, _)| unit.kind.layer().is_some() == in_layer);
            units.flat_map(|(_, pieces)| pieces).map(|piece| piece.size_bytes).max()
        };
        let least = site.row_bytes.align_up(SLICE_ALIGNMENT);
        let most = largest(true).or_else(|| largest(false))?.max(least);
        let third = Bytes(room.0 / 3).max(SLOT_BYTES_MIN.times(copies));
        let share = most.times(copies).min(third).min(room).max(least.times(copies));
        if share > room {
            return None;
        }
        Some(Division { resident_room: room.saturating_sub(share), slot_bytes: Bytes(share.0 / copies).align_down(SLICE_ALIGNMENT) })
    }

    /// Units from the front that stay on the executing device. The embedding has no block and needs no room.
    fn n_resident(&self, room: Bytes, limit: usize) -> usize {
        let mut taken = Bytes::ZERO;
        let fits = |block: &&Vec<Piece>| {
            taken += block.iter().map(|piece| piece.size_bytes).sum();
            taken <= room
        };
        self.site.blocks.iter().take(limit).take_while(fits).count()
    }

    /// The executing device for the first `n_resident` units, then host memory while there is room, then disk.
    fn homes_front_to_back(&self, n_resident: usize, pieces: &[Vec<Piece>], host_budget: Bytes) -> Vec<Device> {
        let site = self.site;
        let mut homes = vec![site.options.execute_on; n_resident];
        // A host that computes holds what is resident; what is not comes from disk.
        let mut host_room = if site.executes_on_gpu() { Some(host_budget) } else { None };
        for pieces in &pieces[n_resident..] {
            let size_bytes: Bytes = pieces.iter().map(|piece| piece.size_bytes).sum();
            host_room = host_room.filter(|&room| size_bytes <= room).map(|room| room.saturating_sub(size_bytes));
            homes.push(if host_room.is_some() { Device::Cpu } else { Device::Disk });
        }
        homes
    }

    fn finish(&self, mut homes: Homes, fixed: Usage) -> Plan {
        let site = self.site;
        let execute_on = site.options.execute_on;
        let held = if execute_on == Device::Cpu { Bytes::ZERO } else { homes.bytes_at(Device::Cpu) };
        let mut used = Usage { weights: fixed.weights + homes.bytes_at(execute_on), ..fixed };
        if let Some(ring) = homes.ring {
            used.slots = ring.slot_bytes.times(ring.n_slots as u64);
            if site.executes_on_gpu() && ring.upload == UploadPath::Staged {
                used.staging = used.slots;
            }
        }
        let mut host_used = Usage { weights: held, ..Usage::default() };
        if execute_on == Device::Cpu {
            used.weights += self.home_of_embedding(&mut homes, self.budget.saturating_sub(used.total()));
        } else {
            let room = homes.host_budget.saturating_sub(held);
            host_used.weights += self.home_of_embedding(&mut homes, room);
        }
        let source = |spec: &DeviceSpec| match site.options.max_memory.contains_key(&spec.device) {
            true => "--max-memory".to_owned(),
            false if spec.device == Device::Cpu && site.shares_memory() => format!("{}, less what {execute_on} uses", spec.capacity_source),
            false => spec.capacity_source.clone(),
        };
        let row = |spec: &DeviceSpec, budget: Bytes, used: Usage, streamed_bytes: Bytes| DevicePlan {
            device: spec.device,
            name: spec.name.clone(),
            budget: Some(budget),
            budget_source: source(spec),
            used,
            n_units: homes.n_units(spec.device),
            streamed_bytes,
        };
        let mut devices = vec![row(site.executor, self.budget, used, Bytes::ZERO)];
        if execute_on != Device::Cpu {
            devices.push(row(site.host, homes.host_budget, host_used, held));
        }
        devices.push(DevicePlan {
            device: Device::Disk,
            name: "the model's files".into(),
            budget: None,
            budget_source: String::new(),
            used: Usage::default(),
            n_units: homes.n_units(Device::Disk),
            streamed_bytes: homes.bytes_at(Device::Disk),
        });
        self.assemble(homes, devices)
    }

    fn assemble(&self, homes: Homes, devices: Vec<DevicePlan>) -> Plan {
        let Site { model, options, catalog, .. } = self.site;
        let embedding = model.embedding();
        let units = model.units.iter().zip(homes.homes).zip(homes.ranges).map(|((unit, home), pieces)| {
            let size_bytes = match unit.kind {
                UnitKind::Embedding => embedding.map(|id| catalog[id].size_bytes).unwrap_or_default(),
                UnitKind::Head if model.config.tied_embeddings => Bytes::ZERO,
                _ => unit.matrices().map(|id| catalog[id].size_bytes).sum(),
            };
            UnitPlan { name: unit.name.clone(), home, size_bytes, pieces }
        });
        Plan {
            schema: "tierflow.plan/1",
            execute_on: options.execute_on,
            devices,
            units: units.collect(),
            pieces: homes.pieces,
            ring: homes.ring,
            ctx_size: self.shape.ctx_size,
            ctx_size_model: model.config.context_length,
            n_seqs: options.n_seqs,
            forward: self.shape.forward,
            kv_dtype: options.kv_dtype,
        }
    }

    /// The embedding's rows are gathered on the host, a few per forward, so it never needs a GPU home, and reading
    /// them from disk costs next to nothing: it takes host memory only where some is left (`room`), or where a tied head
    /// lies there anyway. Returns the bytes that it takes on the host for itself.
    fn home_of_embedding(&self, homes: &mut Homes, room: Bytes) -> Bytes {
        let Some(embedding) = self.site.model.embedding() else { return Bytes::ZERO };
        let size_bytes = self.site.catalog[embedding].size_bytes;
        let shared = self.site.model.config.tied_embeddings && homes.homes.last() == Some(&Device::Cpu);
        let (home, own_bytes) = match (shared, size_bytes <= room) {
            (true, _) => (Device::Cpu, Bytes::ZERO),
            (false, true) => (Device::Cpu, size_bytes),
            (false, false) => (Device::Disk, Bytes::ZERO),
        };
        if let Some(first) = homes.homes.first_mut() {
            *first = home;
        }
        own_bytes
    }
}

impl Homes {
    fn new(homes: Vec<Device>, pieces_by_unit: Vec<Vec<Piece>>, ring: Option<RingPlan>, host_budget: Bytes) -> Homes {
        let mut ranges = Vec::with_capacity(homes.len());
        let mut pieces = Vec::new();
        for unit_pieces in pieces_by_unit {
            let first = pieces.len();
            pieces.extend(unit_pieces);
            ranges.push(first..pieces.len());
        }
        Homes { homes, ranges, pieces, ring, host_budget }
    }

    /// Bytes of the pieces whose home is `device`.
    fn bytes_at(&self, device: Device) -> Bytes {
        let units = self.homes.iter().zip(&self.ranges).filter(|(home, _)| **home == device);
        units.flat_map(|(_, range)| &self.pieces[range.clone()]).map(|piece| piece.size_bytes).sum()
    }

    fn n_units(&self, device: Device) -> usize {
        self.homes.iter().filter(|home| **home == device).count()
    }
}
