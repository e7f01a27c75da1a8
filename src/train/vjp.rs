//! Vector-Jacobian products of operations without a matrix: from the gradient of what an operation gives to that of what it reads.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::dense::MIN_PARALLEL_VALUES;
use crate::model::{Activation, Function};

/// Partial sums of a row.
const LANES: usize = 16;

/// Σ `of(a, b)` in one order.
fn sum_of(a: &[f32], b: &[f32], of: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += of(*a, *b);
        }
    }
    sums.iter().sum()
}

/// What norms have besides their rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct NormOf<'a> {
    /// `[group_size]`; `None` multiplies nothing.
    pub(super) weight: Option<&'a [f32]>,
    /// Added to each weight.
    pub(super) weight_offset: f32,
    /// Values that are normed together.
    pub(super) group_size: usize,
    /// Added to the mean square.
    pub(super) epsilon: f32,
}

impl NormOf<'_> {
    /// Over the root of the mean square of a row.
    fn rms_scale(&self, row: &[f32]) -> f32 {
        1.0 / (sum_of(row, row, |a, b| a * b) / row.len() as f32 + self.epsilon).sqrt()
    }

    /// The mean of a row, and over its standard deviation.
    fn mean_and_scale(&self, row: &[f32]) -> (f32, f32) {
        let n = row.len() as f32;
        let mean = sum_of(row, row, |a, _| a) / n;
        (mean, 1.0 / (sum_of(row, row, |a, _| (a - mean) * (a - mean)) / n + self.epsilon).sqrt())
    }

    /// The gradient behind the product with the weights.
    fn weighted(&self, gradient: &[f32]) -> Vec<f32> {
        match self.weight {
            Some(weight) => gradient.iter().zip(weight).map(|(gradient, weight)| gradient * (weight + self.weight_offset)).collect(),
            None => gradient.to_vec(),
        }
    }
}

/// `x · s` of [`add_rms_norm`].
pub(super) fn rms_normed(norm: NormOf<'_>, input: &[f32]) -> Vec<f32> {
    let row = |row: &[f32]| {
        let scale = norm.rms_scale(row);
        row.iter().map(|x| x * scale).collect::<Vec<f32>>()
    };
    input.par_chunks_exact(norm.group_size).with_min_len(MIN_PARALLEL_VALUES.div_ceil(norm.group_size)).flat_map_iter(row).collect()
}

/// `x̂` of [`add_layer_norm`].
pub(super) fn layer_normed(norm: NormOf<'_>, input: &[f32]) -> Vec<f32> {
    let row = |row: &[f32]| {
        let (mean, scale) = norm.mean_and_scale(row);
        row.iter().map(|x| (x - mean) * scale).collect::<Vec<f32>>()
    };
    input.par_chunks_exact(norm.group_size).with_min_len(MIN_PARALLEL_VALUES.div_ceil(norm.group_size)).flat_map_iter(row).collect()
}

/// Adds the sum of all rows of `gradient`, value by value times `by`, to the row `into`: the gradient of weights that all rows are multiplied
/// by, or without `by` of a bias. Each sum has one order on any number of threads.
pub(super) fn add_rows(by: Option<&[f32]>, gradient: &[f32], into: &mut [f32]) {
    const COLUMNS: usize = 64;
    let n = into.len();
    into.par_chunks_mut(COLUMNS).enumerate().for_each(|(part, into)| {
        let mut sums = [0.0f64; COLUMNS];
        for begin in (part * COLUMNS..gradient.len()).step_by(n) {
            let gradient = &gradient[begin..][..into.len()];
            match by.map(|by| &by[begin..][..into.len()]) {
                Some(by) => sums.iter_mut().zip(gradient.iter().zip(by)).for_each(|(sum, (dy, x))| *sum += f64::from(*dy) * f64::from(*x)),
                None => sums.iter_mut().zip(gradient).for_each(|(sum, dy)| *sum += f64::from(*dy)),
            }
        }
        into.iter_mut().zip(sums).for_each(|(into, sum)| *into += sum as f32);
    });
}

/// Of `y = x · s · w` with `s = 1 / √(mean x² + ε)`: `dx = s · g − x · s³ · mean(g · x)`, where `g = dy · w`. Added to `into`.
pub(super) fn add_rms_norm(norm: NormOf<'_>, input: &[f32], gradient: &[f32], into: &mut [f32]) {
    let n = norm.group_size;
    let rows = input.par_chunks_exact(n).zip(gradient.par_chunks_exact(n));
    into.par_chunks_exact_mut(n).zip(rows).with_min_len(MIN_PARALLEL_VALUES.div_ceil(n)).for_each(|(into, (input, gradient))| {
        let scale = norm.rms_scale(input);
        let gradient = norm.weighted(gradient);
        let along = scale * scale * scale * sum_of(&gradient, input, |a, b| a * b) / n as f32;
        for ((into, input), gradient) in into.iter_mut().zip(input).zip(&gradient) {
            *into += scale * gradient - along * input;
        }
    });
}

/// Of `y = x̂ · w + b` with `x̂ = (x − mean) · s`: `dx = s · (g − mean g − x̂ · mean(g · x̂))`, where `g = dy · w`. Added to `into`.
pub(super) fn add_layer_norm(norm: NormOf<'_>, input: &[f32], gradient: &[f32], into: &mut [f32]) {
    let n = norm.group_size;
    let rows = input.par_chunks_exact(n).zip(gradient.par_chunks_exact(n));
    into.par_chunks_exact_mut(n).zip(rows).with_min_len(MIN_PARALLEL_VALUES.div_ceil(n)).for_each(|(into, (input, gradient))| {
        let (mean, scale) = norm.mean_and_scale(input);
        let gradient = norm.weighted(gradient);
        let level = sum_of(&gradient, input, |a, _| a) / n as f32;
        let along = sum_of(&gradient, input, |a, b| a * (b - mean) * scale) / n as f32;
        for ((into, input), gradient) in into.iter_mut().zip(input).zip(&gradient) {
            *into += scale * (gradient - level - (input - mean) * scale * along);
        }
    });
}

/// The value of an activation and its derivative; `None` of one that is not differentiated here.
pub(super) fn activation(activation: Activation) -> Option<fn(f32) -> (f32, f32)> {
    Some(match activation {
        Activation::Silu => |x| {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s * (1.0 + x * (1.0 - s)))
        },
        Activation::GeluTanh => |x| {
            // (1 + tanh u) / 2 = 1 / (1 + exp(−2u)) with u = √(2/π) · (x + 0.044715 · x³).
            let s = 1.0 / (1.0 + (-1.595_769_2 * (x + 0.044_715 * x * x * x)).exp());
            (x * s, s + x * s * (1.0 - s) * 1.595_769_2 * (1.0 + 3.0 * 0.044_715 * x * x))
        },
        Activation::Gelu => |x| {
            let value = crate::kernels::glu::activated(Activation::Gelu, x);
            let share = if x == 0.0 { 0.5 } else { value / x };
            (value, share + x * 0.398_942_3 * (-0.5 * x * x).exp())
        },
        Activation::Relu => |x| if x > 0.0 { (x, 1.0) } else { (0.0, 0.0) },
        Activation::ReluSquared => |x| if x > 0.0 { (x * x, 2.0 * x) } else { (0.0, 0.0) },
        Activation::Identity => |x| (x, 1.0),
        Activation::Sigmoid => |x| {
            let s = 1.0 / (1.0 + (-x).exp());
            (s, s * (1.0 - s))
        },
        Activation::ClampedSilu => return None,
    })
}

/// Of `y = a(gate) · up`: the gradients of gate and up.
pub(super) fn glu(function: fn(f32) -> (f32, f32), gate: &[f32], up: &[f32], gradient: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut of_gate, mut of_up) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
    let inputs = gate.par_chunks(MIN_PARALLEL_VALUES).zip(up.par_chunks(MIN_PARALLEL_VALUES)).zip(gradient.par_chunks(MIN_PARALLEL_VALUES));
    of_gate.par_chunks_mut(MIN_PARALLEL_VALUES).zip(of_up.par_chunks_mut(MIN_PARALLEL_VALUES)).zip(inputs).for_each(
        |((of_gate, of_up), ((gate, up), gradient))| {
            for i in 0..gate.len() {
                let (value, slope) = function(gate[i]);
                (of_gate[i], of_up[i]) = (gradient[i] * up[i] * slope, gradient[i] * value);
            }
        },
    );
    (of_gate, of_up)
}

/// Of `y = f(x)` value by value: the gradient of `x` in place of that of `y`; `false` where it is not differentiated here.
pub(super) fn map(function: Function, input: &[f32], gradient: &mut [f32]) -> bool {
    match function {
        Function::Scale(factor) => gradient.iter_mut().for_each(|gradient| *gradient *= factor),
        Function::Softcap(cap) => gradient.iter_mut().zip(input).for_each(|(gradient, x)| *gradient *= softcap_slope(cap, *x)),
        Function::Activation(kind) => {
            let Some(function) = activation(kind) else { return false };
            gradient.iter_mut().zip(input).for_each(|(gradient, x)| *gradient *= function(*x).1);
        }
    }
    true
}

/// The derivative of `cap · tanh(x / cap)`.
pub(super) fn softcap_slope(cap: f32, x: f32) -> f32 {
    let t = (x / cap).tanh();
    1.0 - t * t
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, step: f64) -> Vec<f32> {
        (0..n).map(|i| ((i as f64 + 1.0) * step).sin() as f32 * 1.5).collect()
    }

    /// The gradient of `Σ dy · f(x)` by differences in double precision.
    fn by_differences(f: impl Fn(&[f64]) -> Vec<f64>, x: &[f32], dy: &[f32]) -> Vec<f64> {
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let total = |x: &[f64]| f(x).iter().zip(dy).map(|(y, dy)| y * f64::from(*dy)).sum::<f64>();
        let slope = |i: usize| {
            let moved = |by: f64| total(&x.iter().enumerate().map(|(k, x)| if k == i { x + by } else { *x }).collect::<Vec<_>>());
            (moved(1e-5) - moved(-1e-5)) / 2e-5
        };
        (0..x.len()).map(slope).collect()
    }

    fn assert_close(found: &[f32], expected: &[f64], what: &str) {
        let largest = expected.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() <= 2e-5 * largest.max(1.0), "{what}: {found}, not {expected}");
        }
    }

    #[test]
    fn norms_have_the_gradients_of_their_formulas() {
        for n in [1usize, 5, 37] {
            let (x, dy, weight) = (values(3 * n, 0.9), values(3 * n, 0.31), values(n, 0.57));
            let norm = NormOf { weight: Some(&weight), weight_offset: 1.0, group_size: n, epsilon: 1e-2 };
            let weights: Vec<f64> = weight.iter().map(|weight| f64::from(*weight) + 1.0).collect();
            let rows = |x: &[f64], of: &dyn Fn(&[f64]) -> Vec<f64>| -> Vec<f64> { x.chunks(n).flat_map(of).collect() };
            let rms = |x: &[f64]| {
                let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / n as f64 + 1e-2).sqrt();
                x.iter().zip(&weights).map(|(x, weight)| x * scale * weight).collect::<Vec<f64>>()
            };
            let layer = |x: &[f64]| {
                let mean = x.iter().sum::<f64>() / n as f64;
                let scale = 1.0 / (x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64 + 1e-2).sqrt();
                x.iter().zip(&weights).map(|(x, weight)| (x - mean) * scale * weight).collect::<Vec<f64>>()
            };
            let mut dx = vec![0.0; x.len()];
            add_rms_norm(norm, &x, &dy, &mut dx);
            assert_close(&dx, &by_differences(|x| rows(x, &rms), &x, &dy), "root mean square");
            let mut dx = vec![0.0; x.len()];
            add_layer_norm(norm, &x, &dy, &mut dx);
            assert_close(&dx, &by_differences(|x| rows(x, &layer), &x, &dy), "layer norm");
        }
    }

    #[test]
    fn activations_have_the_gradients_of_the_kernels_references() {
        let (x, up, dy) = (values(41, 0.83), values(41, 0.3), values(41, 0.7));
        for kind in Activation::ALL.into_iter().filter(|kind| *kind != Activation::ClampedSilu) {
            let function = activation(kind).unwrap();
            for x in &x {
                let step = 2e-3f32;
                let value = |x: f32| f64::from(crate::kernels::glu::activated(kind, x));
                let slope = (value(x + step) - value(x - step)) / f64::from((x + step) - (x - step));
                assert!((f64::from(function(*x).0) - value(*x)).abs() < 1e-5, "{kind:?} of {x}");
                assert!((f64::from(function(*x).1) - slope).abs() < 1e-3, "{kind:?} at {x}: {} {slope}", function(*x).1);
            }
            let (of_gate, of_up) = glu(function, &x, &up, &dy);
            for i in 0..x.len() {
                let (value, slope) = function(x[i]);
                assert_eq!((of_gate[i], of_up[i]), (dy[i] * up[i] * slope, dy[i] * value));
            }
            let mut gradient = dy.clone();
            assert!(map(Function::Activation(kind), &x, &mut gradient));
            assert!((0..x.len()).all(|i| gradient[i] == dy[i] * function(x[i]).1));
        }
        let mut gradient = dy.clone();
        assert!(map(Function::Softcap(2.0), &x, &mut gradient));
        assert_close(&gradient, &by_differences(|x| x.iter().map(|x| 2.0 * (x / 2.0).tanh()).collect(), &x, &dy), "softcap");
        assert!(!map(Function::Activation(Activation::ClampedSilu), &x, &mut gradient), "it is refused, not guessed");
    }
}
