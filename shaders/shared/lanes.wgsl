// Sums and maxima of the lanes of a workgroup. Appended to shaders that have LANES, a power of two, at most 64. Every lane must come here, and between
// two calls all lanes must have read what the first gave.

const LEAST: f32 = -3.4e38;

var<workgroup> partial: array<f32, 64>;

fn sum_of_lanes(lane: u32, own: f32) -> f32 {
    partial[lane] = own;
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier(); // the level above is written
        if lane < stride {
            partial[lane] += partial[lane + stride];
        }
    }
    workgroupBarrier(); // partial[0] is the whole sum
    return partial[0];
}

fn greatest_of_lanes(lane: u32, own: f32) -> f32 {
    partial[lane] = own;
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier(); // the level above is written
        if lane < stride {
            partial[lane] = max(partial[lane], partial[lane + stride]);
        }
    }
    workgroupBarrier(); // partial[0] is the greatest
    return partial[0];
}
