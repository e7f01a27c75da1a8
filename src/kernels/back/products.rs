//! Back through matrix products: to what they read, with the transposed weight as it is stored, and to a matrix that is trained.

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::kernels::matmul::{Params, WEIGHT_ALIGNMENT};
use crate::kernels::{ADD_OUTER, Binding, MATMUL_BACK, dispatch, dispatch_of_matrix, f32_bytes, fold, fold_items, require};

/// Tokens and columns of a workgroup.
const TILE: u32 = 32;

/// Buffers of `matmul_back`.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_rows, n_columns]` as stored.
    pub weight: Binding<'a>,
    /// `[n_tokens, output_stride]`: the gradient of the product's output.
    pub upward: Binding<'a>,
    /// `[n_tokens, n_columns]`, added to.
    pub into: Binding<'a>,
}

/// Makes the dispatch, with the params of the product that it goes back through.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or rows are no whole number of blocks.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let stem = MATMUL_BACK.stem;
    let row_bytes = params.row_bytes().unwrap_or(0);
    require(gpu, stem, row_bytes > 0 && params.n_tokens > 0 && params.n_rows > 0, "empty, or its rows are no whole number of blocks")?;
    let row_end = params.output_row_begin.checked_add(params.n_rows);
    require(gpu, stem, row_end.is_some_and(|end| end <= params.output_stride), "its rows leave the output")?;
    let begin = u64::from(params.weight_begin) * WEIGHT_ALIGNMENT;
    let needed = [
        (bindings.weight, begin.saturating_add(row_bytes.saturating_mul(u64::from(params.n_rows)))),
        (bindings.upward, f32_bytes(&[params.n_tokens, params.output_stride])),
        (bindings.into, f32_bytes(&[params.n_tokens, params.n_columns])),
    ];
    let tiles = u64::from(params.n_tokens.div_ceil(TILE)) * u64::from(params.n_columns.div_ceil(TILE));
    let workgroups = fold(gpu, stem, tiles, 1)?;
    let constants = [&params.dtype_constants()[..], &[("IN_QUADS", f64::from(u8::from(params.has_whole_quads())))]].concat();
    dispatch_of_matrix(gpu, &MATMUL_BACK, &constants, params_buffer, (params.dtype(), &needed), workgroups)
}

/// CPU twin of `shaders/matmul_back.wgsl`; `weight` is `[n_rows, n_columns]`, decoded.
pub fn reference(params: &Params, weight: &[f32], upward: &[f32], into: &mut [f32]) {
    let [n_columns, stride, begin] = [params.n_columns, params.output_stride, params.output_row_begin].map(|n| n as usize);
    for (upward, into) in upward.chunks_exact(stride).zip(into.chunks_exact_mut(n_columns)) {
        for (row, upward) in weight.chunks_exact(n_columns).zip(&upward[begin..]) {
            into.iter_mut().zip(row).for_each(|(into, weight)| *into += weight * upward);
        }
    }
}

/// Params of `add_outer`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct OuterParams {
    /// Rows of both inputs.
    pub n_tokens: u32,
    /// Values of a row of the left one; rows of the result.
    pub n_rows: u32,
    /// Values of a row of the right one; columns of the result.
    pub n_columns: u32,
}

/// Buffers of `add_outer`.
#[derive(Debug, Clone, Copy)]
pub struct OuterBindings<'a> {
    /// `[n_tokens, n_rows]`
    pub left: Binding<'a>,
    /// `[n_tokens, n_columns]`
    pub right: Binding<'a>,
    /// `[n_rows, n_columns]`, added to.
    pub into: Binding<'a>,
}

/// Makes the dispatch that adds `Σₜ left[t, i] · right[t, j]`.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare_outer(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &OuterParams, bindings: OuterBindings<'_>) -> Result<Dispatch> {
    let OuterParams { n_tokens, n_rows, n_columns } = *params;
    require(gpu, ADD_OUTER.stem, n_tokens > 0 && n_rows > 0, "it is empty")?;
    let needed = [
        (bindings.left, f32_bytes(&[n_tokens, n_rows])),
        (bindings.right, f32_bytes(&[n_tokens, n_columns])),
        (bindings.into, f32_bytes(&[n_rows, n_columns])),
    ];
    let workgroups = fold_items(gpu, ADD_OUTER.stem, &[n_rows.div_ceil(4), n_columns])?;
    dispatch(gpu, &ADD_OUTER, &[], params_buffer, &needed, workgroups)
}

/// CPU twin of `shaders/add_outer.wgsl`.
pub fn reference_outer(params: &OuterParams, left: &[f32], right: &[f32], into: &mut [f32]) {
    let [n_rows, n_columns] = [params.n_rows, params.n_columns].map(|n| n as usize);
    for (left, right) in left.chunks_exact(n_rows).zip(right.chunks_exact(n_columns)) {
        for (left, into) in left.iter().zip(into.chunks_exact_mut(n_columns)) {
            into.iter_mut().zip(right).for_each(|(into, right)| *into += left * right);
        }
    }
}
