// target_values[t, i] *= 1 / (1 + exp(-gate[t])), in place.
//
// params         one per dispatch
// gate           [n_tokens] f32
// target_values  [n_tokens, width] f32, read and written
//
// One invocation per value.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read_write> target_values: array<f32>;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_tokens * params.width {
        return;
    }
    target_values[index] /= 1.0 + exp(-gate[index / params.width]);
}
