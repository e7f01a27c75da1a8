
struct Params {
    n_tokens: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_size: u32, // even, and a multiple of 4 where heads are not padded
    n_blocks: u32,    // in the caches
    kv_capacity: u32, // positions of a sequence
    key_dtype: u32,   // KEY_DTYPE of a pipeline says the same
    value_dtype: u32, // VALUE_DTYPE likewise
    pairing: u32,  // 0: i with i + rotary_size / 2; 1: 2 i with 2 i + 1
    rotary_size: u32, // as head_size
}

const HALVES: u32 = 0u;
