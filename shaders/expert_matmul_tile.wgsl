// output[t, j, r] = sum over k of weight[e * expert_rows + r, k] * input[t, j, k], where e is the j-th expert of token t: as expert_matmul,
// whose bindings and params these are, for many tokens of each expert.
//
// One workgroup per ROWS rows of one expert. It looks through all choices of tokens for those of its expert, and multiplies TOKENS of them at
// a time: LANE_ROWS x LANE_TOKENS sums per invocation. Weights are decoded once for so many, into workgroup memory.
// Every sum adds its products in the order of k, so that it depends neither on who else takes the expert nor on where the choice is listed.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read> input: array<f32>;
@group(0) @binding(3) var<storage, read> routing: array<f32>;
@group(0) @binding(4) var<storage, read> slots: array<u32>;
@group(0) @binding(5) var<storage, read_write> output: array<f32>;
@group(0) @binding(6) var<storage, read> grid: array<u32>;

override DTYPE: u32 = 0u;
override BLOCK_LEN: u32 = 32u; // these three: see shared/blocks.wgsl
override BLOCK_BYTES: u32 = 0u;
override APART: u32 = 16u;
override ROWS: u32 = 32u;
override TOKENS: u32 = 32u;
override LANE_ROWS: u32 = 4u;  // at most 4, both
override LANE_TOKENS: u32 = 4u;
override WORKGROUP: u32 = 64u; // ROWS / LANE_ROWS * (TOKENS / LANE_TOKENS)
override IN_SLOTS: u32 = 0u;
override IS_CHOSEN: u32 = 1u;

const LOOKS: u32 = 16u;        // choices that each invocation looks at before those that were found are multiplied
const MAX_SUMS: u32 = 16u;     // LANE_ROWS * LANE_TOKENS

var<workgroup> list: array<u32, TOKENS + WORKGROUP * LOOKS>;       // choices of the expert, in any order
var<workgroup> n_listed: atomic<u32>;
var<workgroup> n_to_multiply: u32;                                 // n_listed, once all have looked

var<private> rows_begin: u32; // byte of the row that is row 0 here
var<private> expert: u32;

fn expert_of(choice: u32) -> u32 {
    let token = choice / params.n_used;
    let j = choice % params.n_used;
    if IS_CHOSEN == 0u {
        return j;
    }
    return u32(routing[token * 2u * params.n_used + j]);
}

// Decodes one half (16 values) of tile row `slot` from column block `block`.
fn load_weights(slot: u32, half: u32, row: u32, block: u32) {
    if DTYPE == F32 || DTYPE == F16 || DTYPE == BF16 {
        for (var j = half * 4u; j < half * 4u + 4u; j++) {
            var values = vec4<f32>(0.0);
            for (var i = 0u; i < 4u; i++) {
                let k = block * COLUMNS + j * 4u + i;
                if k < params.n_columns {
                    values[i] = float_at(rows_begin, row * params.n_columns + k);
                }
            }
            weight_tile[weight_place(slot, j)] = values;
        }
        return;
    }
    // A tile is the columns of one part, or of one half of two.
    let is_whole = APART == 16u;
    let part = row * (params.n_columns / COLUMNS) + select(block / 2u * 2u + half, block, is_whole);
    let parts_of_block = BLOCK_LEN / 32u;
    let columns = any_part_of(rows_begin + part / parts_of_block * BLOCK_BYTES, part % parts_of_block);
    var sixteen = columns.first;
    if select(block & 1u, half, is_whole) == 1u {
        sixteen = columns.last;
    }
    let values = scaled(sixteen);
    let quad = half * 4u;
    weight_tile[weight_place(slot, quad)] = values[0];
    weight_tile[weight_place(slot, quad + 1u)] = values[1];
    weight_tile[weight_place(slot, quad + 2u)] = values[2];
    weight_tile[weight_place(slot, quad + 3u)] = values[3];
}

fn load_inputs(slot: u32, half: u32, choice: u32, block: u32) {
    let begin = select(choice, choice / params.n_used, params.shares_input != 0u) * params.n_columns;
    for (var j = half * 4u; j < half * 4u + 4u; j++) {
        var values = vec4<f32>(0.0);
        for (var i = 0u; i < 4u; i++) {
            let k = block * COLUMNS + j * 4u + i;
            if k < params.n_columns {
                values[i] = input[begin + k];
            }
        }
        input_tile[input_place(slot, j)] = values;
    }
}

// Rows are counted in this slice, or in the expert's slot.
fn row_of(expert_row: u32) -> u32 {
    return select(expert * params.expert_rows + expert_row - params.first_row, expert_row, IN_SLOTS != 0u);
}

fn is_here(expert_row: u32) -> bool {
    let is_in_slice = expert * params.expert_rows + expert_row >= params.first_row && row_of(expert_row) < params.n_rows;
    return expert_row < params.expert_rows && (IN_SLOTS != 0u || is_in_slice);
}

// `n` choices from `first` on in the list, with the rows from `row_begin` on.
fn multiply(local: u32, row_begin: u32, first: u32, n: u32) {
    let lane_row = local / (TOKENS / LANE_TOKENS) * LANE_ROWS;
    let lane_token = local % (TOKENS / LANE_TOKENS) * LANE_TOKENS;
    var sums: array<f32, MAX_SUMS>; // [LANE_ROWS, LANE_TOKENS]
    for (var i = 0u; i < LANE_ROWS * LANE_TOKENS; i++) {
        sums[i] = 0.0;
    }
    for (var block = 0u; block * COLUMNS < params.n_columns; block++) {
        for (var i = local; i < ROWS * 2u; i += WORKGROUP) {
            if is_here(row_begin + i / 2u) {
                load_weights(i / 2u, i % 2u, row_of(row_begin + i / 2u), block);
            }
        }
        for (var i = local; i < TOKENS * 2u; i += WORKGROUP) {
            load_inputs(i / 2u, i % 2u, list[first + min(i / 2u, n - 1u)], block);
        }
        workgroupBarrier(); // both tiles are loaded
        for (var quad = 0u; quad < QUADS; quad++) {
            var inputs: array<vec4<f32>, 4>; // LANE_TOKENS
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
            let expert_row = row_begin + lane_row + i;
            if lane_token + t < n && is_here(expert_row) {
                output[list[first + lane_token + t] * params.expert_rows + expert_row] = sums[i * LANE_TOKENS + t];
            }
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let n_row_tiles = (params.expert_rows + ROWS - 1u) / ROWS;
    let index = workgroup.x + workgroup.y * n_workgroups.x;
    // Folding may add workgroups past the last one; no token takes their experts.
    let own = select(params.first_row / params.expert_rows, 0u, IN_SLOTS != 0u) + index / n_row_tiles;
    expert = own;
    let row_begin = index % n_row_tiles * ROWS;
    var n_choices = params.n_tokens * params.n_used;
    rows_begin = 0u;
    if IN_SLOTS != 0u {
        let place = slots[min(own, arrayLength(&slots) - 1u)];
        if place == NO_SLOT {
            n_choices = 0u;
        } else {
            rows_begin = place * params.slot_bytes + params.matrix_begin;
        }
    }

    if local == 0u {
        atomicStore(&n_listed, 0u);
    }
    workgroupBarrier(); // nothing is listed
    for (var begin = 0u; begin < n_choices; begin += WORKGROUP * LOOKS) {
        for (var i = 0u; i < LOOKS; i++) {
            let choice = begin + i * WORKGROUP + local;
            if choice < n_choices && expert_of(choice) == own {
                list[atomicAdd(&n_listed, 1u)] = choice;
            }
        }
        workgroupBarrier(); // all are listed
        if local == 0u {
            n_to_multiply = atomicLoad(&n_listed);
        }
        let n = workgroupUniformLoad(&n_to_multiply);
        // What is no whole tile waits for more, as long as there may be.
        let is_last = begin + WORKGROUP * LOOKS >= n_choices;
        let n_now = select(n / TOKENS * TOKENS, n, is_last);
        for (var first = 0u; first < n_now; first += TOKENS) {
            multiply(local, row_begin, first, min(TOKENS, n - first));
        }
        workgroupBarrier(); // the list is used up
        for (var i = local; i < n - n_now; i += WORKGROUP) {
            list[i] = list[n_now + i];
        }
        if local == 0u {
            atomicStore(&n_listed, n - n_now);
        }
        workgroupBarrier(); // what is left is at the front
    }
}
