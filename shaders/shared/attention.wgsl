
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
    if params.in_chunks != 0u {
        begin = token.y / max(params.window, 1u) * params.window;
    }
    var end = token.y + 1u;
    if params.is_causal == 0u {
        end = select(token.y + params.window, token.z, params.window == 0u);
    }
    return Sight(token.x, begin, min(min(end, token.z), params.kv_capacity));
}

// Beyond 15, tanh is 1 in f32, and some drivers make it NaN.
fn capped(x: f32) -> f32 {
    return params.softcap * tanh(clamp(x / params.softcap, -15.0, 15.0));
}

fn capped_quad(x: vec4<f32>) -> vec4<f32> {
    return params.softcap * tanh(clamp(x / params.softcap, vec4<f32>(-15.0), vec4<f32>(15.0)));
}

// What a head's sum is multiplied by: one over the total of exp(score - maximum), that of its sink included.
fn norm_of(head: u32, total: f32, maximum: f32) -> f32 {
    if HAS_SINKS {
        return 1.0 / (total + exp(sinks[min(head, params.n_heads - 1u)] - maximum));
    }
    return 1.0 / total;
}

// The same of four heads from `first` on.
fn norms_of(first: u32, totals: vec4<f32>, maxima: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        norm_of(first, totals.x, maxima.x),
        norm_of(first + 1u, totals.y, maxima.y),
        norm_of(first + 2u, totals.z, maxima.z),
        norm_of(first + 3u, totals.w, maxima.w),
    );
}

fn add_products(w: vec4<f32>, x: vec4<f32>, sum: f32) -> f32 {
    return fma(w.w, x.w, fma(w.z, x.z, fma(w.y, x.y, fma(w.x, x.x, sum))));
}
