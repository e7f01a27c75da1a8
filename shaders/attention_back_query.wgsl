// The gradient of queries: of_query[t, h] += sum over the tokens p that t sees of share * (d - level) * slope * keys[p], with share as in
// attention_dense.wgsl, d the product of upward[t, h] with values[p], level that with the output, and slope that of scores.
//
// params            one per dispatch
// query             [n_tokens, n_heads, head_size] f32
// keys              [n_tokens, n_kv_heads, head_size] f32
// values            [n_tokens, n_kv_heads, head_size] f32
// runs              [n_tokens] of (first, end): the tokens of a token's sequence
// attention_output  [n_tokens, n_heads, head_size] f32
// upward            [n_tokens, n_heads, head_size] f32: the gradient of the output
// of_query          [n_tokens, n_heads, head_size] f32, added to
// totals            [n_tokens, n_heads] of (total, level), read, and written for attention_back_keys.wgsl
//
// One workgroup of 64 per token and head.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> keys: array<f32>;
@group(0) @binding(3) var<storage, read> values: array<f32>;
@group(0) @binding(4) var<storage, read> runs: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read> attention_output: array<f32>;
@group(0) @binding(6) var<storage, read> upward: array<f32>;
@group(0) @binding(7) var<storage, read_write> of_query: array<f32>;
@group(0) @binding(8) var<storage, read_write> totals: array<vec2<f32>>;

const LANES: u32 = 64u;

var<workgroup> weights: array<f32, LANES>; // of the keys that are looked at

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Folding may add workgroups past the last item: they repeat it, since none may skip the barriers.
    let index = workgroup.x + workgroup.y * n_workgroups.x;
    let item = min(index, params.n_tokens * params.n_heads - 1u);
    let token = item / params.n_heads;
    let head = item % params.n_heads;
    let kv_head = head / (params.n_heads / params.n_kv_heads);
    let seen = seen_by(token);
    let query_begin = query_place(token, head);
    let total = totals[item].x;

    var products = 0.0;
    for (var i = lane; i < params.head_size; i += LANES) {
        products = fma(upward[query_begin + i], attention_output[query_begin + i], products);
    }
    let level = sum_of_lanes(lane, products);

    var sums: array<f32, 16>; // as in attention_dense.wgsl
    for (var i = 0u; i < 16u; i++) {
        sums[i] = 0.0;
    }
    for (var begin = seen.x; begin < seen.y; begin += LANES) {
        var weight = 0.0;
        if begin + lane < seen.y {
            weight = weights_of(query_begin, key_place(begin + lane, kv_head), total, level).y;
        }
        weights[lane] = weight;
        workgroupBarrier(); // the weights are written
        let n = min(LANES, seen.y - begin);
        for (var j = 0u; j < n; j++) {
            let place = key_place(begin + j, kv_head);
            for (var i = 0u; i * LANES + lane < params.head_size; i++) {
                sums[i] = fma(weights[j], keys[place + i * LANES + lane], sums[i]);
            }
        }
        workgroupBarrier(); // the weights are used up
    }

    if index >= params.n_tokens * params.n_heads {
        return;
    }
    for (var i = 0u; i * LANES + lane < params.head_size; i++) {
        of_query[query_begin + i * LANES + lane] += sums[i];
    }
    if lane == 0u {
        totals[item] = vec2<f32>(total, level);
    }
}
