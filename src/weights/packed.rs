//! Matrices of packed 4-bit integers with scales for groups of columns, as compressed-tensors (`pack-quantized`), GPTQ and AWQ store them, in
//! a file of their own that has them in blocks: the same integers and the same scales, bit for bit, in another order.
//!
//! A value is `scale · (integer − zero)`. Where `zero` is 8 everywhere that is Q4_0; where each group has its own, the difference has five
//! bits and a sign, which is Q5_0. Four bits a value are read either way.

use std::ops::Range;
use std::sync::Arc;

use half::f16;

use super::derived::{DerivedMatrix, Wanted};
use crate::dtype::DType;
use crate::error::Result;
use crate::platform::{self, ByteSource};

/// Columns of a block.
pub(crate) const BLOCK_LEN: u64 = 32;
/// Integers of a word.
pub(crate) const WORD_LEN: u64 = 8;
const WORD_BYTES: u64 = 4;
const WORDS_OF_BLOCK: u64 = BLOCK_LEN / WORD_LEN;
/// Bytes that are read at a time, at most, where what is read at once is not longer.
const READ_BYTES: u64 = 256 << 10;
const WHAT: &str = "a matrix of packed integers";

/// How integers stand in words of 32 bits, each with eight of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Row by row, a word has eight columns from the lowest bits on (compressed-tensors).
    Rows,
    /// For each eight columns a word of each row, which has them from the lowest bits on (GPTQ).
    EightColumns,
    /// For each column a word of each eight rows (AWQ).
    EightRows,
}

/// Which four bits of a word have each of eight rows: those of even number come first (AWQ).
pub(crate) const PLACES_OF_ROWS: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// A matrix of packed integers and where its file has it.
#[derive(Debug)]
pub(crate) struct PackedMatrix {
    pub(crate) source: Arc<dyn ByteSource>,
    /// Where its words begin there.
    pub(crate) stored: u64,
    pub(crate) packing: Packing,
    /// A multiple of 8 where words have eight rows.
    pub(crate) n_rows: u64,
    /// A multiple of [`BLOCK_LEN`].
    pub(crate) n_columns: u64,
    /// Columns that share a scale, a multiple of [`BLOCK_LEN`].
    pub(crate) group: u64,
    /// Row by row, one for each group.
    pub(crate) scales: Vec<f16>,
    /// As the scales; empty where all are 8. At most 16.
    pub(crate) zeros: Vec<u8>,
}

impl DerivedMatrix for PackedMatrix {
    fn source(&self) -> &dyn ByteSource {
        self.source.as_ref()
    }

    fn size(&self) -> u64 {
        self.n_rows * self.row_bytes()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let rows = offset / self.row_bytes()..(offset + buffer.len() as u64).div_ceil(self.row_bytes());
        let mut wanted = Wanted { offset, buffer };
        match self.packing {
            Packing::Rows => self.read_rows(rows, &mut wanted),
            Packing::EightColumns => self.read_lines(rows.clone(), self.n_rows, rows, &mut wanted),
            Packing::EightRows => {
                let words = rows.start / WORD_LEN..rows.end.div_ceil(WORD_LEN);
                self.read_lines(words, self.n_rows / WORD_LEN, rows, &mut wanted)
            }
        }
    }
}

/// Word `index` of those that were read.
fn word(words: &[u8], index: u64) -> u32 {
    u32::from_le_bytes(words.as_chunks().0[index as usize])
}

/// The integers of a word from the lowest bits on.
fn integers(word: u32) -> [u8; WORD_LEN as usize] {
    std::array::from_fn(|k| (word >> (4 * k) & 15) as u8)
}

impl PackedMatrix {
    /// What it is read as.
    pub(crate) fn dtype(&self) -> DType {
        if self.zeros.is_empty() { DType::Q4_0 } else { DType::Q5_0 }
    }

    fn row_bytes(&self) -> u64 {
        self.n_columns / BLOCK_LEN * self.dtype().block_bytes()
    }

    /// Words of some rows at a time, which follow each other.
    fn read_rows(&self, mut rows: Range<u64>, wanted: &mut Wanted<'_>) -> Result<()> {
        let n_words = self.n_columns / WORD_LEN;
        let n_at_once = (READ_BYTES / (n_words * WORD_BYTES)).clamp(1, rows.end - rows.start);
        let mut read = platform::zeroed((n_at_once * n_words * WORD_BYTES) as usize, WHAT)?;
        while rows.start < rows.end {
            let words = &mut read[..(n_at_once.min(rows.end - rows.start) * n_words * WORD_BYTES) as usize];
            self.source.read_at(self.stored + rows.start * n_words * WORD_BYTES, words)?;
            for (index, words) in (rows.start * n_words / WORDS_OF_BLOCK..).zip(words.chunks_exact((WORDS_OF_BLOCK * WORD_BYTES) as usize))
            {
                let mut of_block = [0; BLOCK_LEN as usize];
                for (target, index) in of_block.as_chunks_mut().0.iter_mut().zip(0..) {
                    *target = integers(word(words, index));
                }
                let of_row = self.n_columns / BLOCK_LEN;
                self.put([index / of_row, index % of_row], &of_block, wanted);
            }
            rows.start += n_at_once;
        }
        Ok(())
    }

    /// Lines of words that hold some blocks of columns at a time; of each line these `words` of `n_words`, or all where that is less
    /// than twice as many, since single reads cost more then.
    fn read_lines(&self, words: Range<u64>, n_words: u64, rows: Range<u64>, wanted: &mut Wanted<'_>) -> Result<()> {
        let words = if 2 * (words.end - words.start) >= n_words { 0..n_words } else { words };
        let n_read = words.end - words.start;
        let is_whole = n_read == n_words;
        let n_lines = if self.packing == Packing::EightRows { BLOCK_LEN } else { WORDS_OF_BLOCK };
        let block_bytes = n_lines * n_read * WORD_BYTES;
        let n_at_once = (READ_BYTES / block_bytes).clamp(1, self.n_columns / BLOCK_LEN);
        let mut read = platform::zeroed((n_at_once * block_bytes) as usize, WHAT)?;
        for begin in (0..self.n_columns / BLOCK_LEN).step_by(n_at_once as usize) {
            let end = (begin + n_at_once).min(self.n_columns / BLOCK_LEN);
            let read = &mut read[..((end - begin) * block_bytes) as usize];
            let place = |line: u64| self.stored + (line * n_words + words.start) * WORD_BYTES;
            if is_whole {
                self.source.read_at(place(begin * n_lines), read)?;
            } else {
                for (line, bytes) in (begin * n_lines..).zip(read.chunks_exact_mut((n_read * WORD_BYTES) as usize)) {
                    self.source.read_at(place(line), bytes)?;
                }
            }
            for (block, lines) in (begin..end).zip(read.chunks_exact(block_bytes as usize)) {
                for row in rows.clone() {
                    self.put([row, block], &self.of_lines(lines, n_read, words.start, row), wanted);
                }
            }
        }
        Ok(())
    }

    /// A block of `row`, of lines that have `n_words` each, from word `first` on.
    fn of_lines(&self, lines: &[u8], n_words: u64, first: u64, row: u64) -> [u8; BLOCK_LEN as usize] {
        let mut of_block = [0; BLOCK_LEN as usize];
        if self.packing == Packing::EightRows {
            let shift = 4 * PLACES_OF_ROWS[(row % WORD_LEN) as usize];
            for (target, line) in of_block.iter_mut().zip(0..) {
                *target = (word(lines, line * n_words + row / WORD_LEN - first) >> shift & 15) as u8;
            }
        } else {
            for (target, line) in of_block.as_chunks_mut().0.iter_mut().zip(0..) {
                *target = integers(word(lines, line * n_words + row - first));
            }
        }
        of_block
    }

    /// Block `index` of `row`: the scale, of five bits the fifth ones, then the first sixteen integers in low nibbles and the last sixteen
    /// in high ones.
    fn put(&self, [row, index]: [u64; 2], integers: &[u8; BLOCK_LEN as usize], wanted: &mut Wanted<'_>) {
        let group = (row * (self.n_columns / self.group) + index * BLOCK_LEN / self.group) as usize;
        let at = row * self.row_bytes() + index * self.dtype().block_bytes();
        let scale = self.scales[group].to_le_bytes();
        let packed =
            |integers: &[u8; BLOCK_LEN as usize]| -> [u8; 16] { std::array::from_fn(|k| integers[k] & 15 | integers[k + 16] << 4) };
        let Some(zero) = self.zeros.get(group) else {
            let mut block = [0; 18];
            block[..2].copy_from_slice(&scale);
            block[2..].copy_from_slice(&packed(integers));
            return wanted.put(at, &block);
        };
        // Q5_0 takes 16 away.
        let integers = integers.map(|integer| integer + 16 - zero);
        let fifth = (0..).zip(integers).fold(0u32, |bits, (k, integer)| bits | u32::from(integer >> 4) << k);
        let mut block = [0; 22];
        block[..2].copy_from_slice(&scale);
        block[2..6].copy_from_slice(&fifth.to_le_bytes());
        block[6..].copy_from_slice(&packed(&integers));
        wanted.put(at, &block);
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::weights::in_memory::Memory;

    #[derive(Deserialize)]
    struct Golden {
        packing: String,
        shape: [u64; 2],
        group: u64,
        packed: Vec<i32>,
        /// Row by row.
        scales: Vec<f32>,
        zeros: Vec<u8>,
        integers: Vec<u8>,
    }

    /// Made by `tests/golden/packed4.py`.
    #[test]
    fn integers_and_scales_are_those_that_were_packed() {
        let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../tests/golden/packed4.json")).unwrap();
        assert!(!goldens.is_empty());
        for Golden { packing, shape: [n_rows, n_columns], group, packed, scales, zeros, integers } in goldens {
            let bytes: Vec<u8> = packed.iter().flat_map(|word| word.to_le_bytes()).collect();
            let source: Arc<dyn ByteSource> = Arc::new(Memory([&[7; 3][..], &bytes].concat()));
            let value = |(index, integer): (u64, &u8)| {
                let of = (index / n_columns * (n_columns / group) + index % n_columns / group) as usize;
                (f32::from(*integer) - f32::from(zeros.get(of).copied().unwrap_or(8))) * scales[of]
            };
            let values: Vec<f32> = (0..).zip(&integers).map(value).collect();
            let scales = scales.iter().copied().map(f16::from_f32).collect();
            let way = match packing.as_str() {
                "rows" => Packing::Rows,
                "eight columns" => Packing::EightColumns,
                _ => Packing::EightRows,
            };
            let matrix = PackedMatrix { source, stored: 3, packing: way, n_rows, n_columns, group, scales, zeros };
            let mut whole = vec![0; matrix.size() as usize];
            matrix.read(0, &mut whole).unwrap();
            let mut decoded = vec![f32::NAN; values.len()];
            matrix.dtype().decode(&whole, &mut decoded);
            assert_eq!(decoded, values, "{packing} {n_rows}×{n_columns}");
            for (begin, end) in [(1, 2), (5, 40), (17, 19), (30, whole.len() / 3), (whole.len() - 20, whole.len() - 1)] {
                let mut part = vec![0; end - begin];
                matrix.read(begin as u64, &mut part).unwrap();
                assert_eq!(part, whole[begin..end], "{packing} {n_rows}×{n_columns}, {begin}..{end}");
            }
        }
    }
}
