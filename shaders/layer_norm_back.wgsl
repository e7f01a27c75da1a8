// Of y = z * w + b with z = (x - mean) * s and s = 1 / sqrt(variance + epsilon): into[r, i] += s * (g[i] - mean(g) - z[i] * mean(g * z)), where
// g[i] = upward[r, i] * (weight[i] + weight_offset).
//
// params  one per dispatch, as of the norm
// input   [n_rows, hidden_size] f32: x
// weight  [hidden_size] f32
// upward  [n_rows, hidden_size] f32: the gradient of y
// into    [n_rows, hidden_size] f32, added to
//
// One workgroup per row.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> upward: array<f32>;
@group(0) @binding(4) var<storage, read_write> into: array<f32>;

override LANES: u32 = 64u; // a power of two, at most 64

fn weighted(index: u32, i: u32) -> f32 {
    return upward[index] * (weight[i] + params.weight_offset);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Folding may add workgroups past the last row: they repeat it, since none may skip the barriers.
    let row = workgroup.x + workgroup.y * n_workgroups.x;
    let begin = min(row, params.n_rows - 1u) * params.hidden_size;
    let n = f32(params.hidden_size);

    var sum = 0.0;
    var gradients = 0.0;
    for (var i = lane; i < params.hidden_size; i += LANES) {
        sum += input[begin + i];
        gradients += weighted(begin + i, i);
    }
    let mean = sum_of_lanes(lane, sum) / n;
    workgroupBarrier(); // all lanes have read the sum
    let level = sum_of_lanes(lane, gradients) / n;
    workgroupBarrier();

    var squares = 0.0;
    var products = 0.0;
    for (var i = lane; i < params.hidden_size; i += LANES) {
        let off = input[begin + i] - mean;
        squares = fma(off, off, squares);
        products = fma(weighted(begin + i, i), off, products);
    }
    let scale = 1.0 / sqrt(sum_of_lanes(lane, squares) / n + params.epsilon);
    workgroupBarrier();
    let along = scale * scale * (sum_of_lanes(lane, products) / n);

    if row >= params.n_rows {
        return;
    }
    for (var i = lane; i < params.hidden_size; i += LANES) {
        into[begin + i] += scale * (weighted(begin + i, i) - level - (input[begin + i] - mean) * along);
    }
}
