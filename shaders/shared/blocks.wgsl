// Blocks of the dtypes that have no path of their own in the matrix products: one function each, a row of `columns_of`.
// Appended to shaders that have `stored`, the matrix's 32-bit word at an index, `quad_at`, sixteen bytes from a byte on, and as overrides
// BLOCK_LEN, the columns of a block, BLOCK_BYTES, and APART, the columns between two that share bytes: 16 or 32.
// Blocks begin at any byte. Nothing here touches a word that holds none of the bytes asked for.

// The last of the codes whose dtypes have paths of their own.
const LAST_WITH_OWN_PATH: u32 = Q6_K;

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
    return Part();
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
    return decode_f16(stored(byte / 4u) >> ((byte & 2u) * 8u)).x;
}
