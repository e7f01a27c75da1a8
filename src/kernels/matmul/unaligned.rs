//! Matrix product where a row is no multiple of four values. Params, bindings and reference are in `matmul`.

use super::Products;
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::kernels::{MATMUL_UNALIGNED, dispatch_of_matrix, fold, require};

/// `@workgroup_size` of the shader.
const WORKGROUP: u32 = 64;

/// Makes the dispatch, of one product; the dtype is an unquantised one, since blocks hold 32 values.
///
/// # Errors
/// As [`crate::kernels::matmul::prepare_products`].
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, products: &Products<'_>) -> Result<Dispatch> {
    let needed = products.needed(gpu, MATMUL_UNALIGNED.stem)?;
    require(gpu, MATMUL_UNALIGNED.stem, products.params.len() == 1, "it computes one product alone")?;
    let params = products.common();
    let workgroups = fold(gpu, MATMUL_UNALIGNED.stem, u64::from(params.n_rows.div_ceil(WORKGROUP)), params.n_tokens)?;
    dispatch_of_matrix(gpu, &MATMUL_UNALIGNED, &[("DTYPE", f64::from(params.dtype))], params_buffer, (params.dtype(), &needed), workgroups)
}
