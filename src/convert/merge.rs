//! LoRA adapters merged into matrices: `W + scaling · B·A` in f32, as the rows of `W` are read. Norms that they replace are theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::lora::apply::{Scaled, found_in, is_gguf, linears_of, side_by_side, stacked};
use crate::lora::norms;
use crate::model::{Checkpoint, Linear, LinearPart, Model};
use crate::platform::{self, ByteSource};
use crate::weights::derived::{DerivedFile, DerivedMatrix};
use crate::weights::{Catalog, add_file};

/// The tensors of `catalog`, read from `sources`, with `adapters` merged into those that they adapt, which become F32. `catalog` is the
/// checkpoint's, or that of the same files by names of their own, of which `name_of` makes the checkpoint's.
///
/// # Errors
/// [`Error::InvalidFile`] of an adapter of another model; [`Error::UnsupportedModel`] where a matrix cannot be changed for itself.
pub(super) fn merged(
    checkpoint: &Checkpoint,
    adapters: &[Scaled],
    catalog: Catalog,
    sources: &mut Vec<Arc<dyn ByteSource>>,
    name_of: &dyn Fn(&str) -> String,
) -> Result<Catalog> {
    let model = Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape))?;
    let linears = linears_of(checkpoint, &model);
    let found = found_in(&model, &linears, adapters, is_gguf(checkpoint))?;
    let mut replaced = norms::replaced(checkpoint, &model, adapters)?;
    let mut left: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    let (mut file, Catalog { mut shards, mut tensors, .. }) = (DerivedFile::default(), catalog);
    let shard = shards.len() as u32;
    for tensor in &mut tensors {
        let name = name_of(&tensor.name);
        let of_norm = checkpoint.catalog.find(&name).and_then(|id| replaced.remove(&id)).zip(sources.get(tensor.shard as usize));
        if let Some((values, source)) = of_norm {
            (tensor.offset, tensor.size_bytes) = file.push(ReplacedNorm { source: Arc::clone(source), values });
            (tensor.shard, tensor.dtype) = (shard, DType::F32);
            continue;
        }
        let (whole, part) = name.split_once(':').map_or((&*name, None), |(whole, part)| (whole, Some(part)));
        let module = whole.strip_suffix(".weight").unwrap_or_default();
        let (Some(of_linear), Some(linear)) = (found.get(module), linears.get(module)) else { continue };
        let rows = rows_of(checkpoint, linear, module, part);
        let (n_rows, n_columns) = (tensor.n_rows(), tensor.n_columns());
        let (Some([rows, gguf_rows]), Some(source)) =
            (rows.filter(|[rows, _]| rows.len() as u64 == n_rows), sources.get(tensor.shard as usize))
        else {
            continue;
        };
        let matrix = MergedMatrix {
            source: Arc::clone(source),
            stored: tensor.offset,
            dtype: tensor.dtype,
            row_bytes: tensor.row_bytes(),
            n_rows,
            n_columns: n_columns as usize,
            rank: of_linear.iter().map(|adding| adding.low_rank.rank).sum(),
            down: stacked(of_linear).collect(),
            up: side_by_side(of_linear, [&rows, &gguf_rows]).collect(),
        };
        left.remove(module);
        (tensor.offset, tensor.size_bytes) = file.push(matrix);
        (tensor.shard, tensor.dtype) = (shard, DType::F32);
    }
    let of_norm = replaced.keys().next().map(|id| checkpoint.catalog[*id].name.as_str());
    if let Some(module) = left.first().copied().or(of_norm) {
        let reason = format!("has nothing of its own for `{module}`, so that an adapter cannot be merged into it; run it with the adapter");
        return Err(Error::UnsupportedModel { path: checkpoint.path.clone(), reason });
    }
    if !file.is_empty() {
        add_file(file, &mut shards, sources);
    }
    Ok(Catalog::new(shards, tensors))
}

/// The rows of a linear that a tensor has, or a part of it, in transformers and in GGUF files: without one, those of all parts as they follow each other in the file.
fn rows_of(checkpoint: &Checkpoint, linear: &Linear, module: &str, part: Option<&str>) -> Option<[Vec<usize>; 2]> {
    if part.is_some() || linear.parts.len() == 1 {
        let found = linear.parts.iter().find(|found| found.name.as_deref() == part)?;
        return Some([found.rows.clone(), found.gguf_rows.clone()]);
    }
    let by_offset = linear.parts.iter().map(|part| {
        let id = checkpoint.catalog.find(&format!("{module}.weight:{}", part.name.as_ref()?))?;
        Some((checkpoint.catalog[id].offset, part))
    });
    let by_offset: BTreeMap<u64, &LinearPart> = by_offset.collect::<Option<_>>()?;
    let all = |rows: fn(&LinearPart) -> &Vec<usize>| by_offset.values().flat_map(|part| rows(part)).copied().collect();
    Some([all(|part| &part.rows), all(|part| &part.gguf_rows)])
}

/// A norm's weights or bias that stand in place of the file's.
#[derive(Debug)]
struct ReplacedNorm {
    source: Arc<dyn ByteSource>,
    values: Vec<f32>,
}

impl DerivedMatrix for ReplacedNorm {
    fn source(&self) -> &dyn ByteSource {
        self.source.as_ref()
    }

    fn size(&self) -> u64 {
        size_of_val(&*self.values) as u64
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        // The format is little-endian, and so is every target.
        buffer.copy_from_slice(&bytemuck::cast_slice::<f32, u8>(&self.values)[offset as usize..][..buffer.len()]);
        Ok(())
    }
}

/// A matrix with adapters.
#[derive(Debug)]
struct MergedMatrix {
    source: Arc<dyn ByteSource>,
    /// Where the file has it.
    stored: u64,
    dtype: DType,
    row_bytes: u64,
    n_rows: u64,
    n_columns: usize,
    rank: usize,
    /// `[rank, n_columns]`
    down: Vec<f32>,
    /// `[n_rows, rank]`, scaled.
    up: Vec<f32>,
}

impl DerivedMatrix for MergedMatrix {
    fn source(&self) -> &dyn ByteSource {
        self.source.as_ref()
    }

    fn size(&self) -> u64 {
        self.n_rows * self.row_size()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (first, end) = (offset / self.row_size(), (offset + buffer.len() as u64).div_ceil(self.row_size()));
        let mut stored = platform::zeroed(((end - first) * self.row_bytes) as usize, "some rows of a matrix")?;
        self.source.read_at(self.stored + first * self.row_bytes, &mut stored)?;
        let mut values: Vec<f32> = platform::zeroed((end - first) as usize * self.n_columns, "some rows of a matrix")?;
        let rows = values.par_chunks_mut(self.n_columns).zip(stored.par_chunks(self.row_bytes as usize));
        rows.enumerate().for_each(|(index, (values, stored))| self.merge_row(first as usize + index, stored, values));
        let begin = (offset - first * self.row_size()) as usize;
        // The format is little-endian, and so is every target.
        buffer.copy_from_slice(&bytemuck::cast_slice::<f32, u8>(&values)[begin..][..buffer.len()]);
        Ok(())
    }
}

impl MergedMatrix {
    /// Bytes of a row as it is read.
    fn row_size(&self) -> u64 {
        (self.n_columns * size_of::<f32>()) as u64
    }

    fn merge_row(&self, row: usize, stored: &[u8], values: &mut [f32]) {
        self.dtype.decode(stored, values);
        let factors = &self.up[row * self.rank..][..self.rank];
        for (column, value) in values.iter_mut().enumerate() {
            let products = factors.iter().enumerate().map(|(low, factor)| factor * self.down[low * self.n_columns + column]);
            *value += products.sum::<f32>();
        }
    }
}
