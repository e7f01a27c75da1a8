//! Blocks of integers with AVX2: eight rows in the eight 32-bit lanes, a pair of columns in each lane.
//!
//! Vectors are moved in loops rather than by `array::map`: that is compiled without the instructions, so each vector would go
//! through memory and a call.

use std::arch::x86_64::*;

use super::super::{
    BLOCK_LEN, DType, MAX_FACTORS, N_PAIRS, PANEL_ROWS, PanelBlock, PanelRows, Scaling, TokenBlock, check_rows, check_tokens, factors_of,
    layout_of,
};
use super::five_bits::{self, Bits, FIVE, FOUR};
use super::six_bits::{self, BYTES, PARTS};
use crate::dtype::{BlockLayout, blocks};

/// Tokens that share the loads of a panel: as many as leave room for their sums in the sixteen registers.
const TILE: usize = 6;

/// Bytes that a prefetch brings.
const CACHE_LINE: usize = 64;

/// A block of eight rows in registers: see [`PanelBlock`].
pub(super) struct Unpacked {
    pub(super) factors: [__m256; MAX_FACTORS],
    pub(super) pairs: [__m256i; N_PAIRS],
}

/// What functions here are generic over: a dtype of 32 values that has instructions of its own, or all others of one scaling.
type Format = u8;

const Q8_0: Format = 0;
/// Its integers stay 8 too large: see [`OFFSET_OF_Q4_0`].
const Q4_0: Format = 1;
const Q4_1: Format = 2;
const ONE: Format = 3;
const MINIMUM: Format = 4;
const TWO: Format = 5;
const TWO_MINIMUMS: Format = 6;

/// What is added to each integer of Q4_0, for all columns of a block at once.
const OFFSET_OF_Q4_0: i32 = -8;

const fn format_of(dtype: DType, scaling: Scaling) -> Format {
    match (dtype, scaling) {
        (DType::Q8_0, _) => Q8_0,
        (DType::Q4_0, _) => Q4_0,
        (DType::Q4_1, _) => Q4_1,
        (_, Scaling::One) => ONE,
        (_, Scaling::Minimum) => MINIMUM,
        (_, Scaling::Two) => TWO,
        (_, Scaling::TwoMinimums) => TWO_MINIMUMS,
    }
}

/// Bytes of a block of a dtype that has instructions of its own.
const fn bytes_of(format: Format) -> usize {
    match format {
        Q8_0 => blocks::Q8_0.bytes,
        Q4_0 => blocks::Q4_0.bytes,
        _ => blocks::Q4_1.bytes,
    }
}

pub(super) fn multiply_rows(dtype: DType, rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    let layout = layout_of(dtype);
    check_rows(rows, layout.bytes_of_parts(token.len()));
    // SAFETY: the processor has AVX2, FMA and F16C, or `found` would not show this function; the rows hold as many blocks as the token.
    unsafe {
        match format_of(dtype, layout.scaling) {
            Q8_0 => rows_of::<Q8_0>(rows, token),
            Q4_0 => rows_of::<Q4_0>(rows, token),
            Q4_1 => rows_of::<Q4_1>(rows, token),
            _ if dtype == DType::Q4K => rows_of_five_bits::<FOUR>(rows, token),
            _ if dtype == DType::Q5K => rows_of_five_bits::<FIVE>(rows, token),
            _ if dtype == DType::Q6K => rows_of_six_bits(rows, token),
            ONE => rows_of_others::<ONE>(layout, rows, token),
            MINIMUM => rows_of_others::<MINIMUM>(layout, rows, token),
            TWO => rows_of_others::<TWO>(layout, rows, token),
            _ => rows_of_others::<TWO_MINIMUMS>(layout, rows, token),
        }
    }
}

pub(super) fn unpack(dtype: DType, rows: &PanelRows<'_>, panel: &mut [PanelBlock]) {
    let layout = layout_of(dtype);
    check_rows(rows, layout.bytes_of_parts(panel.len()));
    // SAFETY: as in `multiply_rows`; the rows hold as many blocks as the panel.
    unsafe {
        match format_of(dtype, layout.scaling) {
            Q8_0 => unpack_of::<Q8_0>(rows, panel),
            Q4_0 => unpack_of::<Q4_0>(rows, panel),
            Q4_1 => unpack_of::<Q4_1>(rows, panel),
            _ if dtype == DType::Q4K => unpack_five_bits::<FOUR>(rows, panel),
            _ if dtype == DType::Q5K => unpack_five_bits::<FIVE>(rows, panel),
            _ if dtype == DType::Q6K => unpack_six_bits(rows, panel),
            _ => unpack_others(layout, rows, panel),
        }
    }
}

pub(super) fn multiply_panel(dtype: DType, panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [[f32; PANEL_ROWS]]) {
    check_tokens(tokens, panel.len(), products.len());
    // SAFETY: as in `multiply_rows`.
    unsafe {
        match format_of(dtype, layout_of(dtype).scaling) {
            Q4_0 => panel_of::<Q4_0>(panel, tokens, products),
            Q8_0 | ONE => panel_of::<ONE>(panel, tokens, products),
            Q4_1 | MINIMUM => panel_of::<MINIMUM>(panel, tokens, products),
            TWO => panel_of::<TWO>(panel, tokens, products),
            _ => panel_of::<TWO_MINIMUMS>(panel, tokens, products),
        }
    }
}

/// # Safety
/// Each row holds as many blocks of this format as `token`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows_of<const FORMAT: Format>(rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    let rows = rows.map(<[u8]>::as_ptr);
    let mut sums = [_mm256_setzero_ps()];
    let next_panel = rows[0].wrapping_add(PANEL_ROWS * token.len() * const { bytes_of(FORMAT) });
    for (index, token) in token.iter().enumerate() {
        // SAFETY: the caller's promise; a prefetch may name any address.
        let block = unsafe {
            prefetch(next_panel.wrapping_add(index * PANEL_ROWS * const { bytes_of(FORMAT) }), PANEL_ROWS * const { bytes_of(FORMAT) });
            unpack_block::<FORMAT>(&rows, index)
        };
        add_block::<FORMAT, 1>(&block.factors, &block.pairs, [token], &mut sums);
    }
    lanes(sums[0])
}

/// `rows_of` for every other dtype of a scaling.
///
/// # Safety
/// As [`prefetch_line`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows_of_others<const FORMAT: Format>(layout: &BlockLayout, rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    let mut sums = [_mm256_setzero_ps()];
    let part_bytes = layout.bytes / layout.n_parts();
    let next_panel = rows[0].as_ptr().wrapping_add(PANEL_ROWS * layout.bytes_of_parts(token.len()));
    for (index, token) in token.iter().enumerate() {
        // SAFETY: a prefetch may name any address.
        unsafe { prefetch(next_panel.wrapping_add(index * PANEL_ROWS * part_bytes), PANEL_ROWS * part_bytes) };
        let block = unpack_rows(layout, rows, index);
        add_block::<FORMAT, 1>(&block.factors, &block.pairs, [token], &mut sums);
    }
    lanes(sums[0])
}

/// Part `index` of eight rows of any dtype.
#[target_feature(enable = "avx2")]
#[inline]
fn unpack_rows(layout: &BlockLayout, rows: &PanelRows<'_>, index: usize) -> Unpacked {
    let mut values = [[0i8; BLOCK_LEN]; PANEL_ROWS];
    let mut factors = [[0.0; PANEL_ROWS]; MAX_FACTORS];
    for (row, (bytes, values)) in rows.iter().zip(&mut values).enumerate() {
        let block = layout.part(bytes, index);
        *values = block.values;
        for (factors, factor) in factors.iter_mut().zip(factors_of(layout.scaling, &block)) {
            factors[row] = factor;
        }
    }
    // SAFETY: each row has twice sixteen bytes.
    let [first, last] = [0, BLOCK_LEN / 2].map(|begin| unsafe { columns(std::array::from_fn(|row| values[row][begin..].as_ptr().cast())) });
    Unpacked { factors: registers(&factors), pairs: split_bytes(first, last) }
}

/// `unpack_of` for every other dtype.
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_others(layout: &BlockLayout, rows: &PanelRows<'_>, panel: &mut [PanelBlock]) {
    for (index, block) in panel.iter_mut().enumerate() {
        put(block, &unpack_rows(layout, rows, index));
    }
}

/// Asks for what the rows of the next panel will be read from. They follow each other in memory, and the processor's own prefetching
/// loses its way among eight or sixteen streams that jump after every few hundred bytes.
///
/// # Safety
/// As [`prefetch_line`].
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn prefetch(address: *const u8, n_bytes: usize) {
    for line in (0..n_bytes).step_by(CACHE_LINE) {
        // SAFETY: the caller's promise.
        unsafe { prefetch_line(address.wrapping_add(line)) };
    }
}

/// Asks for what stands at an address, and what else the cache holds with it.
///
/// # Safety
/// No address makes it fail; older compilers take the instruction for unsafe all the same.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn prefetch_line(address: *const u8) {
    _mm_prefetch::<_MM_HINT_T0>(address.cast());
}

/// # Safety
/// Each row holds as many blocks of this format as `panel`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_of<const FORMAT: Format>(rows: &PanelRows<'_>, panel: &mut [PanelBlock]) {
    let rows = rows.map(<[u8]>::as_ptr);
    for (index, block) in panel.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        put(block, &unsafe { unpack_block::<FORMAT>(&rows, index) });
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn put(block: &mut PanelBlock, unpacked: &Unpacked) {
    for (factors, vector) in block.factors.iter_mut().zip(unpacked.factors) {
        *factors = lanes(vector);
    }
    for (values, pair) in block.values.iter_mut().zip(unpacked.pairs) {
        // SAFETY: a vector has 32 bytes, as two i16 of eight rows have.
        unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), pair) };
    }
}

/// `rows_of` in Q6_K: four blocks share what is loaded.
///
/// # Safety
/// Each row holds as many eighths of blocks of 210 bytes as `token` has blocks.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows_of_six_bits(rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    let rows = rows.map(<[u8]>::as_ptr);
    let mut sums = [_mm256_setzero_ps()];
    let next_panel = rows[0].wrapping_add(PANEL_ROWS * (token.len() / PARTS) * BYTES);
    for (index, token) in token.as_chunks::<PARTS>().0.iter().enumerate() {
        // SAFETY: the caller's promise; a prefetch may name any address.
        let scales = unsafe {
            prefetch(next_panel.wrapping_add(index * PANEL_ROWS * BYTES), PANEL_ROWS * BYTES);
            six_bits::scales(&rows, index)
        };
        for (n, token) in token.as_chunks::<{ PARTS / 2 }>().0.iter().enumerate() {
            // SAFETY: as above.
            let half = unsafe { six_bits::half(&rows, index, n) };
            for (j, token) in token.iter().enumerate() {
                let block = half.block(&scales, j);
                add_block::<TWO, 1>(&block.factors, &block.pairs, [token], &mut sums);
            }
        }
    }
    lanes(sums[0])
}

/// `unpack_of` in Q6_K.
///
/// # Safety
/// Each row holds as many eighths of blocks of 210 bytes as `panel` has blocks.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_six_bits(rows: &PanelRows<'_>, panel: &mut [PanelBlock]) {
    let rows = rows.map(<[u8]>::as_ptr);
    for (index, blocks) in panel.as_chunks_mut::<PARTS>().0.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let scales = unsafe { six_bits::scales(&rows, index) };
        for (n, blocks) in blocks.as_chunks_mut::<{ PARTS / 2 }>().0.iter_mut().enumerate() {
            // SAFETY: as above.
            let half = unsafe { six_bits::half(&rows, index, n) };
            blocks.iter_mut().enumerate().for_each(|(j, block)| put(block, &half.block(&scales, j)));
        }
    }
}

/// `rows_of` in Q4_K and Q5_K: two parts share what is loaded.
///
/// # Safety
/// Each row holds as many eighths of blocks as `token` has blocks.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows_of_five_bits<const BITS: Bits>(rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    let rows = rows.map(<[u8]>::as_ptr);
    let bytes = PANEL_ROWS * const { five_bits::bytes_of(BITS) };
    let mut sums = [_mm256_setzero_ps()];
    let next_panel = rows[0].wrapping_add(token.len() / five_bits::PARTS * bytes);
    for (index, token) in token.as_chunks::<{ five_bits::PARTS }>().0.iter().enumerate() {
        // SAFETY: the caller's promise; a prefetch may name any address.
        let scales = unsafe {
            prefetch(next_panel.wrapping_add(index * bytes), bytes);
            five_bits::scales::<BITS>(&rows, index)
        };
        for (n, token) in token.as_chunks::<2>().0.iter().enumerate() {
            // SAFETY: as above.
            let parts = unsafe { five_bits::two_parts::<BITS>(&rows, index, n, &scales) };
            for (block, token) in parts.iter().zip(token) {
                add_block::<MINIMUM, 1>(&block.factors, &block.pairs, [token], &mut sums);
            }
        }
    }
    lanes(sums[0])
}

/// `unpack_of` in Q4_K and Q5_K.
///
/// # Safety
/// Each row holds as many eighths of blocks as `panel` has blocks.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_five_bits<const BITS: Bits>(rows: &PanelRows<'_>, panel: &mut [PanelBlock]) {
    let rows = rows.map(<[u8]>::as_ptr);
    for (index, blocks) in panel.as_chunks_mut::<{ five_bits::PARTS }>().0.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let scales = unsafe { five_bits::scales::<BITS>(&rows, index) };
        for (n, blocks) in blocks.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            // SAFETY: as above.
            let parts = unsafe { five_bits::two_parts::<BITS>(&rows, index, n, &scales) };
            blocks.iter_mut().zip(&parts).for_each(|(block, part)| put(block, part));
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn panel_of<const FORMAT: Format>(panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [[f32; PANEL_ROWS]]) {
    let n_blocks = panel.len();
    let (tiles, rest) = products.as_chunks_mut::<TILE>();
    let n_tiled = tiles.len() * TILE;
    for (tile, products) in tiles.iter_mut().enumerate() {
        tile_of::<FORMAT, TILE>(panel, &tokens[tile * TILE * n_blocks..], products);
    }
    for (index, product) in rest.iter_mut().enumerate() {
        tile_of::<FORMAT, 1>(panel, &tokens[(n_tiled + index) * n_blocks..], std::array::from_mut(product));
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn tile_of<const FORMAT: Format, const T: usize>(panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [[f32; PANEL_ROWS]; T]) {
    let tokens: [&[TokenBlock]; T] = std::array::from_fn(|token| &tokens[token * panel.len()..][..panel.len()]);
    let mut sums = [_mm256_setzero_ps(); T];
    for (index, block) in panel.iter().enumerate() {
        add_block::<FORMAT, T>(&registers(&block.factors), pairs_of(block), tokens.map(|token| &token[index]), &mut sums);
    }
    for (products, sum) in products.iter_mut().zip(sums) {
        *products = lanes(sum);
    }
}

/// The factors as vectors.
#[target_feature(enable = "avx2")]
#[inline]
fn registers(factors: &[[f32; PANEL_ROWS]; MAX_FACTORS]) -> [__m256; MAX_FACTORS] {
    let mut vectors = [_mm256_setzero_ps(); MAX_FACTORS];
    for (vector, factors) in vectors.iter_mut().zip(factors) {
        // SAFETY: eight f32.
        *vector = unsafe { _mm256_loadu_ps(factors.as_ptr()) };
    }
    vectors
}

/// The pairs as vectors, which stay in memory until they are needed.
fn pairs_of(block: &PanelBlock) -> &[__m256i; N_PAIRS] {
    // SAFETY: sixteen times 32 bytes that begin a multiple of 32 bytes into a block whose alignment is 32.
    unsafe { &*block.values.as_ptr().cast() }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn lanes(vector: __m256) -> [f32; PANEL_ROWS] {
    let mut values = [0.0; PANEL_ROWS];
    // SAFETY: a vector has eight f32.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), vector) };
    values
}

/// The formula of the module's head for one block of eight rows and `T` tokens, with the roundings that it names: no fused multiplication.
#[target_feature(enable = "avx2")]
#[inline]
fn add_block<const FORMAT: Format, const T: usize>(
    [scales, others, minimums, other_minimums]: &[__m256; MAX_FACTORS],
    pairs: &[__m256i; N_PAIRS],
    tokens: [&TokenBlock; T],
    sums: &mut [__m256; T],
) {
    if FORMAT == TWO || FORMAT == TWO_MINIMUMS {
        let (first, last) = pairs.split_at(N_PAIRS / 2);
        let (first, last) = (dots::<T>(0, first, 0, tokens), dots::<T>(0, last, BLOCK_LEN / 2, tokens));
        for (((sum, first), last), token) in sums.iter_mut().zip(first).zip(last).zip(tokens) {
            let mut added = _mm256_add_ps(scaled(*scales, first, token), scaled(*others, last, token));
            if FORMAT == TWO_MINIMUMS {
                let [first, last] = token.scaled_sums();
                let first = _mm256_mul_ps(*minimums, _mm256_set1_ps(first));
                added = _mm256_add_ps(added, _mm256_add_ps(first, _mm256_mul_ps(*other_minimums, _mm256_set1_ps(last))));
            }
            *sum = _mm256_add_ps(*sum, added);
        }
        return;
    }
    let dots = dots::<T>(if FORMAT == Q4_0 { OFFSET_OF_Q4_0 } else { 0 }, pairs, 0, tokens);
    for ((sum, dot), token) in sums.iter_mut().zip(dots).zip(tokens) {
        let mut added = scaled(*scales, dot, token);
        if FORMAT == Q4_1 || FORMAT == MINIMUM {
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

/// # Safety
/// Each row holds more than `index` blocks of the format.
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn unpack_block<const FORMAT: Format>(rows: &[*const u8; PANEL_ROWS], index: usize) -> Unpacked {
    let zero = _mm256_setzero_ps();
    // SAFETY: below, no load leaves the block: 2 or 4 bytes at its begin, 16 or 32 behind them.
    let at = |row: usize, offset: usize| unsafe { rows[row].add(index * const { bytes_of(FORMAT) } + offset) };
    if FORMAT == Q4_1 {
        // SAFETY: as above.
        let [a, b, c, d, e, f, g, h] = std::array::from_fn(|row| unsafe { at(row, 0).cast::<i32>().read_unaligned() });
        let (scales, minimums) = half_pairs(_mm256_setr_epi32(a, b, c, d, e, f, g, h));
        // SAFETY: as above.
        let nibbles = unsafe { columns(std::array::from_fn(|row| at(row, 4))) };
        return Unpacked { factors: [scales, minimums, zero, zero], pairs: split_nibbles(nibbles) };
    }
    // SAFETY: as above.
    let scales = halves(std::array::from_fn(|row| unsafe { at(row, 0).cast::<i16>().read_unaligned() }));
    // SAFETY: as above.
    let first = unsafe { columns(std::array::from_fn(|row| at(row, 2))) };
    let pairs = if FORMAT == Q8_0 {
        // SAFETY: as above.
        let second = unsafe { columns(std::array::from_fn(|row| at(row, 18))) };
        split_bytes(first, second)
    } else {
        split_nibbles(first)
    };
    Unpacked { factors: [scales, zero, zero, zero], pairs }
}

/// Bytes of even and of odd place as i16. Low nibbles are columns 0 to 15, high ones 16 to 31.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn split_nibbles([a, b, c, d]: [__m256i; 4]) -> [__m256i; N_PAIRS] {
    let mask = _mm256_set1_epi16(15);
    let mut pairs = [_mm256_setzero_si256(); N_PAIRS];
    let (low, high) = pairs.split_at_mut(N_PAIRS / 2);
    let both = low.as_chunks_mut().0.iter_mut().zip(high.as_chunks_mut().0);
    for (bytes, (low, high)) in [a, b, c, d].into_iter().zip(both) {
        *low = [_mm256_and_si256(bytes, mask), _mm256_and_si256(_mm256_srli_epi16(bytes, 8), mask)];
        *high = [_mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask), _mm256_srli_epi16(bytes, 12)];
    }
    pairs
}

/// Bytes of even and of odd place as i16, with their signs.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn split_bytes([a, b, c, d]: [__m256i; 4], [e, f, g, h]: [__m256i; 4]) -> [__m256i; N_PAIRS] {
    let mut pairs = [_mm256_setzero_si256(); N_PAIRS];
    for (pair, bytes) in pairs.as_chunks_mut().0.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *pair = [_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)];
    }
    pairs
}

/// Sixteen bytes of each of eight rows, turned: vector `i` has bytes `4·i` to `4·i + 3` of row `r` in lane `r`.
///
/// # Safety
/// Sixteen bytes can be read at each pointer.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn columns(rows: [*const u8; PANEL_ROWS]) -> [__m256i; 4] {
    // SAFETY: the caller's promise.
    let pair = |row: usize| unsafe { _mm256_loadu2_m128i(rows[row + 4].cast(), rows[row].cast()) };
    let (a, b, c, d) = (pair(0), pair(1), pair(2), pair(3));
    let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab_low, cd_low),
        _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn halves([a, b, c, d, e, f, g, h]: [i16; PANEL_ROWS]) -> __m256 {
    _mm256_cvtph_ps(_mm_setr_epi16(a, b, c, d, e, f, g, h))
}

/// The lower and the upper halves of eight words.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn half_pairs(words: __m256i) -> (__m256, __m256) {
    let lower = _mm256_and_si256(words, _mm256_set1_epi32(0xFFFF));
    let packed = _mm256_packus_epi32(lower, _mm256_srli_epi32(words, 16)); // lower a–d, upper a–d, lower e–h, upper e–h
    let packed = _mm256_permute4x64_epi64(packed, 0b11_01_10_00);
    (_mm256_cvtph_ps(_mm256_castsi256_si128(packed)), _mm256_cvtph_ps(_mm256_extracti128_si256(packed, 1)))
}
