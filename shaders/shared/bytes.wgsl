// Sixteen bytes of the matrix at any byte, from 32-bit words. Appended to the shaders that read words.

fn quad_at(byte: u32) -> vec4<u32> {
    let word = byte / 4u;
    let words = vec4<u32>(stored(word), stored(word + 1u), stored(word + 2u), stored(word + 3u));
    return from_byte(words, vec4<u32>(words.yzw, stored((byte + 15u) / 4u)), byte);
}
