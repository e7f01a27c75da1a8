//! The gated delta rule (Yang, Kautz, Hatamizadeh 2024): each head of a sequence has a matrix, from which a token's query reads and of which
//! its key changes one direction. With query `q` and key `k` over their lengths and the value `v`, the state `S` becomes
//! `S′ = f · S + k ⊗ (b · (v − k · f · S))`, and the output is `q · S′ / √key_size`, where `f = exp(−rate · softplus(alpha + bias))` and
//! `b = sigmoid(beta)`. Tokens of a sequence come one after the other, so that no bit depends on how many share a forward.

use bytemuck::{Pod, Zeroable};

use super::rope_kv::Token;
use super::{BatchShape, Binding, DELTA_RULE, dispatch, f32_bytes, fold_items, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::model::DeltaRule;

/// Added to the square of a query's or key's length.
const EPSILON: f32 = 1e-6;

/// Params of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Params {
    /// Rows of the input.
    pub n_tokens: u32,
    /// Sequences in the state.
    pub n_seqs: u32,
    /// Heads of queries, and of keys.
    pub n_key_heads: u32,
    /// Heads of values and of the output; a multiple of `n_key_heads`.
    pub n_value_heads: u32,
    /// Values of a query's or key's head.
    pub key_size: u32,
    /// Values of a value's head.
    pub value_size: u32,
    /// 1 where value head `h` has key head `h mod n_key_heads`; 0 where consecutive value heads share one.
    pub is_tiled: u32,
}

impl Params {
    /// Those of `rule`.
    pub fn of(rule: &DeltaRule, batch: &BatchShape) -> Params {
        Params {
            n_tokens: batch.n_tokens,
            n_seqs: batch.n_seqs,
            n_key_heads: rule.n_key_heads as u32,
            n_value_heads: rule.n_value_heads as u32,
            key_size: rule.key_size as u32,
            value_size: rule.value_size as u32,
            is_tiled: u32::from(rule.is_tiled),
        }
    }

    /// Values of a row of all queries or keys, and of all values.
    fn sizes(&self) -> [usize; 2] {
        [(self.n_key_heads * self.key_size) as usize, (self.n_value_heads * self.value_size) as usize]
    }
}

/// Buffers of the shader, all f32.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_tokens]` of [`Token`], those of a sequence at consecutive positions.
    pub tokens: Binding<'a>,
    /// `[n_tokens, 2 · n_key_heads · key_size + n_value_heads · value_size]`: queries, keys, values.
    pub input: Binding<'a>,
    /// `[n_tokens, n_value_heads]`.
    pub alpha: Binding<'a>,
    /// As `alpha`.
    pub beta: Binding<'a>,
    /// `[n_value_heads]`: minus the rate, or its logarithm.
    pub decay: Binding<'a>,
    /// `[n_value_heads]`.
    pub bias: Binding<'a>,
    /// `[n_seqs, n_value_heads, key_size, value_size]`, read and written; what it holds for the first position of a sequence does not
    /// matter.
    pub state: Binding<'a>,
    /// `[n_tokens, n_value_heads, value_size]`.
    pub output: Binding<'a>,
}

/// Makes the dispatch; `is_log`: the decay is the logarithm of the rate.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or the heads do not share keys evenly.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, is_log: bool, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_tokens, n_seqs, n_key_heads, n_value_heads, key_size, value_size, .. } = *params;
    let is_even = n_key_heads > 0 && n_value_heads.is_multiple_of(n_key_heads) && key_size > 0;
    require(gpu, DELTA_RULE.stem, is_even, "its value heads do not share key heads evenly")?;
    let queries_and_keys = f32_bytes(&[n_tokens, 2, n_key_heads, key_size]);
    let (values, gates, heads) =
        (f32_bytes(&[n_tokens, n_value_heads, value_size]), f32_bytes(&[n_tokens, n_value_heads]), f32_bytes(&[n_value_heads]));
    let needed = [
        (bindings.tokens, f32_bytes(&[n_tokens, 4])),
        (bindings.input, queries_and_keys.saturating_add(values)),
        (bindings.alpha, gates),
        (bindings.beta, gates),
        (bindings.decay, heads),
        (bindings.bias, heads),
        (bindings.state, f32_bytes(&[n_seqs, n_value_heads, key_size, value_size])),
        (bindings.output, values),
    ];
    let workgroups = fold_items(gpu, DELTA_RULE.stem, &[n_seqs, n_value_heads, value_size])?;
    dispatch(gpu, &DELTA_RULE, &[("IS_LOG", f64::from(u8::from(is_log)))], params_buffer, &needed, workgroups)
}

/// What the CPU twin reads; shapes as in [`Bindings`].
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries, keys, values.
    pub input: &'a [f32],
    /// For how much is kept.
    pub alpha: &'a [f32],
    /// For how much is changed.
    pub beta: &'a [f32],
    /// Minus the rate, or its logarithm.
    pub decay: &'a [f32],
    /// Whether it is the logarithm.
    pub is_log: bool,
    /// Added to `alpha`.
    pub bias: &'a [f32],
}

/// CPU twin of `shaders/delta_rule.wgsl`. Tokens of sequences that the state has no room for are left out.
pub fn reference(params: &Params, tokens: &[Token], inputs: &Inputs<'_>, state: &mut [f32], output: &mut [f32]) {
    let of_head = (params.key_size * params.value_size) as usize;
    for (index, state) in state.chunks_exact_mut(of_head).enumerate().take((params.n_seqs * params.n_value_heads) as usize) {
        let rows = head(params, tokens, inputs, index, state);
        put(params, &rows, index, output);
    }
}

/// The rows of the output of one head, `index` in `[n_seqs, n_value_heads]`, with the tokens they are of; `state` is its own.
pub fn head(params: &Params, tokens: &[Token], inputs: &Inputs<'_>, index: usize, state: &mut [f32]) -> Vec<(usize, Vec<f32>)> {
    let [key_size, value_size, n_heads] = [params.key_size, params.value_size, params.n_value_heads].map(|n| n as usize);
    let (seq, head) = (index / n_heads, index % n_heads);
    let own = tokens.iter().enumerate().take(params.n_tokens as usize).filter(|(_, token)| token.seq as usize == seq);
    let [n_keys, n_values] = params.sizes();
    let key_head = match params.is_tiled {
        1 => head % params.n_key_heads as usize,
        _ => head / (n_heads / params.n_key_heads as usize),
    };
    let rate = if inputs.is_log { -inputs.decay[head].exp() } else { inputs.decay[head] };
    let mut rows = Vec::new();
    for (t, token) in own {
        let row = &inputs.input[t * (2 * n_keys + n_values)..][..2 * n_keys + n_values];
        let [query, key] = [0, n_keys].map(|begin| &row[begin + key_head * key_size..][..key_size]);
        let value = &row[2 * n_keys + head * value_size..][..value_size];
        if token.position == 0 {
            state.fill(0.0);
        }
        let kept = (rate * softplus(inputs.alpha[t * n_heads + head] + inputs.bias[head])).exp();
        let share = 1.0 / (1.0 + (-inputs.beta[t * n_heads + head]).exp());
        let mut known = vec![0.0; value_size];
        for (k, state) in key.iter().zip(state.chunks_exact_mut(value_size)) {
            for (known, state) in known.iter_mut().zip(state) {
                *state *= kept;
                *known += k * *state;
            }
        }
        let key_scale = scale(key);
        let change: Vec<f32> = known.iter().zip(value).map(|(known, v)| key_scale * share * (v - key_scale * known)).collect();
        let mut output = vec![0.0; value_size];
        for ((k, q), state) in key.iter().zip(query).zip(state.chunks_exact_mut(value_size)) {
            for ((state, change), output) in state.iter_mut().zip(&change).zip(&mut output) {
                *state += k * change;
                *output += q * *state;
            }
        }
        let query_scale = scale(query) / (key_size as f32).sqrt();
        output.iter_mut().for_each(|value| *value *= query_scale);
        rows.push((t, output));
    }
    rows
}

/// Puts the rows that [`head`] gave where they belong.
pub fn put(params: &Params, rows: &[(usize, Vec<f32>)], index: usize, output: &mut [f32]) {
    let [value_size, n_heads] = [params.value_size, params.n_value_heads].map(|n| n as usize);
    for (t, row) in rows {
        output[(t * n_heads + index % n_heads) * value_size..][..value_size].copy_from_slice(row);
    }
}

/// One over the length.
fn scale(values: &[f32]) -> f32 {
    1.0 / (values.iter().map(|value| value * value).sum::<f32>() + EPSILON).sqrt()
}

fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}
