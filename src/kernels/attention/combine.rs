//! Makes the result of the parts that a long context was attended in. Params, bindings and reference are in `attention`.

use super::{Bindings, Params, part_positions, parts_bytes, sinks_constant, sinks_needed};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::kernels::{ATTENTION_COMBINE, dispatch, f32_bytes, fold_items};

/// Makes the dispatch, which follows that of the parts.
///
/// # Errors
/// As [`crate::kernels::attention::prepare`].
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let rows = [params.n_tokens, params.n_heads, params.head_size];
    let needed = [
        (bindings.tokens, f32_bytes(&[params.n_tokens, 4])),
        (bindings.parts, parts_bytes(params)),
        sinks_needed(params, &bindings),
        (bindings.attention_output, f32_bytes(&rows)),
    ];
    let constants = [("PART_POSITIONS", f64::from(part_positions(params.kv_capacity))), sinks_constant(&bindings)];
    let workgroups = fold_items(gpu, ATTENTION_COMBINE.stem, &[params.n_tokens, params.n_heads, params.head_size / 4])?;
    dispatch(gpu, &ATTENTION_COMBINE, &constants, params_buffer, &needed, workgroups)
}
