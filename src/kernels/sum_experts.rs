//! What the experts of each token give, by the weights that they were chosen with: `output[t, i] = Σ_j weight[t, j] · input[t, j, i]`;
//! or their plain sum, where what they read was weighed.

use super::{Binding, SUM_EXPERTS, dispatch, f32_bytes, fold_items, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

pub use super::params::ExpertParams as Params;

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_tokens, n_used, width]`.
    pub input: Binding<'a>,
    /// `[n_tokens, 2, n_used]`: numbers of experts, then their weights; `None`: there are none.
    pub routing: Option<Binding<'a>>,
    /// `[n_tokens, width]`.
    pub output: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_tokens, n_used, width } = *params;
    require(gpu, SUM_EXPERTS.stem, n_used > 0, "a token takes no expert")?;
    let needed = [
        (bindings.input, f32_bytes(&[n_tokens, n_used, width])),
        // Without weights, something must be bound all the same.
        bindings.routing.map_or((bindings.input, 0), |routing| (routing, f32_bytes(&[n_tokens, 2, n_used]))),
        (bindings.output, f32_bytes(&[n_tokens, width])),
    ];
    let constants = [("IS_WEIGHTED", f64::from(u8::from(bindings.routing.is_some())))];
    dispatch(gpu, &SUM_EXPERTS, &constants, params_buffer, &needed, fold_items(gpu, SUM_EXPERTS.stem, &[n_tokens, width])?)
}

/// CPU twin of `shaders/sum_experts.wgsl`.
pub fn reference(params: &Params, input: &[f32], routing: Option<&[f32]>, output: &mut [f32]) {
    let [n_used, width] = [params.n_used, params.width].map(|n| n as usize);
    let tokens = input.chunks_exact(n_used * width).zip(output.chunks_exact_mut(width)).take(params.n_tokens as usize);
    for (token, (input, output)) in tokens.enumerate() {
        output.fill(0.0);
        for (choice, input) in input.chunks_exact(width).enumerate() {
            let weight = routing.map_or(1.0, |routing| routing[(2 * token + 1) * n_used + choice]);
            output.iter_mut().zip(input).for_each(|(sum, value)| *sum = weight.mul_add(*value, *sum));
        }
    }
}
