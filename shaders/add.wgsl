// target_values[i] += input[i]: the residual sum, in place.
//
// params         one per dispatch
// input          [n_values] f32
// target_values  [n_values] f32, read and written
//
// One invocation per value.

struct Params {
    n_values: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read_write> target_values: array<f32>;

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
    target_values[index] += input[index];
}
