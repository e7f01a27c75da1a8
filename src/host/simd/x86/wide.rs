//! The formula of the head of `host::simd` with AVX-512 and VNNI: two panels at once, sixteen rows in the sixteen 32-bit lanes, and an
//! instruction that multiplies a pair of columns and adds both products.

use std::arch::x86_64::*;

use super::super::{BLOCK_LEN, DType, MAX_FACTORS, N_PAIRS, PANEL_ROWS, PanelBlock, PanelProducts, TokenBlock, check_tokens, layout_of};
use super::formats::functions_of;
use super::sums::{Minimum, One, Sum, Two, TwoMinimums};
use crate::dtype::Scaling;

/// Tokens that share the loads of two panels: each needs two of the 32 registers.
const TILE: usize = 12;
/// The same for the tokens behind the last tile.
const SMALL_TILE: usize = 4;

pub(super) fn multiply_two_panels(
    dtype: DType,
    panels: [&[PanelBlock]; 2],
    tokens: &[TokenBlock],
    products: [&mut [[f32; PANEL_ROWS]]; 2],
) {
    assert!(panels[0].len() == panels[1].len() && products[0].len() == products[1].len(), "two panels that are not alike");
    check_tokens(tokens, panels[0].len(), products[0].len());
    // SAFETY: the processor has AVX-512 with VNNI, or `found` would not show this function.
    unsafe {
        match (functions_of(dtype), layout_of(dtype).scaling) {
            (Some(functions), _) => (functions.multiply_two_panels)(panels, tokens, products),
            (None, Scaling::One) => multiply_two_panels_of::<One<0>>(panels, tokens, products),
            (None, Scaling::Minimum) => multiply_two_panels_of::<Minimum>(panels, tokens, products),
            (None, Scaling::Two) => multiply_two_panels_of::<Two>(panels, tokens, products),
            (None, Scaling::TwoMinimums) => multiply_two_panels_of::<TwoMinimums>(panels, tokens, products),
        }
    }
}

/// # Safety
/// The processor has the instructions.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn multiply_two_panels_of<S: Sum>(
    panels: [&[PanelBlock]; 2],
    tokens: &[TokenBlock],
    products: [&mut [PanelProducts]; 2],
) {
    let n_blocks = panels[0].len();
    let [first, last] = products;
    let mut begin = 0;
    while begin < first.len() {
        let tokens = &tokens[begin * n_blocks..];
        begin += match first.len() - begin {
            TILE.. => multiply_tile::<S, TILE>(panels, tokens, [&mut first[begin..], &mut last[begin..]]),
            SMALL_TILE.. => multiply_tile::<S, SMALL_TILE>(panels, tokens, [&mut first[begin..], &mut last[begin..]]),
            _ => multiply_tile::<S, 1>(panels, tokens, [&mut first[begin..], &mut last[begin..]]),
        };
    }
}

/// The first `T` tokens; returns how many these are.
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply_tile<S: Sum, const T: usize>(panels: [&[PanelBlock]; 2], tokens: &[TokenBlock], products: [&mut [PanelProducts]; 2]) -> usize {
    let [first, last] = panels;
    let tokens: [&[TokenBlock]; T] = std::array::from_fn(|token| &tokens[token * first.len()..][..first.len()]);
    let mut sums = [_mm512_setzero_ps(); T];
    for (index, (first, last)) in first.iter().zip(last).enumerate() {
        add_block::<S, T>([first, last], tokens.map(|token| &token[index]), &mut sums);
    }
    let [first, last] = products;
    for ((first, last), sum) in first.iter_mut().zip(last).zip(sums) {
        let mut lanes = [0.0; 2 * PANEL_ROWS];
        // SAFETY: sixteen f32.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
        first.copy_from_slice(&lanes[..PANEL_ROWS]);
        last.copy_from_slice(&lanes[PANEL_ROWS..]);
    }
    T
}

/// The formula for one block of sixteen rows and `T` tokens, with the roundings that it names: no fused multiplication.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn add_block<S: Sum, const T: usize>(blocks: [&PanelBlock; 2], tokens: [&TokenBlock; T], sums: &mut [__m512; T]) {
    let mut factors = [_mm512_setzero_ps(); MAX_FACTORS];
    for (index, factors) in factors.iter_mut().enumerate() {
        // SAFETY: eight f32 each.
        *factors = unsafe { of_two(blocks.map(|block| block.factors[index].as_ptr().cast())) };
    }
    let [scales, others, minimums, other_minimums] = factors;
    if matches!(S::SCALING, Scaling::Two | Scaling::TwoMinimums) {
        let first = dots::<0, { N_PAIRS / 2 }, T>(0, blocks, tokens);
        let last = dots::<{ N_PAIRS / 2 }, N_PAIRS, T>(0, blocks, tokens);
        for (((sum, first), last), token) in sums.iter_mut().zip(first).zip(last).zip(tokens) {
            let mut added = _mm512_add_ps(scaled(scales, first, token), scaled(others, last, token));
            if matches!(S::SCALING, Scaling::TwoMinimums) {
                let [first, last] = token.scaled_sums();
                let first = _mm512_mul_ps(minimums, _mm512_set1_ps(first));
                added = _mm512_add_ps(added, _mm512_add_ps(first, _mm512_mul_ps(other_minimums, _mm512_set1_ps(last))));
            }
            *sum = _mm512_add_ps(*sum, added);
        }
        return;
    }
    let dots = dots::<0, N_PAIRS, T>(S::OFFSET, blocks, tokens);
    for ((sum, dot), token) in sums.iter_mut().zip(dots).zip(tokens) {
        let mut added = scaled(scales, dot, token);
        if matches!(S::SCALING, Scaling::Minimum) {
            added = _mm512_add_ps(added, _mm512_mul_ps(others, _mm512_set1_ps(token.scaled_sum)));
        }
        *sum = _mm512_add_ps(*sum, added);
    }
}

/// Eight 32-bit lanes of each of two places.
///
/// # Safety
/// 32 bytes can be read at each.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn of_two([first, last]: [*const f64; 2]) -> __m512 {
    // SAFETY: the caller's promise.
    let [first, last] = unsafe { [_mm256_loadu_pd(first), _mm256_loadu_pd(last)] };
    _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castpd256_pd512(first), last, 1))
}

/// The integers of sixteen rows and `T` tokens, of a block's columns in these pairs.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn dots<const BEGIN: usize, const END: usize, const T: usize>(
    offset: i32,
    blocks: [&PanelBlock; 2],
    tokens: [&TokenBlock; T],
) -> [__m512i; T] {
    const { assert!(END <= N_PAIRS && 2 * N_PAIRS == BLOCK_LEN) };
    let mut dots = [_mm512_setzero_si512(); T];
    for (dot, token) in dots.iter_mut().zip(tokens) {
        *dot = _mm512_set1_epi32(offset * token.sum);
    }
    for pair in BEGIN..END {
        // SAFETY: two i16 of eight rows each.
        let weights = unsafe { _mm512_castps_si512(of_two(blocks.map(|block| block.values[pair].as_ptr().cast()))) };
        for (dot, token) in dots.iter_mut().zip(tokens) {
            // SAFETY: a token has two i16 for each pair.
            let values = unsafe { token.values.as_ptr().cast::<i32>().add(pair).read_unaligned() };
            *dot = _mm512_dpwssd_epi32(*dot, weights, _mm512_set1_epi32(values));
        }
    }
    dots
}

#[target_feature(enable = "avx512f")]
#[inline]
fn scaled(scales: __m512, dot: __m512i, token: &TokenBlock) -> __m512 {
    _mm512_mul_ps(_mm512_mul_ps(scales, _mm512_set1_ps(token.scale)), _mm512_cvtepi32_ps(dot))
}
