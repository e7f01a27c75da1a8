// target_values[i] += input[i]: the residual sum, in place.
//
// params         one per dispatch
// input          [n_values] f32
// target_values  [n_values] f32, read and written
//
// One invocation per value.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read_write> target_values: array<f32>;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_values {
        return;
    }
    target_values[index] += input[index];
}
