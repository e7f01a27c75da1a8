
struct Params {
    n_tokens: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_size: u32, // even, and a multiple of 4 where heads are not padded
    n_seqs: u32,
    kv_capacity: u32,
    kv_dtype: u32, // chosen at pipeline creation, as KV_F16
    pairing: u32,  // 0: i with i + rotary_size / 2; 1: 2 i with 2 i + 1
    rotary_size: u32, // as head_size
}

override KV_F16: bool = false;
override HAS_VALUES: bool = true;

const HALVES: u32 = 0u;
