//! Blocks of integers with NEON, which every arm64 processor has: eight rows in two vectors of four lanes. Unquantised weights are left
//! to the compiler, which uses NEON without asking.

use std::arch::aarch64::*;

use super::{
    BLOCK_LEN, DType, N_PAIRS, PANEL_ROWS, PanelBlock, PanelRows, Scaling, Simd, TokenBlock, check_rows, layout_of, multiply_in_tiles,
    portable,
};

/// The functions of this file.
pub(super) static SIMD: Simd = Simd { name: "NEON", multiply_rows, multiply_panel, ..portable::SIMD };

/// Tokens that share the loads of a panel: each needs four of the 32 registers.
const TILE: usize = 4;

/// Most parts of a block: 256 values.
const MAX_PARTS: usize = 8;

fn multiply_rows(dtype: DType, rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    let layout = layout_of(dtype);
    check_rows(rows, layout.bytes_of_parts(token.len()));
    let mut sums = [0.0; PANEL_ROWS];
    // Parts that are stored together are unpacked together.
    let mut blocks = [PanelBlock::ZERO; MAX_PARTS];
    let blocks = &mut blocks[..layout.n_parts()];
    for (index, token) in token.chunks_exact(layout.n_parts()).enumerate() {
        portable::unpack(dtype, &rows.map(|row| &row[index * layout.bytes..][..layout.bytes]), blocks);
        // SAFETY: every arm64 processor has NEON.
        [sums] = unsafe { add_blocks(layout.scaling, blocks, [token], [sums]) };
    }
    sums
}

fn multiply_panel(dtype: DType, panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [[f32; PANEL_ROWS]]) {
    let scaling = layout_of(dtype).scaling;
    // SAFETY: as in `multiply_rows`.
    let many = |tokens| unsafe { add_blocks(scaling, panel, tokens, [[0.0; PANEL_ROWS]; TILE]) };
    // SAFETY: as in `multiply_rows`.
    let one = |tokens| unsafe { add_blocks(scaling, panel, tokens, [[0.0; PANEL_ROWS]]) };
    multiply_in_tiles::<TILE>(panel.len(), tokens, products, many, one);
}

/// `sums` and the products of all blocks, by the formula of the module's head. Each token has as many blocks as the panel.
#[target_feature(enable = "neon")]
fn add_blocks<const T: usize>(
    scaling: Scaling,
    panel: &[PanelBlock],
    tokens: [&[TokenBlock]; T],
    sums: [[f32; PANEL_ROWS]; T],
) -> [[f32; PANEL_ROWS]; T] {
    // SAFETY: eight f32 each.
    let mut sums = sums.map(|sums| unsafe { [vld1q_f32(sums.as_ptr()), vld1q_f32(sums.as_ptr().add(4))] });
    for (index, block) in panel.iter().enumerate() {
        let tokens = tokens.map(|token| &token[index]);
        // A scale of their own have the first sixteen columns, or all.
        let n_first = if matches!(scaling, Scaling::Two | Scaling::TwoMinimums) { N_PAIRS / 2 } else { N_PAIRS };
        let dots = dots_of_block(block, 0..n_first, tokens);
        let others = dots_of_block(block, n_first..N_PAIRS, tokens);
        for half in 0..2 {
            // SAFETY: four of eight f32 each.
            let [scales, factors, minimums, other_minimums] =
                block.factors.each_ref().map(|factors| unsafe { vld1q_f32(factors.as_ptr().add(half * 4)) });
            for (((sums, dots), others), token) in sums.iter_mut().zip(dots).zip(others).zip(tokens) {
                let scaled = vmulq_f32(vmulq_f32(scales, vdupq_n_f32(token.scale)), vcvtq_f32_s32(dots[half]));
                let other = || vmulq_f32(vmulq_f32(factors, vdupq_n_f32(token.scale)), vcvtq_f32_s32(others[half]));
                let added = match scaling {
                    Scaling::Two => vaddq_f32(scaled, other()),
                    Scaling::TwoMinimums => {
                        let [first, last] = token.scaled_sums();
                        let minimums = vaddq_f32(vmulq_f32(minimums, vdupq_n_f32(first)), vmulq_f32(other_minimums, vdupq_n_f32(last)));
                        vaddq_f32(vaddq_f32(scaled, other()), minimums)
                    }
                    Scaling::Minimum => vaddq_f32(scaled, vmulq_f32(factors, vdupq_n_f32(token.scaled_sum))),
                    Scaling::One => scaled,
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
fn dots_of_block<const T: usize>(block: &PanelBlock, pairs: std::ops::Range<usize>, tokens: [&TokenBlock; T]) -> [[int32x4_t; 2]; T] {
    let mut dots = tokens.map(|_| [vdupq_n_s32(0); 2]);
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
