//! Blocks of small integers with AVX-512 VNNI: one instruction multiplies four pairs in each lane and adds them to its sum.

use std::arch::x86_64::*;

use super::super::{BLOCK_LEN, Blocks, PANEL_ROWS, PanelBlock, PanelRows, Q4_0, Q4_1, Q8_0, TokenBlock, check_rows, check_tokens};
use super::blocks::{add_scaled, lanes, registers, unpack_block};

/// Tokens that share the loads of a panel: enough that no addition waits for the one before.
const TILE: usize = 8;

pub(super) fn multiply_rows(form: Blocks, rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    check_rows(rows, token.len() * form.size_bytes());
    // SAFETY: the processor has AVX-512 VNNI and VL beside AVX2, FMA and F16C, or `found` would not show this function;
    // the rows hold as many blocks as the token.
    unsafe {
        match form {
            Blocks::Q8_0 => rows_of::<Q8_0>(rows, token),
            Blocks::Q4_0 => rows_of::<Q4_0>(rows, token),
            Blocks::Q4_1 => rows_of::<Q4_1>(rows, token),
        }
    }
}

pub(super) fn multiply_panel(form: Blocks, panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [[f32; PANEL_ROWS]]) {
    check_tokens(tokens, panel.len(), products.len());
    // SAFETY: as in `multiply_rows`.
    unsafe {
        match form {
            Blocks::Q8_0 => panel_of::<Q8_0>(panel, tokens, products),
            Blocks::Q4_0 => panel_of::<Q4_0>(panel, tokens, products),
            Blocks::Q4_1 => panel_of::<Q4_1>(panel, tokens, products),
        }
    }
}

/// # Safety
/// Each row holds as many blocks of `FORM` bytes as `token`.
#[target_feature(enable = "avx2,fma,f16c,avx512vnni,avx512vl")]
unsafe fn rows_of<const FORM: usize>(rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    let rows = rows.map(<[u8]>::as_ptr);
    let mut sums = [_mm256_setzero_ps()];
    for (index, token) in token.iter().enumerate() {
        // SAFETY: the caller's promise.
        let block = unsafe { unpack_block::<FORM>(&rows, index) };
        add_block::<FORM, 1>(block.scales, block.minimums, &block.steps, [token], &mut sums);
    }
    lanes(sums[0])
}

#[target_feature(enable = "avx2,fma,f16c,avx512vnni,avx512vl")]
fn panel_of<const FORM: usize>(panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [[f32; PANEL_ROWS]]) {
    let n_blocks = panel.len();
    let (tiles, rest) = products.as_chunks_mut::<TILE>();
    let n_tiled = tiles.len() * TILE;
    for (tile, products) in tiles.iter_mut().enumerate() {
        tile_of::<FORM, TILE>(panel, &tokens[tile * TILE * n_blocks..], products);
    }
    for (index, product) in rest.iter_mut().enumerate() {
        tile_of::<FORM, 1>(panel, &tokens[(n_tiled + index) * n_blocks..], std::array::from_mut(product));
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512vnni,avx512vl")]
fn tile_of<const FORM: usize, const T: usize>(panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [[f32; PANEL_ROWS]; T]) {
    let tokens: [&[TokenBlock]; T] = std::array::from_fn(|token| &tokens[token * panel.len()..][..panel.len()]);
    let mut sums = [_mm256_setzero_ps(); T];
    for (index, block) in panel.iter().enumerate() {
        let (scales, minimums, steps) = registers(block);
        add_block::<FORM, T>(scales, minimums, steps, tokens.map(|token| &token[index]), &mut sums);
    }
    *products = sums.map(|sum| lanes(sum));
}

/// The formula of the module's head for one block of eight rows and `T` tokens.
#[target_feature(enable = "avx2,avx512vnni,avx512vl")]
#[inline]
fn add_block<const FORM: usize, const T: usize>(
    scales: __m256,
    minimums: __m256,
    steps: &[__m256i; BLOCK_LEN / 4],
    tokens: [&TokenBlock; T],
    sums: &mut [__m256; T],
) {
    // The instruction multiplies unsigned with signed: i8 weights go in 128 too large, nibbles of Q4_0 are 8 too large.
    let offset = match FORM {
        Q8_0 => 128,
        Q4_0 => 8,
        _ => 0,
    };
    let mut dots = tokens.map(|token| _mm256_set1_epi32(-offset * token.sum));
    for (weights, columns) in steps.iter().zip((0..BLOCK_LEN).step_by(4)) {
        let weights = if FORM == Q8_0 { _mm256_xor_si256(*weights, _mm256_set1_epi8(-128)) } else { *weights };
        for (dot, token) in dots.iter_mut().zip(tokens) {
            let values = &token.values[columns..];
            let values = _mm256_set1_epi32(i32::from_le_bytes([values[0], values[1], values[2], values[3]].map(i8::cast_unsigned)));
            *dot = _mm256_dpbusd_epi32(*dot, weights, values);
        }
    }
    for ((sum, dot), token) in sums.iter_mut().zip(dots).zip(tokens) {
        *sum = add_scaled::<FORM>(*sum, scales, minimums, dot, token);
    }
}
