// output[t, output_row_begin + r] = sum over k of weight[r, k] * input[t, k], for many tokens and n_columns a multiple of 4.
//
// params  one per product of the dispatch: N_PRODUCTS of them, bound in shared/products_*.wgsl
// weight  [n_rows, n_columns] as stored (DTYPE); the first row begins at weight_begin, each row where the one before ends
// input   [n_tokens, n_columns] f32, read as quads
// output  [n_tokens, output_stride] f32, for each product; replaced, or added to (accumulates); bound there too
//
// One workgroup of 64 per 32 rows x 32 tokens; 4 x 4 sums per invocation. Weights are decoded once, into workgroup memory.
// Every sum adds its products in the order of k, so a row's result is the same in every slice and every batch.

@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read> input: array<vec4<f32>>;

override DTYPE: u32 = 0u;
override BLOCK_LEN: u32 = 32u;  // these three: see shared/blocks.wgsl
override BLOCK_BYTES: u32 = 0u;
override APART: u32 = 16u;

var<private> product: Params; // of the product that this workgroup computes a part of

const TILE: u32 = 32u;         // rows, tokens and columns of a tile
const TILE_QUADS: u32 = 8u;    // TILE / 4
const TILE_STRIDE: u32 = 9u;   // one quad of padding: neighbours in a column fall into different banks
const TILE_SIZE: u32 = 288u;   // TILE * TILE_STRIDE

var<workgroup> weight_tile: array<vec4<f32>, TILE_SIZE>; // [TILE rows, TILE_STRIDE]
var<workgroup> input_tile: array<vec4<f32>, TILE_SIZE>;  // [TILE tokens, TILE_STRIDE]

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
    let tile_row = slot * TILE_STRIDE;
    let block_index = row * (params[0].n_columns / TILE) + block; // only where n_columns is whole blocks
    if DTYPE == Q8_0 {
        let begin = block_index * 17u;
        let d = half_at(begin);
        for (var j = half * 4u; j < half * 4u + 4u; j++) {
            weight_tile[tile_row + j] = d * decode_bytes(word_at(begin + 1u + j * 2u));
        }
    } else if DTYPE == Q4_0 {
        let begin = block_index * 9u;
        let d = half_at(begin);
        for (var j = half * 2u; j < half * 2u + 2u; j++) {
            let nibbles = word_at(begin + 1u + j * 2u);
            weight_tile[tile_row + j] = d * (decode_low_nibbles(nibbles) - 8.0);
            weight_tile[tile_row + j + 4u] = d * (decode_high_nibbles(nibbles) - 8.0);
        }
    } else if DTYPE == Q4_1 {
        let begin = block_index * 5u;
        let scales = decode_f16(stored(begin));
        for (var j = half * 2u; j < half * 2u + 2u; j++) {
            let nibbles = stored(begin + 1u + j);
            weight_tile[tile_row + j] = fma(vec4<f32>(scales.x), decode_low_nibbles(nibbles), vec4<f32>(scales.y));
            weight_tile[tile_row + j + 4u] = fma(vec4<f32>(scales.x), decode_high_nibbles(nibbles), vec4<f32>(scales.y));
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
            weight_tile[tile_row + i] = d * decode_six_bits(low, high);
        }
    } else if DTYPE > LAST_WITH_OWN_PATH {
        // A tile is the columns of one part, or of one half of two.
        let is_whole = APART == 16u;
        let columns = columns_of(select(block_index / 2u * 2u + half, block_index, is_whole));
        var values = columns.first;
        if select(block & 1u, half, is_whole) == 1u {
            values = columns.last;
        }
        let begin = tile_row + half * 4u;
        weight_tile[begin] = values[0];
        weight_tile[begin + 1u] = values[1];
        weight_tile[begin + 2u] = values[2];
        weight_tile[begin + 3u] = values[3];
    } else {
        for (var j = half * 4u; j < half * 4u + 4u; j++) {
            let quad = block * TILE_QUADS + j;
            var values = vec4<f32>(0.0);
            if quad < params[0].n_columns / 4u {
                values = plain_quad(row, quad);
            }
            weight_tile[tile_row + j] = values;
        }
    }
}

fn load_inputs(slot: u32, half: u32, token: u32, block: u32) {
    let n_quads = params[0].n_columns / 4u;
    for (var j = half * 4u; j < half * 4u + 4u; j++) {
        let quad = block * TILE_QUADS + j;
        var values = vec4<f32>(0.0);
        if quad < n_quads {
            values = input[token * n_quads + quad];
        }
        input_tile[slot * TILE_STRIDE + j] = values;
    }
}

fn add_products(w: vec4<f32>, x: vec4<f32>, sum: f32) -> f32 {
    return fma(w.w, x.w, fma(w.z, x.z, fma(w.y, x.y, fma(w.x, x.x, sum))));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    // Token tiles of one row tile are neighbours: they read the same weights.
    let n_token_tiles = (params[0].n_tokens + TILE - 1u) / TILE;
    let place = place_of(workgroup.x + workgroup.y * n_workgroups.x, TILE, n_token_tiles);
    product = params[place.product];
    let row_begin = place.group / n_token_tiles * TILE;
    let token_begin = place.group % n_token_tiles * TILE;

    let slot = local / 2u;
    let half = local % 2u;
    let load_row = min(row_begin + slot, product.n_rows - 1u);
    let load_token = min(token_begin + slot, params[0].n_tokens - 1u);
    let tile_row = local / TILE_QUADS * 4u;
    let tile_token = local % TILE_QUADS * 4u;
    var sums: array<vec4<f32>, 4>; // [4 rows] of 4 tokens
    for (var i = 0u; i < 4u; i++) {
        sums[i] = vec4<f32>(0.0);
    }

    for (var block = 0u; block * TILE < params[0].n_columns; block++) {
        load_weights(slot, half, load_row, block);
        load_inputs(slot, half, load_token, block);
        workgroupBarrier(); // both tiles are loaded
        for (var quad = 0u; quad < TILE_QUADS; quad++) {
            let x0 = input_tile[tile_token * TILE_STRIDE + quad];
            let x1 = input_tile[(tile_token + 1u) * TILE_STRIDE + quad];
            let x2 = input_tile[(tile_token + 2u) * TILE_STRIDE + quad];
            let x3 = input_tile[(tile_token + 3u) * TILE_STRIDE + quad];
            for (var i = 0u; i < 4u; i++) {
                let w = weight_tile[(tile_row + i) * TILE_STRIDE + quad];
                let sum = sums[i];
                sums[i] = vec4<f32>(
                    add_products(w, x0, sum.x),
                    add_products(w, x1, sum.y),
                    add_products(w, x2, sum.z),
                    add_products(w, x3, sum.w),
                );
            }
        }
        workgroupBarrier(); // both tiles are used up
    }

    for (var i = 0u; i < 4u; i++) {
        for (var t = 0u; t < 4u; t++) {
            let row = row_begin + tile_row + i;
            let token = token_begin + tile_token + t;
            if row < product.n_rows && token < params[0].n_tokens {
                store(place.product, token, row, sums[i][t]);
            }
        }
    }
}
