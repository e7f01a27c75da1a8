//! The formula of the head of `host::simd` with AVX2: a block of eight rows times one token or several, and whole panels so.

use std::arch::x86_64::*;

use super::super::{BLOCK_LEN, MAX_FACTORS, N_PAIRS, PANEL_ROWS, PanelBlock, TokenBlock};
use super::columns::{lanes, registers};
use crate::dtype::Scaling;

/// Tokens that share the loads of a panel: as many as leave room for their sums in the sixteen registers.
const TILE: usize = 6;

/// How blocks are multiplied, once they are unpacked.
pub(super) trait Sum {
    /// How many scales and minimums they have.
    const SCALING: Scaling;
    /// What is added to each integer, for all columns of a block at once; other than zero only where they have one scale.
    const OFFSET: i32;
}

/// One scale.
pub(super) struct One<const OFFSET: i32>;
/// One scale and one minimum.
pub(super) struct Minimum;
/// A scale for each sixteen.
pub(super) struct Two;
/// A scale and a minimum for each sixteen.
pub(super) struct TwoMinimums;

impl<const OFFSET: i32> Sum for One<OFFSET> {
    const SCALING: Scaling = Scaling::One;
    const OFFSET: i32 = OFFSET;
}

impl Sum for Minimum {
    const SCALING: Scaling = Scaling::Minimum;
    const OFFSET: i32 = 0;
}

impl Sum for Two {
    const SCALING: Scaling = Scaling::Two;
    const OFFSET: i32 = 0;
}

impl Sum for TwoMinimums {
    const SCALING: Scaling = Scaling::TwoMinimums;
    const OFFSET: i32 = 0;
}

/// A panel times tokens, each of as many blocks.
///
/// # Safety
/// The processor has the instructions.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply_panel<S: Sum>(panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [[f32; PANEL_ROWS]]) {
    let n_blocks = panel.len();
    let (tiles, rest) = products.as_chunks_mut::<TILE>();
    let n_tiled = tiles.len() * TILE;
    for (tile, products) in tiles.iter_mut().enumerate() {
        multiply_tile::<S, TILE>(panel, &tokens[tile * TILE * n_blocks..], products);
    }
    for (index, product) in rest.iter_mut().enumerate() {
        multiply_tile::<S, 1>(panel, &tokens[(n_tiled + index) * n_blocks..], std::array::from_mut(product));
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_tile<S: Sum, const T: usize>(panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [[f32; PANEL_ROWS]; T]) {
    let tokens: [&[TokenBlock]; T] = std::array::from_fn(|token| &tokens[token * panel.len()..][..panel.len()]);
    let mut sums = [_mm256_setzero_ps(); T];
    for (index, block) in panel.iter().enumerate() {
        add_block::<S, T>(&registers(&block.factors), pairs_of(block), tokens.map(|token| &token[index]), &mut sums);
    }
    for (products, sum) in products.iter_mut().zip(sums) {
        *products = lanes(sum);
    }
}

/// The pairs as vectors, which stay in memory until they are needed.
fn pairs_of(block: &PanelBlock) -> &[__m256i; N_PAIRS] {
    // SAFETY: sixteen times 32 bytes that begin a multiple of 32 bytes into a block whose alignment is 32.
    unsafe { &*block.values.as_ptr().cast() }
}

/// The formula for one block of eight rows and `T` tokens, with the roundings that it names: no fused multiplication.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn add_block<S: Sum, const T: usize>(
    [scales, others, minimums, other_minimums]: &[__m256; MAX_FACTORS],
    pairs: &[__m256i; N_PAIRS],
    tokens: [&TokenBlock; T],
    sums: &mut [__m256; T],
) {
    if matches!(S::SCALING, Scaling::Two | Scaling::TwoMinimums) {
        let (first, last) = pairs.split_at(N_PAIRS / 2);
        let (first, last) = (dots::<T>(0, first, 0, tokens), dots::<T>(0, last, BLOCK_LEN / 2, tokens));
        for (((sum, first), last), token) in sums.iter_mut().zip(first).zip(last).zip(tokens) {
            let mut added = _mm256_add_ps(scaled(*scales, first, token), scaled(*others, last, token));
            if matches!(S::SCALING, Scaling::TwoMinimums) {
                let [first, last] = token.scaled_sums();
                let first = _mm256_mul_ps(*minimums, _mm256_set1_ps(first));
                added = _mm256_add_ps(added, _mm256_add_ps(first, _mm256_mul_ps(*other_minimums, _mm256_set1_ps(last))));
            }
            *sum = _mm256_add_ps(*sum, added);
        }
        return;
    }
    let dots = dots::<T>(S::OFFSET, pairs, 0, tokens);
    for ((sum, dot), token) in sums.iter_mut().zip(dots).zip(tokens) {
        let mut added = scaled(*scales, dot, token);
        if matches!(S::SCALING, Scaling::Minimum) {
            added = _mm256_add_ps(added, _mm256_mul_ps(*others, _mm256_set1_ps(token.scaled_sum)));
        }
        *sum = _mm256_add_ps(*sum, added);
    }
}

/// The integers of eight rows and `T` tokens, of a block's columns in these pairs, which begin at `column`.
#[target_feature(enable = "avx2")]
#[inline]
fn dots<const T: usize>(offset: i32, pairs: &[__m256i], column: usize, tokens: [&TokenBlock; T]) -> [__m256i; T] {
    let mut dots = [_mm256_setzero_si256(); T];
    for (dot, token) in dots.iter_mut().zip(tokens) {
        *dot = _mm256_set1_epi32(offset * token.sum);
    }
    for (weights, columns) in pairs.iter().zip((column..BLOCK_LEN).step_by(2)) {
        for (dot, token) in dots.iter_mut().zip(tokens) {
            let [low, high] = [token.values[columns], token.values[columns + 1]].map(|value| u32::from(value.cast_unsigned()));
            let values = _mm256_set1_epi32((low | high << 16).cast_signed());
            *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(*weights, values));
        }
    }
    dots
}

#[target_feature(enable = "avx2")]
#[inline]
fn scaled(scales: __m256, dot: __m256i, token: &TokenBlock) -> __m256 {
    _mm256_mul_ps(_mm256_mul_ps(scales, _mm256_set1_ps(token.scale)), _mm256_cvtepi32_ps(dot))
}
