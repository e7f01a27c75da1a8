//! Cuts units into pieces: row slices that fit a binding, gathered into blocks that fit a buffer or a slot.
//! Rows are independent of each other, so no cut can change a result.

use serde::Serialize;

use crate::device::GpuLimits;
use crate::error::{Error, Result};
use crate::model::{Op, Unit};
use crate::units::Bytes;
use crate::weights::{Catalog, TensorId};

/// Offsets inside a block are multiples of this, WebGPU's largest `minStorageBufferOffsetAlignment`.
pub const SLICE_ALIGNMENT: u64 = 256;

/// Part of a unit that arrives at once: one buffer of a resident unit, or one filling of a slot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Piece {
    /// Index of its unit in the model.
    pub unit: usize,
    /// The weights in it, in the order of their offsets.
    pub slices: Vec<Slice>,
    /// What can be computed once it is there, in order.
    pub work: Vec<Work>,
    /// Bytes of the whole block, gaps between slices included.
    pub size_bytes: Bytes,
}

/// Rows of one matrix, somewhere in a block.
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

/// One step of computing a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A whole operation that needs no matrix: index into the unit's operations.
    Op(usize),
    /// The rows of a matrix product that one slice holds.
    Rows {
        /// Index into the unit's operations.
        op: usize,
        /// Index into the piece's slices.
        slice: usize,
    },
}

/// Cuts `unit` into pieces of at most `max_piece` bytes whose slices fit `limits`.
///
/// # Errors
/// [`Error::DoesNotFit`] where a single row is larger than a piece or a binding may be.
pub fn cut(unit_index: usize, unit: &Unit, catalog: &Catalog, limits: &GpuLimits, max_piece: Bytes) -> Result<Vec<Piece>> {
    let max_piece = max_piece.0.min(limits.max_buffer_bytes.0);
    let empty = || Piece { unit: unit_index, slices: Vec::new(), work: Vec::new(), size_bytes: Bytes::ZERO };
    let mut pieces = Vec::new();
    let mut piece = empty();
    for (op_index, op) in unit.ops.iter().enumerate() {
        let Op::MatMul { weight, .. } = op else {
            piece.work.push(Work::Op(op_index));
            continue;
        };
        let tensor = &catalog[*weight];
        let (n_rows, row_bytes) = (tensor.n_rows(), tensor.row_bytes());
        let mut first_row = 0;
        while first_row < n_rows {
            let room = (max_piece - piece.size_bytes.0.min(max_piece)).min(limits.max_binding_bytes.0);
            let fitting_rows = room.checked_div(row_bytes).unwrap_or(n_rows).min(n_rows - first_row);
            if fitting_rows == 0 && piece.slices.is_empty() {
                return Err(row_too_large(&tensor.name, row_bytes, max_piece.min(limits.max_binding_bytes.0)));
            }
            if fitting_rows == 0 {
                pieces.push(std::mem::replace(&mut piece, empty()));
                continue;
            }
            let size_bytes = fitting_rows * row_bytes;
            piece.work.push(Work::Rows { op: op_index, slice: piece.slices.len() });
            piece.slices.push(Slice { tensor: *weight, first_row, n_rows: fitting_rows, offset: piece.size_bytes.0, size_bytes });
            piece.size_bytes = Bytes(piece.size_bytes.0 + size_bytes).align_up(SLICE_ALIGNMENT);
            first_row += fitting_rows;
        }
    }
    pieces.push(piece);
    Ok(pieces)
}

fn row_too_large(tensor: &str, row_bytes: u64, limit: u64) -> Error {
    Error::DoesNotFit {
        device: format!("a slot with one row of `{tensor}`"),
        needed: Bytes(row_bytes),
        available: Bytes(limit),
        advice: "raise --max-memory for the executing device".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::model::{Activation, UnitKind};
    use crate::weights::{Shard, TensorInfo};

    fn catalog(rows: u64, row_values: u64) -> Catalog {
        let size = DType::F16.size_bytes(rows * row_values).unwrap();
        let tensor =
            TensorInfo { name: "w".into(), dtype: DType::F16, shape: vec![rows, row_values], shard: 0, offset: 0, size_bytes: Bytes(size) };
        Catalog::new(vec![Shard { path: "x".into(), size_bytes: Bytes(size) }], vec![tensor])
    }

    fn unit() -> Unit {
        let product = Op::MatMul { input: Activation::Normed, weight: TensorId(0), output: Activation::Delta };
        Unit { name: "u".into(), kind: UnitKind::Head, ops: vec![Op::PickRows, product.clone(), Op::SwiGlu, product, Op::AddResidual] }
    }

    #[test]
    fn every_row_stands_in_one_slice_and_order_is_kept() {
        let catalog = catalog(77, 33);
        for max_piece in [66, 300, 1000, 5082, 1 << 20] {
            let limits = GpuLimits { max_binding_bytes: Bytes(700), ..GpuLimits::default() };
            let pieces = cut(3, &unit(), &catalog, &limits, Bytes(max_piece)).unwrap();
            let mut walked = Vec::new();
            for piece in &pieces {
                for work in &piece.work {
                    match *work {
                        Work::Op(op) => walked.push((op, 0, 0)),
                        Work::Rows { op, slice } => {
                            let slice = piece.slices[slice];
                            assert!(slice.size_bytes <= 700 && slice.offset + slice.size_bytes <= max_piece);
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
            assert_eq!(walked, [(0, 0, 0), (1, 0, 77), (2, 0, 0), (3, 0, 77), (4, 0, 0)], "pieces of {max_piece} bytes");
        }
    }

    #[test]
    fn a_row_larger_than_a_piece_is_refused_with_numbers() {
        let error = cut(0, &unit(), &catalog(2, 33), &GpuLimits::default(), Bytes(65)).unwrap_err();
        assert!(error.to_string().contains("66 B"), "{error}");
    }
}
