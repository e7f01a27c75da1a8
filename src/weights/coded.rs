//! Matrices of 4-bit codes as bitsandbytes stores them (NF4), in a file of their own that has them unquantised: a value is what a
//! table says of its code, times the scale of its block, in f32, rounded to the dtype that the matrix had. That is what bitsandbytes'
//! `dequantize_4bit` gives, bit for bit. Four bits a value are read, on the way from the disk; in memory and in slots a value is as wide as
//! it was. The numbers of the table are none that blocks of integers could hold.

use std::sync::Arc;

use half::{bf16, f16};

use super::derived::{DerivedMatrix, Wanted};
use crate::dtype::Floats;
use crate::error::Result;
use crate::platform::{self, ByteSource};

/// Values that are made at a time.
const VALUES_AT_ONCE: u64 = 64 << 10;
/// Bytes of a scale that is a number.
const SCALE_BYTES: u64 = 4;

/// A matrix of codes and where its file has it: two in a byte, the first one in the high bits.
#[derive(Debug)]
pub(crate) struct CodedMatrix {
    pub(crate) source: Arc<dyn ByteSource>,
    /// Where its codes begin there.
    pub(crate) stored: u64,
    pub(crate) n_values: u64,
    /// What each code stands for.
    pub(crate) table: [f32; 16],
    /// Values that share a scale, row after row.
    pub(crate) block: u64,
    pub(crate) scales: CodeScales,
    /// How its values are read.
    pub(crate) floats: Floats,
}

/// The scales of blocks, which stay in their file.
#[derive(Debug)]
pub(crate) struct CodeScales {
    pub(crate) source: Arc<dyn ByteSource>,
    pub(crate) stored: u64,
    /// How they are quantised; `None`: f32 each.
    pub(crate) nested: Option<Nested>,
}

/// Scales that are codes of eight bits: what the table says, times the scale of their block, plus the offset.
#[derive(Debug)]
pub(crate) struct Nested {
    /// 256 of them.
    pub(crate) table: Vec<f32>,
    pub(crate) block: u64,
    pub(crate) scales: Vec<f32>,
    pub(crate) offset: f32,
}

impl CodeScales {
    /// Scales `first` and following.
    fn read(&self, first: u64, scales: &mut [f32]) -> Result<()> {
        let width = if self.nested.is_some() { 1 } else { SCALE_BYTES };
        let mut bytes = platform::zeroed(scales.len() * width as usize, "the scales of a matrix")?;
        self.source.read_at(self.stored + first * width, &mut bytes)?;
        match &self.nested {
            None => Floats::F32.decode(&bytes, scales),
            Some(nested) => {
                for ((scale, code), index) in scales.iter_mut().zip(bytes).zip(first..) {
                    *scale = nested.table[usize::from(code)] * nested.scales[(index / nested.block) as usize] + nested.offset;
                }
            }
        }
        Ok(())
    }
}

impl DerivedMatrix for CodedMatrix {
    fn source(&self) -> &dyn ByteSource {
        self.source.as_ref()
    }

    fn size(&self) -> u64 {
        self.n_values * self.floats.size_bytes() as u64
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let width = self.floats.size_bytes() as u64;
        let (first, last) = (offset / width, (offset + buffer.len() as u64).div_ceil(width));
        let (mut wanted, mut index) = (Wanted { offset, buffer }, first);
        while index < last {
            let end = (index + VALUES_AT_ONCE).min(last);
            let values = self.values(index, end)?;
            for (value, index) in values.iter().zip(index..) {
                let (wide, half) = (value.to_le_bytes(), self.half_bytes(*value));
                wanted.put(index * width, if width == SCALE_BYTES { &wide } else { &half });
            }
            index = end;
        }
        Ok(())
    }
}

impl CodedMatrix {
    /// Values `begin` to `end`, not yet rounded.
    fn values(&self, begin: u64, end: u64) -> Result<Vec<f32>> {
        let mut codes = platform::zeroed((end.div_ceil(2) - begin / 2) as usize, "a matrix of codes")?;
        self.source.read_at(self.stored + begin / 2, &mut codes)?;
        let first = begin / self.block;
        let mut scales = platform::zeroed((end.div_ceil(self.block) - first) as usize, "the scales of a matrix")?;
        self.scales.read(first, &mut scales)?;
        let value = |index: u64| {
            let byte = codes[(index / 2 - begin / 2) as usize];
            let code = if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            self.table[usize::from(code)] * scales[(index / self.block - first) as usize]
        };
        Ok((begin..end).map(value).collect())
    }

    /// A value in 16 bits.
    fn half_bytes(&self, value: f32) -> [u8; 2] {
        match self.floats {
            Floats::F16 => f16::from_f32(value).to_le_bytes(),
            Floats::BF16 | Floats::F32 => bf16::from_f32(value).to_le_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::weights::in_memory::Memory;

    #[derive(Deserialize)]
    struct Golden {
        dtype: String,
        n_values: u64,
        block: u64,
        codes: Vec<u8>,
        table: Vec<f32>,
        /// Bytes of nested ones, else bits of f32.
        scales: Vec<u32>,
        nested: Option<GoldenNested>,
        /// Bits of the values.
        values: Vec<u32>,
    }

    #[derive(Deserialize)]
    struct GoldenNested {
        table: Vec<f32>,
        block: u64,
        scales: Vec<f32>,
        offset: f32,
    }

    /// Made by `tests/golden/nf4.py`.
    #[test]
    fn values_are_those_that_bitsandbytes_gives() {
        let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../tests/golden/nf4.json")).unwrap();
        assert!(!goldens.is_empty());
        for golden in goldens {
            let floats = match golden.dtype.as_str() {
                "float32" => Floats::F32,
                "float16" => Floats::F16,
                _ => Floats::BF16,
            };
            let scales: Vec<u8> = match &golden.nested {
                Some(_) => golden.scales.iter().map(|code| *code as u8).collect(),
                None => golden.scales.iter().flat_map(|bits| bits.to_le_bytes()).collect(),
            };
            let nested = golden.nested.map(|GoldenNested { table, block, scales, offset }| Nested { table, block, scales, offset });
            let source = |bytes: &[u8]| -> Arc<dyn ByteSource> { Arc::new(Memory([&[9; 3][..], bytes].concat())) };
            let matrix = CodedMatrix {
                source: source(&golden.codes),
                stored: 3,
                n_values: golden.n_values,
                table: golden.table.try_into().unwrap(),
                block: golden.block,
                scales: CodeScales { source: source(&scales), stored: 3, nested },
                floats,
            };
            let expected: Vec<u8> = golden.values.iter().flat_map(|bits| bits.to_le_bytes()[..floats.size_bytes()].to_vec()).collect();
            for (begin, end) in [(0, expected.len()), (1, 2), (7, 133), (129, 258), (expected.len() - 3, expected.len())] {
                let mut read = vec![0xAA; end - begin];
                matrix.read(begin as u64, &mut read).unwrap();
                assert!(read == expected[begin..end], "{} {begin}..{end}", golden.dtype);
            }
        }
    }
}
