//! Products with the matrices of chosen experts: the tokens that take an expert are brought together, and meet its rows as those of any
//! other product.

use super::{Input, Part, multiply_all};
use crate::dtype::DType;
use crate::host::simd::Simd;
use crate::kernels::expert_matmul::Params;
use crate::kernels::matmul;

/// Memory of [`multiply_experts`], kept between its calls.
#[derive(Debug, Default)]
pub struct ExpertScratch {
    /// Experts of tokens, each with its place in the output, in the order of the experts.
    slots: Vec<(u32, u32)>,
    /// Inputs of the tokens that take one expert.
    gathered: Vec<f32>,
    /// What its rows give for them.
    products: Vec<f32>,
}

/// The kernel `expert_matmul` by `simd`'s instructions: `weight` holds the rows as stored, of this dtype; `input` is packed in `packed`.
/// Without `routing`, the experts of each token are all of them, in their order.
///
/// # Panics
/// Where the slices are shorter than `params` say: a bug of the caller.
pub fn multiply_experts(
    simd: &Simd,
    params: &Params,
    (dtype, weight): (DType, &[u8]),
    (input, routing): (&[f32], Option<&[f32]>),
    output: &mut [f32],
    (packed, scratch): (&mut Input, &mut ExpertScratch),
) {
    let [n_columns, n_used, expert_rows, first_row] =
        [params.n_columns, params.n_used, params.expert_rows, params.first_row].map(|n| n as usize);
    let end_row = first_row + params.n_rows as usize;
    let Some(row_bytes) = dtype.size_bytes(n_columns as u64).map(|bytes| bytes as usize) else { return };
    let ExpertScratch { slots, gathered, products } = scratch;
    slots.clear();
    match routing {
        Some(routing) => {
            let chosen = routing.chunks_exact(2 * n_used).take(params.n_tokens as usize).flat_map(|token| &token[..n_used]);
            slots.extend(chosen.zip(0..).map(|(expert, slot)| (*expert as u32, slot)));
        }
        None => slots.extend((0..params.n_tokens * params.n_used).map(|slot| (slot % params.n_used, slot))),
    }
    slots.sort_unstable();
    for slots in slots.chunk_by(|one, other| one.0 == other.0) {
        let begin = slots[0].0 as usize * expert_rows;
        let rows = begin.max(first_row)..(begin + expert_rows).min(end_row);
        if rows.is_empty() {
            continue;
        }
        gathered.clear();
        for (_, slot) in slots {
            let row = params.input_row(*slot as usize / n_used, *slot as usize % n_used);
            gathered.extend_from_slice(&input[row * n_columns..][..n_columns]);
        }
        let of_expert = matmul::Params::new(dtype, rows.len() as u32, params.n_columns, slots.len() as u32);
        products.resize(slots.len() * rows.len(), 0.0);
        let weight = &weight[(rows.start - first_row) * row_bytes..][..rows.len() * row_bytes];
        let operand = packed.prepare(&of_expert, gathered);
        multiply_all(simd, &mut [Part { params: of_expert, weight, output: products }], operand);
        for ((_, slot), products) in slots.iter().zip(products.chunks_exact(rows.len())) {
            output[*slot as usize * expert_rows + rows.start - begin..][..rows.len()].copy_from_slice(products);
        }
    }
}
