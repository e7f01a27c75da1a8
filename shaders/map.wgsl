// target_values[i] = function(target_values[i]), in place, where function is x * number,
// number * tanh(x / number), or activated(x).
//
// params         one per dispatch
// target_values  [n_values] f32, read and written
//
// One invocation per value.

struct Params {
    n_values: u32,
    number: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> target_values: array<f32>;

override FUNCTION: u32 = 0u; // 0: scale, 1: softcap, 2: activation

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_values {
        return;
    }
    let x = target_values[index];
    if FUNCTION == 1u {
        // Beyond, tanh is 1 in f32, and some drivers make it NaN.
        target_values[index] = params.number * tanh(clamp(x / params.number, -15.0, 15.0));
    } else if FUNCTION == 2u {
        target_values[index] = activated(x);
    } else {
        target_values[index] = x * params.number;
    }
}
