//! Turns heads by their positions, in place (rotary embedding): each pair `(a, b)` of a head's first `rotary_size` values becomes
//! `(a·cos − b·sin, b·cos + a·sin)`. Where queries and keys turn alike and the keys are stored, `rope_kv` does all of it at once.

use bytemuck::{Pod, Zeroable};

use super::{BatchShape, Binding, ROPE, dispatch, f32_bytes, fold_items, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::model::{Rope, RopePairing};

/// Params of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct Params {
    /// Rows of heads.
    pub n_tokens: u32,
    /// Heads of a row.
    pub n_heads: u32,
    /// Values of a head.
    pub head_size: u32,
    /// Values of a head that turn, from the first on: even, at most `head_size`.
    pub rotary_size: u32,
    /// [`RopePairing`] as a number.
    pub pairing: u32,
}

impl Params {
    /// Those of `rope`.
    pub fn of(rope: &Rope, batch: &BatchShape) -> Params {
        Params {
            n_tokens: batch.n_tokens,
            n_heads: rope.n_heads as u32,
            head_size: rope.head_size as u32,
            rotary_size: rope.rotary_size as u32,
            pairing: rope.pairs as u32,
        }
    }
}

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_tokens, rotary_size / 2, 2]`: cosine and sine of each pair's angle.
    pub cos_sin: Binding<'a>,
    /// `[n_tokens, n_heads, head_size]`, read and written.
    pub heads: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or the heads have no such pairs.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_tokens, n_heads, head_size, rotary_size, pairing } = *params;
    let has_pairs = rotary_size.is_multiple_of(2) && rotary_size <= head_size;
    require(gpu, ROPE.stem, has_pairs && pairing < 2, "rotary_size is odd or above head_size, or the pairing unknown")?;
    let needed = [(bindings.cos_sin, f32_bytes(&[n_tokens, rotary_size])), (bindings.heads, f32_bytes(&[n_tokens, n_heads, head_size]))];
    let workgroups = fold_items(gpu, ROPE.stem, &[n_tokens, n_heads, rotary_size / 2])?;
    dispatch(gpu, &ROPE, &[], params_buffer, &needed, workgroups)
}

/// CPU twin of `shaders/rope.wgsl`: `heads` is `[n_tokens, n_heads, head_size]`, as many tokens as there are.
pub fn reference(params: &Params, cos_sin: &[f32], heads: &mut [f32]) {
    let n_pairs = params.rotary_size as usize / 2;
    for (head, values) in heads.chunks_exact_mut(params.head_size as usize).enumerate() {
        let token = head / params.n_heads as usize;
        for pair in 0..n_pairs {
            let (first, second) =
                if params.pairing == RopePairing::NeoX as u32 { (pair, pair + n_pairs) } else { (2 * pair, 2 * pair + 1) };
            let [cos, sin] = [0, 1].map(|part| cos_sin[(token * n_pairs + pair) * 2 + part]);
            let (a, b) = (values[first], values[second]);
            values[first] = a * cos - b * sin;
            values[second] = b * cos + a * sin;
        }
    }
}
