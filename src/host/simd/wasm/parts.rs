//! Parts of blocks as vectors of bytes. Those that people keep models in have functions of their own; all have the integers and scales that
//! [`crate::dtype::blocks`] says.

use std::arch::wasm32::*;

use crate::dtype::blocks::{E2M1, IQ4, half_at, half_of_power, scale_and_minimum, scales_of_q6_k};
use crate::dtype::{Block, BlockLayout};

/// As [`Block`], the integers in two vectors.
pub(super) struct Part {
    pub(super) values: [v128; 2],
    pub(super) scales: [f32; 2],
    pub(super) minimums: [f32; 2],
}

impl Part {
    #[inline]
    fn of_scale(scale: f32, values: [v128; 2]) -> Part {
        Part { values, scales: [scale; 2], minimums: [0.0; 2] }
    }

    #[inline]
    fn of_minimum((scale, minimum): (f32, f32), values: [v128; 2]) -> Part {
        Part { values, scales: [scale; 2], minimums: [minimum; 2] }
    }
}

/// Parts of any layout.
#[inline(always)]
pub(super) fn others(layout: &BlockLayout) -> impl Fn(&[u8], usize) -> Part {
    |block, part| {
        let Block { values, scales, minimums } = (layout.unpack)(block, part);
        let (values, _) = values.as_chunks::<16>();
        Part { values: [load(&values[0].map(i8::cast_unsigned)), load(&values[1].map(i8::cast_unsigned))], scales, minimums }
    }
}

#[inline]
pub(super) fn q8_0(block: &[u8], _part: usize) -> Part {
    Part::of_scale(half_at(block, 0), [load(&block[2..]), load(&block[18..])])
}

#[inline]
pub(super) fn q4_0(block: &[u8], _part: usize) -> Part {
    Part::of_scale(half_at(block, 0), less(nibbles(&block[2..]), 8))
}

#[inline]
pub(super) fn q4_1(block: &[u8], _part: usize) -> Part {
    Part::of_minimum((half_at(block, 0), half_at(block, 2)), nibbles(&block[4..]))
}

#[inline]
pub(super) fn q5_0(block: &[u8], _part: usize) -> Part {
    Part::of_scale(half_at(block, 0), less(with_fifth_bits(nibbles(&block[6..]), &block[2..]), 16))
}

#[inline]
pub(super) fn q5_1(block: &[u8], _part: usize) -> Part {
    Part::of_minimum((half_at(block, 0), half_at(block, 2)), with_fifth_bits(nibbles(&block[8..]), &block[4..]))
}

#[inline]
pub(super) fn q4_k(block: &[u8], part: usize) -> Part {
    Part::of_minimum(scale_and_minimum(block, part), bits(&block[16 + part / 2 * 32..], part % 2 * 4, 15))
}

#[inline]
pub(super) fn q5_k(block: &[u8], part: usize) -> Part {
    let (low, high) = (bits(&block[48 + part / 2 * 32..], part % 2 * 4, 15), bits(&block[16..], part, 1));
    Part::of_minimum(scale_and_minimum(block, part), above(low, high))
}

#[inline]
pub(super) fn q6_k(block: &[u8], part: usize) -> Part {
    let (n, j) = (part / 4, part % 4);
    let (low, high) = (bits(&block[64 * n + 32 * (j % 2)..], j / 2 * 4, 15), bits(&block[128 + 32 * n..], 2 * j, 3));
    Part { values: less(above(low, high), 32), scales: scales_of_q6_k(block, part), minimums: [0.0; 2] }
}

#[inline]
pub(super) fn iq4_nl(block: &[u8], _part: usize) -> Part {
    Part::of_scale(half_at(block, 0), chosen(&IQ4, nibbles(&block[2..])))
}

#[inline]
pub(super) fn mxfp4(block: &[u8], _part: usize) -> Part {
    Part::of_scale(half_of_power(block[0]), chosen(&E2M1, nibbles(&block[1..])))
}

/// The first sixteen bytes.
#[inline]
fn load(bytes: &[u8]) -> v128 {
    let bytes = &bytes[..16];
    // SAFETY: there are sixteen.
    unsafe { v128_load(bytes.as_ptr().cast()) }
}

/// The low nibbles of sixteen bytes, and their high ones.
#[inline]
fn nibbles(bytes: &[u8]) -> [v128; 2] {
    let bytes = load(bytes);
    [v128_and(bytes, u8x16_splat(15)), u8x16_shr(bytes, 4)]
}

/// Some bits of each of 32 bytes, from bit `shift` on.
#[inline]
fn bits(bytes: &[u8], shift: usize, mask: u8) -> [v128; 2] {
    [load(bytes), load(&bytes[16..])].map(|bytes| v128_and(u8x16_shr(bytes, shift as u32), u8x16_splat(mask)))
}

/// `high` in the bits above four of `low`.
#[inline]
fn above(low: [v128; 2], high: [v128; 2]) -> [v128; 2] {
    std::array::from_fn(|half| v128_or(low[half], u8x16_shl(high[half], 4)))
}

#[inline]
fn less(values: [v128; 2], by: u8) -> [v128; 2] {
    values.map(|values| u8x16_sub(values, u8x16_splat(by)))
}

/// A fifth bit of each value, from 32 bits that follow each other.
#[inline]
fn with_fifth_bits(low: [v128; 2], high: &[u8]) -> [v128; 2] {
    let (high, own) = (u32x4_splat(u32::from_le_bytes([high[0], high[1], high[2], high[3]])), u64x2_splat(0x8040_2010_0804_0201));
    let of_half = |bytes| v128_and(u8x16_ne(v128_and(bytes, own), u8x16_splat(0)), u8x16_splat(1));
    let first = u8x16_shuffle::<0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1>(high, high);
    let last = u8x16_shuffle::<2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3>(high, high);
    above(low, [of_half(first), of_half(last)])
}

/// What each value chooses of a list.
#[inline]
fn chosen(list: &[i8; 16], values: [v128; 2]) -> [v128; 2] {
    let list = load(&list.map(i8::cast_unsigned));
    values.map(|values| i8x16_swizzle(list, values))
}
