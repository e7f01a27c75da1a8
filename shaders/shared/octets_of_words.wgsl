
// Octets of the caches, and what a lane has of them, for adapters that load 64-bit words.

fn words_of(words: vec2<u64>) -> vec4<u32> {
    return vec4<u32>(low(words.x), high(words.x), low(words.y), high(words.y));
}

// Octets that each lane loads of a row.
fn rounds() -> u32 {
    return (OCTETS + LANES - 1u) / LANES;
}
