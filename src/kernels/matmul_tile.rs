//! Matrix × many vectors: decodes each weight once for 32 tokens. Params, bindings and reference are in `matmul`.

use super::matmul::{self, Bindings, Params};
use super::{MATMUL_TILE, dispatch, fold, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

/// Rows and tokens of a workgroup's tile; `TILE` of the shader.
const TILE: u32 = 32;

/// Makes the dispatch; each row is whole quads of words, or of blocks.
///
/// # Errors
/// As [`matmul::prepare`].
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let needed = matmul::needed(gpu, MATMUL_TILE.stem, params, bindings)?;
    require(gpu, MATMUL_TILE.stem, params.has_whole_quads(), "its rows are no whole quads of words")?;
    let tiles = u64::from(params.n_rows.div_ceil(TILE)) * u64::from(params.n_tokens.div_ceil(TILE));
    let workgroups = fold(gpu, MATMUL_TILE.stem, tiles, 1)?;
    dispatch(gpu, &MATMUL_TILE, &[("DTYPE", f64::from(params.dtype))], params_buffer, &needed, workgroups)
}
