//! How numbers are stored in a checkpoint, and their decoding on the host. The shaders decode the same bytes the same way.

use std::fmt;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// The storage form of a tensor. Quantised forms hold a row as blocks of 32 values, Q6_K of 256
/// (layouts of ggml's `block_q8_0`, `block_q4_0`, `block_q4_1`, `block_q6_K`; all little-endian).
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
    /// 210 bytes for 256 values: 128 bytes of nibbles, 64 of two bits each, 16 × i8 `s`, f16 scale `d`; value `d·s·(q−32)`.
    /// Value `128·n + 32·j + l` has its low four bits in nibble `j / 2` of byte `64·n + 32·(j % 2) + l`, its high two at bit `2·j` of
    /// byte `128 + 32·n + l`, and `s` at byte `192 + 8·n + 2·j + l / 16`.
    #[serde(rename = "Q6_K")]
    Q6K,
}

impl DType {
    /// All of them, for tables and tests.
    pub const ALL: [DType; 7] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q6K];

    /// Values in one block (1 for plain numbers).
    pub const fn block_len(self) -> u64 {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => 1,
            DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => 32,
            DType::Q6K => 256,
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
            DType::Q6K => 210,
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
            DType::Q8_0 => decode_blocks::<34, 32>(bytes, output, |block, values| {
                let d = half_at(block, 0);
                for (value, &q) in values.iter_mut().zip(&block[2..]) {
                    *value = d * f32::from(q.cast_signed());
                }
            }),
            DType::Q4_0 => decode_blocks::<18, 32>(bytes, output, |block, values| {
                let d = half_at(block, 0);
                for (j, &q) in block[2..].iter().enumerate() {
                    values[j] = d * (f32::from(q & 15) - 8.0);
                    values[j + 16] = d * (f32::from(q >> 4) - 8.0);
                }
            }),
            DType::Q4_1 => decode_blocks::<20, 32>(bytes, output, |block, values| {
                let (d, m) = (half_at(block, 0), half_at(block, 2));
                for (j, &q) in block[4..].iter().enumerate() {
                    values[j] = d * f32::from(q & 15) + m;
                    values[j + 16] = d * f32::from(q >> 4) + m;
                }
            }),
            DType::Q6K => decode_blocks::<210, 256>(bytes, output, |block, values| {
                let d = half_at(block, 208);
                for (k, value) in values.iter_mut().enumerate() {
                    *value = d * f32::from(q6_k_scale(block, k / 16)) * f32::from(q6_k_value(block, k));
                }
            }),
        }
    }
}

/// The integer of value `k` of a block in Q6_K, from −32 to 31.
pub fn q6_k_value(block: &[u8], k: usize) -> i8 {
    let (n, j, l) = (k / 128, k / 32 % 4, k % 32);
    let low = block[64 * n + 32 * (j % 2) + l] >> (j / 2 * 4) & 15;
    let high = block[128 + 32 * n + l] >> (2 * j) & 3;
    (low | high << 4).cast_signed() - 32
}

/// What its values `16·i` to `16·i + 15` are multiplied with, besides the block's scale.
pub fn q6_k_scale(block: &[u8], i: usize) -> i8 {
    block[192 + i].cast_signed()
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

fn decode_blocks<const SIZE: usize, const LEN: usize>(bytes: &[u8], output: &mut [f32], decode: impl Fn(&[u8; SIZE], &mut [f32; LEN])) {
    let (blocks, _) = bytes.as_chunks::<SIZE>();
    let (groups, _) = output.as_chunks_mut::<LEN>();
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
            DType::Q6K => "Q6_K",
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

    const GOLDEN_Q6_K: [(usize, f32); 21] = [
        (0, 64.0),
        (1, 108.0),
        (15, -88.0),
        (16, -170.4375),
        (31, 69.4375),
        (32, -7.5625),
        (47, 7.5625),
        (63, 48.75),
        (64, -89.0),
        (95, 0.6875),
        (96, -166.625),
        (127, 103.75),
        (128, 2.0625),
        (129, 2.0625),
        (160, -83.0),
        (191, -0.6875),
        (192, -131.25),
        (223, -50.0625),
        (224, -0.875),
        (240, -111.0),
        (255, 124.875),
    ];

    /// A block with different numbers everywhere, decoded by the PyPI package `gguf` 0.19.0:
    /// `gguf.quants.dequantize(block, GGMLQuantizationType.Q6_K)`.
    #[test]
    fn q6_k_is_decoded_as_the_package_gguf_does() {
        let mut block: Vec<u8> = (0..210u32).map(|i| (i * 37 + i * i / 3) as u8).collect();
        block[208..].copy_from_slice(&f16::from_f32(0.0625).to_le_bytes());
        let mut values = [0.0; 256];
        DType::Q6K.decode(&block, &mut values);
        let found: Vec<f32> = GOLDEN_Q6_K.iter().map(|&(k, _)| values[k]).collect();
        let expected: Vec<f32> = GOLDEN_Q6_K.iter().map(|&(_, value)| value).collect();
        assert_eq!(found, expected);
        assert_eq!(values.iter().map(|value| f64::from(*value)).sum::<f64>(), -722.4375);
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
