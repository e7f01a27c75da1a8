//! Blocks of integers with NEON, which every arm64 processor has: eight rows in two vectors of four lanes. Plain numbers are left
//! to the compiler, which uses NEON without asking.

use std::arch::aarch64::*;

use super::{
    BLOCK_LEN, Blocks, N_PAIRS, PANEL_ROWS, PanelBlock, PanelRows, SUPER_BLOCKS, Simd, TokenBlock, check_rows, check_tokens, portable,
};

/// The functions of this file.
pub(super) static SIMD: Simd = Simd { name: "NEON", multiply_rows, multiply_panel, ..portable::SIMD };

/// Tokens that share the loads of a panel: each needs four of the 32 registers.
const TILE: usize = 4;

fn multiply_rows(form: Blocks, rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    check_rows(rows, form.row_bytes(token.len()));
    let mut sums = [0.0; PANEL_ROWS];
    // Blocks that are stored together are unpacked together.
    let n_together = if form == Blocks::Q6K { SUPER_BLOCKS } else { 1 };
    let mut blocks = [PanelBlock::ZERO; SUPER_BLOCKS];
    let (size, blocks) = (form.row_bytes(n_together), &mut blocks[..n_together]);
    for (index, token) in token.chunks_exact(n_together).enumerate() {
        portable::unpack(form, &rows.map(|row| &row[index * size..][..size]), blocks);
        // SAFETY: every arm64 processor has NEON.
        [sums] = unsafe { add_blocks(form, blocks, [token], [sums]) };
    }
    sums
}

fn multiply_panel(form: Blocks, panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [[f32; PANEL_ROWS]]) {
    let n_blocks = panel.len();
    check_tokens(tokens, n_blocks, products.len());
    let (tiles, rest) = products.as_chunks_mut::<TILE>();
    let n_tiled = tiles.len() * TILE;
    let token_at = |token: usize| &tokens[token * n_blocks..][..n_blocks];
    for (tile, products) in tiles.iter_mut().enumerate() {
        let tokens = std::array::from_fn(|token| token_at(tile * TILE + token));
        // SAFETY: as in `multiply_rows`.
        *products = unsafe { add_blocks(form, panel, tokens, [[0.0; PANEL_ROWS]; TILE]) };
    }
    for (index, product) in rest.iter_mut().enumerate() {
        // SAFETY: as in `multiply_rows`.
        [*product] = unsafe { add_blocks(form, panel, [token_at(n_tiled + index)], [[0.0; PANEL_ROWS]]) };
    }
}

/// `sums` and the products of all blocks, by the formula of the module's head. Each token has as many blocks as the panel.
#[target_feature(enable = "neon")]
fn add_blocks<const T: usize>(
    form: Blocks,
    panel: &[PanelBlock],
    tokens: [&[TokenBlock]; T],
    sums: [[f32; PANEL_ROWS]; T],
) -> [[f32; PANEL_ROWS]; T] {
    // SAFETY: eight f32 each.
    let mut sums = sums.map(|sums| unsafe { [vld1q_f32(sums.as_ptr()), vld1q_f32(sums.as_ptr().add(4))] });
    for (index, block) in panel.iter().enumerate() {
        let tokens = tokens.map(|token| &token[index]);
        let offset = if form == Blocks::Q4_0 { -8 } else { 0 };
        // Of Q6_K the first sixteen columns have a scale of their own.
        let n_first = if form == Blocks::Q6K { N_PAIRS / 2 } else { N_PAIRS };
        let dots = dots_of_block(offset, block, 0..n_first, tokens);
        let others = dots_of_block(0, block, n_first..N_PAIRS, tokens);
        for half in 0..2 {
            // SAFETY: four of eight f32 each.
            let (scales, minimums) =
                unsafe { (vld1q_f32(block.scales.as_ptr().add(half * 4)), vld1q_f32(block.minimums.as_ptr().add(half * 4))) };
            for (((sums, dots), others), token) in sums.iter_mut().zip(dots).zip(others).zip(tokens) {
                let scaled = vmulq_f32(vmulq_f32(scales, vdupq_n_f32(token.scale)), vcvtq_f32_s32(dots[half]));
                let added = match form {
                    Blocks::Q6K => vaddq_f32(scaled, vmulq_f32(vmulq_f32(minimums, vdupq_n_f32(token.scale)), vcvtq_f32_s32(others[half]))),
                    Blocks::Q4_1 => vaddq_f32(scaled, vmulq_f32(minimums, vdupq_n_f32(token.scaled_sum))),
                    Blocks::Q8_0 | Blocks::Q4_0 => scaled,
                };
                sums[half] = vaddq_f32(sums[half], added);
            }
        }
    }
    sums.map(|[low, high]| {
        let mut values = [0.0; PANEL_ROWS];
        // SAFETY: two times four f32.
        unsafe {
            vst1q_f32(values.as_mut_ptr(), low);
            vst1q_f32(values.as_mut_ptr().add(4), high);
        }
        values
    })
}

/// The integers of these pairs of columns of one block: eight rows for each token.
#[target_feature(enable = "neon")]
#[inline]
fn dots_of_block<const T: usize>(
    offset: i32,
    block: &PanelBlock,
    pairs: std::ops::Range<usize>,
    tokens: [&TokenBlock; T],
) -> [[int32x4_t; 2]; T] {
    let mut dots = tokens.map(|token| [vdupq_n_s32(offset * token.sum); 2]);
    for (weights, values) in block.values[pairs.clone()].iter().zip((2 * pairs.start..BLOCK_LEN).step_by(2)) {
        // SAFETY: eight times two i16; the load separates first and second columns.
        let int16x8x2_t(first, second) = unsafe { vld2q_s16(weights.as_flattened().as_ptr()) };
        for (dots, token) in dots.iter_mut().zip(tokens) {
            let (a, b) = (token.values[values], token.values[values + 1]);
            dots[0] = vmlal_n_s16(vmlal_n_s16(dots[0], vget_low_s16(first), a), vget_low_s16(second), b);
            dots[1] = vmlal_high_n_s16(vmlal_high_n_s16(dots[1], first, a), second, b);
        }
    }
    dots
}
