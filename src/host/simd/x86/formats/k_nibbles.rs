//! Q4_K and Q5_K: 64 columns share bytes of nibbles, each 32 have a scale and a minimum of six bits.

use std::arch::x86_64::*;

use super::super::columns::{Blocks, ByteColumns, LOAD, half_pairs, nibbles_of, or_where, unsigned_pairs};
use super::super::sums::Minimum;
use super::{Format, Unpacked};
use crate::dtype::{BlockLayout, blocks};

/// Parts of 32 columns in a block.
const PARTS: usize = blocks::Q4_K.n_parts();
/// Parts that share bytes of nibbles.
const GROUP: usize = 2;

pub(in super::super) struct Q4K;
pub(in super::super) struct Q5K;

/// Of eight rows the scales and minimums of each 32 columns.
pub(in super::super) struct Scales([[__m256; 2]; PARTS]);

impl Format for Q4K {
    const LAYOUT: &'static BlockLayout = &blocks::Q4_K;
    const GROUP: usize = GROUP;
    type Sum = Minimum;
    type Shared = Scales;
    type Loaded = ByteColumns;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> Scales {
        // SAFETY: the caller's promise: 16 bytes of 144.
        scales(unsafe { blocks.sixteen(0) })
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> ByteColumns {
        // SAFETY: the caller's promise: four times 32 bytes behind the scales.
        unsafe { blocks.thirty_two(LOAD + 32 * n) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scales: &Scales, bytes: &ByteColumns, n: usize) -> Unpacked {
        Unpacked::of_two(scales.0[GROUP * n + J], unsigned_pairs(&nibbles_of(bytes, J == 1)))
    }
}

/// Scales of a block of Q5_K with its fifth bits: bit `p` of byte `k` belongs to column `k` of part `p`.
pub(in super::super) struct ScalesAndBits(Scales, ByteColumns);

impl Format for Q5K {
    const LAYOUT: &'static BlockLayout = &blocks::Q5_K;
    const GROUP: usize = GROUP;
    type Sum = Minimum;
    type Shared = ScalesAndBits;
    type Loaded = ByteColumns;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> ScalesAndBits {
        // SAFETY: the caller's promise: 48 bytes of 176.
        let (begin, bits) = unsafe { (blocks.sixteen(0), blocks.thirty_two(LOAD)) };
        ScalesAndBits(scales(begin), bits)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> ByteColumns {
        // SAFETY: the caller's promise: four times 32 bytes behind the scales and the fifth bits.
        unsafe { blocks.thirty_two(3 * LOAD + 32 * n) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(ScalesAndBits(scales, bits): &ScalesAndBits, bytes: &ByteColumns, n: usize) -> Unpacked {
        let part = GROUP * n + J;
        let mut integers = nibbles_of(bytes, J == 1);
        or_where::<true>(&mut integers, bits, (1_u8 << part).cast_signed(), 16);
        Unpacked::of_two(scales.0[part], unsigned_pairs(&integers))
    }
}

/// The scales of a block that begins so: two halves, then six bits for each scale and minimum in twelve bytes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn scales([halves, first, second, third]: [__m256i; 4]) -> Scales {
    let [scale, minimum] = half_pairs(halves);
    let (low, high) = (_mm256_set1_epi32(15), _mm256_set1_epi32(48));
    let six = _mm256_set1_epi32(63);
    let sign = _mm256_set1_ps(-0.0);
    let mut all = Scales([[_mm256_setzero_ps(); 2]; PARTS]);
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
            let negated = _mm256_xor_ps(sign, _mm256_mul_ps(minimum, _mm256_cvtepi32_ps(subtracted)));
            all.0[place] = [_mm256_mul_ps(scale, _mm256_cvtepi32_ps(factor)), negated];
        }
    }
    all
}
