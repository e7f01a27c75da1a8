
// How the caches of keys and values store them: what KEY_DTYPE and VALUE_DTYPE may be. 0: f32.

const KV_F16: u32 = 1u;  // two to a word
const KV_Q8_0: u32 = 2u; // blocks of 32 signed bytes, four to a word, and a scale; value = scale * byte
const KV_Q4_0: u32 = 3u; // blocks of 32 nibbles, eight to a word, and a scale; value = scale * (nibble - 8)
// In a cache of blocks the bytes or nibbles of all rows come first, a row being a head of a position, and then the scales of all rows:
// f16, two to a word, each row's in whole words.
