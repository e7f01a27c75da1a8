//! Chunks: how units are cut. Matrices are cut into slices of rows that fit a binding, and slices are gathered into chunks that fit a
//! buffer or a slot; small units that stream one after the other share a slot. Rows are independent of each other, so no cut can change a
//! result.

use serde::Serialize;

use crate::device::{Device, GpuLimits};
use crate::error::{Error, Remedy, Result, Setting};
use crate::model::{Op, Unit};
use crate::units::Bytes;
use crate::weights::{Catalog, TensorId};

/// Offsets inside a block that a GPU computes with are multiples of this, WebGPU's largest `minStorageBufferOffsetAlignment`.
pub const SLICE_ALIGNMENT: u64 = 256;

/// The weights that are loaded or uploaded at once, into one buffer or one slot: part of a unit, or several consecutive units.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chunk {
    /// Where it is stored.
    pub stored_on: Device,
    /// The weights in it, in the order of their use.
    pub slices: Vec<Slice>,
    /// What is computed with it, in order: one entry for each of its units, at least one.
    pub work: Vec<UnitWork>,
    /// Bytes of the whole block, gaps between slices included.
    pub size_bytes: Bytes,
    /// Whether it has the matrices of all experts of a unit, whole, of which only those that tokens take are brought to the expert cache of
    /// the device that computes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_cached: bool,
}

impl Chunk {
    fn empty(unit: usize, stored_on: Device) -> Chunk {
        let work = vec![UnitWork { unit, steps: Vec::new() }];
        Chunk { stored_on, slices: Vec::new(), work, size_bytes: Bytes::ZERO, is_cached: false }
    }

    /// Index of its first unit in the model.
    pub fn unit(&self) -> usize {
        self.work.first().map_or(0, |of_unit| of_unit.unit)
    }

    /// Index of its last unit in the model.
    pub fn last_unit(&self) -> usize {
        self.work.last().map_or(0, |of_unit| of_unit.unit)
    }

    /// Steps of all its units.
    pub fn n_steps(&self) -> usize {
        self.work.iter().map(|of_unit| of_unit.steps.len()).sum()
    }

    /// The slices that a unit computes with, in the order of their use.
    pub fn slices_of(&self, unit: usize) -> impl Iterator<Item = &Slice> {
        let steps = self.work.iter().filter(move |of_unit| of_unit.unit == unit).flat_map(|of_unit| &of_unit.steps);
        steps.filter_map(|work| match *work {
            Work::Op(_) => None,
            Work::Rows { slice, .. } => self.slices.get(slice),
        })
    }

    fn push(&mut self, step: Work) {
        if let Some(of_unit) = self.work.last_mut() {
            of_unit.steps.push(step);
        }
    }

    /// Appends the weights and the work of another chunk.
    fn append(&mut self, other: Chunk) {
        let (n_slices, begin) = (self.slices.len(), self.size_bytes.0);
        self.slices.extend(other.slices.into_iter().map(|slice| Slice { offset: begin + slice.offset, ..slice }));
        self.size_bytes += other.size_bytes;
        for mut of_unit in other.work {
            for step in &mut of_unit.steps {
                if let Work::Rows { slice, .. } = step {
                    *slice += n_slices;
                }
            }
            match self.work.last_mut() {
                Some(last) if last.unit == of_unit.unit => last.steps.append(&mut of_unit.steps),
                _ => self.work.push(of_unit),
            }
        }
    }

    /// Bytes of its weights, without the gaps between slices.
    pub fn stored_bytes(&self) -> Bytes {
        Bytes(self.slices.iter().map(|slice| slice.size_bytes).sum())
    }
}

/// Rows of one matrix, somewhere in the block of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Slice {
    /// The matrix.
    pub tensor: TensorId,
    /// First row.
    pub first_row: u64,
    /// How many rows.
    pub n_rows: u64,
    /// Where its bytes begin in the block.
    pub offset: u64,
    /// Bytes of its rows, as stored in the checkpoint.
    pub size_bytes: u64,
}

impl Slice {
    /// Its file in the checkpoint, and where its bytes begin there.
    pub fn place(&self, catalog: &Catalog) -> (u32, u64) {
        let tensor = &catalog[self.tensor];
        (tensor.shard, tensor.offset + self.first_row * tensor.row_bytes())
    }
}

/// What can be computed of one unit with a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnitWork {
    /// Index of the unit in the model.
    pub unit: usize,
    /// In order.
    pub steps: Vec<Work>,
}

/// One step of computing a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A whole operation that needs no matrix: index into the unit's operations.
    Op(usize),
    /// The rows of a matrix product that are in one slice.
    Rows {
        /// Index into the unit's operations.
        op: usize,
        /// Index into the chunk's slices.
        slice: usize,
    },
}

/// How a unit is to be cut.
#[derive(Clone, Copy)]
pub struct Cut<'a> {
    /// The sizes of its matrices.
    pub catalog: &'a Catalog,
    /// No slice and no chunk is larger.
    pub limits: &'a GpuLimits,
    /// Where each of its matrices is stored, in the order of [`Unit::matrices`]; all of a chunk is stored in one place.
    pub stored_on: &'a [Device],
    /// Who computes it.
    pub executor: Device,
    /// Most bytes of a chunk that is not stored on `executor`.
    pub slot_bytes: Bytes,
    /// Whether matrices of experts that are not stored on `executor` pass through its expert cache.
    pub caches_experts: bool,
}

/// Cuts `unit` into chunks whose slices fit the limits; what streams fits a slot.
///
/// # Errors
/// [`Error::DoesNotFit`] where a single row is larger than a chunk or a binding may be.
pub fn cut(unit_index: usize, unit: &Unit, how: &Cut<'_>) -> Result<Vec<Chunk>> {
    // Blocks are padded to the alignment, so the largest block is a multiple of it.
    let max_block = how.limits.max_buffer_bytes.align_down(SLICE_ALIGNMENT);
    // Bindings are multiples of 4 bytes.
    let max_slice = how.limits.max_binding_bytes.align_down(4).0;
    let empty = |stored_on: Device| Chunk::empty(unit_index, stored_on);
    let mut stored_on = how.stored_on.iter().copied();
    let mut chunks = Vec::new();
    let mut chunk = empty(how.stored_on.first().copied().unwrap_or(how.executor));
    for (op_index, op) in unit.ops.iter().enumerate() {
        let Some(weight) = op.matrix() else {
            chunk.push(Work::Op(op_index));
            continue;
        };
        let stored_on = stored_on.next().unwrap_or(how.executor);
        let is_cached = how.caches_experts && stored_on != how.executor && matches!(op, Op::ExpertMatMul(_));
        // What comes before experts that are cached is computed before it is known which of them are needed.
        let begins_cached = is_cached && !chunk.is_cached && chunk.n_steps() > 0;
        if begins_cached || (stored_on != chunk.stored_on || chunk.is_cached != is_cached) && !chunk.slices.is_empty() {
            chunks.push(std::mem::replace(&mut chunk, empty(stored_on)));
        }
        (chunk.stored_on, chunk.is_cached) = (stored_on, is_cached);
        if is_cached {
            let (size_bytes, n_rows) = (how.catalog[weight].size_bytes.0, how.catalog[weight].n_rows());
            chunk.push(Work::Rows { op: op_index, slice: chunk.slices.len() });
            chunk.slices.push(Slice { tensor: weight, first_row: 0, n_rows, offset: chunk.size_bytes.0, size_bytes });
            chunk.size_bytes = Bytes(chunk.size_bytes.0.saturating_add(size_bytes)).align_up(SLICE_ALIGNMENT);
            continue;
        }
        let max_chunk = if stored_on == how.executor { max_block.0 } else { how.slot_bytes.min(max_block).0 };
        let tensor = &how.catalog[weight];
        let (n_rows, row_bytes) = (tensor.n_rows(), tensor.row_bytes());
        let mut first_row = 0;
        while first_row < n_rows {
            let room = max_chunk.saturating_sub(chunk.size_bytes.0).min(max_slice);
            let fitting_rows = room.checked_div(row_bytes).unwrap_or(n_rows).min(n_rows - first_row);
            if fitting_rows == 0 && chunk.slices.is_empty() {
                return Err(row_too_large(&tensor.name, row_bytes, max_chunk.min(max_slice)));
            }
            if fitting_rows == 0 {
                chunks.push(std::mem::replace(&mut chunk, empty(stored_on)));
                continue;
            }
            let size_bytes = fitting_rows * row_bytes;
            chunk.push(Work::Rows { op: op_index, slice: chunk.slices.len() });
            chunk.slices.push(Slice { tensor: weight, first_row, n_rows: fitting_rows, offset: chunk.size_bytes.0, size_bytes });
            chunk.size_bytes = Bytes(chunk.size_bytes.0 + size_bytes).align_up(SLICE_ALIGNMENT);
            first_row += fitting_rows;
        }
    }
    chunks.push(chunk);
    Ok(chunks)
}

/// Cuts `unit` into as few chunks as its slots allow, of about the same size, so that no small copy follows a large one.
///
/// # Errors
/// As of [`cut`].
pub(super) fn cut_evenly(unit_index: usize, unit: &Unit, how: &Cut<'_>) -> Result<Vec<Chunk>> {
    let chunks = cut(unit_index, unit, how)?;
    if chunks.len() < 2 || chunks.iter().any(|chunk| chunk.stored_on != chunks[0].stored_on) {
        return Ok(chunks);
    }
    let size_bytes: Bytes = chunks.iter().map(|chunk| chunk.size_bytes).sum();
    let row_bytes = unit.matrices().map(|id| how.catalog[id].row_bytes()).max().unwrap_or(0);
    // A chunk may end a row early, and pads each of its slices.
    let n_matrices = unit.matrices().count() as u64;
    let even = Bytes(size_bytes.0 / chunks.len() as u64) + Bytes(row_bytes + (n_matrices + 1) * SLICE_ALIGNMENT);
    let evenly = cut(unit_index, unit, &Cut { slot_bytes: even.min(how.slot_bytes), ..*how })?;
    Ok(if evenly.len() == chunks.len() { evenly } else { chunks })
}

/// Merges consecutive chunks that stream from the same place to `executor`, as many as fit a slot. What is done for each chunk, such as
/// mapping a slot and handing it over, is then done less often, and slots that are as large as the largest unit are not left half empty by
/// small ones.
pub(super) fn share_slots(chunks: Vec<Chunk>, executor: Device, slot_bytes: Bytes) -> Vec<Chunk> {
    let mut shared: Vec<Chunk> = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let streams = chunk.stored_on != executor;
        let has_room = |last: &Chunk| {
            let follows = last.stored_on == chunk.stored_on && chunk.unit() <= last.last_unit() + 1;
            let streams = !last.is_cached && !chunk.is_cached;
            follows && streams && last.size_bytes + chunk.size_bytes <= slot_bytes
        };
        match shared.last_mut().filter(|last| streams && has_room(last)) {
            Some(last) => last.append(chunk),
            None => shared.push(chunk),
        }
    }
    shared
}

/// Dispatches of one forward: one per step of work, and the selection of the best tokens.
pub(super) fn n_dispatches_of<'a>(chunks: impl IntoIterator<Item = &'a Chunk>) -> usize {
    chunks.into_iter().map(Chunk::n_steps).sum::<usize>() + 1
}

fn row_too_large(tensor: &str, row_bytes: u64, limit: u64) -> Error {
    Error::ExceedsLimit {
        device: format!("a binding with one row of `{tensor}`"),
        needed: Bytes(row_bytes),
        available: Bytes(limit),
        advice: [Remedy::other("take another adapter"), Remedy::Use(Setting::Device, "cpu".into())].into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::model::{Activation, UnitKind, ValueId};
    use crate::weights::{Shard, TensorInfo};

    fn catalog(rows: u64, row_values: u64) -> Catalog {
        let size = DType::F16.size_bytes(rows * row_values).unwrap();
        let tensor =
            TensorInfo { name: "w".into(), dtype: DType::F16, shape: vec![rows, row_values], shard: 0, offset: 0, size_bytes: Bytes(size) };
        Catalog::new(vec![Shard { path: "x".into(), size_bytes: Bytes(size) }], vec![tensor])
    }

    fn unit() -> Unit {
        let [hidden, input, output] = [0, 1, 2].map(ValueId);
        let product = Op::MatMul { input, weight: TensorId(0), output };
        let glu = Op::Glu { activation: Activation::Silu, gate: input, up: input, output };
        let ops = vec![Op::GatherRows { input, output }, product.clone(), glu, product, Op::Add { input: output, target: hidden }];
        Unit { name: "u".into(), kind: UnitKind::Head, ops }
    }

    fn how<'a>(catalog: &'a Catalog, limits: &'a GpuLimits, slot_bytes: Bytes) -> Cut<'a> {
        Cut { catalog, limits, stored_on: &[Device::Cpu; 2], executor: Device::Gpu(0), slot_bytes, caches_experts: false }
    }

    #[test]
    fn a_chunk_is_stored_in_one_place() {
        let catalog = catalog(77, 33);
        let limits = GpuLimits::default();
        let how = Cut { stored_on: &[Device::Gpu(0), Device::Cpu], ..how(&catalog, &limits, Bytes(1000)) };
        let chunks = cut(0, &unit(), &how).unwrap();
        assert_eq!((chunks[0].stored_on, chunks[0].size_bytes), (Device::Gpu(0), Bytes(5120)), "what is resident is not cut");
        assert!(chunks[1..].len() > 4 && chunks[1..].iter().all(|chunk| chunk.stored_on == Device::Cpu));
        let work: Vec<Work> = chunks.iter().flat_map(|chunk| chunk.work[0].steps.iter().copied()).collect();
        assert_eq!((work[0], work[2], work.last()), (Work::Op(0), Work::Op(2), Some(&Work::Op(4))));
    }

    #[test]
    fn every_row_stands_in_one_slice_and_order_is_kept() {
        let catalog = catalog(77, 33);
        for max_chunk in [66, 300, 1000, 5082, 1 << 20] {
            let limits = GpuLimits { max_binding_bytes: Bytes(700), ..GpuLimits::default() };
            let chunks = cut(3, &unit(), &how(&catalog, &limits, Bytes(max_chunk))).unwrap();
            let mut walked = Vec::new();
            for chunk in &chunks {
                for work in &chunk.work[0].steps {
                    match *work {
                        Work::Op(op) => walked.push((op, 0, 0)),
                        Work::Rows { op, slice } => {
                            let slice = chunk.slices[slice];
                            assert!(slice.size_bytes <= 700 && slice.offset + slice.size_bytes <= max_chunk);
                            assert_eq!(slice.offset % SLICE_ALIGNMENT, 0);
                            match walked.last_mut() {
                                Some(last) if last.0 == op => {
                                    assert_eq!(last.2, slice.first_row, "rows follow each other");
                                    last.2 += slice.n_rows;
                                }
                                _ => walked.push((op, slice.first_row, slice.n_rows)),
                            }
                        }
                    }
                }
            }
            assert_eq!(walked, [(0, 0, 0), (1, 0, 77), (2, 0, 0), (3, 0, 77), (4, 0, 0)], "chunks of {max_chunk} bytes");
        }
    }

    #[test]
    fn consecutive_units_that_stream_share_a_slot_while_it_has_room() {
        let catalog = catalog(77, 33);
        let limits = GpuLimits::default();
        let gpu = Device::Gpu(0);
        let of = |unit_index: usize, stored_on: Device| {
            let how = Cut { stored_on: &[stored_on; 2], ..how(&catalog, &limits, Bytes(1 << 20)) };
            cut(unit_index, &unit(), &how).unwrap().remove(0)
        };
        let stored_on = [Device::Cpu, Device::Cpu, Device::Cpu, gpu, gpu, Device::Cpu, Device::Disk];
        let chunks: Vec<Chunk> = stored_on.into_iter().enumerate().map(|(index, stored_on)| of(index, stored_on)).collect();
        let size = chunks[0].size_bytes;
        let units = |slot_bytes: Bytes| -> Vec<Vec<usize>> {
            let shared = share_slots(chunks.clone(), gpu, slot_bytes);
            shared.iter().map(|chunk| chunk.work.iter().map(|of_unit| of_unit.unit).collect()).collect()
        };
        assert_eq!(units(size), (0..7).map(|unit| vec![unit]).collect::<Vec<_>>());
        assert_eq!(units(size.times(2)), [vec![0, 1], vec![2], vec![3], vec![4], vec![5], vec![6]]);
        assert_eq!(units(size.times(9)), [vec![0, 1, 2], vec![3], vec![4], vec![5], vec![6]]);
        let apart = share_slots(vec![chunks[0].clone(), chunks[2].clone()], gpu, size.times(2));
        assert_eq!(apart.len(), 2, "another device computes what stands between them");
        let shared = share_slots(chunks[..2].to_vec(), gpu, size.times(2)).remove(0);
        let offsets = |unit: usize| shared.slices_of(unit).map(|slice| slice.offset).collect::<Vec<_>>();
        let alone: Vec<u64> = chunks[1].slices.iter().map(|slice| slice.offset).collect();
        assert_eq!((offsets(0), offsets(1)), (alone.clone(), alone.iter().map(|offset| size.0 + offset).collect()));
        assert_eq!((shared.size_bytes, shared.n_steps()), (size.times(2), 2 * chunks[0].n_steps()));
    }

    #[test]
    fn a_row_larger_than_a_chunk_is_refused_with_numbers() {
        let error = cut(0, &unit(), &how(&catalog(2, 33), &GpuLimits::default(), Bytes(65))).unwrap_err();
        assert!(error.to_string().contains("66 B"), "{error}");
    }
}
