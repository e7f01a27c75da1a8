// Attention of sequences that begin in this batch, over their own keys and values, as training has it: attention_output[t, h] = sum over the tokens p that
// t sees of share * values[p], with share = exp(score - total) and total the logarithm of the sum of exp(score).
//
// params            one per dispatch
// query             [n_tokens, n_heads, head_size] f32
// keys              [n_tokens, n_kv_heads, head_size] f32
// values            [n_tokens, n_kv_heads, head_size] f32
// runs              [n_tokens] of (first, end): the tokens of a token's sequence
// sinks             [n_heads] f32: with HAS_SINKS a score more of each head, of no value
// attention_output  [n_tokens, n_heads, head_size] f32
// totals            [n_tokens, n_heads] of (total, 0)
//
// One workgroup of 64 per token and head.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> keys: array<f32>;
@group(0) @binding(3) var<storage, read> values: array<f32>;
@group(0) @binding(4) var<storage, read> runs: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read> sinks: array<f32>;
@group(0) @binding(6) var<storage, read_write> attention_output: array<f32>;
@group(0) @binding(7) var<storage, read_write> totals: array<vec2<f32>>;

override HAS_SINKS: bool = false;

const LANES: u32 = 64u;

var<workgroup> shares: array<f32, LANES>; // of the tokens that are looked at

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

    var greatest = LEAST;
    var sum = 0.0;
    for (var p = seen.x + lane; p < seen.y; p += LANES) {
        let score = score_of(query_begin, key_place(p, kv_head));
        let now = max(greatest, score);
        sum = fma(sum, exp(greatest - now), exp(score - now));
        greatest = now;
    }
    var of_all = greatest_of_lanes(lane, greatest);
    workgroupBarrier(); // all lanes have read the greatest
    if HAS_SINKS {
        of_all = max(of_all, sinks[head]);
    }
    var whole = sum_of_lanes(lane, sum * exp(greatest - of_all));
    if HAS_SINKS {
        whole += exp(sinks[head] - of_all);
    }
    let total = of_all + log(whole);

    // Each lane has every 64th value of a head, at most 16.
    var sums: array<f32, 16>;
    for (var i = 0u; i < 16u; i++) {
        sums[i] = 0.0;
    }
    for (var begin = seen.x; begin < seen.y; begin += LANES) {
        var share = 0.0;
        if begin + lane < seen.y {
            share = exp(score_of(query_begin, key_place(begin + lane, kv_head)) - total);
        }
        shares[lane] = share;
        workgroupBarrier(); // the shares are written
        let n = min(LANES, seen.y - begin);
        for (var j = 0u; j < n; j++) {
            let place = key_place(begin + j, kv_head);
            for (var i = 0u; i * LANES + lane < params.head_size; i++) {
                sums[i] = fma(shares[j], values[place + i * LANES + lane], sums[i]);
            }
        }
        workgroupBarrier(); // the shares are used up
    }

    if index >= params.n_tokens * params.n_heads {
        return;
    }
    for (var i = 0u; i * LANES + lane < params.head_size; i++) {
        attention_output[query_begin + i * LANES + lane] = sums[i];
    }
    if lane == 0u {
        totals[item] = vec2<f32>(total, 0.0);
    }
}
