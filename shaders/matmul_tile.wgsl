// output[t, output_row_begin + r] = sum over k of weight[r, k] * input[t, k], for many tokens and n_columns a multiple of 4.
//
// params  one per dispatch
// weight  [n_rows, n_columns] as stored (DTYPE); the first row begins at byte 0, each row at an even byte
// input   [n_tokens, n_columns] f32, read as quads
// output  [n_tokens, output_stride] f32
//
// One workgroup of 64 per 32 rows x 32 tokens; 4 x 4 sums per invocation. Weights are decoded once, into workgroup memory.
// Every sum adds its products in the order of k, so a row's result is the same in every slice and every batch.

struct Params {
    n_rows: u32,
    n_columns: u32,
    n_tokens: u32,
    output_stride: u32,
    output_row_begin: u32,
    dtype: u32, // chosen at pipeline creation, as DTYPE
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

override DTYPE: u32 = 0u;

const TILE: u32 = 32u;         // rows, tokens and columns of a tile
const TILE_QUADS: u32 = 8u;    // TILE / 4
const TILE_STRIDE: u32 = 9u;   // one quad of padding: neighbours in a column fall into different banks
const TILE_SIZE: u32 = 288u;   // TILE * TILE_STRIDE

var<workgroup> weight_tile: array<vec4<f32>, TILE_SIZE>; // [TILE rows, TILE_STRIDE]
var<workgroup> input_tile: array<vec4<f32>, TILE_SIZE>;  // [TILE tokens, TILE_STRIDE]

// Four bytes that begin at 16-bit unit `half`; touches no word that holds none of them.
fn word_at(half: u32) -> u32 {
    let odd = half & 1u;
    let first = weight[half / 2u];
    let second = weight[half / 2u + odd];
    return select(first, straddle(first, second), odd == 1u);
}

fn half_at(half: u32) -> f32 {
    let pair = decode_f16(weight[half / 2u]);
    return select(pair.x, pair.y, (half & 1u) == 1u);
}

fn plain_quad(row: u32, quad: u32) -> vec4<f32> {
    let index = row * (params.n_columns / 4u) + quad;
    if DTYPE == F32 {
        let word = index * 4u;
        return vec4<f32>(
            bitcast<f32>(weight[word]),
            bitcast<f32>(weight[word + 1u]),
            bitcast<f32>(weight[word + 2u]),
            bitcast<f32>(weight[word + 3u]),
        );
    }
    let low = weight[index * 2u];
    let high = weight[index * 2u + 1u];
    if DTYPE == F16 {
        return vec4<f32>(decode_f16(low), decode_f16(high));
    }
    return vec4<f32>(decode_bf16(low), decode_bf16(high));
}

// Decodes one half (16 values) of tile row `slot` from column block `block`.
fn load_weights(slot: u32, half: u32, row: u32, block: u32) {
    let tile_row = slot * TILE_STRIDE;
    let block_index = row * (params.n_columns / TILE) + block; // only where n_columns is whole blocks
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
        let scales = decode_f16(weight[begin]);
        for (var j = half * 2u; j < half * 2u + 2u; j++) {
            let nibbles = weight[begin + 1u + j];
            weight_tile[tile_row + j] = fma(vec4<f32>(scales.x), decode_low_nibbles(nibbles), vec4<f32>(scales.y));
            weight_tile[tile_row + j + 4u] = fma(vec4<f32>(scales.x), decode_high_nibbles(nibbles), vec4<f32>(scales.y));
        }
    } else {
        for (var j = half * 4u; j < half * 4u + 4u; j++) {
            let quad = block * TILE_QUADS + j;
            var values = vec4<f32>(0.0);
            if quad < params.n_columns / 4u {
                values = plain_quad(row, quad);
            }
            weight_tile[tile_row + j] = values;
        }
    }
}

fn load_inputs(slot: u32, half: u32, token: u32, block: u32) {
    let n_quads = params.n_columns / 4u;
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
    let tile = workgroup.x + workgroup.y * n_workgroups.x;
    let n_token_tiles = (params.n_tokens + TILE - 1u) / TILE;
    let row_begin = tile / n_token_tiles * TILE;
    let token_begin = tile % n_token_tiles * TILE;

    let slot = local / 2u;
    let half = local % 2u;
    let load_row = min(row_begin + slot, params.n_rows - 1u);
    let load_token = min(token_begin + slot, params.n_tokens - 1u);
    let tile_row = local / TILE_QUADS * 4u;
    let tile_token = local % TILE_QUADS * 4u;
    var sums: array<vec4<f32>, 4>; // [4 rows] of 4 tokens
    for (var i = 0u; i < 4u; i++) {
        sums[i] = vec4<f32>(0.0);
    }

    for (var block = 0u; block * TILE < params.n_columns; block++) {
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
            if row < params.n_rows && token < params.n_tokens {
                output[token * params.output_stride + params.output_row_begin + row] = sums[i][t];
            }
        }
    }
}
