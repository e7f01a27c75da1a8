//! Site: the input of planning, prepared once for all plans that are tried. It has the model, the options, the devices that may compute
//! (workers) with their limits and budgets, and every unit as it is cut where it is resident.

use std::collections::BTreeSet;

use crate::device::{Device, DeviceSpec, GpuLimits};
use crate::dtype::DType;
use crate::error::{Advice, Error, Remedy, Result, Setting};
use crate::model::{Model, StoreKv, UnitKind};
use crate::plan::chunks::{Chunk, Cut, SLICE_ALIGNMENT, cut};
use crate::plan::sizes::{
    ForwardSize, KvCache, N_PARAMS_SETS, PARAMS_BYTES, Role, kv_buffers_bytes, state_bytes, unsupported_on_gpu, working_set,
};
use crate::plan::{KvDType, Plan, PlanOptions, ResidentLayers, Spill, UnitPlan, UploadPath};
use crate::units::Bytes;
use crate::weights::{Catalog, TensorId};

/// Most steps of work that a model is cut into: each costs host memory and a dispatch in every forward.
pub(super) const MAX_WORK: u64 = 1 << 16;
/// Most values of one buffer on the host: kernels count in u32.
const HOST_BUFFER_MAX: Bytes = Bytes::gib(16);

/// A model, a machine, and the options.
pub(super) struct Site<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) model: &'a Model,
    pub(super) options: &'a PlanOptions,
    pub(super) devices: &'a [DeviceSpec],
    pub(super) host: &'a DeviceSpec,
    /// Devices that may compute, in the order in which layers are given to them; at least one.
    pub(super) workers: Vec<Worker<'a>>,
    /// The largest row of any matrix.
    pub(super) row_bytes: Bytes,
}

/// A device that may compute.
pub(super) struct Worker<'a> {
    pub(super) device: Device,
    pub(super) spec: &'a DeviceSpec,
    pub(super) limits: GpuLimits,
    pub(super) upload: UploadPath,
    /// What it may use.
    pub(super) budget: Bytes,
    /// Every unit as it is cut where it is resident; the embedding has no block.
    pub(super) blocks: Vec<Vec<Chunk>>,
    /// Bytes of each unit's blocks.
    pub(super) block_bytes: Vec<Bytes>,
    /// Norms and biases of each unit, which are resident wherever it is computed.
    pub(super) vector_bytes: Vec<Bytes>,
    /// Grids of all dtypes of the model: a buffer each.
    grid_bytes: Bytes,
}

impl<'a> Site<'a> {
    pub(super) fn new(catalog: &'a Catalog, model: &'a Model, devices: &'a [DeviceSpec], options: &'a PlanOptions) -> Result<Site<'a>> {
        for &device in options.max_memory.keys() {
            find(devices, device)?;
        }
        let host = find(devices, Device::Cpu)?;
        check_kv_dtype(model, options.kv_dtype)?;
        let matrices: Vec<TensorId> = model.units.iter().flat_map(|unit| unit.matrices()).collect();
        let (mut workers, mut refused) = (Vec::new(), None);
        for &device in &options.compute_on {
            match Worker::new(catalog, model, &matrices, find(devices, device)?, host, options) {
                Ok(worker) => workers.push(worker),
                // One adapter that cannot run the model is not an error where another device can.
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        if let (true, Some(error)) = (workers.is_empty(), refused) {
            return Err(error);
        }
        if workers.is_empty() {
            return Err(Error::InvalidArgument { option: Setting::Device.into(), reason: "no device is left to compute".into() });
        }
        let row_bytes = Bytes(matrices.iter().map(|&id| catalog[id].row_bytes()).max().unwrap_or(0));
        Ok(Site { catalog, model, options, devices, host, workers, row_bytes })
    }

    /// How a worker keeps keys, and values.
    pub(super) fn kv_caches(&self, worker: &Worker<'_>) -> [KvCache; 2] {
        KvCache::both(self.options.kv_dtype, !worker.is_gpu())
    }

    /// Bytes of the K and V caches and of the states of a unit, if it has any.
    pub(super) fn kv_bytes_of_unit(&self, worker: &Worker<'_>, unit: usize, ctx_size: usize) -> Bytes {
        let of_layer = |layer: &StoreKv| kv_buffers_bytes(layer, self.kv_caches(worker), self.options.n_kv_blocks(ctx_size));
        let unit = &self.model.units[unit];
        unit.cache().map_or(Bytes::ZERO, of_layer) + state_bytes(unit, self.options.n_seqs)
    }

    pub(super) fn working_bytes(&self, forward: ForwardSize, role: Role) -> Bytes {
        working_set(self.model, forward, self.options.n_seqs, role).into_iter().map(|(_, bytes)| bytes).sum()
    }

    pub(super) fn largest_working(&self, forward: ForwardSize, role: Role) -> Bytes {
        working_set(self.model, forward, self.options.n_seqs, role).into_iter().map(|(_, bytes)| bytes).max().unwrap_or_default()
    }

    /// What the host may use while devices that share its memory use `shared`.
    pub(super) fn host_budget(&self, shared: Bytes) -> Bytes {
        match self.options.max_memory.get(&Device::Cpu) {
            Some(&asked) => asked,
            // One pool of memory must not be promised twice.
            None => self.host.capacity.unwrap_or_default().saturating_sub(shared),
        }
    }

    /// How many units from the front may be resident (`-ngl` counts layers; each is two units after the embedding).
    pub(super) fn resident_limit(&self, own: &Worker<'_>) -> usize {
        match self.options.resident_layers {
            // `-ngl` speaks of GPUs: a host that computes holds what it can.
            ResidentLayers::AtMost(n_layers) if own.is_gpu() && n_layers <= self.model.config.n_layers => 1 + 2 * n_layers,
            _ => usize::MAX,
        }
    }

    /// Index of the worker that is `device`.
    pub(super) fn worker(&self, device: Device) -> Option<usize> {
        self.workers.iter().position(|worker| worker.device == device)
    }

    /// Whether a plan has weights only where the user named a device. The embedding, of which a forward reads a few rows, is exempt.
    pub(super) fn keeps_within(&self, plan: &Plan) -> bool {
        plan.chunks.iter().all(|chunk| self.may_hold(chunk.stored_on)) && plan.executors().into_iter().all(|device| self.may_hold(device))
    }

    /// Whether weights may be stored on `device`, and be computed with there. Under `--strict` that takes a device that the user named,
    /// or one that computes where the user named none.
    pub(super) fn may_hold(&self, device: Device) -> bool {
        let named = &self.options.max_memory;
        let is_named = if named.is_empty() { self.worker(device).is_some() } else { named.contains_key(&device) };
        is_named || self.options.spill == Spill::Allowed
    }

    /// Whether `-ngl` allows what a plan keeps on adapters.
    pub(super) fn allows_residents(&self, plan: &Plan) -> bool {
        let is_allowed = |(index, unit): (usize, &UnitPlan)| {
            let limit = self.worker(unit.execute_on).map_or(usize::MAX, |worker| self.resident_limit(&self.workers[worker]));
            index < limit || unit.chunks.clone().all(|chunk| !plan.is_resident(chunk))
        };
        plan.units.iter().enumerate().all(is_allowed)
    }

    /// The full budgets of all workers.
    pub(super) fn budgets(&self) -> Vec<Bytes> {
        self.workers.iter().map(|worker| worker.budget).collect()
    }
}

fn devices_in_words(devices: &[DeviceSpec]) -> String {
    let names: Vec<String> = devices.iter().map(|spec| spec.device.to_string()).collect();
    format!("there is {}", names.join(", "))
}

pub(super) fn find(devices: &[DeviceSpec], device: Device) -> Result<&DeviceSpec> {
    devices.iter().find(|spec| spec.device == device).ok_or_else(|| Error::InvalidArgument {
        option: Setting::Device.into(),
        reason: format!("there is no {device}; {}", devices_in_words(devices)),
    })
}

impl<'a> Worker<'a> {
    fn new(
        catalog: &Catalog,
        model: &Model,
        matrices: &[TensorId],
        spec: &'a DeviceSpec,
        host: &DeviceSpec,
        options: &PlanOptions,
    ) -> Result<Worker<'a>> {
        let host_limits = GpuLimits {
            max_buffer_bytes: Bytes(u64::MAX),
            max_binding_bytes: Bytes(u64::MAX),
            storage_alignment: 1,
            max_workgroups: u32::MAX,
        };
        let limits = spec.limits.unwrap_or(host_limits);
        check_kernels(catalog, model, spec)?;
        check_cuts(catalog, matrices, &limits, spec)?;
        let blocks = model.units.iter().enumerate().map(|(index, unit)| match unit.kind {
            // Its rows are gathered on the host.
            UnitKind::Embedding => Ok(Vec::new()),
            _ => {
                let how =
                    Cut { catalog, limits: &limits, stored_on: &[], executor: spec.device, slot_bytes: Bytes::ZERO, caches_experts: false };
                cut(index, unit, &how)
            }
        });
        let blocks: Vec<Vec<Chunk>> = blocks.collect::<Result<_>>()?;
        // Vectors are held decoded, each at a binding's alignment.
        let vector_bytes = |id: TensorId| Bytes(4).times(catalog[id].n_values()).align_up(SLICE_ALIGNMENT);
        Ok(Worker {
            device: spec.device,
            spec,
            limits,
            upload: choose_upload(spec, options),
            budget: budget(spec, host, options),
            block_bytes: blocks.iter().map(|chunks| chunks.iter().map(|chunk| chunk.size_bytes).sum()).collect(),
            blocks,
            grid_bytes: grid_bytes(catalog, matrices),
            vector_bytes: model.units.iter().map(|unit| unit.vectors().map(vector_bytes).sum()).collect(),
        })
    }

    /// Its role where it computes everything.
    pub(super) fn alone(&self) -> Role {
        Role { on_host: !self.is_gpu(), ..Role::ALONE }
    }

    pub(super) fn is_gpu(&self) -> bool {
        self.spec.limits.is_some()
    }

    /// Whether its memory is the host's own.
    pub(super) fn shares_host_memory(&self) -> bool {
        self.spec.kind.is_some_and(|kind| kind.shares_host_memory())
    }

    /// The largest buffer that one binding can show whole.
    pub(super) fn largest_buffer(&self) -> Bytes {
        self.limits.max_binding_bytes.min(self.limits.max_buffer_bytes).min(HOST_BUFFER_MAX)
    }

    /// Parameters of so many dispatches, and the grids that they read; the host needs none.
    pub(super) fn params_bytes(&self, n_dispatches: usize) -> Bytes {
        if n_dispatches == 0 || !self.is_gpu() {
            return Bytes::ZERO;
        }
        Bytes(PARAMS_BYTES * N_PARAMS_SETS).times(n_dispatches as u64) + self.grid_bytes
    }

    /// How many times a slot's bytes the ring takes of device memory: slots, and staging buffers.
    pub(super) fn ring_copies(&self, n_slots: usize) -> u64 {
        let copies = if self.is_gpu() && self.upload == UploadPath::Staged { 2 } else { 1 };
        n_slots as u64 * copies
    }
}

/// Of the grids that the blocks of `matrices` choose from.
fn grid_bytes(catalog: &Catalog, matrices: &[TensorId]) -> Bytes {
    let dtypes: BTreeSet<DType> = matrices.iter().map(|id| catalog[*id].dtype).collect();
    dtypes.into_iter().filter_map(DType::grid).map(|grid| Bytes(size_of_val(grid) as u64)).sum()
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

/// What the kernels cannot compute is refused here, before anything is loaded.
fn check_kernels(catalog: &Catalog, model: &Model, spec: &DeviceSpec) -> Result<()> {
    match unsupported_on_gpu(model).filter(|_| spec.limits.is_some()) {
        None => Ok(()),
        Some(reason) => {
            Err(Error::UnsupportedOnGpu { path: catalog.shards.first().map(|shard| shard.path.clone()).unwrap_or_default(), reason })
        }
    }
}

fn check_cuts(catalog: &Catalog, matrices: &[TensorId], limits: &GpuLimits, spec: &DeviceSpec) -> Result<()> {
    let max_slice = limits.max_binding_bytes.min(limits.max_buffer_bytes);
    let n_slices = n_slices(catalog, matrices.iter().copied(), max_slice);
    if n_slices <= MAX_WORK {
        return Ok(());
    }
    Err(Error::ExceedsLimit {
        device: format!("{MAX_WORK} bindings of {}", spec.device),
        needed: catalog.size_bytes(),
        available: max_slice.times(MAX_WORK),
        advice: Advice {
            because: format!("the model would be cut into {n_slices} slices").into(),
            remedies: vec![Remedy::other("take an adapter with larger bindings"), Remedy::Use(Setting::Device, "cpu".into())],
        },
    })
}

/// The budget asked for, or the device's capacity: of memory that the host shares, what the host's own budget leaves.
pub(super) fn budget(spec: &DeviceSpec, host: &DeviceSpec, options: &PlanOptions) -> Bytes {
    let capacity = spec.capacity.unwrap_or_default();
    let shares = spec.kind.is_some_and(|kind| kind.shares_host_memory());
    match (options.max_memory.get(&spec.device), host.capacity) {
        (Some(&asked), _) => asked,
        (None, Some(pool)) if shares => {
            let of_host = options.max_memory.get(&Device::Cpu).copied().unwrap_or_default();
            capacity.min(pool.saturating_sub(of_host))
        }
        (None, _) => capacity,
    }
}

/// The faster path by measured rates; unmeasured, the one that every adapter has. Only a browser's adapters have the rate of
/// the queue's own way, and no other.
fn choose_upload(spec: &DeviceSpec, options: &PlanOptions) -> UploadPath {
    let rates = &spec.rates;
    match (options.upload, rates.upload_mapped, rates.upload_staged) {
        (Some(asked), ..) => asked,
        (None, Some(mapped), Some(staged)) if mapped > staged => UploadPath::Mapped,
        (None, None, None) if rates.upload_written.is_some() => UploadPath::Written,
        _ => UploadPath::Staged,
    }
}

/// Refuses caches of blocks for heads that are no whole blocks.
fn check_kv_dtype(model: &Model, kv_dtype: KvDType) -> Result<()> {
    for dtype in [kv_dtype.keys, kv_dtype.values] {
        let block_len = dtype.block_len();
        if let Some(layer) = model.caches().find(|layer| !layer.head_size.is_multiple_of(block_len)) {
            let reason = format!("{dtype} stores blocks of {block_len} numbers, and the model's heads have {}: take f16", layer.head_size);
            return Err(Error::InvalidArgument { option: Setting::KvDType.into(), reason });
        }
    }
    Ok(())
}
