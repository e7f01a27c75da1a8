//! Rotary embedding, in place: each pair `(a, b)` of a head becomes `(a·cos − b·sin, b·cos + a·sin)`.

use bytemuck::{Pod, Zeroable};

use super::{Binding, ROPE, dispatch, f32_bytes, fold_items, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

/// Params of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct Params {
    /// Rows.
    pub n_tokens: u32,
    /// Heads of a row.
    pub n_heads: u32,
    /// Values of a head; even.
    pub head_size: u32,
    /// A [`Pairing`] as a number.
    pub pairing: u32,
}

/// Which values of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Pairing {
    /// `i` with `i + head_size / 2` (Hugging Face).
    Halves = 0,
    /// `2i` with `2i + 1` (the paper, and GGUF's Llama weights).
    Neighbours = 1,
}

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_tokens, head_size / 2, 2]`: cosine and sine of each pair's angle.
    pub cos_sin: Binding<'a>,
    /// `[n_tokens, n_heads, head_size]`, read and written.
    pub values: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or `head_size` is odd.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_tokens, n_heads, head_size, pairing } = *params;
    require(gpu, ROPE.stem, head_size.is_multiple_of(2) && pairing < 2, "head_size is odd, or the pairing unknown")?;
    let needed = [(bindings.cos_sin, f32_bytes(&[n_tokens, head_size])), (bindings.values, f32_bytes(&[n_tokens, n_heads, head_size]))];
    let workgroups = fold_items(gpu, ROPE.stem, &[n_tokens, n_heads, head_size / 2])?;
    dispatch(gpu, &ROPE, &[], params_buffer, &needed, workgroups)
}

/// CPU twin of `shaders/rope.wgsl`.
pub fn reference(params: &Params, cos_sin: &[f32], values: &mut [f32]) {
    let [n_heads, head_size] = [params.n_heads, params.head_size].map(|n| n as usize);
    let n_pairs = head_size / 2;
    for (head, values) in values.chunks_exact_mut(head_size).enumerate().take(params.n_tokens as usize * n_heads) {
        let token = head / n_heads;
        for pair in 0..n_pairs {
            let (first, second) = if params.pairing == Pairing::Halves as u32 { (pair, pair + n_pairs) } else { (2 * pair, 2 * pair + 1) };
            let [cos, sin] = [0, 1].map(|part| cos_sin[(token * n_pairs + pair) * 2 + part]);
            let (a, b) = (values[first], values[second]);
            values[first] = a * cos - b * sin;
            values[second] = b * cos + a * sin;
        }
    }
}
