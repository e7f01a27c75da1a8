//! Causal attention over the caches of `rope_kv`, with grouped queries and an optional window:
//! `mixed[t, h] = Σ_p softmax_p(scale · query[t, h] · key[p]) · value[p]`, in memory that does not grow with the context.
//! Chooses the kernel by the tokens and the adapter; holds the one reference of all forms.

use bytemuck::{Pod, Zeroable};

use super::matmul::MAX_FEW_TOKENS;
use super::rope_kv::{Token, checked_dtype};
use super::{Binding, Needed, attention_combine, attention_subgroup, attention_tile, attention_token, f32_bytes, is_software, require};
use crate::device::TokenCount;
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

/// Largest head; the shaders hold one in workgroup memory, or in lanes.
pub const MAX_HEAD_SIZE: u32 = 256;

/// Params of every form.
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
    /// A [`super::rope_kv::KvDType`] as a number.
    pub kv_dtype: u32,
}

/// Buffers of every form.
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
    /// What [`parts_bytes`] says: the parts that a long context is attended in.
    pub parts: Binding<'a>,
    /// `[n_tokens, n_heads, head_size]`.
    pub mixed: Binding<'a>,
}

/// How attention is spread over an adapter's lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionForm {
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
/// Positions of a part, at least: enough work to be worth its combining.
pub const MIN_PART_POSITIONS: u32 = 256;
/// Parts of a context, at most.
pub const MAX_PARTS: u32 = 32;

/// Whether attention of `n_tokens`, which are `n_runs` runs of tokens of one sequence, is best done token by token or in tiles.
pub fn token_count(n_tokens: usize, n_runs: usize) -> TokenCount {
    let is_many = n_tokens > MAX_FEW_TOKENS as usize && n_tokens / n_runs.max(1) >= MIN_RUN;
    if is_many { TokenCount::Many } else { TokenCount::Few }
}

/// Makes the dispatches of the form that suits, one or two, to be encoded in their order and with the same params.
/// The choice sees what the forward is and what the adapter is, never what is resident on it.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or the heads do not divide or are too large.
pub fn prepare(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &Params,
    bindings: Bindings<'_>,
    tokens: TokenCount,
) -> Result<Vec<Dispatch>> {
    let form = match (tokens, is_software(gpu), attention_subgroup::is_possible(gpu)) {
        (TokenCount::Few, true, true) => AttentionForm::Subgroup,
        (TokenCount::Many, true, true) => AttentionForm::SubgroupTile,
        (TokenCount::Many, false, _) => AttentionForm::Tile,
        (TokenCount::Few, ..) | (TokenCount::Many, true, false) => AttentionForm::Token,
    };
    prepare_as(gpu, params_buffer, params, bindings, form)
}

/// Makes the dispatches of this form.
///
/// # Errors
/// As [`prepare`]; where the form is none of [`forms`].
pub fn prepare_as(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &Params,
    bindings: Bindings<'_>,
    form: AttentionForm,
) -> Result<Vec<Dispatch>> {
    let whole = match form {
        AttentionForm::Tile => attention_tile::prepare(gpu, params_buffer, params, bindings)?,
        AttentionForm::SubgroupTile => attention_subgroup::prepare_tile(gpu, params_buffer, params, bindings)?,
        AttentionForm::Token => attention_token::prepare(gpu, params_buffer, params, bindings)?,
        AttentionForm::Subgroup => attention_subgroup::prepare(gpu, params_buffer, params, bindings)?,
    };
    let takes_parts = matches!(form, AttentionForm::Token | AttentionForm::Subgroup);
    if takes_parts && n_parts(params) > 1 {
        return Ok(vec![whole, attention_combine::prepare(gpu, params_buffer, params, bindings)?]);
    }
    Ok(vec![whole])
}

/// The forms that the adapter can run.
pub fn forms(gpu: &Gpu) -> Vec<AttentionForm> {
    let mut forms = vec![AttentionForm::Token, AttentionForm::Tile];
    if attention_subgroup::is_possible(gpu) {
        forms.extend([AttentionForm::Subgroup, AttentionForm::SubgroupTile]);
    }
    forms
}

/// Positions of a part: what the parts begin at multiples of depends on nothing but the cache's capacity.
pub fn part_positions(kv_capacity: u32) -> u32 {
    kv_capacity.div_ceil(MAX_PARTS).next_multiple_of(MIN_PART_POSITIONS)
}

/// Parts that each token's context is attended in: one where there are tokens enough to keep an adapter busy.
pub(super) fn n_parts(params: &Params) -> u32 {
    let is_few = params.n_tokens <= MAX_FEW_TOKENS;
    if is_few { params.kv_capacity.div_ceil(part_positions(params.kv_capacity).max(1)) } else { 1 }
}

/// Bytes of the parts: for each token, head and part the weighted sum, its maximum, its total and two zeros. 0 where there is one.
pub fn parts_bytes(params: &Params) -> u64 {
    let parts = n_parts(params);
    if parts > 1 { f32_bytes(&[params.n_tokens, params.n_heads, parts, params.head_size.saturating_add(4)]) } else { 0 }
}

/// Override constants of the forms that attend in parts.
pub(super) fn part_constants(params: &Params) -> [(&'static str, f64); 2] {
    let is_split = n_parts(params) > 1;
    [("IS_SPLIT", f64::from(u8::from(is_split))), ("PART_POSITIONS", f64::from(part_positions(params.kv_capacity)))]
}

/// The bindings of `params` with the bytes that they demand; what is written comes last.
pub(super) fn needed<'a>(gpu: &Gpu, stem: &str, params: &Params, bindings: Bindings<'a>, target: Target) -> Result<[Needed<'a>; 5]> {
    let Params { n_tokens, n_heads, n_kv_heads, head_size, n_seqs, kv_capacity, kv_dtype, .. } = *params;
    let in_word = checked_dtype(gpu, stem, kv_dtype, head_size)?;
    let heads_fit = n_kv_heads > 0 && n_heads > 0 && n_heads.is_multiple_of(n_kv_heads);
    require(gpu, stem, heads_fit, "n_kv_heads does not divide n_heads")?;
    let size_fits = (8..=MAX_HEAD_SIZE).contains(&head_size) && head_size.is_multiple_of(8);
    require(gpu, stem, size_fits, "head_size must be a multiple of 8, at most 256")?;
    require(gpu, stem, n_tokens > 0 && n_seqs > 0 && kv_capacity > 0, "it is empty")?;
    let rows = f32_bytes(&[n_tokens, n_heads, head_size]);
    let cache = f32_bytes(&[n_seqs, n_kv_heads, kv_capacity, head_size / in_word]);
    Ok([
        (bindings.query, rows),
        (bindings.tokens, f32_bytes(&[n_tokens, 4])),
        (bindings.key_cache, cache),
        (bindings.value_cache, cache),
        match target {
            Target::Parts if n_parts(params) > 1 => (bindings.parts, parts_bytes(params)),
            Target::Parts | Target::Mixed => (bindings.mixed, rows),
        },
    ])
}

/// What a form writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The parts, where there are several.
    Parts,
    /// The result.
    Mixed,
}

/// Query heads of one key head that a workgroup serves: as many as divide the group, up to `most`.
pub(super) fn heads_together(params: &Params, most: u32) -> u32 {
    let group_size = params.n_heads / params.n_kv_heads;
    (1..=most).rev().find(|heads| group_size.is_multiple_of(*heads)).unwrap_or(1)
}

/// The positions that `token` sees.
pub fn visible(params: &Params, token: &Token) -> std::ops::Range<usize> {
    let end = (token.position + 1).min(token.kv_len).min(params.kv_capacity);
    let begin = if params.window > 0 { (token.position + 1).saturating_sub(params.window) } else { 0 };
    begin as usize..end as usize
}

/// CPU twin of all forms, with caches in f32. The softmax is the plain one, over a row of scores.
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
