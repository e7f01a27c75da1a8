//! Attention of sequences that begin in a batch, over their own keys and values, and back through it. Shares are computed again for some keys or
//! queries at a time, so that no matrix of positions by positions is kept. Params are those of [`crate::kernels::attention`]; what they say of caches
//! has no part here.

use crate::error::Result;
use crate::gpu::{Dispatch, Gpu, KernelSource};
use crate::kernels::attention::{MAX_HEAD_SIZE, Params};
use crate::kernels::{ATTENTION_BACK_KEYS, ATTENTION_BACK_QUERY, ATTENTION_DENSE, Binding, dispatch, f32_bytes, fold, require};

/// What all three shaders read.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[n_tokens, n_heads, head_size]`
    pub query: Binding<'a>,
    /// `[n_tokens, n_kv_heads, head_size]`
    pub keys: Binding<'a>,
    /// `[n_tokens, n_kv_heads, head_size]`
    pub values: Binding<'a>,
    /// `[n_tokens, 2]`, u32: of each token's sequence the first token and the one behind its last.
    pub runs: Binding<'a>,
}

/// Makes the dispatch of attention. `output` is `[n_tokens, n_heads, head_size]`, `totals` `[n_tokens, n_heads, 2]`, of which it writes the
/// first; `sinks` `[n_heads]`.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or heads are larger than the shaders have room for.
pub fn prepare(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &Params,
    inputs: Inputs<'_>,
    sinks: Option<Binding<'_>>,
    [output, totals]: [Binding<'_>; 2],
) -> Result<Dispatch> {
    let sizes = Sizes::of(gpu, &ATTENTION_DENSE, params)?;
    // Without sinks, something must be bound all the same.
    let has_sinks = f64::from(u8::from(sinks.is_some()));
    let sinks = sinks.map_or((inputs.query, 0), |sinks| (sinks, f32_bytes(&[params.n_heads])));
    let needed = [&sizes.inputs(inputs)[..], &[sinks, (output, sizes.rows), (totals, sizes.totals)]].concat();
    let workgroups = fold(gpu, ATTENTION_DENSE.stem, sizes.n_queries, 1)?;
    dispatch(gpu, &ATTENTION_DENSE, &[("HAS_SINKS", has_sinks)], params_buffer, &needed, workgroups)
}

/// Makes the dispatch of the gradient of queries, `of_query`, which is added to, from that of the output, `upward`; it reads the first of `totals` and
/// writes the second.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_query(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &Params,
    inputs: Inputs<'_>,
    [output, upward, of_query, totals]: [Binding<'_>; 4],
) -> Result<Dispatch> {
    let sizes = Sizes::of(gpu, &ATTENTION_BACK_QUERY, params)?;
    let own = [(output, sizes.rows), (upward, sizes.rows), (of_query, sizes.rows), (totals, sizes.totals)];
    let workgroups = fold(gpu, ATTENTION_BACK_QUERY.stem, sizes.n_queries, 1)?;
    dispatch(gpu, &ATTENTION_BACK_QUERY, &[], params_buffer, &[&sizes.inputs(inputs)[..], &own].concat(), workgroups)
}

/// Makes the dispatch of the gradients of keys and values, which are added to. It reads what [`prepare_query`]'s has written.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_keys(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &Params,
    inputs: Inputs<'_>,
    [totals, upward, of_keys, of_values]: [Binding<'_>; 4],
) -> Result<Dispatch> {
    let sizes = Sizes::of(gpu, &ATTENTION_BACK_KEYS, params)?;
    let own = [(totals, sizes.totals), (upward, sizes.rows), (of_keys, sizes.kv_rows), (of_values, sizes.kv_rows)];
    let workgroups = fold(gpu, ATTENTION_BACK_KEYS.stem, sizes.n_keys, 1)?;
    dispatch(gpu, &ATTENTION_BACK_KEYS, &[], params_buffer, &[&sizes.inputs(inputs)[..], &own].concat(), workgroups)
}

/// Bytes and counts that params ask for.
struct Sizes {
    rows: u64,
    kv_rows: u64,
    runs: u64,
    totals: u64,
    n_queries: u64,
    n_keys: u64,
}

impl Sizes {
    fn of(gpu: &Gpu, kernel: &KernelSource, params: &Params) -> Result<Sizes> {
        let Params { n_tokens, n_heads, n_kv_heads, head_size, .. } = *params;
        let is_possible = n_tokens > 0 && head_size > 0 && n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads);
        require(gpu, kernel.stem, is_possible && head_size <= MAX_HEAD_SIZE, "its heads have no such size, or no such number")?;
        Ok(Sizes {
            rows: f32_bytes(&[n_tokens, n_heads, head_size]),
            kv_rows: f32_bytes(&[n_tokens, n_kv_heads, head_size]),
            runs: f32_bytes(&[n_tokens, 2]),
            totals: f32_bytes(&[n_tokens, n_heads, 2]),
            n_queries: u64::from(n_tokens) * u64::from(n_heads),
            n_keys: u64::from(n_tokens) * u64::from(n_kv_heads),
        })
    }

    fn inputs<'a>(&self, inputs: Inputs<'a>) -> [(Binding<'a>, u64); 4] {
        [(inputs.query, self.rows), (inputs.keys, self.kv_rows), (inputs.values, self.kv_rows), (inputs.runs, self.runs)]
    }
}
