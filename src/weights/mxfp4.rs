//! Matrices in MXFP4 that a folder has as nibbles and scales apart (`NAME_blocks` and `NAME_scales`, as gpt-oss is published), as a file that
//! has them in blocks, as GGUF files do. Every nibble and every scale passes as it is stored; they change places on the way from the disk.
//!
//! A stored block is sixteen bytes, of which byte `i` holds value `2·i` low and value `2·i + 1` high; here it is the scale and sixteen bytes,
//! of which byte `j` holds value `j` low and value `j + 16` high.

use std::sync::Arc;

use crate::dtype::DType;
use crate::error::Result;
use crate::platform::{self, ByteSource};
use crate::weights::derived::{DerivedFile, DerivedMatrix};
use crate::weights::{Piece, TensorInfo};

/// Bytes of nibbles in a stored block.
const NIBBLE_BYTES: u64 = 16;
/// Bytes of nibbles that are read at a time, at most, where a row is not longer.
const READ_BYTES: u64 = 256 << 10;

/// A matrix whose rows are every `step`th of a stored one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Apart {
    /// The nibbles of the stored matrix.
    pub(crate) nibbles: Piece,
    /// Its scales.
    pub(crate) scales: Piece,
    /// The first stored row.
    pub(crate) first: u64,
    /// Stored rows from one row to the next.
    pub(crate) step: u64,
}

/// A matrix that is put together.
#[derive(Debug)]
struct Mxfp4 {
    nibbles: Arc<dyn ByteSource>,
    scales: Arc<dyn ByteSource>,
    stored: Apart,
    n_rows: u64,
    /// Blocks of a row.
    n_blocks: u64,
}

/// Gives each of `tensors`, whose names and shapes are known, a place in one file of number `shard`, which reads from the files `sources`.
/// `None` where there are none.
pub(crate) fn mxfp4_blocks(tensors: Vec<(&mut TensorInfo, Apart)>, sources: &[Arc<dyn ByteSource>], shard: u32) -> Option<DerivedFile> {
    let mut file = DerivedFile::default();
    for (tensor, stored) in tensors {
        let [nibbles, scales] = [stored.nibbles, stored.scales].map(|piece| sources.get(piece.shard as usize));
        let (Some(nibbles), Some(scales)) = (nibbles, scales) else { continue };
        let (n_rows, n_blocks) = (tensor.n_rows(), tensor.n_columns() / DType::MXFP4.block_len());
        let (nibbles, scales) = (Arc::clone(nibbles), Arc::clone(scales));
        let (offset, size_bytes) = file.push(Mxfp4 { nibbles, scales, stored, n_rows, n_blocks });
        (tensor.dtype, tensor.shard, tensor.offset, tensor.size_bytes) = (DType::MXFP4, shard, offset, size_bytes);
    }
    (!file.is_empty()).then_some(file)
}

impl Mxfp4 {
    fn row_bytes(&self) -> u64 {
        self.n_blocks * (NIBBLE_BYTES + 1)
    }
}

impl DerivedMatrix for Mxfp4 {
    fn source(&self) -> &dyn ByteSource {
        self.nibbles.as_ref()
    }

    fn size(&self) -> u64 {
        self.n_rows * self.row_bytes()
    }

    /// Some rows at a time, with the stored rows between them.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (row_bytes, end) = (self.row_bytes(), offset + buffer.len() as u64);
        let rows_at_once = (READ_BYTES / (self.n_blocks * NIBBLE_BYTES * self.stored.step)).max(1);
        let (mut row, last) = (offset / row_bytes, end.div_ceil(row_bytes));
        let mut whole = platform::zeroed(row_bytes as usize, "a row of a matrix in MXFP4")?;
        while row < last {
            let n_rows = rows_at_once.min(last - row);
            let (stored_row, n_stored) = (row * self.stored.step + self.stored.first, (n_rows - 1) * self.stored.step + 1);
            let mut nibbles = platform::zeroed((n_stored * self.n_blocks * NIBBLE_BYTES) as usize, "nibbles of a matrix in MXFP4")?;
            let mut scales = platform::zeroed((n_stored * self.n_blocks) as usize, "scales of a matrix in MXFP4")?;
            self.nibbles.read_at(self.stored.nibbles.offset + stored_row * self.n_blocks * NIBBLE_BYTES, &mut nibbles)?;
            self.scales.read_at(self.stored.scales.offset + stored_row * self.n_blocks, &mut scales)?;
            let every = |bytes: u64| (self.stored.step * bytes) as usize;
            let rows = nibbles.chunks(every(self.n_blocks * NIBBLE_BYTES)).zip(scales.chunks(every(self.n_blocks)));
            for (nibbles, scales) in rows {
                put_together(nibbles, scales, &mut whole);
                let at = row * row_bytes;
                let (begin, until) = (at.max(offset), (at + row_bytes).min(end));
                buffer[(begin - offset) as usize..(until - offset) as usize]
                    .copy_from_slice(&whole[(begin - at) as usize..(until - at) as usize]);
                row += 1;
            }
        }
        Ok(())
    }
}

/// A row of blocks, of nibbles and scales of which it has the first.
fn put_together(nibbles: &[u8], scales: &[u8], row: &mut [u8]) {
    let blocks = row.chunks_exact_mut(NIBBLE_BYTES as usize + 1).zip(nibbles.chunks_exact(NIBBLE_BYTES as usize)).zip(scales);
    for ((block, nibbles), scale) in blocks {
        let value = |index: usize| (nibbles[index / 2] >> (4 * (index % 2))) & 15;
        block[0] = *scale;
        for (index, byte) in block[1..].iter_mut().enumerate() {
            *byte = value(index) | (value(index + 16) << 4);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::Bytes;
    use crate::weights::in_memory::Memory;

    proptest! {
        #[test]
        fn any_range_is_that_of_the_blocks(
            [n_rows, n_blocks] in prop::array::uniform2(1u64..9),
            first in 0..2u64,
            [begin, len] in prop::array::uniform2(0.0..1.0f64),
        ) {
            let stored_rows = 2 * n_rows;
            let bytes: Vec<u8> = (0..stored_rows * n_blocks * 17).map(|index| (index * 7 % 251) as u8).collect();
            let scales_at = stored_rows * n_blocks * 16;
            let source: Arc<dyn ByteSource> = Arc::new(Memory(bytes.clone()));
            let piece = |offset| Piece { shard: 0, offset, len: 0 };
            let shape = vec![n_rows, n_blocks * 32];
            let mut tensor = TensorInfo { name: String::new(), dtype: DType::F32, shape, shard: 0, offset: 0, size_bytes: Bytes(0) };
            let apart = Apart { nibbles: piece(0), scales: piece(scales_at), first, step: 2 };
            let file = mxfp4_blocks(vec![(&mut tensor, apart)], &[source], 3).unwrap();
            prop_assert_eq!((tensor.dtype, tensor.shard, tensor.size_bytes.0), (DType::MXFP4, 3, n_rows * n_blocks * 17));
            let mut expected = vec![0u8; file.len() as usize];
            for (row, block, value) in (0..n_rows).flat_map(|row| (0..n_blocks).flat_map(move |block| (0..32).map(move |value| (row, block, value)))) {
                let place = (row * 2 + first) * n_blocks + block;
                let nibble = (bytes[(place * 16 + value / 2) as usize] >> (4 * (value % 2))) & 15;
                let to = ((row * n_blocks + block) * 17) as usize;
                expected[to] = bytes[(scales_at + place) as usize];
                expected[to + 1 + value as usize % 16] |= nibble << (4 * (value / 16));
            }
            let begin = (begin * file.len() as f64) as usize;
            let mut read = vec![1; (len * (file.len() as usize - begin) as f64) as usize];
            file.read_at(begin as u64, &mut read).unwrap();
            prop_assert_eq!(&read, &expected[begin..begin + read.len()]);
        }
    }
}
