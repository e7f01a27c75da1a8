// output[r, i] = (input[r, i] - m) / sqrt(mean over j of (input[r, j] - m)^2 + epsilon) * (weight[i] + weight_offset) + bias[i],
// where m is the mean over j of input[r, j]
//
// params  one per dispatch
// input   [n_rows, hidden_size] f32
// weight  [hidden_size] f32
// bias    [hidden_size] f32; not read without HAS_BIAS
// output  [n_rows, hidden_size] f32
//
// One workgroup per row.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> output: array<f32>;

override LANES: u32 = 64u; // a power of two, at most 64
override HAS_BIAS: bool = true;

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
        sum += input[begin + i];
    }
    let mean = sum_of_lanes(lane, sum) / f32(params.hidden_size);
    workgroupBarrier(); // all lanes have read the first sum
    var squares = 0.0;
    for (var i = lane; i < params.hidden_size; i += LANES) {
        let centred = input[begin + i] - mean;
        squares = fma(centred, centred, squares);
    }
    let scale = 1.0 / sqrt(sum_of_lanes(lane, squares) / f32(params.hidden_size) + params.epsilon);

    if row >= params.n_rows {
        return;
    }
    for (var i = lane; i < params.hidden_size; i += LANES) {
        let normed = (input[begin + i] - mean) * scale * (weight[i] + params.weight_offset);
        if HAS_BIAS {
            output[begin + i] = normed + bias[i];
        } else {
            output[begin + i] = normed;
        }
    }
}
