//! The host's arithmetic: the kernels' references, spread over all threads. Knows no plan and no schedule.

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::kernels::kv_store::Token;
use crate::kernels::{attention, matmul};

/// Rows that one task computes.
const ROWS_PER_TASK: usize = 16;

/// `output[t, output_row_begin + r] = Σₖ weight[r, k] · input[t, k]`. Each row is decoded once for all tokens.
///
/// `weight` holds the rows as stored, `input` is `[n_tokens, n_columns]`, `output` `[n_tokens, output_stride]`.
pub fn matmul(params: &matmul::Params, weight: &[u8], input: &[f32], output: &mut [f32]) {
    let (Some(dtype), Some(row_bytes)) = (params.dtype(), params.row_bytes()) else { return };
    let (n_rows, n_columns, n_tokens) = (params.n_rows as usize, params.n_columns as usize, params.n_tokens as usize);
    let row_bytes = row_bytes as usize;
    let products: Vec<Vec<f32>> = (0..n_rows.div_ceil(ROWS_PER_TASK))
        .into_par_iter()
        .map(|task| {
            let rows = task * ROWS_PER_TASK..n_rows.min((task + 1) * ROWS_PER_TASK);
            let mut decoded = vec![0.0; n_columns];
            let mut products = Vec::with_capacity(rows.len() * n_tokens); // [rows, n_tokens]
            for row in rows {
                dtype.decode(&weight[row * row_bytes..][..row_bytes], &mut decoded);
                products.extend(input.chunks_exact(n_columns).take(n_tokens).map(|token| matmul::dot(&decoded, token)));
            }
            products
        })
        .collect();
    let stride = params.output_stride as usize;
    for (row, products) in products.iter().flat_map(|task| task.chunks_exact(n_tokens)).enumerate() {
        for (token, product) in products.iter().enumerate() {
            output[token * stride + params.output_row_begin as usize + row] = *product;
        }
    }
}

/// Attention of every token and head: [`attention::reference_head`] on all threads.
///
/// `query` and `mixed` are `[n_tokens, n_heads, head_size]`, the caches `[n_seqs, n_kv_heads, kv_capacity, head_size]`.
pub fn attention(params: &attention::Params, query: &[f32], tokens: &[Token], caches: (&[f32], &[f32]), mixed: &mut [f32]) {
    let (n_heads, head_size) = (params.n_heads as usize, params.head_size as usize);
    let n_values = params.n_tokens as usize * n_heads * head_size;
    mixed[..n_values].par_chunks_exact_mut(head_size).enumerate().for_each(|(index, mixed)| {
        let (token, head) = (index / n_heads, index % n_heads);
        attention::reference_head(params, &query[index * head_size..][..head_size], &tokens[token], head, caches, mixed);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn products_equal_the_reference_whatever_the_slice() {
        let (n_rows, n_columns, n_tokens) = (37, 33, 3);
        let weights: Vec<f32> = (0..n_rows * n_columns).map(|i| (i as f32 * 0.37).sin()).collect();
        let input: Vec<f32> = (0..n_tokens * n_columns).map(|i| (i as f32 * 0.11).cos()).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&weights);
        let whole = matmul::Params::new(DType::F32, n_rows as u32, n_columns as u32, n_tokens as u32);
        let mut expected = vec![f32::NAN; n_rows * n_tokens];
        matmul::reference(&whole, bytes, &input, &mut expected);
        for cut in [1, 5, 36] {
            let mut output = vec![f32::NAN; n_rows * n_tokens];
            matmul(&whole.slice(0, cut), &bytes[..cut as usize * n_columns * 4], &input, &mut output);
            matmul(&whole.slice(cut, n_rows as u32 - cut), &bytes[cut as usize * n_columns * 4..], &input, &mut output);
            assert_eq!(output, expected, "cut at {cut}");
        }
    }
}
