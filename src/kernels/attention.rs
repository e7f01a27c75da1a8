//! Causal attention over the caches of `kv_store`, with grouped queries and an optional window:
//! `mixed[t, h] = Σ_p softmax_p(scale · query[t, h] · key[p]) · value[p]`, in memory that does not grow with the context.

use bytemuck::{Pod, Zeroable};

use super::kv_store::{Token, checked_dtype};
use super::{ATTENTION, Binding, dispatch, f32_bytes, fold, is_software, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

/// Largest head; the shader holds one in workgroup memory.
pub const MAX_HEAD_SIZE: u32 = 256;

/// Params of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct Params {
    /// Rows of queries.
    pub n_tokens: u32,
    /// Query heads.
    pub n_heads: u32,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: u32,
    /// Values of a head: a multiple of 8, at most [`MAX_HEAD_SIZE`].
    pub head_size: u32,
    /// Sequences in the caches.
    pub n_seqs: u32,
    /// Positions of a sequence in the caches.
    pub kv_capacity: u32,
    /// Positions that a token sees, its own included; 0 for all.
    pub window: u32,
    /// Usually `1 / sqrt(head_size)`.
    pub scale: f32,
    /// A [`super::kv_store::KvDType`] as a number.
    pub kv_dtype: u32,
}

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_tokens, n_heads, head_size]`.
    pub query: Binding<'a>,
    /// `[n_tokens]` of [`Token`].
    pub tokens: Binding<'a>,
    /// `[n_seqs, n_kv_heads, kv_capacity, head_size]`.
    pub key_cache: Binding<'a>,
    /// As `key_cache`.
    pub value_cache: Binding<'a>,
    /// `[n_tokens, n_heads, head_size]`.
    pub mixed: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or the heads do not divide or are too large.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_tokens, n_heads, n_kv_heads, head_size, n_seqs, kv_capacity, kv_dtype, .. } = *params;
    let in_word = checked_dtype(gpu, ATTENTION.stem, kv_dtype, head_size)?;
    let heads_fit = n_kv_heads > 0 && n_heads > 0 && n_heads.is_multiple_of(n_kv_heads);
    require(gpu, ATTENTION.stem, heads_fit, "n_kv_heads does not divide n_heads")?;
    let size_fits = (8..=MAX_HEAD_SIZE).contains(&head_size) && head_size.is_multiple_of(8);
    require(gpu, ATTENTION.stem, size_fits, "head_size must be a multiple of 8, at most 256")?;
    require(gpu, ATTENTION.stem, n_tokens > 0 && n_seqs > 0 && kv_capacity > 0, "it is empty")?;
    let rows = f32_bytes(&[n_tokens, n_heads, head_size]);
    let cache = f32_bytes(&[n_seqs, n_kv_heads, kv_capacity, head_size / in_word]);
    let needed = [
        (bindings.query, rows),
        (bindings.tokens, f32_bytes(&[n_tokens, 4])),
        (bindings.key_cache, cache),
        (bindings.value_cache, cache),
        (bindings.mixed, rows),
    ];
    let shape = if is_software(gpu) { software(n_heads / n_kv_heads) } else { HARDWARE };
    let constants = [
        ("KV_F16", f64::from(kv_dtype)),
        ("LANES", f64::from(shape.lanes)),
        ("HEADS", f64::from(shape.heads)),
        ("POSITIONS", f64::from(shape.positions)),
    ];
    let workgroups = fold(gpu, ATTENTION.stem, u64::from(n_tokens) * u64::from(n_heads / shape.heads), 1)?;
    dispatch(gpu, &ATTENTION, &constants, params_buffer, &needed, workgroups)
}

/// How the work is spread; the tunables of the shader.
#[derive(Debug, Clone, Copy)]
struct Shape {
    lanes: u32,
    heads: u32,
    positions: u32,
}

/// A workgroup for each query head, for the most workgroups; their common keys meet in the hardware's cache.
const HARDWARE: Shape = Shape { lanes: 64, heads: 1, positions: 1 };

/// Each load costs a software adapter dearly: a lane shares the keys it loads among query heads, the queries among positions.
fn software(group_size: u32) -> Shape {
    let heads = (1..=4).rev().find(|heads| group_size.is_multiple_of(*heads)).unwrap_or(1);
    Shape { lanes: 8, heads, positions: 4 }
}

/// The positions that `token` sees.
pub fn visible(params: &Params, token: &Token) -> std::ops::Range<usize> {
    let end = (token.position + 1).min(token.kv_len).min(params.kv_capacity);
    let begin = if params.window > 0 { (token.position + 1).saturating_sub(params.window) } else { 0 };
    begin as usize..end as usize
}

/// CPU twin of `shaders/attention.wgsl`, with caches in f32. The softmax is the plain one, over a row of scores.
pub fn reference(params: &Params, query: &[f32], tokens: &[Token], key_cache: &[f32], value_cache: &[f32], mixed: &mut [f32]) {
    for (t, token) in tokens.iter().enumerate().take(params.n_tokens as usize) {
        for head in 0..params.n_heads as usize {
            let begin = (t * params.n_heads as usize + head) * params.head_size as usize;
            let range = begin..begin + params.head_size as usize;
            reference_head(params, &query[range.clone()], token, head, (key_cache, value_cache), &mut mixed[range]);
        }
    }
}

/// One query head of one token: `query` and `mixed` are `[head_size]`; `caches` are key and value.
pub fn reference_head(params: &Params, query: &[f32], token: &Token, head: usize, caches: (&[f32], &[f32]), mixed: &mut [f32]) {
    let kv_head = head / (params.n_heads / params.n_kv_heads) as usize;
    let first_row = (token.seq as usize * params.n_kv_heads as usize + kv_head) * params.kv_capacity as usize;
    let row_at = |position: usize| (first_row + position) * query.len()..(first_row + position + 1) * query.len();
    let positions = visible(params, token);
    let scores: Vec<f32> =
        positions.clone().map(|position| params.scale * super::matmul::dot(query, &caches.0[row_at(position)])).collect();
    let maximum = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    mixed.fill(0.0);
    let mut total = 0.0;
    for (position, score) in positions.zip(&scores) {
        let share = (score - maximum).exp();
        total += share;
        for (sum, value) in mixed.iter_mut().zip(&caches.1[row_at(position)]) {
            *sum += share * value;
        }
    }
    // A token that sees nothing mixes nothing.
    if !scores.is_empty() {
        mixed.iter_mut().for_each(|sum| *sum /= total);
    }
}
