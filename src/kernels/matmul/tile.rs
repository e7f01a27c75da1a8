//! Matrix × many vectors: decodes each weight once for a tile of tokens. Params, bindings and reference are in `matmul`.

use super::Products;
use crate::device::TileShape;
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::kernels::{MATMUL_TILE, dispatch_of_matrix, fold, require};

/// Makes the dispatch; each row is whole quads of words, or of blocks.
///
/// # Errors
/// As [`crate::kernels::matmul::prepare_products`].
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, products: &Products<'_>, shape: TileShape) -> Result<Dispatch> {
    let (kernel, params) = (products.kernel(&MATMUL_TILE), products.common());
    let needed = products.needed(gpu, kernel.stem)?;
    require(gpu, kernel.stem, params.has_whole_quads(), "its rows are no whole quads of words")?;
    require(gpu, kernel.stem, shape.is_valid(), "its tile is none of those that it computes")?;
    let shape_constants = [
        ("ROWS", f64::from(shape.rows)),
        ("TOKENS", f64::from(shape.tokens)),
        ("LANE_ROWS", f64::from(shape.lane_rows)),
        ("LANE_TOKENS", f64::from(shape.lane_tokens)),
        ("WORKGROUP", f64::from(shape.workgroup())),
    ];
    let constants = [&params.dtype_constants()[..], &shape_constants].concat();
    let tiles = products.n_groups(shape.rows) * u64::from(params.n_tokens.div_ceil(shape.tokens));
    let workgroups = fold(gpu, kernel.stem, tiles, 1)?;
    dispatch_of_matrix(gpu, kernel, &constants, params_buffer, (params.dtype(), &needed), workgroups)
}
