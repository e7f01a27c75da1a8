//! The gated delta rule on all threads, a head of a sequence each.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::kernels::delta_rule::{Inputs, Params, head, put};
use crate::kernels::rope_kv::Token;

/// As `kernels::delta_rule::reference` has it.
pub fn delta_rule(params: &Params, tokens: &[Token], inputs: &Inputs<'_>, state: &mut [f32], output: &mut [f32]) {
    let (n_heads, of_head) = ((params.n_seqs * params.n_value_heads) as usize, (params.key_size * params.value_size) as usize);
    let heads = state.par_chunks_exact_mut(of_head).enumerate().take(n_heads);
    let rows: Vec<_> = heads.map(|(index, state)| head(params, tokens, inputs, index, state)).collect();
    rows.iter().enumerate().for_each(|(index, rows)| put(params, rows, index, output));
}
