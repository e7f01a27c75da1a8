
// What values of a feed-forward part go through.

override ACTIVATION: u32 = 0u; // 0: silu, 1: gelu by tanh, 2: gelu, 3: relu, 4: relu^2, 5: x itself, 6: sigmoid, 7: clamped silu

fn activated(x: f32) -> f32 {
    switch ACTIVATION {
        case 1u: {
            // x / 2 * (1 + tanh(u)) = x / (1 + exp(-2 u)) with u = sqrt(2 / pi) * (x + 0.044715 x^3)
            let twice_u = 1.595769122 * fma(0.044715 * x, x * x, x);
            return x / (1.0 + exp(-twice_u));
        }
        case 2u: {
            // x times the normal distribution, whose tail is exp(-z^2) / 2 times a polynomial of t (Abramowitz, Stegun 7.1.26).
            let z = abs(x) * 0.70710678;
            let t = 1.0 / fma(0.3275911, z, 1.0);
            let polynomial = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
            let tail = 0.5 * polynomial * exp(-z * z);
            return x * select(tail, 1.0 - tail, x >= 0.0);
        }
        case 3u: {
            return max(x, 0.0);
        }
        case 4u: {
            let positive = max(x, 0.0);
            return positive * positive;
        }
        case 5u: {
            return x;
        }
        case 6u: {
            return 1.0 / (1.0 + exp(-x));
        }
        case 7u: {
            let clamped = min(x, 7.0);
            return clamped / (1.0 + exp(-1.702 * clamped));
        }
        default: {
            return x / (1.0 + exp(-x));
        }
    }
}
