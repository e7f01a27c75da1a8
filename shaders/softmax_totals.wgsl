// For each row of logits, some of a vocabulary: the greatest, the sum of exp(logit - greatest), and the logit of the row's target, all of them
// merged with those of the slices before.
//
// params   one per dispatch
// logits   [n_rows, width] f32, of the tokens from first on
// targets  [n_rows] u32
// totals   [n_rows] of (greatest, sum, logit of the target, 0), read and written; where first is 0, only written
//
// One workgroup per row.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> totals: array<vec4<f32>>;

override LANES: u32 = 64u; // a power of two, at most 64

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Folding may add workgroups past the last row: they repeat it, since none may skip the barriers.
    let index = workgroup.x + workgroup.y * n_workgroups.x;
    let row = min(index, params.n_rows - 1u);
    let begin = row * params.width;

    var greatest = LEAST;
    for (var i = lane; i < params.width; i += LANES) {
        greatest = max(greatest, logits[begin + i]);
    }
    greatest = greatest_of_lanes(lane, greatest);
    workgroupBarrier(); // all lanes have read the greatest
    var sum = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        sum += exp(logits[begin + i] - greatest);
    }
    sum = sum_of_lanes(lane, sum);

    if index >= params.n_rows || lane > 0u {
        return;
    }
    var total = vec4<f32>(greatest, sum, 0.0, 0.0);
    if params.first > 0u {
        let former = totals[row];
        let most = max(former.x, greatest);
        total = vec4<f32>(most, former.y * exp(former.x - most) + sum * exp(greatest - most), former.z, 0.0);
    }
    let target_token = targets[row];
    if target_token >= params.first && target_token < params.first + params.width {
        total.z = logits[begin + target_token - params.first];
    }
    totals[row] = total;
}
