// Causal attention: attention_output[t, h, :] = sum over p of softmax_p(scale * query[t, h, :] . key[p, :]) * value[p, :],
// where p runs over the positions of the token's sequence up to its own, and no further back than the window.
//
// params       one per dispatch
// query        [n_tokens, n_heads, head_size] f32
// tokens       [n_tokens] of (seq, position, kv_len, rows to the table), and the tables of their sequences
// key_cache    [n_blocks, n_kv_heads, KV_BLOCK, head_size] as KEY_DTYPE says
// value_cache  as key_cache, as VALUE_DTYPE says
// sinks        [n_heads] f32: scores of nothing, which take a share and have no value (HAS_SINKS); else anything
// attention_output [n_tokens, n_heads, head_size] f32; with IS_SPLIT the parts for attention_combine.wgsl instead:
//              [n_tokens, n_heads, parts, head_size + 4] f32, each the sum of exp(score - maximum) * value, maximum, total, 0, 0
//
// One workgroup per token, HEADS query heads that share a key head, and part: PART_POSITIONS positions of the sequence, from multiples
// of PART_POSITIONS on. Positions are taken in blocks of LANES * POSITIONS with a running maximum and sum (online softmax), so that no
// row of scores is ever held. Heads are cut into octets of values; head_size is whole octets.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> query: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> tokens: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> key_cache: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> value_cache: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> sinks: array<f32>;
@group(0) @binding(6) var<storage, read_write> attention_output: array<vec4<f32>>;

override KEY_DTYPE: u32 = 0u;   // as key_dtype of the params
override VALUE_DTYPE: u32 = 0u; // as value_dtype
override HAS_SOFTCAP: bool = false;
override HAS_SINKS: bool = false;
override LANES: u32 = 64u;    // at most 64
override HEADS: u32 = 1u;     // query heads of a workgroup, at most 4; divides n_heads / n_kv_heads
override POSITIONS: u32 = 1u; // positions of a lane, at most 4
override OCTETS: u32 = 8u;    // head_size / 8
override SHARERS: u32 = 8u;   // lanes of an octet, each with its share of a block's positions: LANES / OCTETS, at least 1
override IS_SPLIT: bool = false;
override PART_POSITIONS: u32 = 256u; // with IS_SPLIT

const MAX_HEADS: u32 = 4u;
const MAX_SCORES: u32 = 16u; // HEADS * POSITIONS

// As large as they are used: the less of it, the more workgroups run at once, and browsers clear all of it in each.
var<workgroup> scaled_query: array<vec4<f32>, HEADS * OCTETS * 2>;   // [HEADS, OCTETS, 2]
var<workgroup> sums: array<vec4<f32>, HEADS * SHARERS * OCTETS * 2>; // [HEADS, SHARERS, OCTETS, 2], each used by one lane only until the end
var<workgroup> shares: array<f32, HEADS * LANES * POSITIONS>;        // [HEADS, block], exp(score - maximum)
var<workgroup> of_lanes: array<f32, HEADS * LANES>;                  // [HEADS, LANES], each lane's maximum, at last its total
var<workgroup> rows: array<u32, LANES * POSITIONS>;                  // [block], those of the caches

// The scores of POSITIONS positions of a block, from that of `lane` on and LANES apart, whose rows this lane has found.
fn score(lane: u32) -> array<f32, MAX_SCORES> {
    var scores: array<f32, MAX_SCORES>;
    for (var s = 0u; s < HEADS * POSITIONS; s++) {
        scores[s] = 0.0;
    }
    for (var octet = 0u; octet < OCTETS; octet++) {
        for (var p = 0u; p < POSITIONS; p++) {
            let keys = key_octet(rows[lane + p * LANES] * OCTETS + octet);
            for (var h = 0u; h < HEADS; h++) {
                let place = (h * OCTETS + octet) * 2u;
                let low = add_products(keys.low, scaled_query[place], scores[h * POSITIONS + p]);
                scores[h * POSITIONS + p] = add_products(keys.high, scaled_query[place + 1u], low);
            }
        }
    }
    if HAS_SOFTCAP {
        for (var s = 0u; s < HEADS * POSITIONS; s++) {
            scores[s] = capped(scores[s]);
        }
    }
    return scores;
}

// Finds the rows of POSITIONS of `count` positions from `first` on, from that of `lane` on and LANES apart; past them the last one is repeated.
fn find_rows(lane: u32, table: u32, kv_head: u32, first: u32, count: u32) {
    for (var p = 0u; p < POSITIONS; p++) {
        rows[lane + p * LANES] = row_at(table, kv_head, first + min(lane + p * LANES, count - 1u));
    }
}

// Adds the shares of the block's `count` rows to the sums, which are first scaled to the new maxima.
// Where there are more lanes than octets, several share the positions of an octet.
fn add_values(lane: u32, count: u32, rescale: array<f32, MAX_HEADS>) {
    let block = LANES * POSITIONS;
    for (var slot = lane; slot < SHARERS * OCTETS; slot += LANES) {
        let octet = slot % OCTETS;
        var low: array<vec4<f32>, MAX_HEADS>;
        var high: array<vec4<f32>, MAX_HEADS>;
        for (var h = 0u; h < HEADS; h++) {
            let index = (h * SHARERS * OCTETS + slot) * 2u;
            low[h] = rescale[h] * sums[index];
            high[h] = rescale[h] * sums[index + 1u];
        }
        for (var j = slot / OCTETS; j < count; j += SHARERS) {
            let values = value_octet(rows[j] * OCTETS + octet);
            for (var h = 0u; h < HEADS; h++) {
                let share = vec4<f32>(shares[h * block + j]);
                low[h] = fma(share, values.low, low[h]);
                high[h] = fma(share, values.high, high[h]);
            }
        }
        for (var h = 0u; h < HEADS; h++) {
            let index = (h * SHARERS * OCTETS + slot) * 2u;
            sums[index] = low[h];
            sums[index + 1u] = high[h];
        }
    }
}

// Loads the queries, scaled, and clears the sums that `add_values` gives this lane.
fn begin_heads(lane: u32, query_begin: u32) {
    for (var quad = lane; quad < HEADS * OCTETS * 2u; quad += LANES) {
        scaled_query[quad] = params.scale * query[query_begin + quad];
    }
    for (var h = 0u; h < HEADS; h++) {
        for (var slot = lane; slot < SHARERS * OCTETS; slot += LANES) {
            let index = (h * SHARERS * OCTETS + slot) * 2u;
            sums[index] = vec4<f32>(0.0);
            sums[index + 1u] = vec4<f32>(0.0);
        }
    }
}

// Adds up the lanes and the lanes' shares of the sums, and writes the heads from `first_head` on: `first_quad` is that of the first, `stride`
// leads to the next.
fn end_heads(lane: u32, first_head: u32, first_quad: u32, stride: u32, maxima: array<f32, MAX_HEADS>, is_empty: bool) {
    let n_quads = OCTETS * 2u;
    for (var h = 0u; h < HEADS; h++) {
        var total = 0.0;
        for (var i = 0u; i < LANES; i++) {
            total += of_lanes[h * LANES + i];
        }
        // A token that sees nothing mixes nothing.
        let norm = select(select(norm_of(first_head + h, total, maxima[h]), 0.0, is_empty), 1.0, IS_SPLIT);
        for (var quad = lane; quad < n_quads; quad += LANES) {
            var sum = sums[h * SHARERS * n_quads + quad];
            for (var sharer = 1u; sharer < SHARERS; sharer++) {
                sum += sums[(h * SHARERS + sharer) * n_quads + quad];
            }
            attention_output[first_quad + h * stride + quad] = sum * norm;
        }
        if IS_SPLIT && lane == 0u {
            attention_output[first_quad + h * stride + n_quads] = vec4<f32>(maxima[h], total, 0.0, 0.0);
        }
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n_groups = params.n_heads / HEADS;
    let n_parts = select(1u, (params.kv_capacity + PART_POSITIONS - 1u) / PART_POSITIONS, IS_SPLIT);
    // Folding may add workgroups past the last part: they repeat it, since none may skip the barriers.
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
    }
    let table = table_of(index / n_groups);
    let n_quads = OCTETS * 2u;

    begin_heads(lane, index * HEADS * n_quads); // index * HEADS counts the heads of all tokens
    var maxima: array<f32, MAX_HEADS>;
    var totals: array<f32, MAX_HEADS>; // of the positions of this lane
    for (var h = 0u; h < HEADS; h++) {
        maxima[h] = LOWEST;
        totals[h] = 0.0;
    }
    let block = LANES * POSITIONS;
    for (var position = begin; position < end; position += block) {
        let count = min(end - position, block);
        workgroupBarrier(); // the queries are loaded; the shares and rows of the block before are used up
        find_rows(lane, table, kv_head, position, count);
        let scores = score(lane);
        for (var h = 0u; h < HEADS; h++) {
            var maximum = scores[h * POSITIONS];
            for (var p = 1u; p < POSITIONS; p++) {
                maximum = max(maximum, scores[h * POSITIONS + p]);
            }
            of_lanes[h * LANES + lane] = maximum;
        }
        workgroupBarrier(); // the maxima of all lanes are written
        var rescale: array<f32, MAX_HEADS>;
        for (var h = 0u; h < HEADS; h++) {
            var maximum = maxima[h];
            for (var i = 0u; i < LANES; i++) {
                maximum = max(maximum, of_lanes[h * LANES + i]);
            }
            rescale[h] = exp(maxima[h] - maximum);
            maxima[h] = maximum;
            totals[h] *= rescale[h];
            for (var p = 0u; p < POSITIONS; p++) {
                if lane + p * LANES < count {
                    let share = exp(scores[h * POSITIONS + p] - maximum);
                    shares[h * block + lane + p * LANES] = share;
                    totals[h] += share;
                }
            }
        }
        workgroupBarrier(); // the shares and rows are written; the maxima of all lanes are used up
        add_values(lane, count, rescale);
    }
    for (var h = 0u; h < HEADS; h++) {
        of_lanes[h * LANES + lane] = totals[h];
    }
    workgroupBarrier(); // the sums and the totals of all lanes are written
    let part_quads = select(n_quads, n_quads + 1u, IS_SPLIT);
    end_heads(lane, index % n_groups * HEADS, (index * HEADS * n_parts + part) * part_quads, n_parts * part_quads, maxima, begin >= end);
}
