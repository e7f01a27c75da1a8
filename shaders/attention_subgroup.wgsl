// Causal attention of few tokens, as in attention_token.wgsl, on adapters whose subgroups are eight lanes and that load 64-bit words:
// software, whose every load is a loop over the lanes.
//
// params       one per dispatch
// query        [n_tokens, n_heads, head_size] f32, read 16 bytes at a time
// tokens       [n_tokens] of (seq, position, kv_len, rows to the table), and the tables of their sequences
// key_cache    [n_blocks, n_kv_heads, KV_BLOCK, head_size] as KEY_DTYPE says, read 16 bytes at a time
// value_cache  as key_cache, as VALUE_DTYPE says
// sinks        [n_heads] f32: scores of nothing, which take a share and have no value (HAS_SINKS); else anything
// attention_output     as in attention_token.wgsl, with IS_SPLIT in parts
//
// One workgroup per token, HEADS query heads that share a key head, and part. Of a block of eight positions each lane scores one, for
// which the subgroup has passed the queries round before; then each lane takes an eighth of the values of all eight, and the
// positions' shares are passed round. Parts that hold nothing to see are left as they are: attention_combine.wgsl reads none of them.
//
// Arrays of a lane are indexed by constants only, once loops are unrolled: anything else costs this adapter dearly. Hence the
// calls that stand written out.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> query: array<vec2<u64>>;
@group(0) @binding(2) var<storage, read> tokens: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> key_cache: array<vec2<u64>>;
@group(0) @binding(4) var<storage, read> value_cache: array<vec2<u64>>;
@group(0) @binding(5) var<storage, read> sinks: array<f32>;
@group(0) @binding(6) var<storage, read_write> attention_output: array<vec4<f32>>;

override KEY_DTYPE: u32 = 0u;   // as key_dtype of the params
override VALUE_DTYPE: u32 = 0u; // as value_dtype
override HAS_SOFTCAP: bool = false;
override HAS_SINKS: bool = false;
override HEADS: u32 = 1u;  // query heads of a workgroup, at most 4; divides n_heads / n_kv_heads
override OCTETS: u32 = 8u; // head_size / 8; HEADS * OCTETS is at most 64
override IS_SPLIT: bool = false;
override PART_POSITIONS: u32 = 256u; // with IS_SPLIT

const LANES: u32 = 8u;

var<private> scaled_query: array<vec4<f32>, 128>; // [HEADS, OCTETS, 2], the same in all lanes
var<private> scores: vec4<f32>;                   // [HEADS] of this lane's position
var<private> sums: array<vec4<f32>, 16>;          // [HEADS, rounds, 2] of this lane's octets

// Of the queries of HEADS heads, which lie side by side, each lane loads an eighth, which then all lanes get.
fn load_queries(first_quad: u32, lane: u32) {
    let n_quads = HEADS * OCTETS * 2u;
    for (var quad = 0u; quad < 128u; quad += LANES) {
        if quad < n_quads {
            let loaded = params.scale * floats(query[first_quad + min(quad + lane, n_quads - 1u)]);
            scaled_query[quad] = subgroupBroadcast(loaded, 0u);
            scaled_query[quad + 1u] = subgroupBroadcast(loaded, 1u);
            scaled_query[quad + 2u] = subgroupBroadcast(loaded, 2u);
            scaled_query[quad + 3u] = subgroupBroadcast(loaded, 3u);
            scaled_query[quad + 4u] = subgroupBroadcast(loaded, 4u);
            scaled_query[quad + 5u] = subgroupBroadcast(loaded, 5u);
            scaled_query[quad + 6u] = subgroupBroadcast(loaded, 6u);
            scaled_query[quad + 7u] = subgroupBroadcast(loaded, 7u);
        }
    }
}

// Adds to the scores what four octets of a row bring, from `first` on.
fn score_octets(row: u32, first: u32) {
    for (var octet = first; octet < first + 4u; octet++) {
        if octet < OCTETS {
            let keys = key_octet(row * OCTETS + octet);
            for (var h = 0u; h < HEADS; h++) {
                let place = (h * OCTETS + octet) * 2u;
                scores[h] = add_products(keys.high, scaled_query[place + 1u], add_products(keys.low, scaled_query[place], scores[h]));
            }
        }
    }
}

// Adds the values of one cached row in these shares to the sums.
fn add_row(row: u32, lane: u32, shares: vec4<f32>) {
    for (var round = 0u; round < rounds(); round++) {
        let values = value_octet(row * OCTETS + min(round * LANES + lane, OCTETS - 1u));
        for (var h = 0u; h < HEADS; h++) {
            let place = (h * rounds() + round) * 2u;
            sums[place] = fma(vec4<f32>(shares[h]), values.low, sums[place]);
            sums[place + 1u] = fma(vec4<f32>(shares[h]), values.high, sums[place + 1u]);
        }
    }
}

// Writes the heads: `first_quad` is that of the first, `stride` leads to the next.
fn store(first_quad: u32, stride: u32, lane: u32, norms: vec4<f32>) {
    for (var round = 0u; round < rounds(); round++) {
        let octet = round * LANES + lane;
        if octet < OCTETS {
            for (var h = 0u; h < HEADS; h++) {
                let place = (h * rounds() + round) * 2u;
                attention_output[first_quad + h * stride + octet * 2u] = norms[h] * sums[place];
                attention_output[first_quad + h * stride + octet * 2u + 1u] = norms[h] * sums[place + 1u];
            }
        }
    }
}

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let n_groups = params.n_heads / HEADS;
    let n_parts = select(1u, (params.kv_capacity + PART_POSITIONS - 1u) / PART_POSITIONS, IS_SPLIT);
    // Folding may add workgroups past the last part: they repeat it.
    let flat = min(workgroup.x + workgroup.y * n_workgroups.x, params.n_tokens * n_groups * n_parts - 1u);
    let index = flat / n_parts;
    let part = flat % n_parts;
    let sight = sight_of(index / n_groups);
    let kv_head = index % n_groups * HEADS / (params.n_heads / params.n_kv_heads);
    var begin = sight.begin;
    var end = sight.end;
    if IS_SPLIT {
        begin = max(begin, part * PART_POSITIONS);
        end = min(end, (part + 1u) * PART_POSITIONS);
        if begin >= end {
            return;
        }
    }
    let table = table_of(index / n_groups);

    load_queries(index * HEADS * OCTETS * 2u, lane); // index * HEADS counts the heads of all tokens
    var maxima = vec4<f32>(LOWEST);
    var totals = vec4<f32>(0.0);
    for (var position = begin; position < end; position += LANES) {
        let own_row = row_at(table, kv_head, min(position + lane, end - 1u));
        scores = vec4<f32>(0.0);
        score_octets(own_row, 0u);
        score_octets(own_row, 4u);
        score_octets(own_row, 8u);
        score_octets(own_row, 12u);
        score_octets(own_row, 16u);
        score_octets(own_row, 20u);
        score_octets(own_row, 24u);
        score_octets(own_row, 28u);
        if HAS_SOFTCAP {
            scores = capped_quad(scores);
        }
        var shares = vec4<f32>(0.0);
        for (var h = 0u; h < HEADS; h++) {
            let maximum = max(maxima[h], subgroupMax(scores[h]));
            let rescale = exp(maxima[h] - maximum);
            maxima[h] = maximum;
            shares[h] = select(0.0, exp(scores[h] - maximum), position + lane < end);
            totals[h] = fma(totals[h], rescale, shares[h]);
            for (var i = 0u; i < rounds() * 2u; i++) {
                sums[h * rounds() * 2u + i] *= rescale;
            }
        }
        add_row(subgroupBroadcast(own_row, 0u), lane, subgroupBroadcast(shares, 0u));
        add_row(subgroupBroadcast(own_row, 1u), lane, subgroupBroadcast(shares, 1u));
        add_row(subgroupBroadcast(own_row, 2u), lane, subgroupBroadcast(shares, 2u));
        add_row(subgroupBroadcast(own_row, 3u), lane, subgroupBroadcast(shares, 3u));
        add_row(subgroupBroadcast(own_row, 4u), lane, subgroupBroadcast(shares, 4u));
        add_row(subgroupBroadcast(own_row, 5u), lane, subgroupBroadcast(shares, 5u));
        add_row(subgroupBroadcast(own_row, 6u), lane, subgroupBroadcast(shares, 6u));
        add_row(subgroupBroadcast(own_row, 7u), lane, subgroupBroadcast(shares, 7u));
    }
    let all_totals = subgroupAdd(totals);
    if !IS_SPLIT {
        // A token that sees nothing mixes nothing.
        let norms = select(norms_of(index % n_groups * HEADS, all_totals, maxima), vec4<f32>(0.0), begin >= end);
        store(index * HEADS * OCTETS * 2u, OCTETS * 2u, lane, norms);
        return;
    }
    let stride = n_parts * (OCTETS * 2u + 1u);
    let first_quad = index * HEADS * stride + part * (OCTETS * 2u + 1u);
    store(first_quad, stride, lane, vec4<f32>(1.0));
    if lane == 0u {
        for (var h = 0u; h < HEADS; h++) {
            attention_output[first_quad + h * stride + OCTETS * 2u] = vec4<f32>(maxima[h], all_totals[h], 0.0, 0.0);
        }
    }
}
