//! Blocks of quantised values: one constant and one function for each dtype. Every block is unpacked into parts of 32 integers with
//! their scales, which all that reads weights on the host works on.

use half::f16;

/// Values in a part of a block, as [`BlockLayout::unpack`] returns it.
pub const PART_LEN: usize = 32;

/// How the integers of a part become values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// All are multiplied by one scale.
    One,
    /// All are multiplied by one scale, and one minimum is added.
    Minimum,
    /// Each sixteen have a scale.
    Two,
    /// Each sixteen have a scale and a minimum.
    TwoMinimums,
}

/// Where a dtype has what.
#[derive(Debug)]
pub struct BlockLayout {
    /// Values in a block: a multiple of [`PART_LEN`].
    pub len: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// How its integers become values.
    pub scaling: Scaling,
    /// Columns between two values that share bytes: 16 or 32. Kernels decode both at once.
    pub apart: usize,
    /// Part `part` of a block of so many bytes.
    pub unpack: fn(block: &[u8], part: usize) -> Block,
}

/// A part of a block: value `k` is `scales[k / 16] · values[k] + minimums[k / 16]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block {
    /// The integers.
    pub values: [i8; PART_LEN],
    /// Both the same where the [`Scaling`] has one.
    pub scales: [f32; 2],
    /// Zero where the [`Scaling`] has none.
    pub minimums: [f32; 2],
}

impl BlockLayout {
    /// Parts of a block.
    pub const fn n_parts(&self) -> usize {
        self.len / PART_LEN
    }

    /// Bytes of so many parts, whole blocks of them.
    pub const fn bytes_of_parts(&self, n_parts: usize) -> usize {
        n_parts / self.n_parts() * self.bytes
    }

    /// Part `index` of a row of blocks.
    ///
    /// # Panics
    /// Where the row ends before it.
    #[inline]
    pub fn part(&self, row: &[u8], index: usize) -> Block {
        (self.unpack)(&row[index / self.n_parts() * self.bytes..][..self.bytes], index % self.n_parts())
    }

    /// Decodes whole blocks into `output`.
    pub(super) fn decode(&self, bytes: &[u8], output: &mut [f32]) {
        for (index, output) in output.as_chunks_mut::<PART_LEN>().0.iter_mut().enumerate() {
            let Block { values, scales, minimums } = self.part(bytes, index);
            for (k, value) in output.iter_mut().enumerate() {
                let scaled = scales[k / 16] * f32::from(values[k]);
                *value = if matches!(self.scaling, Scaling::Minimum | Scaling::TwoMinimums) { scaled + minimums[k / 16] } else { scaled };
            }
        }
    }
}

impl Block {
    fn of_scale(scale: f32, values: [i8; PART_LEN]) -> Block {
        Block { values, scales: [scale; 2], minimums: [0.0; 2] }
    }

    fn of_minimum(scale: f32, minimum: f32, values: [i8; PART_LEN]) -> Block {
        Block { values, scales: [scale; 2], minimums: [minimum; 2] }
    }
}

fn half_at(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

/// The low nibbles of sixteen bytes, then their high ones.
fn nibbles(bytes: &[u8]) -> [u8; PART_LEN] {
    let mut values = [0; PART_LEN];
    let (low, high) = values.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(&bytes[..16]) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
    values
}

pub(crate) const Q8_0: BlockLayout = BlockLayout { len: 32, bytes: 34, scaling: Scaling::One, apart: 16, unpack: q8_0 };

fn q8_0(block: &[u8], _part: usize) -> Block {
    Block::of_scale(half_at(block, 0), std::array::from_fn(|k| block[2 + k].cast_signed()))
}

pub(crate) const Q4_0: BlockLayout = BlockLayout { len: 32, bytes: 18, scaling: Scaling::One, apart: 16, unpack: q4_0 };

fn q4_0(block: &[u8], _part: usize) -> Block {
    Block::of_scale(half_at(block, 0), nibbles(&block[2..]).map(|q| q.cast_signed() - 8))
}

pub(crate) const Q4_1: BlockLayout = BlockLayout { len: 32, bytes: 20, scaling: Scaling::Minimum, apart: 16, unpack: q4_1 };

fn q4_1(block: &[u8], _part: usize) -> Block {
    Block::of_minimum(half_at(block, 0), half_at(block, 2), nibbles(&block[4..]).map(u8::cast_signed))
}

pub(crate) const Q6_K: BlockLayout = BlockLayout { len: 256, bytes: 210, scaling: Scaling::Two, apart: 32, unpack: q6_k };

fn q6_k(block: &[u8], part: usize) -> Block {
    let (n, j) = (part / 4, part % 4);
    let (low, high) = (&block[64 * n + 32 * (j % 2)..][..PART_LEN], &block[128 + 32 * n..][..PART_LEN]);
    let value = |l: usize| (low[l] >> (j / 2 * 4) & 15 | (high[l] >> (2 * j) & 3) << 4).cast_signed() - 32;
    let scale = |half: usize| half_at(block, 208) * f32::from(block[192 + 2 * part + half].cast_signed());
    Block { values: std::array::from_fn(value), scales: [scale(0), scale(1)], minimums: [0.0; 2] }
}

pub(crate) const Q5_0: BlockLayout = BlockLayout { len: 32, bytes: 22, scaling: Scaling::One, apart: 16, unpack: q5_0 };

fn q5_0(block: &[u8], _part: usize) -> Block {
    let values = with_fifth_bits(nibbles(&block[6..]), &block[2..6]);
    Block::of_scale(half_at(block, 0), values.map(|q| q.cast_signed() - 16))
}

/// Four bits of each value, and a fifth from 32 bits that follow each other.
fn with_fifth_bits(low: [u8; PART_LEN], high: &[u8]) -> [u8; PART_LEN] {
    std::array::from_fn(|k| low[k] | (high[k / 8] >> (k % 8) & 1) << 4)
}

pub(crate) const Q5_1: BlockLayout = BlockLayout { len: 32, bytes: 24, scaling: Scaling::Minimum, apart: 16, unpack: q5_1 };

fn q5_1(block: &[u8], _part: usize) -> Block {
    let values = with_fifth_bits(nibbles(&block[8..]), &block[4..8]);
    Block::of_minimum(half_at(block, 0), half_at(block, 2), values.map(u8::cast_signed))
}

pub(crate) const Q4_K: BlockLayout = BlockLayout { len: 256, bytes: 144, scaling: Scaling::Minimum, apart: 32, unpack: q4_k };

fn q4_k(block: &[u8], part: usize) -> Block {
    let (scale, minimum) = scale_and_minimum(block, part);
    Block::of_minimum(scale, minimum, nibbles_of_part(&block[16..], part).map(u8::cast_signed))
}

/// The scale and the minimum of a part of Q4_K or Q5_K: six bits each in the twelve bytes behind the two halves that they multiply.
fn scale_and_minimum(block: &[u8], part: usize) -> (f32, f32) {
    let packed = &block[4..16];
    let (scale, minimum) = if part < 4 {
        (packed[part] & 63, packed[part + 4] & 63)
    } else {
        let low = packed[part + 4];
        (low & 15 | packed[part - 4] >> 6 << 4, low >> 4 | packed[part] >> 6 << 4)
    };
    (half_at(block, 0) * f32::from(scale), -(half_at(block, 2) * f32::from(minimum)))
}

/// Each 32 bytes of nibbles are two parts: low nibbles, then high ones.
fn nibbles_of_part(bytes: &[u8], part: usize) -> [u8; PART_LEN] {
    let (bytes, shift) = (&bytes[part / 2 * PART_LEN..][..PART_LEN], part % 2 * 4);
    std::array::from_fn(|k| bytes[k] >> shift & 15)
}

pub(crate) const Q5_K: BlockLayout = BlockLayout { len: 256, bytes: 176, scaling: Scaling::Minimum, apart: 32, unpack: q5_k };

fn q5_k(block: &[u8], part: usize) -> Block {
    let (scale, minimum) = scale_and_minimum(block, part);
    let (low, high) = (nibbles_of_part(&block[48..], part), &block[16..48]);
    Block::of_minimum(scale, minimum, std::array::from_fn(|k| (low[k] | (high[k] >> part & 1) << 4).cast_signed()))
}

pub(crate) const Q3_K: BlockLayout = BlockLayout { len: 256, bytes: 110, scaling: Scaling::Two, apart: 32, unpack: q3_k };

fn q3_k(block: &[u8], part: usize) -> Block {
    let (low, high) = (two_bits(&block[32..], part), &block[..32]);
    let scale = |half: usize| {
        let (index, packed) = (2 * part + half, &block[96..108]);
        let six_bits = packed[index % 8] >> (index / 8 * 4) & 15 | (packed[8 + index % 4] >> (index / 4 * 2) & 3) << 4;
        half_at(block, 108) * f32::from(six_bits.cast_signed() - 32)
    };
    let value = |k: usize| (low[k] | (high[k] >> part & 1) << 2).cast_signed() - 4;
    Block { values: std::array::from_fn(value), scales: [scale(0), scale(1)], minimums: [0.0; 2] }
}

/// Each 32 bytes of two bits are four parts, from the lowest bits on.
fn two_bits(bytes: &[u8], part: usize) -> [u8; PART_LEN] {
    let (bytes, shift) = (&bytes[part / 4 * PART_LEN..][..PART_LEN], part % 4 * 2);
    std::array::from_fn(|k| bytes[k] >> shift & 3)
}

pub(crate) const IQ4_NL: BlockLayout = BlockLayout { len: 32, bytes: 18, scaling: Scaling::One, apart: 16, unpack: iq4_nl };

/// What the nibbles of IQ4_NL and IQ4_XS stand for (`kvalues_iq4nl` of ggml).
pub(crate) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

fn iq4_nl(block: &[u8], _part: usize) -> Block {
    Block::of_scale(half_at(block, 0), nibbles(&block[2..]).map(|q| IQ4[usize::from(q)]))
}

pub(crate) const IQ4_XS: BlockLayout = BlockLayout { len: 256, bytes: 136, scaling: Scaling::One, apart: 16, unpack: iq4_xs };

fn iq4_xs(block: &[u8], part: usize) -> Block {
    let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * part) & 3;
    let scale = block[4 + part / 2] >> (part % 2 * 4) & 15 | (high as u8) << 4;
    let values = nibbles(&block[8 + 16 * part..]).map(|q| IQ4[usize::from(q)]);
    Block::of_scale(half_at(block, 0) * f32::from(scale.cast_signed() - 32), values)
}

pub(crate) const MXFP4: BlockLayout = BlockLayout { len: 32, bytes: 17, scaling: Scaling::One, apart: 16, unpack: mxfp4 };

/// Twice what the nibbles of MXFP4 stand for (`kvalues_mxfp4` of ggml).
pub(crate) const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

fn mxfp4(block: &[u8], _part: usize) -> Block {
    Block::of_scale(half_of_power(block[0]), nibbles(&block[1..]).map(|q| E2M1[usize::from(q)]))
}

/// Half of the power of two that this biased exponent stands for; the two least halves are subnormal.
fn half_of_power(exponent: u8) -> f32 {
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { u32::from(exponent - 1) << 23 })
}

pub(crate) const Q2_K: BlockLayout = BlockLayout { len: 256, bytes: 84, scaling: Scaling::TwoMinimums, apart: 32, unpack: q2_k };

fn q2_k(block: &[u8], part: usize) -> Block {
    let both = &block[2 * part..][..2];
    let scale = |half: usize| half_at(block, 80) * f32::from(both[half] & 15);
    let minimum = |half: usize| -(half_at(block, 82) * f32::from(both[half] >> 4));
    let values = two_bits(&block[16..], part).map(u8::cast_signed);
    Block { values, scales: [scale(0), scale(1)], minimums: [minimum(0), minimum(1)] }
}

pub(crate) const TQ1_0: BlockLayout = BlockLayout { len: 256, bytes: 54, scaling: Scaling::One, apart: 16, unpack: tq1_0 };

/// Powers of three, by which a byte's fraction is multiplied to bring each of its digits behind the point.
pub(crate) const TERNARY: [u8; 5] = [1, 3, 9, 27, 81];

fn tq1_0(block: &[u8], part: usize) -> Block {
    let value = |k: usize| {
        let (byte, digit) = match (part, k / 16) {
            (0..=4, _) => (block[k], part),
            (7, 1) => (block[48 + k % 4], k / 4 - 4),
            (_, half) => (block[32 + k % 16], 2 * (part - 5) + half),
        };
        (u16::from(byte.wrapping_mul(TERNARY[digit])) * 3 >> 8) as i8 - 1
    };
    Block::of_scale(half_at(block, 52), std::array::from_fn(value))
}

pub(crate) const TQ2_0: BlockLayout = BlockLayout { len: 256, bytes: 66, scaling: Scaling::One, apart: 32, unpack: tq2_0 };

fn tq2_0(block: &[u8], part: usize) -> Block {
    Block::of_scale(half_at(block, 64), two_bits(block, part).map(|q| q.cast_signed() - 1))
}
