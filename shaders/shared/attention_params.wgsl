
// Params of attention, of what puts its parts together and of what takes the padding off its heads.
struct Params {
    n_tokens: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_size: u32, // OCTETS of a pipeline is an eighth of it
    n_blocks: u32,    // in the caches
    kv_capacity: u32, // positions of a sequence
    window: u32, // a token sees positions less than so many away; 0: all
    scale: f32,
    key_dtype: u32,   // KEY_DTYPE of a pipeline says the same
    value_dtype: u32, // VALUE_DTYPE likewise
    softcap: f32,  // with HAS_SOFTCAP each score x becomes softcap * tanh(x / softcap)
    is_causal: u32, // 0: a token sees positions behind its own as well
    in_chunks: u32, // 1: a token sees the positions since the last multiple of the window
}
