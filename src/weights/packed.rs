//! Matrices of packed 4-bit integers with scales for groups of columns, as compressed-tensors' `pack-quantized` stores them, as Q4_0 in a
//! file of their own: the same integers and the same scales, bit for bit, in another order. Four bits a value are read.
//!
//! A row is stored as words of 32 bits, each with eight integers from the lowest bits on, to which 8 was added; its scales stand in a
//! tensor of their own.

use std::sync::Arc;

use half::f16;

use super::derived::DerivedMatrix;
use crate::error::Result;
use crate::platform::{self, ByteSource};

/// Columns of a block of Q4_0, its bytes, and those of its integers.
pub(crate) const BLOCK_LEN: u64 = 32;
const BLOCK_BYTES: u64 = 18;
const PACKED_BYTES: u64 = 16;
/// Blocks that are read at a time.
const BLOCKS_AT_ONCE: u64 = 16 << 10;

/// A matrix of packed integers and where its file has it.
#[derive(Debug)]
pub(crate) struct PackedMatrix {
    pub(crate) source: Arc<dyn ByteSource>,
    /// Where its words begin there.
    pub(crate) stored: u64,
    pub(crate) n_rows: u64,
    /// A multiple of [`BLOCK_LEN`].
    pub(crate) n_columns: u64,
    /// Columns that share a scale, a multiple of [`BLOCK_LEN`].
    pub(crate) group: u64,
    /// Row by row, one for each group.
    pub(crate) scales: Vec<f16>,
}

impl DerivedMatrix for PackedMatrix {
    fn source(&self) -> &dyn ByteSource {
        self.source.as_ref()
    }

    fn size(&self) -> u64 {
        self.n_rows * self.n_columns / BLOCK_LEN * BLOCK_BYTES
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset + buffer.len() as u64;
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        let n_at_once = BLOCKS_AT_ONCE.min(blocks.end - blocks.start);
        let mut stored = platform::zeroed((n_at_once * PACKED_BYTES) as usize, "a matrix of packed integers")?;
        let mut first = blocks.start;
        while first < blocks.end {
            let stored = &mut stored[..((blocks.end - first).min(n_at_once) * PACKED_BYTES) as usize];
            self.source.read_at(self.stored + first * PACKED_BYTES, stored)?;
            for (index, packed) in (first..).zip(stored.as_chunks().0) {
                let block = self.block(index, packed);
                // The first and the last block may lie here in part.
                let (begin, stop) = ((index * BLOCK_BYTES).max(offset), ((index + 1) * BLOCK_BYTES).min(end));
                let within = (begin - index * BLOCK_BYTES) as usize..(stop - index * BLOCK_BYTES) as usize;
                buffer[(begin - offset) as usize..(stop - offset) as usize].copy_from_slice(&block[within]);
            }
            first += stored.len() as u64 / PACKED_BYTES;
        }
        Ok(())
    }
}

impl PackedMatrix {
    /// Block `index` as Q4_0 has it: the scale, then the first sixteen integers in low nibbles and the last sixteen in high ones.
    fn block(&self, index: u64, packed: &[u8; PACKED_BYTES as usize]) -> [u8; BLOCK_BYTES as usize] {
        let of_row = self.n_columns / BLOCK_LEN;
        let group = index / of_row * (self.n_columns / self.group) + index % of_row * BLOCK_LEN / self.group;
        let mut block = [0; BLOCK_BYTES as usize];
        block[..2].copy_from_slice(&self.scales[group as usize].to_le_bytes());
        let nibble = |k: usize| packed[k / 2] >> (k % 2 * 4) & 15;
        for (k, byte) in block[2..].iter_mut().enumerate() {
            *byte = nibble(k) | nibble(k + 16) << 4;
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::dtype::DType;
    use crate::weights::in_memory::Memory;

    #[derive(Deserialize)]
    struct Golden {
        shape: [u64; 2],
        group: u64,
        packed: Vec<i32>,
        scales: Vec<f32>,
        values: Vec<f32>,
    }

    /// Made by `tests/golden/packed4.py`.
    #[test]
    fn integers_and_scales_are_those_of_compressed_tensors() {
        let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../tests/golden/packed4.json")).unwrap();
        assert!(!goldens.is_empty());
        for Golden { shape: [n_rows, n_columns], group, packed, scales, values } in goldens {
            let bytes: Vec<u8> = packed.iter().flat_map(|word| word.to_le_bytes()).collect();
            let source: Arc<dyn ByteSource> = Arc::new(Memory([&[7; 3][..], &bytes].concat()));
            let scales = scales.into_iter().map(f16::from_f32).collect();
            let matrix = PackedMatrix { source, stored: 3, n_rows, n_columns, group, scales };
            let mut whole = vec![0; matrix.size() as usize];
            matrix.read(0, &mut whole).unwrap();
            let mut decoded = vec![f32::NAN; values.len()];
            DType::Q4_0.decode(&whole, &mut decoded);
            assert_eq!(decoded, values);
            for (begin, end) in [(1, 2), (5, 40), (17, 19), (whole.len() - 20, whole.len() - 1)] {
                let mut part = vec![0; end - begin];
                matrix.read(begin as u64, &mut part).unwrap();
                assert_eq!(part, whole[begin..end]);
            }
        }
    }
}
