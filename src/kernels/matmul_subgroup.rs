//! Matrix × vectors on adapters of eight-lane subgroups: few, wide loads. Params, bindings and reference are in `matmul`.

use super::matmul::{self, Bindings, Params};
use super::{MATMUL_SUBGROUP, dispatch, fold, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

/// Lanes of the subgroups that the shader is written for.
pub const LANES: u32 = 8;
/// Most tokens that one invocation serves; `MAX_TOKENS` of the shader.
const MAX_TOKENS: u32 = 8;
/// Columns that are read at once.
const BLOCK_COLUMNS: u32 = 32;
/// With so many workgroups of eight rows a lane, every core has several; below, lanes have four.
const MANY_WORKGROUPS: u32 = 16;

/// Whether the adapter can run it, and rows are whole blocks of columns.
pub(super) fn is_possible(gpu: &Gpu, params: &Params) -> bool {
    gpu.subgroup_lanes == Some(LANES) && params.n_columns.is_multiple_of(BLOCK_COLUMNS)
}

/// Makes the dispatch.
///
/// # Errors
/// As [`matmul::prepare`]; where the adapter has other subgroups, or rows are no whole blocks of 32 columns.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let stem = MATMUL_SUBGROUP.stem;
    let needed = matmul::needed(gpu, stem, params, bindings)?;
    require(gpu, stem, is_possible(gpu, params), "the adapter has no subgroups of eight lanes, or its rows are no blocks of 32 columns")?;
    let tokens = params.n_tokens.next_power_of_two().min(MAX_TOKENS);
    // How many rows a lane has changes no row's arithmetic.
    let rows = if params.n_rows >= MANY_WORKGROUPS * 8 * LANES { 8 } else { 4 };
    let constants = [("DTYPE", f64::from(params.dtype)), ("ROWS", f64::from(rows)), ("TOKENS", f64::from(tokens))];
    let count = params.n_rows.div_ceil(rows * LANES);
    let workgroups = fold(gpu, stem, u64::from(count), params.n_tokens.div_ceil(tokens))?;
    dispatch(gpu, &MATMUL_SUBGROUP, &constants, params_buffer, &needed, workgroups)
}
