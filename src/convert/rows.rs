//! A tensor from what it is stored as to what it becomes, some rows at a time.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::input::{Input, InputTensor};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::Origin;
use crate::platform;
use crate::weights::TensorId;

/// Values that are held at a time, where a row or a head is not longer.
const MAX_VALUES: u64 = 4 << 20;

/// One tensor on its way.
pub(super) struct Rows<'a> {
    pub(super) input: &'a Input,
    pub(super) tensor: &'a InputTensor,
    pub(super) dtype: DType,
}

impl Rows<'_> {
    /// Gives the tensor's bytes to `put`, part by part.
    pub(super) fn write(&self, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match &self.tensor.origin {
            Origin::Values(values) => put(&self.encoded(values, values.len())?),
            Origin::Tensors { parts, interleaved_heads, offset } => {
                parts.iter().try_for_each(|part| self.write_part(*part, *interleaved_heads, *offset, put))
            }
        }
    }

    fn write_part(&self, id: TensorId, heads: Option<u64>, offset: f32, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let part = &self.input.catalog[id];
        let n_columns = match (part.shape.len(), heads) {
            // Of a vector whose values change places, each is a row.
            (0 | 1, Some(_)) => 1,
            (0 | 1, None) => part.n_values().max(1),
            _ => self.tensor.n_columns().max(1),
        };
        let n_rows = part.n_values() / n_columns;
        let row_bytes = part.size_bytes.0 / n_rows.max(1);
        let head_rows = heads.map_or(1, |heads| n_rows / heads.max(1)).max(1);
        let n_at_once = (MAX_VALUES / n_columns / head_rows).max(1) * head_rows;
        let copies = part.dtype == self.dtype && offset == 0.0;
        let mut begin = 0;
        while begin < n_rows {
            let n_now = n_at_once.min(n_rows - begin);
            let mut stored = self.buffer(n_now * row_bytes)?;
            let source = &self.input.sources[part.shard as usize];
            source.read_at(part.offset + begin * row_bytes, &mut stored)?;
            if heads.is_some() {
                stored = interleaved(&stored, head_rows as usize, row_bytes as usize);
            }
            if copies {
                put(&stored)?;
            } else {
                let mut values = platform::zeroed((n_now * n_columns) as usize, "some rows of a tensor")?;
                let by_rows = values.par_chunks_mut(n_columns as usize).zip(stored.par_chunks(row_bytes as usize));
                by_rows.for_each(|(values, stored)| {
                    part.dtype.decode(stored, values);
                    values.iter_mut().for_each(|value| *value += offset);
                });
                put(&self.encoded(&values, n_columns as usize)?)?;
            }
            begin += n_now;
        }
        Ok(())
    }

    /// Whole rows of `n_columns` values as they are stored in the new file.
    fn encoded(&self, values: &[f32], n_columns: usize) -> Result<Vec<u8>> {
        self.check(values)?;
        let n_values = n_columns.max(1) as u64;
        // The new file's head was made with these sizes.
        let row_bytes = self.dtype.size_bytes(n_values).unwrap_or(0) as usize;
        let mut bytes = self.buffer((values.len() as u64 / n_values) * row_bytes as u64)?;
        let by_rows = bytes.par_chunks_mut(row_bytes.max(1)).zip(values.par_chunks(n_columns.max(1)));
        by_rows.for_each(|(bytes, values)| self.dtype.encode(values, bytes));
        Ok(bytes)
    }

    /// Refuses what would become infinite or no number.
    fn check(&self, values: &[f32]) -> Result<()> {
        let most = self.dtype.largest();
        let Some(value) =
            values.par_chunks(4096).find_map_any(|values| values.iter().find(|value| value.is_nan() || value.abs() > most).copied())
        else {
            return Ok(());
        };
        let reason = if value.is_finite() {
            format!("tensor `{}` holds {value}, which is beyond the range of F16; choose bf16 or f32", self.tensor.name)
        } else {
            format!("tensor `{}` holds {value}; its weights are broken", self.tensor.name)
        };
        Err(Error::invalid_file(&self.input.path, reason))
    }

    fn buffer(&self, len: u64) -> Result<Vec<u8>> {
        platform::zeroed(len as usize, "some rows of a tensor")
    }
}

/// Rows of whole heads, each with row `i` of its first half before row `i` of its second.
fn interleaved(rows: &[u8], head_rows: usize, row_bytes: usize) -> Vec<u8> {
    let mut output = Vec::with_capacity(rows.len());
    for head in rows.chunks(head_rows * row_bytes) {
        let (first, second) = head.split_at(head.len() / 2);
        for (first, second) in first.chunks(row_bytes).zip(second.chunks(row_bytes)) {
            output.extend_from_slice(first);
            output.extend_from_slice(second);
        }
    }
    output
}
