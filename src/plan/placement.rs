//! Greedy placement: tries the sizes that the user left open, from what one would like to the least that works, and
//! says exactly what would be enough where nothing fits. Homes are chosen in `homes`.

use crate::device::{Device, DeviceSpec, GpuLimits};
use crate::error::{Error, Result};
use crate::model::{Model, UnitKind};
use crate::plan::homes::Attempt;
use crate::plan::pieces::{Piece, SLICE_ALIGNMENT, cut};
use crate::plan::sizes::{ForwardSize, HEAD_SIZE_MAX, N_PARAMS_SETS, PARAMS_BYTES, kv_buffer_bytes, kv_bytes_per_position, working_set};
use crate::plan::{KvDType, Plan, PlanOptions, ResidentLayers, UploadPath};
use crate::units::Bytes;
use crate::weights::{Catalog, TensorId};

/// Slots of a ring unless told otherwise: one computed from, one ready, one being filled. Published measurements of
/// layer prefetching gain 8 % from a fourth slot and nothing from more.
const N_SLOTS: usize = 3;
/// Most slots that a ring has, whatever is asked.
const N_SLOTS_MAX: usize = 64;
/// Tokens per forward unless told otherwise or memory is short.
const UBATCH_SIZE: usize = 512;
/// A context that one can work with: a longer one is not bought by streaming weights that could be resident.
const COMFORTABLE_CTX: usize = 2048;
/// Most steps of work that a model is cut into: each costs host memory and a dispatch in every forward.
pub(super) const MAX_WORK: u64 = 1 << 16;
/// Most values of one buffer on the host: kernels count in u32.
const HOST_BUFFER_MAX: Bytes = Bytes::gib(16);

/// Makes the plan, shrinking what the user left open until it fits.
pub(super) fn place(catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> Result<Plan> {
    let options = settle(options);
    let site = Site::new(catalog, model, devices, &options)?;
    match site.place(site.budget) {
        Ok(plan) => Ok(plan),
        Err(Refusal::Limit(error)) => Err(error),
        Err(Refusal::Budget) => Err(site.too_small()),
    }
}

/// Why a plan cannot be made.
pub(super) enum Refusal {
    /// The executing device's budget is too small.
    Budget,
    /// Something that no budget changes.
    Limit(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Limit(error)
    }
}

/// Options within their domains: a size of 0 leaves the choice to the planner.
fn settle(options: &PlanOptions) -> PlanOptions {
    PlanOptions {
        // The host's caches are f32: there, half the memory would cost more time than it saves.
        kv_dtype: if options.execute_on == Device::Cpu { KvDType::F32 } else { options.kv_dtype },
        // Positions are u32 in batches and kernels.
        ctx_size: options.ctx_size.filter(|&size| size > 0).map(|size| size.min(u32::MAX as usize)),
        ubatch_size: options.ubatch_size.filter(|&size| size > 0),
        n_seqs: options.n_seqs.max(1),
        logit_rows: options.logit_rows.max(1),
        n_slots: options.n_slots.map(|n_slots| n_slots.clamp(1, N_SLOTS_MAX)),
        ..options.clone()
    }
}

/// Sizes that the planner chooses where the user left them open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) forward: ForwardSize,
    pub(super) ctx_size: usize,
    pub(super) n_slots: usize,
}

/// Everything that stays the same while budgets and shapes are tried.
pub(super) struct Site<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) model: &'a Model,
    pub(super) options: &'a PlanOptions,
    pub(super) executor: &'a DeviceSpec,
    pub(super) host: &'a DeviceSpec,
    pub(super) limits: GpuLimits,
    pub(super) upload: UploadPath,
    /// Norms and biases, which are always resident.
    pub(super) vector_bytes: Bytes,
    /// Every unit as it is cut where it is resident.
    pub(super) blocks: Vec<Vec<Piece>>,
    /// All of `blocks`.
    pub(super) block_bytes: Bytes,
    /// The largest row of any matrix.
    pub(super) row_bytes: Bytes,
    /// What the executing device may use.
    budget: Bytes,
}

impl<'a> Site<'a> {
    fn new(catalog: &'a Catalog, model: &'a Model, devices: &'a [DeviceSpec], options: &'a PlanOptions) -> Result<Site<'a>> {
        let find = |device: Device| {
            devices.iter().find(|spec| spec.device == device).ok_or_else(|| Error::InvalidArgument {
                option: "--device".into(),
                fault: format!("there is no {device}; `tierflow devices` lists what there is"),
            })
        };
        for &device in options.max_memory.keys() {
            find(device)?;
        }
        let (executor, host) = (find(options.execute_on)?, find(Device::Cpu)?);
        let host_limits = GpuLimits {
            max_buffer_bytes: Bytes(u64::MAX),
            max_binding_bytes: Bytes(u64::MAX),
            storage_alignment: 1,
            max_workgroups: u32::MAX,
        };
        let limits = executor.limits.unwrap_or(host_limits);
        check_heads(catalog, model, executor)?;
        let matrices: Vec<TensorId> = model.units.iter().flat_map(|unit| unit.matrices()).collect();
        check_cuts(catalog, &matrices, &limits, executor)?;
        let mut vectors: Vec<_> = model.units.iter().flat_map(|unit| unit.vectors()).collect();
        vectors.sort_unstable();
        vectors.dedup();
        let blocks = model.units.iter().enumerate().map(|(index, unit)| match unit.kind {
            // Its rows are gathered on the host.
            UnitKind::Embedding => Ok(Vec::new()),
            _ => cut(index, unit, catalog, &limits, Bytes(u64::MAX)),
        });
        let blocks: Vec<Vec<Piece>> = blocks.collect::<Result<_>>()?;
        Ok(Site {
            catalog,
            model,
            options,
            executor,
            host,
            limits,
            upload: choose_upload(executor, options),
            // Vectors are held decoded, each at a binding's alignment.
            vector_bytes: vectors.iter().map(|&id| Bytes(4).times(catalog[id].n_values()).align_up(SLICE_ALIGNMENT)).sum(),
            block_bytes: blocks.iter().flatten().map(|piece| piece.size_bytes).sum(),
            blocks,
            row_bytes: Bytes(matrices.iter().map(|&id| catalog[id].row_bytes()).max().unwrap_or(0)),
            budget: executor_budget(executor, host, options),
        })
    }

    /// The plan for a budget of the executing device.
    fn place(&self, budget: Bytes) -> Result<Plan, Refusal> {
        let mut refusal = None;
        for shape in self.shapes(budget) {
            match (Attempt { site: self, budget, shape }.place(), &refusal) {
                (Ok(plan), _) => return Ok(plan),
                // A shape that breaks a limit is no reason where another one lacks memory only.
                (Err(Refusal::Limit(_)), Some(Refusal::Budget)) => {}
                (Err(other), _) => refusal = Some(other),
            }
        }
        Err(refusal.unwrap_or(Refusal::Budget))
    }

    /// From what one would like to the least that works.
    fn shapes(&self, budget: Bytes) -> Vec<Shape> {
        let options = self.options;
        let logit_rows = options.logit_rows.max(options.n_seqs);
        let ctx_limit = options.ctx_size.unwrap_or(self.model.config.context_length);
        let mut n_tokens = UBATCH_SIZE.min(ctx_limit).next_power_of_two();
        let is_too_large = |n_tokens: usize| {
            let forward = ForwardSize { n_tokens, n_logit_rows: logit_rows };
            self.working_bytes(forward).0 > budget.0 / 8 || self.largest_working(forward) > self.largest_buffer()
        };
        while n_tokens > 16 && is_too_large(n_tokens) {
            n_tokens /= 2;
        }
        let shapes = [(n_tokens, N_SLOTS, 256), (16, N_SLOTS, 128), (1, 2, 64)].into_iter().map(|(n_tokens, n_slots, ctx_min)| {
            let n_tokens = options.ubatch_size.unwrap_or(n_tokens).max(options.n_seqs);
            let forward = ForwardSize { n_tokens, n_logit_rows: logit_rows.min(n_tokens) };
            Shape {
                forward,
                ctx_size: options.ctx_size.unwrap_or_else(|| self.context_that_fits(budget, forward, ctx_min)),
                n_slots: options.n_slots.unwrap_or(n_slots),
            }
        });
        shapes.collect()
    }

    /// The longest context that leaves all weights resident, if one can work with it, else one that takes a quarter of the budget.
    fn context_that_fits(&self, budget: Bytes, forward: ForwardSize, ctx_min: usize) -> usize {
        let config = &self.model.config;
        let per_position = kv_bytes_per_position(config, self.options.kv_dtype).times(self.options.n_seqs as u64).0.max(1);
        let fixed = self.working_bytes(forward) + self.vector_bytes + self.params_bytes(n_dispatches_of(self.blocks.iter().flatten()));
        let room = budget.saturating_sub(fixed);
        // Caches of short contexts are padded to a binding's alignment.
        let padding = Bytes(2 * SLICE_ALIGNMENT * config.n_layers as u64);
        let beside_weights = (room.saturating_sub(self.block_bytes).saturating_sub(padding).0 / per_position) as usize;
        let fitting = match beside_weights >= COMFORTABLE_CTX.min(config.context_length) {
            true => beside_weights,
            false => beside_weights.max((room.0 / 4 / per_position) as usize),
        };
        let of_one = kv_buffer_bytes(config, self.options.kv_dtype, self.options.n_seqs, 64).0.max(1);
        let bindable = (self.largest_buffer().0 / of_one) as usize * 64;
        let ctx_size = fitting.max(ctx_min).min(bindable).min(config.context_length);
        if ctx_size > 64 { ctx_size / 64 * 64 } else { ctx_size.max(1) }
    }

    /// The largest buffer that one binding can show whole.
    pub(super) fn largest_buffer(&self) -> Bytes {
        self.limits.max_binding_bytes.min(self.limits.max_buffer_bytes).min(HOST_BUFFER_MAX)
    }

    pub(super) fn largest_working(&self, forward: ForwardSize) -> Bytes {
        working_set(&self.model.config, forward).into_iter().map(|(_, bytes)| bytes).max().unwrap_or_default()
    }

    pub(super) fn working_bytes(&self, forward: ForwardSize) -> Bytes {
        working_set(&self.model.config, forward).into_iter().map(|(_, bytes)| bytes).sum()
    }

    /// Parameters of so many dispatches; the host needs none.
    pub(super) fn params_bytes(&self, n_dispatches: usize) -> Bytes {
        if self.executes_on_gpu() { Bytes(PARAMS_BYTES * N_PARAMS_SETS).times(n_dispatches as u64) } else { Bytes::ZERO }
    }

    pub(super) fn executes_on_gpu(&self) -> bool {
        self.executor.limits.is_some()
    }

    /// What the host may hold while `used` is taken on the executing device.
    pub(super) fn host_budget(&self, used: Bytes) -> Bytes {
        match (self.options.max_memory.get(&Device::Cpu), self.host.capacity.unwrap_or_default()) {
            (Some(&asked), _) => asked,
            // One pool of memory must not be promised twice.
            (None, capacity) if self.shares_memory() => capacity.saturating_sub(used),
            (None, capacity) => capacity,
        }
    }

    /// Whether the executing device's memory is the host's own.
    pub(super) fn shares_memory(&self) -> bool {
        shares_memory(self.executor)
    }

    /// The refusal, with the least budget that works.
    fn too_small(&self) -> Error {
        let device = self.options.execute_on;
        let mut advice = format!("raise --max-memory {device}=…");
        if self.options.resident_layers == ResidentLayers::All {
            advice.push_str(", or drop `-ngl all` so that a part streams");
        }
        if let Some(ctx_size) = self.options.ctx_size {
            advice.push_str(&format!(", or lower --ctx-size ({ctx_size})"));
        }
        if let Some(ubatch_size) = self.options.ubatch_size.filter(|&size| size > 1) {
            advice.push_str(&format!(", or lower --ubatch-size ({ubatch_size})"));
        }
        match self.least_budget() {
            Ok(needed) => Error::DoesNotFit { device: device.to_string(), needed, available: self.budget, advice },
            Err(Refusal::Limit(error)) => error,
            Err(Refusal::Budget) => {
                Error::DoesNotFit { device: device.to_string(), needed: Bytes(u64::MAX), available: self.budget, advice }
            }
        }
    }

    /// The least budget above the present one, which is too small: found by trying, so that it is true.
    fn least_budget(&self) -> Result<Bytes, Refusal> {
        let (mut too_small, mut enough) = (self.budget, self.budget.max(Bytes::kib(64)));
        while let Err(refusal) = self.place(enough) {
            if enough == Bytes(u64::MAX) || matches!(refusal, Refusal::Limit(_)) {
                return Err(refusal);
            }
            (too_small, enough) = (enough, enough.times(2));
        }
        while enough.0 - too_small.0 > 1 {
            let middle = Bytes(too_small.0 + (enough.0 - too_small.0) / 2);
            match self.place(middle) {
                Ok(_) => enough = middle,
                Err(_) => too_small = middle,
            }
        }
        Ok(enough)
    }
}

/// Dispatches of one forward: one per piece of work, and the selection of the best tokens.
pub(super) fn n_dispatches_of<'a>(pieces: impl IntoIterator<Item = &'a Piece>) -> usize {
    pieces.into_iter().map(|piece| piece.work.len()).sum::<usize>() + 1
}

/// Slices of `matrices` where none is larger than `max_slice`.
pub(super) fn n_slices(catalog: &Catalog, matrices: impl IntoIterator<Item = TensorId>, max_slice: Bytes) -> u64 {
    let slices = matrices.into_iter().map(|id| {
        let tensor = &catalog[id];
        let rows_per_slice = max_slice.0.checked_div(tensor.row_bytes()).unwrap_or(tensor.n_rows());
        tensor.n_rows().div_ceil(rows_per_slice.max(1))
    });
    slices.fold(0, u64::saturating_add)
}

/// The attention kernel holds a head in workgroup memory.
fn check_heads(catalog: &Catalog, model: &Model, executor: &DeviceSpec) -> Result<()> {
    let head_size = model.config.head_size;
    if executor.limits.is_none() || head_size <= HEAD_SIZE_MAX {
        return Ok(());
    }
    Err(Error::UnsupportedModel {
        path: catalog.shards.first().map(|shard| shard.path.clone()).unwrap_or_default(),
        fault: format!("its heads have {head_size} values and a GPU computes with at most {HEAD_SIZE_MAX}; use --device cpu"),
    })
}

fn check_cuts(catalog: &Catalog, matrices: &[TensorId], limits: &GpuLimits, executor: &DeviceSpec) -> Result<()> {
    let max_slice = limits.max_binding_bytes.min(limits.max_buffer_bytes);
    let n_slices = n_slices(catalog, matrices.iter().copied(), max_slice);
    if n_slices <= MAX_WORK {
        return Ok(());
    }
    Err(Error::DoesNotFit {
        device: format!("{MAX_WORK} bindings of {}", executor.device),
        needed: catalog.size_bytes(),
        available: max_slice.times(MAX_WORK),
        advice: format!("the model would be cut into {n_slices} slices: take an adapter with larger bindings, or --device cpu"),
    })
}

fn shares_memory(executor: &DeviceSpec) -> bool {
    executor.kind.is_some_and(|kind| kind.shares_host_memory())
}

/// The budget asked for, or the device's capacity: of memory that the host shares, what the host's own budget leaves.
fn executor_budget(executor: &DeviceSpec, host: &DeviceSpec, options: &PlanOptions) -> Bytes {
    let capacity = executor.capacity.unwrap_or_default();
    match (options.max_memory.get(&executor.device), host.capacity) {
        (Some(&asked), _) => asked,
        (None, Some(pool)) if shares_memory(executor) => {
            let of_host = options.max_memory.get(&Device::Cpu).copied().unwrap_or_default();
            capacity.min(pool.saturating_sub(of_host))
        }
        (None, _) => capacity,
    }
}

/// The faster path by measured rates; unmeasured, the one that every adapter has.
fn choose_upload(executor: &DeviceSpec, options: &PlanOptions) -> UploadPath {
    let rates = &executor.rates;
    match (options.upload, rates.upload_mapped, rates.upload_staged) {
        (Some(asked), ..) => asked,
        (None, Some(mapped), Some(staged)) if mapped > staged => UploadPath::Mapped,
        _ => UploadPath::Staged,
    }
}
