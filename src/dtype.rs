//! How numbers are stored in a checkpoint, and their decoding on the host. The shaders decode the same bytes the same way.
//!
//! A dtype is one row of the table below, one function in [`blocks`] and one in `shaders/shared/blocks.wgsl`; see ARCHITECTURE.md.

pub mod blocks;
mod encode;
pub(crate) mod grids;

use std::fmt;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::units::listed;

pub use blocks::{Block, BlockLayout, PART_LEN, Scaling};

/// What is known of a dtype.
struct Row {
    dtype: DType,
    /// As GGUF, its tools and names of files have it.
    name: &'static str,
    /// Its number in `enum ggml_type` of ggml.h.
    gguf: u32,
    layout: Layout,
    /// The dtype whose rates and kernel variants stand for it where machines are measured: itself, or one whose decoding costs about
    /// as much for each byte.
    measured_as: DType,
}

enum Layout {
    Floats(Floats),
    Blocks(BlockLayout),
}

/// How unquantised values lie in memory, little-endian and at any address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Floats {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    BF16,
}

/// Makes [`DType`] and the table from its rows.
macro_rules! dtypes {
    ($($(#[$doc:meta])* $dtype:ident { name: $name:literal, gguf: $gguf:literal, layout: $layout:expr, measured_as: $measured_as:ident })+) => {
        /// The storage form of a tensor: unquantised, or rows of blocks whose values share scales (the layouts of ggml's `block_*`; all
        /// little-endian).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum DType {
            $($(#[$doc])* #[serde(rename = $name)] $dtype,)+
        }

        impl DType {
            /// All of them, for tables and tests.
            pub const ALL: [DType; [$($name),+].len()] = [$(DType::$dtype),+];
        }

        /// In the order of [`DType::ALL`].
        static ROWS: [Row; DType::ALL.len()] = [$(Row {
            dtype: DType::$dtype,
            name: $name,
            gguf: $gguf,
            layout: $layout,
            measured_as: DType::$measured_as,
        }),+];
    };
}

dtypes! {
    /// IEEE single.
    F32 { name: "F32", gguf: 0, layout: Layout::Floats(Floats::F32), measured_as: F32 }
    /// IEEE half.
    F16 { name: "F16", gguf: 1, layout: Layout::Floats(Floats::F16), measured_as: F16 }
    /// The upper half of an IEEE single.
    BF16 { name: "BF16", gguf: 30, layout: Layout::Floats(Floats::BF16), measured_as: BF16 }
    /// 34 bytes: f16 scale `d`, 32 × i8 `q`; value `d·q`.
    Q8_0 { name: "Q8_0", gguf: 8, layout: Layout::Blocks(blocks::Q8_0), measured_as: Q8_0 }
    /// 18 bytes: f16 scale `d`, 16 bytes of nibbles (value j low, value j+16 high); value `d·(q−8)`.
    Q4_0 { name: "Q4_0", gguf: 2, layout: Layout::Blocks(blocks::Q4_0), measured_as: Q4_0 }
    /// 20 bytes: f16 scale `d`, f16 minimum `m`, 16 bytes of nibbles as in Q4_0; value `d·q+m`.
    Q4_1 { name: "Q4_1", gguf: 3, layout: Layout::Blocks(blocks::Q4_1), measured_as: Q4_1 }
    /// 210 bytes for 256 values: 128 bytes of nibbles, 64 of two bits each, 16 × i8 `s`, f16 scale `d`; value `d·s·(q−32)`.
    /// Value `128·n + 32·j + l` has its low four bits in nibble `j / 2` of byte `64·n + 32·(j % 2) + l`, its high two at bit `2·j` of
    /// byte `128 + 32·n + l`, and `s` at byte `192 + 8·n + 2·j + l / 16`.
    Q6K { name: "Q6_K", gguf: 14, layout: Layout::Blocks(blocks::Q6_K), measured_as: Q6K }
    /// 22 bytes: f16 scale `d`, 32 high bits from the lowest on, 16 bytes of nibbles as in Q4_0; value `d·(q−16)`.
    Q5_0 { name: "Q5_0", gguf: 6, layout: Layout::Blocks(blocks::Q5_0), measured_as: Q4K }
    /// 24 bytes: f16 scale `d`, f16 minimum `m`, 32 high bits and 16 bytes of nibbles as in Q5_0; value `d·q+m`.
    Q5_1 { name: "Q5_1", gguf: 7, layout: Layout::Blocks(blocks::Q5_1), measured_as: Q4K }
    /// 144 bytes for 256 values: f16 `d`, f16 `dmin`, 12 bytes of eight 6-bit scales `s` and eight 6-bit minimums `m` (one of each for 32
    /// values), 128 bytes of nibbles; value `d·s·q − dmin·m`. Value `64·n + l` is the low nibble of byte `16 + 32·n + l`, value `64·n + 32 + l`
    /// its high one.
    Q4K { name: "Q4_K", gguf: 12, layout: Layout::Blocks(blocks::Q4_K), measured_as: Q4K }
    /// 176 bytes for 256 values: as Q4_K, with a fifth bit of each value: bit `j` of byte `16 + l` for value `32·j + l`; the nibbles from
    /// byte 48 on.
    Q5K { name: "Q5_K", gguf: 13, layout: Layout::Blocks(blocks::Q5_K), measured_as: Q4K }
    /// 110 bytes for 256 values: 32 bytes of third bits, 64 of two bits each, 12 bytes of sixteen 6-bit scales `s` (one for sixteen values),
    /// f16 scale `d`; value `d·(s−32)·(q−4)`. Value `32·j + l` has its low two bits at bit `2·(j % 4)` of byte `32 + 32·(j / 4) + l`, its third
    /// at bit `j` of byte `l`.
    Q3K { name: "Q3_K", gguf: 11, layout: Layout::Blocks(blocks::Q3_K), measured_as: Q4K }
    /// 18 bytes: f16 scale `d`, 16 bytes of nibbles as in Q4_0, which choose among sixteen integers; value `d·integer`.
    IQ4NL { name: "IQ4_NL", gguf: 20, layout: Layout::Blocks(blocks::IQ4_NL), measured_as: Q4K }
    /// 136 bytes for 256 values: f16 scale `d`, the high two bits (2 bytes) and low four (4 bytes) of eight scales `s`, one for 32 values, 128
    /// bytes of nibbles, in each sixteen bytes as in Q4_0, which choose as those of IQ4_NL; value `d·(s−32)·integer`.
    IQ4XS { name: "IQ4_XS", gguf: 23, layout: Layout::Blocks(blocks::IQ4_XS), measured_as: Q4K }
    /// 17 bytes: a power of two `d` as its biased exponent, 16 bytes of nibbles as in Q4_0, which choose among sixteen integers (twice the
    /// numbers of E2M1); value `d·integer / 2`.
    MXFP4 { name: "MXFP4", gguf: 39, layout: Layout::Blocks(blocks::MXFP4), measured_as: Q4K }
    /// 84 bytes for 256 values: sixteen bytes with a scale `s` and, as high nibble, a minimum `m` for sixteen values each, 64 bytes of two bits
    /// each as in Q3_K, f16 `d`, f16 `dmin`; value `d·s·q − dmin·m`.
    Q2K { name: "Q2_K", gguf: 10, layout: Layout::Blocks(blocks::Q2_K), measured_as: Q4K }
    /// 54 bytes for 256 values: 48 bytes of five and 4 of four ternary digits `q`, f16 scale `d`; value `d·(q−1)`. A byte is a fraction of 256
    /// whose first digit, in base three, is behind its point. The first 32 bytes have the first digits of the first 32 values, then the second
    /// ones of the next 32, and so on; the next 16 bytes so those of 80 values, the last 4 those of 16.
    TQ1_0 { name: "TQ1_0", gguf: 34, layout: Layout::Blocks(blocks::TQ1_0), measured_as: Q4K }
    /// 66 bytes for 256 values: 64 bytes of two bits each as in Q3_K, f16 scale `d`; value `d·(q−1)`.
    TQ2_0 { name: "TQ2_0", gguf: 35, layout: Layout::Blocks(blocks::TQ2_0), measured_as: Q4K }
    /// 98 bytes for 256 values: f16 scale `d`, 64 bytes that choose four magnitudes each from [`DType::grid`], a word for each 32 values: seven
    /// signs of each eight (the eighth makes the number of negative ones even), and in its highest bits a scale `s`; value
    /// `d·(s + 1/2)/2·magnitude`.
    IQ3XXS { name: "IQ3_XXS", gguf: 18, layout: Layout::Blocks(blocks::IQ3_XXS), measured_as: Q4K }
    /// 110 bytes for 256 values: f16 scale `d`, 64 bytes that choose as those of IQ3_XXS, with 8 bytes of their ninth bits, 32 bytes of signs,
    /// 4 bytes of scales `s`, one for 32 values; value `d·(2·s + 1)·magnitude`.
    IQ3S { name: "IQ3_S", gguf: 21, layout: Layout::Blocks(blocks::IQ3_S), measured_as: Q4K }
    /// 66 bytes for 256 values: f16 scale `d`, for each 32 values four bytes that choose eight magnitudes each from [`DType::grid`], then signs
    /// and a scale `s` as in IQ3_XXS; value `d·(s + 1/2)/4·magnitude`.
    IQ2XXS { name: "IQ2_XXS", gguf: 16, layout: Layout::Blocks(blocks::IQ2_XXS), measured_as: Q4K }
    /// 74 bytes for 256 values: f16 scale `d`, for each eight values nine bits that choose as those of IQ2_XXS and seven signs, then eight bytes
    /// of scales `s`, one for sixteen values; value as in IQ2_XXS.
    IQ2XS { name: "IQ2_XS", gguf: 17, layout: Layout::Blocks(blocks::IQ2_XS), measured_as: Q4K }
    /// 82 bytes for 256 values: f16 scale `d`, 32 bytes that choose as those of IQ2_XXS, 32 bytes of signs, 8 bytes of the ninth and tenth bits
    /// of what chooses, scales as in IQ2_XS; value as in IQ2_XXS.
    IQ2S { name: "IQ2_S", gguf: 22, layout: Layout::Blocks(blocks::IQ2_S), measured_as: Q4K }
    /// 50 bytes for 256 values: f16 scale `d`, 32 bytes that choose eight of -1, 0 and 1 each, two bytes for each 32 values: three more bits of
    /// each choice, three of a scale `s`, and the sign of an eighth that is added to all; value `d·(2·s + 1)·(q ± 1/8)`.
    IQ1S { name: "IQ1_S", gguf: 19, layout: Layout::Blocks(blocks::IQ1_S), measured_as: Q4K }
    /// 56 bytes for 256 values: 32 bytes that choose as those of IQ1_S, four bits for each with three more and the sign of the eighth, four times
    /// sixteen bits with four scales `s` of three bits, one for sixteen values, and a quarter of the f16 scale `d`, the lowest first; value as in
    /// IQ1_S.
    IQ1M { name: "IQ1_M", gguf: 29, layout: Layout::Blocks(blocks::IQ1_M), measured_as: Q4K }
}

impl DType {
    fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }

    /// The dtype of this number in `enum ggml_type` of ggml.h.
    pub fn of_gguf(code: u32) -> Option<DType> {
        ROWS.iter().find(|row| row.gguf == code).map(|row| row.dtype)
    }

    /// Its number in `enum ggml_type` of ggml.h.
    pub fn gguf_code(self) -> u32 {
        self.row().gguf
    }

    /// How its values lie in memory where it is unquantised; `None` for one of blocks.
    pub fn floats(self) -> Option<Floats> {
        match self.row().layout {
            Layout::Floats(floats) => Some(floats),
            Layout::Blocks(_) => None,
        }
    }

    /// How its blocks lie in memory; `None` for an unquantised one.
    pub fn blocks(self) -> Option<&'static BlockLayout> {
        match &self.row().layout {
            Layout::Floats(_) => None,
            Layout::Blocks(blocks) => Some(blocks),
        }
    }

    /// What the indices in its blocks choose from, four integers in a word, the first in the lowest byte; `None` where they have none.
    /// Kernels read it from a buffer, since tables inside of shaders are slow on some adapters.
    pub fn grid(self) -> Option<&'static [u32]> {
        match self {
            DType::IQ3XXS => Some(&grids::IQ3_XXS),
            DType::IQ3S => Some(&grids::IQ3_S),
            DType::IQ2XXS => Some(&grids::IQ2_XXS),
            DType::IQ2XS => Some(&grids::IQ2_XS),
            DType::IQ2S => Some(&grids::IQ2_S),
            DType::IQ1S | DType::IQ1M => Some(&grids::IQ1),
            _ => None,
        }
    }

    /// Values in one block (1 for unquantised dtypes).
    pub fn block_len(self) -> u64 {
        self.blocks().map_or(1, |blocks| blocks.len as u64)
    }

    /// Whether it is stored in blocks that share a scale.
    pub fn has_blocks(self) -> bool {
        self.blocks().is_some()
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> u64 {
        match &self.row().layout {
            Layout::Floats(floats) => floats.size_bytes() as u64,
            Layout::Blocks(blocks) => blocks.bytes as u64,
        }
    }

    /// The dtype whose measured rates and kernel variants stand for this one.
    pub fn measured_as(self) -> DType {
        self.row().measured_as
    }

    /// Those that are measured.
    pub fn measured() -> impl Iterator<Item = DType> {
        DType::ALL.into_iter().filter(|dtype| dtype.measured_as() == *dtype)
    }

    /// The names of all, for messages: `A, B and C`.
    pub fn names() -> String {
        listed(&DType::ALL.map(|dtype| dtype.row().name))
    }

    /// Bytes of `n_values` consecutive values, or `None` where they are no whole number of blocks or overflow.
    pub fn size_bytes(self, n_values: u64) -> Option<u64> {
        if !n_values.is_multiple_of(self.block_len()) {
            return None;
        }
        (n_values / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Bits per value, blocks included.
    pub fn bits(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }

    /// Decodes whole blocks into `output`; `bytes` must hold exactly its values.
    pub fn decode(self, bytes: &[u8], output: &mut [f32]) {
        match &self.row().layout {
            Layout::Floats(floats) => floats.decode(bytes, output),
            Layout::Blocks(blocks) => blocks.decode(bytes, output),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.row().name)
    }
}

impl Floats {
    /// Bytes of a value.
    pub const fn size_bytes(self) -> usize {
        match self {
            Floats::F32 => 4,
            Floats::F16 | Floats::BF16 => 2,
        }
    }

    /// Decodes as many values as `output` has room for.
    pub fn decode(self, bytes: &[u8], output: &mut [f32]) {
        match self {
            Floats::F32 => decode_each::<4>(bytes, output, f32::from_le_bytes),
            Floats::F16 => decode_each::<2>(bytes, output, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Floats::BF16 => decode_each::<2>(bytes, output, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        }
    }
}

fn decode_each<const SIZE: usize>(bytes: &[u8], output: &mut [f32], decode: impl Fn([u8; SIZE]) -> f32) {
    let (items, _) = bytes.as_chunks::<SIZE>();
    for (value, item) in output.iter_mut().zip(items) {
        *value = decode(*item);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn rows_differ_in_name_and_code() {
        for (index, dtype) in DType::ALL.into_iter().enumerate() {
            assert_eq!((dtype as usize, dtype.row().dtype), (index, dtype));
            assert_eq!(DType::of_gguf(dtype.row().gguf), Some(dtype));
            assert_eq!(serde_json::to_string(&dtype).unwrap(), format!("\"{dtype}\""));
            assert_eq!(dtype.measured_as().measured_as(), dtype.measured_as(), "{dtype} is measured as one that is not measured");
        }
        assert!(DType::names().ends_with(&format!(" and {}", DType::ALL[DType::ALL.len() - 1])));
    }

    #[test]
    fn sizes_count_whole_blocks() {
        assert_eq!(DType::Q4_1.size_bytes(576), Some(360));
        assert_eq!(DType::Q8_0.size_bytes(33), None);
        assert_eq!(DType::F32.size_bytes(u64::MAX), None);
    }

    #[derive(Deserialize)]
    struct Golden {
        /// In hexadecimal digits.
        bytes: String,
        values: Vec<f32>,
    }

    /// Made by `tests/golden/dtypes.py`.
    #[test]
    fn blocks_are_decoded_as_the_package_gguf_does() {
        let golden: BTreeMap<String, Golden> = serde_json::from_str(include_str!("../tests/golden/dtypes.json")).unwrap();
        for dtype in DType::ALL.into_iter().filter(|dtype| dtype.has_blocks()) {
            let Golden { bytes, values: expected } = &golden[&dtype.to_string()];
            let bytes: Vec<u8> = (0..bytes.len()).step_by(2).map(|at| u8::from_str_radix(&bytes[at..at + 2], 16).unwrap()).collect();
            assert_eq!(dtype.size_bytes(expected.len() as u64), Some(bytes.len() as u64), "{dtype}");
            let mut values = vec![f32::NAN; expected.len()];
            dtype.decode(&bytes, &mut values);
            for (k, (value, expected)) in values.iter().zip(expected).enumerate() {
                assert_eq!(value.to_bits(), expected.to_bits(), "{dtype}, value {k}: {value}, expected {expected}");
            }
        }
    }

    #[test]
    fn nibbles_of_the_second_half_are_the_high_ones() {
        let mut block = vec![0u8; 20];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(-1.0).to_le_bytes());
        block[4] = 0xF3;
        let mut values = [0.0; 32];
        DType::Q4_1.decode(&block, &mut values);
        assert_eq!((values[0], values[16], values[1]), (0.5, 6.5, -1.0));
    }
}
