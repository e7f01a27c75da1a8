// What both ways back through attention have in common. Appended behind shared/attention_dense.wgsl to shaders that bind upward
// [n_tokens, n_heads, head_size], the gradient of the output.

// Of a query and a key, by their places: the share, and share * (d - level) * slope, where d is the product of the query's gradient with the key's value.
fn weights_of(query_begin: u32, key_begin: u32, total: f32, level: f32) -> vec2<f32> {
    let score = score_of(query_begin, key_begin);
    var d = 0.0;
    for (var i = 0u; i < params.head_size; i++) {
        d = fma(upward[query_begin + i], values[key_begin + i], d);
    }
    let share = exp(score - total);
    return vec2<f32>(share, share * (d - level) * slope_of_score(score));
}
