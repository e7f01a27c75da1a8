//! WebAssembly with vectors of 128 bits, which every browser with WebGPU has; the build asks for them. Where tokens are few, each row of a
//! block is multiplied as it lies: what unpacking into panels costs would be most of the time.
//!
//! Relaxed vectors would bring nothing here: their products of integers take seven bits of one side, where inputs have sixteen, and a fused
//! product saves two of some seventy instructions of a block, for sums that differ from one browser to the next.

use std::arch::wasm32::*;

mod parts;

use super::{
    DType, N_PAIRS, PANEL_ROWS, PanelBlock, PanelRows, Scaling, Simd, TokenBlock, check_rows, layout_of, multiply_in_tiles, portable,
};
use crate::dtype::{BlockLayout, blocks};
use parts::Part;

/// The functions of this file.
pub(super) static SIMD: Simd = Simd { name: "SIMD128", multiply_rows, multiply_panel, ..portable::SIMD };

/// Tokens that share the loads of a panel.
const TILE: usize = 4;
/// Rows in a vector.
const ROWS: usize = PANEL_ROWS / 2;

fn multiply_rows(dtype: DType, rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    check_rows(rows, layout_of(dtype).bytes_of_parts(token.len()));
    // What a layout says is known as its loop is compiled.
    match dtype {
        DType::Q8_0 => multiply_rows_of(&blocks::Q8_0, parts::q8_0, rows, token),
        DType::Q4_0 => multiply_rows_of(&blocks::Q4_0, parts::q4_0, rows, token),
        DType::Q4_1 => multiply_rows_of(&blocks::Q4_1, parts::q4_1, rows, token),
        DType::Q5_0 => multiply_rows_of(&blocks::Q5_0, parts::q5_0, rows, token),
        DType::Q5_1 => multiply_rows_of(&blocks::Q5_1, parts::q5_1, rows, token),
        DType::Q4K => multiply_rows_of(&blocks::Q4_K, parts::q4_k, rows, token),
        DType::Q5K => multiply_rows_of(&blocks::Q5_K, parts::q5_k, rows, token),
        DType::Q6K => multiply_rows_of(&blocks::Q6_K, parts::q6_k, rows, token),
        DType::IQ4NL => multiply_rows_of(&blocks::IQ4_NL, parts::iq4_nl, rows, token),
        DType::MXFP4 => multiply_rows_of(&blocks::MXFP4, parts::mxfp4, rows, token),
        _ => multiply_rows_of(layout_of(dtype), parts::others(layout_of(dtype)), rows, token),
    }
}

#[inline(always)]
fn multiply_rows_of(
    layout: &BlockLayout,
    part: impl Fn(&[u8], usize) -> Part,
    rows: &PanelRows<'_>,
    token: &[TokenBlock],
) -> [f32; PANEL_ROWS] {
    let mut sums = [f32x4_splat(0.0); 2];
    for (index, token) in token.iter().enumerate() {
        let (values, scaled_sums) = (in_order(token), scaled_sums(layout.scaling, token));
        let (begin, index) = (index / layout.n_parts() * layout.bytes, index % layout.n_parts());
        for (rows, sums) in rows.as_chunks::<ROWS>().0.iter().zip(&mut sums) {
            let parts = rows.map(|row| part(&row[begin..][..layout.bytes], index));
            let dots = sums_of_rows(parts.each_ref().map(|part| dots_of(part.values, &values)), layout.scaling);
            let [scales, other_scales] = [0, 1].map(|half| vector(parts.each_ref().map(|part| part.scales[half])));
            let [minimums, other_minimums] = [0, 1].map(|half| vector(parts.each_ref().map(|part| part.minimums[half])));
            let factors = [scales, other_scales, minimums, other_minimums];
            *sums = add_products(layout.scaling, factors, dots, token.scale, scaled_sums, *sums);
        }
    }
    lanes(sums)
}

/// A token's integers in the order of their columns, which blocks of other instructions have otherwise: see [`place`](super::place).
#[inline]
fn in_order(token: &TokenBlock) -> [v128; 4] {
    std::array::from_fn(|eight| {
        // SAFETY: eight i16 of 32.
        let values = unsafe { v128_load(token.values.as_ptr().wrapping_add(eight * 8).cast()) };
        i16x8_shuffle::<0, 2, 1, 3, 4, 6, 5, 7>(values, values)
    })
}

/// The integers of both halves of a row's block, in four sums each.
#[inline]
fn dots_of(weights: [v128; 2], token: &[v128; 4]) -> [v128; 2] {
    std::array::from_fn(|half| {
        let weights = weights[half];
        let low = i32x4_dot_i16x8(i16x8_extend_low_i8x16(weights), token[2 * half]);
        i32x4_add(low, i32x4_dot_i16x8(i16x8_extend_high_i8x16(weights), token[2 * half + 1]))
    })
}

/// The integers of four rows, one in each lane: of both halves; where one scale is of both, of all columns and of none.
#[inline]
fn sums_of_rows(dots: [[v128; 2]; ROWS], scaling: Scaling) -> [v128; 2] {
    match scaling {
        Scaling::One | Scaling::Minimum => [sums_of_lanes(dots.map(|[first, last]| i32x4_add(first, last))), i32x4_splat(0)],
        Scaling::Two | Scaling::TwoMinimums => [sums_of_lanes(dots.map(|[first, _]| first)), sums_of_lanes(dots.map(|[_, last]| last))],
    }
}

/// The sum of the lanes of each vector.
#[inline]
fn sums_of_lanes([a, b, c, d]: [v128; 4]) -> v128 {
    let of_two = |a, b| i32x4_add(i32x4_shuffle::<0, 4, 2, 6>(a, b), i32x4_shuffle::<1, 5, 3, 7>(a, b));
    let (ab, cd) = (of_two(a, b), of_two(c, d));
    i32x4_add(i64x2_shuffle::<0, 2>(ab, cd), i64x2_shuffle::<1, 3>(ab, cd))
}

/// The sums of a token's halves, where minimums are multiplied by them.
#[inline]
fn scaled_sums(scaling: Scaling, token: &TokenBlock) -> [f32; 2] {
    match scaling {
        Scaling::TwoMinimums => token.scaled_sums(),
        _ => [token.scaled_sum, 0.0],
    }
}

/// The formula of the module's head for one block of four rows; factors stand as [`PanelBlock`]s have them, or a minimum in the third place.
#[inline]
fn add_products(scaling: Scaling, factors: [v128; 4], dots: [v128; 2], scale: f32, scaled_sums: [f32; 2], sums: v128) -> v128 {
    let [scales, other_scales, minimums, other_minimums] = factors;
    let scaled = |scales, dots| f32x4_mul(f32x4_mul(scales, f32x4_splat(scale)), f32x4_convert_i32x4(dots));
    let times = |minimums, sum| f32x4_mul(minimums, f32x4_splat(sum));
    let first = scaled(scales, dots[0]);
    let added = match scaling {
        Scaling::One => first,
        Scaling::Minimum => f32x4_add(first, times(minimums, scaled_sums[0])),
        Scaling::Two => f32x4_add(first, scaled(other_scales, dots[1])),
        Scaling::TwoMinimums => {
            let both = f32x4_add(times(minimums, scaled_sums[0]), times(other_minimums, scaled_sums[1]));
            f32x4_add(f32x4_add(first, scaled(other_scales, dots[1])), both)
        }
    };
    f32x4_add(sums, added)
}

fn multiply_panel(dtype: DType, panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [[f32; PANEL_ROWS]]) {
    let scaling = layout_of(dtype).scaling;
    let many = |tokens| multiply_tile(scaling, panel, tokens);
    multiply_in_tiles::<TILE>(panel.len(), tokens, products, many, |tokens| multiply_tile(scaling, panel, tokens));
}

/// A panel times as many blocks of each token.
fn multiply_tile<const T: usize>(scaling: Scaling, panel: &[PanelBlock], tokens: [&[TokenBlock]; T]) -> [[f32; PANEL_ROWS]; T] {
    let mut sums = [[f32x4_splat(0.0); 2]; T];
    // A scale of their own have the first sixteen columns, or all.
    let n_first = if matches!(scaling, Scaling::Two | Scaling::TwoMinimums) { N_PAIRS / 2 } else { N_PAIRS };
    for (index, block) in panel.iter().enumerate() {
        let tokens = tokens.map(|token| &token[index]);
        let (first, last) = (dots_of_panel(block, 0..n_first, tokens), dots_of_panel(block, n_first..N_PAIRS, tokens));
        for (((sums, first), last), token) in sums.iter_mut().zip(first).zip(last).zip(tokens) {
            let scaled_sums = scaled_sums(scaling, token);
            for (half, sums) in sums.iter_mut().enumerate() {
                // SAFETY: four f32 of eight each.
                let factors =
                    block.factors.each_ref().map(|factors| unsafe { v128_load(factors.as_ptr().wrapping_add(half * ROWS).cast()) });
                let [scales, others, ..] = factors;
                let factors = if scaling == Scaling::Minimum { [scales, scales, others, others] } else { factors };
                *sums = add_products(scaling, factors, [first[half], last[half]], token.scale, scaled_sums, *sums);
            }
        }
    }
    sums.map(lanes)
}

/// The integers of these pairs of columns of one block: eight rows for each token.
#[inline]
fn dots_of_panel<const T: usize>(block: &PanelBlock, pairs: std::ops::Range<usize>, tokens: [&TokenBlock; T]) -> [[v128; 2]; T] {
    let mut dots = [[i32x4_splat(0); 2]; T];
    for pair in pairs {
        let weights: *const v128 = block.values[pair].as_ptr().cast();
        // SAFETY: two i16 of eight rows.
        let weights = unsafe { [v128_load(weights), v128_load(weights.wrapping_add(1))] };
        for (dots, token) in dots.iter_mut().zip(tokens) {
            let values = i32x4_splat(i32::from(token.values[2 * pair]) & 0xFFFF | i32::from(token.values[2 * pair + 1]) << 16);
            for (dots, weights) in dots.iter_mut().zip(weights) {
                *dots = i32x4_add(*dots, i32x4_dot_i16x8(weights, values));
            }
        }
    }
    dots
}

#[inline]
fn vector(values: [f32; 4]) -> v128 {
    // SAFETY: four f32.
    unsafe { v128_load(values.as_ptr().cast()) }
}

#[inline]
fn lanes(vectors: [v128; 2]) -> [f32; PANEL_ROWS] {
    let mut values = [0.0; PANEL_ROWS];
    for (values, vector) in values.as_chunks_mut::<ROWS>().0.iter_mut().zip(vectors) {
        // SAFETY: four f32.
        unsafe { v128_store(values.as_mut_ptr().cast(), vector) };
    }
    values
}
