//! How numbers are stored in a checkpoint, and their decoding on the host. The shaders decode the same bytes the same way.

use std::fmt;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// The storage form of a tensor. Quantised forms hold a row as blocks of 32 values
/// (layouts of ggml's `block_q8_0`, `block_q4_0`, `block_q4_1`; all little-endian).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    BF16,
    /// 34 bytes: f16 scale `d`, 32 × i8 `q`; value `d·q`.
    #[serde(rename = "Q8_0")]
    Q8_0,
    /// 18 bytes: f16 scale `d`, 16 bytes of nibbles (value j low, value j+16 high); value `d·(q−8)`.
    #[serde(rename = "Q4_0")]
    Q4_0,
    /// 20 bytes: f16 scale `d`, f16 minimum `m`, 16 bytes of nibbles as in Q4_0; value `d·q+m`.
    #[serde(rename = "Q4_1")]
    Q4_1,
}

impl DType {
    /// All of them, for tables and tests.
    pub const ALL: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1];

    /// Values in one block (1 for plain numbers).
    pub const fn block_len(self) -> u64 {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => 1,
            DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => 32,
        }
    }

    /// Whether it is stored in blocks that share a scale.
    pub const fn has_blocks(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> u64 {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Q8_0 => 34,
            DType::Q4_0 => 18,
            DType::Q4_1 => 20,
        }
    }

    /// Bytes of `n_values` consecutive values, or `None` where they are no whole number of blocks or overflow.
    pub fn size_bytes(self, n_values: u64) -> Option<u64> {
        if !n_values.is_multiple_of(self.block_len()) {
            return None;
        }
        (n_values / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Bits per value, blocks included.
    pub fn bits(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }

    /// Decodes whole blocks into `output`; `bytes` must hold exactly its values.
    pub fn decode(self, bytes: &[u8], output: &mut [f32]) {
        match self {
            DType::F32 => decode_each::<4>(bytes, output, f32::from_le_bytes),
            DType::F16 => decode_each::<2>(bytes, output, |b| f16::from_le_bytes(b).to_f32()),
            DType::BF16 => decode_each::<2>(bytes, output, |b| bf16::from_le_bytes(b).to_f32()),
            DType::Q8_0 => decode_blocks::<34>(bytes, output, |block, values| {
                let d = half_at(block, 0);
                for (value, &q) in values.iter_mut().zip(&block[2..]) {
                    *value = d * f32::from(q.cast_signed());
                }
            }),
            DType::Q4_0 => decode_blocks::<18>(bytes, output, |block, values| {
                let d = half_at(block, 0);
                for (j, &q) in block[2..].iter().enumerate() {
                    values[j] = d * (f32::from(q & 15) - 8.0);
                    values[j + 16] = d * (f32::from(q >> 4) - 8.0);
                }
            }),
            DType::Q4_1 => decode_blocks::<20>(bytes, output, |block, values| {
                let (d, m) = (half_at(block, 0), half_at(block, 2));
                for (j, &q) in block[4..].iter().enumerate() {
                    values[j] = d * f32::from(q & 15) + m;
                    values[j + 16] = d * f32::from(q >> 4) + m;
                }
            }),
        }
    }
}

fn half_at(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

fn decode_each<const SIZE: usize>(bytes: &[u8], output: &mut [f32], decode: impl Fn([u8; SIZE]) -> f32) {
    let (items, _) = bytes.as_chunks::<SIZE>();
    for (value, item) in output.iter_mut().zip(items) {
        *value = decode(*item);
    }
}

fn decode_blocks<const SIZE: usize>(bytes: &[u8], output: &mut [f32], decode: impl Fn(&[u8; SIZE], &mut [f32; 32])) {
    let (blocks, _) = bytes.as_chunks::<SIZE>();
    let (groups, _) = output.as_chunks_mut::<32>();
    for (values, block) in groups.iter_mut().zip(blocks) {
        decode(block, values);
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::Q8_0 => "Q8_0",
            DType::Q4_0 => "Q4_0",
            DType::Q4_1 => "Q4_1",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_whole_blocks() {
        assert_eq!(DType::Q4_1.size_bytes(576), Some(360));
        assert_eq!(DType::Q8_0.size_bytes(33), None);
        assert_eq!(DType::F32.size_bytes(u64::MAX), None);
    }

    #[test]
    fn nibbles_of_the_second_half_are_the_high_ones() {
        let mut block = vec![0u8; 20];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(-1.0).to_le_bytes());
        block[4] = 0xF3;
        let mut values = [0.0; 32];
        DType::Q4_1.decode(&block, &mut values);
        assert_eq!((values[0], values[16], values[1]), (0.5, 6.5, -1.0));
    }
}
