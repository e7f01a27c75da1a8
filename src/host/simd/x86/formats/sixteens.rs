//! Q2_K, Q3_K and Q6_K: each sixteen columns have a scale, 128 columns share bytes of two bits for each.

use std::arch::x86_64::*;

use super::super::columns::{Blocks, ByteColumns, bits_from, half_pairs, nibbles_of, or_where, signed_pairs, unsigned_pairs};
use super::super::sums::{Two, TwoMinimums};
use super::{Format, Unpacked};
use crate::dtype::{BlockLayout, blocks};

/// Parts of 32 columns that share bytes of two bits.
const GROUP: usize = 4;

pub(in super::super) struct Q2K;
pub(in super::super) struct Q3K;
pub(in super::super) struct Q6K;

/// Of eight rows the scales of each sixteen columns: a byte for each, and what multiplies all.
pub(in super::super) struct Scales {
    of_all: __m256,
    bytes: [__m256i; 4],
}

impl Scales {
    /// The bytes, with their signs, of both halves of part `J` of group `n`.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn of<const J: usize>(&self, n: usize) -> [__m256; 2] {
        // Vector `i` has four of them: those of two parts.
        let bytes = self.bytes[n * GROUP / 2 + J / 2];
        let [first, last] = if J.is_multiple_of(2) {
            [_mm256_slli_epi32(bytes, 24), _mm256_slli_epi32(bytes, 16)]
        } else {
            [_mm256_slli_epi32(bytes, 8), bytes]
        };
        let scaled = |byte| _mm256_mul_ps(self.of_all, _mm256_cvtepi32_ps(_mm256_srai_epi32(byte, 24)));
        [scaled(first), scaled(last)]
    }
}

/// Part `J` of the four whose bits share these bytes.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn two_bits<const J: usize>(bytes: &ByteColumns) -> ByteColumns {
    match J {
        0 => bits_from::<0>(bytes, 3),
        1 => bits_from::<2>(bytes, 3),
        2 => bits_from::<4>(bytes, 3),
        _ => bits_from::<6>(bytes, 3),
    }
}

impl Format for Q2K {
    const LAYOUT: &'static BlockLayout = &blocks::Q2_K;
    const GROUP: usize = GROUP;
    type Sum = TwoMinimums;
    type Shared = [Scales; 2];
    type Loaded = ByteColumns;

    /// Scales and minimums, the latter with their signs turned.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> [Scales; 2] {
        // SAFETY: the caller's promise: 84 bytes.
        let (both, factors) = unsafe { (blocks.sixteen(0), blocks.word(80)) };
        let [scale, minimum] = half_pairs(factors);
        let mut nibbles = [both; 2];
        let [scales, minimums] = &mut nibbles;
        for (scales, minimums) in scales.iter_mut().zip(minimums) {
            *scales = _mm256_and_si256(*scales, _mm256_set1_epi8(15));
            *minimums = _mm256_and_si256(_mm256_srli_epi16(*minimums, 4), _mm256_set1_epi8(15));
        }
        let [scales, minimums] = nibbles;
        let negated = _mm256_xor_ps(_mm256_set1_ps(-0.0), minimum);
        [Scales { of_all: scale, bytes: scales }, Scales { of_all: negated, bytes: minimums }]
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> ByteColumns {
        // SAFETY: the caller's promise: twice 32 bytes behind sixteen.
        unsafe { blocks.thirty_two(16 + 32 * n) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>([scales, minimums]: &[Scales; 2], bytes: &ByteColumns, n: usize) -> Unpacked {
        let ([a, b], [c, d]) = (scales.of::<J>(n), minimums.of::<J>(n));
        Unpacked { factors: [a, b, c, d], pairs: unsigned_pairs(&two_bits::<J>(bytes)) }
    }
}

/// Scales of a block of Q3_K with its third bits: bit `p` of byte `k` belongs to column `k` of part `p`.
pub(in super::super) struct ScalesAndBits(Scales, ByteColumns);

impl Format for Q3K {
    const LAYOUT: &'static BlockLayout = &blocks::Q3_K;
    const GROUP: usize = GROUP;
    type Sum = Two;
    type Shared = ScalesAndBits;
    type Loaded = ByteColumns;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> ScalesAndBits {
        // SAFETY: the caller's promise: 110 bytes.
        let (bits, low, other_low, high, of_all) =
            unsafe { (blocks.thirty_two(0), blocks.word(96), blocks.word(100), blocks.word(104), blocks.half(108)) };
        // Four bits of each scale in the first eight bytes, two in the last four.
        let bytes = [(low, 0), (other_low, 2), (_mm256_srli_epi16(low, 4), 4), (_mm256_srli_epi16(other_low, 4), 6)];
        let mut scales = Scales { of_all, bytes: [_mm256_setzero_si256(); 4] };
        for (scales, (low, shift)) in scales.bytes.iter_mut().zip(bytes) {
            let high = _mm256_and_si256(_mm256_srl_epi32(high, _mm_cvtsi32_si128(shift)), _mm256_set1_epi8(3));
            let six_bits = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(15)), _mm256_slli_epi16(high, 4));
            *scales = _mm256_sub_epi8(six_bits, _mm256_set1_epi8(32));
        }
        ScalesAndBits(scales, bits)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> ByteColumns {
        // SAFETY: the caller's promise: twice 32 bytes behind the third bits.
        unsafe { blocks.thirty_two(32 + 32 * n) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(ScalesAndBits(scales, bits): &ScalesAndBits, bytes: &ByteColumns, n: usize) -> Unpacked {
        let mut integers = two_bits::<J>(bytes);
        // Without its third bit, an integer is 4 less.
        or_where::<false>(&mut integers, bits, (1_u8 << (GROUP * n + J)).cast_signed(), -4);
        Unpacked::of_two(scales.of::<J>(n), signed_pairs(&integers))
    }
}

/// Of 128 columns the nibbles, of which those of parts 0 and 2 share bytes and those of 1 and 3, and two high bits each.
pub(in super::super) struct SixBits {
    nibbles: [ByteColumns; 2],
    high: ByteColumns,
}

impl Format for Q6K {
    const LAYOUT: &'static BlockLayout = &blocks::Q6_K;
    const GROUP: usize = GROUP;
    type Sum = Two;
    type Shared = Scales;
    type Loaded = SixBits;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> Scales {
        // SAFETY: the caller's promise: 210 bytes.
        unsafe { Scales { of_all: blocks.half(208), bytes: blocks.sixteen(192) } }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> SixBits {
        // SAFETY: the caller's promise: twice 64 bytes of nibbles, then twice 32 of high bits.
        unsafe {
            let nibbles = [blocks.thirty_two(64 * n), blocks.thirty_two(64 * n + 32)];
            SixBits { nibbles, high: blocks.thirty_two(128 + 32 * n) }
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scales: &Scales, loaded: &SixBits, n: usize) -> Unpacked {
        let mut integers = nibbles_of(&loaded.nibbles[J % 2], J >= 2);
        for (integers, high) in integers.iter_mut().zip(loaded.high) {
            // What crosses into a neighbouring byte is masked away.
            let high = match J {
                0 => _mm256_slli_epi16(high, 4),
                1 => _mm256_slli_epi16(high, 2),
                2 => high,
                _ => _mm256_srli_epi16(high, 2),
            };
            let high = _mm256_and_si256(high, _mm256_set1_epi8(0x30));
            *integers = _mm256_sub_epi8(_mm256_or_si256(*integers, high), _mm256_set1_epi8(32));
        }
        Unpacked::of_two(scales.of::<J>(n), signed_pairs(&integers))
    }
}
