//! The residual sum, in place: `target_values[i] += input[i]`.

use super::{ADD, Binding, dispatch, f32_bytes, fold_items};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

pub use super::params::ValueParams as Params;

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_values]`.
    pub input: Binding<'a>,
    /// `[n_values]`, read and written.
    pub target_values: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let size = f32_bytes(&[params.n_values]);
    let workgroups = fold_items(gpu, ADD.stem, &[params.n_values])?;
    dispatch(gpu, &ADD, &[], params_buffer, &[(bindings.input, size), (bindings.target_values, size)], workgroups)
}

/// CPU twin of `shaders/add.wgsl`.
pub fn reference(params: &Params, input: &[f32], target_values: &mut [f32]) {
    for index in 0..params.n_values as usize {
        target_values[index] += input[index];
    }
}
