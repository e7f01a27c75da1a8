//! Unquantised weights with AVX2, FMA and F16C: eight columns in the eight lanes, and one vector of sums for each row and token.

use std::arch::x86_64::*;

use super::super::portable::decode_blocks;
use super::super::{DType, Floats, LANES, PANEL_ROWS, PanelRows, check_matrices, check_rows};
use super::blocks::prefetch_line;
use super::columns::lanes;

/// [`Floats`] as constants, for functions that are generic over them.
pub(super) const F32: u8 = 0;
pub(super) const F16: u8 = 1;
pub(super) const BF16: u8 = 2;

/// Rows from memory that meet one token at once. Rows follow each other: of two, one is hardly read before the other, so the processor
/// fetches ahead as of one stream; of eight it does not. By itself, one row would wait for the sums of its own.
const PAIR_ROWS: usize = 2;
/// How far behind the end of such a pair memory is asked for, in bytes.
const AHEAD: usize = 1 << 10;
/// Rows and tokens whose products are summed at once: twelve vectors of sums, three of tokens and one of a row fill the registers.
const DOT_ROWS: usize = 4;
const DOT_TOKENS: usize = 3;
/// Vectors of a row that are summed at once.
const SUM_VECTORS: usize = 4;

pub(super) fn dot_rows(floats: Floats, rows: &PanelRows<'_>, token: &[f32]) -> [f32; PANEL_ROWS] {
    check_rows(rows, token.len() * floats.size_bytes());
    let mut products = [0.0; PANEL_ROWS];
    for (rows, products) in rows.as_chunks().0.iter().zip(products.as_chunks_mut().0) {
        let (rows, token, n_columns) = (rows.map(<[u8]>::as_ptr), [token.as_ptr()], token.len());
        // SAFETY: the processor has AVX2, FMA and F16C, or `found` would not show this function; rows and token hold the columns.
        [*products] = unsafe {
            match floats {
                Floats::F32 => tile::<F32, PAIR_ROWS, 1>(rows, token, n_columns),
                Floats::F16 => tile::<F16, PAIR_ROWS, 1>(rows, token, n_columns),
                Floats::BF16 => tile::<BF16, PAIR_ROWS, 1>(rows, token, n_columns),
            }
        };
    }
    products
}

pub(super) fn dots(n_columns: usize, rows: &[f32], tokens: &[f32], products: &mut [f32]) {
    if check_matrices(n_columns, rows, products, tokens) > 0 {
        // SAFETY: as in `dot_rows`.
        unsafe { dots_of(n_columns, rows, tokens, products) }
    }
}

pub(super) fn add_weighted_sums(n_columns: usize, rows: &[f32], weights: &[f32], sums: &mut [f32]) {
    if check_matrices(n_columns, rows, weights, sums) == 0 {
        return;
    }
    // SAFETY: as in `dot_rows`.
    unsafe { weighted_sums_of(n_columns, rows, weights, sums) }
}

pub(super) fn decode(dtype: DType, blocks: &[u8], values: &mut [f32]) {
    // SAFETY: as in `dot_rows`.
    unsafe { decode_with_avx2(dtype, blocks, values) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn decode_with_avx2(dtype: DType, blocks: &[u8], values: &mut [f32]) {
    decode_blocks(dtype, blocks, values);
}

/// Eight values.
///
/// # Safety
/// They can be read.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) unsafe fn load<const FLOATS: u8>(values: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        match FLOATS {
            F32 => _mm256_loadu_ps(values.cast()),
            F16 => _mm256_cvtph_ps(_mm_loadu_si128(values.cast())),
            _ => _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(values.cast())), 16)),
        }
    }
}

/// Fewer than eight values, and zeros behind them.
///
/// # Safety
/// They can be read.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn load_rest<const FLOATS: u8>(values: *const u8, n_values: usize) -> __m256 {
    let mut padded = [0u8; LANES * 4];
    // SAFETY: the caller's promise, and eight values fit at any size.
    unsafe {
        std::ptr::copy_nonoverlapping(values, padded.as_mut_ptr(), n_values.min(LANES) * size_of_value(FLOATS));
        load::<FLOATS>(padded.as_ptr())
    }
}

pub(super) const fn size_of_value(floats: u8) -> usize {
    if floats == F32 { 4 } else { 2 }
}

/// Sums over the columns of `R` rows times `T` tokens. A function of its own, so that all its pointers have registers.
///
/// # Safety
/// `n_columns` values can be read at each pointer.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
unsafe fn tile<const FLOATS: u8, const R: usize, const T: usize>(
    rows: [*const u8; R],
    tokens: [*const f32; T],
    n_columns: usize,
) -> [[f32; R]; T] {
    let mut sums = [[_mm256_setzero_ps(); T]; R];
    let (n_chunks, n_rest) = (n_columns / LANES, n_columns % LANES);
    let ahead = rows[0].wrapping_add(R * n_columns * size_of_value(FLOATS) + AHEAD);
    for chunk in 0..n_chunks {
        if R == PAIR_ROWS {
            // Rows of a pair come from memory, those of other tiles from a cache.
            // SAFETY: a prefetch may name any address.
            unsafe { prefetch_line(chunk_of::<FLOATS>(ahead, PAIR_ROWS * chunk)) };
        }
        let mut values = [_mm256_setzero_ps(); T];
        for (values, token) in values.iter_mut().zip(tokens) {
            // SAFETY: eight values of this chunk are within the columns.
            *values = unsafe { load::<F32>(chunk_of::<F32>(token.cast(), chunk)) };
        }
        for (sums, row) in sums.iter_mut().zip(rows) {
            // SAFETY: as above.
            let weights = unsafe { load::<FLOATS>(chunk_of::<FLOATS>(row, chunk)) };
            for (sum, values) in sums.iter_mut().zip(values) {
                *sum = _mm256_fmadd_ps(weights, values, *sum);
            }
        }
    }
    if n_rest > 0 {
        let mut values = [_mm256_setzero_ps(); T];
        for (values, token) in values.iter_mut().zip(tokens) {
            // SAFETY: `n_rest` values behind the last whole chunk are within the columns.
            *values = unsafe { load_rest::<F32>(chunk_of::<F32>(token.cast(), n_chunks), n_rest) };
        }
        for (sums, row) in sums.iter_mut().zip(rows) {
            // SAFETY: as above.
            let weights = unsafe { load_rest::<FLOATS>(chunk_of::<FLOATS>(row, n_chunks), n_rest) };
            for (sum, values) in sums.iter_mut().zip(values) {
                *sum = _mm256_fmadd_ps(weights, values, *sum);
            }
        }
    }
    let mut products = [[0.0; R]; T];
    for (token, products) in products.iter_mut().enumerate() {
        let ((fours, rest), (sums_of_fours, sums_of_rest)) = (products.as_chunks_mut(), sums.as_chunks());
        for (products, sums) in fours.iter_mut().zip(sums_of_fours) {
            *products = add_lanes_of_four(sums.map(|sums| sums[token]));
        }
        for (product, sums) in rest.iter_mut().zip(sums_of_rest) {
            *product = add_lanes(sums[token]);
        }
    }
    products
}

/// Where the eight values of a chunk begin: without the check for overflow that a sum in the inner loop would pay for.
#[inline]
fn chunk_of<const FLOATS: u8>(values: *const u8, chunk: usize) -> *const u8 {
    values.wrapping_add(chunk.wrapping_mul(LANES * size_of_value(FLOATS)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn add_lanes(sum: __m256) -> f32 {
    let four = add_halves(sum);
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// [`add_lanes`] of each, in the same order.
#[target_feature(enable = "avx2")]
#[inline]
fn add_lanes_of_four([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    let [a, b, c, d] = [add_halves(a), add_halves(b), add_halves(c), add_halves(d)];
    let a_and_b = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    let c_and_d = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    let sums = _mm_add_ps(_mm_movelh_ps(a_and_b, c_and_d), _mm_movehl_ps(c_and_d, a_and_b));
    let mut each = [0.0; 4];
    // SAFETY: the array has four values.
    unsafe { _mm_storeu_ps(each.as_mut_ptr(), sums) };
    each
}

#[target_feature(enable = "avx2")]
#[inline]
fn add_halves(sum: __m256) -> __m128 {
    _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dots_of(n_columns: usize, rows: &[f32], tokens: &[f32], products: &mut [f32]) {
    let n_rows = rows.len() / n_columns;
    let n_tiled = n_rows - n_rows % DOT_ROWS;
    for row in (0..n_tiled).step_by(DOT_ROWS) {
        dots_of_rows::<DOT_ROWS>(n_columns, rows, row, tokens, products);
    }
    for row in n_tiled..n_rows {
        dots_of_rows::<1>(n_columns, rows, row, tokens, products);
    }
}

/// `R` rows from `first_row` on times all tokens.
#[target_feature(enable = "avx2,fma,f16c")]
fn dots_of_rows<const R: usize>(n_columns: usize, rows: &[f32], first_row: usize, tokens: &[f32], products: &mut [f32]) {
    let n_rows = rows.len() / n_columns;
    for (tokens, products) in tokens.chunks(DOT_TOKENS * n_columns).zip(products.chunks_mut(DOT_TOKENS * n_rows)) {
        match tokens.len() / n_columns {
            1 => dots_of_tile::<R, 1>(n_columns, rows, first_row, tokens, products),
            2 => dots_of_tile::<R, 2>(n_columns, rows, first_row, tokens, products),
            _ => dots_of_tile::<R, DOT_TOKENS>(n_columns, rows, first_row, tokens, products),
        }
    }
}

/// `R` rows from `first_row` on times `T` tokens.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dots_of_tile<const R: usize, const T: usize>(n_columns: usize, rows: &[f32], first_row: usize, tokens: &[f32], products: &mut [f32]) {
    let n_rows = rows.len() / n_columns;
    let row_pointers = std::array::from_fn(|row| rows[(first_row + row) * n_columns..][..n_columns].as_ptr().cast());
    let token_pointers = std::array::from_fn(|token| tokens[token * n_columns..][..n_columns].as_ptr());
    // SAFETY: each pointer was made of a slice of `n_columns` values.
    let sums: [[f32; R]; T] = unsafe { tile::<F32, R, T>(row_pointers, token_pointers, n_columns) };
    for (products, sums) in products.chunks_exact_mut(n_rows).zip(sums) {
        products[first_row..][..R].copy_from_slice(&sums);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn weighted_sums_of(n_columns: usize, rows: &[f32], weights: &[f32], sums: &mut [f32]) {
    let n_rows = rows.len() / n_columns;
    let (tiles, rest) = sums.split_at_mut(sums.len() / (DOT_TOKENS * n_columns) * DOT_TOKENS * n_columns);
    let (weights, weights_of_rest) = weights.split_at(tiles.len() / n_columns * n_rows);
    for (sums, weights) in tiles.chunks_exact_mut(DOT_TOKENS * n_columns).zip(weights.chunks_exact(DOT_TOKENS * n_rows)) {
        weighted_sums_of_tokens::<DOT_TOKENS>(n_columns, rows, weights, sums);
    }
    for (sums, weights) in rest.chunks_exact_mut(n_columns).zip(weights_of_rest.chunks_exact(n_rows)) {
        weighted_sums_of_tokens::<1>(n_columns, rows, weights, sums);
    }
}

/// `T` tokens' sums over all columns.
#[target_feature(enable = "avx2,fma,f16c")]
fn weighted_sums_of_tokens<const T: usize>(n_columns: usize, rows: &[f32], weights: &[f32], sums: &mut [f32]) {
    let mut column = 0;
    while column + SUM_VECTORS * LANES <= n_columns {
        weighted_sums_of_tile::<SUM_VECTORS, T>(n_columns, rows, weights, column, sums);
        column += SUM_VECTORS * LANES;
    }
    while column + LANES <= n_columns {
        weighted_sums_of_tile::<1, T>(n_columns, rows, weights, column, sums);
        column += LANES;
    }
    let n_rows = rows.len() / n_columns;
    for column in column..n_columns {
        for (weights, sums) in weights.chunks_exact(n_rows).zip(sums.chunks_exact_mut(n_columns)) {
            let values = rows[column..].iter().step_by(n_columns);
            sums[column] = weights.iter().zip(values).fold(sums[column], |sum, (weight, value)| weight.mul_add(*value, sum));
        }
    }
}

/// `V` vectors of columns from `column` on of `T` tokens' sums.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn weighted_sums_of_tile<const V: usize, const T: usize>(n_columns: usize, rows: &[f32], weights: &[f32], column: usize, sums: &mut [f32]) {
    let n_rows = rows.len() / n_columns;
    let weights: [&[f32]; T] = std::array::from_fn(|token| &weights[token * n_rows..][..n_rows]);
    let place = |token: usize, vector: usize| token * n_columns + column + vector * LANES;
    let mut totals = [[_mm256_setzero_ps(); V]; T];
    for (token, totals) in totals.iter_mut().enumerate() {
        for (vector, total) in totals.iter_mut().enumerate() {
            let begun = &sums[place(token, vector)..][..LANES];
            // SAFETY: the slice has eight values.
            *total = unsafe { _mm256_loadu_ps(begun.as_ptr()) };
        }
    }
    for (row, values) in rows.chunks_exact(n_columns).enumerate() {
        let values = &values[column..][..V * LANES];
        let mut vectors = [_mm256_setzero_ps(); V];
        for (vector, values) in vectors.iter_mut().zip(values.chunks_exact(LANES)) {
            // SAFETY: the slice has eight values.
            *vector = unsafe { _mm256_loadu_ps(values.as_ptr()) };
        }
        for (totals, weights) in totals.iter_mut().zip(weights) {
            let weight = _mm256_set1_ps(weights[row]);
            for (total, vector) in totals.iter_mut().zip(vectors) {
                *total = _mm256_fmadd_ps(weight, vector, *total);
            }
        }
    }
    for (token, totals) in totals.into_iter().enumerate() {
        for (vector, total) in totals.into_iter().enumerate() {
            sums[place(token, vector)..][..LANES].copy_from_slice(&lanes(total));
        }
    }
}
