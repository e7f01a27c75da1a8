// output[t, j, r] = sum over k of weight[e * expert_rows + r, k] * input[t, j, k], where e is the j-th expert of token t: for the rows that
// are in this slice of the experts' matrices. What belongs to other rows is left as it is. For few tokens of each expert.
//
// params   one per dispatch
// weight   [n_rows, n_columns] as stored (DTYPE), from row first_row of all experts' on; rows may begin at any byte that their dtype allows
// input    [n_tokens, n_used, n_columns] f32, or [n_tokens, n_columns] where shares_input is not 0
// routing  [n_tokens, 2, n_used] f32: numbers of experts, then their weights, which are not read; without IS_CHOSEN anything, and the j-th
//          expert of each token is j
// slots    [n_experts] u32: the slot of each expert in weight, or NO_SLOT; read where IN_SLOTS alone
// output   [n_tokens, n_used, expert_rows] f32
// grid     see shared/blocks.wgsl
//
// With IN_SLOTS, weight is [slots, slot_bytes / 4] instead: the rows of an expert begin matrix_begin bytes behind the beginning of its slot,
// and what belongs to experts without a slot is left as it is.
//
// LANES lanes share a row and WORKGROUP / LANES rows of one expert; groups of rows of a token's expert follow each other, then those of its
// next expert. Which lane adds which products depends on n_columns alone.

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
override LANES: u32 = 32u;     // a power of two
override WORKGROUP: u32 = 64u; // a multiple of LANES, at most 64
override IN_SLOTS: u32 = 0u;
override IS_CHOSEN: u32 = 1u;

var<workgroup> partial: array<f32, 64>; // of the lanes that share a row

// The rows are counted from byte `rows_begin` on, here and below.
fn sum_of_floats(lane: u32, rows_begin: u32, row: u32, token: u32) -> f32 {
    var sum = 0.0;
    for (var k = lane; k < params.n_columns; k += LANES) {
        sum = fma(float_at(rows_begin, row * params.n_columns + k), input[token + k], sum);
    }
    return sum;
}

fn sixteen_products(columns: Sixteen, begin: u32, sum: f32) -> f32 {
    let w = scaled(columns);
    var total = sum;
    for (var i = 0u; i < 4u; i++) {
        let k = begin + i * 4u;
        let x = vec4<f32>(input[k], input[k + 1u], input[k + 2u], input[k + 3u]);
        total = fma(w[i].w, x.w, fma(w[i].z, x.z, fma(w[i].y, x.y, fma(w[i].x, x.x, total))));
    }
    return total;
}

fn sum_of_blocks(lane: u32, rows_begin: u32, row: u32, token: u32) -> f32 {
    let n_parts = params.n_columns / 32u;
    let parts_of_block = BLOCK_LEN / 32u;
    var sum = 0.0;
    for (var part = lane; part < n_parts; part += LANES) {
        let begin = rows_begin + (row * n_parts + part) / parts_of_block * BLOCK_BYTES;
        let columns = any_part_of(begin, part % parts_of_block);
        let first = token + quad_of(part) * 4u;
        sum = sixteen_products(columns.first, first, sum);
        sum = sixteen_products(columns.last, first + APART, sum);
    }
    return sum;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let rows_at_once = WORKGROUP / LANES;
    let n_groups = (params.expert_rows + rows_at_once - 1u) / rows_at_once;
    let index = workgroup.x + workgroup.y * n_workgroups.x;
    let n_choices = params.n_tokens * params.n_used;
    // Folding may add workgroups past the last one, which compute nothing that is stored.
    let choice = min(index / n_groups, n_choices - 1u); // an expert of a token
    let lane = local % LANES;
    let expert_row = index % n_groups * rows_at_once + local / LANES;
    let token = choice / params.n_used;
    var expert = choice % params.n_used;
    if IS_CHOSEN != 0u {
        expert = u32(routing[token * 2u * params.n_used + expert]);
    }
    var is_here = index / n_groups < n_choices && expert_row < params.expert_rows;
    var rows_begin = 0u;
    var row = expert_row;
    if IN_SLOTS != 0u {
        let place = slots[min(expert, arrayLength(&slots) - 1u)];
        is_here = is_here && place != NO_SLOT;
        rows_begin = place * params.slot_bytes + params.matrix_begin;
    } else {
        let of_all = expert * params.expert_rows + expert_row;
        is_here = is_here && of_all >= params.first_row && of_all - params.first_row < params.n_rows;
        row = of_all - params.first_row;
    }

    var sum = 0.0;
    if is_here {
        let begin = select(choice, token, params.shares_input != 0u) * params.n_columns;
        if DTYPE == F32 || DTYPE == F16 || DTYPE == BF16 {
            sum = sum_of_floats(lane, rows_begin, row, begin);
        } else {
            sum = sum_of_blocks(lane, rows_begin, row, begin);
        }
    }
    partial[local] = sum;
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier(); // the partial sums of the level above are written
        if lane < stride {
            partial[local] += partial[local + stride];
        }
    }
    if is_here && lane == 0u {
        output[choice * params.expert_rows + expert_row] = partial[local];
    }
}
