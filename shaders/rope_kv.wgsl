// Turns queries and keys by their positions (rotary embedding: each pair (a, b) of a head becomes (a * cos - b * sin,
// b * cos + a * sin)), queries in place, and writes keys and values into the caches: cache[seq, h, position, :] = rows[t, h, :].
//
// params       one per dispatch
// cos_sin      [n_tokens, rotary_size / 2] of (cos, sin), made on the host for each token's position
// tokens       [n_tokens] of (seq, position, kv_len, rows to the table), and the tables of their sequences
// key          [n_tokens, n_kv_heads, head_size] f32
// value        as key; with HAS_VALUES alone
// query        [n_tokens, n_heads, head_size] f32, read and written
// key_cache    [n_blocks, n_kv_heads, KV_BLOCK, head_size] f32, or f16, as KEY_DTYPE says
// value_cache  as key_cache, as VALUE_DTYPE says; without HAS_VALUES anything, since keys are the values as well
//
// One invocation per four values of a head: two pairs, which are whole words of a cache. What lies behind a head's first rotary_size
// values stays as it is; with n_heads = 0 there are no queries to turn. The keys and values of a token outside
// the cache are dropped.

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

// Where in a head an invocation's four values lie: two at `first`, two at `second`.
struct Place {
    first: u32,
    second: u32,
}

fn place_of(quad: u32) -> Place {
    if params.pairing == HALVES && quad * 4u < params.rotary_size {
        return Place(quad * 2u, quad * 2u + params.rotary_size / 2u);
    }
    return Place(quad * 4u, quad * 4u + 2u);
}

// `turns` are (cos, sin) of the first pair, then of the second.
fn rotated(v: vec4<f32>, turns: vec4<f32>) -> vec4<f32> {
    let cosines = turns.xz;
    let sines = turns.yw;
    if params.pairing == HALVES {
        return vec4<f32>(v.xy * cosines - v.zw * sines, v.zw * cosines + v.xy * sines);
    }
    let a = v.xz * cosines - v.yw * sines;
    let b = v.yw * cosines + v.xz * sines;
    return vec4<f32>(a.x, b.x, a.y, b.y);
}

// Writes an invocation's part of the row of a key and of a value that begins at value `row` of the caches. Both twos begin a word.
fn store(row: u32, place: Place, k: vec4<f32>, v: vec4<f32>) {
    let first = row + place.first;
    let second = row + place.second;
    if KEY_DTYPE == KV_F16 {
        key_cache[first / 2u] = pack2x16float(k.xy);
        key_cache[second / 2u] = pack2x16float(k.zw);
    } else {
        key_cache[first] = bitcast<u32>(k.x);
        key_cache[first + 1u] = bitcast<u32>(k.y);
        key_cache[second] = bitcast<u32>(k.z);
        key_cache[second + 1u] = bitcast<u32>(k.w);
    }
    if !HAS_VALUES {
        return;
    }
    if VALUE_DTYPE == KV_F16 {
        value_cache[first / 2u] = pack2x16float(v.xy);
        value_cache[second / 2u] = pack2x16float(v.zw);
    } else {
        value_cache[first] = bitcast<u32>(v.x);
        value_cache[first + 1u] = bitcast<u32>(v.y);
        value_cache[second] = bitcast<u32>(v.z);
        value_cache[second + 1u] = bitcast<u32>(v.w);
    }
}

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let n_quads = params.head_size / 4u;
    let n_rows = params.n_heads + params.n_kv_heads; // of a token: its queries, then its keys with their values
    let index = item_of(invocation);
    if index >= params.n_tokens * n_rows * n_quads {
        return;
    }
    let quad = index % n_quads;
    let row = index / n_quads % n_rows;
    let t = index / n_quads / n_rows;
    let place = place_of(quad);
    var turns = vec4<f32>(1.0, 0.0, 1.0, 0.0);
    if quad * 4u < params.rotary_size {
        let two = t * (params.rotary_size / 4u) + quad;
        turns = vec4<f32>(cos_sin[two * 2u], cos_sin[two * 2u + 1u]);
    }
    if row < params.n_heads {
        let begin = (t * params.n_heads + row) * params.head_size;
        let first = begin + place.first;
        let second = begin + place.second;
        let v = rotated(vec4<f32>(query[first], query[first + 1u], query[second], query[second + 1u]), turns);
        query[first] = v.x;
        query[first + 1u] = v.y;
        query[second] = v.z;
        query[second + 1u] = v.w;
        return;
    }
    let position = tokens[t].y;
    if position >= params.kv_capacity {
        return;
    }
    let block = block_at(table_of(t), position);
    if block >= params.n_blocks {
        return;
    }
    let head = row - params.n_heads;
    let begin = (t * params.n_kv_heads + head) * params.head_size;
    let first = begin + place.first;
    let second = begin + place.second;
    let cached = row_in(block, head, position) * params.head_size;
    let k = rotated(vec4<f32>(key[first], key[first + 1u], key[second], key[second + 1u]), turns);
    store(cached, place, k, vec4<f32>(value[first], value[first + 1u], value[second], value[second + 1u]));
}
