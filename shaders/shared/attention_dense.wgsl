// Attention of sequences that begin in this batch, over their own keys and values: what its forward and backward kernels have in common. Appended behind
// shared/attention_params.wgsl to shaders that bind query [n_tokens, n_heads, head_size], keys and values [n_tokens, n_kv_heads, head_size] and
// runs [n_tokens]: for each token the first of its sequence and the one behind its last, which stand side by side.

// The tokens from x to before y that a token sees.
fn seen_by(token: u32) -> vec2<u32> {
    let run = runs[token];
    let position = token - run.x;
    var end = run.y;
    if params.is_causal != 0u {
        end = token + 1u;
    } else if params.window > 0u {
        end = min(end, token + params.window);
    }
    var begin = 0u;
    if params.window > 0u {
        if params.in_chunks != 0u {
            begin = position / params.window * params.window;
        } else if position + 1u > params.window {
            begin = position + 1u - params.window;
        }
    }
    return vec2<u32>(run.x + begin, end);
}

fn query_place(token: u32, head: u32) -> u32 {
    return (token * params.n_heads + head) * params.head_size;
}

fn key_place(token: u32, kv_head: u32) -> u32 {
    return (token * params.n_kv_heads + kv_head) * params.head_size;
}

// The score of a key for a query, both by their places.
fn score_of(query_begin: u32, key_begin: u32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < params.head_size; i++) {
        sum = fma(query[query_begin + i], keys[key_begin + i], sum);
    }
    let score = sum * params.scale;
    if params.softcap > 0.0 {
        // Beyond, tanh is 1 in f32, and some drivers make it NaN.
        return params.softcap * tanh(clamp(score / params.softcap, -15.0, 15.0));
    }
    return score;
}

// By how much a score changes with its product of query and key.
fn slope_of_score(score: f32) -> f32 {
    if params.softcap > 0.0 {
        let t = score / params.softcap;
        return params.scale * (1.0 - t * t);
    }
    return params.scale;
}
