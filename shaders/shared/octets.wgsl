
// The caches in octets of values, `index` counting those of the whole cache.

struct Octet {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn key_octet(index: u32) -> Octet {
    if KV_F16 {
        return octet_of_halves(key_cache[index]);
    }
    return octet_of_floats(key_cache[index * 2u], key_cache[index * 2u + 1u]);
}

fn value_octet(index: u32) -> Octet {
    if KV_F16 {
        return octet_of_halves(value_cache[index]);
    }
    return octet_of_floats(value_cache[index * 2u], value_cache[index * 2u + 1u]);
}
