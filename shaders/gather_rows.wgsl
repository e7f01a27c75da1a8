// output[r, :] = input[row_indices[r], :]: the chosen rows, one after the other.
//
// params       one per dispatch
// input        [n_input_rows, width] f32
// row_indices  [n_rows] u32; one past the end counts as the last row
// output       [n_rows, width] f32
//
// One invocation per value.

struct Params {
    n_rows: u32,
    n_input_rows: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read> row_indices: array<u32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_rows * params.width {
        return;
    }
    let row = min(row_indices[index / params.width], params.n_input_rows - 1u);
    output[index] = input[row * params.width + index % params.width];
}
