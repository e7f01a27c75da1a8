//! Attention of each token for itself, on any adapter. Params, bindings and reference are in `attention`.

use super::{
    Bindings, MAX_SHARED_SIZE, Params, Target, cache_constants, heads_together, n_parts, needed, part_constants, sinks_constant,
    softcap_constant,
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
    let shape = if is_software(gpu) { software(params) } else { hardware(params) };
    let [is_split, part_positions] = part_constants(params);
    let octets = params.head_size / 8;
    let [key_dtype, value_dtype, octets_of] = cache_constants(params);
    let constants = [
        key_dtype,
        value_dtype,
        ("LANES", f64::from(shape.lanes)),
        ("HEADS", f64::from(shape.heads)),
        ("POSITIONS", f64::from(shape.positions)),
        octets_of,
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

/// Octets of query heads whose queries and sums, 64 bytes each, leave workgroup memory for the rest.
const MAX_OCTETS: u32 = 192;

/// A workgroup for each query head, for the most workgroups; their common keys meet in the hardware's cache. Of wide heads, which are the
/// keys of many query heads, so much is read that some of these share it.
fn hardware(params: &Params) -> Shape {
    let heads = if params.head_size > MAX_SHARED_SIZE { heads_together(params, most_heads(params)) } else { 1 };
    Shape { lanes: 64, heads, positions: 1 }
}

/// Each load costs a software adapter dearly: a lane shares the keys it loads among query heads, the queries among positions.
fn software(params: &Params) -> Shape {
    Shape { lanes: 8, heads: heads_together(params, most_heads(params)), positions: 4 }
}

/// Query heads that fit into a workgroup's memory, 4 at most.
fn most_heads(params: &Params) -> u32 {
    (MAX_OCTETS / (params.head_size / 8).max(1)).clamp(1, 4)
}
