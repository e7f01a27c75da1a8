//! Panels of unquantised weights times tiles of tokens, with AVX2 and FMA: sixteen rows in the lanes of two vectors, six tokens' values one
//! by one.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::{
    FLOAT_PANEL_ROWS, Floats, LANES, PanelColumn, TILE_TOKENS, TileColumn, check_panel, check_rows, check_tile, column_places,
};
use super::blocks::prefetch;
use super::floats::{BF16, F16, F32, load, load_rest, size_of_value};

/// Vectors of rows in a column of a panel.
const HALVES: usize = FLOAT_PANEL_ROWS / LANES;

/// Sums of sixteen rows for each of `T` tokens.
type Sums<const T: usize> = [[__m256; HALVES]; T];

pub(super) fn arrange(floats: Floats, n_columns: usize, rows: &[&[u8]; FLOAT_PANEL_ROWS], panel: &mut [PanelColumn]) {
    check_rows(rows, n_columns * floats.size_bytes());
    check_panel(panel, n_columns);
    let rows = rows.map(<[u8]>::as_ptr);
    // SAFETY: the processor has AVX2, FMA and F16C, or `found` would not show this function; each row holds the columns.
    unsafe {
        match floats {
            Floats::F32 => arrange_of::<F32>(n_columns, &rows, panel),
            Floats::F16 => arrange_of::<F16>(n_columns, &rows, panel),
            Floats::BF16 => arrange_of::<BF16>(n_columns, &rows, panel),
        }
    }
}

pub(super) fn multiply_tile(panel: &[PanelColumn], tile: &[TileColumn], products: &mut [[f32; FLOAT_PANEL_ROWS]]) {
    let n_chunks = check_tile(panel, tile, products);
    let (panel, tile) = (panel.as_ptr(), tile.as_ptr());
    // SAFETY: as in `arrange`; panel and tile hold eight times `n_chunks` columns.
    unsafe {
        match products.len() {
            0 => {}
            1 => multiply_tokens::<1>(n_chunks, panel, tile, products),
            2 => multiply_tokens::<2>(n_chunks, panel, tile, products),
            3 => multiply_tokens::<3>(n_chunks, panel, tile, products),
            4 => multiply_tokens::<4>(n_chunks, panel, tile, products),
            5 => multiply_tokens::<5>(n_chunks, panel, tile, products),
            _ => multiply_tokens::<TILE_TOKENS>(n_chunks, panel, tile, products),
        }
    }
}

/// # Safety
/// `n_columns` values can be read at each of `rows`.
#[target_feature(enable = "avx2,f16c")]
unsafe fn arrange_of<const FLOATS: u8>(n_columns: usize, rows: &[*const u8; FLOAT_PANEL_ROWS], panel: &mut [PanelColumn]) {
    let next_panel = rows[0].wrapping_add(FLOAT_PANEL_ROWS * n_columns * size_of_value(FLOATS));
    let chunk_bytes = FLOAT_PANEL_ROWS * LANES * size_of_value(FLOATS);
    for chunk in 0..n_columns.div_ceil(LANES) {
        // SAFETY: a prefetch may name any address.
        unsafe { prefetch(next_panel.wrapping_add(chunk * chunk_bytes), chunk_bytes) };
        let n_values = LANES.min(n_columns - chunk * LANES);
        for (half, rows) in rows.as_chunks::<LANES>().0.iter().enumerate() {
            let mut values = [_mm256_setzero_ps(); LANES];
            for (values, row) in values.iter_mut().zip(rows) {
                let from = row.wrapping_add(chunk * LANES * size_of_value(FLOATS));
                // SAFETY: a chunk's values are within the columns.
                *values = unsafe { if n_values == LANES { load::<FLOATS>(from) } else { load_rest::<FLOATS>(from, n_values) } };
            }
            transpose(&mut values);
            for (values, place) in values.into_iter().zip(column_places(n_columns, chunk)) {
                let column = &mut panel[place].0[half * LANES..][..LANES];
                // SAFETY: the slice has eight values.
                unsafe { _mm256_storeu_ps(column.as_mut_ptr(), values) };
            }
        }
    }
}

/// Eight vectors of eight: value `i` of vector `j` becomes value `j` of vector `i`.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose(vectors: &mut [__m256; LANES]) {
    let [a, b, c, d, e, f, g, h] = *vectors;
    let of_four_rows = |a, b, c, d| {
        let (ab_low, cd_low) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0x44>(ab_low, cd_low),
            _mm256_shuffle_ps::<0xEE>(ab_low, cd_low),
            _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
            _mm256_shuffle_ps::<0xEE>(ab_high, cd_high),
        ]
    };
    // Value by value: of four rows 0 to 3 in the lower half, 4 to 7 in the upper.
    let (first, last) = (of_four_rows(a, b, c, d), of_four_rows(e, f, g, h));
    for value in 0..LANES / 2 {
        vectors[value] = _mm256_permute2f128_ps::<0x20>(first[value], last[value]);
        vectors[value + LANES / 2] = _mm256_permute2f128_ps::<0x31>(first[value], last[value]);
    }
}

/// # Safety
/// Eight times `n_chunks` columns can be read at `panel` and `tile`.
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_tokens<const T: usize>(
    n_chunks: usize,
    panel: *const PanelColumn,
    tile: *const TileColumn,
    products: &mut [[f32; FLOAT_PANEL_ROWS]],
) {
    const { assert!(T <= TILE_TOKENS) };
    // What waits for its neighbour: sums of four lanes, of two, of one.
    let mut waiting = [MaybeUninit::<Sums<T>>::uninit(); 3];
    for lane in 0..LANES {
        let begin = lane * n_chunks;
        // SAFETY: the caller's promise.
        let mut sums = unsafe { partial_sums::<T>(n_chunks, panel.wrapping_add(begin), tile.wrapping_add(begin)) };
        // One waits for each bit of `lane` that is set, and each that is set at its end completes a pair.
        let mut n_waiting = lane.count_ones() as usize;
        for _ in 0..lane.trailing_ones() {
            n_waiting -= 1;
            // SAFETY: the lane with this bit cleared and those below it set wrote here.
            add(unsafe { waiting[n_waiting].assume_init_ref() }, &mut sums);
        }
        if lane + 1 < LANES {
            waiting[n_waiting].write(sums);
        } else {
            for (products, sums) in products.iter_mut().zip(sums) {
                for (products, sums) in products.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                    // SAFETY: the chunk has eight values.
                    unsafe { _mm256_storeu_ps(products.as_mut_ptr(), sums) };
                }
            }
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn add<const T: usize>(waiting: &Sums<T>, sums: &mut Sums<T>) {
    for (sum, waiting) in sums.as_flattened_mut().iter_mut().zip(waiting.as_flattened()) {
        *sum = _mm256_add_ps(*waiting, *sum);
    }
}

/// One partial sum of each row and token. Two columns in a turn: the registers are full, but what counts the turns is not free.
///
/// # Safety
/// `n_chunks` columns can be read at `panel` and `tile`, and have `T` tokens.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn partial_sums<const T: usize>(n_chunks: usize, panel: *const PanelColumn, tile: *const TileColumn) -> Sums<T> {
    let mut sums = [[_mm256_setzero_ps(); HALVES]; T];
    let mut chunk = 0;
    while chunk + 2 <= n_chunks {
        // SAFETY: the caller's promise.
        unsafe {
            add_column(panel.wrapping_add(chunk), tile.wrapping_add(chunk), &mut sums);
            add_column(panel.wrapping_add(chunk + 1), tile.wrapping_add(chunk + 1), &mut sums);
        }
        chunk += 2;
    }
    if chunk < n_chunks {
        // SAFETY: the caller's promise.
        unsafe { add_column(panel.wrapping_add(chunk), tile.wrapping_add(chunk), &mut sums) };
    }
    sums
}

/// # Safety
/// A column can be read at `panel` and `tile`, and has `T` tokens.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn add_column<const T: usize>(panel: *const PanelColumn, tile: *const TileColumn, sums: &mut Sums<T>) {
    let (rows, values) = (panel.cast::<__m256>(), tile.cast::<f32>());
    // SAFETY: the caller's promise; a column begins at a multiple of 64 bytes.
    let (lower, upper) = unsafe { (_mm256_load_ps(rows.cast()), _mm256_load_ps(rows.wrapping_add(1).cast())) };
    for (token, sums) in sums.iter_mut().enumerate() {
        // SAFETY: as above.
        let value = unsafe { _mm256_broadcast_ss(&*values.wrapping_add(token)) };
        sums[0] = _mm256_fmadd_ps(lower, value, sums[0]);
        sums[1] = _mm256_fmadd_ps(upper, value, sums[1]);
    }
}
