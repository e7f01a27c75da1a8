//! Root-mean-square norm: `output[r, i] = input[r, i] / sqrt(mean_j input[r, j]² + epsilon) · (weight[i] + weight_offset)`, without the
//! last factor where there is no weight.

use super::{Binding, RMS_NORM, dispatch, f32_bytes, fold, lanes_of_row, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

pub use super::params::NormParams as Params;

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_rows, hidden_size]`.
    pub input: Binding<'a>,
    /// `[hidden_size]`, f32, if there is one.
    pub weight: Option<Binding<'a>>,
    /// `[n_rows, hidden_size]`.
    pub output: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    require(gpu, RMS_NORM.stem, params.n_rows > 0 && params.hidden_size > 0, "it is empty")?;
    let rows = f32_bytes(&[params.n_rows, params.hidden_size]);
    // Without a weight, something must be bound all the same.
    let weight = bindings.weight.map_or((bindings.input, 0), |weight| (weight, f32_bytes(&[params.hidden_size])));
    let needed = [(bindings.input, rows), weight, (bindings.output, rows)];
    let has_weight = f64::from(u8::from(bindings.weight.is_some()));
    let lanes = lanes_of_row(gpu);
    let workgroups = fold(gpu, RMS_NORM.stem, u64::from(params.n_rows), 1)?;
    dispatch(gpu, &RMS_NORM, &[("LANES", lanes), ("HAS_WEIGHT", has_weight)], params_buffer, &needed, workgroups)
}

/// CPU twin of `shaders/rms_norm.wgsl`.
pub fn reference(params: &Params, input: &[f32], weight: Option<&[f32]>, output: &mut [f32]) {
    let hidden_size = params.hidden_size as usize;
    for (input, output) in input.chunks_exact(hidden_size).zip(output.chunks_exact_mut(hidden_size)).take(params.n_rows as usize) {
        let sum: f32 = input.iter().map(|x| x * x).sum();
        let scale = 1.0 / (sum / hidden_size as f32 + params.epsilon).sqrt();
        for i in 0..hidden_size {
            output[i] = input[i] * scale * weight.map_or(1.0, |weight| weight[i] + params.weight_offset);
        }
    }
}
