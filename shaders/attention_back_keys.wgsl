// The gradients of keys and values: of_values[p, k] += sum of share * upward[t, h] and of_keys[p, k] += sum of share * (d - level) * slope * query[t, h], over
// the tokens t that see p and the heads h that read key head k, with the names of attention_back_query.wgsl.
//
// params     one per dispatch
// query      [n_tokens, n_heads, head_size] f32
// keys       [n_tokens, n_kv_heads, head_size] f32
// values     [n_tokens, n_kv_heads, head_size] f32
// runs       [n_tokens] of (first, end): the tokens of a token's sequence
// totals     [n_tokens, n_heads] of (total, level)
// upward     [n_tokens, n_heads, head_size] f32: the gradient of the output
// of_keys    [n_tokens, n_kv_heads, head_size] f32, added to
// of_values  [n_tokens, n_kv_heads, head_size] f32, added to
//
// One workgroup of 64 per token and key head.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> keys: array<f32>;
@group(0) @binding(3) var<storage, read> values: array<f32>;
@group(0) @binding(4) var<storage, read> runs: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read> totals: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> upward: array<f32>;
@group(0) @binding(7) var<storage, read_write> of_keys: array<f32>;
@group(0) @binding(8) var<storage, read_write> of_values: array<f32>;

const LANES: u32 = 64u;

var<workgroup> weights: array<vec2<f32>, LANES>; // share, and share * (d - level) * slope, of the queries that are looked at

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Folding may add workgroups past the last item: they repeat it, since none may skip the barriers.
    let index = workgroup.x + workgroup.y * n_workgroups.x;
    let item = min(index, params.n_tokens * params.n_kv_heads - 1u);
    let token = item / params.n_kv_heads;
    let kv_head = item % params.n_kv_heads;
    let key_begin = key_place(token, kv_head);
    let n_in_group = params.n_heads / params.n_kv_heads;
    let run = runs[token];
    let first = select(run.x, token, params.is_causal != 0u);

    // As in attention_dense.wgsl.
    var sums_of_keys: array<f32, 16>;
    var sums_of_values: array<f32, 16>;
    for (var i = 0u; i < 16u; i++) {
        sums_of_keys[i] = 0.0;
        sums_of_values[i] = 0.0;
    }
    for (var head = kv_head * n_in_group; head < (kv_head + 1u) * n_in_group; head++) {
        for (var begin = first; begin < run.y; begin += LANES) {
            var weight = vec2<f32>(0.0);
            if begin + lane < run.y {
                let seen = seen_by(begin + lane);
                if token >= seen.x && token < seen.y {
                    let of_query = totals[(begin + lane) * params.n_heads + head];
                    weight = weights_of(query_place(begin + lane, head), key_begin, of_query.x, of_query.y);
                }
            }
            weights[lane] = weight;
            workgroupBarrier(); // the weights are written
            let n = min(LANES, run.y - begin);
            for (var j = 0u; j < n; j++) {
                let place = query_place(begin + j, head);
                for (var i = 0u; i * LANES + lane < params.head_size; i++) {
                    let at = i * LANES + lane;
                    sums_of_values[i] = fma(weights[j].x, upward[place + at], sums_of_values[i]);
                    sums_of_keys[i] = fma(weights[j].y, query[place + at], sums_of_keys[i]);
                }
            }
            workgroupBarrier(); // the weights are used up
        }
    }

    if index >= params.n_tokens * params.n_kv_heads {
        return;
    }
    for (var i = 0u; i * LANES + lane < params.head_size; i++) {
        of_keys[key_begin + i * LANES + lane] += sums_of_keys[i];
        of_values[key_begin + i * LANES + lane] += sums_of_values[i];
    }
}
