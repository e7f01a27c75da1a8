//! Attention over the caches of `rope_kv`, causal or to both sides, with grouped queries and an optional window:
//! `attention_output[t, h] = Σ_p softmax_p(scale · query[t, h] · key[p]) · value[p]`, in memory that does not grow with the context; with a softcap
//! each score `x` is `cap · tanh(x / cap)`; a sink is one more score of a head, with no value.
//! Chooses the kernel by the tokens and the adapter; holds the one reference of all variants.

pub mod combine;
pub mod compact;
pub mod subgroup;
pub mod tile;
pub mod token;

use bytemuck::{Pod, Zeroable};

use super::kv_tables::{block_at, row_in};
use super::matmul::MAX_DECODE_TOKENS;
use super::rope_kv::{Token, checked_dtypes, dtype_constants};
use super::{BatchShape, Binding, Needed, f32_bytes, is_software, require};
use crate::device::Phase;
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::model::Attention;

/// Largest head; the shaders hold one in workgroup memory, or in lanes.
pub const MAX_HEAD_SIZE: u32 = 1024;
/// Largest head of the variants that hold several of them; wider ones, which all query heads share, are left to [`AttentionVariant::Token`].
const MAX_SHARED_SIZE: u32 = 256;

/// Params of every variant.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct Params {
    /// Rows of queries.
    pub n_tokens: u32,
    /// Query heads.
    pub n_heads: u32,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: u32,
    /// Values of a stored head: a multiple of 8, at most [`MAX_HEAD_SIZE`]; [`super::rope_kv_padded::padded_size`] of the model's.
    pub head_size: u32,
    /// Blocks in the caches.
    pub n_blocks: u32,
    /// Positions that a sequence may have.
    pub kv_capacity: u32,
    /// How near the positions are that a token sees: those less than so many away; 0 for all.
    pub window: u32,
    /// Usually `1 / sqrt(head_size)` of the heads as the model has them.
    pub scale: f32,
    /// That of keys: a [`super::rope_kv::CacheDType`] as a number.
    pub key_dtype: u32,
    /// That of values.
    pub value_dtype: u32,
    /// The cap of scores; 0 for none.
    pub softcap: f32,
    /// 1: a token sees no position behind its own; 0: it sees those as well.
    pub is_causal: u32,
    /// 1: windows are chunks, of which a token sees the positions since the last multiple of `window`.
    pub in_chunks: u32,
}

impl Params {
    /// Those of `attention`, which has values besides keys; its heads as they are.
    pub fn of(attention: &Attention, batch: &BatchShape) -> Params {
        Params {
            n_tokens: batch.n_tokens,
            n_heads: attention.n_heads as u32,
            n_kv_heads: attention.n_kv_heads as u32,
            head_size: attention.head_size as u32,
            n_blocks: batch.n_blocks,
            kv_capacity: batch.kv_capacity,
            window: attention.window.unwrap_or(0) as u32,
            scale: attention.scale,
            key_dtype: batch.kv_dtypes[0] as u32,
            value_dtype: batch.kv_dtypes[1] as u32,
            softcap: attention.softcap.unwrap_or(0.0),
            is_causal: u32::from(attention.is_causal),
            in_chunks: u32::from(attention.in_chunks),
        }
    }
}

/// Buffers of every variant.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_tokens, n_heads, head_size]`.
    pub query: Binding<'a>,
    /// `[n_tokens]` of [`Token`], [with the tables](super::kv_tables::with_tables) of their sequences.
    pub tokens: Binding<'a>,
    /// `[n_blocks, n_kv_heads, BLOCK_POSITIONS, head_size]`.
    pub key_cache: Binding<'a>,
    /// As `key_cache`, in a dtype of its own.
    pub value_cache: Binding<'a>,
    /// `[n_heads]`: a score of each head that takes a share and has no value; `None` where there are none.
    pub sinks: Option<Binding<'a>>,
    /// What [`parts_bytes`] says: the parts that a long context is attended in.
    pub parts: Binding<'a>,
    /// `[n_tokens, n_heads, head_size]`.
    pub attention_output: Binding<'a>,
}

impl<'a> Bindings<'a> {
    /// The tokens of `params` from `token` on: one of those that [`cut`] returns.
    #[must_use]
    pub fn from_token(self, params: &Params, token: u32) -> Bindings<'a> {
        let rows = f32_bytes(&[token, params.n_heads, params.head_size]);
        let [query, tokens, attention_output] = [(self.query, rows), (self.tokens, f32_bytes(&[token, 4])), (self.attention_output, rows)]
            .map(|(binding, bytes)| binding.behind(bytes));
        Bindings { query, tokens, attention_output, ..self }
    }
}

/// How attention is spread over an adapter's lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionVariant {
    /// Each token attends for itself; a long context in parts, where there are few tokens.
    Token,
    /// Tokens side by side share the keys and values that they load.
    Tile,
    /// As `Token`, passing values round in the subgroup. Not every adapter can.
    Subgroup,
    /// As `Tile`, passing values round in the subgroup.
    SubgroupTile,
}

/// Tokens that follow each other in a sequence, on average, for which tiles pay: a tile takes its sequences one by one.
const MIN_RUN: usize = 4;
/// Tokens of one of several dispatches, at least: enough to keep an adapter busy.
const MIN_CUT_TOKENS: u32 = 64;
/// Dispatches begin at multiples of so many tokens, which begin at a binding's alignment in every buffer, whatever the heads.
const CUT_ALIGNMENT: u32 = 32;
/// Positions of a part, at least: enough work to be worth its combining.
pub const MIN_PART_POSITIONS: u32 = 256;
/// Parts of a context, at most.
pub const MAX_PARTS: u32 = 32;

/// Whether attention of `n_tokens`, which are `n_runs` runs of tokens of one sequence, is best done token by token or in tiles.
pub fn phase(n_tokens: usize, n_runs: usize) -> Phase {
    let is_prefill = n_tokens > MAX_DECODE_TOKENS as usize && n_tokens / n_runs.max(1) >= MIN_RUN;
    if is_prefill { Phase::Prefill } else { Phase::Decode }
}

/// Attention of many tokens as that of some at a time, for an adapter that all of them would keep busy for too long: the params of each of
/// at most `n_cuts` dispatches, which are the same, and their first tokens. Where the tokens do not divide, some are attended for twice,
/// with the same result.
pub fn cut(params: &Params, n_cuts: usize) -> (Params, Vec<u32>) {
    let n_cuts = u32::try_from(n_cuts).unwrap_or(u32::MAX).min(params.n_tokens / MIN_CUT_TOKENS).max(1);
    let step = params.n_tokens.div_ceil(n_cuts).next_multiple_of(CUT_ALIGNMENT);
    // So many that the last ones begin at a multiple too.
    let n_together = step + params.n_tokens % CUT_ALIGNMENT;
    if n_cuts == 1 || n_together >= params.n_tokens {
        return (*params, vec![0]);
    }
    let last = params.n_tokens - n_together;
    let begins = (0..last).step_by(step as usize).chain([last]).collect();
    (Params { n_tokens: n_together, ..*params }, begins)
}

/// Makes the dispatches of the variant that suits, one or two, to be encoded in their order and with the same params.
/// The choice sees what the forward is and what the adapter is, never what is resident on it.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or the heads do not divide or are too large.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>, phase: Phase) -> Result<Vec<Dispatch>> {
    let variant = match (phase, is_software(gpu), subgroup::is_possible(gpu)) {
        _ if params.head_size > MAX_SHARED_SIZE => AttentionVariant::Token,
        (Phase::Decode, true, true) => AttentionVariant::Subgroup,
        (Phase::Prefill, true, true) => AttentionVariant::SubgroupTile,
        (Phase::Prefill, false, _) => AttentionVariant::Tile,
        (Phase::Decode, ..) | (Phase::Prefill, true, false) => AttentionVariant::Token,
    };
    prepare_as(gpu, params_buffer, params, bindings, variant)
}

/// Makes the dispatches of this variant.
///
/// # Errors
/// As [`prepare`]; where the variant is none of [`variants`].
pub fn prepare_as(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &Params,
    bindings: Bindings<'_>,
    variant: AttentionVariant,
) -> Result<Vec<Dispatch>> {
    if variant != AttentionVariant::Token {
        require(gpu, "attention", params.head_size <= MAX_SHARED_SIZE, "heads of more than 256 values are attended token by token only")?;
    }
    let whole = match variant {
        AttentionVariant::Tile => tile::prepare(gpu, params_buffer, params, bindings)?,
        AttentionVariant::SubgroupTile => subgroup::prepare_tile(gpu, params_buffer, params, bindings)?,
        AttentionVariant::Token => token::prepare(gpu, params_buffer, params, bindings)?,
        AttentionVariant::Subgroup => subgroup::prepare(gpu, params_buffer, params, bindings)?,
    };
    let takes_parts = matches!(variant, AttentionVariant::Token | AttentionVariant::Subgroup);
    if takes_parts && n_parts(params) > 1 {
        return Ok(vec![whole, combine::prepare(gpu, params_buffer, params, bindings)?]);
    }
    Ok(vec![whole])
}

/// The variants that the adapter can run with heads of this size.
pub fn variants(gpu: &Gpu, head_size: u32) -> Vec<AttentionVariant> {
    let mut variants = vec![AttentionVariant::Token];
    if head_size > MAX_SHARED_SIZE {
        return variants;
    }
    variants.push(AttentionVariant::Tile);
    if subgroup::is_possible(gpu) {
        variants.extend([AttentionVariant::Subgroup, AttentionVariant::SubgroupTile]);
    }
    variants
}

/// Positions of a part: what the parts begin at multiples of depends on nothing but the cache's capacity.
pub fn part_positions(kv_capacity: u32) -> u32 {
    kv_capacity.div_ceil(MAX_PARTS).next_multiple_of(MIN_PART_POSITIONS)
}

/// Parts that each token's context is attended in: one where there are tokens enough to keep an adapter busy.
pub(super) fn n_parts(params: &Params) -> u32 {
    let is_few = params.n_tokens <= MAX_DECODE_TOKENS;
    if is_few { params.kv_capacity.div_ceil(part_positions(params.kv_capacity).max(1)) } else { 1 }
}

/// Bytes of the parts: for each token, head and part the weighted sum, its maximum, its total and two zeros. 0 where there is one.
pub fn parts_bytes(params: &Params) -> u64 {
    let parts = n_parts(params);
    if parts > 1 { f32_bytes(&[params.n_tokens, params.n_heads, parts, params.head_size.saturating_add(4)]) } else { 0 }
}

/// Override constants of all variants that say how the caches lie in memory.
pub(super) fn cache_constants(params: &Params) -> [(&'static str, f64); 3] {
    let [key_dtype, value_dtype] = dtype_constants([params.key_dtype, params.value_dtype]);
    [key_dtype, value_dtype, ("OCTETS", f64::from(params.head_size / 8))]
}

/// The override constant of all variants that says whether scores are capped.
pub(super) fn softcap_constant(params: &Params) -> (&'static str, f64) {
    ("HAS_SOFTCAP", f64::from(u8::from(params.softcap > 0.0)))
}

/// Override constants of the variants that attend in parts.
pub(super) fn part_constants(params: &Params) -> [(&'static str, f64); 2] {
    let is_split = n_parts(params) > 1;
    [("IS_SPLIT", f64::from(u8::from(is_split))), ("PART_POSITIONS", f64::from(part_positions(params.kv_capacity)))]
}

/// The bindings of `params` with the bytes that they demand; what is written comes last.
pub(super) fn needed<'a>(gpu: &Gpu, stem: &str, params: &Params, bindings: Bindings<'a>, target: Target) -> Result<[Needed<'a>; 6]> {
    let Params { n_tokens, n_heads, n_kv_heads, head_size, n_blocks, kv_capacity, .. } = *params;
    let dtypes = checked_dtypes(gpu, stem, [params.key_dtype, params.value_dtype], head_size)?;
    let heads_fit = n_kv_heads > 0 && n_heads > 0 && n_heads.is_multiple_of(n_kv_heads);
    require(gpu, stem, heads_fit, "n_kv_heads does not divide n_heads")?;
    let most = if stem == super::ATTENTION_TOKEN.stem { MAX_HEAD_SIZE } else { MAX_SHARED_SIZE };
    let size_fits = (8..=most).contains(&head_size) && head_size.is_multiple_of(8);
    require(gpu, stem, size_fits, "head_size must be a multiple of 8, and no larger than it holds")?;
    require(gpu, stem, n_tokens > 0 && n_blocks > 0 && kv_capacity > 0, "it is empty")?;
    let rows = f32_bytes(&[n_tokens, n_heads, head_size]);
    let [keys, values] = dtypes.map(|dtype| dtype.cache_bytes([n_blocks, n_kv_heads], head_size));
    Ok([
        (bindings.query, rows),
        (bindings.tokens, f32_bytes(&[n_tokens, 4])),
        (bindings.key_cache, keys),
        (bindings.value_cache, values),
        sinks_needed(params, &bindings),
        match target {
            Target::Parts if n_parts(params) > 1 => (bindings.parts, parts_bytes(params)),
            Target::Parts | Target::Output => (bindings.attention_output, rows),
        },
    ])
}

/// The sinks with the bytes of them that the params demand. Without any, something must be bound that is not read.
pub(super) fn sinks_needed<'a>(params: &Params, bindings: &Bindings<'a>) -> Needed<'a> {
    bindings.sinks.map_or((bindings.tokens, 4), |sinks| (sinks, f32_bytes(&[params.n_heads])))
}

/// The override constant of all variants that says whether there are sinks.
pub(super) fn sinks_constant(bindings: &Bindings<'_>) -> (&'static str, f64) {
    ("HAS_SINKS", f64::from(u8::from(bindings.sinks.is_some())))
}

/// What a variant writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The parts, where there are several.
    Parts,
    /// The result.
    Output,
}

/// Query heads of one key head that a workgroup serves: as many as divide the group, up to `most`.
pub(super) fn heads_together(params: &Params, most: u32) -> u32 {
    let group_size = params.n_heads / params.n_kv_heads;
    (1..=most).rev().find(|heads| group_size.is_multiple_of(*heads)).unwrap_or(1)
}

/// The positions that `token` sees.
pub fn visible(params: &Params, token: &Token) -> std::ops::Range<usize> {
    let behind = match (params.is_causal, params.window) {
        (0, 0) => u32::MAX,
        (0, window) => token.position.saturating_add(window),
        _ => token.position + 1,
    };
    let end = behind.min(token.kv_len).min(params.kv_capacity);
    let begin = match (params.window, params.in_chunks) {
        (0, _) => 0,
        (window, 0) => (token.position + 1).saturating_sub(window),
        (chunk, _) => token.position / chunk * chunk,
    };
    begin as usize..end as usize
}

/// CPU twin of all variants, with caches in f32, of keys and of values. The softmax is the plain one, over a row of scores.
pub fn reference(
    params: &Params,
    query: &[f32],
    placed: &[Token],
    caches: (&[f32], &[f32]),
    sinks: Option<&[f32]>,
    attention_output: &mut [f32],
) {
    for t in 0..params.n_tokens as usize {
        for head in 0..params.n_heads as usize {
            let begin = (t * params.n_heads as usize + head) * params.head_size as usize;
            let range = begin..begin + params.head_size as usize;
            let sink = sinks.map(|sinks| sinks[head]);
            reference_head(params, &query[range.clone()], (&placed[t..], head), caches, sink, &mut attention_output[range]);
        }
    }
}

/// One query head of the first token of `placed`: `query` and `attention_output` are `[head_size]`; `caches` are key and value.
pub fn reference_head(
    params: &Params,
    query: &[f32],
    (placed, head): (&[Token], usize),
    caches: (&[f32], &[f32]),
    sink: Option<f32>,
    attention_output: &mut [f32],
) {
    let kv_head = head / (params.n_heads / params.n_kv_heads) as usize;
    let row_at = |position: usize| {
        let position = position as u32;
        let row = row_in(block_at(placed, 0, position).unwrap_or_default(), params.n_kv_heads, kv_head, position);
        row * query.len()..(row + 1) * query.len()
    };
    let positions = visible(params, &placed[0]);
    let score = |position: usize| params.scale * super::matmul::dot(query, &caches.0[row_at(position)]);
    let capped = |score: f32| if params.softcap > 0.0 { params.softcap * (score / params.softcap).tanh() } else { score };
    let scores: Vec<f32> = positions.clone().map(|position| capped(score(position))).collect();
    let maximum = scores.iter().copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
    attention_output.fill(0.0);
    let mut total = sink.map_or(0.0, |sink| (sink - maximum).exp());
    for (position, score) in positions.zip(&scores) {
        let share = (score - maximum).exp();
        total += share;
        for (sum, value) in attention_output.iter_mut().zip(&caches.1[row_at(position)]) {
            *sum += share * value;
        }
    }
    // A token that sees nothing mixes nothing.
    if !scores.is_empty() {
        attention_output.iter_mut().for_each(|sum| *sum /= total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(n_tokens: u32) -> Params {
        let (n_heads, n_kv_heads, head_size) = (9, 3, 64);
        Params {
            n_tokens,
            n_heads,
            n_kv_heads,
            head_size,
            n_blocks: 16,
            kv_capacity: 512,
            window: 0,
            scale: 0.125,
            key_dtype: 1,
            value_dtype: 1,
            softcap: 0.0,
            is_causal: 1,
            in_chunks: 0,
        }
    }

    #[test]
    fn every_token_is_attended_for_however_attention_is_cut() {
        for n_tokens in (1..600).chain([2048, 4099]) {
            for n_cuts in [0, 1, 2, 3, 7, 64, usize::MAX] {
                let (each, begins) = cut(&params(n_tokens), n_cuts);
                assert!(begins.len() <= n_cuts.max(1) && begins.iter().all(|begin| begin.is_multiple_of(CUT_ALIGNMENT)));
                assert!(begins.len() == 1 || each.n_tokens >= MIN_CUT_TOKENS, "{n_tokens} tokens in {n_cuts}: {each:?}");
                let end = begins.iter().fold(0, |end, &begin| {
                    assert!(begin <= end, "{n_tokens} tokens in {n_cuts}: those before {begin} are left out");
                    begin + each.n_tokens
                });
                assert_eq!(end, n_tokens, "in {n_cuts}");
            }
        }
        assert_eq!(cut(&params(512), 8), (params(64), (0..8).map(|index| index * 64).collect()));
        assert_eq!(cut(&params(500), 3), (params(212), vec![0, 192, 288]));
    }
}
