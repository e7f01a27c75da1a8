//! Causal convolution over a sequence, each channel for itself: `output[t, c]` = `bias[c]` + Σₖ `weight[c, n_taps − 1 − k]` · the input `k`
//! positions before token `t` in its sequence. The latest inputs of each sequence stay in a state, from which the next forward goes on.

use bytemuck::{Pod, Zeroable};

use super::rope_kv::Token;
use super::{BatchShape, Binding, CONV, dispatch, f32_bytes, fold_items, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::model::Conv;

/// Params of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Params {
    /// Rows of the input.
    pub n_tokens: u32,
    /// Channels.
    pub width: u32,
    /// Positions that an output depends on.
    pub n_taps: u32,
    /// Sequences in the state.
    pub n_seqs: u32,
}

impl Params {
    /// Those of `conv`.
    pub fn of(conv: &Conv, batch: &BatchShape) -> Params {
        Params { n_tokens: batch.n_tokens, width: conv.width as u32, n_taps: conv.n_taps as u32, n_seqs: batch.n_seqs }
    }
}

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_tokens]` of [`Token`], those of a sequence at consecutive positions.
    pub tokens: Binding<'a>,
    /// `[n_tokens, width]`.
    pub input: Binding<'a>,
    /// `[width, n_taps]`, f32.
    pub weight: Binding<'a>,
    /// `[width]`, f32; `None` adds nothing.
    pub bias: Option<Binding<'a>>,
    /// `[n_seqs, n_taps, width]`, f32, read and written; what it holds for the first position of a sequence does not matter.
    pub state: Binding<'a>,
    /// `[n_tokens, width]`.
    pub output: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_tokens, width, n_taps, n_seqs } = *params;
    require(gpu, CONV.stem, n_tokens > 0 && n_taps > 0, "it has no tokens or no taps")?;
    let rows = f32_bytes(&[n_tokens, width]);
    // Where there is no bias, something must be bound all the same.
    let bias = bindings.bias.unwrap_or(bindings.weight);
    let needed = [
        (bindings.tokens, f32_bytes(&[n_tokens, 4])),
        (bindings.input, rows),
        (bindings.weight, f32_bytes(&[width, n_taps])),
        (bias, f32_bytes(&[width])),
        (bindings.state, f32_bytes(&[n_seqs, n_taps, width])),
        (bindings.output, rows),
    ];
    let workgroups = fold_items(gpu, CONV.stem, &[n_seqs, width])?;
    dispatch(gpu, &CONV, &[("HAS_BIAS", f64::from(u8::from(bindings.bias.is_some())))], params_buffer, &needed, workgroups)
}

/// What the CPU twin works on; shapes as in [`Bindings`].
#[derive(Debug)]
pub struct Values<'a> {
    /// As many rows as tokens.
    pub input: &'a [f32],
    /// The taps.
    pub weight: &'a [f32],
    /// What is added, if anything.
    pub bias: Option<&'a [f32]>,
    /// Read and written.
    pub state: &'a mut [f32],
    /// The result.
    pub output: &'a mut [f32],
}

/// CPU twin of `shaders/conv.wgsl`. Tokens of sequences that the state has no room for are left out.
pub fn reference(params: &Params, tokens: &[Token], values: Values<'_>) {
    let [n_tokens, width, n_taps] = [params.n_tokens, params.width, params.n_taps].map(|n| n as usize);
    let Values { input, weight, bias, state, output } = values;
    for (t, token) in tokens.iter().enumerate().take(n_tokens).filter(|(_, token)| token.seq < params.n_seqs) {
        let (position, state) = (token.position as usize, &mut state[token.seq as usize * n_taps * width..][..n_taps * width]);
        let row_of = |position: usize| position % n_taps * width;
        state[row_of(position)..][..width].copy_from_slice(&input[t * width..][..width]);
        let output = &mut output[t * width..][..width];
        match bias {
            Some(bias) => output.copy_from_slice(&bias[..width]),
            None => output.fill(0.0),
        }
        for k in 0..n_taps.min(position + 1) {
            let taps = weight[n_taps - 1 - k..].iter().step_by(n_taps);
            for ((output, tap), input) in output.iter_mut().zip(taps).zip(&state[row_of(position - k)..][..width]) {
                *output += tap * input;
            }
        }
    }
}
