//! As `rope_kv`, for heads of any even size: queries, keys and values are written as heads of whole octets, which attention reads.
//! Params are those of `rope_kv`, with the size of the heads as they are.

use super::rope_kv::{Params, Token, Values, checked_dtypes, dtype_constants, store, values_constant};
use super::{Binding, ROPE_KV_PADDED, dispatch, f32_bytes, fold_items, require, rope};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

/// Values of a head are padded to a multiple of so many, which the variants of attention load at once.
pub const OCTET: u32 = 8;

/// Values of a stored head.
pub const fn padded_size(head_size: u32) -> u32 {
    head_size.next_multiple_of(OCTET)
}

/// Buffers of the shader; `padded` is [`padded_size`].
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_tokens, rotary_size / 2, 2]`: cosine and sine of each pair's angle.
    pub cos_sin: Binding<'a>,
    /// `[n_tokens]` of [`Token`], [with the tables](super::kv_tables::with_tables) of their sequences.
    pub tokens: Binding<'a>,
    /// `[n_tokens, n_kv_heads, head_size]`, not rotated yet.
    pub key: Binding<'a>,
    /// As `key`; `None` where keys are the values as well.
    pub value: Option<Binding<'a>>,
    /// `[n_tokens, n_heads, head_size]`, not rotated yet.
    pub query: Binding<'a>,
    /// The queries: `[n_tokens, n_heads, padded]`.
    pub rotated_query: Binding<'a>,
    /// `[n_blocks, n_kv_heads, BLOCK_POSITIONS, padded]` as [`super::rope_kv::CacheDType`].
    pub key_cache: Binding<'a>,
    /// As `key_cache`, in a dtype of its own; anything that may be written where there are no values.
    pub value_cache: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or `head_size` is odd.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let stem = ROPE_KV_PADDED.stem;
    let Params { n_tokens, n_heads, n_kv_heads, head_size, n_blocks, pairing, rotary_size, .. } = *params;
    let is_even = head_size.is_multiple_of(2) && rotary_size.is_multiple_of(2) && rotary_size <= head_size;
    require(gpu, stem, is_even && pairing < 2, "head_size or rotary_size is odd, or the pairing unknown")?;
    let padded = padded_size(head_size);
    let dtypes = checked_dtypes(gpu, stem, [params.key_dtype, params.value_dtype], padded)?;
    require(gpu, stem, !params.stores_blocks(), "it stores no blocks")?;
    let rows = f32_bytes(&[n_tokens, n_kv_heads, head_size]);
    let [keys, values] = dtypes.map(|dtype| dtype.cache_bytes([n_blocks, n_kv_heads], padded));
    let needed = [
        (bindings.cos_sin, f32_bytes(&[n_tokens, rotary_size])),
        (bindings.tokens, f32_bytes(&[n_tokens, 4])),
        (bindings.key, rows),
        (bindings.value.unwrap_or(bindings.key), rows),
        (bindings.query, f32_bytes(&[n_tokens, n_heads, head_size])),
        (bindings.rotated_query, f32_bytes(&[n_tokens, n_heads, padded])),
        (bindings.key_cache, keys),
        (bindings.value_cache, if bindings.value.is_some() { values } else { 4 }),
    ];
    let workgroups = fold_items(gpu, stem, &[n_tokens, n_heads.saturating_add(n_kv_heads), padded / 2])?;
    let [key_dtype, value_dtype] = dtype_constants([params.key_dtype, params.value_dtype]);
    dispatch(gpu, &ROPE_KV_PADDED, &[key_dtype, value_dtype, values_constant(bindings.value)], params_buffer, &needed, workgroups)
}

/// CPU twin of `shaders/rope_kv_padded.wgsl`: `values` are as in `rope_kv`, with padded caches; returns the padded queries.
pub fn reference(params: &Params, cos_sin: &[f32], tokens: &[Token], values: Values<'_>) -> Vec<f32> {
    rope::reference(&params.rope(params.n_heads), cos_sin, values.query);
    rope::reference(&params.rope(params.n_kv_heads), cos_sin, values.key);
    let pad = |rows: &[f32]| padded(params.head_size, rows);
    let stored = Params { head_size: padded_size(params.head_size), ..*params };
    store(&stored, &pad(values.key), &pad(values.value), tokens, values.caches);
    pad(values.query)
}

/// Heads of `head_size` as padded ones.
pub fn padded(head_size: u32, heads: &[f32]) -> Vec<f32> {
    let padding = (padded_size(head_size) - head_size) as usize;
    let pad = |head: &[f32]| head.iter().copied().chain(std::iter::repeat_n(0.0, padding)).collect::<Vec<f32>>();
    heads.chunks_exact(head_size as usize).flat_map(pad).collect()
}
