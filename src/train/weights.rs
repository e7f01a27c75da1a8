//! Rows of frozen matrices, from wherever a plan stores them: host memory, a mapped file, or a file that is read each time. How many rows come
//! at once depends on the matrix alone, so that placement never changes a sum.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::adapter::Adapter;
use super::dense::{MIN_PARALLEL_VALUES, add_sums};
use crate::device::Device;
use crate::error::Result;
use crate::host::simd::simd;
use crate::host::{self, Input};
use crate::kernels::matmul;
use crate::model::{Checkpoint, Model};
use crate::plan::{Plan, Slice};
use crate::platform;
use crate::stream::Store;
use crate::units::Bytes;
use crate::weights::TensorId;

/// Stored bytes of the rows that are read at once.
const STORED_AT_ONCE: u64 = 4 << 20;
/// Decoded values that stay in a core's cache.
const DECODED_AT_ONCE: usize = 128 << 10;

/// The frozen weights of a model.
pub(super) struct Weights {
    store: Arc<Store>,
    plan: Arc<Plan>,
    /// Of each matrix its slices: the chunk, the index in it.
    places: HashMap<TensorId, Vec<(usize, usize)>>,
    pub(super) vectors: Arc<HashMap<TensorId, Vec<f32>>>,
    /// Bytes that were read from disk.
    n_read: AtomicU64,
}

impl Weights {
    /// Those of `model`, as `store` has them; reads the vectors.
    pub(super) fn new(model: &Model, plan: Arc<Plan>, store: Arc<Store>) -> Result<Weights> {
        let mut places: HashMap<TensorId, Vec<(usize, usize)>> = HashMap::new();
        for (index, chunk) in plan.chunks.iter().enumerate() {
            for (slice, found) in chunk.slices.iter().enumerate() {
                places.entry(found.tensor).or_default().push((index, slice));
            }
        }
        let mut vectors = HashMap::new();
        for id in model.units.iter().flat_map(|unit| unit.vectors()) {
            vectors.insert(id, store.checkpoint().vector(id)?);
        }
        Ok(Weights { store, plan, places, vectors: Arc::new(vectors), n_read: AtomicU64::new(0) })
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn checkpoint(&self) -> &Checkpoint {
        self.store.checkpoint()
    }

    /// Bytes of rows that were read from disk up to now.
    pub(super) fn bytes_read(&self) -> Bytes {
        Bytes(self.n_read.load(Ordering::Relaxed))
    }

    /// Bytes of chunks that are stored on disk and read from there.
    pub(super) fn bytes_on_disk(&self, adapter: &Adapter) -> Bytes {
        let on_disk = |index: &usize| self.plan.stored_on(*index) == Device::Disk && !adapter.is_all_of(&self.plan.chunks[*index]);
        (0..self.plan.chunks.len()).filter(on_disk).map(|index| self.plan.chunks[index].stored_bytes()).sum()
    }

    /// Rows of a matrix as stored, as many as `n_rows` from `first` on.
    pub(super) fn rows(&self, id: TensorId, first: u64, n_rows: u64) -> Result<Cow<'_, [u8]>> {
        let row_bytes = self.checkpoint().catalog[id].row_bytes();
        let holds = |slice: &Slice| slice.first_row <= first && first + n_rows <= slice.first_row + slice.n_rows;
        let places = self.places.get(&id).into_iter().flatten();
        let found = places.map(|&(chunk, slice)| (chunk, &self.plan.chunks[chunk].slices[slice])).find(|(_, slice)| holds(slice));
        let (begin, len) = (first * row_bytes, n_rows * row_bytes);
        if let Some((chunk, slice)) = found {
            let offset = (slice.offset + (first - slice.first_row) * row_bytes) as usize;
            if let Some(block) = self.store.host_resident(chunk) {
                return Ok(Cow::Borrowed(&block[offset..][..len as usize]));
            }
            if self.store.mapped(chunk, slice).is_some()
                && let Some(rows) = self.checkpoint().view(id, begin, len)
            {
                return Ok(Cow::Borrowed(rows));
            }
        }
        let mut rows = platform::zeroed(len as usize, "rows of a matrix")?;
        self.checkpoint().read(id, begin, &mut rows)?;
        self.n_read.fetch_add(len, Ordering::Relaxed);
        // What comes next is fetched meanwhile.
        let rest = self.checkpoint().catalog[id].size_bytes.0 - begin - len;
        self.checkpoint().will_need(id, begin + len, rest.min(len));
        Ok(Cow::Owned(rows))
    }

    /// Calls `with` for all rows of a matrix from `first` on, some at a time: with the number of the first and their bytes.
    fn for_rows(&self, id: TensorId, rows: [u64; 2], mut with: impl FnMut(u64, u64, &[u8])) -> Result<()> {
        let [begin, end] = rows;
        let at_once = (STORED_AT_ONCE / self.checkpoint().catalog[id].row_bytes().max(1)).max(1);
        let mut first = begin;
        while first < end {
            let n_rows = at_once.min(end - first);
            with(first, n_rows, &self.rows(id, first, n_rows)?);
            first += n_rows;
        }
        Ok(())
    }

    /// `output[t, r]` = Σₖ `matrix[rows[0] + r, k]` · `tokens[t, k]`, as the host executor has it.
    pub(super) fn multiply(&self, id: TensorId, rows: [u64; 2], tokens: &[f32], output: &mut [f32]) -> Result<()> {
        let tensor = &self.checkpoint().catalog[id];
        let n_tokens = (tokens.len() as u64 / tensor.n_columns()) as u32;
        let whole = matmul::Params::new(tensor.dtype, (rows[1] - rows[0]) as u32, tensor.n_columns() as u32, n_tokens);
        let mut input = Input::default();
        let operand = input.prepare(&whole, tokens);
        self.for_rows(id, rows, |first, n_rows, bytes| {
            host::multiply(simd(), &whole.slice((first - rows[0]) as u32, n_rows as u32), bytes, operand, output);
        })
    }

    /// `output[t, c]` += Σᵣ `upward[t, r]` · `matrix[rows[0] + r, c]`: the product with the transposed matrix.
    pub(super) fn add_transposed(&self, id: TensorId, rows: [u64; 2], upward: &[f32], output: &mut [f32]) -> Result<()> {
        let tensor = &self.checkpoint().catalog[id];
        let (dtype, n_columns, row_bytes) = (tensor.dtype, tensor.n_columns() as usize, tensor.row_bytes() as usize);
        let (n_rows, rows_at_once) = ((rows[1] - rows[0]) as usize, (DECODED_AT_ONCE / n_columns).max(16));
        let mut decoded = vec![0.0; rows_at_once.min(n_rows) * n_columns];
        let mut some = Vec::new();
        self.for_rows(id, rows, |first, n_read, bytes| {
            let first = (first - rows[0]) as usize;
            for begin in (0..n_read as usize).step_by(rows_at_once) {
                let n_decoded = rows_at_once.min(n_read as usize - begin);
                let decoded = &mut decoded[..n_decoded * n_columns];
                let stored = &bytes[begin * row_bytes..][..n_decoded * row_bytes];
                decoded
                    .par_chunks_exact_mut(n_columns)
                    .zip(stored.par_chunks_exact(row_bytes))
                    .with_min_len(MIN_PARALLEL_VALUES.div_ceil(n_columns))
                    .for_each(|(decoded, stored)| dtype.decode(stored, decoded));
                some.clear();
                upward.chunks_exact(n_rows).for_each(|upward| some.extend_from_slice(&upward[first + begin..][..n_decoded]));
                add_sums(n_columns, decoded, &some, output);
            }
        })
    }
}
