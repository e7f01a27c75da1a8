//! Numbers of layers that checkpoints keep as tensors and operations have as constants.

use std::sync::Arc;

use super::ModelConfig;
use crate::error::{Error, Result};
use crate::platform::ByteSource;
use crate::weights::Catalog;

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
        let value = tensor.values(source.as_ref())?.first().copied().unwrap_or(f32::NAN);
        match value.is_finite() {
            true => Ok(value),
            false => Err(Error::invalid_file(path, format!("`{name}` is {value}, it must be finite"))),
        }
    };
    (0..config.n_layers).map(scale).collect::<Result<_>>().map(Some)
}
