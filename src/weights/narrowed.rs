//! Matrices that are stored in F32, in a file of their own that has them in 16 bits: each value is rounded as it is read, so that in memory and
//! on the way to devices it takes two bytes, not four.

use std::sync::Arc;

use super::derived::{DerivedMatrix, Wanted};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::platform::{self, ByteSource};
use crate::units::Bytes;

/// Bytes that are read at a time.
const BLOCK_BYTES: u64 = 256 << 10;
/// Bytes of a value as it is stored, and as it is read from here.
const STORED_WIDTH: u64 = 4;
const WIDTH: u64 = 2;

/// A matrix of F32 and where its file has it.
#[derive(Debug)]
pub(crate) struct NarrowedMatrix {
    pub(crate) source: Arc<dyn ByteSource>,
    /// Where its bytes begin there, and how many they are.
    pub(crate) stored: (u64, Bytes),
    /// [`DType::F16`] or [`DType::BF16`].
    pub(crate) dtype: DType,
}

impl DerivedMatrix for NarrowedMatrix {
    fn source(&self) -> &dyn ByteSource {
        self.source.as_ref()
    }

    fn size(&self) -> u64 {
        self.stored.1.0 / STORED_WIDTH * WIDTH
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (first, last) = (offset / WIDTH, (offset + buffer.len() as u64).div_ceil(WIDTH));
        let at_once = (BLOCK_BYTES / STORED_WIDTH).min(last - first);
        let mut stored = platform::zeroed((at_once * STORED_WIDTH) as usize, "a matrix in F32")?;
        let (mut values, mut narrow) = (vec![0.0; at_once as usize], vec![0; (at_once * WIDTH) as usize]);
        let (mut wanted, mut index) = (Wanted { offset, buffer }, first);
        while index < last {
            let n = at_once.min(last - index);
            let stored = &mut stored[..(n * STORED_WIDTH) as usize];
            let (values, narrow) = (&mut values[..n as usize], &mut narrow[..(n * WIDTH) as usize]);
            self.source.read_at(self.stored.0 + index * STORED_WIDTH, stored)?;
            DType::F32.decode(stored, values);
            self.check(values)?;
            self.dtype.encode(values, narrow);
            wanted.put(index * WIDTH, narrow);
            index += n;
        }
        Ok(())
    }
}

impl NarrowedMatrix {
    /// Refuses what would become infinite.
    fn check(&self, values: &[f32]) -> Result<()> {
        let is_beyond = |value: &&f32| value.is_finite() && value.abs() > self.dtype.largest();
        match values.iter().find(is_beyond) {
            None => Ok(()),
            Some(value) => {
                let reason = format!("has a weight of {value}, which is beyond the range of fp16; choose bf16");
                Err(Error::invalid_file(self.source.path(), reason))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::weights::derived::DerivedFile;
    use crate::weights::in_memory::Memory;

    #[test]
    fn any_part_is_what_rounding_gives() {
        let values: Vec<f32> = (0..150_000u32).map(|n| (n as f32 * 0.37).sin() * 3.0 + n as f32 * 1e-3).collect();
        let before = [7; 12];
        let bytes = [&before[..], bytemuck::cast_slice(&values)].concat();
        let bf16s: Vec<u8> = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
        let f16s: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        for (dtype, expected) in [(DType::BF16, bf16s), (DType::F16, f16s)] {
            let stored = (before.len() as u64, Bytes(values.len() as u64 * STORED_WIDTH));
            let mut file = DerivedFile::default();
            let (begin, size) = file.push(NarrowedMatrix { source: Arc::new(Memory(bytes.clone())), stored, dtype });
            assert_eq!(size.0 as usize, expected.len());
            for (offset, len) in [(0, expected.len()), (1, 1), (1, 2), (3, 200_001), (131_071, 5), (expected.len() - 3, 3)] {
                let mut part = vec![0xAA; len];
                file.read_at(begin + offset as u64, &mut part).unwrap();
                assert!(part == expected[offset..offset + len], "{dtype} {offset} {len}");
            }
        }
    }

    #[test]
    fn what_16_bits_cannot_hold_is_refused() {
        let values = [1.0f32, -65_519.0, 65_520.0];
        let read = |dtype: DType, len: u64| {
            let source = Arc::new(Memory(bytemuck::cast_slice(&values).to_vec()));
            let matrix = NarrowedMatrix { source, stored: (0, Bytes(12)), dtype };
            matrix.read(0, &mut vec![0; len as usize])
        };
        let refused = read(DType::F16, 6).unwrap_err().to_string();
        assert!(refused.contains("65520") && refused.contains("choose bf16"), "{refused}");
        read(DType::F16, 4).unwrap();
        read(DType::BF16, 6).unwrap();
    }
}
