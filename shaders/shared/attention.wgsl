
// What the kernels of attention have in common.

const LOWEST: f32 = -3.4e38;

// The sequence of a token, and the positions of it that the token sees.
struct Sight {
    seq: u32,
    begin: u32,
    end: u32,
}

fn sight_of(token_index: u32) -> Sight {
    let token = tokens[token_index];
    var begin = 0u;
    if params.window > 0u && token.y + 1u > params.window {
        begin = token.y + 1u - params.window;
    }
    var end = token.y + 1u;
    if params.is_causal == 0u {
        end = select(token.y + params.window, token.z, params.window == 0u);
    }
    return Sight(min(token.x, params.n_seqs - 1u), begin, min(min(end, token.z), params.kv_capacity));
}

// Beyond 15, tanh is 1 in f32, and some drivers make it NaN.
fn capped(x: f32) -> f32 {
    return params.softcap * tanh(clamp(x / params.softcap, -15.0, 15.0));
}

fn capped_quad(x: vec4<f32>) -> vec4<f32> {
    return params.softcap * tanh(clamp(x / params.softcap, vec4<f32>(-15.0), vec4<f32>(15.0)));
}

fn add_products(w: vec4<f32>, x: vec4<f32>, sum: f32) -> f32 {
    return fma(w.w, x.w, fma(w.z, x.z, fma(w.y, x.y, fma(w.x, x.x, sum))));
}
