// output[h, output_begin + i] = input[h, input_begin + i], for len values of each head; what lies beside them stays as it is.
//
// params  one per dispatch
// input   [n_heads, input_size] f32
// output  [n_heads, output_size] f32
//
// One invocation per value that is copied.

struct Params {
    n_heads: u32, // of all tokens
    len: u32,
    input_size: u32,
    input_begin: u32,
    output_size: u32,
    output_begin: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_heads * params.len {
        return;
    }
    let head = index / params.len;
    let i = index % params.len;
    output[head * params.output_size + params.output_begin + i] = input[head * params.input_size + params.input_begin + i];
}
