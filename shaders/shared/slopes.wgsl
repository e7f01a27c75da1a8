// Derivatives of the activations that have one here: all but clamped silu. Appended behind shared/activations.wgsl.

fn slope_of(x: f32) -> f32 {
    switch ACTIVATION {
        case 1u: {
            // x * s(2 u) with s the logistic function and u = sqrt(2 / pi) * (x + 0.044715 x^3)
            let twice_u = 1.595769122 * fma(0.044715 * x, x * x, x);
            let s = 1.0 / (1.0 + exp(-twice_u));
            return s + x * s * (1.0 - s) * 1.595769122 * fma(3.0 * 0.044715 * x, x, 1.0);
        }
        case 2u: {
            let share = select(activated(x) / x, 0.5, x == 0.0);
            return fma(x * 0.39894228, exp(-0.5 * x * x), share);
        }
        case 3u: {
            return select(0.0, 1.0, x > 0.0);
        }
        case 4u: {
            return 2.0 * max(x, 0.0);
        }
        case 5u: {
            return 1.0;
        }
        case 6u: {
            let s = 1.0 / (1.0 + exp(-x));
            return s * (1.0 - s);
        }
        default: {
            let s = 1.0 / (1.0 + exp(-x));
            return s * fma(x, 1.0 - s, 1.0);
        }
    }
}
