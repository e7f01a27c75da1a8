//! TQ1_0 and TQ2_0: -1, 0 and 1, of which 256 have a scale.

use std::arch::x86_64::*;

use super::super::columns::{Blocks, ByteColumns, unsigned_pairs};
use super::super::sums::One;
use super::sixteens::two_bits;
use super::{Format, Unpacked};
use crate::dtype::{BlockLayout, blocks};

pub(in super::super) struct TQ1_0;
pub(in super::super) struct TQ2_0;

/// A block of TQ1_0 of eight rows.
pub(in super::super) struct Digits {
    scale: __m256,
    /// Five digits in each byte, of the first five parts.
    early: ByteColumns,
    /// Five digits in each byte, of the next two parts and the half of the last.
    late: [__m256i; 4],
    /// Four digits in each byte, of the last sixteen columns.
    last: __m256i,
}

impl Digits {
    /// Of vector `index` of a part the bytes, and which of their digits.
    fn of(&self, part: usize, index: usize) -> (&__m256i, usize) {
        match (part, index / 4) {
            (0..=4, _) => (&self.early[index], part),
            (7, 1) => (&self.last, index - 4),
            (_, half) => (&self.late[index % 4], 2 * (part - 5) + half),
        }
    }
}

impl Format for TQ1_0 {
    const LAYOUT: &'static BlockLayout = &blocks::TQ1_0;
    const GROUP: usize = 1;
    type Sum = One<-1>;
    type Shared = Digits;
    type Loaded = ();

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> Digits {
        // SAFETY: the caller's promise: 54 bytes.
        unsafe { Digits { scale: blocks.half(52), early: blocks.thirty_two(0), late: blocks.sixteen(32), last: blocks.word(48) } }
    }

    unsafe fn load(_blocks: &Blocks<'_>, _n: usize) {}

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(digits: &Digits, (): &(), n: usize) -> Unpacked {
        let (mut bytes, mut powers) = ([digits.last; 8], [digits.last; 8]);
        for (index, (bytes, power)) in bytes.iter_mut().zip(&mut powers).enumerate() {
            let (stored, digit) = digits.of(n, index);
            (*bytes, *power) = (*stored, _mm256_set1_epi16(i16::from(blocks::TERNARY[digit])));
        }
        let mut pairs = unsigned_pairs(&bytes);
        for (pairs, power) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(powers) {
            for pair in pairs {
                // What is behind the point after the multiplication, of which the first digit is what a multiplication by three brings before it.
                let fraction = _mm256_and_si256(_mm256_mullo_epi16(*pair, power), _mm256_set1_epi16(0xFF));
                *pair = _mm256_srli_epi16(_mm256_mullo_epi16(fraction, _mm256_set1_epi16(3)), 8);
            }
        }
        Unpacked::of_scale(digits.scale, pairs)
    }
}

impl Format for TQ2_0 {
    const LAYOUT: &'static BlockLayout = &blocks::TQ2_0;
    const GROUP: usize = 4;
    type Sum = One<-1>;
    type Shared = __m256;
    type Loaded = ByteColumns;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> __m256 {
        // SAFETY: the caller's promise: 66 bytes.
        unsafe { blocks.half(64) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> ByteColumns {
        // SAFETY: the caller's promise: twice 32 bytes.
        unsafe { blocks.thirty_two(32 * n) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scale: &__m256, bytes: &ByteColumns, _n: usize) -> Unpacked {
        Unpacked::of_scale(*scale, unsigned_pairs(&two_bits::<J>(bytes)))
    }
}
