//! Values as stored bytes: as F32, F16 or BF16, and as ggml's blocks by its reference quantisation (`quantize_row_*_ref` of ggml-quants.c).

mod grids;

use std::str::FromStr;

use half::{bf16, f16};
use safetensors::Dtype;

/// How a Hugging Face folder stores its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    BF16,
}

/// How a GGUF file stores its matrices. Its vectors are always F32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    BF16,
    /// 32 bytes and a scale.
    Q8_0,
    /// 32 nibbles and a scale.
    Q4_0,
    /// 32 nibbles, a scale and a minimum.
    Q4_1,
    /// 256 times six bits, a scale for each sixteen and one of these scales.
    Q6K,
    /// 32 times five bits and a scale.
    Q5_0,
    /// 32 times five bits, a scale and a minimum.
    Q5_1,
    /// 256 times four bits, 6-bit scales and minimums.
    Q4K,
    /// 256 times five bits, 6-bit scales and minimums.
    Q5K,
    /// 256 times three bits, 6-bit scales for each sixteen.
    Q3K,
    /// 32 nibbles that choose among sixteen integers, and a scale.
    IQ4NL,
    /// 256 nibbles that choose among sixteen integers, 6-bit scales for each 32.
    IQ4XS,
    /// 32 numbers of four bits and an exponent.
    MXFP4,
    /// 256 times two bits, 4-bit scales and minimums for each sixteen.
    Q2K,
    /// 256 times -1, 0 or 1, five to a byte, and a scale.
    TQ1_0,
    /// The same, four to a byte.
    TQ2_0,
    /// 256 magnitudes, four to a byte that chooses from a grid, seven signs for eight, 4-bit scales for each 32.
    IQ3XXS,
    /// 256 magnitudes, four to nine bits that choose from a grid, signs, 4-bit scales for each 32.
    IQ3S,
    /// 256 magnitudes, eight to a byte that chooses from a grid, seven signs for eight, 4-bit scales for each 32.
    IQ2XXS,
    /// 256 magnitudes, eight to nine bits that choose from a grid, seven signs for eight, 4-bit scales for each sixteen.
    IQ2XS,
    /// 256 magnitudes, eight to ten bits that choose from a grid, signs, 4-bit scales for each sixteen.
    IQ2S,
    /// 256 times -1, 0 or 1, eight to eleven bits that choose from a grid, an eighth more or less, 3-bit scales for each 32.
    IQ1S,
    /// The same with an eighth for each eight, and 3-bit scales for each sixteen.
    IQ1M,
}

impl Stored {
    /// As safetensors have it.
    pub fn dtype(self) -> Dtype {
        match self {
            Stored::F32 => Dtype::F32,
            Stored::F16 => Dtype::F16,
            Stored::BF16 => Dtype::BF16,
        }
    }

    /// As transformers name it in `config.json`.
    pub(super) fn torch_name(self) -> &'static str {
        match self {
            Stored::F32 => "float32",
            Stored::F16 => "float16",
            Stored::BF16 => "bfloat16",
        }
    }

    pub(super) fn size_bytes(self) -> usize {
        match self {
            Stored::F32 => 4,
            Stored::F16 | Stored::BF16 => 2,
        }
    }

    pub(super) fn encode(self, values: &[f32], output: &mut Vec<u8>) {
        match self {
            Stored::F32 => output.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Stored::F16 => output.extend(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes())),
            Stored::BF16 => output.extend(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes())),
        }
    }
}

impl FromStr for Stored {
    type Err = String;

    fn from_str(text: &str) -> Result<Stored, String> {
        Ok(match text {
            "f32" => Stored::F32,
            "f16" => Stored::F16,
            "bf16" => Stored::BF16,
            _ => return Err(format!("--dtype {text} is not known in safetensors; write f32, f16 or bf16, or add --gguf")),
        })
    }
}

impl GgufType {
    /// Its number in ggml's `enum ggml_type`.
    pub(super) fn code(self) -> u32 {
        match self {
            GgufType::F32 => 0,
            GgufType::F16 => 1,
            GgufType::Q4_0 => 2,
            GgufType::Q4_1 => 3,
            GgufType::Q8_0 => 8,
            GgufType::Q6K => 14,
            GgufType::Q5_0 => 6,
            GgufType::BF16 => 30,
            GgufType::Q5_1 => 7,
            GgufType::Q4K => 12,
            GgufType::Q5K => 13,
            GgufType::Q3K => 11,
            GgufType::IQ4NL => 20,
            GgufType::IQ4XS => 23,
            GgufType::MXFP4 => 39,
            GgufType::Q2K => 10,
            GgufType::TQ1_0 => 34,
            GgufType::TQ2_0 => 35,
            GgufType::IQ3XXS => 18,
            GgufType::IQ3S => 21,
            GgufType::IQ2XXS => 16,
            GgufType::IQ2XS => 17,
            GgufType::IQ2S => 22,
            GgufType::IQ1S => 19,
            GgufType::IQ1M => 29,
        }
    }

    /// Its number in llama.cpp's `enum llama_ftype` (`general.file_type`).
    pub(super) fn file_type(self) -> u32 {
        match self {
            GgufType::F32 => 0,
            GgufType::F16 => 1,
            GgufType::Q4_0 => 2,
            GgufType::Q4_1 => 3,
            GgufType::Q8_0 => 7,
            GgufType::Q6K => 18,
            GgufType::Q5_0 => 8,
            GgufType::BF16 => 32,
            GgufType::Q5_1 => 9,
            GgufType::Q4K => 15,
            GgufType::Q5K => 17,
            GgufType::Q3K => 12,
            GgufType::IQ4NL => 25,
            GgufType::IQ4XS => 30,
            GgufType::MXFP4 => 38,
            GgufType::Q2K => 10,
            GgufType::TQ1_0 => 36,
            GgufType::TQ2_0 => 37,
            GgufType::IQ3XXS => 23,
            GgufType::IQ3S => 26,
            GgufType::IQ2XXS => 19,
            GgufType::IQ2XS => 20,
            GgufType::IQ2S => 28,
            GgufType::IQ1S => 24,
            GgufType::IQ1M => 31,
        }
    }

    /// Values and bytes of a block.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            GgufType::F32 => (1, 4),
            GgufType::F16 | GgufType::BF16 => (1, 2),
            GgufType::Q8_0 => (32, 34),
            GgufType::Q4_0 => (32, 18),
            GgufType::Q4_1 => (32, 20),
            GgufType::Q6K => (256, 210),
            GgufType::Q5_0 => (32, 22),
            GgufType::Q5_1 => (32, 24),
            GgufType::Q4K => (256, 144),
            GgufType::Q5K => (256, 176),
            GgufType::Q3K => (256, 110),
            GgufType::IQ4NL => (32, 18),
            GgufType::IQ4XS => (256, 136),
            GgufType::MXFP4 => (32, 17),
            GgufType::Q2K => (256, 84),
            GgufType::TQ1_0 => (256, 54),
            GgufType::TQ2_0 => (256, 66),
            GgufType::IQ3XXS => (256, 98),
            GgufType::IQ3S => (256, 110),
            GgufType::IQ2XXS => (256, 66),
            GgufType::IQ2XS => (256, 74),
            GgufType::IQ2S => (256, 82),
            GgufType::IQ1S => (256, 50),
            GgufType::IQ1M => (256, 56),
        }
    }

    /// Appends `values` as stored, whole blocks.
    pub fn encode(self, values: &[f32], output: &mut Vec<u8>) {
        match self {
            GgufType::F32 => Stored::F32.encode(values, output),
            GgufType::F16 => Stored::F16.encode(values, output),
            GgufType::BF16 => Stored::BF16.encode(values, output),
            GgufType::Q8_0 => values.chunks_exact(32).for_each(|block| encode_q8_0(block, output)),
            GgufType::Q4_0 => values.chunks_exact(32).for_each(|block| encode_q4_0(block, output)),
            GgufType::Q4_1 => values.chunks_exact(32).for_each(|block| encode_q4_1(block, output)),
            GgufType::Q6K => values.chunks_exact(256).for_each(|block| encode_q6_k(block, output)),
            GgufType::Q5_0 => values.chunks_exact(32).for_each(|block| encode_q5_0(block, output)),
            GgufType::Q5_1 => values.chunks_exact(32).for_each(|block| encode_q5_1(block, output)),
            GgufType::Q4K => values.chunks_exact(256).for_each(|block| encode_q4_k(block, output)),
            GgufType::Q5K => values.chunks_exact(256).for_each(|block| encode_q5_k(block, output)),
            GgufType::Q3K => values.chunks_exact(256).for_each(|block| encode_q3_k(block, output)),
            GgufType::IQ4NL => values.chunks_exact(32).for_each(|block| encode_iq4_nl(block, output)),
            GgufType::IQ4XS => values.chunks_exact(256).for_each(|block| encode_iq4_xs(block, output)),
            GgufType::MXFP4 => values.chunks_exact(32).for_each(|block| encode_mxfp4(block, output)),
            GgufType::Q2K => values.chunks_exact(256).for_each(|block| encode_q2_k(block, output)),
            GgufType::TQ1_0 => values.chunks_exact(256).for_each(|block| encode_tq1_0(block, output)),
            GgufType::TQ2_0 => values.chunks_exact(256).for_each(|block| encode_tq2_0(block, output)),
            GgufType::IQ3XXS => values.chunks_exact(256).for_each(|block| grids::encode_iq3_xxs(block, output)),
            GgufType::IQ3S => values.chunks_exact(256).for_each(|block| grids::encode_iq3_s(block, output)),
            GgufType::IQ2XXS => values.chunks_exact(256).for_each(|block| grids::encode_iq2_xxs(block, output)),
            GgufType::IQ2XS => values.chunks_exact(256).for_each(|block| grids::encode_iq2_xs(block, output)),
            GgufType::IQ2S => values.chunks_exact(256).for_each(|block| grids::encode_iq2_s(block, output)),
            GgufType::IQ1S => values.chunks_exact(256).for_each(|block| grids::encode_iq1_s(block, output)),
            GgufType::IQ1M => values.chunks_exact(256).for_each(|block| grids::encode_iq1_m(block, output)),
        }
    }
}

impl FromStr for GgufType {
    type Err = String;

    fn from_str(text: &str) -> Result<GgufType, String> {
        Ok(match text {
            "f32" => GgufType::F32,
            "f16" => GgufType::F16,
            "bf16" => GgufType::BF16,
            "q8_0" => GgufType::Q8_0,
            "q4_0" => GgufType::Q4_0,
            "q4_1" => GgufType::Q4_1,
            "q6_k" => GgufType::Q6K,
            "q5_0" => GgufType::Q5_0,
            "q5_1" => GgufType::Q5_1,
            "q4_k" => GgufType::Q4K,
            "q5_k" => GgufType::Q5K,
            "q3_k" => GgufType::Q3K,
            "iq4_nl" => GgufType::IQ4NL,
            "iq4_xs" => GgufType::IQ4XS,
            "mxfp4" => GgufType::MXFP4,
            "q2_k" => GgufType::Q2K,
            "tq1_0" => GgufType::TQ1_0,
            "tq2_0" => GgufType::TQ2_0,
            "iq3_xxs" => GgufType::IQ3XXS,
            "iq3_s" => GgufType::IQ3S,
            "iq2_xxs" => GgufType::IQ2XXS,
            "iq2_xs" => GgufType::IQ2XS,
            "iq2_s" => GgufType::IQ2S,
            "iq1_s" => GgufType::IQ1S,
            "iq1_m" => GgufType::IQ1M,
            _ => return Err(format!("--dtype {text} is not known in GGUF; write f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 or q6_k")),
        })
    }
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The value of the largest magnitude, with its sign.
fn extreme_of(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |extreme, value| if value.abs() > extreme.abs() { *value } else { extreme })
}

/// The least and the largest value.
fn bounds_of(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::MAX, f32::MIN), |(low, high), value| (low.min(*value), high.max(*value)))
}

/// The same, where the least is zero or below.
fn range_of(values: &[f32]) -> (f32, f32) {
    let (low, high) = bounds_of(values);
    (low.min(0.0), high)
}

fn encode_q8_0(block: &[f32], output: &mut Vec<u8>) {
    let d = extreme_of(block).abs() / 127.0;
    output.extend(f16::from_f32(d).to_le_bytes());
    output.extend(block.iter().map(|value| ((value * inverse(d)).round() as i8).cast_unsigned()));
}

fn encode_q4_0(block: &[f32], output: &mut Vec<u8>) {
    // The extreme becomes -8.
    let d = extreme_of(block) / -8.0;
    output.extend(f16::from_f32(d).to_le_bytes());
    push_nibbles(block, output, |value| value * inverse(d) + 8.5);
}

fn encode_q4_1(block: &[f32], output: &mut Vec<u8>) {
    let (low, high) = bounds_of(block);
    let d = (high - low) / 15.0;
    output.extend(f16::from_f32(d).to_le_bytes());
    output.extend(f16::from_f32(low).to_le_bytes());
    push_nibbles(block, output, |value| (value - low) * inverse(d) + 0.5);
}

/// Each sixteen values by their extreme, as Q4_0 does; ggml's own search finds scales that are a little better.
fn encode_q6_k(block: &[f32], output: &mut Vec<u8>) {
    // The extreme, with its sign, becomes -32.
    let wanted: Vec<f32> = block.chunks_exact(16).map(|values| extreme_of(values) / -32.0).collect();
    let d = f16::from_f32(extreme_of(&wanted) / -128.0);
    let scales: Vec<i8> = wanted.iter().map(|scale| (scale * inverse(d.to_f32())).round() as i8).collect();
    let mut bytes = [0u8; 208];
    for (k, value) in block.iter().enumerate() {
        let level = (value * inverse(d.to_f32() * f32::from(scales[k / 16]))).round() as i32;
        let six_bits = (level.clamp(-32, 31) + 32) as u8;
        let (n, j, l) = (k / 128, k / 32 % 4, k % 32);
        bytes[64 * n + 32 * (j % 2) + l] |= (six_bits & 15) << (j / 2 * 4);
        bytes[128 + 32 * n + l] |= six_bits >> 4 << (2 * j);
    }
    bytes[192..].iter_mut().zip(&scales).for_each(|(byte, scale)| *byte = scale.cast_unsigned());
    output.extend(bytes);
    output.extend(d.to_le_bytes());
}

fn encode_q5_0(block: &[f32], output: &mut Vec<u8>) {
    let d = extreme_of(block) / -16.0;
    output.extend(f16::from_f32(d).to_le_bytes());
    push_five_bits(block, output, |value| value * inverse(d) + 16.5);
}

/// 32 high bits from the lowest on, then nibbles.
fn push_five_bits(block: &[f32], output: &mut Vec<u8>, level: impl Fn(f32) -> f32) {
    let levels: Vec<u32> = block.iter().map(|value| (level(*value) as u32).min(31)).collect();
    output.extend(levels.iter().enumerate().fold(0u32, |bits, (k, level)| bits | level >> 4 << k).to_le_bytes());
    let (low, high) = levels.split_at(16);
    output.extend(low.iter().zip(high).map(|(low, high)| (low & 15 | (high & 15) << 4) as u8));
}

fn encode_q5_1(block: &[f32], output: &mut Vec<u8>) {
    let (low, high) = bounds_of(block);
    let d = (high - low) / 31.0;
    output.extend(f16::from_f32(d).to_le_bytes());
    output.extend(f16::from_f32(low).to_le_bytes());
    push_five_bits(block, output, |value| (value - low) * inverse(d) + 0.5);
}

/// Each 32 values by their range, which begins at zero or below; ggml's own search finds scales that are a little better.
fn encode_q4_k(block: &[f32], output: &mut Vec<u8>) {
    let levels = push_scales_and_minimums(block, 15, output);
    push_nibbles_of_parts(&levels, output);
}

/// Two halves and eight 6-bit scales and minimums; returns the levels of the values, at most `largest`.
fn push_scales_and_minimums(block: &[f32], largest: u8, output: &mut Vec<u8>) -> Vec<u8> {
    let ranges: Vec<(f32, f32)> = block.chunks_exact(32).map(range_of).collect();
    let widest = ranges.iter().fold(0f32, |widest, (low, high)| widest.max(high - low)) / f32::from(largest);
    let lowest = ranges.iter().fold(0f32, |lowest, range| lowest.min(range.0));
    let [d, dmin] = [f16::from_f32(widest / 63.0), f16::from_f32(-lowest / 63.0)];
    let six_bits = |wanted: f32, unit: f16| (wanted * inverse(unit.to_f32())).round().clamp(0.0, 63.0) as u8;
    let scales: Vec<u8> = ranges.iter().map(|(low, high)| six_bits((high - low) / f32::from(largest), d)).collect();
    let minimums: Vec<u8> = ranges.iter().map(|(low, _)| six_bits(-low, dmin)).collect();
    output.extend([d, dmin].map(f16::to_le_bytes).concat());
    output.extend((0..4).map(|i| scales[i] | scales[i + 4] >> 4 << 6));
    output.extend((0..4).map(|i| minimums[i] | minimums[i + 4] >> 4 << 6));
    output.extend((4..8).map(|i| scales[i] & 15 | (minimums[i] & 15) << 4));
    let level = |(k, value): (usize, &f32)| {
        let (scale, minimum) = (d.to_f32() * f32::from(scales[k / 32]), dmin.to_f32() * f32::from(minimums[k / 32]));
        ((value + minimum) * inverse(scale)).round().clamp(0.0, f32::from(largest)) as u8
    };
    block.iter().enumerate().map(level).collect()
}

/// 32 low nibbles, and as high nibbles the next 32.
fn push_nibbles_of_parts(levels: &[u8], output: &mut Vec<u8>) {
    for levels in levels.chunks_exact(64) {
        let (low, high) = levels.split_at(32);
        output.extend(low.iter().zip(high).map(|(low, high)| low & 15 | (high & 15) << 4));
    }
}

fn encode_q5_k(block: &[f32], output: &mut Vec<u8>) {
    let levels = push_scales_and_minimums(block, 31, output);
    output.extend((0..32).map(|l| (0..8).fold(0, |bits, j| bits | levels[32 * j + l] >> 4 << j)));
    push_nibbles_of_parts(&levels, output);
}

/// Each sixteen values by their extreme, as Q6_K does.
fn encode_q3_k(block: &[f32], output: &mut Vec<u8>) {
    // The extreme, with its sign, becomes -4.
    let wanted: Vec<f32> = block.chunks_exact(16).map(|values| extreme_of(values) / -4.0).collect();
    let d = f16::from_f32(extreme_of(&wanted) / -32.0);
    let scales: Vec<f32> = wanted.iter().map(|scale| (scale * inverse(d.to_f32())).round().clamp(-32.0, 31.0)).collect();
    let level = |(k, value): (usize, &f32)| (value * inverse(d.to_f32() * scales[k / 16])).round().clamp(-4.0, 3.0) as i8 + 4;
    let levels: Vec<u8> = block.iter().enumerate().map(|value| level(value).cast_unsigned()).collect();
    output.extend((0..32).map(|l| (0..8).fold(0, |bits, j| bits | levels[32 * j + l] >> 2 << j)));
    push_two_bits(&levels, output);
    let six_bits: Vec<u8> = scales.iter().map(|scale| (scale + 32.0) as u8).collect();
    output.extend((0..8).map(|i| six_bits[i] & 15 | (six_bits[i + 8] & 15) << 4));
    output.extend((0..4).map(|i| (0..4).fold(0, |bits, j| bits | six_bits[i + 4 * j] >> 4 << (2 * j))));
    output.extend(d.to_le_bytes());
}

/// Of each 128 values the low two bits: those of `l`, `l + 32`, `l + 64` and `l + 96` in one byte.
fn push_two_bits(levels: &[u8], output: &mut Vec<u8>) {
    for levels in levels.chunks_exact(128) {
        output.extend((0..32).map(|l| (0..4).fold(0, |bits, j| bits | (levels[32 * j + l] & 3) << (2 * j))));
    }
}

/// What the nibbles of IQ4_NL and IQ4_XS stand for (`kvalues_iq4nl` of ggml).
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The extreme, with its sign, becomes -127; ggml's own search finds scales that are a little better.
fn encode_iq4_nl(block: &[f32], output: &mut Vec<u8>) {
    let d = extreme_of(block) / -127.0;
    output.extend(f16::from_f32(d).to_le_bytes());
    push_nearest(&IQ4, block, d, output);
}

/// Nibbles of 32 values: the places of the nearest integers of `table`, in units of `d`.
fn push_nearest(table: &[i8; 16], block: &[f32], d: f32, output: &mut Vec<u8>) {
    let distance = |value: f32, place: &usize| (value * inverse(d) - f32::from(table[*place])).abs();
    let nearest = |value: f32| (0..16).min_by(|a, b| distance(value, a).total_cmp(&distance(value, b))).unwrap_or(0) as u8;
    let (low, high) = block.split_at(16);
    output.extend(low.iter().zip(high).map(|(low, high)| nearest(*low) | nearest(*high) << 4));
}

/// Each 32 values as in IQ4_NL.
fn encode_iq4_xs(block: &[f32], output: &mut Vec<u8>) {
    let wanted: Vec<f32> = block.chunks_exact(32).map(|values| extreme_of(values) / -127.0).collect();
    let d = f16::from_f32(extreme_of(&wanted) / -32.0);
    let scales: Vec<f32> = wanted.iter().map(|scale| (scale * inverse(d.to_f32())).round().clamp(-32.0, 31.0)).collect();
    let six_bits: Vec<u16> = scales.iter().map(|scale| (scale + 32.0) as u16).collect();
    output.extend(d.to_le_bytes());
    output.extend(six_bits.iter().enumerate().fold(0, |bits, (part, scale)| bits | scale >> 4 << (2 * part)).to_le_bytes());
    output.extend(six_bits.chunks_exact(2).map(|pair| (pair[0] & 15 | (pair[1] & 15) << 4) as u8));
    for (values, scale) in block.chunks_exact(32).zip(&scales) {
        push_nearest(&IQ4, values, d.to_f32() * scale, output);
    }
}

/// Twice what the nibbles of MXFP4 stand for (`kvalues_mxfp4` of ggml).
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The extreme becomes 4 to 8 times the power of two; what is above 6 times that is 6.
fn encode_mxfp4(block: &[f32], output: &mut Vec<u8>) {
    let extreme = extreme_of(block).abs();
    let exponent = if extreme > 0.0 { (extreme.log2().floor() as i32 - 2 + 127).clamp(0, 254) } else { 0 };
    output.push(exponent as u8);
    push_nearest(&E2M1, block, ((exponent - 128) as f32).exp2(), output);
}

fn encode_q2_k(block: &[f32], output: &mut Vec<u8>) {
    let ranges: Vec<(f32, f32)> = block.chunks_exact(16).map(range_of).collect();
    let widest = ranges.iter().fold(0f32, |widest, (low, high)| widest.max(high - low)) / 3.0;
    let lowest = ranges.iter().fold(0f32, |lowest, range| lowest.min(range.0));
    let [d, dmin] = [f16::from_f32(widest / 15.0), f16::from_f32(-lowest / 15.0)];
    let four_bits = |wanted: f32, unit: f16| (wanted * inverse(unit.to_f32())).round().clamp(0.0, 15.0);
    let pairs: Vec<(f32, f32)> = ranges.iter().map(|(low, high)| (four_bits((high - low) / 3.0, d), four_bits(-low, dmin))).collect();
    let level = |(k, value): (usize, &f32)| {
        let (scale, minimum) = pairs[k / 16];
        ((value + dmin.to_f32() * minimum) * inverse(d.to_f32() * scale)).round().clamp(0.0, 3.0) as u8
    };
    output.extend(pairs.iter().map(|(scale, minimum)| *scale as u8 | (*minimum as u8) << 4));
    push_two_bits(&block.iter().enumerate().map(level).collect::<Vec<u8>>(), output);
    output.extend([d, dmin].map(f16::to_le_bytes).concat());
}

/// The largest magnitude, and each value as 0, 1 or 2: in units of it, plus 1.
fn ternary(block: &[f32]) -> (f32, Vec<u8>) {
    let d = extreme_of(block).abs();
    (d, block.iter().map(|value| ((value * inverse(d)).round() as i8 + 1).cast_unsigned()).collect())
}

fn encode_tq1_0(block: &[f32], output: &mut Vec<u8>) {
    let (d, levels) = ternary(block);
    let (first, rest) = levels.split_at(5 * 32);
    let (second, last) = rest.split_at(5 * 16);
    for (levels, n_bytes) in [(first, 32), (second, 16), (last, 4)] {
        let digit = |byte: usize, digit: usize| u16::from(levels.get(digit * n_bytes + byte).copied().unwrap_or(0));
        let number = |byte: usize| (0..5).fold(0, |number, place| number * 3 + digit(byte, place));
        // The least fraction of 256 that has these digits.
        output.extend((0..n_bytes).map(|byte| (number(byte) * 256).div_ceil(243) as u8));
    }
    output.extend(f16::from_f32(d).to_le_bytes());
}

fn encode_tq2_0(block: &[f32], output: &mut Vec<u8>) {
    let (d, levels) = ternary(block);
    push_two_bits(&levels, output);
    output.extend(f16::from_f32(d).to_le_bytes());
}

/// Value j goes into the low half of byte j, value j + 16 into its high half.
fn push_nibbles(block: &[f32], output: &mut Vec<u8>, level: impl Fn(f32) -> f32) {
    let nibble = |value: f32| (level(value) as i8).clamp(0, 15).cast_unsigned();
    let (low, high) = block.split_at(16);
    output.extend(low.iter().zip(high).map(|(low, high)| nibble(*low) | nibble(*high) << 4));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_of_the_reference() {
        let values: Vec<f32> = (0..32).map(|i| i as f32 - 16.0).collect();
        let mut bytes = Vec::new();
        encode_q4_0(&values, &mut bytes);
        // d = -16 / -8 = 2; value j = -16 + j becomes j / 2 rounded up at halves, 16 + j becomes 8 + j / 2, at most 15.
        assert_eq!(bytes[..2], f16::from_f32(2.0).to_le_bytes());
        assert_eq!(bytes[2], 0x80);
        assert_eq!(bytes[17], 0xF8);
        bytes.clear();
        encode_q8_0(&values, &mut bytes);
        assert_eq!((bytes.len(), bytes[2].cast_signed(), bytes[18]), (34, -127, 0));
        bytes.clear();
        encode_q4_1(&values, &mut bytes);
        assert_eq!((bytes.len(), bytes[4] & 15, bytes[19] >> 4), (20, 0, 15));
        bytes.clear();
        encode_q4_1(&[0.5; 32], &mut bytes);
        assert_eq!(bytes[4..], [0; 16], "a constant block has scale 0");
        bytes.clear();
        // The first sixteen have the extreme: d = 64 / 32 / 128, their scale is -128, and level -32 is stored as 0.
        let values: Vec<f32> = (0..256).map(|i| if i == 0 { -64.0 } else { (i % 16) as f32 }).collect();
        encode_q6_k(&values, &mut bytes);
        assert_eq!((bytes.len(), bytes[0] & 15, bytes[128] & 3, bytes[192].cast_signed()), (210, 0, 0, -128));
        assert_eq!(bytes[208..], f16::from_f32(-2.0 / 128.0).to_le_bytes());
        assert_eq!((bytes[2] & 15, bytes[128 + 2] & 3), (1, 2), "2 is level 1 of 2, which is stored as 33");
    }
}
