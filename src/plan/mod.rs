//! Planning: a catalog, a model, devices and options become a [`Plan`]. Pure: it reads no file, no clock and no GPU, and the same input
//! gives the same plan, byte for byte.

mod assignment;
mod build;
mod candidates;
mod chunks;
mod costs;
mod counts;
mod device_map;
mod dry_run;
mod expert_cache;
mod expert_misses;
mod expert_placements;
mod expert_profile;
mod explain;
mod file_layout;
mod fusion;
mod greedy;
mod observe;
mod options;
mod planner;
mod refusal;
mod remedies;
mod report;
mod saved;
mod schedule;
mod scorer;
mod search;
mod shape;
mod site;
pub mod sizes;

use serde::{Deserialize, Serialize};

use crate::device::{Device, DeviceSpec};
use crate::error::{Error, Result, Setting};
use crate::model::{Model, Unit, UnitKind};
use crate::units::Bytes;
use crate::weights::Catalog;
pub use candidates::{Forecast, forecast, request_secs};
pub use chunks::{Chunk, SLICE_ALIGNMENT, Slice, UnitWork, Work, cut};
pub use costs::Workload;
pub(crate) use costs::{DeviceCosts, SUBMIT_SECS};
pub(crate) use dry_run::n_to_share;
pub use dry_run::{Bound, Busy, Prediction, halves_pay, predict};
pub use expert_cache::{ExpertCacheBlock, ExpertCachePlan, ExpertCacheRule};
pub(crate) use expert_cache::{ExpertShape, expert_products, expert_shape};
pub use expert_misses::{ExpertMissRule, ExpertMisses};
pub(crate) use expert_misses::{HOST_MISS_TOKENS, host_steps, host_vectors, values_of_experts};
pub use expert_profile::ExpertProfile;
pub(crate) use expert_profile::most_even;
pub use explain::{Alternative, Explanation, WithMore, explain};
#[cfg(test)]
pub(crate) use file_layout::samples;
pub use file_layout::{FILE_ALIGNMENT, FileRange, file_ranges};
pub(crate) use fusion::{is_fused, rotated_by};
pub use observe::{Forwards, Observation, Totals, corrected, main_dtype, observe};
pub use options::{
    CacheDType, Context, HostLayers, KvDType, Mix, Objective, PlacementRule, PlanOptions, ResidentLayers, Spill, UploadPath,
};
pub use saved::SavedPlan;
pub use schedule::{Schedule, Stage, Step};
pub use sizes::{ForwardSize, Role, WorkingBuffer};

/// Version of the JSON of plans.
pub(crate) const PLAN_SCHEMA: &str = "tierflow.plan/5";

/// Where every weight is stored, which device computes with it, and what memory that takes. An executor that allocates the vectors
/// and KV caches of its units, [`sizes::working_set`] for its [`Plan::role`], parameters of [`Plan::n_dispatches`],
/// resident chunks and its ring takes exactly [`DevicePlan::used`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Version of this JSON, for programs that read it.
    pub schema: &'static str,
    /// Every device that takes part: those that compute, in the order of the computation, then host memory and disk.
    pub devices: Vec<DevicePlan>,
    /// Every unit with its placement, in the model's order.
    pub units: Vec<UnitPlan>,
    /// The chunks that units are cut into, in the order of the computation.
    pub chunks: Vec<Chunk>,
    /// Positions per sequence.
    pub ctx_size: usize,
    /// Positions that the model was trained for.
    pub ctx_size_model: usize,
    /// Sequences side by side.
    pub n_seqs: usize,
    /// Positions of all sequences together, where these are fewer than all may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_size: Option<usize>,
    /// What one forward may ask for at most.
    pub forward: ForwardSize,
    /// How the KV caches of adapters store their numbers; the host has f32 in place of f16.
    pub kv_dtype: KvDType,
}

/// What a plan puts on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DevicePlan {
    /// Which device.
    pub device: Device,
    /// Its name.
    pub name: String,
    /// What the plan may use; `None` for a disk.
    pub budget: Option<Bytes>,
    /// Where the budget comes from.
    pub budget_source: String,
    /// What the plan uses of it.
    pub used: Usage,
    /// Units that are stored on it.
    pub n_units: usize,
    /// Units that it computes.
    pub n_executed: usize,
    /// The ring that its streamed chunks pass through; `None` where nothing streams to it.
    pub ring: Option<RingPlan>,
    /// The cache of the experts that it computes with and does not store; `None` where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_cache: Option<ExpertCachePlan>,
    /// Bytes of weights that leave it, per forward, to reach the devices that compute with them.
    pub streamed_bytes: Bytes,
}

/// Bytes on one device, by purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Weights that stay.
    pub weights: Bytes,
    /// The KV cache.
    pub kv_cache: Bytes,
    /// Activations, tables and parameters of a forward.
    pub activations: Bytes,
    /// Slots that streamed weights pass through.
    pub slots: Bytes,
    /// Staging in front of the slots.
    pub staging: Bytes,
    /// The cache of experts.
    #[serde(skip_serializing_if = "Bytes::is_zero")]
    pub expert_cache: Bytes,
}

impl Usage {
    /// All of it.
    pub fn total(&self) -> Bytes {
        self.weights + self.kv_cache + self.activations + self.slots + self.staging + self.expert_cache
    }
}

/// The placement of one unit. The embedding, whose rows the host gathers, is always stored in host memory or on disk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnitPlan {
    /// The unit's name, as device maps write it.
    pub name: String,
    /// Which part of the model it is.
    pub kind: UnitKind,
    /// Where its matrices are stored: the first of them, where a device map cuts inside the unit; each [`Chunk`] says where it is.
    pub stored_on: Device,
    /// Who computes it.
    pub execute_on: Device,
    /// Bytes of its matrices as stored (0 for a head that is the embedding and was counted there).
    pub size_bytes: Bytes,
    /// The chunks with its matrices: a range of [`Plan::chunks`]. Small units may share one.
    pub chunks: std::ops::Range<usize>,
}

/// The placement of a unit: which device computes it, and where its matrices are stored. Input of [`PlacementRule::Placed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Who computes the unit. Without effect for the embedding, whose rows the host gathers.
    pub execute_on: Device,
    /// Where each of its matrices is stored, in the order of [`crate::model::Unit::matrices`]: `execute_on`, `cpu` or `disk`.
    pub stored_on: Vec<Device>,
    /// Where it is set, the matrices of experts that are not stored on `execute_on` do not stream whole: of them, only experts that tokens
    /// take are brought there, to its expert cache, and some that are missing may be left to the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_misses: Option<ExpertMisses>,
}

impl Placement {
    /// A placement in which all that is not stored on `execute_on` streams there.
    pub fn new(execute_on: Device, stored_on: Vec<Device>) -> Placement {
        Placement { execute_on, stored_on, expert_misses: None }
    }
}

/// The ring that streamed chunks pass through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingPlan {
    /// How many slots.
    pub n_slots: usize,
    /// Bytes of each: what the largest chunk takes.
    pub slot_bytes: Bytes,
    /// Bytes of the slots that chunks were cut for.
    pub cut_bytes: Bytes,
    /// Whether chunks have the layout of the files in their slots, so that reads need no copy.
    pub as_in_files: bool,
    /// How many chunks ahead of the computation uploads are started.
    pub lookahead: usize,
    /// How bytes reach a slot.
    pub upload: UploadPath,
}

/// Makes a plan, or again the one of [`PlanOptions::saved`]. A forward takes no more tokens than the context has positions, whatever the
/// options say.
///
/// # Errors
/// [`Error::DoesNotFit`] with the least budget that works with the others as they are, found by trying;
/// [`Error::DoNotFit`] where several are too small;
/// [`Error::ExceedsLimit`] with the limit in the way;
/// [`Error::UnsupportedOnGpu`] for heads too large for a GPU;
/// [`Error::InvalidArgument`] for a device that is not there, and for a context
/// beyond the positions that a model learned.
pub fn plan(catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> Result<Plan> {
    if let Some(saved) = &options.saved {
        return saved.make(catalog, model, devices, &options.max_memory);
    }
    check_positions(model, options)?;
    check_kv_size(options)?;
    planner::plan(catalog, model, devices, &within_context(model, options))
}

/// As [`plan`], for trying many options: `None` where a budget is too small, without a search for the least that would be enough.
///
/// # Errors
/// Those of [`plan`] that no budget changes.
pub fn plan_if_it_fits(catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> Result<Option<Plan>> {
    if options.saved.is_some() {
        return plan(catalog, model, devices, options).map(Some);
    }
    check_positions(model, options)?;
    check_kv_size(options)?;
    planner::Planner { catalog, model, devices, options: &within_context(model, options) }.plan_if_it_fits()
}

/// A sequence must be able to fill its context.
fn check_kv_size(options: &PlanOptions) -> Result<()> {
    match (options.kv_size, options.ctx_size) {
        (Some(kv_size), Some(ctx_size)) if kv_size < ctx_size => {
            let reason = format!("{kv_size} tokens of all sequences together are fewer than the context of one, {ctx_size}");
            Err(Error::InvalidArgument { option: Setting::KvSize.into(), reason })
        }
        (Some(0), None) => Err(Error::InvalidArgument { option: Setting::KvSize.into(), reason: "0 leaves no room for a token".into() }),
        _ => Ok(()),
    }
}

/// Of learned positions there are no more than the model has learned.
fn check_positions(model: &Model, options: &PlanOptions) -> Result<()> {
    let learned = model.config.context_length;
    match options.ctx_size.filter(|asked| model.config.variant.learns_positions && *asked > learned) {
        Some(asked) => {
            let reason = format!("{asked} is more than the {learned} positions that the model has learned");
            Err(Error::InvalidArgument { option: Setting::CtxSize.into(), reason })
        }
        None => Ok(()),
    }
}

fn within_context(model: &Model, options: &PlanOptions) -> PlanOptions {
    let asked = options.ctx_size.filter(|&size| size > 0);
    // What all sequences have together, one may have.
    let of_all = options.kv_size.map(|kv_size| kv_size.min(model.config.context_length));
    let options = PlanOptions { ctx_size: asked.or(of_all), ..options.clone() };
    options.within(options.ctx_size.unwrap_or(model.config.context_length))
}

impl Plan {
    /// Where `chunk` is stored.
    pub fn stored_on(&self, chunk: usize) -> Device {
        self.chunks[chunk].stored_on
    }

    /// A name for `chunk`: its unit's, with its number where the unit has several; or its first and last unit's, as
    /// `model.layers.3.self_attn … mlp`.
    pub fn chunk_name(&self, chunk: usize) -> String {
        let (first, last) = (self.chunks[chunk].unit(), self.chunks[chunk].last_unit());
        let (name, own) = (&self.units[first].name, &self.units[first].chunks);
        if first == last {
            return if own.len() == 1 { name.clone() } else { format!("{name} ({}/{})", chunk - own.start + 1, own.len()) };
        }
        let last = &self.units[last].name;
        let alike = name.split_inclusive('.').zip(last.split_inclusive('.')).take_while(|(a, b)| a == b);
        let n_alike: usize = alike.map(|(part, _)| part.len()).sum();
        format!("{name} … {}", &last[n_alike..])
    }

    /// Who computes `chunk`.
    pub fn executor(&self, chunk: usize) -> Device {
        self.units[self.chunks[chunk].unit()].execute_on
    }

    /// The devices that compute, in the order of their first chunk.
    pub fn executors(&self) -> Vec<Device> {
        let mut executors = Vec::new();
        for chunk in 0..self.chunks.len() {
            let executor = self.executor(chunk);
            if !executors.contains(&executor) {
                executors.push(executor);
            }
        }
        executors
    }

    /// Blocks of the KV caches, each of [`sizes::KV_BLOCK_POSITIONS`].
    pub fn n_kv_blocks(&self) -> usize {
        sizes::n_kv_blocks(self.n_seqs, self.ctx_size, self.kv_size)
    }

    /// How the KV caches of `device` store their numbers.
    pub fn kv_dtype_of(&self, device: Device) -> KvDType {
        if device == Device::Cpu { self.kv_dtype.on_host() } else { self.kv_dtype }
    }

    /// How `device` keeps keys, and values.
    pub fn kv_caches_of(&self, device: Device) -> [sizes::KvCache; 2] {
        sizes::KvCache::both(self.kv_dtype, device == Device::Cpu)
    }

    /// Bytes that the first `n_positions` of one sequence take in the KV caches and states of all devices.
    pub fn sequence_bytes(&self, model: &Model, n_positions: usize) -> Bytes {
        // A state is that after the last token, however many there were.
        self.positions_bytes(model, n_positions, usize::from(n_positions > 0))
    }

    /// Bytes that so many blocks of the KV caches take on all devices, and the states of `n_seqs` sequences.
    pub fn blocks_bytes(&self, model: &Model, n_blocks: usize, n_seqs: usize) -> Bytes {
        self.positions_bytes(model, n_blocks * sizes::KV_BLOCK_POSITIONS, n_seqs)
    }

    fn positions_bytes(&self, model: &Model, n_positions: usize, n_seqs: usize) -> Bytes {
        let of_unit = |(unit, planned): (&Unit, &UnitPlan)| {
            let caches = self.kv_caches_of(planned.execute_on);
            let positions = unit.cache().map_or(Bytes::ZERO, |layer| sizes::kv_bytes_of_layer(layer, caches)).times(n_positions as u64);
            positions + sizes::state_values_bytes(unit).times(n_seqs as u64)
        };
        model.units.iter().zip(&self.units).map(of_unit).sum()
    }

    /// Bytes of the KV caches and states of all sequences on all devices.
    pub fn kv_cache_bytes(&self) -> Bytes {
        self.devices.iter().map(|device| device.used.kv_cache).sum()
    }

    /// What `device` does in a forward.
    pub fn role(&self, device: Device) -> Role {
        let stages = self.stages();
        Role {
            on_host: device == Device::Cpu,
            computes_head: self.computes_head(device),
            passes_on: stages.iter().rev().skip(1).any(|stage| stage.device == device),
        }
    }

    /// Whether `device` computes the head, and with it the logits.
    pub fn computes_head(&self, device: Device) -> bool {
        self.chunks.len().checked_sub(1).is_some_and(|last| self.executor(last) == device)
    }

    /// Runs of chunks that one device computes without a break, in order.
    pub fn stages(&self) -> Vec<Stage> {
        Stage::all((0..self.chunks.len()).map(|chunk| self.executor(chunk)))
    }

    /// Whether `chunk` is stored on the device that computes with it.
    pub fn is_resident(&self, chunk: usize) -> bool {
        self.stored_on(chunk) == self.executor(chunk)
    }

    /// Whether `chunk` passes through a ring at every forward.
    pub fn streams(&self, chunk: usize) -> bool {
        !self.is_resident(chunk) && !self.chunks[chunk].is_cached
    }

    /// The chunks that pass through a ring at every forward, in order.
    pub fn streamed_chunks(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.chunks.len()).filter(|&chunk| self.streams(chunk))
    }

    /// The chunks whose experts pass through the expert cache of `device`, in order.
    pub fn cached_on(&self, device: Device) -> impl Iterator<Item = usize> + '_ {
        (0..self.chunks.len()).filter(move |&chunk| self.chunks[chunk].is_cached && self.executor(chunk) == device)
    }

    /// Of them, those that pass through the ring of `device`.
    pub fn streamed_to(&self, device: Device) -> impl Iterator<Item = usize> + '_ {
        self.streamed_chunks().filter(move |&chunk| self.executor(chunk) == device)
    }

    /// Bytes of the weights that pass through rings at every forward, without the gaps between slices.
    pub fn streamed_bytes(&self) -> Bytes {
        self.streamed_chunks().map(|chunk| self.chunks[chunk].stored_bytes()).sum()
    }

    /// Bytes of a unit's matrices that are stored on `device`.
    pub fn bytes_at(&self, unit: usize, device: Device) -> Bytes {
        let own = &self.units[unit];
        if own.kind == UnitKind::Embedding {
            return if own.stored_on == device { own.size_bytes } else { Bytes::ZERO };
        }
        let here = self.chunks[own.chunks.clone()].iter().filter(|chunk| chunk.stored_on == device);
        here.flat_map(|chunk| chunk.slices_of(unit)).map(|slice| Bytes(slice.size_bytes)).sum()
    }

    /// Dispatches of one forward on `device` at most; each needs a set of parameters.
    pub fn n_dispatches(&self, device: Device) -> usize {
        chunks::n_dispatches_of((0..self.chunks.len()).filter(|&chunk| self.executor(chunk) == device).map(|chunk| &self.chunks[chunk]))
    }

    /// The placements as Accelerate and transformers write them; what [`PlacementRule::Given`] reads again.
    pub fn device_map(&self, catalog: &Catalog, model: &Model) -> crate::accelerate::DeviceMap {
        device_map::export(self, catalog, model)
    }

    /// What is planned for `device`.
    pub fn device(&self, device: Device) -> Option<&DevicePlan> {
        self.devices.iter().find(|plan| plan.device == device)
    }

    /// The same plan with this in place of the expert cache of `device`.
    pub(crate) fn with_expert_cache(&self, device: Device, cache: ExpertCachePlan) -> Plan {
        let mut plan = self.clone();
        plan.devices.iter_mut().filter(|own| own.device == device).for_each(|own| own.expert_cache = Some(cache));
        plan
    }

    /// The expert cache of `device`; `None` where it has none.
    pub fn expert_cache(&self, device: Device) -> Option<&ExpertCachePlan> {
        self.device(device).and_then(|plan| plan.expert_cache.as_ref())
    }

    /// The ring of `device`; `None` where nothing streams to it.
    pub fn ring(&self, device: Device) -> Option<&RingPlan> {
        self.device(device).and_then(|plan| plan.ring.as_ref())
    }
}
