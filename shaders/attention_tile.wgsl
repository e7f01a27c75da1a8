// Causal attention of many tokens, as in attention_token.wgsl: a tile of query rows shares each key and value that it loads.
//
// params       one per dispatch
// query        [n_tokens, n_heads, head_size] f32
// tokens       [n_tokens] of (seq, position, kv_len, rows to the table), and the tables of their sequences
// key_cache    [n_blocks, n_kv_heads, KV_BLOCK, head_size] as KEY_DTYPE says
// value_cache  as key_cache, as VALUE_DTYPE says
// sinks        [n_heads] f32: scores of nothing, which take a share and have no value (HAS_SINKS); else anything
// attention_output [n_tokens, n_heads, head_size] f32
//
// The query heads of a key head, token after token, are its rows; one workgroup per key head and ROWS of them. SPLIT lanes have a row
// together: each holds 32 values of its query and of its sum, and scores cross workgroup memory to be added up. Positions are
// taken BLOCK at a time, from multiples of BLOCK on, with a running maximum and sum; what a row does not see counts exactly nothing,
// so its result does not depend on its neighbours. Tokens of several sequences take turns, run after run.

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
override OCTETS: u32 = 8u; // head_size / 8
override SPLIT: u32 = 1u;  // lanes of a row: head_size / 32, rounded up
override BLOCK: u32 = 16u; // at most MAX_BLOCK; BLOCK * head_size is at most 2048

const LANES: u32 = 128u;
const MAX_BLOCK: u32 = 16u;
const LANE_QUADS: u32 = 8u; // of a head, that one lane holds

var<workgroup> tile: array<vec4<f32>, 512>; // [BLOCK, head quads]: keys, then values
var<workgroup> scores: array<f32, 2048>;    // [BLOCK, LANES]: each lane's part of a score, then the share

fn sees(sight: Sight, position: u32) -> bool {
    return position >= sight.begin && position < sight.end;
}

// Loads the block of positions that begins at `position`; past `last` that one is repeated.
fn load_keys(lane: u32, table: u32, kv_head: u32, position: u32, last: u32) {
    for (var i = lane; i < BLOCK * OCTETS; i += LANES) {
        let octet = key_octet(row_at(table, kv_head, min(position + i / OCTETS, last)) * OCTETS + i % OCTETS);
        tile[i * 2u] = octet.low;
        tile[i * 2u + 1u] = octet.high;
    }
}

fn load_values(lane: u32, table: u32, kv_head: u32, position: u32, last: u32) {
    for (var i = lane; i < BLOCK * OCTETS; i += LANES) {
        let octet = value_octet(row_at(table, kv_head, min(position + i / OCTETS, last)) * OCTETS + i % OCTETS);
        tile[i * 2u] = octet.low;
        tile[i * 2u + 1u] = octet.high;
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group_size = params.n_heads / params.n_kv_heads;
    let n_rows = params.n_tokens * group_size;
    let rows = LANES / SPLIT;
    let n_tiles = (n_rows + rows - 1u) / rows;
    // Folding may add workgroups past the last tile: they repeat it, since none may skip the barriers.
    let index = min(workgroup.x + workgroup.y * n_workgroups.x, params.n_kv_heads * n_tiles - 1u);
    let kv_head = index / n_tiles;
    let first_row = index % n_tiles * rows;
    let last_token = (min(first_row + rows, n_rows) - 1u) / group_size;

    // Lanes side by side have rows side by side, and read the same keys; a lane past the last row repeats it.
    let row = min(first_row + lane % rows, n_rows - 1u);
    let own_token = row / group_size;
    let sight = sight_of(own_token);
    let n_quads = params.head_size / 4u;
    let lane_quad = lane / rows * LANE_QUADS;
    let head_quad = (own_token * params.n_heads + kv_head * group_size + row % group_size) * n_quads;
    var scaled_query: array<vec4<f32>, LANE_QUADS>;
    for (var i = 0u; i < LANE_QUADS; i++) {
        let is_own = lane_quad + i < n_quads;
        scaled_query[i] = select(vec4<f32>(0.0), params.scale * query[head_quad + min(lane_quad + i, n_quads - 1u)], is_own);
    }

    for (var token = first_row / group_size; token <= last_token;) {
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
        let last = max(run.end, 1u) - 1u;

        var sums: array<vec4<f32>, LANE_QUADS>;
        for (var i = 0u; i < LANE_QUADS; i++) {
            sums[i] = vec4<f32>(0.0);
        }
        var maximum = LOWEST;
        var total = 0.0;
        for (var position = run.begin / BLOCK * BLOCK; position < run.end; position += BLOCK) {
            workgroupBarrier(); // the values and shares of the block before are used up
            load_keys(lane, table, kv_head, position, last);
            workgroupBarrier(); // the keys are loaded
            for (var p = 0u; p < BLOCK; p++) {
                var part = 0.0;
                for (var i = 0u; i < LANE_QUADS; i++) {
                    part = add_products(scaled_query[i], tile[p * n_quads + min(lane_quad + i, n_quads - 1u)], part);
                }
                scores[p * LANES + lane] = part;
            }
            workgroupBarrier(); // the scores are written; the keys are used up
            load_values(lane, table, kv_head, position, last);
            var shares: array<f32, MAX_BLOCK>;
            var new_maximum = maximum;
            for (var p = 0u; p < BLOCK; p++) {
                var score = 0.0;
                for (var part = 0u; part < SPLIT; part++) {
                    score += scores[p * LANES + part * rows + lane % rows];
                }
                if HAS_SOFTCAP {
                    // Beyond, tanh is 1 in f32, and some drivers make it NaN.
                    score = capped(score);
                }
                shares[p] = score;
                new_maximum = select(new_maximum, max(new_maximum, score), sees(sight, position + p));
            }
            let rescale = exp(maximum - new_maximum);
            maximum = new_maximum;
            total *= rescale;
            workgroupBarrier(); // the values are loaded; the scores are used up
            for (var p = 0u; p < BLOCK; p++) {
                let share = select(0.0, exp(shares[p] - maximum), sees(sight, position + p));
                scores[p * LANES + lane] = share;
                total += share;
            }
            for (var i = 0u; i < LANE_QUADS; i++) {
                sums[i] *= rescale;
            }
            for (var p = 0u; p < BLOCK; p++) {
                let share = vec4<f32>(scores[p * LANES + lane]);
                for (var i = 0u; i < LANE_QUADS; i++) {
                    sums[i] = fma(share, tile[p * n_quads + min(lane_quad + i, n_quads - 1u)], sums[i]);
                }
            }
        }
        if own_token >= first_of_run && own_token < token {
            // A row that sees nothing mixes nothing.
            let norm = select(norm_of(kv_head * group_size + row % group_size, total, maximum), 0.0, sight.begin >= sight.end);
            for (var i = 0u; i < LANE_QUADS; i++) {
                if lane_quad + i < n_quads {
                    attention_output[head_quad + lane_quad + i] = norm * sums[i];
                }
            }
        }
    }
}
