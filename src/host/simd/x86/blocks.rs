//! Blocks of integers with AVX2: eight rows in the eight 32-bit lanes, a pair of columns in each lane. A dtype's
//! [`Format`] unpacks them, [`sums`](super::sums) multiplies what it unpacked.
//!
//! Vectors are moved in loops rather than by `array::map`: that is compiled without the instructions, so each vector would go
//! through memory and a call.

use std::arch::x86_64::*;

use super::super::{
    BLOCK_LEN, DType, MAX_FACTORS, PANEL_ROWS, PanelBlock, PanelRows, TokenBlock, check_rows, check_tokens, factors_of, layout_of,
};
use super::columns::{Blocks, columns, lanes, registers, signed_pairs};
use super::formats::{Format, Unpacked, functions_of};
use super::sums::{self, Minimum, One, Sum, Two, TwoMinimums, add_block};
use crate::dtype::{BlockLayout, Scaling};

/// Bytes that a prefetch brings.
const CACHE_LINE: usize = 64;

pub(super) fn multiply_rows(dtype: DType, rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    let layout = layout_of(dtype);
    check_rows(rows, layout.bytes_of_parts(token.len()));
    // SAFETY: the processor has AVX2, FMA and F16C, or `found` would not show this function; the rows hold as many blocks as the token.
    unsafe {
        match (functions_of(dtype), layout.scaling) {
            (Some(functions), _) => (functions.multiply_rows)(rows, token),
            (None, Scaling::One) => multiply_rows_of_others::<One<0>>(layout, rows, token),
            (None, Scaling::Minimum) => multiply_rows_of_others::<Minimum>(layout, rows, token),
            (None, Scaling::Two) => multiply_rows_of_others::<Two>(layout, rows, token),
            (None, Scaling::TwoMinimums) => multiply_rows_of_others::<TwoMinimums>(layout, rows, token),
        }
    }
}

pub(super) fn unpack(dtype: DType, rows: &PanelRows<'_>, panel: &mut [PanelBlock]) {
    let layout = layout_of(dtype);
    check_rows(rows, layout.bytes_of_parts(panel.len()));
    // SAFETY: as in `multiply_rows`; the rows hold as many blocks as the panel.
    unsafe {
        match functions_of(dtype) {
            Some(functions) => (functions.unpack)(rows, panel),
            None => unpack_others(layout, rows, panel),
        }
    }
}

pub(super) fn multiply_panel(dtype: DType, panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [[f32; PANEL_ROWS]]) {
    check_tokens(tokens, panel.len(), products.len());
    // SAFETY: as in `multiply_rows`.
    unsafe {
        match (functions_of(dtype), layout_of(dtype).scaling) {
            (Some(functions), _) => (functions.multiply_panel)(panel, tokens, products),
            (None, Scaling::One) => sums::multiply_panel::<One<0>>(panel, tokens, products),
            (None, Scaling::Minimum) => sums::multiply_panel::<Minimum>(panel, tokens, products),
            (None, Scaling::Two) => sums::multiply_panel::<Two>(panel, tokens, products),
            (None, Scaling::TwoMinimums) => sums::multiply_panel::<TwoMinimums>(panel, tokens, products),
        }
    }
}

/// # Safety
/// Each row holds as many parts of this format as `token` has blocks.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply_rows_of<F: Format>(rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    let rows = rows.map(<[u8]>::as_ptr);
    let mut sums = [_mm256_setzero_ps()];
    let next_panel = rows[0].wrapping_add(PANEL_ROWS * F::LAYOUT.bytes_of_parts(token.len()));
    for (index, token) in token.chunks_exact(const { F::LAYOUT.n_parts() }).enumerate() {
        // SAFETY: a prefetch may name any address.
        unsafe { prefetch(next_panel.wrapping_add(index * PANEL_ROWS * F::LAYOUT.bytes), PANEL_ROWS * F::LAYOUT.bytes) };
        let mut add =
            |part: usize, unpacked: Unpacked| add_block::<F::Sum, 1>(&unpacked.factors, &unpacked.pairs, [&token[part]], &mut sums);
        // SAFETY: the caller's promise.
        unsafe { each_part::<F>(&Blocks { rows: &rows, begin: index * F::LAYOUT.bytes }, &mut add) };
    }
    lanes(sums[0])
}

/// # Safety
/// Each row holds as many parts of this format as `panel` has blocks.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unpack_of<F: Format>(rows: &PanelRows<'_>, panel: &mut [PanelBlock]) {
    let rows = rows.map(<[u8]>::as_ptr);
    for (index, panel) in panel.chunks_exact_mut(const { F::LAYOUT.n_parts() }).enumerate() {
        let mut put = |part: usize, unpacked: Unpacked| put(&mut panel[part], &unpacked);
        // SAFETY: the caller's promise.
        unsafe { each_part::<F>(&Blocks { rows: &rows, begin: index * F::LAYOUT.bytes }, &mut put) };
    }
}

/// Gives `to` each part of these blocks. Parts of a group are written one by one: shifts take constants.
///
/// # Safety
/// The rows hold the blocks.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn each_part<F: Format>(blocks: &Blocks<'_>, to: &mut impl FnMut(usize, Unpacked)) {
    const { assert!(F::LAYOUT.scaling as u8 == F::Sum::SCALING as u8 && F::LAYOUT.n_parts().is_multiple_of(F::GROUP)) };
    // SAFETY: the caller's promise.
    unsafe {
        let shared = F::shared(blocks);
        for n in 0..F::LAYOUT.n_parts() / F::GROUP {
            let loaded = F::load(blocks, n);
            to(n * F::GROUP, F::part::<0>(&shared, &loaded, n));
            if F::GROUP > 1 {
                to(n * F::GROUP + 1, F::part::<1>(&shared, &loaded, n));
            }
            if F::GROUP > 2 {
                to(n * F::GROUP + 2, F::part::<2>(&shared, &loaded, n));
                to(n * F::GROUP + 3, F::part::<3>(&shared, &loaded, n));
            }
        }
    }
}

/// `multiply_rows_of` for every dtype without instructions of its own.
///
/// # Safety
/// As [`prefetch_line`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_rows_of_others<S: Sum>(layout: &BlockLayout, rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    let mut sums = [_mm256_setzero_ps()];
    let part_bytes = layout.bytes / layout.n_parts();
    let next_panel = rows[0].as_ptr().wrapping_add(PANEL_ROWS * layout.bytes_of_parts(token.len()));
    for (index, token) in token.iter().enumerate() {
        // SAFETY: a prefetch may name any address.
        unsafe { prefetch(next_panel.wrapping_add(index * PANEL_ROWS * part_bytes), PANEL_ROWS * part_bytes) };
        let block = unpack_rows(layout, rows, index);
        add_block::<S, 1>(&block.factors, &block.pairs, [token], &mut sums);
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
    let [[a, b, c, d], [e, f, g, h]] =
        [0, BLOCK_LEN / 2].map(|begin| unsafe { columns(std::array::from_fn(|row| values[row][begin..].as_ptr().cast())) });
    Unpacked { factors: registers(&factors), pairs: signed_pairs(&[a, b, c, d, e, f, g, h]) }
}

/// `unpack_of` for every dtype without instructions of its own.
///
/// # Safety
/// The processor has the instructions.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_others(layout: &BlockLayout, rows: &PanelRows<'_>, panel: &mut [PanelBlock]) {
    for (index, block) in panel.iter_mut().enumerate() {
        put(block, &unpack_rows(layout, rows, index));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A dtype without instructions of its own takes this way; here each that has some takes it too.
    #[test]
    fn any_layout_is_multiplied_as_by_its_own_instructions() {
        if super::super::found().next().is_none() {
            return;
        }
        for dtype in DType::ALL {
            let (Some(layout), Some(own)) = (dtype.blocks(), functions_of(dtype)) else { continue };
            // All bits vary; some scales are no numbers, which are no numbers either way.
            let bytes: Vec<u8> = (0..PANEL_ROWS * 3 * layout.bytes).map(|index| (index * 151 + index / 7 * 29) as u8).collect();
            let rows: PanelRows<'_> = std::array::from_fn(|row| &bytes[row * 3 * layout.bytes..][..3 * layout.bytes]);
            let mut token = vec![TokenBlock { scale: 0.5, ..TokenBlock::ZERO }; 3 * layout.n_parts()];
            for (index, block) in token.iter_mut().enumerate() {
                block.values = std::array::from_fn(|k| ((index * 977 + k * 2503) % 60_001) as i16);
                block.sum = block.values.iter().map(|value| i32::from(*value)).sum();
                block.scaled_sum = block.scale * block.sum as f32;
            }
            // SAFETY: the processor has the instructions; each row holds three blocks, as the token does.
            let (own, other) = unsafe {
                let other = match layout.scaling {
                    Scaling::One => multiply_rows_of_others::<One<0>>(layout, &rows, &token),
                    Scaling::Minimum => multiply_rows_of_others::<Minimum>(layout, &rows, &token),
                    Scaling::Two => multiply_rows_of_others::<Two>(layout, &rows, &token),
                    Scaling::TwoMinimums => multiply_rows_of_others::<TwoMinimums>(layout, &rows, &token),
                };
                ((own.multiply_rows)(&rows, &token), other)
            };
            let is_same = |(own, other): (&f32, &f32)| own.to_bits() == other.to_bits() || own.is_nan() && other.is_nan();
            assert!(own.iter().zip(&other).all(is_same), "{dtype}: {own:?}, {other:?}");
        }
    }
}
