// Of y = x * s * w with s = 1 / sqrt(mean x^2 + epsilon): into[r, i] += s * g[i] - x[i] * s^3 * mean(g * x), where
// g[i] = upward[r, i] * (weight[i] + weight_offset), without HAS_WEIGHT without the last factor.
//
// params  one per dispatch, as of the norm
// input   [n_rows, hidden_size] f32: x
// weight  [hidden_size] f32; without HAS_WEIGHT anything
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
override HAS_WEIGHT: bool = true;

fn weighted(index: u32, i: u32) -> f32 {
    var factor = 1.0;
    if HAS_WEIGHT {
        factor = weight[i] + params.weight_offset;
    }
    return upward[index] * factor;
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

    var squares = 0.0;
    var products = 0.0;
    for (var i = lane; i < params.hidden_size; i += LANES) {
        let x = input[begin + i];
        squares = fma(x, x, squares);
        products = fma(weighted(begin + i, i), x, products);
    }
    let scale = 1.0 / sqrt(sum_of_lanes(lane, squares) / n + params.epsilon);
    workgroupBarrier(); // all lanes have read the sum
    let along = scale * scale * scale * (sum_of_lanes(lane, products) / n);

    if row >= params.n_rows {
        return;
    }
    for (var i = lane; i < params.hidden_size; i += LANES) {
        into[begin + i] += fma(scale, weighted(begin + i, i), -along * input[begin + i]);
    }
}
