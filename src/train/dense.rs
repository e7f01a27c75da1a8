//! Products of f32 matrices on all threads: those of adapters, and those with the transposed rows of a stored weight. Each result is summed by
//! one thread in one order, so that it has the same bits whatever the number of threads.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::host::simd::simd;

/// Rows of a result that a thread takes at once.
const ROWS_AT_ONCE: usize = 12;
/// Products below which one thread does all: others would take as long to wake.
const MIN_PARALLEL_PRODUCTS: usize = 256 << 10;
/// Values that a thread takes at least, of what is done value by value.
pub(super) const MIN_PARALLEL_VALUES: usize = 16 << 10;

/// `output[t, r]` = Σₖ `rows[r, k]` · `tokens[t, k]`: `rows` `[n_rows, n_columns]`, `tokens` `[n_tokens, n_columns]`.
pub(super) fn products(n_columns: usize, rows: &[f32], tokens: &[f32]) -> Vec<f32> {
    let (n_rows, n_tokens) = (rows.len() / n_columns, tokens.len() / n_columns);
    let mut output = vec![0.0; n_tokens * n_rows];
    if output.is_empty() {
        return output;
    }
    let some = |(output, tokens): (&mut [f32], &[f32])| (simd().dots)(n_columns, rows, tokens, output);
    if output.len() * n_columns < MIN_PARALLEL_PRODUCTS {
        some((&mut output, tokens));
    } else {
        output.par_chunks_mut(ROWS_AT_ONCE * n_rows).zip(tokens.par_chunks(ROWS_AT_ONCE * n_columns)).for_each(some);
    }
    output
}

/// `output[t, c]` += Σᵣ `weights[t, r]` · `rows[r, c]`: `rows` `[n_rows, n_columns]`, `weights` `[n_tokens, n_rows]`, `output`
/// `[n_tokens, n_columns]`.
pub(super) fn add_sums(n_columns: usize, rows: &[f32], weights: &[f32], output: &mut [f32]) {
    let n_rows = rows.len() / n_columns;
    if n_rows == 0 {
        return;
    }
    let some = |(output, weights): (&mut [f32], &[f32])| {
        let mut sums = vec![0.0; output.len()];
        (simd().add_weighted_sums)(n_columns, rows, weights, &mut sums);
        output.iter_mut().zip(&sums).for_each(|(output, sum)| *output += sum);
    };
    if output.len() * n_rows < MIN_PARALLEL_PRODUCTS {
        some((output, weights));
    } else {
        // Few rows, as those of an adapter's gradient, are spread over the threads one by one.
        let at_once = (output.len() / n_columns).div_ceil(4 * rayon::current_num_threads()).clamp(1, ROWS_AT_ONCE);
        output.par_chunks_mut(at_once * n_columns).zip(weights.par_chunks(at_once * n_rows)).for_each(some);
    }
}

/// As [`transposed`], for a caller that is on one of many threads.
pub(super) fn transposed_on_one_thread(n_columns: usize, matrix: &[f32]) -> Vec<f32> {
    let n_rows = matrix.len() / n_columns.max(1);
    (0..n_columns).flat_map(|column| (0..n_rows).map(move |row| matrix[row * n_columns + column])).collect()
}

/// `[n_rows, n_columns]` as `[n_columns, n_rows]`.
pub(super) fn transposed(n_columns: usize, matrix: &[f32]) -> Vec<f32> {
    const TILE: usize = 16;
    let n_rows = matrix.len() / n_columns;
    let mut turned = vec![0.0; matrix.len()];
    if n_rows == 0 {
        return turned;
    }
    let at_least = MIN_PARALLEL_VALUES.div_ceil(TILE * n_rows);
    turned.par_chunks_mut(TILE * n_rows).enumerate().with_min_len(at_least).for_each(|(part, turned)| {
        let first = part * TILE;
        for (row, values) in matrix.chunks_exact(n_columns).enumerate() {
            for (column, turned) in turned.chunks_exact_mut(n_rows).enumerate() {
                turned[row] = values[first + column];
            }
        }
    });
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn products_are_those_of_their_definition_on_any_number_of_threads() {
        for (n_tokens, n_rows, n_columns) in [(1, 1, 1), (7, 5, 3), (61, 33, 70), (300, 9, 129)] {
            let (rows, tokens) = (values(n_rows * n_columns, 0.7), values(n_tokens * n_columns, 0.3));
            let weights = values(n_tokens * n_rows, 0.9);
            let compute = || {
                let mut sums = values(n_tokens * n_columns, 0.2);
                add_sums(n_columns, &rows, &weights, &mut sums);
                (products(n_columns, &rows, &tokens), sums)
            };
            let (found, sums) = crate::platform::among_n_threads(1, compute).unwrap();
            assert_eq!((found.clone(), sums.clone()), crate::platform::among_n_threads(3, compute).unwrap());
            let close = |found: f32, expected: f64| assert!((f64::from(found) - expected).abs() < 1e-4, "{found} {expected}");
            for t in 0..n_tokens {
                for r in 0..n_rows {
                    let terms = (0..n_columns).map(|k| f64::from(rows[r * n_columns + k]) * f64::from(tokens[t * n_columns + k]));
                    close(found[t * n_rows + r], terms.sum());
                }
                for c in 0..n_columns {
                    let terms = (0..n_rows).map(|r| f64::from(weights[t * n_rows + r]) * f64::from(rows[r * n_columns + c]));
                    let before = f64::from(((t * n_columns + c) as f32 * 0.2).sin());
                    close(sums[t * n_columns + c], before + terms.sum::<f64>());
                }
            }
            let turned = transposed(n_columns, &rows);
            assert!((0..rows.len()).all(|i| turned[i % n_columns * n_rows + i / n_columns] == rows[i]));
            assert_eq!(transposed(n_rows, &turned), rows);
        }
    }
}
