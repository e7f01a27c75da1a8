//! Quantisation: values become the stored bytes of a dtype. What is a formula is ggml's reference (`quantize_row_*_ref` of ggml-quants.c,
//! which the PyPI package `gguf` follows bit for bit); what is a search is in [`k_quants`].

mod k_quants;

use half::{bf16, f16};

use super::DType;

/// Encodes one block: as many values as it has, into its bytes.
type EncodeBlock = fn(values: &[f32], block: &mut [u8]);

impl DType {
    /// Whether [`DType::encode`] can write it.
    pub fn can_encode(self) -> bool {
        self.encoder().is_some()
    }

    fn encoder(self) -> Option<EncodeBlock> {
        Some(match self {
            DType::F32 => |values, block| block.copy_from_slice(&values[0].to_le_bytes()),
            DType::F16 => |values, block| block.copy_from_slice(&f16::from_f32(values[0]).to_le_bytes()),
            DType::BF16 => |values, block| block.copy_from_slice(&bf16::from_f32(values[0]).to_le_bytes()),
            DType::Q8_0 => q8_0,
            DType::Q4_0 => q4_0,
            DType::Q4_1 => q4_1,
            DType::Q5_0 => q5_0,
            DType::Q5_1 => q5_1,
            DType::MXFP4 => mxfp4,
            DType::Q4K => k_quants::q4_k,
            DType::Q5K => k_quants::q5_k,
            DType::Q6K => k_quants::q6_k,
            DType::Q3K | DType::Q2K | DType::IQ4NL | DType::IQ4XS => return None,
            DType::TQ1_0 | DType::TQ2_0 | DType::IQ3XXS | DType::IQ3S | DType::IQ2XXS | DType::IQ2XS | DType::IQ2S => return None,
            DType::IQ1S | DType::IQ1M => return None,
        })
    }

    /// The largest number that does not become infinite in F16, where that is the dtype.
    pub(crate) fn largest(self) -> f32 {
        // It is rounded down to the largest half.
        if self == DType::F16 { 65_519.0 } else { f32::MAX }
    }

    /// Encodes whole blocks of finite values into `output`, which must have exactly their bytes. Values beyond the range of F16 or of
    /// its scales become infinite.
    ///
    /// # Panics
    /// Where [`DType::can_encode`] says no, or `output` is too short.
    pub fn encode(self, values: &[f32], output: &mut [u8]) {
        let encode = self.encoder().expect("a dtype that can be encoded");
        let (len, bytes) = (self.block_len() as usize, self.block_bytes() as usize);
        for (values, block) in values.chunks_exact(len).zip(output.chunks_exact_mut(bytes)) {
            encode(values, block);
        }
    }
}

fn put_half(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// One over it; 0 of 0.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The value farthest from 0, the first of several.
fn farthest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |farthest: f32, value| if value.abs() > farthest.abs() { *value } else { farthest })
}

/// The least and the greatest.
fn range(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(least, most), value| (least.min(*value), most.max(*value)))
}

/// The low four bits of 32 integers: those of the first sixteen in low nibbles, of the others in high ones.
fn put_nibbles(values: &[u8; 32], bytes: &mut [u8]) {
    for (k, byte) in bytes[..16].iter_mut().enumerate() {
        *byte = values[k] & 15 | values[k + 16] << 4;
    }
}

/// The fifth bits of 32 integers.
fn put_fifth_bits(values: &[u8; 32], bytes: &mut [u8]) {
    let bits = (0..).zip(values).fold(0u32, |bits, (k, value)| bits | u32::from(value >> 4 & 1) << k);
    bytes[..4].copy_from_slice(&bits.to_le_bytes());
}

/// 32 integers from 0 to `most`: `(value - least) / scale`, rounded by `half`.
fn integers(values: &[f32], least: f32, inverse: f32, half: f32, most: u8) -> [u8; 32] {
    // What is below 0 becomes 0 by the conversion.
    std::array::from_fn(|k| (((values[k] - least) * inverse + half) as u8).min(most))
}

fn q8_0(values: &[f32], block: &mut [u8]) {
    let scale = farthest(values).abs() / 127.0;
    put_half(block, 0, scale);
    let inverse = inverse(scale);
    for (byte, value) in block[2..].iter_mut().zip(values) {
        *byte = ((value * inverse).round() as i8).cast_unsigned();
    }
}

fn q4_0(values: &[f32], block: &mut [u8]) {
    let scale = farthest(values) / -8.0;
    put_half(block, 0, scale);
    put_nibbles(&integers(values, 0.0, inverse(scale), 8.5, 15), &mut block[2..]);
}

fn q4_1(values: &[f32], block: &mut [u8]) {
    let (least, most) = range(values);
    let scale = (most - least) / 15.0;
    put_half(block, 0, scale);
    put_half(block, 2, least);
    put_nibbles(&integers(values, least, inverse(scale), 0.5, 15), &mut block[4..]);
}

fn q5_0(values: &[f32], block: &mut [u8]) {
    let scale = farthest(values) / -16.0;
    put_half(block, 0, scale);
    let integers = integers(values, 0.0, inverse(scale), 16.5, 31);
    put_fifth_bits(&integers, &mut block[2..]);
    put_nibbles(&integers, &mut block[6..]);
}

fn q5_1(values: &[f32], block: &mut [u8]) {
    let (least, most) = range(values);
    let scale = (most - least) / 31.0;
    put_half(block, 0, scale);
    put_half(block, 2, least);
    let integers = integers(values, least, inverse(scale), 0.5, 31);
    put_fifth_bits(&integers, &mut block[4..]);
    put_nibbles(&integers, &mut block[8..]);
}

/// Twice the numbers of E2M1.
const E2M1: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

fn mxfp4(values: &[f32], block: &mut [u8]) {
    let most = farthest(values).abs();
    // The exponent of the greatest value less that of E2M1's greatest, biased; conversion keeps it within a byte.
    let exponent = if most > 0.0 { (most.log2().floor() - 2.0 + 127.0) as u8 } else { 0 };
    // Half of the power of two, for numbers that are doubled.
    let bits = if exponent < 2 { 0x0020_0000 << exponent } else { u32::from(exponent - 1) << 23 };
    let scale = f32::from_bits(bits);
    let nearest = |value: f32| {
        let distance = |k: usize| (scale * E2M1[k] - value).abs();
        (1..16).fold(0, |best, k| if distance(k) < distance(best) { k } else { best }) as u8
    };
    block[0] = exponent;
    put_nibbles(&std::array::from_fn(|k| nearest(values[k])), &mut block[1..]);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        /// Bits of f32.
        values: Vec<u32>,
        /// Blocks of each dtype in hexadecimal digits.
        blocks: BTreeMap<String, String>,
        /// Errors of what llama.cpp's library quantises of `many` values.
        errors: BTreeMap<String, f64>,
    }

    fn golden() -> Golden {
        serde_json::from_str(include_str!("../../tests/golden/quantised.json")).unwrap()
    }

    fn named(name: &str) -> DType {
        DType::ALL.into_iter().find(|dtype| dtype.to_string() == name).unwrap()
    }

    fn encoded(dtype: DType, values: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0xAA; dtype.size_bytes(values.len() as u64).unwrap() as usize];
        dtype.encode(values, &mut bytes);
        bytes
    }

    /// Of blocks of 256 values the mean of their errors, each the root mean square over that of its values.
    fn error_of(dtype: DType, values: &[f32]) -> f64 {
        let mut decoded = vec![0.0; values.len()];
        dtype.decode(&encoded(dtype, values), &mut decoded);
        let square = |value: f32| f64::from(value) * f64::from(value);
        let of_block = |(decoded, values): (&[f32], &[f32])| {
            let errors: f64 = decoded.iter().zip(values).map(|(decoded, value)| square(decoded - value)).sum();
            (errors / values.iter().map(|value| square(*value)).sum::<f64>()).sqrt()
        };
        let errors: Vec<f64> = decoded.chunks(256).zip(values.chunks(256)).map(of_block).collect();
        errors.iter().sum::<f64>() / errors.len() as f64
    }

    /// Sums of four uniform numbers, of every other block their cubes.
    fn many(n: usize) -> Vec<f32> {
        let mut state = 1u32;
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 9) as f32 / (1 << 22) as f32 - 1.0
        };
        let mut next = |index: usize| {
            let sum: f32 = (0..4).map(|_| uniform()).sum();
            if index / 256 % 2 == 1 { sum * sum * sum } else { sum }
        };
        (0..n).map(&mut next).collect()
    }

    /// Made by `tests/golden/quantised.py`.
    #[test]
    fn what_is_a_formula_is_encoded_as_the_package_gguf_does() {
        let Golden { values, blocks, .. } = golden();
        let values: Vec<f32> = values.into_iter().map(f32::from_bits).collect();
        assert!(blocks.len() >= 7);
        for (name, expected) in &blocks {
            let found: String = encoded(named(name), &values).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(&found, expected, "{name}");
        }
    }

    #[test]
    fn what_is_searched_is_as_close_as_llama_cpp_comes() {
        let (Golden { errors, .. }, values) = (golden(), many(64 * 256));
        assert_eq!(errors.len(), 3);
        for (name, expected) in &errors {
            let found = error_of(named(name), &values);
            assert!(found < expected * 1.02, "{name}: error {found}, llama.cpp's is {expected}");
        }
    }

    #[test]
    fn equal_values_and_zeros_are_kept() {
        for dtype in DType::ALL.into_iter().filter(|dtype| dtype.can_encode()) {
            for value in [0.0, 0.5, -2.0] {
                let values = [value; 256];
                let mut decoded = [f32::NAN; 256];
                dtype.decode(&encoded(dtype, &values), &mut decoded);
                assert!(decoded.iter().all(|decoded| (decoded - value).abs() <= value.abs() * 0.01), "{dtype}: {value} is {}", decoded[0]);
            }
        }
    }

    proptest! {
        /// Anything finite is encoded, and what is decoded from it is no farther than a step.
        #[test]
        fn no_finite_value_is_too_much(
            values in prop::collection::vec(prop_oneof![any::<f32>().prop_filter("finite", |x| x.is_finite()), -1.0..1.0f32], 256),
            small in prop::collection::vec(-1.0..1.0f32, 256),
        ) {
            for dtype in DType::ALL.into_iter().filter(|dtype| dtype.can_encode()) {
                encoded(dtype, &values);
                let most = small.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                let mut decoded = [0.0; 256];
                dtype.decode(&encoded(dtype, &small), &mut decoded);
                for (decoded, value) in decoded.iter().zip(&small) {
                    prop_assert!((decoded - value).abs() <= most * 0.26, "{}: {} for {}", dtype, decoded, value);
                }
            }
        }
    }
}
