//! Operations whose rows or values do not meet: each part of a large input goes to a thread of its own.

use super::exp::exp;
use crate::kernels::glu::beside;
use crate::kernels::{layer_norm as centred, rms_norm as norm, rope};
use crate::model::{Activation, Function};
use crate::platform::for_each_part;

/// Values from which on a second thread pays: waking it takes a few microseconds, about what these take.
pub(super) const MIN_PARALLEL_VALUES: usize = 16_384;
/// Partial sums of a norm.
const LANES: usize = 16;

/// Root-mean-square norm, as [`norm::reference`] has it up to the order of its sum.
/// `input` and `output` are `[n_rows, hidden_size]`, `weight` `[hidden_size]`, if there is one.
pub fn rms_norm(params: &norm::Params, input: &[f32], weight: Option<&[f32]>, output: &mut [f32]) {
    let hidden_size = params.hidden_size as usize;
    let n_values = params.n_rows as usize * hidden_size;
    in_parts(hidden_size, &mut output[..n_values], &input[..n_values], |output, input| {
        let scale = 1.0 / (sum_of_squares(input) / hidden_size as f32 + params.epsilon).sqrt();
        let Some(weight) = weight else {
            output.iter_mut().zip(input).for_each(|(output, input)| *output = input * scale);
            return;
        };
        for ((output, input), weight) in output.iter_mut().zip(input).zip(weight) {
            *output = input * scale * (weight + params.weight_offset);
        }
    });
}

/// Layer norm, as [`centred::reference`] has it up to the order of its sums.
/// `input` and `output` are `[n_rows, hidden_size]`, `weight` and `bias` `[hidden_size]`.
pub fn layer_norm(params: &centred::Params, input: &[f32], weight: &[f32], bias: Option<&[f32]>, output: &mut [f32]) {
    let hidden_size = params.hidden_size as usize;
    let n_values = params.n_rows as usize * hidden_size;
    in_parts(hidden_size, &mut output[..n_values], &input[..n_values], |output, input| {
        let mean = sum_of(input, |value| value) / hidden_size as f32;
        let variance = sum_of(input, |value| (value - mean) * (value - mean)) / hidden_size as f32;
        let scale = 1.0 / (variance + params.epsilon).sqrt();
        for ((output, input), weight) in output.iter_mut().zip(input).zip(weight) {
            *output = (input - mean) * scale * (weight + params.weight_offset);
        }
        if let Some(bias) = bias {
            output.iter_mut().zip(bias).for_each(|(output, bias)| *output += bias);
        }
    });
}

fn sum_of_squares(values: &[f32]) -> f32 {
    sum_of(values, |value| value * value)
}

fn sum_of(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (lanes, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for values in lanes {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += of(*value));
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| of(*value)).sum::<f32>()
}

/// Rotary embedding in place: [`rope::reference`]. `cos_sin` is `[n_tokens, rotary_size / 2, 2]`, `values` `[n_tokens, n_heads, head_size]`.
pub fn rope(params: &rope::Params, cos_sin: &[f32], values: &mut [f32]) {
    let row_len = (params.n_heads * params.head_size) as usize;
    let rows = &mut values[..params.n_tokens as usize * row_len];
    if rows.len() <= MIN_PARALLEL_VALUES || params.rotary_size == 0 {
        return rope::reference(params, cos_sin, rows);
    }
    let n_cos_sin = params.rotary_size as usize;
    for_each_part(rows, row_len, || (), |(), token, row| rope::reference(params, &cos_sin[token * n_cos_sin..][..n_cos_sin], row));
}

/// `output[i] = activation(gate[i]) · up[i]`, as `kernels::glu::reference` has it up to the roundings of the exponential function.
pub fn glu(activation: Activation, gate: &[f32], up: &[f32], output: &mut [f32]) {
    match activation {
        Activation::Silu => glu_of(silu, gate, up, output),
        Activation::GeluTanh => glu_of(gelu_tanh, gate, up, output),
        Activation::Gelu => glu_of(gelu, gate, up, output),
        Activation::Relu => glu_of(relu, gate, up, output),
        Activation::ReluSquared => glu_of(relu_squared, gate, up, output),
        Activation::Identity => glu_of(|x| x, gate, up, output),
        Activation::Sigmoid => glu_of(sigmoid, gate, up, output),
        Activation::ClampedSilu => {
            glu_with(clamped_silu, |up| beside(activation, up), gate, up, output);
        }
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// (1 + tanh(u)) / 2 = 1 / (1 + exp(−2u)), and 2 · √(2/π) = 1.5957691.
fn gelu_tanh(x: f32) -> f32 {
    x / (1.0 + exp(-1.595_769_2 * (x + 0.044_715 * x * x * x)))
}

/// `x` times the normal distribution, whose tail is `exp(−z²) / 2` times a polynomial of `t` (Abramowitz, Stegun 7.1.26: within 1.5e-7).
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (0.327_591_1 * z + 1.0);
    let polynomial = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let tail = 0.5 * polynomial * exp(-z * z);
    x * if x >= 0.0 { 1.0 - tail } else { tail }
}

fn relu(x: f32) -> f32 {
    x.max(0.0)
}

fn clamped_silu(x: f32) -> f32 {
    let x = x.min(7.0);
    x / (1.0 + exp(-1.702 * x))
}

fn relu_squared(x: f32) -> f32 {
    relu(x) * relu(x)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

fn glu_of(activated: impl Fn(f32) -> f32 + Sync, gate: &[f32], up: &[f32], output: &mut [f32]) {
    glu_with(activated, |up| up, gate, up, output);
}

fn glu_with(activated: impl Fn(f32) -> f32 + Sync, beside: impl Fn(f32) -> f32 + Sync, gate: &[f32], up: &[f32], output: &mut [f32]) {
    let part = |output: &mut [f32], gate: &[f32], up: &[f32]| {
        for ((output, gate), up) in output.iter_mut().zip(gate).zip(up) {
            *output = activated(*gate) * beside(*up);
        }
    };
    if output.len() <= MIN_PARALLEL_VALUES {
        return part(output, gate, up);
    }
    for_each_part(
        output,
        MIN_PARALLEL_VALUES,
        || (),
        |(), index, output| {
            let begin = index * MIN_PARALLEL_VALUES;
            part(output, &gate[begin..], &up[begin..]);
        },
    );
}

/// `target[i] = function(target[i])`, as `kernels::map::reference` has it up to the roundings of the exponential function.
pub fn map(function: Function, target: &mut [f32]) {
    match function {
        Function::Scale(factor) => target.iter_mut().for_each(|value| *value *= factor),
        Function::Softcap(cap) => in_place(target, |part| softcap(cap, part)),
        Function::Activation(Activation::Silu) => in_place(target, |part| part.iter_mut().for_each(|x| *x = silu(*x))),
        Function::Activation(Activation::GeluTanh) => in_place(target, |part| part.iter_mut().for_each(|x| *x = gelu_tanh(*x))),
        Function::Activation(Activation::Gelu) => in_place(target, |part| part.iter_mut().for_each(|x| *x = gelu(*x))),
        Function::Activation(Activation::Relu) => in_place(target, |part| part.iter_mut().for_each(|x| *x = relu(*x))),
        Function::Activation(Activation::ReluSquared) => in_place(target, |part| part.iter_mut().for_each(|x| *x = relu_squared(*x))),
        Function::Activation(Activation::Identity) => {}
        Function::Activation(Activation::Sigmoid) => in_place(target, |part| part.iter_mut().for_each(|x| *x = sigmoid(*x))),
        Function::Activation(Activation::ClampedSilu) => in_place(target, |part| part.iter_mut().for_each(|x| *x = clamped_silu(*x))),
    }
}

/// Calls `part` with each part of `target`, on all threads where it is long.
fn in_place(target: &mut [f32], part: impl Fn(&mut [f32]) + Sync) {
    if target.len() <= MIN_PARALLEL_VALUES {
        part(target);
    } else {
        for_each_part(target, MIN_PARALLEL_VALUES, || (), |(), _, values| part(values));
    }
}

/// `cap · tanh(x / cap)` of all values: tanh(y) = 1 − 2 / (1 + exp(2y)).
pub(super) fn softcap(cap: f32, values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = cap - 2.0 * cap / (1.0 + exp(2.0 / cap * *value)));
}

/// `target[i] += input[i]`: `kernels::add::reference`.
pub fn add(input: &[f32], target: &mut [f32]) {
    in_parts(MIN_PARALLEL_VALUES, target, input, |target, input| target.iter_mut().zip(input).for_each(|(target, input)| *target += input));
}

/// Calls `part` with each part of `output` and of `input`, on all threads where they are many values.
fn in_parts(part_len: usize, output: &mut [f32], input: &[f32], part: impl Fn(&mut [f32], &[f32]) + Sync) {
    if output.len() <= MIN_PARALLEL_VALUES {
        output.chunks_mut(part_len).zip(input.chunks(part_len)).for_each(|(output, input)| part(output, input));
    } else {
        for_each_part(output, part_len, || (), |(), index, output| part(output, &input[index * part_len..][..output.len()]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::glu as gated;
    use crate::kernels::map as mapped;

    /// Of the largest magnitude: sums in another order, and an exponential function of two units of the last place.
    const TOLERANCE: f32 = 1e-6;

    fn values(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() * 3.0).collect()
    }

    fn assert_close(values: &[f32], expected: &[f32]) {
        let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let worst = values.iter().zip(expected).map(|(value, expected)| (value - expected).abs()).fold(0.0, f32::max);
        assert!(worst <= TOLERANCE * largest, "{worst} of {largest}");
    }

    #[test]
    fn each_equals_its_reference() {
        for n_rows in [1usize, 3, 300] {
            let hidden_size = 70;
            let (input, other) = (values(n_rows * hidden_size, 0.13), values(n_rows * hidden_size, 0.41));
            let (mut output, mut expected) = (vec![f32::NAN; input.len()], vec![f32::NAN; input.len()]);
            let params = norm::Params { n_rows: n_rows as u32, hidden_size: hidden_size as u32, epsilon: 1e-5, weight_offset: 1.0 };
            rms_norm(&params, &input, Some(&other[..hidden_size]), &mut output);
            norm::reference(&params, &input, Some(&other[..hidden_size]), &mut expected);
            assert_close(&output, &expected);

            for bias in [None, Some(&input[..hidden_size])] {
                let params = centred::Params { n_rows: n_rows as u32, hidden_size: hidden_size as u32, epsilon: 1e-5, weight_offset: 1.0 };
                layer_norm(&params, &input, &other[..hidden_size], bias, &mut output);
                centred::reference(&params, &input, &other[..hidden_size], bias, &mut expected);
                assert_close(&output, &expected);
            }

            for activation in Activation::ALL {
                glu(activation, &input, &other, &mut output);
                gated::reference(&gated::Params { n_values: input.len() as u32 }, activation, &input, &other, &mut expected);
                assert_close(&output, &expected);
            }
            for function in [Function::Scale(0.3), Function::Softcap(2.0)].into_iter().chain(Activation::ALL.map(Function::Activation)) {
                output.copy_from_slice(&input);
                expected.copy_from_slice(&input);
                map(function, &mut output);
                mapped::reference(function, &mut expected);
                assert_close(&output, &expected);
            }

            for rotary_size in [10, 6] {
                let params = rope::Params { n_tokens: n_rows as u32, n_heads: 7, head_size: 10, rotary_size, pairing: 0 };
                output.copy_from_slice(&input);
                expected.copy_from_slice(&input);
                rope(&params, &other, &mut output);
                rope::reference(&params, &other, &mut expected);
                assert_eq!(output, expected);
            }

            add(&other, &mut output);
            assert!(output.iter().zip(&expected).zip(&other).all(|((sum, a), b)| *sum == a + b));
        }
    }
}
