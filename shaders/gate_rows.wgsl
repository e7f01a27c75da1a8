// target_values[t, i] *= 1 / (1 + exp(-gate[t])), in place.
//
// params         one per dispatch
// gate           [n_tokens] f32
// target_values  [n_tokens, width] f32, read and written
//
// One invocation per value.

struct Params {
    n_tokens: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read_write> target_values: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (workgroup.x + workgroup.y * n_workgroups.x) * 64u + local;
    if index >= params.n_tokens * params.width {
        return;
    }
    target_values[index] /= 1.0 + exp(-gate[index / params.width]);
}
