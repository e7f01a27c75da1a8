// Blocks of the dtypes that have no path of their own in the matrix products: one function each, a row of `columns_of`.
// Appended to shaders that have `stored`, the matrix's 32-bit word at an index, `quad_at`, sixteen bytes from a byte on, `grid`, from which
// blocks of some dtypes choose (`DType::grid`), and as overrides BLOCK_LEN, the columns of a block, BLOCK_BYTES, and APART, the columns
// between two that share bytes: 16 or 32.
// Blocks begin at any byte. Nothing here touches a word that holds none of the bytes asked for.

// The last of the codes whose dtypes have paths of their own.
const LAST_WITH_OWN_PATH: u32 = Q6_K;

const Q5_0: u32 = 7u;
const Q5_1: u32 = 8u;
const Q4_K: u32 = 9u;
const Q5_K: u32 = 10u;
const Q3_K: u32 = 11u;
const IQ4_NL: u32 = 12u;
const IQ4_XS: u32 = 13u;
const MXFP4: u32 = 14u;
const Q2_K: u32 = 15u;
const TQ1_0: u32 = 16u;
const TQ2_0: u32 = 17u;
const IQ3_XXS: u32 = 18u;
const IQ3_S: u32 = 19u;
const IQ2_XXS: u32 = 20u;
const IQ2_XS: u32 = 21u;
const IQ2_S: u32 = 22u;
const IQ1_S: u32 = 23u;
const IQ1_M: u32 = 24u;

// Sixteen neighbouring columns: scale * bytes + minimum, where the bytes are signed, the lowest first.
struct Sixteen {
    bytes: vec4<u32>,
    scale: f32,
    minimum: f32,
}

// Two times sixteen columns whose bits share bytes; `last` stands APART columns behind `first`.
struct Part {
    first: Sixteen,
    last: Sixteen,
}

// The same, decoded: four columns in each column of a matrix.
struct Columns {
    first: mat4x4<f32>,
    last: mat4x4<f32>,
}

// Of the column in which part `part` of a row begins, the quad.
fn quad_of(part: u32) -> u32 {
    return select(part / 2u * 16u + part % 2u * 4u, part * 8u, APART == 16u);
}

// Part `part` of the matrix, of which each row has n_columns / 32.
fn columns_of(part: u32) -> Columns {
    let begin = part / (BLOCK_LEN / 32u) * BLOCK_BYTES;
    let both = part_of(begin, part % (BLOCK_LEN / 32u));
    return Columns(scaled(both.first), scaled(both.last));
}

// Part `part` of the block that begins at byte `begin`.
fn part_of(begin: u32, part: u32) -> Part {
    switch DTYPE {
        case Q5_0: {
            return part_q5_0(begin);
        }
        case Q5_1: {
            return part_q5_1(begin);
        }
        case Q4_K: {
            return part_q4_k(begin, part);
        }
        case Q5_K: {
            return part_q5_k(begin, part);
        }
        case Q3_K: {
            return part_q3_k(begin, part);
        }
        case IQ4_NL: {
            return part_iq4_nl(begin);
        }
        case IQ4_XS: {
            return part_iq4_xs(begin, part);
        }
        case MXFP4: {
            return part_mxfp4(begin);
        }
        case Q2_K: {
            return part_q2_k(begin, part);
        }
        case TQ1_0: {
            return part_tq1_0(begin, part);
        }
        case TQ2_0: {
            return part_tq2_0(begin, part);
        }
        case IQ3_XXS: {
            return part_iq3_xxs(begin, part);
        }
        case IQ3_S: {
            return part_iq3_s(begin, part);
        }
        case IQ2_XXS: {
            return part_iq2_xxs(begin, part);
        }
        case IQ2_XS: {
            return part_iq2_xs(begin, part);
        }
        case IQ2_S: {
            return part_iq2_s(begin, part);
        }
        case IQ1_S: {
            return part_iq1_s(begin, part);
        }
        case IQ1_M: {
            return part_iq1_m(begin, part);
        }
        default: {
            return Part();
        }
    }
}

fn scaled(columns: Sixteen) -> mat4x4<f32> {
    let scale = vec4<f32>(columns.scale);
    let minimum = vec4<f32>(columns.minimum);
    return mat4x4<f32>(
        fma(scale, decode_bytes(columns.bytes.x), minimum),
        fma(scale, decode_bytes(columns.bytes.y), minimum),
        fma(scale, decode_bytes(columns.bytes.z), minimum),
        fma(scale, decode_bytes(columns.bytes.w), minimum),
    );
}

// What begins in `words` at a byte's place in its word and goes on in `next`, the words behind them.
fn from_byte(words: vec4<u32>, next: vec4<u32>, byte: u32) -> vec4<u32> {
    let shift = (byte & 3u) * 8u;
    return (words >> vec4<u32>(shift)) | ((next << vec4<u32>(31u - shift)) << vec4<u32>(1u));
}

// Four bytes from any byte on.
fn word_at_byte(byte: u32) -> u32 {
    let shift = (byte & 3u) * 8u;
    return (stored(byte / 4u) >> shift) | ((stored((byte + 3u) / 4u) << (31u - shift)) << 1u);
}

fn byte_at(byte: u32) -> u32 {
    return (stored(byte / 4u) >> ((byte & 3u) * 8u)) & 0xffu;
}

// The half that begins at an even byte.
fn f16_at(byte: u32) -> f32 {
    return decode_f16(half_at_byte(byte)).x;
}

// Its bits; above them others.
fn half_at_byte(byte: u32) -> u32 {
    return stored(byte / 4u) >> ((byte & 2u) * 8u);
}

const LOW_NIBBLES: vec4<u32> = vec4<u32>(0x0f0f0f0fu);

fn low_nibbles(bytes: vec4<u32>) -> vec4<u32> {
    return bytes & LOW_NIBBLES;
}

fn high_nibbles(bytes: vec4<u32>) -> vec4<u32> {
    return (bytes >> vec4<u32>(4u)) & LOW_NIBBLES;
}

// The lowest sixteen bits, one in each byte.
fn one_bits(bits: u32) -> vec4<u32> {
    let fours = (vec4<u32>(bits) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    return (fours * 0x00204081u) & vec4<u32>(0x01010101u);
}

// The same as the bit above a nibble.
fn fifth_bits(bits: u32) -> vec4<u32> {
    return one_bits(bits) << vec4<u32>(4u);
}

// f16 scale, 32 fifth bits, nibbles of columns 0 to 15 and 16 to 31: d * (q - 16).
fn part_q5_0(begin: u32) -> Part {
    let d = f16_at(begin);
    let bits = word_at_byte(begin + 2u);
    let nibbles = quad_at(begin + 6u);
    return Part(
        Sixteen(low_nibbles(nibbles) | fifth_bits(bits), d, -16.0 * d),
        Sixteen(high_nibbles(nibbles) | fifth_bits(bits >> 16u), d, -16.0 * d),
    );
}

// f16 scale and minimum, 32 fifth bits, nibbles as in Q5_0: d * q + m.
fn part_q5_1(begin: u32) -> Part {
    let factors = decode_f16(word_at_byte(begin));
    let bits = word_at_byte(begin + 4u);
    let nibbles = quad_at(begin + 8u);
    return Part(
        Sixteen(low_nibbles(nibbles) | fifth_bits(bits), factors.x, factors.y),
        Sixteen(high_nibbles(nibbles) | fifth_bits(bits >> 16u), factors.x, factors.y),
    );
}

// Two f16, by which scales and minimums are multiplied, 12 bytes of these, 128 of nibbles: 32 bytes hold the low nibbles of 32 columns and
// the high ones of the next 32. d * s * q - dmin * m.
fn part_q4_k(begin: u32, part: u32) -> Part {
    let head = quad_at(begin);
    let nibbles = quad_at(begin + 16u + part * 16u);
    let first = scale_and_minimum(head, part / 2u * 2u);
    let last = scale_and_minimum(head, part / 2u * 2u + 1u);
    return Part(Sixteen(low_nibbles(nibbles), first.x, first.y), Sixteen(high_nibbles(nibbles), last.x, last.y));
}

// The scale and the minimum of 32 columns of Q4_K or Q5_K: six bits each, in the first sixteen bytes of a block, behind the halves that
// multiply them.
fn scale_and_minimum(head: vec4<u32>, index: u32) -> vec2<f32> {
    let bytes = (head.yzw >> vec3<u32>(index % 4u * 8u)) & vec3<u32>(0xffu);
    let scale = select((bytes.z & 15u) | ((bytes.x >> 6u) << 4u), bytes.x & 63u, index < 4u);
    let minimum = select((bytes.z >> 4u) | ((bytes.y >> 6u) << 4u), bytes.y & 63u, index < 4u);
    let factors = decode_f16(head.x);
    return vec2<f32>(factors.x * f32(scale), -factors.y * f32(minimum));
}

// As Q4_K, with 32 bytes of fifth bits before the nibbles: of 32 columns the bits of one place.
fn part_q5_k(begin: u32, part: u32) -> Part {
    let index = part / 2u * 2u;
    let bits = quad_at(begin + 16u + part % 2u * 16u) >> vec4<u32>(index);
    let nibbles = quad_at(begin + 48u + part * 16u);
    let head = quad_at(begin);
    let first = scale_and_minimum(head, index);
    let last = scale_and_minimum(head, index + 1u);
    return Part(
        Sixteen(low_nibbles(nibbles) | lowest_bits(bits, 4u), first.x, first.y),
        Sixteen(high_nibbles(nibbles) | lowest_bits(bits >> vec4<u32>(1u), 4u), last.x, last.y),
    );
}

// The lowest bit of each byte, moved up.
fn lowest_bits(bytes: vec4<u32>, by: u32) -> vec4<u32> {
    return (bytes & vec4<u32>(0x01010101u)) << vec4<u32>(by);
}

// 32 bytes of third bits, 64 of two bits each, 12 of 6-bit scales for sixteen columns each, f16 scale: d * (s - 32) * (q - 4).
fn part_q3_k(begin: u32, part: u32) -> Part {
    let index = part / 2u * 2u;
    let side = part % 2u;
    // The last sixteen bytes: two bits, scales, their scale.
    let tail = quad_at(begin + 94u);
    let d = decode_f16(tail.w >> 16u).x;
    let high = quad_at(begin + side * 16u) >> vec4<u32>(index);
    let low = two_bits(begin + 32u, part);
    let first = d * scale_of_q3_k(tail, index * 2u + side);
    let last = d * scale_of_q3_k(tail, index * 2u + 2u + side);
    return Part(
        Sixteen(low.first | lowest_bits(high, 2u), first, -4.0 * first),
        Sixteen(low.last | lowest_bits(high >> vec4<u32>(1u), 2u), last, -4.0 * last),
    );
}

// Of sixteen 6-bit scales the one at `index`: four bits in eight bytes, from the third of `tail` on, two in the next four.
fn scale_of_q3_k(tail: vec4<u32>, index: u32) -> f32 {
    let low_words = vec2<u32>(straddle(tail.x, tail.y), straddle(tail.y, tail.z));
    let low = select(low_words.x, low_words.y, (index & 4u) != 0u) >> (index % 4u * 8u + index / 8u * 4u);
    let high = straddle(tail.z, tail.w) >> (index % 4u * 8u + index / 4u * 2u);
    return f32((low & 15u) | ((high & 3u) << 4u)) - 32.0;
}

// Of both sixteen columns two bits each, from bytes that hold those of four.
struct TwoBits {
    first: vec4<u32>,
    last: vec4<u32>,
}

fn two_bits(begin: u32, part: u32) -> TwoBits {
    let bits = quad_at(begin + part / 4u * 32u + part % 2u * 16u) >> vec4<u32>(part % 4u / 2u * 4u);
    return TwoBits(bits & vec4<u32>(0x03030303u), (bits >> vec4<u32>(2u)) & vec4<u32>(0x03030303u));
}

// f16 scale, nibbles as in Q5_0 that choose among sixteen integers.
fn part_iq4_nl(begin: u32) -> Part {
    let d = f16_at(begin);
    let nibbles = quad_at(begin + 2u);
    return Part(Sixteen(chosen(IQ4, low_nibbles(nibbles)), d, 0.0), Sixteen(chosen(IQ4, high_nibbles(nibbles)), d, 0.0));
}

// -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89 and 113 as bytes.
const IQ4: vec4<u32> = vec4<u32>(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);

// Instead of each byte, which is a nibble, the byte of `table` at that place.
fn chosen(table: vec4<u32>, nibbles: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(four_chosen(table, nibbles.x), four_chosen(table, nibbles.y), four_chosen(table, nibbles.z), four_chosen(table, nibbles.w));
}

fn four_chosen(table: vec4<u32>, nibbles: u32) -> u32 {
    let places = (vec4<u32>(nibbles) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u);
    let are_odd = (places & vec4<u32>(4u)) != vec4<u32>(0u);
    let lower = select(table.xxxx, table.yyyy, are_odd);
    let upper = select(table.zzzz, table.wwww, are_odd);
    let words = select(lower, upper, (places & vec4<u32>(8u)) != vec4<u32>(0u));
    let bytes = (words >> ((places & vec4<u32>(3u)) * 8u)) & vec4<u32>(0xffu);
    return bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
}

// f16 scale, 6-bit scales of 32 columns each (16 high bits, 4 bytes of low nibbles), nibbles as in IQ4_NL: d * (s - 32) * integer.
fn part_iq4_xs(begin: u32, part: u32) -> Part {
    let halves = word_at_byte(begin);
    let low = (byte_at(begin + 4u + part / 2u) >> (part % 2u * 4u)) & 15u;
    let high = (halves >> (16u + part * 2u)) & 3u;
    let scale = decode_f16(halves).x * (f32(low | (high << 4u)) - 32.0);
    let nibbles = quad_at(begin + 8u + part * 16u);
    return Part(Sixteen(chosen(IQ4, low_nibbles(nibbles)), scale, 0.0), Sixteen(chosen(IQ4, high_nibbles(nibbles)), scale, 0.0));
}

// An exponent, nibbles as in Q5_0 that choose among sixteen integers: twice the numbers of E2M1.
fn part_mxfp4(begin: u32) -> Part {
    let d = half_of_power(byte_at(begin));
    let nibbles = quad_at(begin + 1u);
    return Part(Sixteen(chosen(E2M1, low_nibbles(nibbles)), d, 0.0), Sixteen(chosen(E2M1, high_nibbles(nibbles)), d, 0.0));
}

// 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8 and -12 as bytes.
const E2M1: vec4<u32> = vec4<u32>(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);

// Half of the power of two that this biased exponent stands for; the two least halves are subnormal.
fn half_of_power(exponent: u32) -> f32 {
    return bitcast<f32>(select((max(exponent, 1u) - 1u) << 23u, 0x00200000u << (exponent & 1u), exponent < 2u));
}

// Sixteen bytes of a scale and a minimum for sixteen columns each, 64 of two bits each, two f16 that multiply them: d * s * q - dmin * m.
fn part_q2_k(begin: u32, part: u32) -> Part {
    let bits = two_bits(begin + 16u, part);
    let index = part / 2u * 4u + part % 2u;
    let factors = decode_f16(word_at_byte(begin + 80u)) * vec2<f32>(1.0, -1.0);
    let first = byte_at(begin + index);
    let last = byte_at(begin + index + 2u);
    let of_first = factors * vec2<f32>(f32(first & 15u), f32(first >> 4u));
    let of_last = factors * vec2<f32>(f32(last & 15u), f32(last >> 4u));
    return Part(Sixteen(bits.first, of_first.x, of_first.y), Sixteen(bits.last, of_last.x, of_last.y));
}

// 48 bytes of five ternary digits, 4 of four, f16 scale: d * (q - 1). Of the first five parts each has one digit of the first 32 bytes, of
// the last three each sixteen columns have one of the next 16 bytes, and the very last the four digits of the last 4.
fn part_tq1_0(begin: u32, part: u32) -> Part {
    let d = f16_at(begin + 52u);
    let is_early = part < 5u;
    let bytes = quad_at(select(begin + 32u, begin, is_early));
    let first = ternary_digits(bytes, vec4<u32>(power_of_three(select(part * 2u - 10u, part, is_early))));
    var last: vec4<u32>;
    if is_early {
        last = ternary_digits(quad_at(begin + 16u), vec4<u32>(power_of_three(part)));
    } else if part < 7u {
        last = ternary_digits(bytes, vec4<u32>(power_of_three(part * 2u - 9u)));
    } else {
        last = ternary_digits(vec4<u32>(word_at_byte(begin + 48u)), vec4<u32>(1u, 3u, 9u, 27u));
    }
    return Part(Sixteen(first, d, -d), Sixteen(last, d, -d));
}

// 1, 3, 9, 27 or 81.
fn power_of_three(exponent: u32) -> u32 {
    return select((0x1b090301u >> (exponent * 8u)) & 0xffu, 81u, exponent == 4u);
}

// Of each byte the ternary digit that comes behind the point where it is multiplied by a power of three.
fn ternary_digits(bytes: vec4<u32>, powers: vec4<u32>) -> vec4<u32> {
    let mask = vec4<u32>(0x00ff00ffu);
    let even = (((bytes & mask) * powers) & mask) * 3u;
    let odd = ((((bytes >> vec4<u32>(8u)) & mask) * powers) & mask) * 3u;
    return ((even >> vec4<u32>(8u)) & vec4<u32>(0x00030003u)) | (odd & vec4<u32>(0x03000300u));
}

// 64 bytes of two bits for each column, f16 scale: d * (q - 1).
fn part_tq2_0(begin: u32, part: u32) -> Part {
    let d = f16_at(begin + 64u);
    let bits = two_bits(begin, part);
    return Part(Sixteen(bits.first, d, -d), Sixteen(bits.last, d, -d));
}

// f16 scale, 64 bytes that choose four magnitudes each, a word of signs and a scale for 32 columns: d * (s + 1/2) / 2 * magnitude.
fn part_iq3_xxs(begin: u32, part: u32) -> Part {
    let low = begin + 2u + part * 8u;
    let word = word_at_byte(begin + 66u + part * 4u);
    let scale = f16_at(begin) * (0.5 + f32(word >> 28u)) * 0.5;
    let signs = even_signs(word);
    let first = words_of_grid(bytes_of(word_at_byte(low)));
    let last = words_of_grid(bytes_of(word_at_byte(low + 4u)));
    return Part(Sixteen(with_signs(first, signs), scale, 0.0), Sixteen(with_signs(last, signs >> 16u), scale, 0.0));
}

fn bytes_of(word: u32) -> vec4<u32> {
    return (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
}

fn words_of_grid(places: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(grid[places.x], grid[places.y], grid[places.z], grid[places.w]);
}

// Bytes of 1 to 127, and negative where the lowest sixteen bits of `signs` say so.
fn with_signs(bytes: vec4<u32>, signs: u32) -> vec4<u32> {
    let are_negative = one_bits(signs);
    return (bytes ^ (are_negative * 0xffu)) + are_negative;
}

// Signs of 32 columns, of which seven of each eight are given in 28 bits: an even number of eight are negative.
fn even_signs(sevens: u32) -> u32 {
    let spread = (sevens & 0x7fu) | ((sevens << 1u) & 0x7f00u) | ((sevens << 2u) & 0x7f0000u) | ((sevens << 3u) & 0x7f000000u);
    let of_fours = (spread ^ (spread >> 4u)) & 0x0f0f0f0fu;
    let of_twos = of_fours ^ (of_fours >> 2u);
    return spread | (((of_twos ^ (of_twos >> 1u)) & 0x01010101u) << 7u);
}

// f16 scale, 64 bytes that choose as those of IQ3_XXS with 8 of ninth bits, 32 of signs, 4 of scales for 32 columns each:
// d * (2 * s + 1) * magnitude.
fn part_iq3_s(begin: u32, part: u32) -> Part {
    let low = begin + 2u + part * 8u;
    let high = vec4<u32>(byte_at(begin + 66u + part) << 8u);
    let signs = word_at_byte(begin + 74u + part * 4u);
    let four_bits = (byte_at(begin + 106u + part / 2u) >> (part % 2u * 4u)) & 15u;
    let scale = f16_at(begin) * f32(four_bits * 2u + 1u);
    let first = words_of_grid(bytes_of(word_at_byte(low)) | ((high >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(0x100u)));
    let last = words_of_grid(bytes_of(word_at_byte(low + 4u)) | ((high >> vec4<u32>(4u, 5u, 6u, 7u)) & vec4<u32>(0x100u)));
    return Part(Sixteen(with_signs(first, signs), scale, 0.0), Sixteen(with_signs(last, signs >> 16u), scale, 0.0));
}

// f16 scale, for each 32 columns 4 bytes that choose eight magnitudes each, and signs and a scale as in IQ3_XXS:
// d * (s + 1/2) / 4 * magnitude.
fn part_iq2_xxs(begin: u32, part: u32) -> Part {
    let places = bytes_of(word_at_byte(begin + 2u + part * 8u));
    let word = word_at_byte(begin + 6u + part * 8u);
    let scale = f16_at(begin) * (0.5 + f32(word >> 28u)) * 0.25;
    return part_of_octets(places, even_signs(word), vec2<f32>(scale));
}

// What octets of the grid at these places are, with a bit for each column that is negative, and a scale for each sixteen.
fn part_of_octets(places: vec4<u32>, signs: u32, scales: vec2<f32>) -> Part {
    return Part(
        Sixteen(with_signs(octets_of_grid(places.xy), signs), scales.x, 0.0),
        Sixteen(with_signs(octets_of_grid(places.zw), signs >> 16u), scales.y, 0.0),
    );
}

fn octets_of_grid(places: vec2<u32>) -> vec4<u32> {
    return words_of_grid(vec4<u32>(places.xx, places.yy) * 2u + vec4<u32>(0u, 1u, 0u, 1u));
}

// f16 scale, for each eight columns nine bits that choose and seven signs, a byte of two scales for 32 columns: as IQ2_XXS.
fn part_iq2_xs(begin: u32, part: u32) -> Part {
    let words = vec2<u32>(word_at_byte(begin + 2u + part * 8u), word_at_byte(begin + 6u + part * 8u));
    let octets = vec4<u32>(words.x & 0xffffu, words.x >> 16u, words.y & 0xffffu, words.y >> 16u);
    let sevens = (octets >> vec4<u32>(9u)) << vec4<u32>(0u, 7u, 14u, 21u);
    let signs = even_signs(sevens.x | sevens.y | sevens.z | sevens.w);
    return part_of_octets(octets & vec4<u32>(511u), signs, quarter_scales(f16_at(begin), byte_at(begin + 66u + part)));
}

fn quarter_scales(d: f32, nibbles: u32) -> vec2<f32> {
    return d * (vec2<f32>(f32(nibbles & 15u), f32(nibbles >> 4u)) + 0.5) * 0.25;
}

// f16 scale, 32 bytes that choose, 32 of signs, 8 of two more bits of each choice, 8 of scales as in IQ2_XS: as IQ2_XXS.
fn part_iq2_s(begin: u32, part: u32) -> Part {
    let high = (vec4<u32>(byte_at(begin + 66u + part)) << vec4<u32>(8u, 6u, 4u, 2u)) & vec4<u32>(0x300u);
    let places = bytes_of(word_at_byte(begin + 2u + part * 4u)) | high;
    let scales = quarter_scales(f16_at(begin), byte_at(begin + 74u + part));
    return part_of_octets(places, word_at_byte(begin + 34u + part * 4u), scales);
}

// f16 scale, 32 bytes that choose eight of -1, 0 and 1 each, for each 32 columns three more bits of each choice, a scale, a sign:
// d * (2 * s + 1) * (q +- 1/8).
fn part_iq1_s(begin: u32, part: u32) -> Part {
    let bits = half_at_byte(begin + 34u + part * 2u);
    let high = ((vec4<u32>(bits) >> vec4<u32>(0u, 3u, 6u, 9u)) & vec4<u32>(7u)) << vec4<u32>(8u);
    let places = bytes_of(word_at_byte(begin + 2u + part * 4u)) | high;
    let scale = f16_at(begin) * f32(((bits >> 12u) & 7u) * 2u + 1u);
    return part_of_eighths(places, vec4<u32>((bits >> 15u) & 1u), vec2<f32>(scale));
}

// Eight times -1, 0 and 1, and one more, or one less where `are_less` is 1: of each eight columns. The grid has 8 more than eight times
// these, so that no byte is negative before the minimum is added.
fn part_of_eighths(places: vec4<u32>, are_less: vec4<u32>, scales: vec2<f32>) -> Part {
    let more = (vec4<u32>(1u) - are_less) * 0x02020202u;
    let eighths = scales * 0.125;
    return Part(
        Sixteen(octets_of_grid(places.xy) + more.xxyy, eighths.x, -9.0 * eighths.x),
        Sixteen(octets_of_grid(places.zw) + more.zzww, eighths.y, -9.0 * eighths.y),
    );
}

// 32 bytes that choose as those of IQ1_S, four bits for each with three more and a sign, four times twelve bits of scales for sixteen
// columns each and, above them, a quarter of their f16 scale: as IQ1_S.
fn part_iq1_m(begin: u32, part: u32) -> Part {
    let four_bits = vec4<u32>(half_at_byte(begin + 32u + part * 2u)) >> vec4<u32>(0u, 4u, 8u, 12u);
    let places = bytes_of(word_at_byte(begin + part * 4u)) | ((four_bits & vec4<u32>(7u)) << vec4<u32>(8u));
    let words = vec2<u32>(word_at_byte(begin + 48u), word_at_byte(begin + 52u));
    let quarters = (vec4<u32>(words.xx, words.yy) >> vec4<u32>(12u, 28u, 12u, 28u)) & vec4<u32>(15u);
    let d = decode_f16(quarters.x | (quarters.y << 4u) | (quarters.z << 8u) | (quarters.w << 12u)).x;
    let packed = select(words.x, words.y, part > 3u) >> (part % 4u / 2u * 16u + part % 2u * 6u);
    let scales = d * (vec2<f32>(f32(packed & 7u), f32((packed >> 3u) & 7u)) * 2.0 + 1.0);
    return part_of_eighths(places, (four_bits >> vec4<u32>(3u)) & vec4<u32>(1u), scales);
}
