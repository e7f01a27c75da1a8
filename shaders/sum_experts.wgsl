// output[t, i] = sum over j of routing[t, 1, j] * input[t, j, i]: what a token's experts give, by their weights;
// without IS_WEIGHTED their plain sum.
//
// params   one per dispatch
// input    [n_tokens, n_used, width] f32
// routing  [n_tokens, 2, n_used] f32: numbers of experts, then their weights; without IS_WEIGHTED anything
// output   [n_tokens, width] f32
//
// One invocation per value.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read> routing: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

override IS_WEIGHTED: bool = true;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_tokens * params.width {
        return;
    }
    let token = index / params.width;
    let column = index % params.width;
    var sum = 0.0;
    for (var j = 0u; j < params.n_used; j++) {
        var weight = 1.0;
        if IS_WEIGHTED {
            weight = routing[(token * 2u + 1u) * params.n_used + j];
        }
        sum = fma(weight, input[(token * params.n_used + j) * params.width + column], sum);
    }
    output[index] = sum;
}
