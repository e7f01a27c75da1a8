// Stored weights → f32, a few values at a time. Appended to the shaders that read weights, so that their own line numbers stay true.
// The layouts are those of `DType` in src/dtype.rs.

// The codes of `matmul::dtype_code`.
const F32: u32 = 0u;
const F16: u32 = 1u;
const BF16: u32 = 2u;
const Q8_0: u32 = 3u;
const Q4_0: u32 = 4u;
const Q4_1: u32 = 5u;
const Q6_K: u32 = 6u;

// Two halves of a word, the lower first.
fn decode_f16(word: u32) -> vec2<f32> {
    return unpack2x16float(word);
}

// Two bfloat16 of a word, the lower first: a bfloat16 is the upper half of an f32.
fn decode_bf16(word: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

// Four signed bytes of a word. Signed throughout: software adapters convert i32 to f32 in one instruction, u32 in many.
fn decode_bytes(word: u32) -> vec4<f32> {
    let bits = bitcast<i32>(word);
    return vec4<f32>(f32((bits << 24u) >> 24u), f32((bits << 16u) >> 24u), f32((bits << 8u) >> 24u), f32(bits >> 24u));
}

// The low nibbles of four bytes.
fn decode_low_nibbles(word: u32) -> vec4<f32> {
    let bits = bitcast<i32>(word);
    return vec4<f32>(f32(bits & 15), f32((bits >> 8u) & 15), f32((bits >> 16u) & 15), f32((bits >> 24u) & 15));
}

// The high nibbles of four bytes.
fn decode_high_nibbles(word: u32) -> vec4<f32> {
    return decode_low_nibbles(word >> 4u);
}

// Four integers of six bits, less 32: four low bits in each byte of `low`, two high bits in those of `high`, both the lowest of the byte.
fn decode_six_bits(low: u32, high: u32) -> vec4<f32> {
    let bits = bitcast<i32>((low & 0x0f0f0f0fu) | ((high & 0x03030303u) << 4u));
    return vec4<f32>(f32(bits & 63), f32((bits >> 8u) & 63), f32((bits >> 16u) & 63), f32(bits >> 24u)) - 32.0;
}

// Two signed bytes of the lower half of a word.
fn decode_two_bytes(half: u32) -> vec2<f32> {
    let bits = bitcast<i32>(half);
    return vec2<f32>(f32((bits << 24u) >> 24u), f32((bits << 16u) >> 24u));
}

// Four bytes that begin in the upper half of `first`.
fn straddle(first: u32, second: u32) -> u32 {
    return (first >> 16u) | (second << 16u);
}
