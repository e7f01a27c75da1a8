// Products of rows with inputs, 64 columns at a time, on adapters whose subgroups are eight lanes and that load 64-bit words: software,
// whose every load is a loop over the lanes. Appended to shaders that have `weight` (array<u64>), `input` (array<vec4<u64>>), and:
//
// fn first_word() -> u32            the 64-bit word of `weight` at which the matrix begins
// fn pairs_of_row() -> u32          n_columns / 64
// fn input_row(token: u32) -> u32   the row of `input` that the workgroup's token of this number has
//
// What costs is loads, by their number and not by their width: such an adapter puts each word of each lane into its vector
// through memory. So each lane has rows of its own, which it reads in the widest words and no word twice: two blocks at a time,
// since two begin where a word does, or half of one. Of the inputs each lane reads an eighth, and the subgroup passes it round.

override DTYPE: u32 = 0u;
override BLOCK_LEN: u32 = 32u;  // these three: see shared/blocks.wgsl
override BLOCK_BYTES: u32 = 0u;
override APART: u32 = 16u;
override ROWS: u32 = 4u;   // at most MAX_ROWS
override TOKENS: u32 = 1u; // a power of two, at most MAX_TOKENS

const LANES: u32 = 8u;
const MAX_ROWS: u32 = 16u;
const MAX_TOKENS: u32 = 8u;
const BLOCK_QUADS: u32 = 8u;   // 32 columns, as many as a block has
const PAIR_QUADS: u32 = 16u;   // of two blocks; two quads for each lane
const PAIR_COLUMNS: u32 = 64u;
const MAX_WORDS: u32 = 18u;    // of 32 bits, that hold a pair of quantised blocks, and up to four bytes more

var<private> x: array<vec4<f32>, MAX_TOKENS * PAIR_QUADS>; // [TOKENS, PAIR_QUADS]: the inputs of a pair of blocks
var<private> x_sums: array<vec2<f32>, MAX_TOKENS>;         // the sums of each token's, block by block
var<private> sums: array<f32, MAX_ROWS * MAX_TOKENS>;      // [ROWS, TOKENS]

// 64 columns of a row: the weights of each block are scale * quads + offset.
struct Pair {
    quads: array<vec4<f32>, PAIR_QUADS>,
    scales: vec2<f32>,
    offsets: vec2<f32>,
}

// `n_words` 64-bit words of the matrix, from its word `begin` on.
fn words_from(begin: u32, n_words: u32) -> array<u32, MAX_WORDS> {
    let first = first_word() + begin;
    var words: array<u32, MAX_WORDS>;
    for (var i = 0u; i < n_words; i++) {
        let word = weight[first + i];
        words[2u * i] = low(word);
        words[2u * i + 1u] = high(word);
    }
    return words;
}

// The first `n_words` 64-bit words that hold what begins `begin` 32-bit words behind the matrix's first byte, from there on.
fn words_at(begin: u32, n_words: u32) -> array<u32, MAX_WORDS> {
    var words = words_from(begin / 2u, n_words);
    // Pairs of these have an odd number of 32-bit words, so every other one begins in the middle of a 64-bit word.
    if DTYPE == Q4_0 || DTYPE == Q8_0 {
        let is_odd = (begin & 1u) == 1u;
        for (var i = 0u; i + 1u < 2u * n_words; i++) {
            words[i] = select(words[i], words[i + 1u], is_odd);
        }
    }
    return words;
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

// What the inputs of this lane's quads are multiplied with so that standing nibbles count as they should: powers of two, so
// exact. The lower half of a block's quads are low nibbles.
fn nibble_scales(lane: u32) -> vec4<f32> {
    let for_low = vec4<f32>(1.0, 0x1p-8, 0x1p-16, 0x1p-24);
    let for_high = vec4<f32>(0x1p-4, 0x1p-12, 0x1p-20, 1.0);
    return select(for_low, for_high, (lane & 2u) != 0u);
}

fn nibble_pair(pair: u32) -> Pair {
    var made: Pair;
    let words = words_at(pair * select(10u, 9u, DTYPE == Q4_0), 5u);
    let first = decode_f16(words[0]);
    let second = select(decode_f16(words[5]), decode_f16(words[4]).yy, DTYPE == Q4_0);
    made.scales = vec2<f32>(first.x, second.x);
    made.offsets = select(vec2<f32>(first.y, second.y), -8.0 * made.scales, DTYPE == Q4_0);
    for (var j = 0u; j < 4u; j++) {
        let quants = select(words[j + 1u], straddle(words[j], words[j + 1u]), DTYPE == Q4_0);
        let quants_of_second = select(words[j + 6u], words[j + 5u], DTYPE == Q4_0);
        made.quads[j] = standing_low_nibbles(quants);
        made.quads[j + 4u] = standing_high_nibbles(quants);
        made.quads[j + 8u] = standing_low_nibbles(quants_of_second);
        made.quads[j + 12u] = standing_high_nibbles(quants_of_second);
    }
    return made;
}

fn byte_pair(pair: u32) -> Pair {
    var made: Pair;
    let words = words_at(pair * 17u, 9u);
    made.scales = vec2<f32>(decode_f16(words[0]).x, decode_f16(words[8]).y);
    for (var j = 0u; j < BLOCK_QUADS; j++) {
        made.quads[j] = decode_bytes(straddle(words[j], words[j + 1u]));
        made.quads[j + BLOCK_QUADS] = decode_bytes(words[j + 9u]);
    }
    return made;
}

// The 32-bit words that begin at 16-bit unit `half` of the matrix, in the first `n_words` 64-bit words that hold some of them.
fn words_at_half(half: u32, n_words: u32) -> array<u32, MAX_WORDS> {
    var words = words_from(half / 4u, n_words);
    let is_odd = (half & 2u) != 0u;
    let is_split = (half & 1u) != 0u;
    for (var i = 0u; i + 2u < 2u * n_words; i++) {
        let word = select(words[i], words[i + 1u], is_odd);
        let next = select(words[i + 1u], words[i + 2u], is_odd);
        words[i] = select(word, straddle(word, next), is_split);
    }
    // Behind them a half that needs no neighbour.
    let last = 2u * n_words - 2u;
    let tail = select(words[last], words[last + 1u], is_odd);
    words[last] = select(tail, tail >> 16u, is_split);
    return words;
}

// 64 columns of a block of Q6_K: its part `2 * n + k` of four, with the scales of each 16 columns multiplied in, as integers.
fn six_bit_pair(pair: u32) -> Pair {
    var made: Pair;
    let begin = pair / 4u * 105u;
    let n = pair % 4u / 2u;
    let k = pair & 1u;
    // From the last 18 bytes on, which are scales and their scale, three 64-bit words reach no further than the matrix does.
    let ends = words_at_half(begin + 96u, 3u);
    let scales = decode_bytes(select(select(ends[0], ends[1], k == 1u), select(ends[2], ends[3], k == 1u), n == 1u));
    made.scales = vec2<f32>(decode_f16(ends[4]).x);
    made.offsets = vec2<f32>(0.0);
    // The upper 64 columns of a half are high nibbles.
    let nibbles = words_at_half(begin + n * 32u, 9u);
    let high_bits = words_at_half(begin + 64u + n * 16u, 5u);
    for (var j = 0u; j < BLOCK_QUADS; j++) {
        let first_scale = select(scales.x, scales.y, j > 3u);
        let last_scale = select(scales.z, scales.w, j > 3u);
        made.quads[j] = first_scale * decode_six_bits(nibbles[j] >> (k * 4u), high_bits[j] >> (k * 4u));
        made.quads[j + BLOCK_QUADS] = last_scale * decode_six_bits(nibbles[j + BLOCK_QUADS] >> (k * 4u), high_bits[j] >> (k * 4u + 2u));
    }
    return made;
}

fn stored(word: u32) -> u32 {
    let both = weight[first_word() + word / 2u];
    return select(low(both), high(both), (word & 1u) == 1u);
}

// Sixteen bytes from any byte on.
fn quad_at(byte: u32) -> vec4<u32> {
    let first = first_word();
    let a = weight[first + byte / 8u];
    let b = weight[first + byte / 8u + 1u];
    let c = weight[first + (byte + 15u) / 8u];
    let is_odd = (byte & 4u) != 0u;
    let words = select(vec4<u32>(low(a), high(a), low(b), high(b)), vec4<u32>(high(a), low(b), high(b), low(c)), is_odd);
    return from_byte(words, vec4<u32>(words.yzw, select(low(c), high(c), is_odd)), byte);
}

// Every other dtype of blocks, as shared/blocks.wgsl decodes them.
fn decoded_pair(pair: u32) -> Pair {
    var made: Pair;
    made.scales = vec2<f32>(1.0);
    let a = columns_of(2u * pair);
    let b = columns_of(2u * pair + 1u);
    // In the order of columns.
    put(&made, 0u, a.first);
    if APART == 16u {
        put(&made, 4u, a.last);
        put(&made, 8u, b.first);
    } else {
        put(&made, 4u, b.first);
        put(&made, 8u, a.last);
    }
    put(&made, 12u, b.last);
    return made;
}

fn put(pair: ptr<function, Pair>, quad: u32, columns: mat4x4<f32>) {
    (*pair).quads[quad] = columns[0];
    (*pair).quads[quad + 1u] = columns[1];
    (*pair).quads[quad + 2u] = columns[2];
    (*pair).quads[quad + 3u] = columns[3];
}

fn plain_quad(begin: u32, quad: u32) -> vec4<f32> {
    if DTYPE == F32 {
        return floats(vec2<u64>(weight[begin + 2u * quad], weight[begin + 2u * quad + 1u]));
    }
    let word = weight[begin + quad];
    if DTYPE == F16 {
        return halves(word);
    }
    return vec4<f32>(decode_bf16(low(word)), decode_bf16(high(word)));
}

fn plain_pair(pair: u32) -> Pair {
    var made: Pair;
    made.scales = vec2<f32>(1.0);
    let begin = first_word() + pair * select(PAIR_QUADS, PAIR_QUADS * 2u, DTYPE == F32);
    for (var j = 0u; j < BLOCK_QUADS; j++) {
        made.quads[j] = plain_quad(begin, j);
        made.quads[j + BLOCK_QUADS] = plain_quad(begin, j + BLOCK_QUADS);
    }
    return made;
}

fn pair_of(row: u32, pair: u32) -> Pair {
    let index = row * pairs_of_row() + pair;
    if DTYPE == Q4_0 || DTYPE == Q4_1 {
        return nibble_pair(index);
    }
    if DTYPE == Q8_0 {
        return byte_pair(index);
    }
    if DTYPE == Q6_K {
        return six_bit_pair(index);
    }
    if DTYPE > LAST_WITH_OWN_PATH {
        return decoded_pair(index);
    }
    return plain_pair(index);
}

fn sum_of(quad: vec4<f32>) -> f32 {
    return (quad.x + quad.y) + (quad.z + quad.w);
}

// Adds one pair of blocks of a row to the sum of a token; `first_sum` is that of the row's first token.
fn add_token(t: u32, first_sum: u32, w: ptr<function, Pair>) {
    var first = vec4<f32>(0.0);
    var second = vec4<f32>(0.0);
    for (var j = 0u; j < BLOCK_QUADS; j++) {
        first = fma((*w).quads[j], x[t * PAIR_QUADS + j], first);
        second = fma((*w).quads[j + BLOCK_QUADS], x[t * PAIR_QUADS + BLOCK_QUADS + j], second);
    }
    let both = fma((*w).scales, vec2<f32>(sum_of(first), sum_of(second)), (*w).offsets * x_sums[t]);
    sums[first_sum + t] += both.x + both.y;
}

// Adds one pair of blocks of a row of this lane to the sums of all tokens. The calls stand written out because a loop would not
// be unrolled, and then the quads would be indexed in memory.
fn add_row(row: u32, pair: u32, first_sum: u32) {
    var w = pair_of(row, pair);
    add_token(0u, first_sum, &w);
    if TOKENS > 1u {
        add_token(1u, first_sum, &w);
    }
    if TOKENS > 2u {
        add_token(2u, first_sum, &w);
        add_token(3u, first_sum, &w);
    }
    if TOKENS > 4u {
        add_token(4u, first_sum, &w);
        add_token(5u, first_sum, &w);
        add_token(6u, first_sum, &w);
        add_token(7u, first_sum, &w);
    }
}

// Reads the inputs of a pair of blocks: each lane two quads of each token, which then all lanes get.
fn load_inputs(pair: u32, lane: u32) {
    var scales = vec4<f32>(1.0);
    if DTYPE == Q4_0 || DTYPE == Q4_1 {
        scales = nibble_scales(lane);
    }
    let is_of_first = lane < LANES / 2u;
    for (var t = 0u; t < TOKENS; t++) {
        let words = input[(input_row(t) * pairs_of_row() + pair) * LANES + lane];
        let even = floats(words.xy);
        let odd = floats(words.zw);
        let sum = sum_of(even + odd);
        x_sums[t] = vec2<f32>(subgroupAdd(select(0.0, sum, is_of_first)), subgroupAdd(select(sum, 0.0, is_of_first)));
        spread(t * PAIR_QUADS, even * scales, odd * scales);
    }
}

// Puts the quads of all lanes into `x`, from `begin` on.
fn spread(begin: u32, even: vec4<f32>, odd: vec4<f32>) {
    x[begin + 0u] = subgroupBroadcast(even, 0u);
    x[begin + 1u] = subgroupBroadcast(odd, 0u);
    x[begin + 2u] = subgroupBroadcast(even, 1u);
    x[begin + 3u] = subgroupBroadcast(odd, 1u);
    x[begin + 4u] = subgroupBroadcast(even, 2u);
    x[begin + 5u] = subgroupBroadcast(odd, 2u);
    x[begin + 6u] = subgroupBroadcast(even, 3u);
    x[begin + 7u] = subgroupBroadcast(odd, 3u);
    x[begin + 8u] = subgroupBroadcast(even, 4u);
    x[begin + 9u] = subgroupBroadcast(odd, 4u);
    x[begin + 10u] = subgroupBroadcast(even, 5u);
    x[begin + 11u] = subgroupBroadcast(odd, 5u);
    x[begin + 12u] = subgroupBroadcast(even, 6u);
    x[begin + 13u] = subgroupBroadcast(odd, 6u);
    x[begin + 14u] = subgroupBroadcast(even, 7u);
    x[begin + 15u] = subgroupBroadcast(odd, 7u);
}

// The `i`th row of a lane, counted from the workgroup's first. Rows of blocks are short: if the lanes' rows lay side by side, each
// page of memory would hold more streams than the processor fetches ahead, and 576 columns of Q8_0 take 1.3 times as long. So a lane
// has neighbours. With unquantised weights that takes 1.06 times as long as rows side by side.
fn row_of(lane: u32, i: u32) -> u32 {
    return select(i * LANES + lane, lane * ROWS + i, DTYPE > BF16);
}
