
// Octets of the caches, and what a lane has of them, for adapters that load 64-bit words.

fn octet_of_halves(words: vec2<u64>) -> Octet {
    return Octet(halves(words.x), halves(words.y));
}

fn octet_of_floats(low: vec2<u64>, high: vec2<u64>) -> Octet {
    return Octet(floats(low), floats(high));
}

// Octets that each lane loads of a row.
fn rounds() -> u32 {
    return (OCTETS + LANES - 1u) / LANES;
}
