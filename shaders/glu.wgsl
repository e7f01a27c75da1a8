// output[i] = activation(gate[i]) * up[i], where activation is silu(x) = x / (1 + exp(-x)), or gelu(x) =
// x / 2 * (1 + tanh(u)) = x / (1 + exp(-2 u)) with u = sqrt(2 / pi) * (x + 0.044715 x^3).
//
// params  one per dispatch
// gate    [n_values] f32
// up      [n_values] f32
// output  [n_values] f32
//
// One invocation per value.

struct Params {
    n_values: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read> up: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

override ACTIVATION: u32 = 0u; // 0: silu, 1: gelu

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (workgroup.x + workgroup.y * n_workgroups.x) * 64u + local;
    if index >= params.n_values {
        return;
    }
    let x = gate[index];
    if ACTIVATION == 1u {
        let twice_u = 1.595769122 * fma(0.044715 * x, x * x, x);
        output[index] = x / (1.0 + exp(-twice_u)) * up[index];
    } else {
        output[index] = x / (1.0 + exp(-x)) * up[index];
    }
}
