//! Keys or values of a layer in host memory: as f32, or as blocks of 32 that share a scale, which attention decodes some positions at a time.

use std::ops::Range;

use super::simd::simd;
use crate::dtype::DType;
use crate::kernels::kv_tables::row_in;
use crate::kernels::rope_kv::{Params, Token, block_of};

/// Keys or values of a layer: rows of `[n_blocks, n_kv_heads, BLOCK_POSITIONS]`, each the values of a head.
#[derive(Debug, Clone, PartialEq)]
pub enum KvCache {
    /// As they are.
    Floats(Vec<f32>),
    /// As a file has blocks of this dtype.
    Blocks(DType, Vec<u8>),
}

/// A cache that attention reads.
#[derive(Debug, Clone, Copy)]
pub enum Cached<'c> {
    /// See [`KvCache::Floats`].
    Floats(&'c [f32]),
    /// See [`KvCache::Blocks`].
    Blocks(DType, &'c [u8]),
}

impl<'c> From<&'c KvCache> for Cached<'c> {
    fn from(cache: &'c KvCache) -> Cached<'c> {
        match cache {
            KvCache::Floats(values) => Cached::Floats(values),
            KvCache::Blocks(dtype, blocks) => Cached::Blocks(*dtype, blocks),
        }
    }
}

impl<'c> From<&'c Vec<f32>> for Cached<'c> {
    fn from(values: &'c Vec<f32>) -> Cached<'c> {
        Cached::Floats(values)
    }
}

impl Default for KvCache {
    /// One that holds nothing, where keys are the values as well.
    fn default() -> KvCache {
        KvCache::Floats(Vec::new())
    }
}

impl KvCache {
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.n_bytes() == 0
    }

    /// Bytes that it takes.
    pub fn n_bytes(&self) -> usize {
        match self {
            KvCache::Floats(values) => values.len() * 4,
            KvCache::Blocks(_, blocks) => blocks.len(),
        }
    }

    /// Its bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            KvCache::Floats(values) => bytemuck::cast_slice_mut(values),
            KvCache::Blocks(_, blocks) => blocks,
        }
    }

    /// Copies a range of its bytes, whole rows, to where it says.
    pub fn copy_within(&mut self, source: Range<usize>, target: usize) {
        match self {
            KvCache::Floats(values) => values.copy_within(source.start / 4..source.end / 4, target / 4),
            KvCache::Blocks(_, blocks) => blocks.copy_within(source, target),
        }
    }

    /// Stores the heads of `rows`, `[n_tokens, n_kv_heads, head_size]`, where the tables of `placed` say; those of tokens outside are dropped.
    pub fn store(&mut self, params: &Params, rows: &[f32], placed: &[Token]) {
        let [n_kv_heads, head_size] = [params.n_kv_heads, params.head_size].map(|n| n as usize);
        for (t, heads) in rows.chunks_exact(n_kv_heads * head_size).enumerate().take(params.n_tokens as usize) {
            let Some(block) = block_of(params, placed, t) else { continue };
            for (head, values) in heads.chunks_exact(head_size).enumerate() {
                let row = row_in(block, params.n_kv_heads, head, placed[t].position);
                match self {
                    KvCache::Floats(cached) => cached[row * head_size..][..head_size].copy_from_slice(values),
                    KvCache::Blocks(dtype, cached) => {
                        let row_bytes = bytes_of(*dtype, head_size);
                        dtype.encode(values, &mut cached[row * row_bytes..][..row_bytes]);
                    }
                }
            }
        }
    }
}

impl Cached<'_> {
    /// Rows of so many values each, in several ranges of which only blocks have more than one; decoded into `decoded`, where they are blocks.
    pub fn rows<'c>(&'c self, head_size: usize, mut ranges: impl Iterator<Item = Range<usize>>, decoded: &'c mut Vec<f32>) -> &'c [f32] {
        match *self {
            Cached::Floats(values) => ranges.next().map_or(&[], |rows| &values[rows.start * head_size..rows.end * head_size]),
            Cached::Blocks(dtype, blocks) => {
                let row_bytes = bytes_of(dtype, head_size);
                decoded.clear();
                for rows in ranges {
                    let begin = decoded.len();
                    decoded.resize(begin + rows.len() * head_size, 0.0);
                    (simd().decode)(dtype, &blocks[rows.start * row_bytes..rows.end * row_bytes], &mut decoded[begin..]);
                }
                decoded
            }
        }
    }
}

/// Bytes of a head's values, which are whole blocks.
fn bytes_of(dtype: DType, head_size: usize) -> usize {
    head_size / dtype.block_len() as usize * dtype.block_bytes() as usize
}
