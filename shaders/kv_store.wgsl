// Writes the keys and values of new tokens into the caches: cache[seq, h, position, :] = rows[t, h, :].
//
// params       one per dispatch
// key          [n_tokens, n_kv_heads, head_size] f32
// value        as key
// tokens       [n_tokens] of (seq, position, kv_len, 0)
// key_cache    [n_seqs, n_kv_heads, kv_capacity, head_size] f32, or f16 two to a word (KV_F16)
// value_cache  as key_cache
//
// One invocation per word of a cache row. A token outside the cache is dropped.

struct Params {
    n_tokens: u32,
    n_kv_heads: u32,
    head_size: u32,
    n_seqs: u32,
    kv_capacity: u32,
    kv_dtype: u32, // chosen at pipeline creation, as KV_F16
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> key: array<f32>;
@group(0) @binding(2) var<storage, read> value: array<f32>;
@group(0) @binding(3) var<storage, read> tokens: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> key_cache: array<u32>;
@group(0) @binding(5) var<storage, read_write> value_cache: array<u32>;

override KV_F16: bool = false;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let head_words = select(params.head_size, params.head_size / 2u, KV_F16);
    let index = (workgroup.x + workgroup.y * n_workgroups.x) * 64u + local;
    if index >= params.n_tokens * params.n_kv_heads * head_words {
        return;
    }
    let word = index % head_words;
    let head = index / head_words % params.n_kv_heads;
    let token = tokens[index / head_words / params.n_kv_heads];
    let seq = token.x;
    let position = token.y;
    if seq >= params.n_seqs || position >= params.kv_capacity {
        return;
    }
    let cached = ((seq * params.n_kv_heads + head) * params.kv_capacity + position) * head_words + word;
    if KV_F16 {
        // `index` counts pairs, in the order of the rows.
        key_cache[cached] = pack2x16float(vec2<f32>(key[index * 2u], key[index * 2u + 1u]));
        value_cache[cached] = pack2x16float(vec2<f32>(value[index * 2u], value[index * 2u + 1u]));
    } else {
        key_cache[cached] = bitcast<u32>(key[index]);
        value_cache[cached] = bitcast<u32>(value[index]);
    }
}
