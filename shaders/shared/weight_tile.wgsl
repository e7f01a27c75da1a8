// Stored weights decoded into a tile of workgroup memory (shared/tile.wgsl). Appended to shaders that bind `weight` as words, with DTYPE, and keep
// the params of the product that they compute in `product`; `params` is an array, whose first member has its columns.

fn stored(word: u32) -> u32 {
    return weight[product.weight_begin * 64u + word];
}

// Four bytes that begin at 16-bit unit `half`; touches no word that holds none of them.
fn word_at(half: u32) -> u32 {
    let odd = half & 1u;
    let first = stored(half / 2u);
    let second = stored(half / 2u + odd);
    return select(first, straddle(first, second), odd == 1u);
}

fn stored_half(half: u32) -> u32 {
    return stored(half / 2u) >> ((half & 1u) * 16u);
}

fn half_at(half: u32) -> f32 {
    let pair = decode_f16(stored(half / 2u));
    return select(pair.x, pair.y, (half & 1u) == 1u);
}

fn plain_quad(row: u32, quad: u32) -> vec4<f32> {
    let index = row * (params[0].n_columns / 4u) + quad;
    if DTYPE == F32 {
        let word = index * 4u;
        return vec4<f32>(
            bitcast<f32>(stored(word)),
            bitcast<f32>(stored(word + 1u)),
            bitcast<f32>(stored(word + 2u)),
            bitcast<f32>(stored(word + 3u)),
        );
    }
    let low = stored(index * 2u);
    let high = stored(index * 2u + 1u);
    if DTYPE == F16 {
        return vec4<f32>(decode_f16(low), decode_f16(high));
    }
    return vec4<f32>(decode_bf16(low), decode_bf16(high));
}

// Decodes one half (16 values) of tile row `slot` from column block `block`.
fn load_weights(slot: u32, half: u32, row: u32, block: u32) {
    let block_index = row * (params[0].n_columns / COLUMNS) + block; // only where n_columns is whole blocks
    if DTYPE == Q8_0 {
        let begin = block_index * 17u;
        let d = half_at(begin);
        for (var j = half * 4u; j < half * 4u + 4u; j++) {
            weight_tile[weight_place(slot, j)] = d * decode_bytes(word_at(begin + 1u + j * 2u));
        }
    } else if DTYPE == Q4_0 {
        let begin = block_index * 9u;
        let d = half_at(begin);
        for (var j = half * 2u; j < half * 2u + 2u; j++) {
            let nibbles = word_at(begin + 1u + j * 2u);
            weight_tile[weight_place(slot, j)] = d * (decode_low_nibbles(nibbles) - 8.0);
            weight_tile[weight_place(slot, j + 4u)] = d * (decode_high_nibbles(nibbles) - 8.0);
        }
    } else if DTYPE == Q4_1 {
        let begin = block_index * 5u;
        let scales = decode_f16(stored(begin));
        for (var j = half * 2u; j < half * 2u + 2u; j++) {
            let nibbles = stored(begin + 1u + j);
            weight_tile[weight_place(slot, j)] = fma(vec4<f32>(scales.x), decode_low_nibbles(nibbles), vec4<f32>(scales.y));
            weight_tile[weight_place(slot, j + 4u)] = fma(vec4<f32>(scales.x), decode_high_nibbles(nibbles), vec4<f32>(scales.y));
        }
    } else if DTYPE == Q6_K {
        // A block of 256 columns is eight of a tile's: part `j` of four in half `n`.
        let begin = block_index / 8u * 105u;
        let n = block % 8u / 4u;
        let j = block % 4u;
        let scales = decode_two_bytes(stored_half(begin + 96u + n * 4u + j));
        let d = half_at(begin + 104u) * select(scales.x, scales.y, half == 1u);
        for (var i = half * 4u; i < half * 4u + 4u; i++) {
            let low = word_at(begin + n * 32u + j % 2u * 16u + i * 2u) >> (j / 2u * 4u);
            let high = word_at(begin + 64u + n * 16u + i * 2u) >> (j * 2u);
            weight_tile[weight_place(slot, i)] = d * decode_six_bits(low, high);
        }
    } else if DTYPE > LAST_WITH_OWN_PATH {
        // A tile is the columns of one part, or of one half of two.
        let is_whole = APART == 16u;
        let columns = columns_of(select(block_index / 2u * 2u + half, block_index, is_whole));
        var values = columns.first;
        if select(block & 1u, half, is_whole) == 1u {
            values = columns.last;
        }
        let quad = half * 4u;
        weight_tile[weight_place(slot, quad)] = values[0];
        weight_tile[weight_place(slot, quad + 1u)] = values[1];
        weight_tile[weight_place(slot, quad + 2u)] = values[2];
        weight_tile[weight_place(slot, quad + 3u)] = values[3];
    } else {
        for (var j = half * 4u; j < half * 4u + 4u; j++) {
            let quad = block * QUADS + j;
            var values = vec4<f32>(0.0);
            if quad < params[0].n_columns / 4u {
                values = plain_quad(row, quad);
            }
            weight_tile[weight_place(slot, j)] = values;
        }
    }
}
