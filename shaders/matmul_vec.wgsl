// output[t, output_row_begin + r] = sum over k of weight[r, k] * input[t, k], for few tokens and rows of whole quads of words
// (n_columns a multiple of 4 for F32, 8 for F16 and BF16, 32 for blocks).
//
// params  one per dispatch
// weight  [n_rows, n_columns] as stored (DTYPE); the first row begins at byte 0, each row at an even byte; read four words at a time
// input   [n_tokens, n_columns] f32, read as quads
// output  [n_tokens, output_stride] f32
//
// All loads are of four words: software adapters pay per load and lane, not per byte.
// LANES lanes share a row and ROWS rows, for TOKENS tokens at a time; z counts the groups of tokens.
// Which lane adds which products depends on n_columns alone, so a row's result is the same in every slice and every batch.

struct Params {
    n_rows: u32,
    n_columns: u32,
    n_tokens: u32,
    output_stride: u32,
    output_row_begin: u32,
    dtype: u32, // chosen at pipeline creation, as DTYPE
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

override DTYPE: u32 = 0u;
override LANES: u32 = 32u;     // a power of two
override WORKGROUP: u32 = 64u; // a multiple of LANES, at most 64
override ROWS: u32 = 4u;       // at most 4
override TOKENS: u32 = 1u;     // at most 4

const MAX_SUMS: u32 = 16u; // ROWS * TOKENS
const MAX_WORKGROUP: u32 = 64u;

var<workgroup> partial: array<f32, 1024>; // MAX_SUMS * MAX_WORKGROUP

var<private> sums: array<vec4<f32>, MAX_SUMS>;
var<private> rows: array<u32, 4>;        // the rows of this lane, the last one repeated past the end
var<private> token_quads: array<u32, 4>; // where the tokens of this lane begin in `input`

fn add_f32(lane: u32) {
    let n_quads = params.n_columns / 4u;
    for (var quad = lane; quad < n_quads; quad += LANES) {
        for (var i = 0u; i < ROWS; i++) {
            let values = bitcast<vec4<f32>>(weight[rows[i] * n_quads + quad]);
            for (var t = 0u; t < TOKENS; t++) {
                sums[i * TOKENS + t] = fma(values, input[token_quads[t] + quad], sums[i * TOKENS + t]);
            }
        }
    }
}

// F16 and BF16: eight values to four words.
fn add_halves(lane: u32) {
    let n_octets = params.n_columns / 8u;
    for (var octet = lane; octet < n_octets; octet += LANES) {
        for (var i = 0u; i < ROWS; i++) {
            let words = weight[rows[i] * n_octets + octet];
            var low = vec4<f32>(decode_bf16(words.x), decode_bf16(words.y));
            var high = vec4<f32>(decode_bf16(words.z), decode_bf16(words.w));
            if DTYPE == F16 {
                low = vec4<f32>(decode_f16(words.x), decode_f16(words.y));
                high = vec4<f32>(decode_f16(words.z), decode_f16(words.w));
            }
            for (var t = 0u; t < TOKENS; t++) {
                let quad = token_quads[t] + octet * 2u;
                sums[i * TOKENS + t] = fma(high, input[quad + 1u], fma(low, input[quad], sums[i * TOKENS + t]));
            }
        }
    }
}

// The four words that begin `shift` (0 to 3) words into `first`.
fn shifted(first: vec4<u32>, second: vec4<u32>, shift: u32) -> vec4<u32> {
    let by_two = (shift & 2u) != 0u;
    let low = select(first, vec4<u32>(first.zw, second.xy), by_two);
    let next = select(second.x, second.z, by_two);
    return select(low, vec4<u32>(low.yzw, next), (shift & 1u) != 0u);
}

// 34 bytes from an even byte, d * q. The block's sum of q * x is scaled once.
fn add_q8_0(lane: u32) {
    let n_blocks = params.n_columns / 32u;
    for (var block = lane; block < n_blocks; block += LANES) {
        for (var i = 0u; i < ROWS; i++) {
            // Nine words hold the block; its scale is the upper half of the first where it straddles.
            let half = (rows[i] * n_blocks + block) * 17u;
            let straddles = (half & 1u) == 1u;
            let word = half / 2u;
            let q0 = weight[word / 4u];
            let q1 = weight[word / 4u + 1u];
            // The ninth word ends in the third quad, unless the block ends with the second.
            let q2 = weight[(word + 8u) / 4u];
            let shift = word & 3u;
            let words0 = shifted(q0, q1, shift);
            let words1 = shifted(q1, q2, shift);
            let last = q2[shift];
            let scales = decode_f16(words0.x);
            let d = select(scales.x, scales.y, straddles);
            let next0 = vec4<u32>(words0.yzw, words1.x);
            let next1 = vec4<u32>(words1.yzw, last);
            let quants0 = select(straddle(words0, next0), next0, straddles);
            let quants1 = select(straddle(words1, next1), next1, straddles);
            let quad = block * 8u;
            for (var t = 0u; t < TOKENS; t++) {
                let begin = token_quads[t] + quad;
                var sum = decode_bytes(quants0.x) * input[begin];
                sum = fma(decode_bytes(quants0.y), input[begin + 1u], sum);
                sum = fma(decode_bytes(quants0.z), input[begin + 2u], sum);
                sum = fma(decode_bytes(quants0.w), input[begin + 3u], sum);
                sum = fma(decode_bytes(quants1.x), input[begin + 4u], sum);
                sum = fma(decode_bytes(quants1.y), input[begin + 5u], sum);
                sum = fma(decode_bytes(quants1.z), input[begin + 6u], sum);
                sum = fma(decode_bytes(quants1.w), input[begin + 7u], sum);
                sums[i * TOKENS + t] = fma(vec4<f32>(d), sum, sums[i * TOKENS + t]);
            }
        }
    }
}

// The sum of q * x over a block of nibbles, whose first token value is quad `begin`.
fn nibble_products(quants: vec4<u32>, begin: u32) -> vec4<f32> {
    var sum = decode_low_nibbles(quants.x) * input[begin];
    sum = fma(decode_low_nibbles(quants.y), input[begin + 1u], sum);
    sum = fma(decode_low_nibbles(quants.z), input[begin + 2u], sum);
    sum = fma(decode_low_nibbles(quants.w), input[begin + 3u], sum);
    sum = fma(decode_high_nibbles(quants.x), input[begin + 4u], sum);
    sum = fma(decode_high_nibbles(quants.y), input[begin + 5u], sum);
    sum = fma(decode_high_nibbles(quants.z), input[begin + 6u], sum);
    return fma(decode_high_nibbles(quants.w), input[begin + 7u], sum);
}

// The sum of x over a block: what a block's constant part is multiplied with, the same for all rows.
fn input_sum(begin: u32) -> vec4<f32> {
    return ((input[begin] + input[begin + 1u]) + (input[begin + 2u] + input[begin + 3u]))
        + ((input[begin + 4u] + input[begin + 5u]) + (input[begin + 6u] + input[begin + 7u]));
}

// Q4_0: 18 bytes from an even byte, d * (q - 8). Q4_1: 20 bytes, d * q + m. Either way scale * q + offset.
fn add_q4(lane: u32) {
    let n_blocks = params.n_columns / 32u;
    for (var block = lane; block < n_blocks; block += LANES) {
        var input_sums: array<vec4<f32>, 4>;
        for (var t = 0u; t < TOKENS; t++) {
            input_sums[t] = input_sum(token_quads[t] + block * 8u);
        }
        for (var i = 0u; i < ROWS; i++) {
            let half = (rows[i] * n_blocks + block) * select(10u, 9u, DTYPE == Q4_0);
            let word = half / 2u;
            let shift = word & 3u;
            let first = weight[word / 4u];
            // The fifth word ends in the next quad, unless the binding ends with this one's.
            let second = weight[(word + 4u) / 4u];
            let words = shifted(first, second, shift);
            let next = vec4<u32>(words.yzw, second[shift]);
            let halves = decode_f16(words.x);
            var scale = halves.x;
            var offset = halves.y;
            var quants = next;
            if DTYPE == Q4_0 {
                let straddles = (half & 1u) == 1u;
                scale = select(halves.x, halves.y, straddles);
                offset = -8.0 * scale;
                quants = select(straddle(words, next), next, straddles);
            }
            for (var t = 0u; t < TOKENS; t++) {
                let shared_part = fma(vec4<f32>(offset), input_sums[t], sums[i * TOKENS + t]);
                let products = nibble_products(quants, token_quads[t] + block * 8u);
                sums[i * TOKENS + t] = fma(vec4<f32>(scale), products, shared_part);
            }
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = local % LANES;
    let group = (workgroup.x + workgroup.y * n_workgroups.x) * (WORKGROUP / LANES) + local / LANES;
    let row_begin = group * ROWS;
    let token_begin = workgroup.z * TOKENS;
    for (var i = 0u; i < ROWS; i++) {
        rows[i] = min(row_begin + i, params.n_rows - 1u);
    }
    for (var t = 0u; t < TOKENS; t++) {
        token_quads[t] = min(token_begin + t, params.n_tokens - 1u) * (params.n_columns / 4u);
    }
    for (var s = 0u; s < ROWS * TOKENS; s++) {
        sums[s] = vec4<f32>(0.0);
    }

    if DTYPE == F32 {
        add_f32(lane);
    } else if DTYPE == Q8_0 {
        add_q8_0(lane);
    } else if DTYPE == Q4_0 || DTYPE == Q4_1 {
        add_q4(lane);
    } else {
        add_halves(lane);
    }

    for (var s = 0u; s < ROWS * TOKENS; s++) {
        partial[s * MAX_WORKGROUP + local] = (sums[s].x + sums[s].y) + (sums[s].z + sums[s].w);
    }
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier(); // the partial sums of the level above are written
        if lane < stride {
            for (var s = 0u; s < ROWS * TOKENS; s++) {
                partial[s * MAX_WORKGROUP + local] += partial[s * MAX_WORKGROUP + local + stride];
            }
        }
    }
    if lane != 0u {
        return;
    }
    for (var i = 0u; i < ROWS; i++) {
        for (var t = 0u; t < TOKENS; t++) {
            let token = token_begin + t;
            if row_begin + i < params.n_rows && token < params.n_tokens {
                output[token * params.output_stride + params.output_row_begin + row_begin + i] =
                    partial[(i * TOKENS + t) * MAX_WORKGROUP + local];
            }
        }
    }
}
