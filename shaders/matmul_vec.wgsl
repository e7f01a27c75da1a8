// output[t, output_row_begin + r] = sum over k of weight[r, k] * input[t, k], for few tokens and n_columns a multiple of 4.
//
// params  one per dispatch
// weight  [n_rows, n_columns] as stored (DTYPE); the first row begins at byte 0, each row at an even byte
// input   [n_tokens, n_columns] f32, read as quads
// output  [n_tokens, output_stride] f32
//
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
@group(0) @binding(1) var<storage, read> weight: array<u32>;
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

// Four weights of a plain dtype. Rows of n_columns % 4 == 0 values begin at a word.
fn plain_quad(row: u32, quad: u32) -> vec4<f32> {
    let index = row * (params.n_columns / 4u) + quad;
    if DTYPE == F32 {
        let word = index * 4u;
        return vec4<f32>(
            bitcast<f32>(weight[word]),
            bitcast<f32>(weight[word + 1u]),
            bitcast<f32>(weight[word + 2u]),
            bitcast<f32>(weight[word + 3u]),
        );
    }
    let low = weight[index * 2u];
    let high = weight[index * 2u + 1u];
    if DTYPE == F16 {
        return vec4<f32>(decode_f16(low), decode_f16(high));
    }
    return vec4<f32>(decode_bf16(low), decode_bf16(high));
}

fn add_plain(lane: u32) {
    for (var quad = lane; quad < params.n_columns / 4u; quad += LANES) {
        for (var i = 0u; i < ROWS; i++) {
            let values = plain_quad(rows[i], quad);
            for (var t = 0u; t < TOKENS; t++) {
                sums[i * TOKENS + t] = fma(values, input[token_quads[t] + quad], sums[i * TOKENS + t]);
            }
        }
    }
}

// d * q: the block's sum of q * x is scaled once.
fn add_q8_0(lane: u32) {
    let n_blocks = params.n_columns / 32u;
    for (var block = lane; block < n_blocks; block += LANES) {
        for (var i = 0u; i < ROWS; i++) {
            // 34 bytes from an even byte are within 9 words; the scale is in the upper half of the first where the block straddles.
            let half = (rows[i] * n_blocks + block) * 17u;
            let word = half / 2u;
            let straddles = (half & 1u) == 1u;
            var words: array<u32, 9>;
            for (var j = 0u; j < 9u; j++) {
                words[j] = weight[word + j];
            }
            let scales = decode_f16(words[0]);
            let d = select(scales.x, scales.y, straddles);
            var block_sums = array<vec4<f32>, 4>();
            for (var j = 0u; j < 8u; j++) {
                let values = decode_bytes(select(straddle(words[j], words[j + 1u]), words[j + 1u], straddles));
                for (var t = 0u; t < TOKENS; t++) {
                    block_sums[t] = fma(values, input[token_quads[t] + block * 8u + j], block_sums[t]);
                }
            }
            for (var t = 0u; t < TOKENS; t++) {
                sums[i * TOKENS + t] = fma(vec4<f32>(d), block_sums[t], sums[i * TOKENS + t]);
            }
        }
    }
}

// d * (q - 8).
fn add_q4_0(lane: u32) {
    let n_blocks = params.n_columns / 32u;
    for (var block = lane; block < n_blocks; block += LANES) {
        for (var i = 0u; i < ROWS; i++) {
            // 18 bytes from an even byte are within 5 words.
            let half = (rows[i] * n_blocks + block) * 9u;
            let word = half / 2u;
            let straddles = (half & 1u) == 1u;
            var words: array<u32, 5>;
            for (var j = 0u; j < 5u; j++) {
                words[j] = weight[word + j];
            }
            let scales = decode_f16(words[0]);
            let d = select(scales.x, scales.y, straddles);
            var block_sums = array<vec4<f32>, 4>();
            for (var j = 0u; j < 4u; j++) {
                let nibbles = select(straddle(words[j], words[j + 1u]), words[j + 1u], straddles);
                let low = decode_low_nibbles(nibbles) - 8.0;
                let high = decode_high_nibbles(nibbles) - 8.0;
                for (var t = 0u; t < TOKENS; t++) {
                    let quad = token_quads[t] + block * 8u + j;
                    block_sums[t] = fma(high, input[quad + 4u], fma(low, input[quad], block_sums[t]));
                }
            }
            for (var t = 0u; t < TOKENS; t++) {
                sums[i * TOKENS + t] = fma(vec4<f32>(d), block_sums[t], sums[i * TOKENS + t]);
            }
        }
    }
}

// d * q + m: the sum of m * x over a block is m times the sum of x, which all rows share.
fn add_q4_1(lane: u32) {
    let n_blocks = params.n_columns / 32u;
    for (var block = lane; block < n_blocks; block += LANES) {
        var input_sums = array<vec4<f32>, 4>();
        for (var j = 0u; j < 8u; j++) {
            for (var t = 0u; t < TOKENS; t++) {
                input_sums[t] += input[token_quads[t] + block * 8u + j];
            }
        }
        for (var i = 0u; i < ROWS; i++) {
            let word = (rows[i] * n_blocks + block) * 5u; // 20 bytes
            let scales = decode_f16(weight[word]);
            var block_sums = array<vec4<f32>, 4>();
            for (var j = 0u; j < 4u; j++) {
                let nibbles = weight[word + 1u + j];
                let low = decode_low_nibbles(nibbles);
                let high = decode_high_nibbles(nibbles);
                for (var t = 0u; t < TOKENS; t++) {
                    let quad = token_quads[t] + block * 8u + j;
                    block_sums[t] = fma(high, input[quad + 4u], fma(low, input[quad], block_sums[t]));
                }
            }
            for (var t = 0u; t < TOKENS; t++) {
                let scaled = fma(vec4<f32>(scales.y), input_sums[t], sums[i * TOKENS + t]);
                sums[i * TOKENS + t] = fma(vec4<f32>(scales.x), block_sums[t], scaled);
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

    if DTYPE == Q8_0 {
        add_q8_0(lane);
    } else if DTYPE == Q4_0 {
        add_q4_0(lane);
    } else if DTYPE == Q4_1 {
        add_q4_1(lane);
    } else {
        add_plain(lane);
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
