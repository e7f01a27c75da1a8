//! As `rope_kv`, where keys or values, or both, are cached as blocks: 32 values that share a scale, rounded as ggml rounds them. Bindings, params
//! and reference are those of `rope_kv`; defines how such caches lie in memory.
//!
//! The values of all rows come first, a row being a head of a position, and then the scales of all rows, f16, two to a word, each row's in
//! whole words. Values of Q8_0 are bytes, those of Q4_0 nibbles, each eight of which follow each other from the lowest bits on.

use super::rope_kv::{Bindings, CacheDType, Params, checked_dtypes, dtype_constants, values_constant};
use super::{ROPE_KV_BLOCKS, dispatch, fold, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

/// Values of a block.
const BLOCK_LEN: usize = 32;

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or the heads are no whole blocks.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let stem = ROPE_KV_BLOCKS.stem;
    let Params { n_tokens, n_heads, n_kv_heads, head_size, pairing, rotary_size, .. } = *params;
    let is_even = rotary_size.is_multiple_of(2) && rotary_size <= head_size;
    require(gpu, stem, is_even && pairing < 2, "rotary_size is odd, or the pairing unknown")?;
    let is_some = n_tokens > 0 && n_kv_heads > 0 && (32..=super::attention::MAX_HEAD_SIZE).contains(&head_size);
    require(gpu, stem, is_some, "it is empty, or its heads are too large")?;
    let dtypes = checked_dtypes(gpu, stem, [params.key_dtype, params.value_dtype], head_size)?;
    require(gpu, stem, params.stores_blocks() && head_size.is_multiple_of(BLOCK_LEN as u32), "it stores blocks, of keys or of values")?;
    let n_stored = u64::from(n_kv_heads) * if bindings.value.is_some() { 2 } else { 1 };
    let workgroups = fold(gpu, stem, u64::from(n_tokens) * (u64::from(n_heads) + n_stored), 1)?;
    let [key_dtype, value_dtype] = dtype_constants([params.key_dtype, params.value_dtype]);
    let constants = [key_dtype, value_dtype, ("OCTETS", f64::from(head_size / 8)), values_constant(bindings.value)];
    dispatch(gpu, &ROPE_KV_BLOCKS, &constants, params_buffer, &bindings.needed(params, dtypes), workgroups)
}

/// A cache of such rows as the shader lays it out; `None` of a dtype without blocks.
pub fn packed(dtype: CacheDType, head_size: u32, rows: &[f32]) -> Option<Vec<u32>> {
    let blocks = dtype.blocks()?;
    let mut bytes = vec![0; rows.len() / BLOCK_LEN * blocks.block_bytes() as usize];
    blocks.encode(rows, &mut bytes);
    let stored: Vec<&[u8]> = bytes.chunks_exact(blocks.block_bytes() as usize).collect();
    let mut words: Vec<u32> = stored.iter().flat_map(|block| words_of(dtype, &block[2..])).collect();
    for row in stored.chunks_exact(head_size as usize / BLOCK_LEN) {
        let scale = |block: Option<&&[u8]>| block.map_or(0, |block| u32::from(u16::from_le_bytes([block[0], block[1]])));
        words.extend(row.chunks(2).map(|two| scale(two.first()) | scale(two.get(1)) << 16));
    }
    Some(words)
}

/// The values of a block as a file has them, as words of the cache.
fn words_of(dtype: CacheDType, stored: &[u8]) -> Vec<u32> {
    match dtype {
        // A file has the nibbles of the first sixteen values below those of the others.
        CacheDType::Q4_0 => {
            let nibble = |k: usize| u32::from(stored[k % 16] >> (k / 16 * 4) & 15);
            (0..4).map(|word| (0..8).map(|k| nibble(word * 8 + k) << (4 * k)).sum()).collect()
        }
        _ => stored.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect(),
    }
}
