//! Attention on adapters of eight-lane subgroups: few, wide loads; token by token, and in tiles of tokens.
//! Params, bindings and reference are in `attention`.

use super::{Bindings, Params, Target, cache_constants, heads_together, n_parts, needed, part_constants, sinks_constant, softcap_constant};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::kernels::matmul::subgroup::LANES;
use crate::kernels::{ATTENTION_SUBGROUP, ATTENTION_SUBGROUP_TILE, dispatch, fold, require};

/// Query heads of a workgroup, at most: a vector of four holds what there is one of for each.
const MAX_HEADS: u32 = 4;
/// Values of queries that a lane holds of one token: those of several heads, where heads are small.
const MAX_QUERY_VALUES: u32 = 512;
/// The same in tiles, where a lane holds an eighth of the sums of eight tokens too.
const MAX_TILE_QUERY_VALUES: u32 = 256;

/// Whether the adapter can run it.
pub(super) fn is_possible(gpu: &Gpu) -> bool {
    gpu.subgroup_lanes == Some(LANES)
}

/// Makes the dispatch that attends for each token by itself; it writes parts where there are several.
///
/// # Errors
/// As [`crate::kernels::attention::prepare`]; where the adapter has other subgroups.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let stem = ATTENTION_SUBGROUP.stem;
    let needed = needed(gpu, stem, params, bindings, Target::Parts)?;
    require(gpu, stem, is_possible(gpu), NO_SUBGROUPS)?;
    let heads = heads_together(params, (MAX_QUERY_VALUES / params.head_size).min(MAX_HEADS));
    let [key_dtype, value_dtype, heads_of, octets, softcap, sinks] = constants(params, &bindings, heads);
    let [is_split, part_positions] = part_constants(params);
    let count = u64::from(params.n_tokens) * u64::from(params.n_heads / heads) * u64::from(n_parts(params));
    let constants = [key_dtype, value_dtype, heads_of, octets, softcap, sinks, is_split, part_positions];
    dispatch(gpu, &ATTENTION_SUBGROUP, &constants, params_buffer, &needed, fold(gpu, stem, count, 1)?)
}

/// Makes the dispatch that attends for eight tokens at a time.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_tile(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let stem = ATTENTION_SUBGROUP_TILE.stem;
    let needed = needed(gpu, stem, params, bindings, Target::Output)?;
    require(gpu, stem, is_possible(gpu), NO_SUBGROUPS)?;
    let heads = heads_together(params, (MAX_TILE_QUERY_VALUES / params.head_size).min(MAX_HEADS));
    let count = u64::from(params.n_tokens.div_ceil(LANES)) * u64::from(params.n_heads / heads);
    dispatch(gpu, &ATTENTION_SUBGROUP_TILE, &constants(params, &bindings, heads), params_buffer, &needed, fold(gpu, stem, count, 1)?)
}

const NO_SUBGROUPS: &str = "the adapter has no subgroups of eight lanes";

fn constants(params: &Params, bindings: &Bindings<'_>, heads: u32) -> [(&'static str, f64); 6] {
    let [key_dtype, value_dtype, octets] = cache_constants(params);
    [key_dtype, value_dtype, ("HEADS", f64::from(heads)), octets, softcap_constant(params), sinks_constant(bindings)]
}
