//! Matrix × vectors on adapters of eight-lane subgroups: few, wide loads. Params, bindings and reference are in `matmul`.

use super::{Params, Products};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::kernels::{MATMUL_SUBGROUP, dispatch_of_matrix, fold, require};

/// Lanes of the subgroups that the shader is written for.
pub const LANES: u32 = 8;
/// Most tokens that one invocation serves; `MAX_TOKENS` of the shader.
const MAX_TOKENS: u32 = 8;
/// Columns that are read at once: two blocks.
const PAIR_COLUMNS: u32 = 64;
/// Rows that a lane may have: the more, the seldomer the inputs are read. The last is `MAX_ROWS` of the shader.
const ROWS: [u32; 3] = [4, 8, 16];
/// With so many workgroups every core has several; where there are fewer, lanes have fewer rows.
const MANY_WORKGROUPS: u64 = 16;

/// Whether the adapter can run it, and rows are whole pairs of blocks.
pub(in crate::kernels) fn is_possible(gpu: &Gpu, params: &Params) -> bool {
    gpu.subgroup_lanes == Some(LANES) && params.n_columns.is_multiple_of(PAIR_COLUMNS)
}

/// Makes the dispatch.
///
/// # Errors
/// As [`crate::kernels::matmul::prepare_products`]; where the adapter has other subgroups, or rows are no multiple of 64 columns.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, products: &Products<'_>) -> Result<Dispatch> {
    let (kernel, params) = (products.kernel(&MATMUL_SUBGROUP), products.common());
    let needed = products.needed(gpu, kernel.stem)?;
    require(
        gpu,
        kernel.stem,
        is_possible(gpu, &params),
        "the adapter has no subgroups of eight lanes, or its rows are no multiple of 64 columns",
    )?;
    let tokens = params.n_tokens.next_power_of_two().min(MAX_TOKENS);
    // How many rows a lane has changes no row's arithmetic.
    let token_groups = params.n_tokens.div_ceil(tokens);
    let are_many = |rows: &&u32| products.n_groups(**rows * LANES) * u64::from(token_groups) >= MANY_WORKGROUPS;
    let rows = *ROWS.iter().rev().find(are_many).unwrap_or(&ROWS[0]);
    let constants = [&params.dtype_constants()[..], &[("ROWS", f64::from(rows)), ("TOKENS", f64::from(tokens))]].concat();
    let workgroups = fold(gpu, kernel.stem, products.n_groups(rows * LANES), token_groups)?;
    dispatch_of_matrix(gpu, kernel, &constants, params_buffer, (params.dtype(), &needed), workgroups)
}

/// Rows of a lane, where workgroups of so many rows are as many as `n_workgroups` says. How many rows a lane has changes no row's
/// arithmetic.
pub(in crate::kernels) fn rows_of_lane(n_workgroups: impl Fn(u32) -> u64) -> u32 {
    let are_many = |rows: &&u32| n_workgroups(**rows * LANES) >= MANY_WORKGROUPS;
    *ROWS.iter().rev().find(are_many).unwrap_or(&ROWS[0])
}
