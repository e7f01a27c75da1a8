// output[t, output_row_begin + r] = sum over k of weight[r, k] * input[t, k], for n_columns a multiple of 64,
// on adapters whose subgroups are eight lanes and that load 64-bit words: software, whose every load is a loop over the lanes.
//
// params  one per product of the dispatch: N_PRODUCTS of them, bound in shared/products_*.wgsl
// weight  [n_rows, n_columns] as stored (DTYPE); the first row begins at weight_begin, each row where the one before ends;
//         read 8 bytes at a time
// input   [n_tokens, n_columns] f32, read 32 bytes at a time
// output  [n_tokens, output_stride] f32, for each product; replaced, or added to (accumulates); bound there too
// grid    see shared/blocks.wgsl; bound there too
//
// ROWS rows a lane for TOKENS tokens, read and multiplied as shared/pairs.wgsl says; z counts the groups of tokens. Every sum adds its
// products in an order that depends on k alone, so a row's result is the same in every slice and every batch.

@group(0) @binding(1) var<storage, read> weight: array<u64>;
@group(0) @binding(2) var<storage, read> input: array<vec4<u64>>;

var<private> product: Params; // of the product that this workgroup computes a part of
var<private> token_begin: u32;

fn first_word() -> u32 {
    return product.weight_begin * 32u;
}

fn pairs_of_row() -> u32 {
    return params[0].n_columns / PAIR_COLUMNS;
}

fn input_row(token: u32) -> u32 {
    return min(token_begin + token, params[0].n_tokens - 1u);
}

fn store_row(product_index: u32, row: u32, first_sum: u32) {
    for (var t = 0u; t < TOKENS; t++) {
        let token = token_begin + t;
        if row < product.n_rows && token < params[0].n_tokens {
            store(product_index, token, row, sums[first_sum + t]);
        }
    }
}

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let place = place_of(workgroup.x + workgroup.y * n_workgroups.x, LANES * ROWS, 1u);
    product = params[place.product];
    let first_row = place.group * LANES * ROWS;
    token_begin = workgroup.z * TOKENS;
    for (var pair = 0u; pair < pairs_of_row(); pair++) {
        load_inputs(pair, lane);
        // A true loop: unrolled, the code would be as many times as large, and compile as many times as long.
        for (var i = 0u; i < ROWS; i++) {
            add_row(min(first_row + row_of(lane, i), product.n_rows - 1u), pair, i * TOKENS);
        }
    }
    for (var i = 0u; i < ROWS; i++) {
        store_row(place.product, first_row + row_of(lane, i), i * TOKENS);
    }
}
