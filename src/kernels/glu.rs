//! Gated activation: `output[i] = activation(gate[i]) · up[i]`.

use bytemuck::{Pod, Zeroable};

use super::{BatchShape, Binding, GLU, dispatch, f32_bytes, fold_items};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::model::{Activation, Value};

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
pub fn prepare(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &Params,
    activation: Activation,
    bindings: Bindings<'_>,
) -> Result<Dispatch> {
    let size = f32_bytes(&[params.n_values]);
    let workgroups = fold_items(gpu, GLU.stem, &[params.n_values])?;
    dispatch(
        gpu,
        &GLU,
        &constants(activation),
        params_buffer,
        &[(bindings.gate, size), (bindings.up, size), (bindings.output, size)],
        workgroups,
    )
}

fn constants(activation: Activation) -> [(&'static str, f64); 1] {
    let number = match activation {
        Activation::Silu => 0.0,
        Activation::GeluTanh => 1.0,
    };
    [("ACTIVATION", number)]
}

/// CPU twin of `shaders/glu.wgsl`.
pub fn reference(params: &Params, activation: Activation, gate: &[f32], up: &[f32], output: &mut [f32]) {
    let activated = |x: f32| match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + (std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2 * (x + 0.044715 * x * x * x)).tanh())
        }
    };
    for index in 0..params.n_values as usize {
        output[index] = activated(gate[index]) * up[index];
    }
}
