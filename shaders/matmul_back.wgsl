// into[t, c] += sum over r of weight[r, c] * upward[t, output_row_begin + r]: the product with the transposed weight, from the same stored
// bytes, which carries the gradient of a matrix product's output to its input. Without IN_QUADS rows are no whole quads of words: F32, F16 or BF16.
//
// params  one per dispatch, as of the product
// weight  [n_rows, n_columns] as stored (DTYPE); the first row begins at weight_begin, each row where the one before ends
// upward  [n_tokens, output_stride] f32: the gradient of the product's output
// into    [n_tokens, n_columns] f32, added to
// grid    see shared/blocks.wgsl
//
// One workgroup of 64 per TOKENS tokens x 32 columns; LANE_TOKENS quads of sums per invocation. Rows are decoded 32 at a time, into workgroup
// memory. Every sum adds its products in the order of rows.

@group(0) @binding(0) var<uniform> params: array<Params, 1>;
@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read> upward: array<f32>;
@group(0) @binding(3) var<storage, read_write> into: array<f32>;
@group(0) @binding(4) var<storage, read> grid: array<u32>;

override DTYPE: u32 = 0u;
override BLOCK_LEN: u32 = 32u;  // these three: see shared/blocks.wgsl
override BLOCK_BYTES: u32 = 0u;
override APART: u32 = 16u;
override ROWS: u32 = 32u;       // as many as a quad of columns has of them: 32
override TOKENS: u32 = 32u;
override LANE_ROWS: u32 = 4u;
override LANE_TOKENS: u32 = 4u; // TOKENS / 8
override IN_QUADS: bool = true;

var<private> product: Params;

// A value of a row that begins anywhere in a word.
fn plain_value(row: u32, column: u32) -> f32 {
    let index = row * product.n_columns + column;
    if DTYPE == F32 {
        return bitcast<f32>(stored(index));
    }
    let word = stored(index / 2u);
    var pair = decode_bf16(word);
    if DTYPE == F16 {
        pair = decode_f16(word);
    }
    return select(pair.x, pair.y, (index & 1u) == 1u);
}

// As load_weights, value by value.
fn load_plain(slot: u32, half: u32, row: u32, block: u32) {
    for (var j = half * 4u; j < half * 4u + 4u; j++) {
        var values = vec4<f32>(0.0);
        for (var i = 0u; i < 4u; i++) {
            let column = (block * QUADS + j) * 4u + i;
            if column < product.n_columns {
                values[i] = plain_value(row, column);
            }
        }
        weight_tile[weight_place(slot, j)] = values;
    }
}

// Gradients of four rows for a token; zeros past the last row.
fn load_upward(slot: u32, quad: u32, token: u32, row_begin: u32) {
    let begin = token * product.output_stride + product.output_row_begin;
    var values = vec4<f32>(0.0);
    for (var i = 0u; i < 4u; i++) {
        let row = row_begin + quad * 4u + i;
        if row < product.n_rows {
            values[i] = upward[begin + row];
        }
    }
    input_tile[input_place(slot, quad)] = values;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    product = params[0];
    let n_blocks = (product.n_columns + COLUMNS - 1u) / COLUMNS;
    // Token tiles of the same columns are neighbours. Folding may add workgroups past the last one: they repeat it and write nothing.
    let n_token_tiles = (product.n_tokens + TOKENS - 1u) / TOKENS;
    let index = workgroup.x + workgroup.y * n_workgroups.x;
    let block = min(index / n_token_tiles, n_blocks - 1u);
    let token_begin = index % n_token_tiles * TOKENS;

    let quad = local % QUADS;
    let lane_token = local / QUADS * LANE_TOKENS;
    var sums: array<vec4<f32>, 8>; // LANE_TOKENS
    for (var t = 0u; t < LANE_TOKENS; t++) {
        sums[t] = vec4<f32>(0.0);
    }

    // Bounds of loops with barriers come from what is the same for all lanes.
    for (var row_begin = 0u; row_begin < params[0].n_rows; row_begin += ROWS) {
        for (var i = local; i < ROWS * 2u; i += 64u) {
            let row = min(row_begin + i / 2u, product.n_rows - 1u);
            if IN_QUADS {
                load_weights(i / 2u, i % 2u, row, block);
            } else {
                load_plain(i / 2u, i % 2u, row, block);
            }
        }
        for (var i = local; i < TOKENS * QUADS; i += 64u) {
            load_upward(i / QUADS, i % QUADS, min(token_begin + i / QUADS, product.n_tokens - 1u), row_begin);
        }
        workgroupBarrier(); // both tiles are loaded
        for (var rows = 0u; rows < QUADS; rows++) {
            let first = weight_tile[weight_place(rows * 4u, quad)];
            let second = weight_tile[weight_place(rows * 4u + 1u, quad)];
            let third = weight_tile[weight_place(rows * 4u + 2u, quad)];
            let fourth = weight_tile[weight_place(rows * 4u + 3u, quad)];
            for (var t = 0u; t < LANE_TOKENS; t++) {
                let factors = input_tile[input_place(lane_token + t, rows)];
                var sum = fma(vec4<f32>(factors.x), first, sums[t]);
                sum = fma(vec4<f32>(factors.y), second, sum);
                sum = fma(vec4<f32>(factors.z), third, sum);
                sums[t] = fma(vec4<f32>(factors.w), fourth, sum);
            }
        }
        workgroupBarrier(); // both tiles are used up
    }

    if index / n_token_tiles >= n_blocks {
        return;
    }
    let first = (block * QUADS + quad) * 4u;
    for (var t = 0u; t < LANE_TOKENS; t++) {
        let token = token_begin + lane_token + t;
        if token < product.n_tokens {
            for (var i = 0u; i < 4u; i++) {
                if first + i < product.n_columns {
                    into[token * product.n_columns + first + i] += sums[t][i];
                }
            }
        }
    }
}
