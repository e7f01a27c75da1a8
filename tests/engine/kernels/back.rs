//! Kernels of training: the way back through operations, and the loss.

use tierflow::DType;
use tierflow::gpu::Buffer;
use tierflow::kernels::back::{attention as back_attention, loss, norms, products, values};
use tierflow::kernels::rope_kv::Token;
use tierflow::kernels::{Binding, attention, glu, layer_norm, map, matmul, rms_norm};
use tierflow::model::{Activation, Function};

use super::{EXP_TOLERANCE, SUM_TOLERANCE};
use crate::common::{GUARD, POISON, Random, assert_close, gpus, output, run, upload};

/// Values that a kernel adds to, behind them a guard.
fn guarded(gpu: &tierflow::gpu::Gpu, values: &[f32]) -> Buffer {
    upload(gpu, "into", &[values, &[POISON; GUARD]].concat())
}

#[test]
fn the_way_back_through_a_product_matches_its_reference_for_every_dtype() {
    for gpu in gpus() {
        for dtype in DType::ALL {
            let columns: &[u32] = match dtype.block_len() {
                1 => &[1, 7, 40, 264],
                32 => &[32, 96],
                _ => &[256, 512],
            };
            for &n_columns in columns {
                for (n_rows, n_tokens) in [(1, 1), (31, 3), (33, 33), (70, 65)] {
                    let whole = matmul::Params::new(dtype, n_rows + 5, n_columns, n_tokens);
                    let params = whole.slice(3, n_rows);
                    let mut random = Random(u64::from(n_rows * 31 + n_columns + n_tokens));
                    let weight = random.weights(dtype, (n_rows * n_columns) as usize);
                    let upward = random.floats((n_tokens * params.output_stride) as usize);
                    let before = random.floats((n_tokens * n_columns) as usize);
                    let mut decoded = vec![0.0; (n_rows * n_columns) as usize];
                    dtype.decode(&weight, &mut decoded);
                    let mut expected = before.clone();
                    products::reference(&params, &decoded, &upward, &mut expected);
                    let (weight, upward, into) = (upload(gpu, "weight", &weight), upload(gpu, "upward", &upward), guarded(gpu, &before));
                    let [weight, upward, bound] = [&weight, &upward, &into].map(|buffer| Binding::whole(buffer));
                    let bindings = products::Bindings { weight, upward, into: bound };
                    run(gpu, &params, |buffer| products::prepare(gpu, buffer, &params, bindings));
                    let what = format!("{dtype} [{n_rows}, {n_columns}] × {n_tokens}");
                    assert_close(&output(gpu, &into, expected.len()), &expected, SUM_TOLERANCE, &what);
                }
            }
        }
    }
}

#[test]
fn outer_products_and_scattered_rows_match_their_references() {
    for gpu in gpus() {
        for (n_tokens, n_rows, n_columns) in [(1, 1, 1), (7, 5, 12), (33, 19, 37)] {
            let params = products::OuterParams { n_tokens, n_rows, n_columns };
            let mut random = Random(u64::from(n_columns));
            let [left, right, before] = [n_tokens * n_rows, n_tokens * n_columns, n_rows * n_columns].map(|n| random.floats(n as usize));
            let mut expected = before.clone();
            products::reference_outer(&params, &left, &right, &mut expected);
            let [left, right, into] = [upload(gpu, "left", &left), upload(gpu, "right", &right), guarded(gpu, &before)];
            let [left, right, bound] = [&left, &right, &into].map(|buffer| Binding::whole(buffer));
            let bindings = products::OuterBindings { left, right, into: bound };
            run(gpu, &params, |buffer| products::prepare_outer(gpu, buffer, &params, bindings));
            assert_close(&output(gpu, &into, expected.len()), &expected, SUM_TOLERANCE, &format!("{params:?}"));

            let params = values::ScatterParams { n_rows: 3, n_output_rows: n_tokens, width: n_columns };
            let rows = [n_tokens - 1, n_tokens / 3, 99].map(|row| if row == n_tokens - 1 && n_tokens < 3 { 98 } else { row });
            let input = random.floats(3 * n_columns as usize);
            let before = random.floats((n_tokens * n_columns) as usize);
            let mut expected = before.clone();
            values::reference_scatter(&params, &input, &rows, &mut expected);
            let [input, into] = [upload(gpu, "input", &input), guarded(gpu, &before)];
            let rows = upload(gpu, "rows", &rows);
            let bound = [&input, &rows, &into].map(|buffer| Binding::whole(buffer));
            run(gpu, &params, |buffer| values::prepare_scatter(gpu, buffer, &params, bound));
            assert_close(&output(gpu, &into, expected.len()), &expected, 0.0, &format!("{params:?}"));
        }
    }
}

#[test]
fn the_way_back_through_norms_matches_its_references() {
    for gpu in gpus() {
        for (n_rows, hidden_size, has_weight) in [(1, 1, true), (3, 31, false), (257, 3, true), (5, 576, true)] {
            let params = rms_norm::Params { n_rows, hidden_size, epsilon: 1e-3, weight_offset: (n_rows % 2) as f32 };
            let mut random = Random(u64::from(hidden_size));
            let len = (n_rows * hidden_size) as usize;
            let [input, upward, before] = [(); 3].map(|()| random.floats(len));
            let weight = random.floats(hidden_size as usize);
            let [of_rms, of_layer] = {
                let mut both = [before.clone(), before.clone()];
                norms::reference_rms(&params, &input, has_weight.then_some(&weight[..]), &upward, &mut both[0]);
                norms::reference_layer(&params, &input, &weight, &upward, &mut both[1]);
                both
            };
            let [inputs, weights, upwards] = [&input, &weight, &upward].map(|values| upload(gpu, "input", values));
            let (into, what) = (guarded(gpu, &before), format!("{n_rows} rows of {hidden_size}"));
            let bindings = norms::Bindings {
                input: Binding::whole(&inputs),
                weight: has_weight.then_some(Binding::whole(&weights)),
                upward: Binding::whole(&upwards),
                into: Binding::whole(&into),
            };
            run(gpu, &params, |buffer| norms::prepare_rms(gpu, buffer, &params, bindings));
            assert_close(&output(gpu, &into, len), &of_rms, 1e-4, &what);
            let into = guarded(gpu, &before);
            let params = layer_norm::Params { ..params };
            let bindings = norms::Bindings { weight: Some(Binding::whole(&weights)), into: Binding::whole(&into), ..bindings };
            run(gpu, &params, |buffer| norms::prepare_layer(gpu, buffer, &params, bindings));
            assert_close(&output(gpu, &into, len), &of_layer, 1e-4, &format!("layer norm, {what}"));
        }
    }
}

/// The slope of a function by differences in both directions.
fn slope(function: impl Fn(f32) -> f32, x: f32) -> f32 {
    let step = 3e-3f32;
    let [above, below] = [function(x + step), function(x - step)].map(f64::from);
    ((above - below) / f64::from((x + step) - (x - step))) as f32
}

#[test]
fn the_way_back_through_activations_has_the_slopes_of_their_references() {
    for gpu in gpus() {
        for n_values in [1u32, 31, 257] {
            let mut random = Random(u64::from(n_values));
            // Away from zero, where some have no slope.
            let values = random.floats(n_values as usize).into_iter().map(|x| x + 0.05f32.copysign(x));
            let gate: Vec<f32> = values.collect();
            let [up, upward, before] = [(); 3].map(|()| random.floats(n_values as usize));
            let [gates, ups, upwards] = [&gate, &up, &upward].map(|values| upload(gpu, "input", values));
            let mapped = |function: Function, x: f32| {
                let mut value = [x];
                map::reference(function, &mut value);
                value[0]
            };
            for activation in Activation::ALL.into_iter().filter(|activation| *activation != Activation::ClampedSilu) {
                let function = Function::Activation(activation);
                let [of_gate, of_up] = [(); 2].map(|()| guarded(gpu, &before));
                let bindings = values::GluBindings {
                    gate: Binding::whole(&gates),
                    up: Binding::whole(&ups),
                    upward: Binding::whole(&upwards),
                    of_gate: Binding::whole(&of_gate),
                    of_up: Binding::whole(&of_up),
                };
                let params = glu::Params { n_values };
                run(gpu, &params, |buffer| values::prepare_glu(gpu, buffer, &params, activation, bindings));
                let n = gate.len();
                let of_gates: Vec<f32> = (0..n).map(|i| before[i] + upward[i] * up[i] * slope(|x| mapped(function, x), gate[i])).collect();
                let of_ups: Vec<f32> = (0..n).map(|i| before[i] + upward[i] * mapped(function, gate[i])).collect();
                assert_close(&output(gpu, &of_gate, n), &of_gates, 2e-4, &format!("{activation:?} of gates"));
                assert_close(&output(gpu, &of_up, n), &of_ups, EXP_TOLERANCE, &format!("{activation:?} beside"));
            }
            let functions = [Function::Softcap(0.7), Function::Softcap(30.0), Function::Activation(Activation::Gelu)];
            for function in functions {
                let number = if let Function::Softcap(cap) = function { cap } else { 0.0 };
                let (params, gradient) = (map::Params { n_values, number }, guarded(gpu, &upward));
                let bound = [Binding::whole(&gates), Binding::whole(&gradient)];
                run(gpu, &params, |buffer| values::prepare_map(gpu, buffer, &params, function, bound));
                let expected: Vec<f32> = gate.iter().zip(&upward).map(|(x, upward)| upward * slope(|x| mapped(function, x), *x)).collect();
                assert_close(&output(gpu, &gradient, expected.len()), &expected, 2e-4, &format!("{function:?}"));
            }
        }
    }
}

#[test]
fn the_loss_and_its_gradient_match_their_references_in_slices() {
    for gpu in gpus() {
        for (n_rows, widths, cap) in [(1u32, vec![1u32], 0.0f32), (5, vec![31, 40, 7], 0.0), (3, vec![257, 300], 2.0)] {
            let mut random = Random(u64::from(n_rows));
            let vocab_size: u32 = widths.iter().sum();
            let targets: Vec<u32> = (0..n_rows).map(|row| (row * 37 + 3) % vocab_size).collect();
            let (target_buffer, totals) = (upload(gpu, "targets", &targets), upload(gpu, "totals", &vec![POISON; n_rows as usize * 4]));
            let mut expected_totals = vec![[0.0f32; 4]; n_rows as usize];
            let mut slices = Vec::new();
            let mut first = 0;
            for &width in &widths {
                let params = loss::Params { n_rows, width, first, factor: 0.25, slope: 1.5, cap };
                let logits: Vec<f32> = random.floats((n_rows * width) as usize);
                loss::reference_totals(&params, &logits, &targets, &mut expected_totals);
                let buffer = guarded(gpu, &logits);
                let bound = [&buffer, &target_buffer, &totals].map(|buffer| Binding::whole(buffer));
                run(gpu, &params, |arena| loss::prepare_totals(gpu, arena, &params, bound));
                slices.push((params, logits, buffer));
                first += width;
            }
            assert_close(&output(gpu, &totals, n_rows as usize * 4), expected_totals.as_flattened(), EXP_TOLERANCE, "totals");
            for (params, mut logits, buffer) in slices {
                loss::reference_back(&params, &targets, &expected_totals, &mut logits);
                let bound = [&target_buffer, &totals, &buffer].map(|buffer| Binding::whole(buffer));
                run(gpu, &params, |arena| loss::prepare_back(gpu, arena, &params, bound));
                assert_close(&output(gpu, &buffer, logits.len()), &logits, EXP_TOLERANCE, &format!("{params:?}"));
            }
        }
    }
}

/// Attention in double precision, and its gradients.
struct Exact<'a> {
    params: attention::Params,
    lens: &'a [u32],
    sinks: Option<&'a [f32]>,
    inputs: [Vec<f64>; 3],
}

impl Exact<'_> {
    /// `Σ upward · output`.
    fn total(&self, upward: &[f32]) -> f64 {
        self.output().iter().zip(upward).map(|(output, upward)| output * f64::from(*upward)).sum()
    }

    fn output(&self) -> Vec<f64> {
        let attention::Params { n_heads, n_kv_heads, head_size, .. } = self.params;
        let [n_heads, n_kv_heads, head_size] = [n_heads, n_kv_heads, head_size].map(|n| n as usize);
        let [query, keys, values] = &self.inputs;
        let mut output = vec![0.0; query.len()];
        let mut begin = 0;
        for &len in self.lens {
            for position in 0..len {
                let token = begin + position as usize;
                let seen = attention::visible(&self.params, &Token::new(0, position, len));
                for head in 0..n_heads {
                    let of_query = (token * n_heads + head) * head_size;
                    let place = |p: usize| ((begin + p) * n_kv_heads + head / (n_heads / n_kv_heads)) * head_size;
                    let score = |p: usize| {
                        let dot: f64 = (0..head_size).map(|i| query[of_query + i] * keys[place(p) + i]).sum();
                        let (score, cap) = (dot * f64::from(self.params.scale), f64::from(self.params.softcap));
                        if cap > 0.0 { cap * (score / cap).tanh() } else { score }
                    };
                    let shares: Vec<(usize, f64)> = seen.clone().map(|p| (p, score(p).exp())).collect();
                    let sink = self.sinks.map_or(0.0, |sinks| f64::from(sinks[head]).exp());
                    let sum = shares.iter().map(|(_, share)| share).sum::<f64>() + sink;
                    for (p, share) in shares {
                        (0..head_size).for_each(|i| output[of_query + i] += share / sum * values[place(p) + i]);
                    }
                }
            }
            begin += len as usize;
        }
        output
    }

    /// The gradient of one input by differences.
    fn gradient(&mut self, which: usize, upward: &[f32]) -> Vec<f32> {
        let step = 1e-5;
        (0..self.inputs[which].len())
            .map(|i| {
                let mut at = |by: f64| {
                    self.inputs[which][i] += by;
                    let total = self.total(upward);
                    self.inputs[which][i] -= by;
                    total
                };
                ((at(step) - at(-step)) / (2.0 * step)) as f32
            })
            .collect()
    }
}

#[test]
fn attention_and_the_way_back_through_it_are_those_of_their_formula() {
    let of = |n_heads, n_kv_heads, head_size, window, softcap, is_causal, in_chunks| attention::Params {
        n_tokens: 0,
        n_heads,
        n_kv_heads,
        head_size,
        n_blocks: 0,
        kv_capacity: 1 << 16,
        window,
        scale: 0.7,
        key_dtype: 0,
        value_dtype: 0,
        softcap,
        is_causal,
        in_chunks,
    };
    let cases = [
        (of(1, 1, 1, 0, 0.0, 1, 0), vec![1], false),
        (of(4, 2, 6, 0, 0.0, 1, 0), vec![5, 3], false),
        (of(3, 3, 5, 4, 0.0, 1, 0), vec![2, 11], true),
        (of(2, 1, 70, 0, 1.5, 1, 0), vec![6], false),
        (of(2, 1, 3, 4, 0.0, 1, 1), vec![9], false),
        (of(2, 1, 3, 0, 0.0, 0, 0), vec![7, 2], false),
        (of(1, 1, 2, 0, 0.0, 1, 0), vec![70], true),
    ];
    for gpu in gpus() {
        for (params, lens, has_sinks) in &cases {
            let n_tokens: u32 = lens.iter().sum();
            let params = attention::Params { n_tokens, ..*params };
            let mut random = Random(u64::from(n_tokens));
            let (n, n_kv) = (n_tokens * params.n_heads * params.head_size, n_tokens * params.n_kv_heads * params.head_size);
            let inputs = [n, n_kv, n_kv].map(|n| random.floats(n as usize));
            let [upward, before] = [(); 2].map(|()| random.floats(n as usize));
            let before_kv = random.floats(n_kv as usize);
            let sinks = random.floats(params.n_heads as usize);
            let mut exact = Exact {
                params,
                lens,
                sinks: has_sinks.then_some(&sinks[..]),
                inputs: inputs.clone().map(|values| values.into_iter().map(f64::from).collect()),
            };
            let mut runs = Vec::new();
            for len in lens {
                let begin = runs.len() as u32;
                runs.extend((0..*len).map(|_| [begin, begin + len]));
            }
            let [query, keys, values] = inputs.map(|values| upload(gpu, "input", &values));
            let (runs, sinks, upwards) = (upload(gpu, "runs", &runs), upload(gpu, "sinks", &sinks), upload(gpu, "upward", &upward));
            let (result, totals) = (guarded(gpu, &before), upload(gpu, "totals", &vec![POISON; (n_tokens * params.n_heads * 2) as usize]));
            let [query, keys, values, runs] = [&query, &keys, &values, &runs].map(|buffer| Binding::whole(buffer));
            let inputs = back_attention::Inputs { query, keys, values, runs };
            let sinks = has_sinks.then_some(Binding::whole(&sinks));
            let (bound, bound_totals) = (Binding::whole(&result), Binding::whole(&totals));
            run(gpu, &params, |buffer| back_attention::prepare(gpu, buffer, &params, inputs, sinks, [bound, bound_totals]));
            let expected: Vec<f32> = exact.output().into_iter().map(|x| x as f32).collect();
            assert_close(&output(gpu, &result, n as usize), &expected, EXP_TOLERANCE, &format!("{params:?}"));

            let (of_query, of_keys, of_values) = (guarded(gpu, &before), guarded(gpu, &before_kv), guarded(gpu, &before_kv));
            let own = [bound, Binding::whole(&upwards), Binding::whole(&of_query), bound_totals];
            run(gpu, &params, |buffer| back_attention::prepare_query(gpu, buffer, &params, inputs, own));
            let own = [bound_totals, Binding::whole(&upwards), Binding::whole(&of_keys), Binding::whole(&of_values)];
            run(gpu, &params, |buffer| back_attention::prepare_keys(gpu, buffer, &params, inputs, own));
            for (which, buffer) in [&of_query, &of_keys, &of_values].into_iter().enumerate() {
                let before = if which == 0 { &before } else { &before_kv };
                let expected: Vec<f32> = exact.gradient(which, &upward).iter().zip(before).map(|(own, before)| own + before).collect();
                assert_close(&output(gpu, buffer, expected.len()), &expected, 2e-5, &format!("input {which} of {params:?}"));
            }
        }
    }
}
