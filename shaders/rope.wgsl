// Turns heads by their positions, in place (rotary embedding): each pair (a, b) of a head's first rotary_size values becomes
// (a * cos - b * sin, b * cos + a * sin).
//
// params   one per dispatch
// cos_sin  [n_tokens, rotary_size / 2] of (cos, sin), made on the host for each token's position
// heads    [n_tokens, n_heads, head_size] f32, read and written
//
// One invocation per pair.

struct Params {
    n_tokens: u32,
    n_heads: u32,
    head_size: u32,
    rotary_size: u32, // even
    pairing: u32,     // 0: i with i + rotary_size / 2; 1: 2 i with 2 i + 1
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cos_sin: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> heads: array<f32>;

const HALVES: u32 = 0u;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let n_pairs = params.rotary_size / 2u;
    let index = item_of(invocation);
    if index >= params.n_tokens * params.n_heads * n_pairs {
        return;
    }
    let pair = index % n_pairs;
    let head = index / n_pairs;
    let begin = head * params.head_size;
    let first = begin + select(2u * pair, pair, params.pairing == HALVES);
    let second = select(first + 1u, first + n_pairs, params.pairing == HALVES);
    let angle = cos_sin[head / params.n_heads * n_pairs + pair];
    let a = heads[first];
    let b = heads[second];
    heads[first] = a * angle.x - b * angle.y;
    heads[second] = b * angle.x + a * angle.y;
}
