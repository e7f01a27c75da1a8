//! Attention of a batch over its own keys and values, and its vector-Jacobian product: shares are computed again for a few queries at a time,
//! so that no matrix of positions by positions is kept.

use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};

use super::dense::{MIN_PARALLEL_VALUES, transposed_on_one_thread};
use super::vjp::softcap_slope;
use crate::host;
use crate::host::simd::simd;
use crate::kernels::attention::{Params, visible};
use crate::kernels::kv_tables::{BLOCK_POSITIONS, block_at, row_in};
use crate::kernels::rope_kv::Token;

/// Queries of a head whose shares are computed together.
const QUERIES_AT_ONCE: usize = 16;

/// What attention reads: all that its backward pass needs.
#[derive(Debug)]
pub(super) struct Read {
    /// Shape of the caches and rules of who sees whom.
    pub(super) params: Params,
    /// `[n_tokens, n_heads, head_size]`
    pub(super) query: Vec<f32>,
    /// `[n_blocks, n_kv_heads, BLOCK_POSITIONS, head_size]`
    pub(super) keys: Vec<f32>,
    /// As `keys`.
    pub(super) values: Vec<f32>,
    /// `[n_heads]`, where heads have one more score.
    pub(super) sinks: Option<Vec<f32>>,
}

/// Gradients of what attention reads: of queries, keys and values, each `[n_tokens, …]`.
pub(super) struct Gradients {
    pub(super) query: Vec<f32>,
    pub(super) key: Vec<f32>,
    pub(super) value: Vec<f32>,
}

/// Sizes of `params`.
#[derive(Clone, Copy)]
struct Sizes {
    n_heads: usize,
    n_kv_heads: usize,
    head_size: usize,
}

impl Read {
    /// Keys and values, `[n_tokens, n_kv_heads, head_size]`, where the tables of `placed` let attention read them.
    pub(super) fn new(params: Params, query: Vec<f32>, [key, value]: [&[f32]; 2], placed: &[Token], sinks: Option<Vec<f32>>) -> Read {
        let Sizes { n_kv_heads, head_size, .. } = Sizes::of(&params);
        let cached = |rows: &[f32]| {
            let mut cache = vec![0.0; params.n_blocks as usize * n_kv_heads * BLOCK_POSITIONS as usize * head_size];
            for (t, row) in rows.chunks_exact(n_kv_heads * head_size).enumerate() {
                let position = placed[t].position;
                let block = block_at(placed, t, position).unwrap_or_default();
                for (head, values) in row.chunks_exact(head_size).enumerate() {
                    let place = row_in(block, params.n_kv_heads, head, position);
                    cache[place * head_size..][..head_size].copy_from_slice(values);
                }
            }
            cache
        };
        Read { params, query, keys: cached(key), values: cached(value), sinks }
    }

    /// Its output, `[n_tokens, n_heads, head_size]`.
    pub(super) fn attend(&self, placed: &[Token], output: &mut [f32]) {
        host::attention(&self.params, &self.query, placed, [&self.keys, &self.values], self.sinks.as_deref(), output);
    }

    /// From the gradient of its output to those of what it reads. A sequence's tokens stand together, in the order of their positions.
    pub(super) fn backward(&self, placed: &[Token], gradient: &[f32]) -> Gradients {
        let sizes = Sizes::of(&self.params);
        let tokens = &placed[..self.params.n_tokens as usize];
        let runs: Vec<(usize, &[Token])> = tokens
            .chunk_by(|a, b| a.seq == b.seq)
            .scan(0, |begin, run| {
                let first = *begin;
                *begin += run.len();
                Some((first, run))
            })
            .collect();
        let tasks: Vec<(usize, usize)> = (0..runs.len()).flat_map(|run| (0..sizes.n_kv_heads).map(move |head| (run, head))).collect();
        // Short texts are done by one thread: another one would take as long to wake.
        let at_least = if gradient.len() < 4 * MIN_PARALLEL_VALUES { tasks.len().max(1) } else { 1 };
        let parts: Vec<Gradients> = tasks
            .par_iter()
            .with_min_len(at_least)
            .map(|&(run, head)| self.of_group(placed, runs[run].0, runs[run].1.len(), head, gradient))
            .collect();
        let (row, kv_row) = (sizes.n_heads * sizes.head_size, sizes.n_kv_heads * sizes.head_size);
        let [mut query, mut key, mut value] = [row, kv_row, kv_row].map(|width| vec![0.0; tokens.len() * width]);
        for (&(run, head), part) in tasks.iter().zip(&parts) {
            let (first, len) = (runs[run].0, runs[run].1.len());
            let group = row / sizes.n_kv_heads;
            let put = |width: usize, size: usize, part: &[f32], whole: &mut [f32]| {
                for token in 0..len {
                    whole[(first + token) * width + head * size..][..size].copy_from_slice(&part[token * size..][..size]);
                }
            };
            put(row, group, &part.query, &mut query);
            put(kv_row, sizes.head_size, &part.key, &mut key);
            put(kv_row, sizes.head_size, &part.value, &mut value);
        }
        Gradients { query, key, value }
    }

    /// The first rows of a key head of the sequence of token `first`.
    fn rows(&self, cache: &[f32], placed: &[Token], (first, kv_head): (usize, usize), n_positions: usize) -> Vec<f32> {
        let head_size = self.params.head_size as usize;
        let mut rows = Vec::with_capacity(n_positions * head_size);
        for begin in (0..n_positions).step_by(BLOCK_POSITIONS as usize) {
            let block = block_at(placed, first, begin as u32).unwrap_or_default();
            let place = row_in(block, self.params.n_kv_heads, kv_head, begin as u32) * head_size;
            rows.extend_from_slice(&cache[place..][..(n_positions - begin).min(BLOCK_POSITIONS as usize) * head_size]);
        }
        rows
    }

    /// Gradients of one key head of a sequence, whose tokens are so many from `first` on, and of the query heads that share it. Positions of
    /// a sequence begin at 0.
    fn of_group(&self, placed: &[Token], first: usize, n_positions: usize, kv_head: usize, gradient: &[f32]) -> Gradients {
        let Sizes { n_heads, n_kv_heads, head_size } = Sizes::of(&self.params);
        let (n_in_group, tokens) = (n_heads / n_kv_heads, &placed[first..first + n_positions]);
        let [keys, values] = [&self.keys, &self.values].map(|cache| self.rows(cache, placed, (first, kv_head), n_positions));
        let mut of_query = vec![0.0; n_positions * n_in_group * head_size];
        let [mut of_key, mut of_value] = [(); 2].map(|()| vec![0.0; n_positions * head_size]);
        for in_group in 0..n_in_group {
            let head = kv_head * n_in_group + in_group;
            for begin in (0..n_positions).step_by(QUERIES_AT_ONCE) {
                let some = &tokens[begin..n_positions.min(begin + QUERIES_AT_ONCE)];
                let take = |from: &[f32]| -> Vec<f32> {
                    let row = |token: usize| &from[((first + begin + token) * n_heads + head) * head_size..][..head_size];
                    (0..some.len()).flat_map(row).copied().collect()
                };
                let (query, upward) = (take(&self.query), take(gradient));
                // Positions that one of them sees.
                let end = some.iter().map(|token| visible(&self.params, token).end).max().unwrap_or(0).min(n_positions);
                let (keys, values) = (&keys[..end * head_size], &values[..end * head_size]);
                let (shares, slopes) = self.shares(some, &query, keys, self.sinks.as_ref().map(|sinks| sinks[head]));
                let mut scores = self.gradient_of_scores(&shares, &upward, values, some.len());
                scores.iter_mut().zip(&slopes).for_each(|(score, slope)| *score *= slope * self.params.scale);
                let mut sums = vec![0.0; some.len() * head_size];
                (simd().add_weighted_sums)(head_size, keys, &scores, &mut sums);
                for (token, sums) in sums.chunks_exact(head_size).enumerate() {
                    of_query[((begin + token) * n_in_group + in_group) * head_size..][..head_size].copy_from_slice(sums);
                }
                for (of_rows, rows, weights) in [(&mut of_key, &query, &scores), (&mut of_value, &upward, &shares)] {
                    let mut sums = vec![0.0; end * head_size];
                    (simd().add_weighted_sums)(head_size, rows, &transposed_on_one_thread(end, weights), &mut sums);
                    of_rows.iter_mut().zip(&sums).for_each(|(of_row, sum)| *of_row += sum);
                }
            }
        }
        Gradients { query: of_query, key: of_key, value: of_value }
    }

    /// The shares of queries, `[n_queries, n_positions]`, and the slopes of their scores' softcap.
    fn shares(&self, tokens: &[Token], query: &[f32], keys: &[f32], sink: Option<f32>) -> (Vec<f32>, Vec<f32>) {
        let head_size = self.params.head_size as usize;
        let n_positions = keys.len() / head_size;
        let mut scores = vec![0.0; tokens.len() * n_positions];
        (simd().dots)(head_size, keys, query, &mut scores);
        let mut slopes = vec![1.0; scores.len()];
        let rows = scores.chunks_exact_mut(n_positions).zip(slopes.chunks_exact_mut(n_positions));
        for (token, (scores, slopes)) in tokens.iter().zip(rows) {
            let seen = visible(&self.params, token);
            let seen = seen.start.min(n_positions)..seen.end.min(n_positions);
            scores.iter_mut().for_each(|score| *score *= self.params.scale);
            if self.params.softcap > 0.0 {
                for (score, slope) in scores.iter_mut().zip(slopes) {
                    *slope = softcap_slope(self.params.softcap, *score);
                    *score = self.params.softcap * (*score / self.params.softcap).tanh();
                }
            }
            let most = scores[seen.clone()].iter().fold(sink.unwrap_or(f32::NEG_INFINITY), |most, score| most.max(*score));
            let of_sink = sink.map_or(0.0, |sink| f64::from((sink - most).exp()));
            let mut total = of_sink;
            for (position, score) in scores.iter_mut().enumerate() {
                *score = if seen.contains(&position) { (*score - most).exp() } else { 0.0 };
                total += f64::from(*score);
            }
            let per_total = (1.0 / total) as f32;
            scores.iter_mut().for_each(|share| *share *= per_total);
        }
        (scores, slopes)
    }

    /// From the gradient of the output to that of the scores behind their softcap: `p · (dp − Σ p · dp)`, where `dp` is that of the shares.
    fn gradient_of_scores(&self, shares: &[f32], upward: &[f32], values: &[f32], n_queries: usize) -> Vec<f32> {
        let n_positions = shares.len() / n_queries;
        let mut of_shares = vec![0.0; shares.len()];
        (simd().dots)(self.params.head_size as usize, values, upward, &mut of_shares);
        for (of_shares, shares) in of_shares.chunks_exact_mut(n_positions).zip(shares.chunks_exact(n_positions)) {
            let level: f64 = of_shares.iter().zip(shares).map(|(of_share, share)| f64::from(*of_share) * f64::from(*share)).sum();
            of_shares.iter_mut().zip(shares).for_each(|(of_share, share)| *of_share = share * (*of_share - level as f32));
        }
        of_shares
    }
}

impl Sizes {
    fn of(params: &Params) -> Sizes {
        let [n_heads, n_kv_heads, head_size] = [params.n_heads, params.n_kv_heads, params.head_size].map(|n| n as usize);
        Sizes { n_heads, n_kv_heads, head_size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::kv_tables::with_tables;

    fn values(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| ((i + 1) as f32 * step).sin()).collect()
    }

    /// Attention in double precision: two sequences, one behind the other.
    fn plain(params: &Params, tokens: &[Token], query: &[f64], key: &[f64], value: &[f64], sinks: Option<&[f32]>) -> Vec<f64> {
        let Sizes { n_heads, n_kv_heads, head_size, .. } = Sizes::of(params);
        let mut output = vec![0.0; query.len()];
        for (t, token) in tokens.iter().enumerate() {
            let begin = t - token.position as usize;
            for head in 0..n_heads {
                let kv_head = head / (n_heads / n_kv_heads);
                let row = |of: &[f64], at: usize| of[((begin + at) * n_kv_heads + kv_head) * head_size..][..head_size].to_vec();
                let own = &query[(t * n_heads + head) * head_size..][..head_size];
                let score = |at: usize| {
                    let dot: f64 = own.iter().zip(row(key, at)).map(|(a, b)| a * b).sum();
                    let score = dot * f64::from(params.scale);
                    let cap = f64::from(params.softcap);
                    if cap > 0.0 { cap * (score / cap).tanh() } else { score }
                };
                let seen = visible(params, token);
                let powers: Vec<f64> = seen.clone().map(|at| score(at).exp()).collect();
                let total: f64 = powers.iter().sum::<f64>() + sinks.map_or(0.0, |sinks| f64::from(sinks[head]).exp());
                for (at, power) in seen.zip(&powers) {
                    for (output, value) in output[(t * n_heads + head) * head_size..].iter_mut().zip(row(value, at)) {
                        *output += power / total * value;
                    }
                }
            }
        }
        output
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let lens = [3u32, 37];
        let tokens: Vec<Token> = (0..).zip(lens).flat_map(|(seq, len)| (0..len).map(move |at| Token::new(seq, at, len))).collect();
        let tables: [&[u32]; 2] = [&[1], &[2, 0]];
        let placed = with_tables(tokens.clone(), |seq| tables[seq as usize]);
        for (window, softcap, has_sinks) in [(0, 0.0, false), (4, 0.0, true), (0, 1.5, false)] {
            let params = Params {
                n_tokens: tokens.len() as u32,
                n_heads: 4,
                n_kv_heads: 2,
                head_size: 6,
                n_blocks: 3,
                kv_capacity: 40,
                window,
                scale: 0.7,
                key_dtype: 0,
                value_dtype: 0,
                softcap,
                is_causal: 1,
                in_chunks: 0,
            };
            let sinks = has_sinks.then(|| values(4, 0.8));
            let read = [values(tokens.len() * 24, 0.37), values(tokens.len() * 12, 0.71), values(tokens.len() * 12, 0.53)];
            let gradient = values(tokens.len() * 24, 0.29);
            let own = Read::new(params, read[0].clone(), [&read[1], &read[2]], &placed, sinks.clone());
            let mut output = vec![0.0; gradient.len()];
            own.attend(&placed, &mut output);
            let wide: [Vec<f64>; 3] = read.each_ref().map(|values| values.iter().map(|x| f64::from(*x)).collect());
            let expected = plain(&params, &tokens, &wide[0], &wide[1], &wide[2], sinks.as_deref());
            assert!(output.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
            let found = own.backward(&placed, &gradient);
            let total = |of: &[Vec<f64>; 3]| -> f64 {
                let output = plain(&params, &tokens, &of[0], &of[1], &of[2], sinks.as_deref());
                output.iter().zip(&gradient).map(|(y, dy)| y * f64::from(*dy)).sum()
            };
            for (which, found) in [&found.query, &found.key, &found.value].into_iter().enumerate() {
                for at in (0..found.len()).step_by(7) {
                    let moved = |by: f64| {
                        let mut of = wide.clone();
                        of[which][at] += by;
                        total(&of)
                    };
                    let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    assert!((f64::from(found[at]) - slope).abs() < 2e-5, "{which} {at} of window {window}: {} {slope}", found[at]);
                }
            }
        }
    }
}
