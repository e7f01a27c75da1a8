//! Layer norm: `output[r, i] = (input[r, i] − m) / sqrt(mean_j (input[r, j] − m)² + epsilon) · (weight[i] + weight_offset) + bias[i]`,
//! where `m` is the mean of row `r`.

use super::{Binding, LAYER_NORM, dispatch, f32_bytes, fold, lanes_of_row, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

pub use super::params::NormParams as Params;

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_rows, hidden_size]`.
    pub input: Binding<'a>,
    /// `[hidden_size]`, f32.
    pub weight: Binding<'a>,
    /// `[hidden_size]`, f32; `None` adds nothing.
    pub bias: Option<Binding<'a>>,
    /// `[n_rows, hidden_size]`.
    pub output: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    require(gpu, LAYER_NORM.stem, params.n_rows > 0 && params.hidden_size > 0, "it is empty")?;
    let (rows, row) = (f32_bytes(&[params.n_rows, params.hidden_size]), f32_bytes(&[params.hidden_size]));
    // Where there is no bias, something must be bound all the same.
    let bias = bindings.bias.unwrap_or(bindings.weight);
    let needed = [(bindings.input, rows), (bindings.weight, row), (bias, row), (bindings.output, rows)];
    let lanes = lanes_of_row(gpu);
    let constants = [("LANES", lanes), ("HAS_BIAS", f64::from(u8::from(bindings.bias.is_some())))];
    let workgroups = fold(gpu, LAYER_NORM.stem, u64::from(params.n_rows), 1)?;
    dispatch(gpu, &LAYER_NORM, &constants, params_buffer, &needed, workgroups)
}

/// CPU twin of `shaders/layer_norm.wgsl`.
pub fn reference(params: &Params, input: &[f32], weight: &[f32], bias: Option<&[f32]>, output: &mut [f32]) {
    let hidden_size = params.hidden_size as usize;
    for (input, output) in input.chunks_exact(hidden_size).zip(output.chunks_exact_mut(hidden_size)).take(params.n_rows as usize) {
        let mean = input.iter().sum::<f32>() / hidden_size as f32;
        let variance = input.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / hidden_size as f32;
        let scale = 1.0 / (variance + params.epsilon).sqrt();
        for i in 0..hidden_size {
            let bias = bias.map_or(0.0, |bias| bias[i]);
            output[i] = (input[i] - mean) * scale * (weight[i] + params.weight_offset) + bias;
        }
    }
}
