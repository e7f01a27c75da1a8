// gradient[i] *= the slope of the function at input[i], in place, where the function is number * tanh(x / number) or an activation but clamped silu.
//
// params    one per dispatch
// input     [n_values] f32: what the function is of
// gradient  [n_values] f32, read and written
//
// One invocation per value.

struct Params {
    n_values: u32,
    number: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;

override FUNCTION: u32 = 1u; // 1: softcap, 2: activation

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_values {
        return;
    }
    if FUNCTION == 2u {
        gradient[index] *= slope_of(input[index]);
    } else {
        // Beyond, tanh is 1 in f32, and some drivers make it NaN.
        let t = tanh(clamp(input[index] / params.number, -15.0, 15.0));
        gradient[index] *= 1.0 - t * t;
    }
}
