//! Where the caches of keys and values hold positions: in blocks of [`BLOCK_POSITIONS`], which the table of a sequence lists in the order of its
//! positions. Sequences that begin alike may have blocks in common. Tables lie behind the tokens of a forward, as all kernels read them; CPU
//! twin of `shaders/shared/kv_rows.wgsl`.

use super::rope_kv::Token;

/// Positions of a block: a multiple of what every variant of attention takes at once.
pub const BLOCK_POSITIONS: u32 = 32;
/// What a table has where it has no block.
pub const NO_BLOCK: u32 = u32::MAX;
/// Blocks in a row of tokens.
const BLOCKS_IN_ROW: usize = size_of::<Token>() / size_of::<u32>();

/// `tokens`, and behind them the tables of their sequences, each once and in whole rows, which the tokens then find.
pub fn with_tables<'t>(mut tokens: Vec<Token>, table_of: impl Fn(u32) -> &'t [u32]) -> Vec<Token> {
    let n_tokens = tokens.len();
    let mut begins = std::collections::BTreeMap::new();
    let mut rows: Vec<Token> = Vec::new();
    for (index, token) in tokens.iter_mut().enumerate() {
        let begin = *begins.entry(token.seq).or_insert_with(|| {
            let begin = n_tokens + rows.len();
            let table = table_of(token.seq);
            let n_rows = table.len().div_ceil(BLOCKS_IN_ROW).max(1);
            let padded = table.iter().copied().chain(std::iter::repeat(NO_BLOCK)).take(n_rows * BLOCKS_IN_ROW);
            rows.extend(bytemuck::pod_collect_to_vec::<u32, Token>(&padded.collect::<Vec<u32>>()));
            begin
        });
        token.table = (begin - index) as u32;
    }
    tokens.extend(rows);
    tokens
}

/// The block of a position of the sequence of token `index`; `None` where it has none. `placed` is what [`with_tables`] made.
pub fn block_at(placed: &[Token], index: usize, position: u32) -> Option<u32> {
    let table = placed.get(index + placed.get(index)?.table as usize..)?;
    let block = *bytemuck::cast_slice::<Token, u32>(table).get((position / BLOCK_POSITIONS) as usize)?;
    (block != NO_BLOCK).then_some(block)
}

/// The row in which caches of `[n_blocks, n_kv_heads, BLOCK_POSITIONS]` hold a head of a position of this block.
pub fn row_in(block: u32, n_kv_heads: u32, head: usize, position: u32) -> usize {
    (block as usize * n_kv_heads as usize + head) * BLOCK_POSITIONS as usize + (position % BLOCK_POSITIONS) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_finds_the_table_of_its_sequence() {
        let tables: [&[u32]; 3] = [&[4, 9, 2, 7, 5], &[], &[0]];
        let places = [(2, 3), (0, 150), (2, 4), (1, 0), (0, 31)];
        let tokens = places.map(|(seq, position)| Token::new(seq, position, position + 1)).to_vec();
        let placed = with_tables(tokens, |seq| tables[seq as usize]);
        assert_eq!(placed.len(), 5 + 2 + 1 + 1);
        let blocks: Vec<Option<u32>> = (0..5).map(|index| block_at(&placed, index, placed[index].position)).collect();
        assert_eq!(blocks, [Some(0), Some(5), Some(0), None, Some(4)]);
        // What stands behind a token is enough for it.
        assert_eq!(block_at(&placed[4..], 0, 64), Some(2));
        assert_eq!(row_in(5, 3, 2, 33), (5 * 3 + 2) * 32 + 1);
    }
}
