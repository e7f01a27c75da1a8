//! What the experts of each token read, by the weights that they were chosen with: `output[t, j, i] = weight[t, j] · input[t, i]`.

use super::{Binding, WEIGH_INPUTS, dispatch, f32_bytes, fold_items, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

pub use super::params::ExpertParams as Params;

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_tokens, width]`.
    pub input: Binding<'a>,
    /// `[n_tokens, 2, n_used]`: numbers of experts, then their weights.
    pub routing: Binding<'a>,
    /// `[n_tokens, n_used, width]`.
    pub output: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_tokens, n_used, width } = *params;
    require(gpu, WEIGH_INPUTS.stem, n_used > 0, "a token takes no expert")?;
    let needed = [
        (bindings.input, f32_bytes(&[n_tokens, width])),
        (bindings.routing, f32_bytes(&[n_tokens, 2, n_used])),
        (bindings.output, f32_bytes(&[n_tokens, n_used, width])),
    ];
    dispatch(gpu, &WEIGH_INPUTS, &[], params_buffer, &needed, fold_items(gpu, WEIGH_INPUTS.stem, &[n_tokens, n_used, width])?)
}

/// CPU twin of `shaders/weigh_inputs.wgsl`.
pub fn reference(params: &Params, input: &[f32], routing: &[f32], output: &mut [f32]) {
    let [n_used, width] = [params.n_used, params.width].map(|n| n as usize);
    let tokens = input.chunks_exact(width).zip(routing.chunks_exact(2 * n_used)).zip(output.chunks_exact_mut(n_used * width));
    for ((input, routing), output) in tokens.take(params.n_tokens as usize) {
        for (weight, output) in routing[n_used..].iter().zip(output.chunks_exact_mut(width)) {
            output.iter_mut().zip(input).for_each(|(output, value)| *output = weight * value);
        }
    }
}
