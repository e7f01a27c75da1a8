// output[t, j, i] = routing[t, 1, j] * input[t, i]: what a token's experts read, by their weights.
//
// params   one per dispatch
// input    [n_tokens, width] f32
// routing  [n_tokens, 2, n_used] f32: numbers of experts, then their weights
// output   [n_tokens, n_used, width] f32
//
// One invocation per value.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read> routing: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_tokens * params.n_used * params.width {
        return;
    }
    let choice = index / params.width; // an expert of a token
    let token = choice / params.n_used;
    let weight = routing[(token * 2u + 1u) * params.n_used + choice % params.n_used];
    output[index] = weight * input[token * params.width + index % params.width];
}
