// 64-bit words → what is stored in them, lowest first. Appended to the shaders for adapters that load such words.

fn low(word: u64) -> u32 {
    return u32(word);
}

fn high(word: u64) -> u32 {
    return u32(word >> 32u);
}

// Four f32.
fn floats(words: vec2<u64>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(low(words.x), high(words.x), low(words.y), high(words.y)));
}

// Four f16.
fn halves(word: u64) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(low(word)), unpack2x16float(high(word)));
}
