// output[t, j, r] = sum over k of weight[e * expert_rows + r, k] * input[t, j, k], where e is the j-th expert of token t: as expert_matmul,
// whose bindings and params these are, for n_columns a multiple of 64 on adapters whose subgroups are eight lanes and that load 64-bit
// words.
//
// One workgroup per LANES * ROWS rows of a token's expert, ROWS of them for each lane; how they are read and multiplied,
// shared/pairs.wgsl says. Every sum adds its products in an order that depends on k alone.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<u64>;
@group(0) @binding(2) var<storage, read> input: array<vec4<u64>>;
@group(0) @binding(3) var<storage, read> routing: array<f32>;
@group(0) @binding(4) var<storage, read> slots: array<u32>;
@group(0) @binding(5) var<storage, read_write> output: array<f32>;
@group(0) @binding(6) var<storage, read> grid: array<u32>;

override IN_SLOTS: u32 = 0u;
override IS_CHOSEN: u32 = 1u;

var<private> choice: u32; // an expert of a token
var<private> rows_begin: u32; // the 64-bit word at which the slice, or the expert's matrix in its slot, begins

fn first_word() -> u32 {
    return rows_begin;
}

fn pairs_of_row() -> u32 {
    return params.n_columns / PAIR_COLUMNS;
}

fn input_row(token: u32) -> u32 {
    return select(choice, choice / params.n_used, params.shares_input != 0u);
}

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let n_groups = (params.expert_rows + LANES * ROWS - 1u) / (LANES * ROWS);
    let index = workgroup.x + workgroup.y * n_workgroups.x;
    // Folding may add workgroups past the last one, which repeat it.
    choice = min(index / n_groups, params.n_tokens * params.n_used - 1u);
    let token = choice / params.n_used;
    var expert = choice % params.n_used;
    if IS_CHOSEN != 0u {
        expert = u32(routing[token * 2u * params.n_used + expert]);
    }
    // The expert's rows that are here, and where they begin among those that are.
    var rows = vec2<u32>(0u, params.expert_rows);
    var first_row = 0u;
    if IN_SLOTS != 0u {
        let place = slots[min(expert, arrayLength(&slots) - 1u)];
        rows.y = select(params.expert_rows, 0u, place == NO_SLOT);
        rows_begin = place * (params.slot_bytes / 8u) + params.matrix_begin / 8u;
    } else {
        let begin = expert * params.expert_rows;
        let end = params.first_row + params.n_rows;
        rows = vec2<u32>(max(begin, params.first_row), max(min(begin + params.expert_rows, end), begin)) - begin;
        first_row = begin - params.first_row;
    }
    let group_begin = index % n_groups * LANES * ROWS;
    if group_begin >= rows.y || group_begin + LANES * ROWS <= rows.x {
        return;
    }
    for (var pair = 0u; pair < pairs_of_row(); pair++) {
        load_inputs(pair, lane);
        // A true loop, as in matmul_subgroup.wgsl.
        for (var i = 0u; i < ROWS; i++) {
            add_row(first_row + clamp(group_begin + row_of(lane, i), rows.x, rows.y - 1u), pair, i);
        }
    }
    for (var i = 0u; i < ROWS; i++) {
        let row = group_begin + row_of(lane, i);
        if row >= rows.x && row < rows.y {
            output[choice * params.expert_rows + row] = sums[i];
        }
    }
}
