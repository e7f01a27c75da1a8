//! Puts side by side what attention made of heads that are padded to whole octets.

use super::Params;
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::kernels::{ATTENTION_COMPACT, Binding, dispatch, f32_bytes, fold_items, require};

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// Attention output with padded heads: `[n_tokens, n_heads, params.head_size]`.
    pub padded: Binding<'a>,
    /// `[n_tokens, n_heads, head_size]`.
    pub attention_output: Binding<'a>,
}

impl<'a> Bindings<'a> {
    /// The tokens of `params` from `token` on: one of those that [`crate::kernels::attention::cut`] returns.
    #[must_use]
    pub fn from_token(self, params: &Params, head_size: u32, token: u32) -> Bindings<'a> {
        let behind = |binding: Binding<'a>, head_size| binding.behind(f32_bytes(&[token, params.n_heads, head_size]));
        Bindings { padded: behind(self.padded, params.head_size), attention_output: behind(self.attention_output, head_size) }
    }
}

/// Makes the dispatch, with the attention's own params; `head_size` is that of the heads without what pads them.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or the heads are larger than the padded ones.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, head_size: u32, bindings: Bindings<'_>) -> Result<Dispatch> {
    let stem = ATTENTION_COMPACT.stem;
    require(gpu, stem, head_size <= params.head_size, "its heads are larger than the padded ones")?;
    let rows = [params.n_tokens, params.n_heads, head_size];
    let needed =
        [(bindings.padded, f32_bytes(&[params.n_tokens, params.n_heads, params.head_size])), (bindings.attention_output, f32_bytes(&rows))];
    let workgroups = fold_items(gpu, stem, &rows)?;
    dispatch(gpu, &ATTENTION_COMPACT, &[("HEAD_SIZE", f64::from(head_size))], params_buffer, &needed, workgroups)
}

/// CPU twin of `shaders/attention_compact.wgsl`.
pub fn reference(params: &Params, head_size: u32, padded: &[f32], attention_output: &mut [f32]) {
    let heads = padded.chunks_exact(params.head_size as usize).zip(attention_output.chunks_exact_mut(head_size as usize));
    heads.for_each(|(from, to)| to.copy_from_slice(&from[..head_size as usize]));
}
