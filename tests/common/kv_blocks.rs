//! Caches of two sequences whose blocks lie in no order.

use tierflow::kernels::kv_tables::{BLOCK_POSITIONS, with_tables};
use tierflow::kernels::rope_kv::Token;

/// Blocks of caches in which two sequences have so many positions, and one block that is of neither.
pub fn blocks_of(n_positions: u32) -> u32 {
    2 * n_positions.div_ceil(BLOCK_POSITIONS) + 1
}

/// The table of one of the two sequences: from the last block on, each the next but one before; none of other sequences.
pub fn shuffled_table(sequence: u32, n_blocks: u32) -> Vec<u32> {
    if sequence > 1 { Vec::new() } else { (1..n_blocks).rev().skip(sequence as usize).step_by(2).collect() }
}

/// Tokens with these tables.
pub fn in_shuffled_blocks(tokens: &[Token], n_blocks: u32) -> Vec<Token> {
    let tables = [0, 1].map(|sequence| shuffled_table(sequence, n_blocks));
    with_tables(tokens.to_vec(), |sequence| tables.get(sequence as usize).map(Vec::as_slice).unwrap_or_default())
}
