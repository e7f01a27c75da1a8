//! Gated activation: `output[i] = silu(gate[i]) · up[i]`, where `silu(x) = x / (1 + exp(−x))`.

use bytemuck::{Pod, Zeroable};

use super::{BatchShape, Binding, SWIGLU, dispatch, f32_bytes, fold_items};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::model::Value;

/// Params of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct Params {
    /// Values in all.
    pub n_values: u32,
}

impl Params {
    /// Those of what is as large as `gate`.
    pub fn of(gate: &Value, batch: &BatchShape) -> Params {
        Params { n_values: batch.n_values(gate) }
    }
}

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_values]`.
    pub gate: Binding<'a>,
    /// `[n_values]`.
    pub up: Binding<'a>,
    /// `[n_values]`.
    pub output: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let size = f32_bytes(&[params.n_values]);
    let workgroups = fold_items(gpu, SWIGLU.stem, &[params.n_values])?;
    dispatch(gpu, &SWIGLU, &[], params_buffer, &[(bindings.gate, size), (bindings.up, size), (bindings.output, size)], workgroups)
}

/// CPU twin of `shaders/swiglu.wgsl`.
pub fn reference(params: &Params, gate: &[f32], up: &[f32], output: &mut [f32]) {
    for index in 0..params.n_values as usize {
        output[index] = gate[index] / (1.0 + (-gate[index]).exp()) * up[index];
    }
}
