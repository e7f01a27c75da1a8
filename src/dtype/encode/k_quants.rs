//! Q4_K, Q5_K and Q6_K: blocks of 256 values whose scales are quantised too. Scales are searched: of some candidates, each with the
//! integers that it gives, the one whose weighted least squares fit has the least error. Weights favour large values, which move sums of
//! products more.

use super::{farthest, inverse, put_half, range};

const BLOCK: usize = 256;
/// The largest quantised scale of Q4_K and Q5_K, and the largest minimum.
const MAX_SCALE: f32 = 63.0;

/// `value = scale · integer - minimum`, neither below 0.
#[derive(Clone, Copy, Default)]
struct Line {
    scale: f32,
    minimum: f32,
}

/// The nearest whole number from `least` to `most`, which are far below 2^22. By a sum whose last bit is 1, as processors without an
/// instruction for it round fastest.
fn nearest(value: f32, least: f32, most: f32) -> f32 {
    const WHOLE: f32 = 12_582_912.0;
    (value.clamp(least, most) + WHOLE) - WHOLE
}

/// The line that fits 32 values best with integers from 0 to `most`.
fn fit_line(values: &[f32], most: f32) -> Line {
    let (least, greatest) = range(values);
    let least = least.min(0.0);
    if greatest <= least {
        return Line { scale: 0.0, minimum: -least };
    }
    let mean_square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
    let weights: [f32; 32] = std::array::from_fn(|k| mean_square.sqrt() + values[k].abs());
    let mut best = (f32::INFINITY, Line { scale: (greatest - least) / most, minimum: -least });
    for step in -10..=10i8 {
        let inverse = (most + f32::from(step) * 0.1) / (greatest - least);
        let integers: [f32; 32] = std::array::from_fn(|k| nearest((values[k] - least) * inverse, 0.0, most));
        let Some(line) = regression(values, &weights, &integers) else { continue };
        let error = (0..32).map(|k| weights[k] * (line.scale * integers[k] - line.minimum - values[k]).powi(2)).sum();
        if error < best.0 {
            best = (error, line);
        }
    }
    best.1
}

/// The weighted least squares fit of values by integers; through 0 where the minimum would be negative. `None` where all integers are
/// one.
fn regression(values: &[f32], weights: &[f32; 32], integers: &[f32; 32]) -> Option<Line> {
    let [mut one, mut q, mut qq, mut x, mut qx] = [0.0; 5];
    for k in 0..32 {
        let (weight, integer) = (weights[k], integers[k]);
        one += weight;
        q += weight * integer;
        qq += weight * integer * integer;
        x += weight * values[k];
        qx += weight * integer * values[k];
    }
    let determinant = one * qq - q * q;
    if determinant <= 0.0 {
        return None;
    }
    let line = Line { scale: (one * qx - q * x) / determinant, minimum: (q * qx - qq * x) / determinant };
    let line = if line.minimum >= 0.0 { line } else { Line { scale: qx / qq, minimum: 0.0 } };
    Some(line).filter(|line| line.scale.is_finite() && line.minimum.is_finite() && line.scale >= 0.0)
}

/// What Q4_K and Q5_K have in common: eight lines whose scales and minimums are quantised to six bits, and the integers that fit what
/// those became.
fn lines(values: &[f32], most: f32, block: &mut [u8]) -> [u8; BLOCK] {
    let lines: [Line; 8] = std::array::from_fn(|part| fit_line(&values[32 * part..][..32], most));
    let largest = |of: fn(&Line) -> f32| lines.iter().map(of).fold(0.0, f32::max);
    let steps = [largest(|line| line.scale), largest(|line| line.minimum)].map(|largest| largest / MAX_SCALE);
    put_half(block, 0, steps[0]);
    put_half(block, 2, steps[1]);
    let quantised = |value: f32, step: f32| (value * inverse(step)).round().min(MAX_SCALE) as u8;
    let scales = lines.map(|line| quantised(line.scale, steps[0]));
    let minimums = lines.map(|line| quantised(line.minimum, steps[1]));
    put_scales(&scales, &minimums, &mut block[4..16]);
    // As they are decoded.
    let stored = steps.map(|step| half::f16::from_f32(step).to_f32());
    std::array::from_fn(|k| {
        let (scale, minimum) = (stored[0] * f32::from(scales[k / 32]), stored[1] * f32::from(minimums[k / 32]));
        nearest((values[k] + minimum) * inverse(scale), 0.0, most) as u8
    })
}

/// Eight scales and eight minimums of six bits in twelve bytes: four whole ones each, whose high bits hold those of the other four.
fn put_scales(scales: &[u8; 8], minimums: &[u8; 8], bytes: &mut [u8]) {
    for k in 0..4 {
        bytes[k] = scales[k] | scales[k + 4] >> 4 << 6;
        bytes[k + 4] = minimums[k] | minimums[k + 4] >> 4 << 6;
        bytes[k + 8] = scales[k + 4] & 15 | minimums[k + 4] << 4;
    }
}

/// The low four bits, 32 values in low nibbles and the next 32 in high ones.
fn put_nibbles(integers: &[u8; BLOCK], bytes: &mut [u8]) {
    for (k, byte) in bytes.iter_mut().enumerate() {
        let low = k / 32 * 64 + k % 32;
        *byte = integers[low] & 15 | integers[low + 32] << 4;
    }
}

pub(super) fn q4_k(values: &[f32], block: &mut [u8]) {
    let integers = lines(values, 15.0, block);
    put_nibbles(&integers, &mut block[16..]);
}

pub(super) fn q5_k(values: &[f32], block: &mut [u8]) {
    let integers = lines(values, 31.0, block);
    for (l, byte) in block[16..48].iter_mut().enumerate() {
        *byte = (0..8).fold(0, |bits, j| bits | (integers[32 * j + l] >> 4) << j);
    }
    put_nibbles(&integers, &mut block[48..]);
}

/// The scale, of either sign, that fits sixteen values best with integers from -32 to 31.
fn fit_scale(values: &[f32]) -> f32 {
    let farthest = farthest(values);
    let mut best = (0.0, 0.0);
    if farthest == 0.0 {
        return 0.0;
    }
    for step in -9..=9i8 {
        let inverse = -(32.0 + 0.1 * f32::from(step)) / farthest;
        // Weights are the squares of the values. The fit through 0 with the least error has the largest product.
        let (mut qx, mut qq) = (0.0, 0.0);
        for value in values {
            let (integer, weight) = (nearest(value * inverse, -32.0, 31.0), value * value);
            qx += weight * integer * value;
            qq += weight * integer * integer;
        }
        if qq > 0.0 && qx * qx > best.0 * qq {
            best = (qx * qx / qq, qx / qq);
        }
    }
    if best.1 == 0.0 { -farthest / 32.0 } else { best.1 }
}

pub(super) fn q6_k(values: &[f32], block: &mut [u8]) {
    let fitted: [f32; 16] = std::array::from_fn(|part| fit_scale(&values[16 * part..][..16]));
    let step = farthest(&fitted) / -128.0;
    put_half(block, 208, step);
    let scales = fitted.map(|scale| (scale * inverse(step)).round().clamp(-128.0, 127.0) as i8);
    let stored = half::f16::from_f32(step).to_f32();
    let integers: [i8; BLOCK] = std::array::from_fn(|k| {
        let scale = stored * f32::from(scales[k / 16]);
        nearest(values[k] * inverse(scale), -32.0, 31.0) as i8
    });
    let integers = integers.map(|integer| (integer + 32).cast_unsigned());
    block[..192].fill(0);
    for (k, integer) in integers.into_iter().enumerate() {
        let (n, j, l) = (k / 128, k % 128 / 32, k % 32);
        block[64 * n + 32 * (j % 2) + l] |= (integer & 15) << (j / 2 * 4);
        block[128 + 32 * n + l] |= (integer >> 4) << (2 * j);
    }
    for (byte, scale) in block[192..208].iter_mut().zip(scales) {
        *byte = scale.cast_unsigned();
    }
}
