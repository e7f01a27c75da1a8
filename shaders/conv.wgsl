// output[t, c] = bias[c] + sum over k < n_taps of weight[c, n_taps - 1 - k] * (the input k positions before token t in its sequence)[c]
//
// params  one per dispatch
// tokens  [n_tokens] of (sequence, position, -, -); those of a sequence in the order of their positions
// input   [n_tokens, width] f32
// weight  [width, n_taps] f32
// bias    [width] f32, read where HAS_BIAS
// state   [n_seqs, n_taps, width] f32: the latest inputs, that of position p in row p % n_taps; read and written
// output  [n_tokens, width] f32
//
// One invocation per sequence and channel, which takes the tokens one after the other.

struct Params {
    n_tokens: u32,
    width: u32,
    n_taps: u32,
    n_seqs: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> input: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> state: array<f32>;
@group(0) @binding(6) var<storage, read_write> output: array<f32>;

override HAS_BIAS: u32 = 0u;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_seqs * params.width {
        return;
    }
    let seq = index / params.width;
    let channel = index % params.width;
    let first_row = seq * params.n_taps;
    for (var t = 0u; t < params.n_tokens; t++) {
        let token = tokens[t];
        if token.x != seq {
            continue;
        }
        state[(first_row + token.y % params.n_taps) * params.width + channel] = input[t * params.width + channel];
        var sum = 0.0;
        if HAS_BIAS == 1u {
            sum = bias[channel];
        }
        // Before the first position there is nothing.
        let n_inputs = min(params.n_taps, token.y + 1u);
        for (var k = 0u; k < n_inputs; k++) {
            let row = first_row + (token.y - k) % params.n_taps;
            sum = fma(weight[(channel + 1u) * params.n_taps - 1u - k], state[row * params.width + channel], sum);
        }
        output[t * params.width + channel] = sum;
    }
}
