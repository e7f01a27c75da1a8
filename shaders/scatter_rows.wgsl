// into[row_indices[r], i] += input[r, i]: the gradient of gathered rows. No index may stand twice; those past the end are left out.
//
// params       one per dispatch
// input        [n_rows, width] f32
// row_indices  [n_rows] u32
// into         [n_output_rows, width] f32, added to
//
// One invocation per value.

struct Params {
    n_rows: u32,
    n_output_rows: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read> row_indices: array<u32>;
@group(0) @binding(3) var<storage, read_write> into: array<f32>;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_rows * params.width {
        return;
    }
    let row = row_indices[index / params.width];
    if row < params.n_output_rows {
        into[row * params.width + index % params.width] += input[index];
    }
}
