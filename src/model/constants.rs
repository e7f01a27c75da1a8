//! Numbers of layers that checkpoints keep as tensors and operations have as constants, and weights that checkpoints leave out because all
//! of them are 1.

use std::sync::Arc;

use super::ModelConfig;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::platform::ByteSource;
use crate::weights::derived::DerivedFile;
use crate::weights::{Catalog, Ones, TensorInfo, add_file};

/// What the residual stream is multiplied by behind each layer of `config`'s model, where it has that.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::WrongShape`] and [`Error::InvalidFile`] where a layer's number is not there, or is none; those of reading.
pub(super) fn layer_scales(
    config: &ModelConfig,
    catalog: &Catalog,
    sources: &[Arc<dyn ByteSource>],
    path: &str,
) -> Result<Option<Vec<f32>>> {
    if config.variant.layer_scales.is_none() {
        return Ok(None);
    }
    let scale = |layer: usize| {
        let name = format!("{}.{layer}.layer_scalar", config.family.names.layers);
        let missing = || Error::MissingTensor { path: path.to_owned(), tensor: name.clone() };
        let tensor = &catalog[catalog.find(&name).ok_or_else(missing)?];
        let source = sources.get(tensor.shard as usize).ok_or_else(missing)?;
        if tensor.shape != [1] || tensor.dtype.block_len() != 1 {
            let (path, tensor, found) = (path.to_owned(), name.clone(), tensor.shape.clone());
            return Err(Error::WrongShape { path, tensor, expected: vec![1], found });
        }
        let mut bytes = vec![0; tensor.size_bytes.0 as usize];
        source.read_at(tensor.offset, &mut bytes)?;
        let mut value = [0.0];
        tensor.dtype.decode(&bytes, &mut value);
        match value[0].is_finite() {
            true => Ok(value[0]),
            false => Err(Error::invalid_file(path, format!("`{name}` is {}, it must be finite", value[0]))),
        }
    };
    (0..config.n_layers).map(scale).collect::<Result<_>>().map(Some)
}

/// The catalog with the weights of the norms of values, which are 1, in a file of their own.
pub(super) fn with_value_norms(config: &ModelConfig, catalog: Catalog, sources: &mut Vec<Arc<dyn ByteSource>>) -> Catalog {
    let Some(first) = sources.first().filter(|_| config.variant.norms_values).cloned() else { return catalog };
    let Catalog { mut shards, mut tensors, .. } = catalog;
    let names = &config.family.names;
    let mut file = DerivedFile::default();
    let sizes = [Some(config.head_size), config.variant.full_heads.map(|heads| heads.head_size)];
    let places: Vec<_> = sizes.into_iter().flatten().map(|size| (size, file.push(Ones::new(Arc::clone(&first), size as u64)))).collect();
    for layer in 0..config.n_layers {
        let head_size = config.heads_of(layer).head_size;
        let Some((_, (offset, size_bytes))) = places.iter().find(|(size, _)| *size == head_size) else { continue };
        let name = format!("{}.{layer}.{}.v_norm.weight", names.layers, names.attention);
        let (shape, shard) = (vec![head_size as u64], shards.len() as u32);
        tensors.push(TensorInfo { name, dtype: DType::F32, shape, shard, offset: *offset, size_bytes: *size_bytes });
    }
    add_file(file, &mut shards, sources);
    Catalog::new(shards, tensors)
}
