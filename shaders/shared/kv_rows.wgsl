
// Which row of the caches holds a head of a position. Caches have rows in blocks of KV_BLOCK positions: [n_blocks, n_kv_heads, KV_BLOCK]. The
// table of a sequence lists its blocks in the order of its positions; tables lie behind the tokens, four blocks to each of their rows, and a
// token says how many rows behind it that of its sequence begins. Appended to shaders that bind tokens and have n_blocks and n_kv_heads.

const KV_BLOCK: u32 = 32u;

// Where the table of a token's sequence begins.
fn table_of(token_index: u32) -> u32 {
    return token_index + tokens[token_index].w;
}

// The block of a position; past n_blocks where there is none.
fn block_at(table: u32, position: u32) -> u32 {
    let place = position / KV_BLOCK;
    return tokens[table + place / 4u][place % 4u];
}

fn row_in(block: u32, kv_head: u32, position: u32) -> u32 {
    return (block * params.n_kv_heads + kv_head) * KV_BLOCK + position % KV_BLOCK;
}

// The row of a position that is cached.
fn row_at(table: u32, kv_head: u32, position: u32) -> u32 {
    return row_in(min(block_at(table, position), params.n_blocks - 1u), kv_head, position);
}
