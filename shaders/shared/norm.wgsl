
// What the norms of rows have in common.

struct Params {
    n_rows: u32,
    hidden_size: u32,
    epsilon: f32,
    weight_offset: f32,
}

var<workgroup> partial: array<f32, 64>;

// The sum of what all lanes have; every lane must come here. Between two sums all lanes must have read the first.
fn sum_of_lanes(lane: u32, own: f32) -> f32 {
    partial[lane] = own;
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier(); // the partial sums of the level above are written
        if lane < stride {
            partial[lane] += partial[lane + stride];
        }
    }
    workgroupBarrier(); // partial[0] is the whole sum
    return partial[0];
}
