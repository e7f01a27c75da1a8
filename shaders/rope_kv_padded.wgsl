// Rotates queries and keys by their positions and stores keys and values, as rope_kv.wgsl does, for heads of any even size: what is
// written has rows of whole octets, as attention reads them, and zeros behind each head.
//
// params        one per dispatch
// cos_sin       [n_tokens, rotary_size / 2] of (cos, sin), made on the host for each token's position
// tokens        [n_tokens] of (seq, position, kv_len, rows to the table), and the tables of their sequences
// key           [n_tokens, n_kv_heads, head_size] f32
// value         as key; with HAS_VALUES alone
// query         [n_tokens, n_heads, head_size] f32
// rotated_query [n_tokens, n_heads, padded] f32: the queries; `padded` is head_size, rounded up to a multiple of 8
// key_cache     [n_blocks, n_kv_heads, KV_BLOCK, padded] f32, or f16, as KEY_DTYPE says
// value_cache   as key_cache, as VALUE_DTYPE says; without HAS_VALUES anything, since keys are the values as well
//
// One invocation per two values of a padded head, which are whole words of a cache. The keys and values of a token outside
// the cache are dropped.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cos_sin: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> tokens: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> key: array<f32>;
@group(0) @binding(4) var<storage, read> value: array<f32>;
@group(0) @binding(5) var<storage, read> query: array<f32>;
@group(0) @binding(6) var<storage, read_write> rotated_query: array<f32>;
@group(0) @binding(7) var<storage, read_write> key_cache: array<u32>;
@group(0) @binding(8) var<storage, read_write> value_cache: array<u32>;

override KEY_DTYPE: u32 = 0u;   // as key_dtype of the params
override VALUE_DTYPE: u32 = 0u; // as value_dtype
override HAS_VALUES: bool = true;

// Value `i` of the head of queries that begins at `begin`; zero past its end.
fn rotated_query_at(t: u32, begin: u32, i: u32) -> f32 {
    if i >= params.head_size {
        return 0.0;
    }
    let turn = turn_of(t, i);
    return query[begin + i] * turn.cosine + query[begin + turn.partner] * turn.sine;
}

fn rotated_key_at(t: u32, begin: u32, i: u32) -> f32 {
    if i >= params.head_size {
        return 0.0;
    }
    let turn = turn_of(t, i);
    return key[begin + i] * turn.cosine + key[begin + turn.partner] * turn.sine;
}

fn value_at(begin: u32, i: u32) -> f32 {
    if i >= params.head_size {
        return 0.0;
    }
    return value[begin + i];
}

// Writes two values of a key and of a value, from value `first` of the caches on.
fn store(first: u32, k: vec2<f32>, v: vec2<f32>) {
    if KEY_DTYPE == KV_F16 {
        key_cache[first / 2u] = pack2x16float(k);
    } else {
        key_cache[first] = bitcast<u32>(k.x);
        key_cache[first + 1u] = bitcast<u32>(k.y);
    }
    if !HAS_VALUES {
        return;
    }
    if VALUE_DTYPE == KV_F16 {
        value_cache[first / 2u] = pack2x16float(v);
    } else {
        value_cache[first] = bitcast<u32>(v.x);
        value_cache[first + 1u] = bitcast<u32>(v.y);
    }
}

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let padded = (params.head_size + 7u) / 8u * 8u;
    let n_twos = padded / 2u;
    let n_rows = params.n_heads + params.n_kv_heads; // of a token: its queries, then its keys with their values
    let index = item_of(invocation);
    if index >= params.n_tokens * n_rows * n_twos {
        return;
    }
    let i = index % n_twos * 2u;
    let row = index / n_twos % n_rows;
    let t = index / n_twos / n_rows;
    if row < params.n_heads {
        let head = t * params.n_heads + row;
        rotated_query[head * padded + i] = rotated_query_at(t, head * params.head_size, i);
        rotated_query[head * padded + i + 1u] = rotated_query_at(t, head * params.head_size, i + 1u);
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
    let cached = row_in(block, head, position) * padded;
    let k = vec2<f32>(rotated_key_at(t, begin, i), rotated_key_at(t, begin, i + 1u));
    store(cached + i, k, vec2<f32>(value_at(begin, i), value_at(begin, i + 1u)));
}
