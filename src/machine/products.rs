//! Rates of matrix products, measured with the same sizes, repetitions and fit on adapters and on the host.

use std::collections::BTreeMap;

use super::effort::{Effort, middle};
use crate::device::Rates;
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::matmul::Params;
use crate::platform;
use crate::units::{Bytes, BytesPerSec};

/// A product so small that its time is the fixed cost of any, on an adapter.
pub(super) const SMALL: [u32; 3] = [128, 64, 1];
/// The smallest product whose rows the host spreads over its threads: what that costs is part of every product of a model.
pub(super) const SMALL_ON_HOST: [u32; 3] = [512, 512, 1];
/// Matrix × vector, each about four times as large as the one before, up to the feed-forward matrices of large models.
const VECTORS: [[u32; 3]; 4] = [[1024, 1024, 1], [2048, 2048, 1], [4096, 4096, 1], [14_336, 4096, 1]];
/// Matrix × matrix with the tokens of a prompt, each about eight times as much work as the one before.
const TOKENS: &[[u32; 3]] = if platform::MAY_BLOCK { FROM_MIDDLE } else { FROM_SMALL };
const FROM_MIDDLE: &[[u32; 3]] = &[[512, 1024, 64], [1024, 2048, 128], [2048, 4096, 256], [4096, 4096, 512]];
/// With one that a software adapter has soon done: in a browser somebody waits.
const FROM_SMALL: &[[u32; 3]] = &[[128, 512, 64], [512, 1024, 64], [1024, 2048, 128], [2048, 4096, 256], [4096, 4096, 512]];
/// No product of the above has more values in its input, nor in its output.
pub(super) const MOST_VALUES: usize = 4096 * 512;

/// Measures `matvec`, `matmul` and `dispatch_secs` of products in `dtypes`, of which there is at least one; the fixed cost by products
/// of the `smallest` shape. `run` computes so many products of this shape, each with another matrix where there is room, and returns
/// the seconds that they took; no matrix is larger than `largest`.
pub(super) async fn measure(
    effort: &Effort,
    dtypes: &[DType],
    smallest: [u32; 3],
    largest: Bytes,
    mut run: impl AsyncFnMut(&Params, usize) -> Result<f64>,
) -> Result<Rates> {
    let mut fixed = Vec::new();
    let mut rates = Rates::default();
    let n_figures = 2 * dtypes.len();
    for &dtype in dtypes {
        let own = effort.of_figure(n_figures);
        let effort = own.as_ref().unwrap_or(effort);
        let small = params(dtype, smallest);
        let large = climb(effort, dtype, &VECTORS, largest, &mut run).await?;
        let secs = [secs_of_one(effort, &small, &mut run).await?, secs_of_one(effort, &large, &mut run).await?];
        let line = Line::through([&small, &large], secs);
        rates.matvec.insert(dtype, line.rate);
        fixed.push(line.fixed_secs);
    }
    let dispatch_secs = middle(fixed);
    for &dtype in dtypes {
        let own = effort.of_figure(n_figures);
        let effort = own.as_ref().unwrap_or(effort);
        let large = climb(effort, dtype, TOKENS, largest, &mut run).await?;
        let secs = secs_of_one(effort, &large, &mut run).await?;
        let rate = operations(&large) / without_fixed(secs, dispatch_secs);
        // What else the machine does may slow one figure alone; but tokens together take no longer than one by one, or a plan would read
        // prompts so for ever.
        let one_by_one = rates.matvec[&dtype].0 * operations(&large) / f64::from(large.n_tokens) / weight_bytes(&large) as f64;
        rates.matmul.insert(dtype, rate.max(one_by_one));
    }
    Ok(Rates { dispatch_secs: Some(dispatch_secs), ..rates })
}

/// Measures `expert_matvec` of products in `dtypes`, of which `dispatch_secs` are fixed; what `run` computes is one token's products with
/// so many experts, whose matrices are one, as the shape says.
pub(super) async fn measure_experts(
    effort: &Effort,
    dtypes: &[DType],
    dispatch_secs: f64,
    largest: Bytes,
    mut run: impl AsyncFnMut(&Params, usize) -> Result<f64>,
) -> Result<BTreeMap<DType, BytesPerSec>> {
    let mut rates = BTreeMap::new();
    for &dtype in dtypes {
        let large = climb(effort, dtype, &VECTORS, largest, &mut run).await?;
        let secs = secs_of_one(effort, &large, &mut run).await?;
        rates.insert(dtype, BytesPerSec(weight_bytes(&large) as f64 / without_fixed(secs, dispatch_secs)));
    }
    Ok(rates)
}

/// What remains of the seconds of a product: its fixed cost is known less well than the whole, so that it never takes more than half away.
fn without_fixed(secs: f64, fixed_secs: f64) -> f64 {
    (secs - fixed_secs).max(secs / 2.0)
}

/// Seconds of a product as a line over the bytes of its matrix.
#[derive(Debug)]
struct Line {
    fixed_secs: f64,
    rate: BytesPerSec,
}

impl Line {
    /// The line through a small and a large product; where noise makes that meaningless, the large one alone gives the rate.
    fn through([small, large]: [&Params; 2], [small_secs, large_secs]: [f64; 2]) -> Line {
        let (small_bytes, large_bytes) = (weight_bytes(small) as f64, weight_bytes(large) as f64);
        let secs_per_byte = (large_secs - small_secs) / (large_bytes - small_bytes);
        let fixed_secs = small_secs - small_bytes * secs_per_byte;
        if secs_per_byte > 0.0 && fixed_secs > 0.0 {
            return Line { fixed_secs, rate: BytesPerSec(1.0 / secs_per_byte) };
        }
        Line { fixed_secs: small_secs, rate: BytesPerSec(large_bytes / large_secs) }
    }
}

/// The largest shape of `ladder` that a run has time for, and whose matrix has room; the first one always.
async fn climb(
    effort: &Effort,
    dtype: DType,
    ladder: &[[u32; 3]],
    largest: Bytes,
    run: &mut impl AsyncFnMut(&Params, usize) -> Result<f64>,
) -> Result<Params> {
    let mut chosen = params(dtype, ladder[0]);
    while effort.is_warming_up() {
        run(&chosen, 1).await?;
    }
    for pair in ladder.windows(2) {
        let next = params(dtype, pair[1]);
        if weight_bytes(&next) > largest.0 || effort.is_hurried() {
            break;
        }
        effort.beside_awaited(run(&chosen, 1)).await?;
        if run(&chosen, 1).await? * operations(&next) / operations(&chosen) > effort.secs_per_run {
            break;
        }
        chosen = next;
    }
    Ok(chosen)
}

/// Seconds of one of many products.
async fn secs_of_one(effort: &Effort, params: &Params, run: &mut impl AsyncFnMut(&Params, usize) -> Result<f64>) -> Result<f64> {
    effort.secs_of_one(async |repeats| run(params, repeats).await).await
}

/// With rows of whole blocks.
fn params(dtype: DType, [n_rows, n_columns, n_tokens]: [u32; 3]) -> Params {
    Params::new(dtype, n_rows, n_columns.next_multiple_of(dtype.block_len() as u32), n_tokens)
}

/// Bytes of the matrix.
pub(super) fn weight_bytes(params: &Params) -> u64 {
    params.row_bytes().unwrap_or(0) * u64::from(params.n_rows)
}

/// A multiplication and an addition per weight and token.
fn operations(params: &Params) -> f64 {
    2.0 * f64::from(params.n_rows) * f64::from(params.n_columns) * f64::from(params.n_tokens)
}

/// Products that compile each variant of the kernels once: of one token, and of the tokens of a prompt.
pub(super) fn variants(dtypes: &[DType]) -> impl Iterator<Item = Params> {
    dtypes.iter().flat_map(|&dtype| [params(dtype, SMALL), params(dtype, TOKENS[0])])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Measure;
    use crate::platform::block_on;

    /// A device with a fixed cost and a rate, which takes no time to measure.
    fn simulate(fixed_secs: f64, bytes_per_sec: f64, flops: f64) -> Rates {
        let effort = Effort::of(Measure::Quick).unwrap();
        let one = |params: &Params| match params.n_tokens {
            1 => fixed_secs + weight_bytes(params) as f64 / bytes_per_sec,
            _ => fixed_secs + operations(params) / flops,
        };
        let measured = measure(&effort, &DType::ALL, SMALL, Bytes::mib(128), async |params, repeats| Ok(one(params) * repeats as f64));
        block_on(measured).unwrap()
    }

    #[test]
    fn fixed_cost_and_rates_are_told_apart_on_fast_and_slow_devices() {
        for (fixed_secs, bytes_per_sec, flops) in [(5e-6, 1e12, 1e14), (20e-6, 1e9, 2e10), (2e-3, 1e8, 2e9)] {
            let rates = simulate(fixed_secs, bytes_per_sec, flops);
            assert!(rates.matvec.len() == DType::ALL.len() && rates.matmul.len() == DType::ALL.len());
            let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-3, "{found} for {expected}");
            close(rates.dispatch_secs.unwrap(), fixed_secs);
            rates.matvec.values().for_each(|rate| close(rate.0, bytes_per_sec));
            rates.matmul.values().for_each(|&rate| close(rate, flops));
        }
    }

    #[test]
    fn tokens_together_are_taken_to_be_no_slower_than_one_by_one() {
        let rates = simulate(1e-5, 1e10, 1e6);
        for (dtype, rate) in rates.matvec {
            let by_ones = 2.0 * rate.0 / DType::size_bytes(dtype, 1024).unwrap() as f64 * 1024.0;
            assert!(rates.matmul[&dtype] >= by_ones * 0.999, "{dtype}");
        }
    }

    #[test]
    fn no_shape_leaves_the_buffers() {
        for [n_rows, n_columns, n_tokens] in [SMALL].iter().chain(&VECTORS).chain(FROM_MIDDLE).chain(FROM_SMALL) {
            assert!(n_rows.max(n_columns) * n_tokens <= MOST_VALUES as u32);
        }
    }

    #[test]
    fn a_senseless_line_falls_back_on_the_large_product() {
        let (small, large) = (params(DType::F16, SMALL), params(DType::F16, VECTORS[0]));
        let line = Line::through([&small, &large], [2.0, 1.0]);
        assert_eq!(line.rate, BytesPerSec(weight_bytes(&large) as f64));
        assert_eq!(line.fixed_secs, 2.0);
    }
}
