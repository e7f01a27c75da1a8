// Rotates queries and keys by their positions and stores keys and values, as rope_kv.wgsl does, where one of both or both are stored as blocks:
// 32 values that share a scale, each rounded as ggml rounds it.
//
// params       one per dispatch
// cos_sin      [n_tokens, rotary_size / 2] of (cos, sin), made on the host for each token's position
// tokens       [n_tokens] of (seq, position, kv_len, rows to the table), and the tables of their sequences
// key          [n_tokens, n_kv_heads, head_size] f32
// value        as key; with HAS_VALUES alone
// query        [n_tokens, n_heads, head_size] f32, read and written
// key_cache    [n_blocks, n_kv_heads, KV_BLOCK, head_size] as KEY_DTYPE says; of blocks the values, then their scales
// value_cache  as key_cache, as VALUE_DTYPE says; without HAS_VALUES anything, since keys are the values as well
//
// One workgroup per head of a token: its queries, its keys, its values. The keys and values of a token outside the cache are dropped.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cos_sin: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> tokens: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> key: array<f32>;
@group(0) @binding(4) var<storage, read> value: array<f32>;
@group(0) @binding(5) var<storage, read_write> query: array<f32>;
@group(0) @binding(6) var<storage, read_write> key_cache: array<u32>;
@group(0) @binding(7) var<storage, read_write> value_cache: array<u32>;

override KEY_DTYPE: u32 = 0u;   // as key_dtype of the params
override VALUE_DTYPE: u32 = 0u; // as value_dtype
override HAS_VALUES: bool = true;
override OCTETS: u32 = 4u; // head_size / 8, a multiple of 4

const LANES: u32 = 32u;

var<workgroup> row: array<f32, OCTETS * 8>; // what is stored

// Of a block: what its values are multiplied by to become integers, and the scale that leads back.
struct Scale {
    scale: f32,
    inverse: f32,
}

// That of the block of this dtype which begins at value `begin` of the row.
fn scale_at(begin: u32, dtype: u32) -> Scale {
    var farthest = 0.0;
    for (var i = begin; i < begin + 32u; i++) {
        farthest = select(farthest, row[i], abs(row[i]) > abs(farthest));
    }
    let scale = select(farthest / -8.0, abs(farthest) / 127.0, dtype == KV_Q8_0);
    return Scale(scale, select(1.0 / scale, 0.0, scale == 0.0));
}

// The nearest integers, halves away from zero, as four bytes.
fn bytes_of(x: vec4<f32>) -> u32 {
    let whole = trunc(x);
    let nearest = select(whole, whole + sign(x), abs(x - whole) >= vec4<f32>(0.5));
    let bytes = bitcast<vec4<u32>>(vec4<i32>(clamp(nearest, vec4<f32>(-128.0), vec4<f32>(127.0)))) & vec4<u32>(255u);
    return bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
}

// From 0 to 15, as four nibbles.
fn nibbles_of(x: vec4<f32>) -> u32 {
    let nibbles = vec4<u32>(clamp(x + vec4<f32>(8.5), vec4<f32>(0.0), vec4<f32>(15.0)));
    return nibbles.x | (nibbles.y << 4u) | (nibbles.z << 8u) | (nibbles.w << 12u);
}

fn put(is_value: bool, index: u32, word: u32) {
    if is_value {
        value_cache[index] = word;
    } else {
        key_cache[index] = word;
    }
}

// Writes an octet of the row to row `cached` of a cache.
fn store_octet(is_value: bool, cached: u32, octet: u32) {
    let dtype = select(KEY_DTYPE, VALUE_DTYPE, is_value);
    if dtype == KV_Q8_0 || dtype == KV_Q4_0 {
        store_blocks(is_value, dtype, cached, octet);
        return;
    }
    let place = (cached * OCTETS + octet) * 8u;
    for (var i = 0u; i < 8u; i += 2u) {
        let two = vec2<f32>(row[octet * 8u + i], row[octet * 8u + i + 1u]);
        if dtype == KV_F16 {
            put(is_value, (place + i) / 2u, pack2x16float(two));
        } else {
            put(is_value, place + i, bitcast<u32>(two.x));
            put(is_value, place + i + 1u, bitcast<u32>(two.y));
        }
    }
}

// The same of blocks, and with every other block's first octet the scales of both.
fn store_blocks(is_value: bool, dtype: u32, cached: u32, octet: u32) {
    let begin = octet * 8u;
    let own = scale_at(begin / 32u * 32u, dtype);
    let low = own.inverse * vec4<f32>(row[begin], row[begin + 1u], row[begin + 2u], row[begin + 3u]);
    let high = own.inverse * vec4<f32>(row[begin + 4u], row[begin + 5u], row[begin + 6u], row[begin + 7u]);
    let n_rows = params.n_blocks * params.n_kv_heads * KV_BLOCK;
    let place = cached * OCTETS + octet;
    var first_scale = n_rows * OCTETS;
    if dtype == KV_Q8_0 {
        put(is_value, place * 2u, bytes_of(low));
        put(is_value, place * 2u + 1u, bytes_of(high));
        first_scale *= 2u;
    } else {
        put(is_value, place, nibbles_of(low) | (nibbles_of(high) << 16u));
    }
    if octet % 8u == 0u {
        var next = 0.0;
        if octet + 4u < OCTETS {
            next = scale_at(begin + 32u, dtype).scale;
        }
        let n_words = (OCTETS / 4u + 1u) / 2u; // of a row's scales
        put(is_value, first_scale + cached * n_words + octet / 8u, pack2x16float(vec2<f32>(own.scale, next)));
    }
}

// Turns the head of queries that begins at `begin`, in place.
fn turn_query(t: u32, begin: u32, lane: u32) {
    for (var pair = lane; pair < params.rotary_size / 2u; pair += LANES) {
        let i = select(pair * 2u, pair, params.pairing == HALVES);
        let turn = turn_of(t, i);
        let first = query[begin + i];
        let second = query[begin + turn.partner];
        query[begin + i] = first * turn.cosine + second * turn.sine;
        query[begin + turn.partner] = second * turn.cosine - first * turn.sine;
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n_rows = params.n_heads + params.n_kv_heads * select(1u, 2u, HAS_VALUES); // of a token
    let index = workgroup.x + workgroup.y * n_workgroups.x;
    // Folding may add workgroups past the last row: they write nothing.
    let is_row = index < params.n_tokens * n_rows;
    let t = min(index / n_rows, params.n_tokens - 1u);
    let of_token = index % n_rows;
    let is_query = of_token < params.n_heads;
    let is_value = of_token >= params.n_heads + params.n_kv_heads;
    let head = select(of_token - params.n_heads - select(0u, params.n_kv_heads, is_value), of_token, is_query);
    if is_query {
        if is_row {
            turn_query(t, (t * params.n_heads + head) * OCTETS * 8u, lane);
        }
    } else {
        let begin = (t * params.n_kv_heads + head) * OCTETS * 8u;
        for (var i = lane; i < OCTETS * 8u; i += LANES) {
            if is_value {
                row[i] = value[begin + i];
            } else {
                let turn = turn_of(t, i);
                row[i] = key[begin + i] * turn.cosine + key[begin + turn.partner] * turn.sine;
            }
        }
    }
    workgroupBarrier(); // the row is there
    let position = tokens[t].y;
    if is_query || !is_row || position >= params.kv_capacity {
        return;
    }
    let block = block_at(table_of(t), position);
    if block >= params.n_blocks {
        return;
    }
    let cached = row_in(block, head, position);
    for (var octet = lane; octet < OCTETS; octet += LANES) {
        store_octet(is_value, cached, octet);
    }
}
