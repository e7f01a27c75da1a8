//! What a model is made of and what it would need. Knows no device and prints nothing.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::device::{AdapterKind, Device, DeviceSpec, GpuLimits, Rates};
use crate::dtype::DType;
use crate::model::{Checkpoint, Model, ModelConfig, Unit};
use crate::plan::sizes::{KvCache, kv_bytes_per_position};
use crate::plan::{self, CacheDType, PlacementRule, PlanOptions, ResidentLayers, Usage};
use crate::units::Bytes;
use crate::weights::Catalog;

/// What a model is made of and what it would need, from its headers alone.
#[derive(Debug, Serialize)]
pub struct Inspection<'a> {
    /// Version of the JSON.
    pub schema: &'static str,
    /// The model as it was named.
    pub path: &'a str,
    /// Its sizes and settings.
    pub config: &'a ModelConfig,
    /// Numbers in all tensors.
    pub n_parameters: u64,
    /// Stored bytes.
    pub size_bytes: Bytes,
    /// How many tensors.
    pub n_tensors: usize,
    /// Stored bytes of each dtype.
    pub bytes_by_dtype: BTreeMap<String, Bytes>,
    /// The unit that takes most.
    pub largest_unit: Named,
    /// The tensor that takes most.
    pub largest_tensor: Named,
    /// Cache of one position, by the dtype of the cache.
    pub kv_bytes_per_token: BTreeMap<String, Bytes>,
    /// What it needs as it is.
    pub as_stored: Needs,
    /// What it would need in one dtype.
    pub at_dtype: Vec<AtDType>,
}

/// Something and its size.
#[derive(Debug, Serialize)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Stored bytes.
    pub size_bytes: Bytes,
}

/// What a model needs.
#[derive(Debug, Serialize)]
pub struct Needs {
    /// All tensors.
    pub weights: Bytes,
    /// The largest layer's matrices, both parts.
    pub largest_layer: Bytes,
    /// What a GPU uses that computes all of it from its own memory, by purpose, with a context of [`Inspection::ctx_size`]; `None`
    /// where no GPU can.
    pub resident: Option<Usage>,
    /// All of that; 0 where no GPU can.
    pub resident_4k: Bytes,
}

/// What the model would need if its matrices were stored so; its vectors stay as they are.
#[derive(Debug, Serialize)]
pub struct AtDType {
    /// So.
    pub dtype: DType,
    /// What it then needs.
    #[serde(flatten)]
    pub needs: Needs,
}

impl<'a> Inspection<'a> {
    /// Positions of the context that needs are given for, where a model has so many.
    pub const CTX_SIZE: usize = 4096;

    /// Positions of the context that its needs are given for.
    pub fn ctx_size(&self) -> usize {
        ctx_size(self.config)
    }

    /// Inspects an opened model.
    pub fn new(checkpoint: &'a Checkpoint, model: &'a Model) -> Inspection<'a> {
        let catalog = &checkpoint.catalog;
        let stored = |unit: &Unit| -> Bytes { unit.matrices().map(|id| catalog[id].size_bytes).sum() };
        let largest_unit = model.units.iter().max_by_key(|unit| stored(unit));
        let largest_tensor = catalog.tensors.iter().max_by_key(|tensor| tensor.size_bytes);
        let fits = |dtype: &CacheDType| model.caches().all(|layer| layer.head_size.is_multiple_of(dtype.block_len()));
        let kv = CacheDType::ALL.into_iter().filter(fits);
        let kv = kv.map(|dtype| (dtype.to_string(), kv_bytes_per_position(model, [KvCache::Gpu(dtype); 2])));
        Inspection {
            schema: "tierflow.inspect/1",
            path: &checkpoint.path,
            config: &model.config,
            n_parameters: catalog.n_values(),
            size_bytes: catalog.size_bytes(),
            n_tensors: catalog.tensors.len(),
            bytes_by_dtype: catalog.bytes_by_dtype(),
            largest_unit: largest_unit.map_or(Named { name: String::new(), size_bytes: Bytes::ZERO }, |unit| Named {
                name: unit.name.clone(),
                size_bytes: stored(unit),
            }),
            largest_tensor: largest_tensor.map_or(Named { name: String::new(), size_bytes: Bytes::ZERO }, |tensor| Named {
                name: tensor.name.clone(),
                size_bytes: tensor.size_bytes,
            }),
            kv_bytes_per_token: kv.collect(),
            as_stored: needs(catalog, model),
            at_dtype: DType::ALL.iter().filter_map(|&dtype| at_dtype(catalog, model, dtype)).collect(),
        }
    }
}

/// `None` where a matrix' rows are no whole number of the dtype's blocks.
fn at_dtype(catalog: &Catalog, model: &Model, dtype: DType) -> Option<AtDType> {
    let mut tensors = catalog.tensors.clone();
    for id in model.units.iter().flat_map(Unit::matrices).chain(model.embeddings().map(|(table, _)| table)) {
        let tensor = &mut tensors[id.0 as usize];
        tensor.size_bytes = Bytes(dtype.size_bytes(tensor.n_columns())?.checked_mul(tensor.n_rows())?);
        tensor.dtype = dtype;
    }
    Some(AtDType { dtype, needs: needs(&Catalog::new(catalog.shards.clone(), tensors), model) })
}

fn needs(catalog: &Catalog, model: &Model) -> Needs {
    let mut layers = BTreeMap::new();
    for unit in &model.units {
        if let Some(layer) = unit.kind.layer() {
            *layers.entry(layer).or_insert(Bytes::ZERO) += unit.matrices().map(|id| catalog[id].size_bytes).sum();
        }
    }
    let resident = resident(catalog, model);
    Needs {
        weights: catalog.size_bytes(),
        largest_layer: layers.into_values().max().unwrap_or_default(),
        resident,
        resident_4k: resident.map(|used| used.total()).unwrap_or_default(),
    }
}

fn ctx_size(config: &ModelConfig) -> usize {
    let most = if config.variant.learns_positions { config.context_length } else { usize::MAX };
    Inspection::CTX_SIZE.min(most)
}

/// What the planner puts on a GPU that has room for everything.
fn resident(catalog: &Catalog, model: &Model) -> Option<Usage> {
    let plenty = Bytes(1 << 60);
    let gpu = Device::Gpu(0);
    let spec = |device: Device| DeviceSpec {
        device,
        name: String::new(),
        vendor: 0,
        driver: String::new(),
        kind: (device == gpu).then_some(AdapterKind::Discrete),
        capacity: (device != Device::Disk).then_some(plenty),
        capacity_source: String::new(),
        limits: (device == gpu).then(|| GpuLimits { max_buffer_bytes: plenty, max_binding_bytes: plenty, ..GpuLimits::default() }),
        rates: Rates::default(),
    };
    let options = PlanOptions {
        compute_on: vec![gpu],
        ctx_size: Some(ctx_size(&model.config)),
        placement: PlacementRule::FrontToBack,
        resident_layers: ResidentLayers::All,
        ..PlanOptions::default()
    };
    let plan = plan::plan(catalog, model, &[gpu, Device::Cpu, Device::Disk].map(spec), &options).ok()?;
    plan.device(gpu).map(|device| device.used)
}
