//! Turns the queries and keys of new tokens by their positions (rotary embedding: each pair `(a, b)` of a head becomes
//! `(a·cos − b·sin, b·cos + a·sin)`), and writes keys and values into the caches. Defines the caches' layout, which `attention` reads.

use bytemuck::{Pod, Zeroable};

use super::kv_tables::{BLOCK_POSITIONS, block_at, row_in};
use super::rope;
use super::{BatchShape, Binding, ROPE_KV, dispatch, f32_bytes, fold_items, require};
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::model::{Rope, StoreKv};

/// How a cache stores its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum CacheDType {
    /// Four bytes a value.
    F32 = 0,
    /// Two bytes a value; `head_size` must be even.
    F16 = 1,
    /// Blocks of 32 values, rounded as [`DType::Q8_0`]'s are; `head_size` must be whole blocks. `rope_kv_blocks` has the layout.
    Q8_0 = 2,
    /// As `Q8_0`, rounded as [`DType::Q4_0`]'s are.
    Q4_0 = 3,
}

impl CacheDType {
    /// The one that params mean.
    pub fn of_params(dtype: u32) -> Option<CacheDType> {
        [CacheDType::F32, CacheDType::F16, CacheDType::Q8_0, CacheDType::Q4_0].into_iter().find(|own| *own as u32 == dtype)
    }

    /// What blocks of it are in files; `None` where it has none.
    pub fn blocks(self) -> Option<DType> {
        match self {
            CacheDType::F32 | CacheDType::F16 => None,
            CacheDType::Q8_0 => Some(DType::Q8_0),
            CacheDType::Q4_0 => Some(DType::Q4_0),
        }
    }

    /// Words that a head's values take, and those that their scales take.
    pub fn row_words(self, head_size: u32) -> [u32; 2] {
        let scales = (head_size / 32).div_ceil(2);
        match self {
            CacheDType::F32 => [head_size, 0],
            CacheDType::F16 => [head_size / 2, 0],
            CacheDType::Q8_0 => [head_size / 4, scales],
            CacheDType::Q4_0 => [head_size / 8, scales],
        }
    }

    /// Bytes of a cache of `[n_blocks, n_kv_heads, BLOCK_POSITIONS, head_size]`.
    pub(super) fn cache_bytes(self, [n_blocks, n_kv_heads]: [u32; 2], head_size: u32) -> u64 {
        let [values, scales] = self.row_words(head_size);
        f32_bytes(&[n_blocks, n_kv_heads, BLOCK_POSITIONS, values.saturating_add(scales)])
    }

    /// A head's values as the cache gives them back.
    pub fn rounded(self, head: &[f32]) -> Vec<f32> {
        match (self, self.blocks()) {
            (_, Some(dtype)) => {
                let mut bytes = vec![0; head.len() / dtype.block_len() as usize * dtype.block_bytes() as usize];
                let mut values = vec![0.0; head.len()];
                dtype.encode(head, &mut bytes);
                dtype.decode(&bytes, &mut values);
                values
            }
            (CacheDType::F16, None) => head.iter().map(|&x| half::f16::from_f32(x).to_f32()).collect(),
            (_, None) => head.to_vec(),
        }
    }
}

/// One token's place, as the kernels read it. Four words each: WGSL aligns so.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Token {
    /// The sequence.
    pub seq: u32,
    /// Its position in the sequence.
    pub position: u32,
    /// Positions of the sequence that the caches hold once this forward has stored its own.
    pub kv_len: u32,
    /// How many rows behind its own the table of its sequence begins: [`with_tables`](super::kv_tables::with_tables) says so.
    pub table: u32,
}

impl Token {
    /// The token at `position` of `seq`, of which `kv_len` positions are in the caches.
    pub fn new(seq: u32, position: u32, kv_len: u32) -> Token {
        Token { seq, position, kv_len, table: 0 }
    }
}

/// Params of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct Params {
    /// Rows of queries, keys and values.
    pub n_tokens: u32,
    /// Heads of a row of queries.
    pub n_heads: u32,
    /// Heads of a row of keys, and of values.
    pub n_kv_heads: u32,
    /// Values of a head: a multiple of 4, and here of 8 where attention is to read the caches.
    pub head_size: u32,
    /// Blocks in the caches.
    pub n_blocks: u32,
    /// Positions that a sequence may have.
    pub kv_capacity: u32,
    /// That of keys: a [`CacheDType`] as a number.
    pub key_dtype: u32,
    /// That of values; where keys are the values as well, that of keys.
    pub value_dtype: u32,
    /// [`RopePairing`](crate::model::RopePairing) as a number.
    pub pairing: u32,
    /// Values of a head that turn, from the first on: a multiple of 4, at most `head_size`.
    pub rotary_size: u32,
}

impl Params {
    /// Those of `store`; its heads as they are. `query`: how queries turn, and keys with them, on the way.
    pub fn of(store: &StoreKv, query: Option<&Rope>, batch: &BatchShape) -> Params {
        Params {
            n_tokens: batch.n_tokens,
            n_heads: query.map_or(0, |query| query.n_heads as u32),
            n_kv_heads: store.n_kv_heads as u32,
            head_size: store.head_size as u32,
            n_blocks: batch.n_blocks,
            kv_capacity: batch.kv_capacity,
            key_dtype: batch.kv_dtypes[0] as u32,
            value_dtype: batch.kv_dtypes[usize::from(store.value.is_some())] as u32,
            pairing: query.map_or(0, |query| query.pairs as u32),
            rotary_size: query.map_or(0, |query| query.rotary_size as u32),
        }
    }

    /// Whether keys or values become blocks, so that `rope_kv_blocks` stores them.
    pub fn stores_blocks(&self) -> bool {
        [self.key_dtype, self.value_dtype]
            .into_iter()
            .any(|dtype| CacheDType::of_params(dtype).is_some_and(|dtype| dtype.blocks().is_some()))
    }

    /// The rotation of rows of so many heads.
    pub fn rope(&self, n_heads: u32) -> rope::Params {
        let Params { n_tokens, head_size, rotary_size, pairing, .. } = *self;
        rope::Params { n_tokens, n_heads, head_size, rotary_size, pairing }
    }
}

/// Buffers of the shader.
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
    /// `[n_tokens, n_heads, head_size]`, rotated in place.
    pub query: Binding<'a>,
    /// `[n_blocks, n_kv_heads, BLOCK_POSITIONS, head_size]` as [`CacheDType`].
    pub key_cache: Binding<'a>,
    /// As `key_cache`, in a dtype of its own; anything that may be written where there are no values.
    pub value_cache: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or `head_size` is no multiple of 4.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_tokens, n_heads, n_kv_heads, head_size, pairing, rotary_size, .. } = *params;
    let is_whole = head_size.is_multiple_of(4) && rotary_size.is_multiple_of(4) && rotary_size <= head_size;
    require(gpu, ROPE_KV.stem, is_whole && pairing < 2, "head_size or rotary_size is no multiple of 4, or the pairing unknown")?;
    let dtypes = checked_dtypes(gpu, ROPE_KV.stem, [params.key_dtype, params.value_dtype], head_size)?;
    require(gpu, ROPE_KV.stem, !params.stores_blocks(), "it stores no blocks")?;
    let needed = bindings.needed(params, dtypes);
    let workgroups = fold_items(gpu, ROPE_KV.stem, &[n_tokens, n_heads.saturating_add(n_kv_heads), head_size / 4])?;
    let [key_dtype, value_dtype] = dtype_constants([params.key_dtype, params.value_dtype]);
    dispatch(gpu, &ROPE_KV, &[key_dtype, value_dtype, values_constant(bindings.value)], params_buffer, &needed, workgroups)
}

impl<'a> Bindings<'a> {
    /// The bindings in the shader's order, and the bytes that each must have.
    pub(super) fn needed(self, params: &Params, dtypes: [CacheDType; 2]) -> [(Binding<'a>, u64); 7] {
        let Params { n_tokens, n_heads, n_kv_heads, head_size, n_blocks, rotary_size, .. } = *params;
        let rows = f32_bytes(&[n_tokens, n_kv_heads, head_size]);
        let [keys, values] = dtypes.map(|dtype| dtype.cache_bytes([n_blocks, n_kv_heads], head_size));
        [
            (self.cos_sin, f32_bytes(&[n_tokens, rotary_size])),
            (self.tokens, f32_bytes(&[n_tokens, 4])),
            (self.key, rows),
            (self.value.unwrap_or(self.key), rows),
            (self.query, f32_bytes(&[n_tokens, n_heads, head_size])),
            (self.key_cache, keys),
            (self.value_cache, if self.value.is_some() { values } else { 4 }),
        ]
    }
}

/// The override constant that says whether there are values besides keys.
pub(super) fn values_constant(value: Option<Binding<'_>>) -> (&'static str, f64) {
    ("HAS_VALUES", f64::from(u8::from(value.is_some())))
}

/// The override constants that say how caches store keys and values.
pub(super) fn dtype_constants([key, value]: [u32; 2]) -> [(&'static str, f64); 2] {
    [("KEY_DTYPE", f64::from(key)), ("VALUE_DTYPE", f64::from(value))]
}

/// The dtypes of the caches of keys and of values, which can hold heads of this size.
pub(super) fn checked_dtypes(gpu: &Gpu, stem: &str, [key, value]: [u32; 2], head_size: u32) -> Result<[CacheDType; 2]> {
    let checked = |number: u32| {
        let dtype = CacheDType::of_params(number).ok_or_else(|| gpu.error(format!("kernel {stem}: a cache's dtype is unknown")))?;
        let values = dtype.blocks().map_or(number + 1, |dtype| dtype.block_len() as u32);
        require(gpu, stem, head_size.is_multiple_of(values), "heads of this size are no whole words or blocks of a cache's dtype")?;
        Ok(dtype)
    };
    Ok([checked(key)?, checked(value)?])
}

/// What the CPU twin works on, in f32 throughout; shapes as in [`Bindings`].
#[derive(Debug)]
pub struct Values<'a> {
    /// Turned in place.
    pub query: &'a mut [f32],
    /// Turned in place, as the shader does not.
    pub key: &'a mut [f32],
    /// Stored as it is.
    pub value: &'a [f32],
    /// Keys and values; rounded as the shader rounds them. Where keys are the values as well, that of these is
    /// empty.
    pub caches: [&'a mut [f32]; 2],
}

/// CPU twin of `shaders/rope_kv.wgsl`.
pub fn reference(params: &Params, cos_sin: &[f32], tokens: &[Token], values: Values<'_>) {
    rope::reference(&params.rope(params.n_heads), cos_sin, values.query);
    rope::reference(&params.rope(params.n_kv_heads), cos_sin, values.key);
    store(params, values.key, values.value, tokens, values.caches);
}

/// The storing part alone, of keys that are rotated.
pub fn store(params: &Params, key: &[f32], value: &[f32], tokens: &[Token], [key_cache, value_cache]: [&mut [f32]; 2]) {
    let [n_kv_heads, head_size] = [params.n_kv_heads, params.head_size].map(|n| n as usize);
    let [of_keys, of_values] = [params.key_dtype, params.value_dtype].map(|dtype| CacheDType::of_params(dtype).unwrap_or(CacheDType::F32));
    for (t, token) in tokens.iter().enumerate().take(params.n_tokens as usize) {
        let Some(block) = block_of(params, tokens, t) else { continue };
        for head in 0..n_kv_heads {
            let cached = row_in(block, params.n_kv_heads, head, token.position) * head_size;
            let row = (t * n_kv_heads + head) * head_size;
            key_cache[cached..][..head_size].copy_from_slice(&of_keys.rounded(&key[row..][..head_size]));
            if !value_cache.is_empty() {
                value_cache[cached..][..head_size].copy_from_slice(&of_values.rounded(&value[row..][..head_size]));
            }
        }
    }
}

/// The block that keeps token `index` of `placed`, which are [with their tables](super::kv_tables::with_tables); `None` of one that is dropped.
pub fn block_of(params: &Params, placed: &[Token], index: usize) -> Option<u32> {
    let position = placed.get(index)?.position;
    block_at(placed, index, position).filter(|block| position < params.kv_capacity && *block < params.n_blocks)
}
