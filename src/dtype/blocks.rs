//! Blocks of quantised values: one constant and one function for each dtype. Every block is unpacked into parts of 32 integers with
//! their scales, which all that reads weights on the host works on.

use half::f16;

use super::grids;

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

pub(crate) fn half_at(block: &[u8], offset: usize) -> f32 {
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
    Block { values: std::array::from_fn(value), scales: scales_of_q6_k(block, part), minimums: [0.0; 2] }
}

pub(crate) fn scales_of_q6_k(block: &[u8], part: usize) -> [f32; 2] {
    let scale = half_at(block, 208);
    [0, 1].map(|half| scale * f32::from(block[192 + 2 * part + half].cast_signed()))
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
pub(crate) fn scale_and_minimum(block: &[u8], part: usize) -> (f32, f32) {
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
pub(crate) fn half_of_power(exponent: u8) -> f32 {
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
        ((u16::from(byte.wrapping_mul(TERNARY[digit])) * 3) >> 8) as i8 - 1
    };
    Block::of_scale(half_at(block, 52), std::array::from_fn(value))
}

pub(crate) const TQ2_0: BlockLayout = BlockLayout { len: 256, bytes: 66, scaling: Scaling::One, apart: 32, unpack: tq2_0 };

fn tq2_0(block: &[u8], part: usize) -> Block {
    Block::of_scale(half_at(block, 64), two_bits(block, part).map(|q| q.cast_signed() - 1))
}

pub(crate) const IQ3_XXS: BlockLayout = BlockLayout { len: 256, bytes: 98, scaling: Scaling::One, apart: 16, unpack: iq3_xxs };

fn iq3_xxs(block: &[u8], part: usize) -> Block {
    let indices = &block[2 + 8 * part..][..8];
    let word = word_at(block, 66 + 4 * part);
    let scale = half_at(block, 0) * (0.5 + (word >> 28) as f32) * 0.5;
    Block::of_scale(scale, with_signs(even_signs(word), |quad| grids::IQ3_XXS[usize::from(indices[quad])]))
}

fn word_at(block: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|byte| block[offset + byte]))
}

/// Four magnitudes in a word, and a bit for each that is negative.
fn with_signs(signs: u32, quad: impl Fn(usize) -> u32) -> [i8; PART_LEN] {
    let quads: [u32; 8] = std::array::from_fn(quad);
    std::array::from_fn(|k| {
        let magnitude = quads[k / 4].to_le_bytes()[k % 4].cast_signed();
        if signs >> k & 1 == 1 { -magnitude } else { magnitude }
    })
}

/// A bit for each negative one of 32 values, of which seven of each eight are given in 28 bits: an even number of eight are negative.
fn even_signs(sevens: u32) -> u32 {
    (0..4).fold(0, |signs, octet| {
        let seven = sevens >> (7 * octet) & 127;
        signs | (seven | ((seven.count_ones() % 2) << 7)) << (8 * octet)
    })
}

pub(crate) const IQ3_S: BlockLayout = BlockLayout { len: 256, bytes: 110, scaling: Scaling::One, apart: 16, unpack: iq3_s };

fn iq3_s(block: &[u8], part: usize) -> Block {
    let (low, high) = (&block[2 + 8 * part..][..8], block[66 + part]);
    let index = |quad: usize| usize::from(low[quad]) | usize::from(high >> quad & 1) << 8;
    let scale = half_at(block, 0) * f32::from(1 + 2 * (block[106 + part / 2] >> (part % 2 * 4) & 15));
    Block::of_scale(scale, with_signs(word_at(block, 74 + 4 * part), |quad| grids::IQ3_S[index(quad)]))
}

pub(crate) const IQ2_XXS: BlockLayout = BlockLayout { len: 256, bytes: 66, scaling: Scaling::One, apart: 16, unpack: iq2_xxs };

fn iq2_xxs(block: &[u8], part: usize) -> Block {
    let places = &block[2 + 8 * part..][..4];
    let word = word_at(block, 6 + 8 * part);
    let scale = half_at(block, 0) * (0.5 + (word >> 28) as f32) * 0.25;
    Block::of_scale(scale, with_signs(even_signs(word), |quad| grids::IQ2_XXS[2 * usize::from(places[quad / 2]) + quad % 2]))
}

pub(crate) const IQ2_XS: BlockLayout = BlockLayout { len: 256, bytes: 74, scaling: Scaling::Two, apart: 16, unpack: iq2_xs };

fn iq2_xs(block: &[u8], part: usize) -> Block {
    let octet = |index: usize| u16_at(block, 2 + 8 * part + 2 * index);
    let sevens = (0..4).fold(0, |sevens, index| sevens | u32::from(octet(index) >> 9) << (7 * index));
    let values = with_signs(even_signs(sevens), |quad| grids::IQ2_XS[2 * usize::from(octet(quad / 2) & 511) + quad % 2]);
    Block { values, scales: quarter_scales(half_at(block, 0), block[66 + part]), minimums: [0.0; 2] }
}

fn u16_at(block: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([block[offset], block[offset + 1]])
}

/// The scales of both halves of a part of IQ2_XS or IQ2_S, whose nibbles these are.
fn quarter_scales(d: f32, nibbles: u8) -> [f32; 2] {
    [nibbles & 15, nibbles >> 4].map(|scale| d * (0.5 + f32::from(scale)) * 0.25)
}

pub(crate) const IQ2_S: BlockLayout = BlockLayout { len: 256, bytes: 82, scaling: Scaling::Two, apart: 16, unpack: iq2_s };

fn iq2_s(block: &[u8], part: usize) -> Block {
    let (low, high) = (&block[2 + 4 * part..][..4], block[66 + part]);
    let place = |octet: usize| usize::from(low[octet]) | usize::from(high >> (2 * octet) & 3) << 8;
    let values = with_signs(word_at(block, 34 + 4 * part), |quad| grids::IQ2_S[2 * place(quad / 2) + quad % 2]);
    Block { values, scales: quarter_scales(half_at(block, 0), block[74 + part]), minimums: [0.0; 2] }
}

pub(crate) const IQ1_S: BlockLayout = BlockLayout { len: 256, bytes: 50, scaling: Scaling::One, apart: 16, unpack: iq1_s };

fn iq1_s(block: &[u8], part: usize) -> Block {
    let (low, high) = (&block[2 + 4 * part..][..4], u16_at(block, 34 + 2 * part));
    let octet = |octet: usize| (low[octet], high >> (3 * octet) & 7, high >> 15 == 1);
    Block::of_scale(half_at(block, 0) * f32::from(2 * (high >> 12 & 7) + 1) * 0.125, eighths(octet))
}

/// Eight times -1, 0 and 1, and one more, or one less. Of each eight values the low and the high bits of what chooses them, and whether one
/// less.
fn eighths(octet: impl Fn(usize) -> (u8, u16, bool)) -> [i8; PART_LEN] {
    std::array::from_fn(|k| {
        let (low, high, is_less) = octet(k / 8);
        let place = usize::from(high) << 8 | usize::from(low);
        let level = grids::IQ1[2 * place + k / 4 % 2].to_le_bytes()[k % 4].cast_signed();
        level - if is_less { 9 } else { 7 }
    })
}

pub(crate) const IQ1_M: BlockLayout = BlockLayout { len: 256, bytes: 56, scaling: Scaling::Two, apart: 16, unpack: iq1_m };

fn iq1_m(block: &[u8], part: usize) -> Block {
    let low = &block[4 * part..][..4];
    let octet = |octet: usize| {
        let four_bits = block[32 + 2 * part + octet / 2] >> (octet % 2 * 4) & 15;
        (low[octet], u16::from(four_bits & 7), four_bits > 7)
    };
    let packed = |index: usize| u16_at(block, 48 + 2 * index);
    let d = f16::from_bits((0..4).fold(0, |bits, index| bits | packed(index) >> 12 << (4 * index))).to_f32();
    let scale = |half: usize| d * f32::from(2 * (packed(part / 2) >> (part % 2 * 6 + 3 * half) & 7) + 1) * 0.125;
    Block { values: eighths(octet), scales: [scale(0), scale(1)], minimums: [0.0; 2] }
}
