
// Octets of caches that are bound as 32-bit words.

fn words_of(words: vec4<u32>) -> vec4<u32> {
    return words;
}
