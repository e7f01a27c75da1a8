// attention_output[t, h, :] = sum over parts of exp(maximum_part - maximum) * sum_part / sum over parts of exp(maximum_part - maximum) * total_part:
// what the parts that attention_token.wgsl and its like write come to.
//
// params    those of the parts' dispatch
// tokens    [n_tokens] of (seq, position, kv_len, rows to the table)
// parts     [n_tokens, n_heads, n_parts, head_size + 4] f32: sum, maximum, total, 0, 0; only those with positions that the token sees are read
// sinks     [n_heads] f32, as there (HAS_SINKS); else anything
// attention_output [n_tokens, n_heads, head_size] f32
//
// One invocation per four values of a head.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> sinks: array<f32>;
@group(0) @binding(4) var<storage, read_write> attention_output: array<vec4<f32>>;

override HAS_SINKS: bool = false;
override PART_POSITIONS: u32 = 256u;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n_quads = params.head_size / 4u;
    let index = (workgroup.x + workgroup.y * n_workgroups.x) * 64u + lane;
    if index >= params.n_tokens * params.n_heads * n_quads {
        return;
    }
    let head = index / n_quads; // counts the heads of all tokens
    let sight = sight_of(head / params.n_heads);
    let n_parts = (params.kv_capacity + PART_POSITIONS - 1u) / PART_POSITIONS;
    let end_part = select(0u, (sight.end + PART_POSITIONS - 1u) / PART_POSITIONS, sight.begin < sight.end);
    var maximum = LOWEST;
    var total = 0.0;
    var sum = vec4<f32>(0.0);
    for (var part = sight.begin / PART_POSITIONS; part < end_part; part++) {
        let first_quad = (head * n_parts + part) * (n_quads + 1u);
        let facts = parts[first_quad + n_quads];
        let new_maximum = max(maximum, facts.x);
        let rescale = exp(maximum - new_maximum);
        let share = exp(facts.x - new_maximum);
        maximum = new_maximum;
        total = fma(total, rescale, share * facts.y);
        sum = fma(vec4<f32>(share), parts[first_quad + index % n_quads], rescale * sum);
    }
    // A token that sees nothing mixes nothing.
    attention_output[index] = sum * select(norm_of(head % params.n_heads, total, maximum), 0.0, sight.begin >= sight.end);
}
