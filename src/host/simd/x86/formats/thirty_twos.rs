//! Dtypes of 32 values whose integers are stored as they are: 4, 5 or 8 bits, with one scale and perhaps a minimum.

use std::arch::x86_64::*;

use super::super::columns::{Blocks, ByteColumns, half_pairs, nibbles, signed_pairs, spread_bits, unsigned_pairs};
use super::super::sums::{Minimum, One};
use super::{Format, Unpacked};
use crate::dtype::{BlockLayout, blocks};

pub(in super::super) struct Q8_0;
pub(in super::super) struct Q4_0;
pub(in super::super) struct Q4_1;
pub(in super::super) struct Q5_0;
pub(in super::super) struct Q5_1;

impl Format for Q8_0 {
    const LAYOUT: &'static BlockLayout = &blocks::Q8_0;
    const GROUP: usize = 1;
    type Sum = One<0>;
    type Shared = __m256;
    type Loaded = ByteColumns;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> __m256 {
        // SAFETY: the caller's promise: 2 bytes of 34.
        unsafe { blocks.half(0) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, _n: usize) -> ByteColumns {
        // SAFETY: the caller's promise: 32 bytes behind the first two.
        unsafe { blocks.thirty_two(2) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scale: &__m256, bytes: &ByteColumns, _n: usize) -> Unpacked {
        Unpacked::of_scale(*scale, signed_pairs(bytes))
    }
}

impl Format for Q4_0 {
    const LAYOUT: &'static BlockLayout = &blocks::Q4_0;
    const GROUP: usize = 1;
    type Sum = One<-8>;
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
        Unpacked::of_scale(*scale, unsigned_pairs(&nibbles(*bytes)))
    }
}

impl Format for Q4_1 {
    const LAYOUT: &'static BlockLayout = &blocks::Q4_1;
    const GROUP: usize = 1;
    type Sum = Minimum;
    type Shared = [__m256; 2];
    type Loaded = [__m256i; 4];

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> [__m256; 2] {
        // SAFETY: the caller's promise: 4 bytes of 20.
        half_pairs(unsafe { blocks.word(0) })
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, _n: usize) -> [__m256i; 4] {
        // SAFETY: the caller's promise: 16 bytes behind the first four.
        unsafe { blocks.sixteen(4) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(factors: &[__m256; 2], bytes: &[__m256i; 4], _n: usize) -> Unpacked {
        Unpacked::of_two(*factors, unsigned_pairs(&nibbles(*bytes)))
    }
}

impl Format for Q5_0 {
    const LAYOUT: &'static BlockLayout = &blocks::Q5_0;
    const GROUP: usize = 1;
    type Sum = One<-16>;
    type Shared = __m256;
    type Loaded = ByteColumns;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> __m256 {
        // SAFETY: the caller's promise: 2 bytes of 22.
        unsafe { blocks.half(0) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, _n: usize) -> ByteColumns {
        // SAFETY: the caller's promise: 20 bytes behind the first two.
        unsafe { five_bits(blocks, 2) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scale: &__m256, bytes: &ByteColumns, _n: usize) -> Unpacked {
        Unpacked::of_scale(*scale, unsigned_pairs(bytes))
    }
}

impl Format for Q5_1 {
    const LAYOUT: &'static BlockLayout = &blocks::Q5_1;
    const GROUP: usize = 1;
    type Sum = Minimum;
    type Shared = [__m256; 2];
    type Loaded = ByteColumns;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> [__m256; 2] {
        // SAFETY: the caller's promise: 4 bytes of 24.
        half_pairs(unsafe { blocks.word(0) })
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, _n: usize) -> ByteColumns {
        // SAFETY: the caller's promise: 20 bytes behind the first four.
        unsafe { five_bits(blocks, 4) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(factors: &[__m256; 2], bytes: &ByteColumns, _n: usize) -> Unpacked {
        Unpacked::of_two(*factors, unsigned_pairs(bytes))
    }
}

/// Integers of five bits: from `offset` on 32 fifth bits that follow each other, then sixteen bytes of nibbles.
///
/// # Safety
/// Each block has these 20 bytes.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn five_bits(blocks: &Blocks<'_>, offset: usize) -> ByteColumns {
    // SAFETY: the caller's promise.
    let (bits, bytes) = unsafe { (blocks.word(offset), blocks.sixteen(offset + 4)) };
    let mut integers = nibbles(bytes);
    for (integers, is_set) in integers.iter_mut().zip(spread_bits(bits)) {
        *integers = _mm256_or_si256(*integers, _mm256_and_si256(is_set, _mm256_set1_epi8(16)));
    }
    integers
}
