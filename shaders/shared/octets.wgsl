
// The caches in octets of values, `index` counting those of the whole cache. Appended to shaders that have OCTETS, those of a row, and
// `words_of`, four words of what a cache is bound as.

struct Octet {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn key_octet(index: u32) -> Octet {
    if KEY_DTYPE == KV_F16 {
        return octet_of_halves(words_of(key_cache[index]));
    }
    if KEY_DTYPE == KV_Q8_0 {
        return octet_of_bytes(words_of(key_cache[index / 2u]), index, words_of(key_cache[scales_of(index, KEY_DTYPE)]));
    }
    if KEY_DTYPE == KV_Q4_0 {
        return octet_of_nibbles(words_of(key_cache[index / 4u]), index, words_of(key_cache[scales_of(index, KEY_DTYPE)]));
    }
    return octet_of_floats(words_of(key_cache[index * 2u]), words_of(key_cache[index * 2u + 1u]));
}

fn value_octet(index: u32) -> Octet {
    if VALUE_DTYPE == KV_F16 {
        return octet_of_halves(words_of(value_cache[index]));
    }
    if VALUE_DTYPE == KV_Q8_0 {
        return octet_of_bytes(words_of(value_cache[index / 2u]), index, words_of(value_cache[scales_of(index, VALUE_DTYPE)]));
    }
    if VALUE_DTYPE == KV_Q4_0 {
        return octet_of_nibbles(words_of(value_cache[index / 4u]), index, words_of(value_cache[scales_of(index, VALUE_DTYPE)]));
    }
    return octet_of_floats(words_of(value_cache[index * 2u]), words_of(value_cache[index * 2u + 1u]));
}

fn octet_of_halves(words: vec4<u32>) -> Octet {
    return Octet(
        vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)),
        vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w)),
    );
}

fn octet_of_floats(low: vec4<u32>, high: vec4<u32>) -> Octet {
    return Octet(bitcast<vec4<f32>>(low), bitcast<vec4<f32>>(high));
}

// Octet `index` is one of the two in `words`.
fn octet_of_bytes(words: vec4<u32>, index: u32, scales: vec4<u32>) -> Octet {
    let own = select(words.xy, words.zw, index % 2u == 1u);
    let scale = scale_of(scales, index);
    return Octet(scale * signed_bytes(own.x), scale * signed_bytes(own.y));
}

// Octet `index` is one of the four in `words`.
fn octet_of_nibbles(words: vec4<u32>, index: u32, scales: vec4<u32>) -> Octet {
    let nibbles = word_at(words, index);
    let scale = scale_of(scales, index);
    return Octet(scale * lowest_nibbles(nibbles), scale * lowest_nibbles(nibbles >> 16u));
}

fn signed_bytes(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<i32>(bitcast<i32>(word)) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// Four nibbles, less 8.
fn lowest_nibbles(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u)) - vec4<f32>(8.0);
}

// Word `index` modulo 4.
fn word_at(words: vec4<u32>, index: u32) -> u32 {
    let two = select(words.xy, words.zw, index % 4u >= 2u);
    return select(two.x, two.y, index % 2u == 1u);
}

// Which scale is that of octet `index`, counted in a row's whole words.
fn scale_index(index: u32) -> u32 {
    return index / OCTETS * ((OCTETS / 4u + 1u) / 2u * 2u) + index % OCTETS / 4u;
}

// The four words of a cache of this dtype that hold the scale of octet `index`.
fn scales_of(index: u32, dtype: u32) -> u32 {
    let in_four_words = select(4u, 2u, dtype == KV_Q8_0);
    let first = params.n_blocks * params.n_kv_heads * KV_BLOCK * OCTETS / in_four_words;
    return first + scale_index(index) / 8u;
}

fn scale_of(scales: vec4<u32>, index: u32) -> f32 {
    let scale = scale_index(index);
    let two = unpack2x16float(word_at(scales, scale / 2u));
    return select(two.x, two.y, scale % 2u == 1u);
}
