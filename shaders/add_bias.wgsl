// target_values[t, i] += bias[i], in place.
//
// params         one per dispatch
// bias           [width] f32
// target_values  [n_tokens, width] f32, read and written
//
// One invocation per value.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> bias: array<f32>;
@group(0) @binding(2) var<storage, read_write> target_values: array<f32>;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_tokens * params.width {
        return;
    }
    target_values[index] += bias[index % params.width];
}
