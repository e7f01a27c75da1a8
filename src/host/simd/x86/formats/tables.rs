//! Dtypes whose nibbles choose among sixteen integers.

use std::arch::x86_64::*;

use super::super::columns::{Blocks, ByteColumns, bits_of, half_pairs, nibbles, signed_pairs};
use super::super::sums::One;
use super::{Format, Unpacked};
use crate::dtype::{BlockLayout, blocks};

pub(in super::super) struct IQ4NL;
pub(in super::super) struct IQ4XS;
pub(in super::super) struct MXFP4;

impl Format for IQ4NL {
    const LAYOUT: &'static BlockLayout = &blocks::IQ4_NL;
    const GROUP: usize = 1;
    type Sum = One<0>;
    type Shared = __m256;
    type Loaded = [__m256i; 4];

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> __m256 {
        // SAFETY: the caller's promise: 2 bytes of 18.
        unsafe { blocks.half(0) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, _n: usize) -> [__m256i; 4] {
        // SAFETY: the caller's promise: 16 bytes behind the first two.
        unsafe { blocks.sixteen(2) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scale: &__m256, bytes: &[__m256i; 4], _n: usize) -> Unpacked {
        Unpacked::of_scale(*scale, signed_pairs(&chosen(&blocks::IQ4, *bytes)))
    }
}

/// Of eight rows: the scale of all, high bits of the scales of the parts (two for each), and their low bits (four for each).
pub(in super::super) struct PartScales {
    of_all: __m256,
    high: __m256i,
    low: __m256i,
}

impl Format for IQ4XS {
    const LAYOUT: &'static BlockLayout = &blocks::IQ4_XS;
    const GROUP: usize = 1;
    type Sum = One<0>;
    type Shared = PartScales;
    type Loaded = [__m256i; 4];

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> PartScales {
        // SAFETY: the caller's promise: 8 bytes of 136.
        let (first, low) = unsafe { (blocks.word(0), blocks.word(4)) };
        PartScales { of_all: half_pairs(first)[0], high: _mm256_srli_epi32(first, 16), low }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> [__m256i; 4] {
        // SAFETY: the caller's promise: 16 bytes for each of eight parts behind the first eight bytes.
        unsafe { blocks.sixteen(8 + 16 * n) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scales: &PartScales, bytes: &[__m256i; 4], n: usize) -> Unpacked {
        let (high, low) = (bits_of(scales.high, 2 * n, 3), bits_of(scales.low, 4 * n, 15));
        let scale = _mm256_sub_epi32(_mm256_or_si256(_mm256_slli_epi32(high, 4), low), _mm256_set1_epi32(32));
        let scale = _mm256_mul_ps(scales.of_all, _mm256_cvtepi32_ps(scale));
        Unpacked::of_scale(scale, signed_pairs(&chosen(&blocks::IQ4, *bytes)))
    }
}

impl Format for MXFP4 {
    const LAYOUT: &'static BlockLayout = &blocks::MXFP4;
    const GROUP: usize = 1;
    type Sum = One<0>;
    type Shared = __m256;
    type Loaded = [__m256i; 4];

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> __m256 {
        // SAFETY: the caller's promise: 1 byte of 17.
        let exponents = unsafe { blocks.byte(0) };
        // Half of the power of two; the two least halves are subnormal.
        let normal = _mm256_slli_epi32(_mm256_sub_epi32(exponents, _mm256_set1_epi32(1)), 23);
        let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponents);
        let is_subnormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), exponents);
        _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, is_subnormal))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, _n: usize) -> [__m256i; 4] {
        // SAFETY: the caller's promise: 16 bytes behind the first.
        unsafe { blocks.sixteen(1) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scale: &__m256, bytes: &[__m256i; 4], _n: usize) -> Unpacked {
        Unpacked::of_scale(*scale, signed_pairs(&chosen(&blocks::E2M1, *bytes)))
    }
}

/// What the low nibbles of sixteen bytes choose, then their high ones.
#[target_feature(enable = "avx2")]
#[inline]
fn chosen(table: &[i8; 16], bytes: [__m256i; 4]) -> ByteColumns {
    // SAFETY: sixteen bytes.
    let table = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) });
    let mut columns = nibbles(bytes);
    for column in &mut columns {
        *column = _mm256_shuffle_epi8(table, *column);
    }
    columns
}
