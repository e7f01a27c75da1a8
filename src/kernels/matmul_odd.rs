//! Matrix product where a row is no multiple of four values. Params, bindings and reference are in `matmul`.

use super::matmul::{self, Bindings, Params};
use super::{MATMUL_ODD, dispatch, fold};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

/// `@workgroup_size` of the shader.
const WORKGROUP: u32 = 64;

/// Makes the dispatch; the dtype is a plain one, since blocks hold 32 values.
///
/// # Errors
/// As [`matmul::prepare`].
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let needed = matmul::needed(gpu, MATMUL_ODD.stem, params, bindings)?;
    let workgroups = fold(gpu, MATMUL_ODD.stem, u64::from(params.n_rows.div_ceil(WORKGROUP)), params.n_tokens)?;
    dispatch(gpu, &MATMUL_ODD, &[("DTYPE", f64::from(params.dtype))], params_buffer, &needed, workgroups)
}
