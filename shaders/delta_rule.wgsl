// The gated delta rule. With q, k (over their lengths) and v of a token's head, its state S [key_size, value_size] becomes
// S' = f S + k (b (v - k f S)), and output = q S' / sqrt(key_size), where f = exp(-rate * softplus(alpha + bias)) and b = sigmoid(beta).
// Before the first position of a sequence S is zero.
//
// params  one per dispatch
// tokens  [n_tokens] of (sequence, position, -, -); those of a sequence in the order of their positions
// input   [n_tokens, 2 n_key_heads key_size + n_value_heads value_size] f32: queries, keys, values
// alpha   [n_tokens, n_value_heads] f32
// beta    [n_tokens, n_value_heads] f32
// decay   [n_value_heads] f32: -rate, or where IS_LOG the logarithm of the rate
// bias    [n_value_heads] f32
// state   [n_seqs, n_value_heads, key_size, value_size] f32, read and written
// output  [n_tokens, n_value_heads, value_size] f32
//
// One invocation per sequence and value of a head, which has one column of the state and takes the tokens one after the other.

struct Params {
    n_tokens: u32,
    n_seqs: u32,
    n_key_heads: u32,
    n_value_heads: u32, // a multiple of n_key_heads
    key_size: u32,
    value_size: u32,
    is_tiled: u32, // 1: value head h has key head h % n_key_heads; 0: consecutive value heads share one
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> input: array<f32>;
@group(0) @binding(3) var<storage, read> alpha: array<f32>;
@group(0) @binding(4) var<storage, read> beta: array<f32>;
@group(0) @binding(5) var<storage, read> decay: array<f32>;
@group(0) @binding(6) var<storage, read> bias: array<f32>;
@group(0) @binding(7) var<storage, read_write> state: array<f32>;
@group(0) @binding(8) var<storage, read_write> output: array<f32>;

override IS_LOG: u32 = 0u;

// Added to the square of a length.
const EPSILON: f32 = 1e-6;

fn softplus(x: f32) -> f32 {
    return select(log(1.0 + exp(min(x, 20.0))), x, x > 20.0);
}

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    let n_values = params.n_value_heads * params.value_size;
    if index >= params.n_seqs * n_values {
        return;
    }
    let seq = index / n_values;
    let value = index % n_values;
    let head = value / params.value_size;
    let key_head = select(head / (params.n_value_heads / params.n_key_heads), head % params.n_key_heads, params.is_tiled == 1u);
    let n_keys = params.n_key_heads * params.key_size;
    let column = (seq * params.n_value_heads + head) * params.key_size * params.value_size + value % params.value_size;
    var rate = decay[head];
    if IS_LOG == 1u {
        rate = -exp(rate);
    }
    for (var t = 0u; t < params.n_tokens; t++) {
        let token = tokens[t];
        if token.x != seq {
            continue;
        }
        let row = t * (2u * n_keys + n_values);
        let query = row + key_head * params.key_size;
        let key = query + n_keys;
        let gate = t * params.n_value_heads + head;
        let kept = exp(rate * softplus(alpha[gate] + bias[head]));
        let is_first = token.y == 0u;
        var known = 0.0;
        var key_square = 0.0;
        for (var i = 0u; i < params.key_size; i++) {
            let k = input[key + i];
            key_square = fma(k, k, key_square);
            var old = 0.0;
            if !is_first {
                old = kept * state[column + i * params.value_size];
            }
            known = fma(k, old, known);
        }
        let key_scale = 1.0 / sqrt(key_square + EPSILON);
        let share = 1.0 / (1.0 + exp(-beta[gate]));
        let change = key_scale * share * (input[row + 2u * n_keys + value] - key_scale * known);
        var sum = 0.0;
        var query_square = 0.0;
        for (var i = 0u; i < params.key_size; i++) {
            let q = input[query + i];
            query_square = fma(q, q, query_square);
            var old = 0.0;
            if !is_first {
                old = kept * state[column + i * params.value_size];
            }
            let now = fma(input[key + i], change, old);
            state[column + i * params.value_size] = now;
            sum = fma(q, now, sum);
        }
        output[t * n_values + value] = sum / sqrt((query_square + EPSILON) * f32(params.key_size));
    }
}
