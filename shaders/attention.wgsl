// Causal attention: mixed[t, h, :] = sum over p of softmax_p(scale * query[t, h, :] . key[p, :]) * value[p, :],
// where p runs over the positions of the token's sequence up to its own, and no further back than the window.
//
// params       one per dispatch
// query        [n_tokens, n_heads, head_size] f32
// tokens       [n_tokens] of (seq, position, kv_len, 0)
// key_cache    [n_seqs, n_kv_heads, kv_capacity, head_size] f32, or f16 two to a word (KV_F16)
// value_cache  as key_cache
// mixed        [n_tokens, n_heads, head_size] f32
//
// One workgroup per token and query head. Positions are taken LANES at a time with a running maximum and sum (online softmax),
// so that no row of scores is ever held.

struct Params {
    n_tokens: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_size: u32,
    n_seqs: u32,
    kv_capacity: u32,
    window: u32, // positions that a token sees, its own included; 0: all
    scale: f32,
    kv_dtype: u32, // chosen at pipeline creation, as KV_F16
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> tokens: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> key_cache: array<u32>;
@group(0) @binding(4) var<storage, read> value_cache: array<u32>;
@group(0) @binding(5) var<storage, read_write> mixed: array<f32>;

override KV_F16: bool = false;
override LANES: u32 = 64u; // at most 64

const LOWEST: f32 = -3.4e38;

var<workgroup> scaled_query: array<f32, 256>; // [head_size]
var<workgroup> sums: array<f32, 256>;         // [head_size], each element used by one lane only
var<workgroup> scores: array<f32, 64>;        // [LANES]
var<workgroup> shares: array<f32, 64>;        // [LANES], exp(score - maximum)

fn score(row: u32) -> f32 {
    var sum = 0.0;
    if KV_F16 {
        for (var i = 0u; i < params.head_size / 2u; i++) {
            let pair = unpack2x16float(key_cache[row * (params.head_size / 2u) + i]);
            sum = fma(pair.y, scaled_query[i * 2u + 1u], fma(pair.x, scaled_query[i * 2u], sum));
        }
    } else {
        for (var i = 0u; i < params.head_size; i++) {
            sum = fma(bitcast<f32>(key_cache[row * params.head_size + i]), scaled_query[i], sum);
        }
    }
    return sum;
}

// Adds the shares of `count` rows from `row` on to the sums, which are first scaled to the new maximum.
fn add_values(lane: u32, row: u32, count: u32, rescale: f32) {
    if KV_F16 {
        let head_words = params.head_size / 2u;
        for (var i = lane; i < head_words; i += LANES) {
            var sum = rescale * vec2<f32>(sums[i * 2u], sums[i * 2u + 1u]);
            for (var j = 0u; j < count; j++) {
                sum = fma(vec2<f32>(shares[j]), unpack2x16float(value_cache[(row + j) * head_words + i]), sum);
            }
            sums[i * 2u] = sum.x;
            sums[i * 2u + 1u] = sum.y;
        }
    } else {
        for (var i = lane; i < params.head_size; i += LANES) {
            var sum = rescale * sums[i];
            for (var j = 0u; j < count; j++) {
                sum = fma(shares[j], bitcast<f32>(value_cache[(row + j) * params.head_size + i]), sum);
            }
            sums[i] = sum;
        }
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Folding may add workgroups past the last head: they repeat it, since none may skip the barriers.
    let index = min(workgroup.x + workgroup.y * n_workgroups.x, params.n_tokens * params.n_heads - 1u);
    let token = tokens[index / params.n_heads];
    let kv_head = index % params.n_heads / (params.n_heads / params.n_kv_heads);
    let seq = min(token.x, params.n_seqs - 1u);
    let end = min(min(token.y + 1u, token.z), params.kv_capacity);
    var begin = 0u;
    if params.window > 0u && token.y + 1u > params.window {
        begin = token.y + 1u - params.window;
    }
    let cache_row = (seq * params.n_kv_heads + kv_head) * params.kv_capacity;

    // A lane clears the very sums that `add_values` gives it.
    let per_word = select(1u, 2u, KV_F16);
    for (var i = lane; i < params.head_size / per_word; i += LANES) {
        for (var j = i * per_word; j < i * per_word + per_word; j++) {
            scaled_query[j] = params.scale * query[index * params.head_size + j];
            sums[j] = 0.0;
        }
    }
    workgroupBarrier(); // the query is loaded

    var maximum = LOWEST;
    var total = 0.0;
    for (var block = begin; block < end; block += LANES) {
        let count = min(end - block, LANES);
        if lane < count {
            scores[lane] = score(cache_row + block + lane);
        }
        workgroupBarrier(); // the scores are written; the shares of the block before are used up
        var new_maximum = maximum;
        for (var j = 0u; j < count; j++) {
            new_maximum = max(new_maximum, scores[j]);
        }
        if lane < count {
            shares[lane] = exp(scores[lane] - new_maximum);
        }
        workgroupBarrier(); // the shares are written; the scores are used up
        let rescale = exp(maximum - new_maximum);
        total *= rescale;
        for (var j = 0u; j < count; j++) {
            total += shares[j];
        }
        add_values(lane, cache_row + block, count, rescale);
        maximum = new_maximum;
    }

    // A token that sees nothing mixes nothing.
    let norm = select(0.0, 1.0 / total, begin < end);
    for (var i = lane; i < params.head_size / per_word; i += LANES) {
        for (var j = i * per_word; j < i * per_word + per_word; j++) {
            mixed[index * params.head_size + j] = sums[j] * norm;
        }
    }
}
