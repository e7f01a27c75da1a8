// Rotary embedding, in place: each pair (a, b) of a head becomes (a * cos - b * sin, b * cos + a * sin).
//
// params   one per dispatch
// cos_sin  [n_tokens, head_size / 2, 2] f32, made on the host for each token's position
// values   [n_tokens, n_heads, head_size] f32, read and written
//
// One invocation per pair.

struct Params {
    n_tokens: u32,
    n_heads: u32,
    head_size: u32,
    pairing: u32, // 0: i with i + head_size / 2; 1: 2 i with 2 i + 1
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cos_sin: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> values: array<f32>;

const HALVES: u32 = 0u;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let n_pairs = params.head_size / 2u;
    let index = (workgroup.x + workgroup.y * n_workgroups.x) * 64u + local;
    if index >= params.n_tokens * params.n_heads * n_pairs {
        return;
    }
    let pair = index % n_pairs;
    let head = index / n_pairs; // of all tokens
    let token = head / params.n_heads;
    var first = head * params.head_size + pair * 2u;
    var second = first + 1u;
    if params.pairing == HALVES {
        first = head * params.head_size + pair;
        second = first + n_pairs;
    }
    let turn = cos_sin[token * n_pairs + pair];
    let a = values[first];
    let b = values[second];
    values[first] = a * turn.x - b * turn.y;
    values[second] = b * turn.x + a * turn.y;
}
