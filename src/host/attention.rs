//! Attention on all threads: what `kernels::attention` defines, as two products over the cached positions.

use std::ops::Range;

use super::Cached;
use super::elementwise::softcap;
use super::exp::exp;
use super::kept::{Kept, Pool, Working, clear_for};
use crate::host::simd::{Simd, simd};
use crate::kernels::attention::{Params, visible};
use crate::kernels::kv_tables::{BLOCK_POSITIONS, block_at, row_in};
use crate::kernels::rope_kv::Token;
use crate::platform::{for_each_part, n_sharing_threads};

/// Consecutive tokens that share the loads of keys and values.
const TOKENS_AT_ONCE: usize = 8;
/// Positions whose keys or values are decoded at once.
const POSITIONS_AT_ONCE: usize = 2 * BLOCK_POSITIONS as usize;
/// Products of query and key below which one thread does all: other threads would take as long to wake.
const MIN_PARALLEL_PRODUCTS: usize = 16_384;
/// Partial sums of a softmax.
const LANES: usize = 8;

/// Attention of every token and head.
///
/// `query` and `attention_output` are `[n_tokens, n_heads, head_size]`, `placed` the tokens with their tables, the caches of keys and of values
/// `[n_blocks, n_kv_heads, BLOCK_POSITIONS, head_size]`, sinks `[n_heads]`.
pub fn attention<'a>(
    params: &Params,
    query: &[f32],
    placed: &[Token],
    caches: [impl Into<Cached<'a>>; 2],
    sinks: Option<&[f32]>,
    attention_output: &mut [f32],
) {
    let tokens = &placed[..params.n_tokens as usize];
    let sizes = Sizes::new(params);
    let token_len = sizes.n_kv_heads * sizes.group_len();
    let attention = Attention { simd: simd(), params, sizes, query, placed, caches: caches.map(Into::into), sinks };
    let attention_output = &mut attention_output[..tokens.len() * token_len];
    let n_products: usize = tokens.iter().map(|token| visible(params, token).len() * token_len).sum();
    if n_products <= MIN_PARALLEL_PRODUCTS {
        attention.mix(0, tokens, 0, attention_output, &mut POOL.take());
    } else if tokens.len() >= TOKENS_AT_ONCE * n_sharing_threads() {
        let scratch = || attention.scratch(tokens, TOKENS_AT_ONCE);
        for_each_part(attention_output, TOKENS_AT_ONCE * token_len, scratch, |scratch, part, attention_output| {
            let first = part * TOKENS_AT_ONCE;
            let tokens = &tokens[first..tokens.len().min(first + TOKENS_AT_ONCE)];
            attention.mix(first, tokens, 0, attention_output, scratch);
        });
    } else {
        let scratch = || attention.scratch(tokens, 1);
        for_each_part(attention_output, sizes.group_len(), scratch, |scratch, part, attention_output| {
            let (token, kv_head) = (part / sizes.n_kv_heads, part % sizes.n_kv_heads);
            attention.mix(token, &tokens[token..=token], kv_head, attention_output, scratch);
        });
    }
}

static POOL: Pool<Scratch> = Pool::new();

impl Working for Scratch {
    fn n_bytes(&self) -> usize {
        let all = [&self.query, &self.scores, &self.sums, &self.rows, &self.some_scores];
        all.iter().map(|values| values.capacity() * size_of::<f32>()).sum()
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    n_kv_heads: usize,
    /// Query heads that share a key head.
    n_in_group: usize,
    head_size: usize,
}

impl Sizes {
    fn new(params: &Params) -> Sizes {
        let [n_heads, n_kv_heads, head_size] = [params.n_heads, params.n_kv_heads, params.head_size].map(|n| n as usize);
        Sizes { n_kv_heads, n_in_group: n_heads / n_kv_heads, head_size }
    }

    fn group_len(self) -> usize {
        self.n_in_group * self.head_size
    }
}

/// Memory of one thread.
#[derive(Default)]
struct Scratch {
    /// `[n_tokens, n_in_group, head_size]`
    query: Vec<f32>,
    /// `[n_tokens, n_in_group, n_positions]`
    scores: Vec<f32>,
    /// As `query`.
    sums: Vec<f32>,
    /// Of some positions: the cached rows, where they are decoded, and the scores and shares.
    rows: Vec<f32>,
    some_scores: Vec<f32>,
}

/// What all threads know.
struct Attention<'a> {
    simd: &'a Simd,
    params: &'a Params,
    sizes: Sizes,
    query: &'a [f32],
    placed: &'a [Token],
    caches: [Cached<'a>; 2],
    sinks: Option<&'a [f32]>,
}

impl Attention<'_> {
    /// All that `n_at_once` of the tokens need.
    fn scratch(&self, tokens: &[Token], n_at_once: usize) -> Kept<Scratch> {
        let Sizes { n_in_group, head_size, .. } = self.sizes;
        let n_positions = tokens.iter().map(|token| visible(self.params, token).end).max().unwrap_or(0);
        let n_some = n_positions.min(POSITIONS_AT_ONCE);
        let n_decoded = if self.caches.iter().all(|cache| matches!(cache, Cached::Floats(_))) { 0 } else { n_some };
        let n_queries = n_at_once * n_in_group;
        let mut scratch = POOL.take();
        clear_for(&mut scratch.query, n_queries * head_size);
        clear_for(&mut scratch.scores, n_queries * n_positions);
        clear_for(&mut scratch.sums, n_queries * head_size);
        clear_for(&mut scratch.rows, n_decoded * head_size);
        clear_for(&mut scratch.some_scores, n_queries * n_some);
        scratch
    }

    /// `tokens`, of which `first` is the first, with the key heads from `first_kv_head` on that `attention_output` has room for.
    fn mix(&self, first: usize, tokens: &[Token], first_kv_head: usize, attention_output: &mut [f32], scratch: &mut Scratch) {
        let token_len = attention_output.len() / tokens.len().max(1);
        let mut begin = 0;
        for run in tokens.chunk_by(|a, b| a.seq == b.seq) {
            let attention_output = &mut attention_output[begin * token_len..][..run.len() * token_len];
            for head in 0..token_len / self.sizes.group_len() {
                self.mix_group(first + begin, run, first_kv_head + head, scratch);
                let sums = scratch.sums.chunks_exact(self.sizes.group_len());
                for (attention_output, sums) in attention_output.chunks_exact_mut(token_len).zip(sums) {
                    attention_output[head * self.sizes.group_len()..][..sums.len()].copy_from_slice(sums);
                }
            }
            begin += run.len();
        }
    }

    /// Tokens of one sequence with one key head, into `scratch.sums`.
    fn mix_group(&self, first: usize, tokens: &[Token], kv_head: usize, scratch: &mut Scratch) {
        let Sizes { n_kv_heads, n_in_group, .. } = self.sizes;
        let group_len = self.sizes.group_len();
        scratch.query.clear();
        for token in first..first + tokens.len() {
            scratch.query.extend_from_slice(&self.query[(token * n_kv_heads + kv_head) * group_len..][..group_len]);
        }
        scratch.sums.clear();
        scratch.sums.resize(scratch.query.len(), 0.0);
        // Positions that any of the tokens sees; those that one does not see get the weight zero.
        let ranges = || tokens.iter().map(|token| visible(self.params, token));
        let begin = ranges().map(|range| range.start).min().unwrap_or(0);
        let end = ranges().map(|range| range.end).max().unwrap_or(0);
        if begin >= end {
            return;
        }
        scratch.scores.resize(tokens.len() * n_in_group * (end - begin), 0.0);
        self.score((first, kv_head), begin..end, scratch);
        for (scores, range) in scratch.scores.chunks_exact_mut(n_in_group * (end - begin)).zip(ranges()) {
            for (head, scores) in (kv_head * n_in_group..).zip(scores.chunks_exact_mut(end - begin)) {
                let sink = self.sinks.map(|sinks| sinks[head]);
                let visible = range.start.max(begin) - begin..range.end.max(begin) - begin;
                if self.params.softcap > 0.0 {
                    scores.iter_mut().for_each(|score| *score *= self.params.scale);
                    softcap(self.params.softcap, scores);
                    shares(scores, visible, 1.0, sink);
                } else {
                    shares(scores, visible, self.params.scale, sink);
                }
            }
        }
        self.sum((first, kv_head), begin..end, scratch);
    }

    /// The rows of a key head that caches hold at some positions of the sequence of token `first`: a range for each of their blocks.
    fn rows(&self, (first, kv_head): (usize, usize), positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        of_blocks(&positions).map(move |some| {
            let position = some.start as u32;
            let begin = row_in(block_at(self.placed, first, position).unwrap_or_default(), self.params.n_kv_heads, kv_head, position);
            begin..begin + some.len()
        })
    }

    /// Products of each query and the keys at `positions`.
    fn score(&self, head: (usize, usize), positions: Range<usize>, scratch: &mut Scratch) {
        let (keys, head_size) = (self.caches[0], self.sizes.head_size);
        let Scratch { query, scores, rows, some_scores, .. } = scratch;
        for some in at_once(keys, &positions) {
            let rows = keys.rows(head_size, self.rows(head, some.clone()), rows);
            if some == positions {
                return (self.simd.dots)(head_size, rows, query, scores);
            }
            some_scores.resize(query.len() / head_size * some.len(), 0.0);
            (self.simd.dots)(head_size, rows, query, some_scores);
            for (scores, some_scores) in scores.chunks_exact_mut(positions.len()).zip(some_scores.chunks_exact(some.len())) {
                scores[some.start - positions.start..][..some.len()].copy_from_slice(some_scores);
            }
        }
    }

    /// Sums of the values at `positions`, in the shares that scores have become.
    fn sum(&self, head: (usize, usize), positions: Range<usize>, scratch: &mut Scratch) {
        let (values, head_size) = (self.caches[1], self.sizes.head_size);
        let Scratch { scores: shares, sums, rows, some_scores: some_shares, .. } = scratch;
        for some in at_once(values, &positions) {
            let rows = values.rows(head_size, self.rows(head, some.clone()), rows);
            some_shares.clear();
            for shares in shares.chunks_exact(positions.len()) {
                some_shares.extend_from_slice(&shares[some.start - positions.start..][..some.len()]);
            }
            (self.simd.add_weighted_sums)(head_size, rows, some_shares, sums);
        }
    }
}

/// The positions in the parts that are read at once: those of a block of the cache, or, where they are decoded, as many as a processor's nearest
/// cache holds.
fn at_once(cache: Cached<'_>, positions: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let most = match cache {
        Cached::Floats(_) => BLOCK_POSITIONS as usize,
        Cached::Blocks(..) => POSITIONS_AT_ONCE,
    };
    in_parts(positions, most)
}

/// The positions block by block.
fn of_blocks(positions: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    in_parts(positions, BLOCK_POSITIONS as usize)
}

/// The positions in parts that end at multiples of `most`.
fn in_parts(positions: &Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let (mut begin, end) = (positions.start, positions.end);
    std::iter::from_fn(move || {
        let part = begin..(begin / most * most + most).min(end);
        begin = part.end;
        (!part.is_empty()).then_some(part)
    })
}

/// Scores become shares: `softmax(scale · scores)` in the visible range, zero elsewhere. A sink is one more score, which is scaled already.
fn shares(scores: &mut [f32], visible: Range<usize>, scale: f32, sink: Option<f32>) {
    let (before, rest) = scores.split_at_mut(visible.start.min(scores.len()));
    let (seen, behind) = rest.split_at_mut(visible.len());
    before.fill(0.0);
    behind.fill(0.0);
    let maximum = seen.iter().fold(sink.unwrap_or(f32::NEG_INFINITY), |maximum, score| maximum.max(scale * score));
    seen.iter_mut().for_each(|score| *score = exp(scale * *score - maximum));
    let mut sums = [0.0; LANES];
    for seen in seen.chunks(LANES) {
        sums.iter_mut().zip(seen).for_each(|(sum, share)| *sum += share);
    }
    let of_sink = sink.map_or(0.0, |sink| exp(sink - maximum));
    let per_total = 1.0 / (sums.iter().sum::<f32>() + of_sink);
    seen.iter_mut().for_each(|share| *share *= per_total);
}
