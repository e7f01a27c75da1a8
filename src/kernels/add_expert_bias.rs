//! Adds to what experts of tokens give the biases of these experts, in place: `target_values[t, j, i] += bias[e, i]`, e the `j`th expert of
//! token t.

use super::{ADD_EXPERT_BIAS, Binding, dispatch, f32_bytes, fold_items, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

pub use super::params::ExpertParams as Params;

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_experts, width]`: of as many experts as `routing` names.
    pub bias: Binding<'a>,
    /// `[n_tokens, 2, n_used]`: numbers of experts, then their weights.
    pub routing: Binding<'a>,
    /// `[n_tokens, n_used, width]`, read and written.
    pub target_values: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_tokens, n_used, width } = *params;
    require(gpu, ADD_EXPERT_BIAS.stem, n_used > 0 && width > 0, "it is empty")?;
    let needed = [
        (bindings.bias, f32_bytes(&[width])),
        (bindings.routing, f32_bytes(&[n_tokens, 2, n_used])),
        (bindings.target_values, f32_bytes(&[n_tokens, n_used, width])),
    ];
    dispatch(gpu, &ADD_EXPERT_BIAS, &[], params_buffer, &needed, fold_items(gpu, ADD_EXPERT_BIAS.stem, &[n_tokens, n_used, width])?)
}

/// CPU twin of `shaders/add_expert_bias.wgsl`.
pub fn reference(params: &Params, bias: &[f32], routing: &[f32], target_values: &mut [f32]) {
    let [n_used, width] = [params.n_used, params.width].map(|n| n as usize);
    let tokens = routing.chunks_exact(2 * n_used).zip(target_values.chunks_exact_mut(n_used * width));
    for (routing, target) in tokens.take(params.n_tokens as usize) {
        for (expert, target) in routing.iter().zip(target.chunks_exact_mut(width)) {
            target.iter_mut().zip(&bias[*expert as usize * width..][..width]).for_each(|(value, bias)| *value += bias);
        }
    }
}
