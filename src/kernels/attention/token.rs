//! Attention of each token for itself, on any adapter. Params, bindings and reference are in `attention`.

use super::{
    Bindings, MAX_SHARED_HEAD_SIZE, Params, Target, heads_together, n_parts, needed, part_constants, sinks_constant, softcap_constant,
};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::kernels::{ATTENTION_TOKEN, dispatch, fold, is_software};

/// Makes the dispatch; it writes parts where there are several.
///
/// # Errors
/// As [`crate::kernels::attention::prepare`].
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let stem = ATTENTION_TOKEN.stem;
    let needed = needed(gpu, stem, params, bindings, Target::Parts)?;
    let shape = if is_software(gpu) { software(params) } else { HARDWARE };
    let [is_split, part_positions] = part_constants(params);
    let octets = params.head_size / 8;
    let constants = [
        ("KV_F16", f64::from(params.kv_dtype)),
        ("LANES", f64::from(shape.lanes)),
        ("HEADS", f64::from(shape.heads)),
        ("POSITIONS", f64::from(shape.positions)),
        ("OCTETS", f64::from(octets)),
        ("SHARERS", f64::from((shape.lanes / octets).max(1))),
        softcap_constant(params),
        sinks_constant(&bindings),
        is_split,
        part_positions,
    ];
    let count = u64::from(params.n_tokens) * u64::from(params.n_heads / shape.heads) * u64::from(n_parts(params));
    dispatch(gpu, &ATTENTION_TOKEN, &constants, params_buffer, &needed, fold(gpu, stem, count, 1)?)
}

/// How the work is spread; the tunables of the shader.
#[derive(Debug, Clone, Copy)]
struct Shape {
    lanes: u32,
    heads: u32,
    positions: u32,
}

/// A workgroup for each query head, for the most workgroups; their common keys meet in the hardware's cache.
const HARDWARE: Shape = Shape { lanes: 64, heads: 1, positions: 1 };

/// Each load costs a software adapter dearly: a lane shares the keys it loads among query heads, the queries among positions.
fn software(params: &Params) -> Shape {
    // Workgroup memory holds the queries and the sums of all of them.
    let most = if params.head_size > MAX_SHARED_HEAD_SIZE { 2 } else { 4 };
    Shape { lanes: 8, heads: heads_together(params, most), positions: 4 }
}
