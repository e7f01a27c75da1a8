// Causal attention of many tokens, as in attention_tile.wgsl, on adapters whose subgroups are eight lanes and that load 64-bit words:
// software, whose every load is a loop over the lanes.
//
// params       one per dispatch
// query        [n_tokens, n_heads, head_size] f32, read 16 bytes at a time
// tokens       [n_tokens] of (seq, position, kv_len, rows to the table), and the tables of their sequences
// key_cache    [n_blocks, n_kv_heads, KV_BLOCK, head_size] as KEY_DTYPE says, read 16 bytes at a time
// value_cache  as key_cache, as VALUE_DTYPE says
// sinks        [n_heads] f32: scores of nothing, which take a share and have no value (HAS_SINKS); else anything
// attention_output [n_tokens, n_heads, head_size] f32
//
// One workgroup per eight tokens and HEADS query heads that share a key head. Of the keys and values each lane loads an eighth. Each lane
// scores for a token of its own, the keys being passed round; of the sums it holds its eighth for all tokens, the shares being
// passed round. Positions are taken BLOCK at a time, from multiples of BLOCK on, with a running maximum and sum; what a token does
// not see counts exactly nothing, so its result does not depend on its neighbours. Tokens of several sequences take turns, run after run.
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
override OCTETS: u32 = 8u; // head_size / 8; HEADS * OCTETS is at most 32

const LANES: u32 = 8u;
const BLOCK: u32 = 4u;

var<private> scaled_query: array<vec4<f32>, 64>; // [HEADS, OCTETS, 2] of this lane's token
var<private> row_scores: vec4<f32>;              // [HEADS] of one position, of this lane's token
var<private> scores: array<vec4<f32>, 4>;        // [HEADS] of BLOCK, of this lane's token
var<private> maxima: vec4<f32>;                  // [HEADS] of this lane's token
var<private> totals: vec4<f32>;
var<private> values: array<Octet, 16>;           // [rounds, BLOCK] of this lane's octets
var<private> sums: array<vec4<f32>, 96>;         // [LANES, HEADS, rounds, 2] of all tokens, of this lane's octets

// Loads eight octets of the queries of HEADS heads, which lie side by side, from `first` on.
fn load_queries(first_octet: u32, first: u32) {
    for (var quad = first * 2u; quad < (first + 8u) * 2u; quad++) {
        if quad < HEADS * OCTETS * 2u {
            scaled_query[quad] = params.scale * floats(query[first_octet * 2u + quad]);
        }
    }
}

fn clear_sums() {
    for (var t = 0u; t < LANES; t++) {
        for (var i = 0u; i < HEADS * rounds() * 2u; i++) {
            sums[t * HEADS * rounds() * 2u + i] = vec4<f32>(0.0);
        }
    }
}

fn score_octet(keys: Octet, octet: u32) {
    if octet < OCTETS {
        for (var h = 0u; h < HEADS; h++) {
            let place = (h * OCTETS + octet) * 2u;
            row_scores[h] = add_products(keys.high, scaled_query[place + 1u], add_products(keys.low, scaled_query[place], row_scores[h]));
        }
    }
}

// Adds to the scores of a row what eight octets of its key bring, from `first` on.
fn score_round(row: u32, lane: u32, first: u32) {
    if first < OCTETS {
        let keys = key_octet(row * OCTETS + min(first + lane, OCTETS - 1u));
        score_octet(Octet(subgroupBroadcast(keys.low, 0u), subgroupBroadcast(keys.high, 0u)), first);
        score_octet(Octet(subgroupBroadcast(keys.low, 1u), subgroupBroadcast(keys.high, 1u)), first + 1u);
        score_octet(Octet(subgroupBroadcast(keys.low, 2u), subgroupBroadcast(keys.high, 2u)), first + 2u);
        score_octet(Octet(subgroupBroadcast(keys.low, 3u), subgroupBroadcast(keys.high, 3u)), first + 3u);
        score_octet(Octet(subgroupBroadcast(keys.low, 4u), subgroupBroadcast(keys.high, 4u)), first + 4u);
        score_octet(Octet(subgroupBroadcast(keys.low, 5u), subgroupBroadcast(keys.high, 5u)), first + 5u);
        score_octet(Octet(subgroupBroadcast(keys.low, 6u), subgroupBroadcast(keys.high, 6u)), first + 6u);
        score_octet(Octet(subgroupBroadcast(keys.low, 7u), subgroupBroadcast(keys.high, 7u)), first + 7u);
    }
}

// Loads the block's values and scores it: the rows from `row` on; past `last_row` that one is repeated.
fn load_block(row: u32, last_row: u32, lane: u32) {
    for (var j = 0u; j < BLOCK; j++) {
        let own_row = min(row + j, last_row);
        row_scores = vec4<f32>(0.0);
        score_round(own_row, lane, 0u);
        score_round(own_row, lane, 8u);
        score_round(own_row, lane, 16u);
        score_round(own_row, lane, 24u);
        if HAS_SOFTCAP {
            row_scores = capped_quad(row_scores);
        }
        for (var h = 0u; h < HEADS; h++) {
            scores[h][j] = row_scores[h];
        }
    }
    for (var round = 0u; round < rounds(); round++) {
        for (var j = 0u; j < BLOCK; j++) {
            values[round * BLOCK + j] = value_octet(min(row + j, last_row) * OCTETS + min(round * LANES + lane, OCTETS - 1u));
        }
    }
}

// Adds the block's values in these shares to the sums of the token in lane `t`.
fn add_values(t: u32, h: u32, shares: vec4<f32>, rescale: f32) {
    for (var round = 0u; round < rounds(); round++) {
        let place = ((t * HEADS + h) * rounds() + round) * 2u;
        var low = rescale * sums[place];
        var high = rescale * sums[place + 1u];
        for (var j = 0u; j < BLOCK; j++) {
            low = fma(vec4<f32>(shares[j]), values[round * BLOCK + j].low, low);
            high = fma(vec4<f32>(shares[j]), values[round * BLOCK + j].high, high);
        }
        sums[place] = low;
        sums[place + 1u] = high;
    }
}

fn add_block(h: u32, is_seen: vec4<bool>) {
    if h < HEADS {
        let seen = select(vec4<f32>(LOWEST), scores[h], is_seen);
        let maximum = max(maxima[h], max(max(seen.x, seen.y), max(seen.z, seen.w)));
        let rescale = exp(maxima[h] - maximum);
        let shares = select(vec4<f32>(0.0), exp(scores[h] - vec4<f32>(maximum)), is_seen);
        maxima[h] = maximum;
        totals[h] = fma(totals[h], rescale, (shares.x + shares.y) + (shares.z + shares.w));
        add_values(0u, h, subgroupBroadcast(shares, 0u), subgroupBroadcast(rescale, 0u));
        add_values(1u, h, subgroupBroadcast(shares, 1u), subgroupBroadcast(rescale, 1u));
        add_values(2u, h, subgroupBroadcast(shares, 2u), subgroupBroadcast(rescale, 2u));
        add_values(3u, h, subgroupBroadcast(shares, 3u), subgroupBroadcast(rescale, 3u));
        add_values(4u, h, subgroupBroadcast(shares, 4u), subgroupBroadcast(rescale, 4u));
        add_values(5u, h, subgroupBroadcast(shares, 5u), subgroupBroadcast(rescale, 5u));
        add_values(6u, h, subgroupBroadcast(shares, 6u), subgroupBroadcast(rescale, 6u));
        add_values(7u, h, subgroupBroadcast(shares, 7u), subgroupBroadcast(rescale, 7u));
    }
}

// Writes the token in lane `t`, if it is one of the run.
fn store_token(t: u32, first_token: u32, run_begin: u32, run_end: u32, first_head: u32, lane: u32, norms: vec4<f32>) {
    let token = first_token + t;
    if token < run_begin || token >= run_end {
        return;
    }
    for (var round = 0u; round < rounds(); round++) {
        let octet = round * LANES + lane;
        if octet < OCTETS {
            for (var h = 0u; h < HEADS; h++) {
                let place = ((t * HEADS + h) * rounds() + round) * 2u;
                let index = ((token * params.n_heads + first_head + h) * OCTETS + octet) * 2u;
                attention_output[index] = norms[h] * sums[place];
                attention_output[index + 1u] = norms[h] * sums[place + 1u];
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
    let n_tiles = (params.n_tokens + LANES - 1u) / LANES;
    // Folding may add workgroups past the last tile: they repeat it.
    let index = min(workgroup.x + workgroup.y * n_workgroups.x, n_tiles * n_groups - 1u);
    let first_head = index % n_groups * HEADS;
    let kv_head = first_head / (params.n_heads / params.n_kv_heads);
    let first_token = index / n_groups * LANES;
    let last_token = min(first_token + LANES, params.n_tokens) - 1u;
    let own_token = min(first_token + lane, last_token);
    let sight = sight_of(own_token);
    let first_octet = (own_token * params.n_heads + first_head) * OCTETS;
    load_queries(first_octet, 0u);
    load_queries(first_octet, 8u);
    load_queries(first_octet, 16u);
    load_queries(first_octet, 24u);
    for (var token = first_token; token <= last_token;) {
        var run = sight_of(token);
        let first_of_run = token;
        token++;
        while token <= last_token {
            let next = sight_of(token);
            if next.seq != run.seq {
                break;
            }
            run.begin = min(run.begin, next.begin);
            run.end = max(run.end, next.end);
            token++;
        }
        let table = table_of(first_of_run);
        maxima = vec4<f32>(LOWEST);
        totals = vec4<f32>(0.0);
        clear_sums();
        for (var position = run.begin / BLOCK * BLOCK; position < run.end; position += BLOCK) {
            // BLOCK divides KV_BLOCK, so that its rows lie side by side.
            let row = row_at(table, kv_head, position);
            load_block(row, row + min(BLOCK, run.end - position) - 1u, lane);
            let positions = vec4<u32>(position) + vec4<u32>(0u, 1u, 2u, 3u);
            let is_seen = positions >= vec4<u32>(sight.begin) & positions < vec4<u32>(sight.end);
            add_block(0u, is_seen);
            add_block(1u, is_seen);
            add_block(2u, is_seen);
            add_block(3u, is_seen);
        }
        // A token that sees nothing mixes nothing.
        let norms = select(norms_of(first_head, totals, maxima), vec4<f32>(0.0), sight.begin >= sight.end);
        store_token(0u, first_token, first_of_run, token, first_head, lane, subgroupBroadcast(norms, 0u));
        store_token(1u, first_token, first_of_run, token, first_head, lane, subgroupBroadcast(norms, 1u));
        store_token(2u, first_token, first_of_run, token, first_head, lane, subgroupBroadcast(norms, 2u));
        store_token(3u, first_token, first_of_run, token, first_head, lane, subgroupBroadcast(norms, 3u));
        store_token(4u, first_token, first_of_run, token, first_head, lane, subgroupBroadcast(norms, 4u));
        store_token(5u, first_token, first_of_run, token, first_head, lane, subgroupBroadcast(norms, 5u));
        store_token(6u, first_token, first_of_run, token, first_head, lane, subgroupBroadcast(norms, 6u));
        store_token(7u, first_token, first_of_run, token, first_head, lane, subgroupBroadcast(norms, 7u));
    }
}
