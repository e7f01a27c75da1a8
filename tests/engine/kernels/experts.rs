//! The kernels of experts, and the host's twin of their product.

use tierflow::dtype::DType;
use tierflow::gpu::{Buffer, Gpu};
use tierflow::host::simd;
use tierflow::host::{ExpertScratch, multiply_experts};
use tierflow::kernels::{Binding, add_expert_bias, expert_matmul, gate_rows, route, sum_experts, weigh_inputs};

use super::{EXP_TOLERANCE, SUM_TOLERANCE};
use crate::common::{POISON, Random, assert_close, bits, gpus, output, poisoned, run, run_all, upload};

/// The host's products of blocks have inputs of 16 bits, whose roundings add up, beside the largest of many products.
const HOST_TOLERANCE: f32 = 1e-4;

const PLAIN: route::Params =
    route::Params { n_tokens: 1, n_experts: 1, n_used: 1, scores: 0, n_groups: 1, n_groups_used: 1, n_best: 1, normalises: 0, scale: 1.0 };

#[test]
fn routes_match_their_reference() {
    for gpu in gpus() {
        for (params, has_bias) in [
            (PLAIN, false),
            (route::Params { n_tokens: 3, n_experts: 7, n_used: 7, ..PLAIN }, true),
            (route::Params { n_tokens: 33, n_experts: 128, n_used: 8, normalises: 1, ..PLAIN }, false),
            (route::Params { n_tokens: 2, n_experts: 130, n_used: 5, scores: 1, normalises: 1, scale: 2.5, ..PLAIN }, true),
            (route::Params { n_tokens: 9, n_experts: 64, n_used: 6, n_groups: 8, n_groups_used: 3, scale: 16.0, ..PLAIN }, false),
            (route::Params { n_tokens: 5, n_experts: 96, n_used: 7, scores: 1, n_groups: 6, n_groups_used: 2, n_best: 2, ..PLAIN }, true),
            (route::Params { n_tokens: 2, n_experts: 1024, n_used: 10, normalises: 1, ..PLAIN }, false),
        ] {
            for has_factors in [false, true] {
                check_route(gpu, &params, has_bias, has_factors);
            }
        }
    }
}

fn check_route(gpu: &Gpu, params: &route::Params, has_bias: bool, has_factors: bool) {
    let mut random = Random(u64::from(params.n_experts));
    let logits: Vec<f32> = random.floats((params.n_tokens * params.n_experts) as usize).iter().map(|logit| 4.0 * logit).collect();
    let [bias, factors] = [has_bias, has_factors].map(|is_there| is_there.then(|| random.floats(params.n_experts as usize)));
    let len = (params.n_tokens * 2 * params.n_used) as usize;
    let mut expected = vec![0.0; len];
    route::reference(params, &logits, [bias.as_deref(), factors.as_deref()], &mut expected);
    let (logits, result) = (upload(gpu, "logits", &logits), poisoned(gpu, len));
    let [bias, factors] = [bias, factors].map(|each| each.map(|each| upload(gpu, "vector", &each)));
    let bindings = route::Bindings {
        logits: Binding::whole(&logits),
        bias: bias.as_ref().map(|bias| Binding::whole(bias)),
        factors: factors.as_ref().map(|factors| Binding::whole(factors)),
        routing: Binding::whole(&result),
    };
    run(gpu, params, |buffer| route::prepare(gpu, buffer, params, bindings));
    let found = output(gpu, &result, len);
    let n_used = params.n_used as usize;
    for (token, (found, expected)) in found.chunks(2 * n_used).zip(expected.chunks(2 * n_used)).enumerate() {
        assert_eq!(found[..n_used], expected[..n_used], "experts of token {token} of {params:?}");
        assert_close(&found[n_used..], &expected[n_used..], EXP_TOLERANCE, &format!("weights of token {token} of {params:?}"));
    }
}

/// A product with random experts of each token.
struct Product {
    params: expert_matmul::Params,
    dtype: DType,
    weight: Vec<u8>,
    input: Vec<f32>,
    /// `None`: each token takes all experts, in their order.
    routing: Option<Vec<f32>>,
}

impl Product {
    /// Five experts, of which each token takes three; their matrices have `expert_rows` rows.
    fn random(dtype: DType, expert_rows: u32, n_columns: u32, n_tokens: u32, shares_input: bool) -> Product {
        let (n_experts, n_used) = (5, 3);
        let n_columns = n_columns.next_multiple_of(dtype.block_len() as u32);
        let (n_rows, shares_input) = (n_experts * expert_rows, u32::from(shares_input));
        let params = expert_matmul::Params {
            n_rows,
            n_columns,
            n_tokens,
            n_used,
            expert_rows,
            first_row: 0,
            shares_input,
            slot_bytes: 0,
            matrix_begin: 0,
            n_experts,
        };
        let mut random = Random(u64::from(n_rows * 7919 + n_columns * 31 + n_tokens));
        let n_inputs = if shares_input == 1 { n_tokens } else { n_tokens * n_used };
        let routing = (0..n_tokens).flat_map(|_| {
            let first = random.word() % n_experts;
            (0..n_used).map(move |choice| ((first + 2 * choice) % n_experts) as f32).chain([f32::NAN; 3])
        });
        Product {
            params,
            dtype,
            routing: Some(routing.collect()),
            weight: random.weights(dtype, (n_rows * n_columns) as usize),
            input: random.floats((n_inputs * n_columns) as usize),
        }
    }

    fn output_len(&self) -> usize {
        (self.params.n_tokens * self.params.n_used * self.params.expert_rows) as usize
    }

    fn row_bytes(&self) -> usize {
        self.dtype.size_bytes(self.params.n_columns.into()).unwrap() as usize
    }

    /// The params of slices of so many rows.
    fn slices(&self, slice_rows: u32) -> Vec<expert_matmul::Params> {
        let first_rows = (0..self.params.n_rows).step_by(slice_rows as usize);
        let of = |first_row| expert_matmul::Params { first_row, n_rows: slice_rows.min(self.params.n_rows - first_row), ..self.params };
        first_rows.map(of).collect()
    }

    fn rows(&self, params: &expert_matmul::Params) -> &[u8] {
        &self.weight[params.first_row as usize * self.row_bytes()..][..params.n_rows as usize * self.row_bytes()]
    }

    fn reference(&self) -> Vec<f32> {
        let mut output = vec![0.0; self.output_len()];
        expert_matmul::reference(&self.params, self.dtype, &self.weight, &self.input, self.routing.as_deref(), &mut output);
        output
    }

    fn on_gpu(&self, gpu: &Gpu, slice_rows: u32) -> Vec<f32> {
        let (input, routing) = (upload(gpu, "input", &self.input), self.routing.as_ref().map(|routing| upload(gpu, "routing", routing)));
        let result = poisoned(gpu, self.output_len());
        let slices = self.slices(slice_rows);
        let weights: Vec<_> = slices.iter().map(|slice| upload(gpu, "weight", self.rows(slice))).collect();
        run_all(gpu, &slices, |buffer, _| {
            let of = |(params, weight): (&expert_matmul::Params, &Buffer)| {
                let [weight, input, output] = [weight, &input, &result].map(|buffer| Binding::whole(buffer));
                let routing = routing.as_ref().map(|routing| Binding::whole(routing));
                let bindings = expert_matmul::Bindings { weight, input, routing, slots: None, output };
                expert_matmul::prepare(gpu, buffer, params, self.dtype, bindings)
            };
            slices.iter().zip(&weights).map(of).collect()
        });
        output(gpu, &result, self.output_len())
    }

    /// With the experts in slots, one buffer after the other; each has so many bytes before the matrix, and ends anywhere behind it.
    fn in_slots(&self, gpu: &Gpu, buffers: &[&[usize]], matrix_begin: u32) -> Vec<f32> {
        let (n_experts, expert_bytes) = (self.params.n_rows / self.params.expert_rows, self.params.expert_rows as usize * self.row_bytes());
        let slot_bytes = (matrix_begin as usize + expert_bytes + 1).next_multiple_of(256);
        let params = self.params.in_slots(slot_bytes as u32, matrix_begin);
        let (input, routing) = (upload(gpu, "input", &self.input), upload(gpu, "routing", self.routing.as_ref().unwrap()));
        let result = poisoned(gpu, self.output_len());
        let of_buffer = |experts: &&[usize]| {
            let mut memory = vec![0xa5u8; slot_bytes * experts.len()];
            let mut table = vec![expert_matmul::NO_SLOT; n_experts as usize];
            for (slot, &expert) in experts.iter().enumerate() {
                let rows = &self.weight[expert * expert_bytes..][..expert_bytes];
                memory[slot * slot_bytes + matrix_begin as usize..][..expert_bytes].copy_from_slice(rows);
                table[expert] = slot as u32;
            }
            [upload(gpu, "slots", &memory), upload(gpu, "table", &table)]
        };
        let buffers: Vec<[Buffer; 2]> = buffers.iter().map(of_buffer).collect();
        run_all(gpu, &vec![params; buffers.len()], |buffer, _| {
            let of = |[weight, slots]: &[Buffer; 2]| {
                let [weight, slots, input, routing, output] =
                    [weight, slots, &input, &routing, &result].map(|buffer| Binding::whole(buffer));
                let bindings = expert_matmul::Bindings { weight, input, routing: Some(routing), slots: Some(slots), output };
                expert_matmul::prepare(gpu, buffer, &params, self.dtype, bindings)
            };
            buffers.iter().map(of).collect()
        });
        output(gpu, &result, self.output_len())
    }

    /// On the GPU and on the host against the reference.
    fn check(&self, what: &str) {
        let expected = self.reference();
        for gpu in gpus() {
            assert_close(&self.on_gpu(gpu, self.params.n_rows), &expected, SUM_TOLERANCE, what);
        }
        // Of a few products the largest may be small.
        if expected.len() > 16 {
            assert_close(&self.on_host(self.params.n_rows), &expected, HOST_TOLERANCE, &format!("{what} on the host"));
        }
    }

    fn on_host(&self, slice_rows: u32) -> Vec<f32> {
        let mut output = vec![POISON; self.output_len()];
        let mut scratch = ExpertScratch::default();
        for slice in self.slices(slice_rows) {
            let weight = (self.dtype, self.rows(&slice));
            let inputs = (&self.input[..], self.routing.as_deref());
            multiply_experts(simd::simd(), &slice, weight, inputs, &mut output, &mut scratch);
        }
        output
    }
}

#[test]
fn products_with_experts_match_their_reference_for_every_dtype() {
    for dtype in DType::ALL {
        // Columns in sixty-fours have a kernel of their own on software adapters; many tokens meet their experts in tiles.
        for (expert_rows, n_columns, n_tokens, shares_input) in [
            (1, 1, 1, true),
            (9, 33, 1, false),
            (13, 288, 5, true),
            (7, 300, 4, false),
            (37, 320, 3, true),
            (201, 64, 2, false),
            (37, 288, 111, true),
            (5, 300, 109, false),
        ] {
            let product = Product::random(dtype, expert_rows, n_columns, n_tokens, shares_input);
            product.check(&format!("{dtype}, experts of [{expert_rows}, {n_columns}] × {n_tokens}"));
            // Each head with a matrix of its own: of as many as a token takes.
            let params = expert_matmul::Params { n_rows: 3 * expert_rows, shares_input: 0, ..product.params };
            let input = Random(7).floats((n_tokens * 3 * product.params.n_columns) as usize);
            Product { params, routing: None, input, ..product }
                .check(&format!("{dtype}, heads of [{expert_rows}, {n_columns}] × {n_tokens}"));
        }
    }
}

#[test]
fn experts_of_many_tokens_are_all_found() {
    // More choices than a workgroup looks at before it multiplies those that it has found, and more of one expert than a tile has.
    for (n_tokens, shares_input) in [(343, true), (700, false)] {
        Product::random(DType::Q8_0, 9, 64, n_tokens, shares_input).check(&format!("{n_tokens} tokens"));
    }
}

#[test]
fn slices_of_experts_give_the_bits_of_the_whole() {
    for dtype in [DType::F16, DType::Q8_0, DType::Q6K] {
        for n_tokens in [3, 120] {
            let product = Product::random(dtype, 11, 256, n_tokens, true);
            let on_host = product.on_host(product.params.n_rows);
            for slice_rows in [1, 7, 11, 30] {
                let what = format!("{dtype} in slices of {slice_rows}");
                assert_eq!(bits(&product.on_host(slice_rows)), bits(&on_host), "{what} on the host");
                for gpu in gpus() {
                    assert_eq!(bits(&product.on_gpu(gpu, slice_rows)), bits(&product.on_gpu(gpu, product.params.n_rows)), "{what}");
                }
            }
        }
    }
}

#[test]
fn experts_in_slots_give_the_bits_of_the_whole() {
    for (dtype, n_tokens) in DType::ALL.into_iter().flat_map(|dtype| [(dtype, 3), (dtype, 120)]) {
        let product = Product::random(dtype, 11, 256, n_tokens, true);
        for gpu in gpus() {
            let whole = product.on_gpu(gpu, product.params.n_rows);
            for matrix_begin in [0, 512] {
                let found = product.in_slots(gpu, &[&[3, 0], &[4, 1, 2]], matrix_begin);
                assert_eq!(bits(&found), bits(&whole), "{dtype} at {matrix_begin}");
            }
            // What belongs to experts that are in no slot is left as it is.
            let n_used = product.params.n_used as usize;
            let some = product.in_slots(gpu, &[&[1, 4]], 0);
            let rows = || some.chunks_exact(11).zip(whole.chunks_exact(11)).enumerate();
            for (index, (found, whole)) in rows() {
                let expert = product.routing.as_ref().unwrap()[index / n_used * 2 * n_used + index % n_used];
                let expected = if expert == 1.0 || expert == 4.0 { whole.to_vec() } else { vec![POISON; 11] };
                assert_eq!(bits(found), bits(&expected), "{dtype}, expert {expert}");
            }
        }
    }
}

#[test]
fn sums_of_experts_match_their_reference() {
    for gpu in gpus() {
        for (n_tokens, n_used, width) in [(1, 1, 1), (3, 5, 67), (2, 8, 256)] {
            let params = sum_experts::Params { n_tokens, n_used, width };
            let mut random = Random(u64::from(width));
            let [input, routing] = [n_used * width, 2 * n_used].map(|len| random.floats((n_tokens * len) as usize));
            let len = (n_tokens * width) as usize;
            let mut expected = vec![0.0; len];
            let is_weighted = n_used != 8;
            sum_experts::reference(&params, &input, is_weighted.then_some(&routing[..]), &mut expected);
            let [input, routing, result] = [upload(gpu, "input", &input), upload(gpu, "routing", &routing), poisoned(gpu, len)];
            let [input, routing, output_] = [&input, &routing, &result].map(|buffer| Binding::whole(buffer));
            let bindings = sum_experts::Bindings { input, routing: is_weighted.then_some(routing), output: output_ };
            run(gpu, &params, |buffer| sum_experts::prepare(gpu, buffer, &params, bindings));
            assert_close(&output(gpu, &result, len), &expected, SUM_TOLERANCE, &format!("{params:?}"));
        }
    }
}

#[test]
fn inputs_are_weighed_for_each_expert() {
    for gpu in gpus() {
        for (n_tokens, n_used, width) in [(1, 1, 1), (3, 5, 67), (2, 8, 256)] {
            let params = weigh_inputs::Params { n_tokens, n_used, width };
            let mut random = Random(u64::from(width));
            let [input, routing] = [width, 2 * n_used].map(|len| random.floats((n_tokens * len) as usize));
            let mut expected = vec![0.0; (n_tokens * n_used * width) as usize];
            weigh_inputs::reference(&params, &input, &routing, &mut expected);
            let [input, routing, result] = [upload(gpu, "input", &input), upload(gpu, "routing", &routing), poisoned(gpu, expected.len())];
            let [input, routing, output_] = [&input, &routing, &result].map(|buffer| Binding::whole(buffer));
            let bindings = weigh_inputs::Bindings { input, routing, output: output_ };
            run(gpu, &params, |buffer| weigh_inputs::prepare(gpu, buffer, &params, bindings));
            assert_eq!(bits(&output(gpu, &result, expected.len())), bits(&expected), "{params:?}");
        }
    }
}

#[test]
fn biases_of_experts_match_their_reference() {
    for gpu in gpus() {
        for (n_tokens, n_used, width) in [(1, 1, 1), (3, 2, 67), (2, 4, 256)] {
            let params = add_expert_bias::Params { n_tokens, n_used, width };
            let mut random = Random(u64::from(width));
            let n_experts = 5;
            let (bias, values) = (random.floats((n_experts * width) as usize), random.floats((n_tokens * n_used * width) as usize));
            let routing: Vec<f32> = (0..2 * n_tokens * n_used).map(|_| (random.word() % n_experts) as f32).collect();
            let mut expected = values.clone();
            add_expert_bias::reference(&params, &bias, &routing, &mut expected);
            let [bias, routing, target] =
                [("bias", &bias), ("routing", &routing), ("values", &values)].map(|(name, v)| upload(gpu, name, v));
            let [bias, routing, target_values] = [&bias, &routing, &target].map(|buffer| Binding::whole(buffer));
            let bindings = add_expert_bias::Bindings { bias, routing, target_values };
            run(gpu, &params, |buffer| add_expert_bias::prepare(gpu, buffer, &params, bindings));
            assert_eq!(crate::common::floats(gpu, &target)[..expected.len()], expected, "{params:?}");
        }
    }
}

#[test]
fn gated_rows_match_their_reference() {
    for gpu in gpus() {
        for (n_tokens, width) in [(1, 1), (3, 67), (5, 256)] {
            let params = gate_rows::Params { n_tokens, width };
            let mut random = Random(u64::from(width));
            let len = (n_tokens * width) as usize;
            let (gate, values) = (random.floats(n_tokens as usize), random.floats(len));
            let mut expected = values.clone();
            gate_rows::reference(&params, &gate, &mut expected);
            let (gate, target) = (upload(gpu, "gate", &gate), upload(gpu, "values", &values));
            let bindings = gate_rows::Bindings { gate: Binding::whole(&gate), target_values: Binding::whole(&target) };
            run(gpu, &params, |buffer| gate_rows::prepare(gpu, buffer, &params, bindings));
            assert_close(&crate::common::floats(gpu, &target)[..len], &expected, EXP_TOLERANCE, &format!("{params:?}"));
        }
    }
}
