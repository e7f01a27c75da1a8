// output[t, output_row_begin + r] = sum over k of weight[r, k] * input[t, k], for many tokens and n_columns a multiple of 4.
//
// params  one per product of the dispatch: N_PRODUCTS of them, bound in shared/products_*.wgsl
// weight  [n_rows, n_columns] as stored (DTYPE); the first row begins at weight_begin, each row where the one before ends
// input   [n_tokens, n_columns] f32, read as quads
// output  [n_tokens, output_stride] f32, for each product; replaced, or added to (accumulates); bound there too
// grid    see shared/blocks.wgsl; bound there too
//
// One workgroup per ROWS x TOKENS; LANE_ROWS x LANE_TOKENS sums per invocation. Weights are decoded once, into workgroup memory.
// Every sum adds its products in the order of k, so a row's result is the same in every slice, every batch and every shape.

@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read> input: array<vec4<f32>>;

override DTYPE: u32 = 0u;
override BLOCK_LEN: u32 = 32u;  // these three: see shared/blocks.wgsl
override BLOCK_BYTES: u32 = 0u;
override APART: u32 = 16u;
override ROWS: u32 = 32u;      // 16 to 64; ROWS + TOKENS at most 128
override TOKENS: u32 = 32u;    // 16 to 64
override LANE_ROWS: u32 = 4u;  // 2 to 8
override LANE_TOKENS: u32 = 4u;
override WORKGROUP: u32 = 64u; // ROWS / LANE_ROWS * (TOKENS / LANE_TOKENS)

const MAX_SUMS: u32 = 64u;     // LANE_ROWS * LANE_TOKENS

var<private> product: Params; // of the product that this workgroup computes a part of

fn load_inputs(slot: u32, half: u32, token: u32, block: u32) {
    let n_quads = params[0].n_columns / 4u;
    for (var j = half * 4u; j < half * 4u + 4u; j++) {
        let quad = block * QUADS + j;
        var values = vec4<f32>(0.0);
        if quad < n_quads {
            values = input[token * n_quads + quad];
        }
        input_tile[input_place(slot, j)] = values;
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    // Token tiles of one row tile are neighbours: they read the same weights.
    let n_token_tiles = (params[0].n_tokens + TOKENS - 1u) / TOKENS;
    let place = place_of(workgroup.x + workgroup.y * n_workgroups.x, ROWS, n_token_tiles);
    product = params[place.product];
    let row_begin = place.group / n_token_tiles * ROWS;
    let token_begin = place.group % n_token_tiles * TOKENS;

    let lane_row = local / (TOKENS / LANE_TOKENS) * LANE_ROWS;
    let lane_token = local % (TOKENS / LANE_TOKENS) * LANE_TOKENS;
    var sums: array<f32, MAX_SUMS>; // [LANE_ROWS, LANE_TOKENS]
    for (var i = 0u; i < LANE_ROWS * LANE_TOKENS; i++) {
        sums[i] = 0.0;
    }

    for (var block = 0u; block * COLUMNS < params[0].n_columns; block++) {
        for (var i = local; i < ROWS * 2u; i += WORKGROUP) {
            load_weights(i / 2u, i % 2u, min(row_begin + i / 2u, product.n_rows - 1u), block);
        }
        for (var i = local; i < TOKENS * 2u; i += WORKGROUP) {
            load_inputs(i / 2u, i % 2u, min(token_begin + i / 2u, params[0].n_tokens - 1u), block);
        }
        workgroupBarrier(); // both tiles are loaded
        for (var quad = 0u; quad < QUADS; quad++) {
            var inputs: array<vec4<f32>, 8>; // LANE_TOKENS
            for (var t = 0u; t < LANE_TOKENS; t++) {
                inputs[t] = input_tile[input_place(lane_token + t, quad)];
            }
            for (var i = 0u; i < LANE_ROWS; i++) {
                let w = weight_tile[weight_place(lane_row + i, quad)];
                for (var t = 0u; t < LANE_TOKENS; t++) {
                    sums[i * LANE_TOKENS + t] = add_products(w, inputs[t], sums[i * LANE_TOKENS + t]);
                }
            }
        }
        workgroupBarrier(); // both tiles are used up
    }

    for (var i = 0u; i < LANE_ROWS; i++) {
        for (var t = 0u; t < LANE_TOKENS; t++) {
            let row = row_begin + lane_row + i;
            let token = token_begin + lane_token + t;
            if row < product.n_rows && token < params[0].n_tokens {
                store(place.product, token, row, sums[i * LANE_TOKENS + t]);
            }
        }
    }
}
