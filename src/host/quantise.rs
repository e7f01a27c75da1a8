//! Quantised activations: the inputs of products as integers of 16 bits.

use super::elementwise::MIN_PARALLEL_VALUES;
use crate::host::simd::{BLOCK_LEN, TokenBlock, place};
use crate::platform::for_each_part;

/// Adding it to a number of magnitude below 2²² rounds that to an integer, ties to even, which the lowest bits then hold.
const ROUND: f32 = 12_582_912.0;
/// The integer that a block's largest magnitude becomes.
const LARGEST: f32 = 32_767.0;

/// Quantises `input`, whose rows are whole blocks of 32 values, into `blocks`, whose memory is used again.
pub(super) fn quantise_all(input: &[f32], blocks: &mut Vec<TokenBlock>) {
    let (values, _) = input.as_chunks::<BLOCK_LEN>();
    blocks.resize(values.len(), TokenBlock::ZERO);
    let blocks_at_once = MIN_PARALLEL_VALUES / BLOCK_LEN;
    let quantise_some = |(): &mut (), part: usize, blocks: &mut [TokenBlock]| {
        let values = &values[part * blocks_at_once..];
        blocks.iter_mut().zip(values).for_each(|(block, values)| *block = quantise(values));
    };
    if values.len() <= blocks_at_once {
        quantise_some(&mut (), 0, blocks);
    } else {
        for_each_part(blocks, blocks_at_once, || (), quantise_some);
    }
}

/// The largest magnitude becomes 32 767, the others the nearest integers. A block with a NaN or an infinity gets a scale that is
/// none, so that its products show it.
fn quantise(values: &[f32; BLOCK_LEN]) -> TokenBlock {
    // Bits of magnitudes are ordered as the magnitudes are, with NaN above all.
    let largest =
        f32::from_bits(values.iter().fold(0, |largest: i32, value| largest.max(value.abs().to_bits().cast_signed())).cast_unsigned());
    let scale = largest / LARGEST;
    let per_step = if largest > 0.0 { LARGEST / largest } else { 0.0 };
    let integers = values.map(|value| ((value * per_step + ROUND).to_bits() << 16).cast_signed() >> 16);
    let sum: i32 = integers.iter().sum();
    let mut block = TokenBlock { scale, scaled_sum: scale * sum as f32, sum, ..TokenBlock::ZERO };
    for (k, integer) in integers.into_iter().enumerate() {
        block.values[place(k)] = integer as i16;
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_within_half_a_step() {
        let mut blocks = Vec::new();
        let values: Vec<f32> = (0..96).map(|i| (i as f32 * 0.7).sin() * if i < 32 { 1e-3 } else { 40.0 }).collect();
        quantise_all(&values, &mut blocks);
        for (block, values) in blocks.iter().zip(values.as_chunks::<32>().0) {
            assert_eq!(block.sum, block.values.iter().map(|&integer| i32::from(integer)).sum::<i32>());
            assert!(block.values.contains(&32_767) || block.values.contains(&-32_767));
            for (k, value) in values.iter().enumerate() {
                // Half a step, and the roundings of f32.
                assert!((f32::from(block.values[place(k)]) * block.scale - value).abs() <= block.scale * 0.51, "{value}");
            }
        }
    }

    #[test]
    fn zeros_stay_zero_and_nan_is_not_lost() {
        assert_eq!(quantise(&[0.0; 32]), TokenBlock::ZERO);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = [1.0; 32];
            values[7] = bad;
            assert!(!quantise(&values).scale.is_finite());
        }
    }

    #[test]
    fn the_least_magnitudes_are_no_scale() {
        let block = quantise(&[f32::from_bits(1); 32]);
        assert!(block.values.iter().all(|&integer| integer > i16::MIN), "{block:?}");
    }
}
