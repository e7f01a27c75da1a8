//! The two matrices of a linear as tensors of a file.

use super::LowRank;
use crate::error::{Error, Result};
use crate::platform::{self, ByteSource};
use crate::weights::TensorInfo;

/// Both matrices of a linear, A first, as far as they were found.
pub(super) type Halves<'t> = [Option<&'t TensorInfo>; 2];

/// A linear of these matrices, whose scaling is left 0.
pub(super) fn linear_of(source: &dyn ByteSource, [down, up]: [&TensorInfo; 2]) -> Result<LowRank> {
    let ([rank, n_inputs], [n_outputs, columns]) = (sides(source, down)?, sides(source, up)?);
    if rank != columns {
        let shapes = format!("`{}` and `{}` have the shapes {:?} and {:?}", down.name, up.name, down.shape, up.shape);
        return Err(Error::invalid_file(source.path(), format!("tensors {shapes}: ranks differ")));
    }
    Ok(LowRank { rank, n_inputs, n_outputs, down: read_values(source, down)?, up: read_values(source, up)?, scaling: 0.0 })
}

fn sides(source: &dyn ByteSource, tensor: &TensorInfo) -> Result<[usize; 2]> {
    let sides = match tensor.shape.as_slice() {
        [rows, columns] => {
            usize::try_from(*rows).ok().zip(usize::try_from(*columns).ok()).filter(|(rows, columns)| *rows > 0 && *columns > 0)
        }
        _ => None,
    };
    sides.map(<[usize; 2]>::from).ok_or_else(|| {
        Error::invalid_file(source.path(), format!("tensor `{}` has the shape {:?}, which is no matrix", tensor.name, tensor.shape))
    })
}

/// All values of a tensor; the header was checked against the file's length.
pub(super) fn read_values(source: &dyn ByteSource, tensor: &TensorInfo) -> Result<Vec<f32>> {
    let mut bytes = platform::zeroed(tensor.size_bytes.0 as usize, "a matrix of an adapter")?;
    source.read_at(tensor.offset, &mut bytes)?;
    let n_values = bytes.len() / tensor.dtype.block_bytes() as usize * tensor.dtype.block_len() as usize;
    let mut values = platform::zeroed(n_values, "a matrix of an adapter")?;
    tensor.dtype.decode(&bytes, &mut values);
    match values.iter().position(|value: &f32| !value.is_finite()) {
        Some(at) => {
            Err(Error::invalid_file(source.path(), format!("tensor `{}` has {} as value {at}: training failed", tensor.name, values[at])))
        }
        None => Ok(values),
    }
}
