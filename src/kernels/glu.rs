//! Gated activation: `output[i] = activation(gate[i]) · up[i]`, of one activation with the up projection clamped.

use super::{Binding, GLU, dispatch, f32_bytes, fold_items};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::model::Activation;

pub use super::params::ValueParams as Params;

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
        &[("ACTIVATION", code(activation))],
        params_buffer,
        &[(bindings.gate, size), (bindings.up, size), (bindings.output, size)],
        workgroups,
    )
}

/// The number that `shaders/shared/activations.wgsl` has for it.
pub(super) fn code(activation: Activation) -> f64 {
    match activation {
        Activation::Silu => 0.0,
        Activation::GeluTanh => 1.0,
        Activation::Gelu => 2.0,
        Activation::Relu => 3.0,
        Activation::ReluSquared => 4.0,
        Activation::Identity => 5.0,
        Activation::Sigmoid => 6.0,
        Activation::ClampedSilu => 7.0,
    }
}

/// CPU twin of `shaders/shared/activations.wgsl`.
pub(crate) fn activated(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + (std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2 * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::Gelu => {
            let tail = 0.5 * erfc(f64::from(x.abs()) * std::f64::consts::FRAC_1_SQRT_2);
            (f64::from(x) * if x < 0.0 { tail } else { 1.0 - tail }) as f32
        }
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0) * x.max(0.0),
        Activation::ClampedSilu => {
            let x = x.min(CLAMP);
            x / (1.0 + (-1.702 * x).exp())
        }
        Activation::Identity => x,
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}

/// The complementary error function of `z`, at least 0: a series below 3, a continued fraction above (Abramowitz, Stegun 7.1.6, 7.1.14).
fn erfc(z: f64) -> f64 {
    let factor = (-z * z).exp() * std::f64::consts::FRAC_2_SQRT_PI;
    if z < 3.0 {
        let mut term = z;
        let mut sum = z;
        for n in 1..100 {
            term *= 2.0 * z * z / f64::from(2 * n + 1);
            sum += term;
        }
        return 1.0 - factor * sum;
    }
    let fraction = (1..100).rev().fold(z, |below, n| z + f64::from(n) / 2.0 / below);
    factor / 2.0 / fraction
}

/// Limit of what [`Activation::ClampedSilu`] is of, and of the up projection beside it.
const CLAMP: f32 = 7.0;

/// What an activated gate is multiplied by, of an up projection.
pub(crate) fn beside(activation: Activation, up: f32) -> f32 {
    if activation == Activation::ClampedSilu { up.clamp(-CLAMP, CLAMP) + 1.0 } else { up }
}

/// CPU twin of `shaders/glu.wgsl`.
pub fn reference(params: &Params, activation: Activation, gate: &[f32], up: &[f32], output: &mut [f32]) {
    for index in 0..params.n_values as usize {
        output[index] = activated(activation, gate[index]) * beside(activation, up[index]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_is_that_of_the_error_function() {
        // erf by the tables of Abramowitz, Stegun (7.1), to ten digits.
        for (z, erf) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (1.5, 0.966_105_146_5), (2.0, 0.995_322_265_0)] {
            assert!((1.0 - erfc(z) - erf).abs() < 1e-10, "erf of {z}");
        }
        assert!((erfc(3.0) / 2.209_049_7e-5 - 1.0).abs() < 1e-7 && (erfc(4.0) / 1.541_725_79e-8 - 1.0).abs() < 1e-7);
        assert!((erfc(3.0 - 1e-12) / erfc(3.0) - 1.0).abs() < 1e-9, "both ways agree where they meet");
    }
}
