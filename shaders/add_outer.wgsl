// into[i, j] += sum over t of left[t, i] * right[t, j]: the gradient of a matrix from what it reads and the gradient of what it gives.
//
// params  one per dispatch
// left    [n_tokens, n_rows] f32
// right   [n_tokens, n_columns] f32
// into    [n_rows, n_columns] f32, added to
//
// One invocation per four rows of a column. Tokens are added in their order.

struct Params {
    n_tokens: u32,
    n_rows: u32,
    n_columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> left: array<f32>;
@group(0) @binding(2) var<storage, read> right: array<f32>;
@group(0) @binding(3) var<storage, read_write> into: array<f32>;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    let column = index % params.n_columns;
    let first = index / params.n_columns * 4u;
    if first >= params.n_rows {
        return;
    }
    var sums = vec4<f32>(0.0);
    let last = params.n_rows - 1u;
    for (var t = 0u; t < params.n_tokens; t++) {
        let begin = t * params.n_rows;
        let values = vec4<f32>(
            left[begin + first],
            left[begin + min(first + 1u, last)],
            left[begin + min(first + 2u, last)],
            left[begin + min(first + 3u, last)],
        );
        sums = fma(values, vec4<f32>(right[t * params.n_columns + column]), sums);
    }
    for (var i = 0u; i < 4u; i++) {
        if first + i < params.n_rows {
            into[(first + i) * params.n_columns + column] += sums[i];
        }
    }
}
