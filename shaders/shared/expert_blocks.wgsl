// Weights of experts, whose rows may begin at any byte that their dtype allows: blocks of every dtype, and floats.
// Appended to shaders that have `weight`, and what shared/blocks.wgsl needs besides `stored`.

fn stored(word: u32) -> u32 {
    return weight[word];
}

// Value `index` behind byte `begin`, a multiple of 4.
fn float_at(begin: u32, index: u32) -> f32 {
    if DTYPE == F32 {
        return bitcast<f32>(weight[begin / 4u + index]);
    }
    let word = weight[begin / 4u + index / 2u];
    let pair = select(decode_bf16(word), decode_f16(word), DTYPE == F16);
    return select(pair.x, pair.y, (index & 1u) == 1u);
}

// The blocks that the other products have paths of their own for, as `part_of` has those of the others.
fn any_part_of(begin: u32, part: u32) -> Part {
    switch DTYPE {
        case Q8_0: {
            let d = f16_at(begin);
            return Part(Sixteen(quad_at(begin + 2u), d, 0.0), Sixteen(quad_at(begin + 18u), d, 0.0));
        }
        case Q4_0: {
            let d = f16_at(begin);
            let nibbles = quad_at(begin + 2u);
            return Part(Sixteen(low_nibbles(nibbles), d, -8.0 * d), Sixteen(high_nibbles(nibbles), d, -8.0 * d));
        }
        case Q4_1: {
            let factors = decode_f16(word_at_byte(begin));
            let nibbles = quad_at(begin + 4u);
            return Part(Sixteen(low_nibbles(nibbles), factors.x, factors.y), Sixteen(high_nibbles(nibbles), factors.x, factors.y));
        }
        case Q6_K: {
            return part_q6_k(begin, part);
        }
        default: {
            return part_of(begin, part);
        }
    }
}

// 128 bytes of nibbles, 64 of two bits each, sixteen scales, f16 that multiplies them: d * s * (q - 32). Columns that stand 32 apart have
// their nibbles 32 bytes apart, and their two bits in the same byte.
fn part_q6_k(begin: u32, part: u32) -> Part {
    let half = part / 4u; // of the block
    let pair = part % 4u / 2u;
    let side = part & 1u;
    let nibbles_at = begin + half * 64u + side * 16u;
    let first_bytes = quad_at(nibbles_at) >> vec4<u32>(pair * 4u);
    let last_bytes = quad_at(nibbles_at + 32u) >> vec4<u32>(pair * 4u);
    let bits = quad_at(begin + 128u + half * 32u + side * 16u) >> vec4<u32>(pair * 4u);
    let scales = begin + 192u + half * 8u + pair * 4u + side;
    let d = f16_at(begin + 208u);
    let first = d * signed_byte(byte_at(scales));
    let last = d * signed_byte(byte_at(scales + 2u));
    return Part(
        Sixteen(low_nibbles(first_bytes) | two_lowest_bits(bits), first, -32.0 * first),
        Sixteen(low_nibbles(last_bytes) | two_lowest_bits(bits >> vec4<u32>(2u)), last, -32.0 * last),
    );
}

// The two lowest bits of each byte, above a nibble.
fn two_lowest_bits(bytes: vec4<u32>) -> vec4<u32> {
    return (bytes & vec4<u32>(0x03030303u)) << vec4<u32>(4u);
}

fn signed_byte(byte: u32) -> f32 {
    return f32(bitcast<i32>(byte << 24u) >> 24u);
}
