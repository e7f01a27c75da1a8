//! What a model is made of and what it would need. Knows no device and prints nothing.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::dtype::DType;
use crate::model::{Model, Unit};
use crate::plan::KvDType;
use crate::plan::sizes::{KvCache, kv_bytes_per_position};
use crate::units::Bytes;
use crate::weights::{Catalog, Checkpoint, ModelConfig};

/// What a model is made of and what it would need, from its headers alone.
#[derive(Debug, Serialize)]
pub struct Inspection<'a> {
    /// Form of the JSON.
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
    /// What it would need in other dtypes.
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

/// What the model would need if its matrices were stored so.
#[derive(Debug, Serialize)]
pub struct AtDType {
    /// So.
    pub dtype: DType,
    /// All matrices.
    pub weights: Bytes,
    /// The largest layer, both parts.
    pub largest_layer: Bytes,
    /// With an f16 cache of 4096 positions, all resident.
    pub resident_4k: Bytes,
}

impl<'a> Inspection<'a> {
    /// Inspects an opened model.
    pub fn new(checkpoint: &'a Checkpoint, model: &'a Model) -> Inspection<'a> {
        let catalog = &checkpoint.catalog;
        let mut bytes_by_dtype = BTreeMap::new();
        for tensor in &catalog.tensors {
            *bytes_by_dtype.entry(tensor.dtype.to_string()).or_insert(Bytes::ZERO) += tensor.size_bytes;
        }
        let stored = |unit: &Unit| -> Bytes { unit.matrices().map(|id| catalog[id].size_bytes).sum() };
        let largest_unit = model.units.iter().max_by_key(|unit| stored(unit));
        let largest_tensor = catalog.tensors.iter().max_by_key(|tensor| tensor.size_bytes);
        let kv = [KvDType::F32, KvDType::F16].map(|dtype| (dtype.to_string(), kv_bytes_per_position(&model.config, KvCache::Gpu(dtype))));
        Inspection {
            schema: "tierflow.inspect/1",
            path: &checkpoint.path,
            config: &model.config,
            n_parameters: catalog.tensors.iter().map(|tensor| tensor.n_values()).sum(),
            size_bytes: catalog.size_bytes(),
            n_tensors: catalog.tensors.len(),
            bytes_by_dtype,
            largest_unit: largest_unit.map_or(Named { name: String::new(), size_bytes: Bytes::ZERO }, |unit| Named {
                name: unit.name.clone(),
                size_bytes: stored(unit),
            }),
            largest_tensor: largest_tensor.map_or(Named { name: String::new(), size_bytes: Bytes::ZERO }, |tensor| Named {
                name: tensor.name.clone(),
                size_bytes: tensor.size_bytes,
            }),
            kv_bytes_per_token: kv.into(),
            at_dtype: DType::ALL.iter().filter_map(|&dtype| at_dtype(catalog, model, dtype)).collect(),
        }
    }
}

/// `None` where a matrix' rows are no whole number of the dtype's blocks.
fn at_dtype(catalog: &Catalog, model: &Model, dtype: DType) -> Option<AtDType> {
    let bytes_of = |unit: &Unit| -> Option<Bytes> {
        let sizes: Option<Vec<u64>> =
            unit.matrices().map(|id| dtype.size_bytes(catalog[id].n_columns())?.checked_mul(catalog[id].n_rows())).collect();
        Some(Bytes(sizes?.into_iter().sum()))
    };
    let units: Option<Vec<Bytes>> = model.units.iter().map(bytes_of).collect();
    let (units, config) = (units?, &model.config);
    let layers = model.units.iter().zip(&units).filter(|(unit, _)| unit.kind.layer().is_some());
    let largest_layer = layers.map(|(_, bytes)| *bytes).collect::<Vec<_>>().chunks(2).map(|parts| parts.iter().copied().sum()).max();
    let embedding = if config.tied_embeddings { 0 } else { dtype.size_bytes((config.vocab_size * config.hidden_size) as u64)? };
    let resident: Bytes = units.iter().copied().sum();
    let cache = Bytes(kv_bytes_per_position(config, KvCache::Gpu(KvDType::F16)).0 * 4096);
    Some(AtDType {
        dtype,
        weights: resident + Bytes(embedding),
        largest_layer: largest_layer.unwrap_or_default(),
        resident_4k: resident + cache,
    })
}
