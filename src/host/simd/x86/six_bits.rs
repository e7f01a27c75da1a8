//! Blocks of Q6_K with AVX2: eight rows in the eight 32-bit lanes, 128 columns at a time, whose bits share bytes.

use std::arch::x86_64::*;

use super::super::{N_PAIRS, PANEL_ROWS};
use super::blocks::{Unpacked, columns, halves, split_bytes};
use crate::dtype::blocks::Q6_K;

/// Bytes of a block.
pub(super) const BYTES: usize = Q6_K.bytes;
/// Parts of 32 columns in a block.
pub(super) const PARTS: usize = Q6_K.n_parts();
/// Bytes of a vector of sixteen, and vectors of four of them from eight rows.
const LOAD: usize = 16;
const N_VECTORS: usize = 4;
/// Where in a block the high bits, the scales and their scale begin.
const HIGH_BITS: usize = 128;
const SCALES: usize = 192;
const SCALE: usize = 208;

/// Of eight rows the scales of each sixteen columns.
pub(super) struct Scales([__m256; 16]);

/// Of eight rows 64 bytes of nibbles, and 32 bytes of their high bits; in each vector four bytes of each row.
pub(super) struct Half {
    n: usize,
    nibbles: [[__m256i; N_VECTORS]; 4],
    high_bits: [[__m256i; N_VECTORS]; 2],
}

/// The scales of block `index`.
///
/// # Safety
/// Each row holds more than `index` blocks of 210 bytes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) unsafe fn scales(rows: &[*const u8; PANEL_ROWS], index: usize) -> Scales {
    // SAFETY: the caller's promise: 2 bytes at 208, 16 at 192.
    let (of_all, integers) = unsafe {
        let at = |row: usize, offset: usize| rows[row].add(index * BYTES + offset);
        let of_all = halves(std::array::from_fn(|row| at(row, SCALE).cast::<i16>().read_unaligned()));
        (of_all, columns(std::array::from_fn(|row| at(row, SCALES))))
    };
    let mut scales = [_mm256_setzero_ps(); 16];
    for (scales, bytes) in scales.as_chunks_mut::<4>().0.iter_mut().zip(integers) {
        let of_byte = [_mm256_slli_epi32(bytes, 24), _mm256_slli_epi32(bytes, 16), _mm256_slli_epi32(bytes, 8), bytes];
        for (scale, byte) in scales.iter_mut().zip(of_byte) {
            *scale = _mm256_mul_ps(of_all, _mm256_cvtepi32_ps(_mm256_srai_epi32(byte, 24)));
        }
    }
    Scales(scales)
}

/// Columns `128·n` to `128·n + 127` of block `index`.
///
/// # Safety
/// Each row holds more than `index` blocks of 210 bytes, and `n` is 0 or 1.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn half(rows: &[*const u8; PANEL_ROWS], index: usize, n: usize) -> Half {
    let mut half = Half { n, nibbles: [[_mm256_setzero_si256(); N_VECTORS]; 4], high_bits: [[_mm256_setzero_si256(); N_VECTORS]; 2] };
    // SAFETY: the caller's promise: 16 bytes at 112 and at 176 at most.
    unsafe {
        let load = |offset: usize| columns(std::array::from_fn(|row| rows[row].add(index * BYTES + offset)));
        for (i, nibbles) in half.nibbles.iter_mut().enumerate() {
            *nibbles = load(64 * n + LOAD * i);
        }
        for (i, high_bits) in half.high_bits.iter_mut().enumerate() {
            *high_bits = load(HIGH_BITS + 32 * n + LOAD * i);
        }
    }
    half
}

impl Half {
    /// Block `j` of the four of 32 columns.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn block(&self, scales: &Scales, j: usize) -> Unpacked {
        let first = 8 * self.n + 2 * j;
        let nibbles = &self.nibbles[j % 2 * 2..][..2];
        let mut bytes = [[_mm256_setzero_si256(); N_VECTORS]; 2];
        for ((bytes, nibbles), high_bits) in bytes.iter_mut().zip(nibbles).zip(&self.high_bits) {
            for ((bytes, nibbles), high_bits) in bytes.iter_mut().zip(nibbles).zip(high_bits) {
                *bytes = six_bits(*nibbles, *high_bits, j);
            }
        }
        let pairs: [__m256i; N_PAIRS] = split_bytes(bytes[0], bytes[1]);
        let zero = _mm256_setzero_ps();
        Unpacked { factors: [scales.0[first], scales.0[first + 1], zero, zero], pairs }
    }
}

/// The signed bytes of block `j`.
#[target_feature(enable = "avx2")]
#[inline]
fn six_bits(nibbles: __m256i, high_bits: __m256i, j: usize) -> __m256i {
    let low_mask = _mm256_set1_epi8(0x0F);
    let low = _mm256_and_si256(if j < 2 { nibbles } else { _mm256_srli_epi16(nibbles, 4) }, low_mask);
    // What crosses into a neighbouring byte is masked away.
    let high = match j {
        0 => _mm256_slli_epi16(high_bits, 4),
        1 => _mm256_slli_epi16(high_bits, 2),
        2 => high_bits,
        _ => _mm256_srli_epi16(high_bits, 2),
    };
    let high = _mm256_and_si256(high, _mm256_set1_epi8(0x30));
    _mm256_sub_epi8(_mm256_or_si256(low, high), _mm256_set1_epi8(32))
}
