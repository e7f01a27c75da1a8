//! Products with the matrices of chosen experts: the tokens that take an expert are brought together, and meet its rows as those of any
//! other product. Experts of a few tokens are multiplied side by side.

use std::ops::Range;

use super::{Input, Part, multiply_all};
use crate::dtype::DType;
use crate::host::simd::Simd;
use crate::kernels::expert_matmul::Params;
use crate::kernels::matmul;
use crate::model::EXPERT_INPUTS_AT_ONCE;

/// Memory of [`multiply_experts`], kept between its calls.
#[derive(Debug, Default)]
pub struct ExpertScratch {
    /// Experts of tokens, each with its place in the output, in the order of the experts.
    slots: Vec<(u32, u32)>,
    /// Inputs of the tokens that take an expert, of some experts one behind the other.
    gathered: Vec<f32>,
    /// The same of each expert as its product needs them.
    inputs: Vec<Input>,
    /// What its rows give for them.
    products: Vec<f32>,
}

/// The kernel `expert_matmul` by `simd`'s instructions: `weight` holds the rows as stored, of this dtype.
/// Without `routing`, the experts of each token are all of them, in their order.
///
/// # Panics
/// Where the slices are shorter than `params` say: a bug of the caller.
pub fn multiply_experts(
    simd: &Simd,
    params: &Params,
    weight: (DType, &[u8]),
    (input, routing): (&[f32], Option<&[f32]>),
    output: &mut [f32],
    scratch: &mut ExpertScratch,
) {
    let n_used = params.n_used as usize;
    let mut slots = std::mem::take(&mut scratch.slots);
    slots.clear();
    match routing {
        Some(routing) => {
            let chosen = routing.chunks_exact(2 * n_used).take(params.n_tokens as usize).flat_map(|token| &token[..n_used]);
            slots.extend(chosen.zip(0..).map(|(expert, slot)| (*expert as u32, slot)));
        }
        None => slots.extend((0..params.n_tokens * params.n_used).map(|slot| (slot % params.n_used, slot))),
    }
    slots.retain(|(expert, _)| !rows_of(params, *expert).is_empty());
    slots.sort_unstable();
    let experts: Vec<&[(u32, u32)]> = slots.chunk_by(|one, other| one.0 == other.0).collect();
    let mut rest = &experts[..];
    while !rest.is_empty() {
        let mut n_inputs = 0;
        let n_experts = rest.iter().take_while(|slots| {
            n_inputs += slots.len();
            n_inputs <= EXPERT_INPUTS_AT_ONCE
        });
        let (some, others) = rest.split_at(n_experts.count().max(1));
        multiply_some(simd, params, weight, input, some, output, scratch);
        rest = others;
    }
    scratch.slots = slots;
}

/// Which of all experts' rows are those of `expert`, of the rows that the slice has.
fn rows_of(params: &Params, expert: u32) -> Range<usize> {
    let [expert_rows, first_row, n_rows] = [params.expert_rows, params.first_row, params.n_rows].map(|n| n as usize);
    let begin = expert as usize * expert_rows;
    begin.max(first_row)..(begin + expert_rows).min(first_row + n_rows)
}

/// The products of some experts, each with its places in the output.
fn multiply_some(
    simd: &Simd,
    params: &Params,
    (dtype, weight): (DType, &[u8]),
    input: &[f32],
    experts: &[&[(u32, u32)]],
    output: &mut [f32],
    ExpertScratch { gathered, inputs, products, .. }: &mut ExpertScratch,
) {
    let [n_columns, n_used, expert_rows, first_row] =
        [params.n_columns, params.n_used, params.expert_rows, params.first_row].map(|n| n as usize);
    let Some(row_bytes) = dtype.size_bytes(n_columns as u64).map(|bytes| bytes as usize) else { return };
    gathered.clear();
    for (_, slot) in experts.iter().copied().flatten() {
        let row = params.input_row(*slot as usize / n_used, *slot as usize % n_used);
        gathered.extend_from_slice(&input[row * n_columns..][..n_columns]);
    }
    let with_rows = || experts.iter().map(|slots| (*slots, rows_of(params, slots[0].0)));
    products.resize(with_rows().map(|(slots, rows)| slots.len() * rows.len()).sum(), 0.0);
    inputs.resize_with(experts.len().max(inputs.len()), Input::default);
    let (mut values, mut outputs) = (&gathered[..], &mut products[..]);
    let mut parts = Vec::with_capacity(experts.len());
    for ((slots, rows), input) in with_rows().zip(&mut *inputs) {
        let (Some(values), Some(output)) = (values.split_off(..slots.len() * n_columns), outputs.split_off_mut(..slots.len() * rows.len()))
        else {
            return;
        };
        let params = matmul::Params::new(dtype, rows.len() as u32, params.n_columns, slots.len() as u32);
        let weight = &weight[(rows.start - first_row) * row_bytes..][..rows.len() * row_bytes];
        parts.push(Part { params, weight, operand: input.prepare(&params, values), output });
    }
    multiply_all(simd, &mut parts);
    drop(parts);
    let mut products = &products[..];
    for (slots, rows) in with_rows() {
        for (expert, slot) in slots {
            let Some(of_slot) = products.split_off(..rows.len()) else { return };
            let begin = *slot as usize * expert_rows + rows.start - *expert as usize * expert_rows;
            output[begin..][..rows.len()].copy_from_slice(of_slot);
        }
    }
}
