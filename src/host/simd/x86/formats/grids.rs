//! Dtypes whose indices choose magnitudes from a grid, with signs beside.

use std::arch::x86_64::*;

use super::super::columns::{Blocks, ByteColumns, bits_of, count, half_pairs, signed_pairs, spread_bits};
use super::super::sums::{One, Two};
use super::{Format, Unpacked};
use crate::dtype::{BlockLayout, blocks, grids};

pub(in super::super) struct IQ3XXS;
pub(in super::super) struct IQ3S;
pub(in super::super) struct IQ2XXS;
pub(in super::super) struct IQ2XS;
pub(in super::super) struct IQ2S;
pub(in super::super) struct IQ1S;
pub(in super::super) struct IQ1M;

/// Of eight rows the bits of a part's scale, or of two, and its integers.
pub(in super::super) type Scaled = (__m256i, ByteColumns);

impl Format for IQ3XXS {
    const LAYOUT: &'static BlockLayout = &blocks::IQ3_XXS;
    const GROUP: usize = 1;
    type Sum = One<0>;
    type Shared = __m256;
    type Loaded = Scaled;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> __m256 {
        // SAFETY: the caller's promise: 2 bytes of 98.
        unsafe { blocks.half(0) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> Scaled {
        // SAFETY: the caller's promise: of each of eight parts 8 bytes of indices, and behind all of these 4 bytes.
        let (low, word) = unsafe { ([blocks.word(2 + 8 * n), blocks.word(6 + 8 * n)], blocks.word(66 + 4 * n)) };
        // SAFETY: a byte is below 256.
        let magnitudes = unsafe { chosen(&grids::IQ3_XXS, |quad| byte_of(low[quad / 4], quad % 4)) };
        (_mm256_srli_epi32(word, 28), with_signs(magnitudes, even_signs(word)))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scale: &__m256, (four_bits, integers): &Scaled, _n: usize) -> Unpacked {
        Unpacked::of_scale(with_half(*scale, *four_bits, 0.5), signed_pairs(integers))
    }
}

impl Format for IQ3S {
    const LAYOUT: &'static BlockLayout = &blocks::IQ3_S;
    const GROUP: usize = 1;
    type Sum = One<0>;
    type Shared = __m256;
    type Loaded = Scaled;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> __m256 {
        // SAFETY: the caller's promise: 2 bytes of 110.
        unsafe { blocks.half(0) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> Scaled {
        // SAFETY: the caller's promise: of each of eight parts 8 bytes of indices, then 1 of their ninth bits, 4 of signs, half of one.
        let (low, high, signs, scales) = unsafe {
            let low = [blocks.word(2 + 8 * n), blocks.word(6 + 8 * n)];
            (low, blocks.byte(66 + n), blocks.word(74 + 4 * n), blocks.byte(106 + n / 2))
        };
        let ninth_bit = |quad: usize| _mm256_and_si256(_mm256_sll_epi32(high, count(8 - quad)), _mm256_set1_epi32(256));
        // SAFETY: nine bits are below 512.
        let magnitudes = unsafe { chosen(&grids::IQ3_S, |quad| _mm256_or_si256(byte_of(low[quad / 4], quad % 4), ninth_bit(quad))) };
        let four_bits = bits_of(scales, n % 2 * 4, 15);
        (four_bits, with_signs(magnitudes, signs))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scale: &__m256, (four_bits, integers): &Scaled, _n: usize) -> Unpacked {
        let odd = _mm256_add_epi32(_mm256_slli_epi32(*four_bits, 1), _mm256_set1_epi32(1));
        Unpacked::of_scale(_mm256_mul_ps(*scale, _mm256_cvtepi32_ps(odd)), signed_pairs(integers))
    }
}

impl Format for IQ2XXS {
    const LAYOUT: &'static BlockLayout = &blocks::IQ2_XXS;
    const GROUP: usize = 1;
    type Sum = One<0>;
    type Shared = __m256;
    type Loaded = Scaled;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> __m256 {
        // SAFETY: the caller's promise: 2 bytes of 66.
        unsafe { blocks.half(0) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> Scaled {
        // SAFETY: the caller's promise: of each of eight parts 4 bytes that choose, and 4 of signs.
        let (low, word) = unsafe { (blocks.word(2 + 8 * n), blocks.word(6 + 8 * n)) };
        // SAFETY: a byte is below 256.
        let magnitudes = unsafe { chosen_octets(&grids::IQ2_XXS, |octet| byte_of(low, octet)) };
        (_mm256_srli_epi32(word, 28), with_signs(magnitudes, even_signs(word)))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scale: &__m256, (four_bits, integers): &Scaled, _n: usize) -> Unpacked {
        Unpacked::of_scale(with_half(*scale, *four_bits, 0.25), signed_pairs(integers))
    }
}

impl Format for IQ2XS {
    const LAYOUT: &'static BlockLayout = &blocks::IQ2_XS;
    const GROUP: usize = 1;
    type Sum = Two;
    type Shared = __m256;
    type Loaded = Scaled;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> __m256 {
        // SAFETY: the caller's promise: 2 bytes of 74.
        unsafe { blocks.half(0) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> Scaled {
        // SAFETY: the caller's promise: of each of eight parts 8 bytes of choices and signs, and behind all of these 1 of scales.
        let (words, nibbles) = unsafe { ([blocks.word(2 + 8 * n), blocks.word(6 + 8 * n)], blocks.byte(66 + n)) };
        let nine_bits = |octet: usize| bits_of(words[octet / 2], octet % 2 * 16, 511);
        let mut sevens = _mm256_setzero_si256();
        for octet in 0..4 {
            let seven = bits_of(words[octet / 2], octet % 2 * 16 + 9, 0x7F);
            sevens = _mm256_or_si256(sevens, _mm256_sll_epi32(seven, count(7 * octet)));
        }
        // SAFETY: nine bits are below 512.
        (nibbles, with_signs(unsafe { chosen_octets(&grids::IQ2_XS, nine_bits) }, even_signs(sevens)))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scale: &__m256, (nibbles, integers): &Scaled, _n: usize) -> Unpacked {
        of_halves(*scale, *nibbles, integers)
    }
}

impl Format for IQ2S {
    const LAYOUT: &'static BlockLayout = &blocks::IQ2_S;
    const GROUP: usize = 1;
    type Sum = Two;
    type Shared = __m256;
    type Loaded = Scaled;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> __m256 {
        // SAFETY: the caller's promise: 2 bytes of 82.
        unsafe { blocks.half(0) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> Scaled {
        // SAFETY: the caller's promise: of each of eight parts 4 bytes that choose, 4 of signs, 1 of two more bits of each choice, 1 of scales.
        let (low, signs, high, nibbles) =
            unsafe { (blocks.word(2 + 4 * n), blocks.word(34 + 4 * n), blocks.byte(66 + n), blocks.byte(74 + n)) };
        let two_bits = |octet: usize| _mm256_and_si256(_mm256_sll_epi32(high, count(8 - 2 * octet)), _mm256_set1_epi32(0x300));
        // SAFETY: ten bits are below 1024.
        let magnitudes = unsafe { chosen_octets(&grids::IQ2_S, |octet| _mm256_or_si256(byte_of(low, octet), two_bits(octet))) };
        (nibbles, with_signs(magnitudes, signs))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scale: &__m256, (nibbles, integers): &Scaled, _n: usize) -> Unpacked {
        of_halves(*scale, *nibbles, integers)
    }
}

impl Format for IQ1S {
    const LAYOUT: &'static BlockLayout = &blocks::IQ1_S;
    const GROUP: usize = 1;
    type Sum = One<0>;
    type Shared = __m256;
    type Loaded = Scaled;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> __m256 {
        // SAFETY: the caller's promise: 2 bytes of 50.
        unsafe { blocks.half(0) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> Scaled {
        // SAFETY: the caller's promise: of each of eight parts 4 bytes that choose, and 2 of more bits and a scale.
        let (low, high) = unsafe { (blocks.word(2 + 4 * n), sixteen_bits(blocks, 34 + 2 * n)) };
        let levels = levels(low, |octet| bits_of(high, 3 * octet, 7));
        let is_less = _mm256_srai_epi32(_mm256_slli_epi32(high, 16), 31);
        (bits_of(high, 12, 7), eighths(levels, |_| is_less))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scale: &__m256, (three_bits, integers): &Scaled, _n: usize) -> Unpacked {
        Unpacked::of_scale(of_eighths(*scale, *three_bits), signed_pairs(integers))
    }
}

impl Format for IQ1M {
    const LAYOUT: &'static BlockLayout = &blocks::IQ1_M;
    const GROUP: usize = 1;
    type Sum = Two;
    type Shared = Packed;
    type Loaded = [__m256i; 2];

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn shared(blocks: &Blocks<'_>) -> Packed {
        // SAFETY: the caller's promise: 56 bytes.
        let words = unsafe { [blocks.word(48), blocks.word(52)] };
        // The upper four bits of each half, the last four of them uppermost.
        let mut bits = _mm256_setzero_si256();
        for (index, word) in words.into_iter().enumerate() {
            let lower = bits_of(word, 12, 15);
            let both = _mm256_or_si256(lower, _mm256_slli_epi32(_mm256_srli_epi32(word, 28), 4));
            bits = _mm256_or_si256(bits, _mm256_sll_epi32(both, count(8 * index)));
        }
        Packed { of_all: half_pairs(bits)[0], words }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> [__m256i; 2] {
        // SAFETY: the caller's promise: of each of eight parts 4 bytes that choose, and 2 of more bits.
        unsafe { [blocks.word(4 * n), sixteen_bits(blocks, 32 + 2 * n)] }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn part<const J: usize>(scales: &Packed, [low, high]: &[__m256i; 2], n: usize) -> Unpacked {
        let levels = levels(*low, |octet| bits_of(*high, 4 * octet, 7));
        let is_less = |octet: usize| _mm256_srai_epi32(_mm256_sll_epi32(*high, count(28 - 4 * octet)), 31);
        let begin = n % 4 / 2 * 16 + n % 2 * 6;
        let scale = |index: usize| of_eighths(scales.of_all, bits_of(scales.words[n / 4], begin + 3 * index, 7));
        Unpacked::of_two([scale(0), scale(1)], signed_pairs(&eighths(levels, is_less)))
    }
}

/// Of eight rows of IQ1_M the scale of all, and words with those of all parts.
pub(in super::super) struct Packed {
    of_all: __m256,
    words: [__m256i; 2],
}

/// A scale from one of all and four bits, each a half more, times `factor`.
#[target_feature(enable = "avx2")]
#[inline]
fn with_half(of_all: __m256, four_bits: __m256i, factor: f32) -> __m256 {
    let scale = _mm256_add_ps(_mm256_cvtepi32_ps(four_bits), _mm256_set1_ps(0.5));
    _mm256_mul_ps(_mm256_mul_ps(of_all, scale), _mm256_set1_ps(factor))
}

/// Integers whose sixteen first and last have a scale of their own, four bits each.
#[target_feature(enable = "avx2")]
#[inline]
fn of_halves(of_all: __m256, nibbles: __m256i, integers: &ByteColumns) -> Unpacked {
    let scale = |half: usize| with_half(of_all, bits_of(nibbles, 4 * half, 15), 0.25);
    Unpacked::of_two([scale(0), scale(1)], signed_pairs(integers))
}

/// What IQ1_S and IQ1_M choose from their grid, by a byte of `low` and three more bits of each octet.
#[target_feature(enable = "avx2")]
#[inline]
fn levels(low: __m256i, three_bits: impl Fn(usize) -> __m256i) -> ByteColumns {
    // SAFETY: eleven bits are below 2048.
    unsafe { chosen_octets(&grids::IQ1, |octet| _mm256_or_si256(byte_of(low, octet), _mm256_slli_epi32(three_bits(octet), 8))) }
}

/// This byte of each word.
#[target_feature(enable = "avx2")]
#[inline]
fn byte_of(words: __m256i, byte: usize) -> __m256i {
    bits_of(words, 8 * byte, 0xFF)
}

/// Of eight rows the words of a grid at these places: four columns in each vector.
///
/// # Safety
/// The grid is longer than each place that `place_of` gives.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn chosen(grid: &[u32], place_of: impl Fn(usize) -> __m256i) -> ByteColumns {
    let mut columns = [_mm256_setzero_si256(); 8];
    for (quad, column) in columns.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *column = unsafe { _mm256_i32gather_epi32::<4>(grid.as_ptr().cast(), place_of(quad)) };
    }
    columns
}

/// Bytes of which those are negative that have a bit in each row's word.
#[target_feature(enable = "avx2")]
#[inline]
fn with_signs(mut bytes: ByteColumns, signs: __m256i) -> ByteColumns {
    for (bytes, is_negative) in bytes.iter_mut().zip(spread_bits(signs)) {
        *bytes = _mm256_sub_epi8(_mm256_xor_si256(*bytes, is_negative), is_negative);
    }
    bytes
}

/// Signs of 32 values, of which seven of each eight are given in 28 bits: an even number of eight are negative.
#[target_feature(enable = "avx2")]
#[inline]
fn even_signs(sevens: __m256i) -> __m256i {
    let mut spread = _mm256_and_si256(sevens, _mm256_set1_epi32(0x7F));
    for octet in 1..4 {
        let moved = _mm256_sll_epi32(sevens, count(octet));
        spread = _mm256_or_si256(spread, _mm256_and_si256(moved, _mm256_set1_epi32(0x7F << (8 * octet))));
    }
    let low = _mm256_set1_epi8(15);
    // Of a nibble's bits whether an odd number is set.
    let parities = _mm256_setr_epi8(
        0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0, 0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0,
        -128, -128, 0,
    );
    let folded = _mm256_and_si256(_mm256_xor_si256(spread, _mm256_srli_epi16(spread, 4)), low);
    _mm256_or_si256(spread, _mm256_shuffle_epi8(parities, folded))
}

/// As `chosen`, of a grid whose entries are two words.
///
/// # Safety
/// The grid has more entries than each place that `place_of` gives.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn chosen_octets(grid: &[u32], place_of: impl Fn(usize) -> __m256i) -> ByteColumns {
    let word = |quad: usize| _mm256_add_epi32(_mm256_slli_epi32(place_of(quad / 2), 1), _mm256_set1_epi32((quad % 2) as i32));
    // SAFETY: the caller's promise.
    unsafe { chosen(grid, word) }
}

/// The two bytes at `offset`.
///
/// # Safety
/// Each block has them.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn sixteen_bits(blocks: &Blocks<'_>, offset: usize) -> __m256i {
    // SAFETY: the caller's promise.
    let (lower, upper) = unsafe { (blocks.byte(offset), blocks.byte(offset + 1)) };
    _mm256_or_si256(lower, _mm256_slli_epi32(upper, 8))
}

/// A scale from one of all and three bits, for integers that are eight times too large.
#[target_feature(enable = "avx2")]
#[inline]
fn of_eighths(of_all: __m256, three_bits: __m256i) -> __m256 {
    let odd = _mm256_add_epi32(_mm256_slli_epi32(three_bits, 1), _mm256_set1_epi32(1));
    _mm256_mul_ps(_mm256_mul_ps(of_all, _mm256_cvtepi32_ps(odd)), _mm256_set1_ps(0.125))
}

/// Levels of the grid, 8 less and one more, or one less where all bits are set of what `is_less` gives for eight columns.
#[target_feature(enable = "avx2")]
#[inline]
fn eighths(mut levels: ByteColumns, is_less: impl Fn(usize) -> __m256i) -> ByteColumns {
    for (quad, level) in levels.iter_mut().enumerate() {
        let subtracted = _mm256_sub_epi8(_mm256_set1_epi8(7), _mm256_add_epi8(is_less(quad / 2), is_less(quad / 2)));
        *level = _mm256_sub_epi8(*level, subtracted);
    }
    levels
}
