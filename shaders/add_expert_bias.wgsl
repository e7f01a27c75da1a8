// target_values[t, j, i] += bias[e, i], in place, where e is the j-th expert of token t.
//
// params         one per dispatch
// bias           [n_experts, width] f32
// routing        [n_tokens, 2, n_used] f32: numbers of experts, then their weights
// target_values  [n_tokens, n_used, width] f32, read and written
//
// One invocation per value.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> bias: array<f32>;
@group(0) @binding(2) var<storage, read> routing: array<f32>;
@group(0) @binding(3) var<storage, read_write> target_values: array<f32>;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_tokens * params.n_used * params.width {
        return;
    }
    let slot = index / params.width;
    let expert = u32(routing[slot / params.n_used * 2u * params.n_used + slot % params.n_used]);
    target_values[index] += bias[expert * params.width + index % params.width];
}
