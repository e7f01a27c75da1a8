//! Adds one row to all rows, in place: `target_values[t, i] += bias[i]`.

use super::{ADD_BIAS, Binding, dispatch, f32_bytes, fold_items};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

pub use super::params::RowParams as Params;

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[width]`, f32.
    pub bias: Binding<'a>,
    /// `[n_tokens, width]`, read and written.
    pub target_values: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_tokens, width } = *params;
    let needed = [(bindings.bias, f32_bytes(&[width])), (bindings.target_values, f32_bytes(&[n_tokens, width]))];
    let workgroups = fold_items(gpu, ADD_BIAS.stem, &[n_tokens, width])?;
    dispatch(gpu, &ADD_BIAS, &[], params_buffer, &needed, workgroups)
}

/// CPU twin of `shaders/add_bias.wgsl`.
pub fn reference(params: &Params, bias: &[f32], target_values: &mut [f32]) {
    let width = params.width as usize;
    for index in 0..params.n_tokens as usize * width {
        target_values[index] += bias[index % width];
    }
}
