//! Attention of tiles of query rows that share keys and values, on any adapter. Params, bindings and reference are in `attention`.

use super::{Bindings, Params, Target, cache_constants, needed, sinks_constant, softcap_constant};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::kernels::{ATTENTION_TILE, dispatch, fold};

/// Lanes of a workgroup; `LANES` of the shader.
const LANES: u32 = 128;
/// Values of a head that one lane holds.
const LANE_VALUES: u32 = 32;
/// Most positions at once; `MAX_BLOCK` of the shader.
const MAX_BLOCK: u32 = 16;
/// Values of keys that workgroup memory holds.
const TILE_VALUES: u32 = 2048;

/// Makes the dispatch.
///
/// # Errors
/// As [`crate::kernels::attention::prepare`].
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let stem = ATTENTION_TILE.stem;
    let needed = needed(gpu, stem, params, bindings, Target::Output)?;
    let split = params.head_size.div_ceil(LANE_VALUES);
    let block = (TILE_VALUES / params.head_size).min(MAX_BLOCK);
    let [key_dtype, value_dtype, octets] = cache_constants(params);
    let [split_of, block_of] = [("SPLIT", f64::from(split)), ("BLOCK", f64::from(block))];
    let constants = [key_dtype, value_dtype, octets, split_of, block_of, softcap_constant(params), sinks_constant(&bindings)];
    let n_rows = u64::from(params.n_tokens) * u64::from(params.n_heads / params.n_kv_heads);
    let n_tiles = n_rows.div_ceil(u64::from(LANES / split));
    let workgroups = fold(gpu, stem, n_tiles * u64::from(params.n_kv_heads), 1)?;
    dispatch(gpu, &ATTENTION_TILE, &constants, params_buffer, &needed, workgroups)
}
