//! Matrices of 8-bit floats with scales, in a file of their own that has them in BF16: each value is the stored one times its scale, in
//! f32, rounded to BF16, which is what transformers' dequantisation (`Fp8Dequantize`) and compressed-tensors' decompression give. One
//! byte a value is read, on the way from the disk to wherever the matrix is computed with; in memory and in slots a value takes two.

use std::sync::Arc;

use half::{bf16, f16};

use super::derived::{DerivedMatrix, Wanted};
use crate::error::Result;
use crate::platform::{self, ByteSource};

/// Bytes that are read at a time.
const BLOCK_BYTES: usize = 256 << 10;
/// Bytes of a value as it is read from here.
const WIDTH: u64 = 2;

/// How 8 bits are a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float8 {
    /// One sign, four bits of exponent, three of fraction; no infinities (`float8_e4m3fn`).
    E4M3,
    /// The upper half of an IEEE half (`float8_e5m2`).
    E5M2,
}

impl Float8 {
    /// Under safetensors' name of it.
    pub(crate) fn named(name: &str) -> Option<Float8> {
        match name {
            "F8_E4M3" => Some(Float8::E4M3),
            "F8_E5M2" => Some(Float8::E5M2),
            _ => None,
        }
    }

    fn value(self, byte: u8) -> f32 {
        match self {
            Float8::E5M2 => f16::from_bits(u16::from(byte) << 8).to_f32(),
            Float8::E4M3 => {
                let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
                let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
                let magnitude = match (exponent, byte & 7) {
                    (15, 7) => f32::NAN,
                    // Below the least power of two the steps stay equal: 2^-9.
                    (0, _) => fraction * 2f32.powi(-9),
                    _ => (8.0 + fraction) * 2f32.powi(exponent - 10),
                };
                sign * magnitude
            }
        }
    }

    /// The values of all bytes.
    fn table(self) -> Vec<f32> {
        (0..=u8::MAX).map(|byte| self.value(byte)).collect()
    }
}

/// A matrix of 8-bit floats and where its file has it.
#[derive(Debug)]
pub(crate) struct ScaledMatrix {
    pub(crate) source: Arc<dyn ByteSource>,
    /// Where its bytes begin there.
    pub(crate) stored: u64,
    pub(crate) n_rows: u64,
    pub(crate) n_columns: u64,
    pub(crate) float: Float8,
    /// Rows and columns that share a scale.
    pub(crate) block: [u64; 2],
    /// Row by row of blocks, those at the edges included.
    pub(crate) scales: Vec<f32>,
}

impl DerivedMatrix for ScaledMatrix {
    fn source(&self) -> &dyn ByteSource {
        self.source.as_ref()
    }

    fn size(&self) -> u64 {
        self.n_rows * self.n_columns * WIDTH
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let table = self.float.table();
        let (first, last) = (offset / WIDTH, (offset + buffer.len() as u64).div_ceil(WIDTH));
        let mut stored = platform::zeroed(BLOCK_BYTES.min((last - first) as usize), "a matrix of 8-bit floats")?;
        let (mut wanted, mut index) = (Wanted { offset, buffer }, first);
        while index < last {
            let stored = &mut stored[..BLOCK_BYTES.min((last - index) as usize)];
            self.source.read_at(self.stored + index, stored)?;
            for (index, byte) in (index..).zip(stored.iter()) {
                wanted.put(index * WIDTH, &bf16::from_f32(table[usize::from(*byte)] * self.scale(index)).to_le_bytes());
            }
            index += stored.len() as u64;
        }
        Ok(())
    }
}

impl ScaledMatrix {
    /// Of value `index`.
    fn scale(&self, index: u64) -> f32 {
        let [rows, columns] = self.block;
        let (row, column) = (index / self.n_columns, index % self.n_columns);
        self.scales[(row / rows * self.n_columns.div_ceil(columns) + column / columns) as usize]
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::weights::derived::DerivedFile;
    use crate::weights::in_memory::Memory;

    #[derive(Deserialize)]
    struct Golden {
        dtype: String,
        shape: [u64; 2],
        block: [u64; 2],
        bytes: Vec<u8>,
        scales: Vec<f32>,
        /// Bits of BF16.
        values: Vec<u16>,
    }

    fn goldens() -> Vec<Golden> {
        serde_json::from_str(include_str!("../../tests/golden/float8.json")).unwrap()
    }

    /// Made by `tests/golden/float8.py`.
    #[test]
    fn values_are_those_that_torch_gives_from_any_byte_on() {
        let mut file = DerivedFile::default();
        let mut expected = Vec::new();
        for golden in goldens() {
            let source: Arc<dyn ByteSource> = Arc::new(Memory([&[0xEE; 5][..], &golden.bytes].concat()));
            let [n_rows, n_columns] = golden.shape;
            let float = Float8::named(&golden.dtype).unwrap();
            let (begin, size) =
                file.push(ScaledMatrix { source, stored: 5, n_rows, n_columns, float, block: golden.block, scales: golden.scales });
            expected.resize(begin as usize, 0);
            expected.extend(golden.values.iter().flat_map(|bits| bits.to_le_bytes()));
            assert_eq!(expected.len() as u64, begin + size.0);
        }
        expected.resize(file.len() as usize, 0);
        for (begin, end) in [(0, expected.len()), (1, 2), (7, 300), (4095, 4100), (expected.len() - 3, expected.len())] {
            let mut read = vec![0xAA; end - begin];
            file.read_at(begin as u64, &mut read).unwrap();
            let is_nan = |bytes: &[u8]| bf16::from_le_bytes([bytes[0], bytes[1]]).is_nan();
            if begin % 2 == 0 {
                for (at, (found, expected)) in read.chunks_exact(2).zip(expected[begin..end].chunks_exact(2)).enumerate() {
                    assert!(found == expected || (is_nan(found) && is_nan(expected)), "{at}: {found:?}, expected {expected:?}");
                }
            } else {
                let mut whole = vec![0; expected.len()];
                file.read_at(0, &mut whole).unwrap();
                assert_eq!(read, whole[begin..end]);
            }
        }
    }
}
