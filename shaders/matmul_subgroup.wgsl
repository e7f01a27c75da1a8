// output[t, output_row_begin + r] = sum over k of weight[r, k] * input[t, k], for n_columns a multiple of 32,
// on adapters whose subgroups are eight lanes and that load 64-bit words: software, whose every load is a loop over the lanes.
//
// params  one per product of the dispatch: N_PRODUCTS of them, bound in shared/products_*.wgsl
// weight  [n_rows, n_columns] as stored (DTYPE); the first row begins at weight_begin, each row at an even byte; read 16 bytes at a time
// input   [n_tokens, n_columns] f32, read 16 bytes at a time
// output  [n_tokens, output_stride] f32, for each product; replaced, or added to (accumulates); bound there too
//
// Loads are what costs, so there are few: each lane has rows of its own, whose bytes it reads in the widest words; of the
// inputs each lane reads an eighth, and the subgroup passes it round. ROWS rows a lane for TOKENS tokens; y counts the
// groups of tokens. Every sum adds its products in the order of k, so a row's result is the same in every slice and every batch.

struct Params {
    n_rows: u32,
    n_columns: u32,
    n_tokens: u32,
    output_stride: u32,
    output_row_begin: u32,
    dtype: u32, // chosen at pipeline creation, as DTYPE
    weight_begin: u32, // in 256 bytes
    accumulates: u32,
}

@group(0) @binding(1) var<storage, read> weight: array<vec2<u64>>;
@group(0) @binding(2) var<storage, read> input: array<vec2<u64>>;

override DTYPE: u32 = 0u;
override ROWS: u32 = 4u;   // 4 or 8
override TOKENS: u32 = 1u; // at most MAX_TOKENS

const LANES: u32 = 8u;
const MAX_TOKENS: u32 = 8u;
const BLOCK_QUADS: u32 = 8u; // 32 columns, as many as a block has; one quad for each lane

var<private> product: Params; // of the product that this workgroup computes a part of
var<private> x: array<vec4<f32>, 64>;         // [TOKENS, BLOCK_QUADS]: the inputs of one block
var<private> x_sums: array<f32, MAX_TOKENS>;  // the sum of each token's

// 32 columns of a row: the weights are scale * quads + offset.
struct Block {
    quads: array<vec4<f32>, BLOCK_QUADS>,
    scale: f32,
    offset: f32,
}

fn low(word: u64) -> u32 {
    return u32(word);
}

fn high(word: u64) -> u32 {
    return u32(word >> 32u);
}

// The 64 bits that begin at bit `shift` of `first`; a shift by 64 bits would be undefined.
fn funnel(first: u64, second: u64, shift: u32) -> u64 {
    return (first >> shift) | ((second << 1u) << (63u - shift));
}

// The bytes of a block that begins at 16-bit unit `half`; touches no 16 bytes that hold none of them.
fn block_bytes(half: u32) -> array<u64, 5> {
    let first = product.weight_begin * 16u + half / 8u;
    let a = weight[first];
    let b = weight[first + 1u];
    var c = vec2<u64>(0lu);
    if DTYPE == Q8_0 {
        c = weight[first + 2u];
    }
    let odd = (half & 4u) != 0u;
    let shift = (half & 3u) * 16u;
    let words = array<u64, 5>(select(a.x, a.y, odd), select(a.y, b.x, odd), select(b.x, b.y, odd), select(b.y, c.x, odd), select(c.x, c.y, odd));
    return array<u64, 5>(
        funnel(words[0], words[1], shift),
        funnel(words[1], words[2], shift),
        funnel(words[2], words[3], shift),
        funnel(words[3], words[4], shift),
        words[4] >> shift,
    );
}

// Nibbles where they stand in the word: shifting them down is left to `nibble_scales`, once for all rows.
fn standing_low_nibbles(word: u32) -> vec4<f32> {
    let bits = bitcast<i32>(word);
    return vec4<f32>(f32(bits & 0xf), f32(bits & 0xf00), f32(bits & 0xf0000), f32(bits & 0xf000000));
}

fn standing_high_nibbles(word: u32) -> vec4<f32> {
    let bits = bitcast<i32>(word);
    return vec4<f32>(f32(bits & 0xf0), f32(bits & 0xf000), f32(bits & 0xf00000), f32((bits >> 28u) & 0xf));
}

// What the inputs of this lane's quad are multiplied with so that standing nibbles count as they should: powers of two, so exact.
fn nibble_scales(lane: u32) -> vec4<f32> {
    let for_low = vec4<f32>(1.0, 0x1p-8, 0x1p-16, 0x1p-24);
    let for_high = vec4<f32>(0x1p-4, 0x1p-12, 0x1p-20, 1.0);
    return select(for_low, for_high, lane >= BLOCK_QUADS / 2u);
}

fn nibble_block(block: u32) -> Block {
    var made: Block;
    let halves_per_block = select(10u, 9u, DTYPE == Q4_0);
    let bytes = block_bytes(block * halves_per_block);
    let words = array<u32, 5>(low(bytes[0]), high(bytes[0]), low(bytes[1]), high(bytes[1]), low(bytes[2]));
    let scales = decode_f16(words[0]);
    made.scale = scales.x;
    made.offset = select(scales.y, -8.0 * scales.x, DTYPE == Q4_0);
    for (var j = 0u; j < 4u; j++) {
        let quants = select(words[j + 1u], straddle(words[j], words[j + 1u]), DTYPE == Q4_0);
        made.quads[j] = standing_low_nibbles(quants);
        made.quads[j + 4u] = standing_high_nibbles(quants);
    }
    return made;
}

fn byte_block(block: u32) -> Block {
    var made: Block;
    let bytes = block_bytes(block * 17u);
    let words = array<u32, 9>(
        low(bytes[0]), high(bytes[0]), low(bytes[1]), high(bytes[1]), low(bytes[2]), high(bytes[2]), low(bytes[3]), high(bytes[3]), low(bytes[4]),
    );
    made.scale = decode_f16(words[0]).x;
    for (var j = 0u; j < BLOCK_QUADS; j++) {
        made.quads[j] = decode_bytes(straddle(words[j], words[j + 1u]));
    }
    return made;
}

fn plain_block(block: u32) -> Block {
    var made: Block;
    made.scale = 1.0;
    for (var j = 0u; j < BLOCK_QUADS; j++) {
        if DTYPE == F32 {
            let words = weight[product.weight_begin * 16u + block * BLOCK_QUADS + j];
            made.quads[j] = bitcast<vec4<f32>>(vec4<u32>(low(words.x), high(words.x), low(words.y), high(words.y)));
        } else {
            let pair = weight[product.weight_begin * 16u + block * (BLOCK_QUADS / 2u) + j / 2u];
            let word = select(pair.x, pair.y, (j & 1u) == 1u);
            let as_f16 = vec4<f32>(decode_f16(low(word)), decode_f16(high(word)));
            let as_bf16 = vec4<f32>(decode_bf16(low(word)), decode_bf16(high(word)));
            made.quads[j] = select(as_bf16, as_f16, DTYPE == F16);
        }
    }
    return made;
}

fn block_of(row: u32, block: u32) -> Block {
    let index = min(row, product.n_rows - 1u) * (params[0].n_columns / 32u) + block;
    if DTYPE == Q4_0 || DTYPE == Q4_1 {
        return nibble_block(index);
    }
    if DTYPE == Q8_0 {
        return byte_block(index);
    }
    return plain_block(index);
}

fn add_products(w: vec4<f32>, x: vec4<f32>, sum: f32) -> f32 {
    return fma(w.w, x.w, fma(w.z, x.z, fma(w.y, x.y, fma(w.x, x.x, sum))));
}

// Adds one block of four rows of this lane to the sums of all tokens.
fn add_rows(row: u32, block: u32, sums: ptr<function, array<vec4<f32>, MAX_TOKENS>>) {
    let a = block_of(row, block);
    let b = block_of(row + LANES, block);
    let c = block_of(row + 2u * LANES, block);
    let d = block_of(row + 3u * LANES, block);
    let scale = vec4<f32>(a.scale, b.scale, c.scale, d.scale);
    let offset = vec4<f32>(a.offset, b.offset, c.offset, d.offset);
    for (var t = 0u; t < TOKENS; t++) {
        var sum = vec4<f32>(0.0);
        for (var j = 0u; j < BLOCK_QUADS; j++) {
            let v = x[t * BLOCK_QUADS + j];
            sum = vec4<f32>(
                add_products(a.quads[j], v, sum.x),
                add_products(b.quads[j], v, sum.y),
                add_products(c.quads[j], v, sum.z),
                add_products(d.quads[j], v, sum.w),
            );
        }
        (*sums)[t] = fma(scale, sum, fma(offset, vec4<f32>(x_sums[t]), (*sums)[t]));
    }
}

// Reads the inputs of a block: each lane a quad of each token, which then all lanes get.
fn load_inputs(token_begin: u32, block: u32, lane: u32) {
    var scales = vec4<f32>(1.0);
    if DTYPE == Q4_0 || DTYPE == Q4_1 {
        scales = nibble_scales(lane);
    }
    for (var t = 0u; t < TOKENS; t++) {
        let token = min(token_begin + t, params[0].n_tokens - 1u);
        let words = input[token * (params[0].n_columns / 4u) + block * BLOCK_QUADS + lane];
        let quad = bitcast<vec4<f32>>(vec4<u32>(low(words.x), high(words.x), low(words.y), high(words.y)));
        x_sums[t] = subgroupAdd((quad.x + quad.y) + (quad.z + quad.w));
        let scaled = quad * scales;
        x[t * BLOCK_QUADS] = subgroupBroadcast(scaled, 0u);
        x[t * BLOCK_QUADS + 1u] = subgroupBroadcast(scaled, 1u);
        x[t * BLOCK_QUADS + 2u] = subgroupBroadcast(scaled, 2u);
        x[t * BLOCK_QUADS + 3u] = subgroupBroadcast(scaled, 3u);
        x[t * BLOCK_QUADS + 4u] = subgroupBroadcast(scaled, 4u);
        x[t * BLOCK_QUADS + 5u] = subgroupBroadcast(scaled, 5u);
        x[t * BLOCK_QUADS + 6u] = subgroupBroadcast(scaled, 6u);
        x[t * BLOCK_QUADS + 7u] = subgroupBroadcast(scaled, 7u);
    }
}

fn store_rows(product_index: u32, row_begin: u32, token_begin: u32, sums: ptr<function, array<vec4<f32>, MAX_TOKENS>>) {
    for (var t = 0u; t < TOKENS; t++) {
        let token = token_begin + t;
        for (var i = 0u; i < 4u; i++) {
            let row = row_begin + i * LANES;
            if row < product.n_rows && token < params[0].n_tokens {
                store(product_index, token, row, (*sums)[t][i]);
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
    let place = place_of(workgroup.x + workgroup.y * n_workgroups.x, LANES * ROWS, 1u);
    product = params[place.product];
    let row = place.group * LANES * ROWS + lane;
    let token_begin = workgroup.z * TOKENS;
    var first_rows: array<vec4<f32>, MAX_TOKENS>;
    var second_rows: array<vec4<f32>, MAX_TOKENS>;
    for (var block = 0u; block < params[0].n_columns / 32u; block++) {
        load_inputs(token_begin, block, lane);
        add_rows(row, block, &first_rows);
        if ROWS > 4u {
            add_rows(row + 4u * LANES, block, &second_rows);
        }
    }
    store_rows(place.product, row, token_begin, &first_rows);
    if ROWS > 4u {
        store_rows(place.product, row + 4u * LANES, token_begin, &second_rows);
    }
}
