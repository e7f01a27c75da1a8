//! Matrix × many vectors: decodes each weight once for 32 tokens. Params, bindings and reference are in `matmul`.

use super::Products;
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::kernels::{MATMUL_TILE, dispatch, fold, require};

/// Rows and tokens of a workgroup's tile; `TILE` of the shader.
const TILE: u32 = 32;

/// Makes the dispatch; each row is whole quads of words, or of blocks.
///
/// # Errors
/// As [`crate::kernels::matmul::prepare_products`].
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, products: &Products<'_>) -> Result<Dispatch> {
    let (kernel, params) = (products.kernel(&MATMUL_TILE), products.common());
    let needed = products.needed(gpu, kernel.stem)?;
    require(gpu, kernel.stem, params.has_whole_quads(), "its rows are no whole quads of words")?;
    let tiles = products.n_groups(TILE) * u64::from(params.n_tokens.div_ceil(TILE));
    let workgroups = fold(gpu, kernel.stem, tiles, 1)?;
    dispatch(gpu, kernel, &params.dtype_constants(), params_buffer, &needed, workgroups)
}
