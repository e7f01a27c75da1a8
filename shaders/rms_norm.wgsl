// output[r, i] = input[r, i] / sqrt(mean over j of input[r, j]^2 + epsilon) * (weight[i] + weight_offset),
// without HAS_WEIGHT without the last factor
//
// params  one per dispatch
// input   [n_rows, hidden_size] f32
// weight  [hidden_size] f32; without HAS_WEIGHT anything
// output  [n_rows, hidden_size] f32
//
// One workgroup per row.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

override LANES: u32 = 64u; // a power of two, at most 64
override HAS_WEIGHT: bool = true;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Folding may add workgroups past the last row: they repeat it, since none may skip the barriers.
    let row = workgroup.x + workgroup.y * n_workgroups.x;
    let begin = min(row, params.n_rows - 1u) * params.hidden_size;

    var sum = 0.0;
    for (var i = lane; i < params.hidden_size; i += LANES) {
        sum = fma(input[begin + i], input[begin + i], sum);
    }
    let scale = 1.0 / sqrt(sum_of_lanes(lane, sum) / f32(params.hidden_size) + params.epsilon);

    if row >= params.n_rows {
        return;
    }
    for (var i = lane; i < params.hidden_size; i += LANES) {
        var factor = 1.0;
        if HAS_WEIGHT {
            factor = weight[i] + params.weight_offset;
        }
        output[begin + i] = input[begin + i] * scale * factor;
    }
}
