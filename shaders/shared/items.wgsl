
// What kernels with one invocation per item have in common; workgroups of 64, folded into x and y.

struct Invocation {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
}

// The item of an invocation, which is past the last one for those too many.
fn item_of(invocation: Invocation) -> u32 {
    return (invocation.workgroup.x + invocation.workgroup.y * invocation.n_workgroups.x) * 64u + invocation.local;
}
