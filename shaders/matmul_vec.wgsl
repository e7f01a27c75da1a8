// output[t, output_row_begin + r] = sum over k of weight[r, k] * input[t, k], for few tokens and rows of whole quads of words
// (n_columns a multiple of 4 for F32, 8 for F16 and BF16, of a block's length for blocks).
//
// params  one per product of the dispatch: N_PRODUCTS of them, bound in shared/products_*.wgsl
// weight  [n_rows, n_columns] as stored (DTYPE); the first row begins at weight_begin, each row where the one before ends
// input   [n_tokens, n_columns] f32, read as quads
// output  [n_tokens, output_stride] f32, for each product; replaced, or added to (accumulates); bound there too
// grid    see shared/blocks.wgsl; bound there too
//
// LANES lanes share a row and ROWS rows, for TOKENS tokens at a time; z counts the groups of tokens.
// Which lane adds which products depends on n_columns alone, so a row's result is the same in every slice and every batch.

@group(0) @binding(1) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> input: array<vec4<f32>>;

override DTYPE: u32 = 0u;
override BLOCK_LEN: u32 = 32u;  // these three: see shared/blocks.wgsl
override BLOCK_BYTES: u32 = 0u;
override APART: u32 = 16u;
override LANES: u32 = 32u;     // a power of two
override WORKGROUP: u32 = 64u; // a multiple of LANES; ROWS * WORKGROUP at most 1024
override ROWS: u32 = 4u;       // at most 8; 4 or 8 where LANES is 1
override TOKENS: u32 = 1u;     // at most 4

const MAX_SUMS: u32 = 32u; // ROWS * TOKENS

var<workgroup> partial: array<f32, ROWS * TOKENS * WORKGROUP>; // of the lanes that share a row

var<private> product: Params; // of the product that this workgroup computes a part of
var<private> sums: array<f32, MAX_SUMS>; // [ROWS, TOKENS]
var<private> rows: array<u32, 8>;        // the rows of this lane, the last one repeated past the end
var<private> token_quads: array<u32, 4>; // where the tokens of this lane begin in `input`

fn add_products(w: vec4<f32>, x: vec4<f32>, sum: f32) -> f32 {
    return fma(w.w, x.w, fma(w.z, x.z, fma(w.y, x.y, fma(w.x, x.x, sum))));
}

fn add_f32(lane: u32) {
    let n_quads = params[0].n_columns / 4u;
    for (var quad = lane; quad < n_quads; quad += LANES) {
        for (var i = 0u; i < ROWS; i++) {
            let values = bitcast<vec4<f32>>(weight[product.weight_begin * 16u + rows[i] * n_quads + quad]);
            for (var t = 0u; t < TOKENS; t++) {
                sums[i * TOKENS + t] = add_products(values, input[token_quads[t] + quad], sums[i * TOKENS + t]);
            }
        }
    }
}

// F16 or BF16: four values of two words.
fn decode_halves(words: vec2<u32>) -> vec4<f32> {
    if DTYPE == F16 {
        return vec4<f32>(decode_f16(words.x), decode_f16(words.y));
    }
    return vec4<f32>(decode_bf16(words.x), decode_bf16(words.y));
}

// F16 and BF16: eight values to four words.
fn add_halves(lane: u32) {
    let n_octets = params[0].n_columns / 8u;
    for (var octet = lane; octet < n_octets; octet += LANES) {
        for (var i = 0u; i < ROWS; i++) {
            let words = weight[product.weight_begin * 16u + rows[i] * n_octets + octet];
            let low = decode_halves(words.xy);
            let high = decode_halves(words.zw);
            for (var t = 0u; t < TOKENS; t++) {
                let quad = token_quads[t] + octet * 2u;
                let sum = add_products(low, input[quad], sums[i * TOKENS + t]);
                sums[i * TOKENS + t] = add_products(high, input[quad + 1u], sum);
            }
        }
    }
}

// One word alone: blocks begin at any even byte, so that whole quads would load more than they hold.
fn stored(word: u32) -> u32 {
    return weight[product.weight_begin * 16u + word / 4u][word % 4u];
}

// 34 bytes from an even byte, d * q. The block's sum of q * x is scaled once.
fn add_q8_0(lane: u32) {
    let n_blocks = params[0].n_columns / 32u;
    for (var block = lane; block < n_blocks; block += LANES) {
        var words: array<u32, 8>; // of each row, the one that the next one continues
        var block_sums: array<f32, MAX_SUMS>;
        for (var i = 0u; i < ROWS; i++) {
            words[i] = stored((rows[i] * n_blocks + block) * 17u / 2u);
            for (var t = 0u; t < TOKENS; t++) {
                block_sums[i * TOKENS + t] = 0.0;
            }
        }
        let first_words = words;
        for (var j = 0u; j < 8u; j++) {
            for (var i = 0u; i < ROWS; i++) {
                let half = (rows[i] * n_blocks + block) * 17u;
                let next = stored(half / 2u + 1u + j);
                let values = decode_bytes(select(straddle(words[i], next), next, (half & 1u) == 1u));
                words[i] = next;
                for (var t = 0u; t < TOKENS; t++) {
                    let x = input[token_quads[t] + block * 8u + j];
                    block_sums[i * TOKENS + t] = add_products(values, x, block_sums[i * TOKENS + t]);
                }
            }
        }
        for (var i = 0u; i < ROWS; i++) {
            let scales = decode_f16(first_words[i]);
            let d = select(scales.x, scales.y, ((rows[i] * n_blocks + block) & 1u) == 1u);
            for (var t = 0u; t < TOKENS; t++) {
                sums[i * TOKENS + t] = fma(d, block_sums[i * TOKENS + t], sums[i * TOKENS + t]);
            }
        }
    }
}

// Q4_0: 18 bytes from an even byte, d * (q - 8). Q4_1: 20 bytes, d * q + m. Either way scale * q + offset,
// and the sum of offset * x is the offset times the sum of x, which all rows share.
fn add_q4(lane: u32) {
    let n_blocks = params[0].n_columns / 32u;
    let halves_per_block = select(10u, 9u, DTYPE == Q4_0);
    for (var block = lane; block < n_blocks; block += LANES) {
        var words: array<u32, 8>; // of each row, the one that the next one continues
        var block_sums: array<f32, MAX_SUMS>;
        var input_sums: array<f32, 4>;
        for (var t = 0u; t < TOKENS; t++) {
            input_sums[t] = 0.0;
        }
        for (var i = 0u; i < ROWS; i++) {
            words[i] = stored((rows[i] * n_blocks + block) * halves_per_block / 2u);
            for (var t = 0u; t < TOKENS; t++) {
                block_sums[i * TOKENS + t] = 0.0;
            }
        }
        let first_words = words;
        for (var j = 0u; j < 4u; j++) {
            for (var t = 0u; t < TOKENS; t++) {
                let quad = token_quads[t] + block * 8u + j;
                input_sums[t] = add_products(vec4<f32>(1.0), input[quad] + input[quad + 4u], input_sums[t]);
            }
            for (var i = 0u; i < ROWS; i++) {
                let half = (rows[i] * n_blocks + block) * halves_per_block;
                let next = stored(half / 2u + 1u + j);
                var quants = next;
                if DTYPE == Q4_0 {
                    quants = select(straddle(words[i], next), next, (half & 1u) == 1u);
                    words[i] = next;
                }
                let low = decode_low_nibbles(quants);
                let high = decode_high_nibbles(quants);
                for (var t = 0u; t < TOKENS; t++) {
                    let quad = token_quads[t] + block * 8u + j;
                    let sum = add_products(low, input[quad], block_sums[i * TOKENS + t]);
                    block_sums[i * TOKENS + t] = add_products(high, input[quad + 4u], sum);
                }
            }
        }
        for (var i = 0u; i < ROWS; i++) {
            let halves = decode_f16(first_words[i]);
            var scale = halves.x;
            var offset = halves.y;
            if DTYPE == Q4_0 {
                scale = select(halves.x, halves.y, ((rows[i] * n_blocks + block) & 1u) == 1u);
                offset = -8.0 * scale;
            }
            for (var t = 0u; t < TOKENS; t++) {
                let sum = fma(offset, input_sums[t], sums[i * TOKENS + t]);
                sums[i * TOKENS + t] = fma(scale, block_sums[i * TOKENS + t], sum);
            }
        }
    }
}

// The word that begins at a 16-bit unit, which may be in the midst of one; touches no word that holds none of it.
fn word_at_half(half: u32) -> u32 {
    let odd = half & 1u;
    let first = stored(half / 2u);
    return select(first, straddle(first, stored(half / 2u + odd)), odd == 1u);
}

fn half_at(half: u32) -> u32 {
    return stored(half / 2u) >> ((half & 1u) * 16u);
}

// Where 64 columns of a block of Q6_K lie whose nibbles share bytes: 32 are low nibbles, and 32 that stand 64 columns behind are high
// ones. All in 16-bit units, from the first of the row on.
struct SixBits {
    nibbles: u32,
    high_bits: u32,
    scales: u32, // of both; those of the high nibbles two units behind
    scale: u32,  // of the block
    shift: u32,  // of the high bits
    quad: u32,   // of the input, for the low nibbles; for the high ones 16 behind
}

fn six_bits_of(part: u32) -> SixBits {
    let begin = part / 4u * 105u;
    let n = part % 4u / 2u;
    let k = part & 1u;
    return SixBits(
        begin + n * 32u + k * 16u,
        begin + 64u + n * 16u,
        begin + 96u + n * 4u + k,
        begin + 104u,
        k * 2u,
        part / 4u * 64u + n * 32u + k * 8u,
    );
}

// Q6_K: 210 bytes for 256 columns from an even byte, d * s * (q - 32). A lane takes 64 columns at a time, and scales their sum by d once.
fn add_q6_k(lane: u32) {
    let n_parts = params[0].n_columns / 64u;
    for (var part = lane; part < n_parts; part += LANES) {
        let place = six_bits_of(part);
        var part_sums: array<f32, MAX_SUMS>;
        for (var s = 0u; s < ROWS * TOKENS; s++) {
            part_sums[s] = 0.0;
        }
        for (var j = 0u; j < 8u; j++) {
            for (var i = 0u; i < ROWS; i++) {
                let row = rows[i] * (n_parts / 4u) * 105u;
                let scales = decode_two_bytes(half_at(row + place.scales));
                let scales_of_high = decode_two_bytes(half_at(row + place.scales + 2u));
                let nibbles = word_at_half(row + place.nibbles + j * 2u);
                let high_bits = word_at_half(row + place.high_bits + j * 2u) >> place.shift;
                let low = select(scales.x, scales.y, j > 3u) * decode_six_bits(nibbles, high_bits);
                let high = select(scales_of_high.x, scales_of_high.y, j > 3u) * decode_six_bits(nibbles >> 4u, high_bits >> 4u);
                for (var t = 0u; t < TOKENS; t++) {
                    let quad = token_quads[t] + place.quad + j;
                    let sum = add_products(low, input[quad], part_sums[i * TOKENS + t]);
                    part_sums[i * TOKENS + t] = add_products(high, input[quad + 16u], sum);
                }
            }
        }
        for (var i = 0u; i < ROWS; i++) {
            let d = decode_f16(half_at(rows[i] * (n_parts / 4u) * 105u + place.scale)).x;
            for (var t = 0u; t < TOKENS; t++) {
                sums[i * TOKENS + t] = fma(d, part_sums[i * TOKENS + t], sums[i * TOKENS + t]);
            }
        }
    }
}

// One row's products of two times sixteen columns.
fn add_columns(w: Columns, first: mat4x4<f32>, last: mat4x4<f32>, sum: f32) -> f32 {
    return add_sixteen(w.last, last, add_sixteen(w.first, first, sum));
}

fn add_sixteen(w: mat4x4<f32>, x: mat4x4<f32>, sum: f32) -> f32 {
    return add_products(w[3], x[3], add_products(w[2], x[2], add_products(w[1], x[1], add_products(w[0], x[0], sum))));
}

// Sixteen columns of a token.
fn inputs_at(quad: u32) -> mat4x4<f32> {
    return mat4x4<f32>(input[quad], input[quad + 1u], input[quad + 2u], input[quad + 3u]);
}

// Every other dtype of blocks: 32 columns at a time, as shared/blocks.wgsl decodes them.
fn add_blocks(lane: u32) {
    let n_parts = params[0].n_columns / 32u;
    for (var part = lane; part < n_parts; part += LANES) {
        let quad = quad_of(part);
        for (var i = 0u; i < ROWS; i++) {
            let columns = columns_of(rows[i] * n_parts + part);
            for (var t = 0u; t < TOKENS; t++) {
                let first = inputs_at(token_quads[t] + quad);
                let last = inputs_at(token_quads[t] + quad + APART / 4u);
                sums[i * TOKENS + t] = add_columns(columns, first, last, sums[i * TOKENS + t]);
            }
        }
    }
}

// Four rows times the one token of a lane that has them to itself: the same products in the same order, but in registers alone, and
// with each input read once for the four. Arrays, as above, are kept in memory by software adapters, and browsers check their indices.
// The matrices here hold four values of each row, a row in each column.

fn add_to_rows(w: mat4x4<f32>, x: vec4<f32>, sums: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        add_products(w[0], x, sums.x),
        add_products(w[1], x, sums.y),
        add_products(w[2], x, sums.z),
        add_products(w[3], x, sums.w),
    );
}

// `straddle` of each row.
fn straddle_rows(first: vec4<u32>, second: vec4<u32>) -> vec4<u32> {
    return (first >> vec4<u32>(16u)) | (second << vec4<u32>(16u));
}

fn words_at(words: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(stored(words.x), stored(words.y), stored(words.z), stored(words.w));
}

fn rows_f32(rows: vec4<u32>) -> vec4<f32> {
    let n_quads = params[0].n_columns / 4u;
    let begins = product.weight_begin * 16u + rows * n_quads;
    var sums = vec4<f32>();
    for (var quad = 0u; quad < n_quads; quad++) {
        let quads = begins + quad;
        let w = mat4x4<f32>(
            bitcast<vec4<f32>>(weight[quads.x]),
            bitcast<vec4<f32>>(weight[quads.y]),
            bitcast<vec4<f32>>(weight[quads.z]),
            bitcast<vec4<f32>>(weight[quads.w]),
        );
        sums = add_to_rows(w, input[token_quads[0] + quad], sums);
    }
    return sums;
}

fn rows_halves(rows: vec4<u32>) -> vec4<f32> {
    let n_octets = params[0].n_columns / 8u;
    let begins = product.weight_begin * 16u + rows * n_octets;
    var sums = vec4<f32>();
    for (var octet = 0u; octet < n_octets; octet++) {
        let octets = begins + octet;
        let a = weight[octets.x];
        let b = weight[octets.y];
        let c = weight[octets.z];
        let d = weight[octets.w];
        let quad = token_quads[0] + octet * 2u;
        let low = mat4x4<f32>(decode_halves(a.xy), decode_halves(b.xy), decode_halves(c.xy), decode_halves(d.xy));
        sums = add_to_rows(low, input[quad], sums);
        let high = mat4x4<f32>(decode_halves(a.zw), decode_halves(b.zw), decode_halves(c.zw), decode_halves(d.zw));
        sums = add_to_rows(high, input[quad + 1u], sums);
    }
    return sums;
}

fn rows_q8_0(rows: vec4<u32>) -> vec4<f32> {
    let n_blocks = params[0].n_columns / 32u;
    var sums = vec4<f32>();
    for (var block = 0u; block < n_blocks; block++) {
        let halves = (rows * n_blocks + block) * 17u;
        let are_odd = (halves & vec4<u32>(1u)) == vec4<u32>(1u);
        let first = words_at(halves / 2u);
        var words = first; // of each row, the one that the next one continues
        var block_sums = vec4<f32>();
        for (var j = 0u; j < 8u; j++) {
            let next = words_at(halves / 2u + 1u + j);
            let bytes = select(straddle_rows(words, next), next, are_odd);
            let w = mat4x4<f32>(decode_bytes(bytes.x), decode_bytes(bytes.y), decode_bytes(bytes.z), decode_bytes(bytes.w));
            block_sums = add_to_rows(w, input[token_quads[0] + block * 8u + j], block_sums);
            words = next;
        }
        sums = fma(scales_of(first, are_odd), block_sums, sums);
    }
    return sums;
}

// Of each row the upper half of a word, or the lower one.
fn scales_of(words: vec4<u32>, are_upper: vec4<bool>) -> vec4<f32> {
    let halves = select(words, words >> vec4<u32>(16u), are_upper);
    return vec4<f32>(decode_f16(halves.x).x, decode_f16(halves.y).x, decode_f16(halves.z).x, decode_f16(halves.w).x);
}

fn nibbles_of(quants: vec4<u32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        decode_low_nibbles(quants.x), decode_low_nibbles(quants.y), decode_low_nibbles(quants.z), decode_low_nibbles(quants.w));
}

fn rows_q4(rows: vec4<u32>) -> vec4<f32> {
    let n_blocks = params[0].n_columns / 32u;
    let halves_per_block = select(10u, 9u, DTYPE == Q4_0);
    var sums = vec4<f32>();
    for (var block = 0u; block < n_blocks; block++) {
        let halves = (rows * n_blocks + block) * halves_per_block;
        let are_odd = (halves & vec4<u32>(1u)) == vec4<u32>(1u);
        let quad = token_quads[0] + block * 8u;
        let first = words_at(halves / 2u);
        var words = first; // of each row, the one that the next one continues
        var block_sums = vec4<f32>();
        var input_sum = 0.0;
        for (var j = 0u; j < 4u; j++) {
            let low = input[quad + j];
            let high = input[quad + j + 4u];
            let next = words_at(halves / 2u + 1u + j);
            var quants = next;
            if DTYPE == Q4_0 {
                quants = select(straddle_rows(words, next), next, are_odd);
                words = next;
            }
            input_sum = add_products(vec4<f32>(1.0), low + high, input_sum);
            block_sums = add_to_rows(nibbles_of(quants), low, block_sums);
            block_sums = add_to_rows(nibbles_of(quants >> vec4<u32>(4u)), high, block_sums);
        }
        var scales = scales_of(first, vec4<bool>(false));
        var offsets = scales_of(first, vec4<bool>(true));
        if DTYPE == Q4_0 {
            scales = select(scales, offsets, are_odd);
            offsets = -8.0 * scales;
        }
        sums = fma(scales, block_sums, fma(offsets, vec4<f32>(input_sum), sums));
    }
    return sums;
}

// The words that begin at 16-bit units, as `word_at_half`.
fn words_at_halves(halves: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(word_at_half(halves.x), word_at_half(halves.y), word_at_half(halves.z), word_at_half(halves.w));
}

// Of each row the scales of 16 columns and of the 16 behind them.
struct TwoScales {
    first: vec4<f32>,
    last: vec4<f32>,
}

fn two_scales(halves: vec4<u32>) -> TwoScales {
    let a = decode_two_bytes(half_at(halves.x));
    let b = decode_two_bytes(half_at(halves.y));
    let c = decode_two_bytes(half_at(halves.z));
    let d = decode_two_bytes(half_at(halves.w));
    return TwoScales(vec4<f32>(a.x, b.x, c.x, d.x), vec4<f32>(a.y, b.y, c.y, d.y));
}

fn six_bits_of_rows(low: vec4<u32>, high: vec4<u32>, scales: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        scales.x * decode_six_bits(low.x, high.x),
        scales.y * decode_six_bits(low.y, high.y),
        scales.z * decode_six_bits(low.z, high.z),
        scales.w * decode_six_bits(low.w, high.w),
    );
}

fn rows_q6_k(rows: vec4<u32>) -> vec4<f32> {
    let n_parts = params[0].n_columns / 64u;
    let begins = rows * (n_parts / 4u) * 105u;
    var sums = vec4<f32>();
    for (var part = 0u; part < n_parts; part++) {
        let place = six_bits_of(part);
        let scales = two_scales(begins + place.scales);
        let scales_of_high = two_scales(begins + place.scales + 2u);
        var part_sums = vec4<f32>();
        for (var j = 0u; j < 8u; j++) {
            let nibbles = words_at_halves(begins + place.nibbles + j * 2u);
            let high_bits = words_at_halves(begins + place.high_bits + j * 2u) >> vec4<u32>(place.shift);
            let low = six_bits_of_rows(nibbles, high_bits, select(scales.first, scales.last, j > 3u));
            part_sums = add_to_rows(low, input[token_quads[0] + place.quad + j], part_sums);
            let of_high = select(scales_of_high.first, scales_of_high.last, j > 3u);
            let high = six_bits_of_rows(nibbles >> vec4<u32>(4u), high_bits >> vec4<u32>(4u), of_high);
            part_sums = add_to_rows(high, input[token_quads[0] + place.quad + j + 16u], part_sums);
        }
        let d = vec4<u32>(half_at(begins.x + place.scale), half_at(begins.y + place.scale), half_at(begins.z + place.scale), half_at(begins.w + place.scale));
        sums = fma(scales_of(d, vec4<bool>(false)), part_sums, sums);
    }
    return sums;
}

fn rows_blocks(rows: vec4<u32>) -> vec4<f32> {
    let n_parts = params[0].n_columns / 32u;
    var sums = vec4<f32>();
    for (var part = 0u; part < n_parts; part++) {
        let quad = token_quads[0] + quad_of(part);
        let first = inputs_at(quad);
        let last = inputs_at(quad + APART / 4u);
        sums.x = add_columns(columns_of(rows.x * n_parts + part), first, last, sums.x);
        sums.y = add_columns(columns_of(rows.y * n_parts + part), first, last, sums.y);
        sums.z = add_columns(columns_of(rows.z * n_parts + part), first, last, sums.z);
        sums.w = add_columns(columns_of(rows.w * n_parts + part), first, last, sums.w);
    }
    return sums;
}

fn rows_times_token(rows: vec4<u32>) -> vec4<f32> {
    if DTYPE == F32 {
        return rows_f32(rows);
    } else if DTYPE == Q8_0 {
        return rows_q8_0(rows);
    } else if DTYPE == Q4_0 || DTYPE == Q4_1 {
        return rows_q4(rows);
    } else if DTYPE == Q6_K {
        return rows_q6_k(rows);
    } else if DTYPE > LAST_WITH_OWN_PATH {
        return rows_blocks(rows);
    }
    return rows_halves(rows);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = local % LANES;
    let place = place_of(workgroup.x + workgroup.y * n_workgroups.x, WORKGROUP / LANES * ROWS, 1u);
    product = params[place.product];
    let row_begin = (place.group * (WORKGROUP / LANES) + local / LANES) * ROWS;
    let token_begin = workgroup.z * TOKENS;
    for (var i = 0u; i < ROWS; i++) {
        rows[i] = min(row_begin + i, product.n_rows - 1u);
    }
    for (var t = 0u; t < TOKENS; t++) {
        token_quads[t] = min(token_begin + t, params[0].n_tokens - 1u) * (params[0].n_columns / 4u);
    }
    for (var s = 0u; s < ROWS * TOKENS; s++) {
        sums[s] = 0.0;
    }

    if LANES == 1u && TOKENS == 1u {
        for (var i = 0u; i < ROWS; i += 4u) {
            let of_four = rows_times_token(vec4<u32>(rows[i], rows[i + 1u], rows[i + 2u], rows[i + 3u]));
            sums[i] = of_four.x;
            sums[i + 1u] = of_four.y;
            sums[i + 2u] = of_four.z;
            sums[i + 3u] = of_four.w;
        }
    } else if DTYPE == F32 {
        add_f32(lane);
    } else if DTYPE == Q8_0 {
        add_q8_0(lane);
    } else if DTYPE == Q4_0 || DTYPE == Q4_1 {
        add_q4(lane);
    } else if DTYPE == Q6_K {
        add_q6_k(lane);
    } else if DTYPE > LAST_WITH_OWN_PATH {
        add_blocks(lane);
    } else {
        add_halves(lane);
    }

    if LANES > 1u {
        for (var s = 0u; s < ROWS * TOKENS; s++) {
            partial[s * WORKGROUP + local] = sums[s];
        }
        for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
            workgroupBarrier(); // the partial sums of the level above are written
            if lane < stride {
                for (var s = 0u; s < ROWS * TOKENS; s++) {
                    partial[s * WORKGROUP + local] += partial[s * WORKGROUP + local + stride];
                }
            }
        }
        if lane != 0u {
            return;
        }
        for (var s = 0u; s < ROWS * TOKENS; s++) {
            sums[s] = partial[s * WORKGROUP + local];
        }
    }
    for (var i = 0u; i < ROWS; i++) {
        for (var t = 0u; t < TOKENS; t++) {
            let token = token_begin + t;
            if row_begin + i < product.n_rows && token < params[0].n_tokens {
                store(place.product, token, row_begin + i, sums[i * TOKENS + t]);
            }
        }
    }
}
