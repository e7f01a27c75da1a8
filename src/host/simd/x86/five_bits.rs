//! Blocks of Q4_K and Q5_K with AVX2: eight rows in the eight 32-bit lanes, 64 columns at a time, whose nibbles share bytes.

use std::arch::x86_64::*;

use super::super::{N_PAIRS, PANEL_ROWS};
use super::blocks::{Unpacked, columns, half_pairs, split_nibbles};
use crate::dtype::{BlockLayout, blocks};

/// Parts of 32 columns in a block.
pub(super) const PARTS: usize = blocks::Q4_K.n_parts();
/// Bytes of a vector of sixteen.
const LOAD: usize = 16;

/// One of the two dtypes.
pub(super) type Bits = u8;
pub(super) const FOUR: Bits = 4;
pub(super) const FIVE: Bits = 5;

const fn layout(bits: Bits) -> &'static BlockLayout {
    if bits == FOUR { &blocks::Q4_K } else { &blocks::Q5_K }
}

/// Bytes of a block.
pub(super) const fn bytes_of(bits: Bits) -> usize {
    layout(bits).bytes
}

/// Where in a block the nibbles begin: behind the scales and, of five bits, behind the fifth ones.
const fn nibbles_of(bits: Bits) -> usize {
    if bits == FOUR { LOAD } else { LOAD + FIFTH_BITS }
}

/// Bytes of the fifth bits: bit `p` of byte `k` belongs to column `k` of part `p`.
const FIFTH_BITS: usize = 32;

/// Of eight rows the scales and minimums of each 32 columns.
pub(super) struct Scales {
    scales: [__m256; PARTS],
    minimums: [__m256; PARTS],
}

/// The scales of block `index`: two halves, then six bits for each scale and minimum in twelve bytes.
///
/// # Safety
/// Each row holds more than `index` blocks.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) unsafe fn scales<const BITS: Bits>(rows: &[*const u8; PANEL_ROWS], index: usize) -> Scales {
    // SAFETY: the caller's promise: 16 bytes at the begin of a block.
    let [halves, first, second, third] = unsafe { columns(std::array::from_fn(|row| rows[row].add(index * const { bytes_of(BITS) }))) };
    let (scale, minimum) = half_pairs(halves);
    let (low, high) = (_mm256_set1_epi32(15), _mm256_set1_epi32(48));
    let six = _mm256_set1_epi32(63);
    let sign = _mm256_set1_ps(-0.0);
    let mut all = Scales { scales: [_mm256_setzero_ps(); PARTS], minimums: [_mm256_setzero_ps(); PARTS] };
    for part in 0..PARTS / 2 {
        let shift = |words: __m256i, bits: usize| _mm256_srl_epi32(words, _mm_cvtsi32_si128((8 * part + bits) as i32));
        // Four bits of the third word, and the two upper ones of a byte of the others.
        let with_upper = |words: __m256i, bits: usize| {
            let upper = _mm256_and_si256(_mm256_srli_epi32(shift(words, 0), 2), high);
            _mm256_or_si256(_mm256_and_si256(shift(third, bits), low), upper)
        };
        let factors = [_mm256_and_si256(shift(first, 0), six), with_upper(first, 0)];
        let subtracted = [_mm256_and_si256(shift(second, 0), six), with_upper(second, 4)];
        for (place, (factor, subtracted)) in [part, part + PARTS / 2].into_iter().zip(factors.into_iter().zip(subtracted)) {
            all.scales[place] = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(factor));
            all.minimums[place] = _mm256_xor_ps(sign, _mm256_mul_ps(minimum, _mm256_cvtepi32_ps(subtracted)));
        }
    }
    all
}

/// Parts `2·n` and `2·n + 1` of block `index`.
///
/// # Safety
/// Each row holds more than `index` blocks, and `n` is less than half of the parts.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn two_parts<const BITS: Bits>(rows: &[*const u8; PANEL_ROWS], index: usize, n: usize, scales: &Scales) -> [Unpacked; 2] {
    // SAFETY: the caller's promise: no load leaves the block.
    let load = |offset: usize| unsafe { columns(std::array::from_fn(|row| rows[row].add(index * const { bytes_of(BITS) } + offset))) };
    let begin = const { nibbles_of(BITS) } + 2 * LOAD * n;
    let [first, last] = [split_nibbles(load(begin)), split_nibbles(load(begin + LOAD))];
    let mut pairs = [[_mm256_setzero_si256(); N_PAIRS]; 2];
    for (half, pairs) in pairs.iter_mut().enumerate() {
        let (front, back) = pairs.split_at_mut(N_PAIRS / 2);
        front.copy_from_slice(&first[half * N_PAIRS / 2..][..N_PAIRS / 2]);
        back.copy_from_slice(&last[half * N_PAIRS / 2..][..N_PAIRS / 2]);
    }
    if BITS == FIVE {
        let bits = [load(LOAD), load(2 * LOAD)];
        for (half, pairs) in pairs.iter_mut().enumerate() {
            add_fifth_bits(&bits, 2 * n + half, pairs);
        }
    }
    let zero = _mm256_setzero_ps();
    let [low, high] = pairs;
    let of_part = |part: usize, pairs| Unpacked { factors: [scales.scales[part], scales.minimums[part], zero, zero], pairs };
    [of_part(2 * n, low), of_part(2 * n + 1, high)]
}

/// Puts bit `part` of each byte above the four bits of its column.
#[target_feature(enable = "avx2")]
#[inline]
fn add_fifth_bits(bits: &[[__m256i; 4]; 2], part: usize, pairs: &mut [__m256i; N_PAIRS]) {
    let mask = _mm256_set1_epi16(16);
    for (pair, bytes) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(bits.iter().flatten()) {
        // Bit `part` of the even byte, and of the odd one, at place 4.
        let even = _mm256_srl_epi16(_mm256_slli_epi16(*bytes, 4), _mm_cvtsi32_si128(part as i32));
        let odd = _mm256_srl_epi16(_mm256_srli_epi16(*bytes, 4), _mm_cvtsi32_si128(part as i32));
        pair[0] = _mm256_or_si256(pair[0], _mm256_and_si256(even, mask));
        pair[1] = _mm256_or_si256(pair[1], _mm256_and_si256(odd, mask));
    }
}
