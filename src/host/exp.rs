//! The exponential function in plain arithmetic, which the compiler turns into vector instructions; the system's is one call a value.

use std::f32::consts::LOG2_E;

/// Below, the result is less than the least normal number and is given as zero.
const LOWEST: f32 = -87.0;
/// Above, the result is given as infinite.
const HIGHEST: f32 = 88.0;
/// See `ROUND` of `super::quantise`.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts: the first has so few bits that its product with a small integer is exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `e^x` within two units of the last place. NaN stays NaN.
///
/// `x = n·ln 2 + r`, `e^x = 2ⁿ·e^r`, and `e^r` by the polynomial of Cephes' `expf`.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    // Comparisons that NaN passes, unlike `clamp` turned into vector instructions that need no branch.
    let bounded = if x < LOWEST { LOWEST } else { x };
    let bounded = if bounded > HIGHEST { HIGHEST } else { bounded };
    let shifted = bounded * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (bounded - n * LN_2_HIGH) - n * LN_2_LOW;
    let polynomial = ((((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_6e-1) * r + 0.5;
    let power_of_two = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    let result = (polynomial * (r * r) + r + 1.0) * power_of_two;
    let result = if x < LOWEST { 0.0 } else { result };
    if x > HIGHEST { f32::INFINITY } else { result }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_exponential_function() {
        for step in -869..=879 {
            let x = step as f32 * 0.1;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "{x}: {error}");
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(f32::INFINITY)), (1.0, 0.0, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }
}
