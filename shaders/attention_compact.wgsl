// attention_output[t, h, i] = padded[t, h, i] for i below HEAD_SIZE: what attention made of padded heads, side by side.
//
// params    those of the attention
// padded    [n_tokens, n_heads, head_size] f32
// attention_output [n_tokens, n_heads, HEAD_SIZE] f32
//
// One invocation per value of attention_output.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> padded: array<f32>;
@group(0) @binding(2) var<storage, read_write> attention_output: array<f32>;

override HEAD_SIZE: u32 = 2u; // at most head_size

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_tokens * params.n_heads * HEAD_SIZE {
        return;
    }
    attention_output[index] = padded[index / HEAD_SIZE * params.head_size + index % HEAD_SIZE];
}
