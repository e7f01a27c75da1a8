//! Bytes of eight rows side by side with AVX2: a row in each of the eight 32-bit lanes, four bytes or two columns of it in each.

use std::arch::x86_64::*;

use super::super::{MAX_FACTORS, N_PAIRS, PANEL_ROWS};

/// Bytes of a vector of sixteen.
pub(super) const LOAD: usize = 16;

/// 32 columns as bytes: four columns in each vector.
pub(super) type ByteColumns = [__m256i; 8];

/// The blocks of eight rows that stand at one place.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    /// Where the rows begin.
    pub(super) rows: &'a [*const u8; PANEL_ROWS],
    /// Where in each of them the block begins.
    pub(super) begin: usize,
}

impl Blocks<'_> {
    fn at(&self, row: usize, offset: usize) -> *const u8 {
        self.rows[row].wrapping_add(self.begin + offset)
    }

    /// Sixteen bytes from `offset` on, turned: vector `i` has bytes `4·i` to `4·i + 3` of row `r` in lane `r`.
    ///
    /// # Safety
    /// Each block has them.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) unsafe fn sixteen(&self, offset: usize) -> [__m256i; 4] {
        // SAFETY: the caller's promise.
        unsafe { columns(std::array::from_fn(|row| self.at(row, offset))) }
    }

    /// Thirty-two bytes from `offset` on, turned as in `sixteen`.
    ///
    /// # Safety
    /// Each block has them.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) unsafe fn thirty_two(&self, offset: usize) -> ByteColumns {
        // SAFETY: the caller's promise.
        let ([a, b, c, d], [e, f, g, h]) = unsafe { (self.sixteen(offset), self.sixteen(offset + LOAD)) };
        [a, b, c, d, e, f, g, h]
    }

    /// The half at `offset`.
    ///
    /// # Safety
    /// Each block has it.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) unsafe fn half(&self, offset: usize) -> __m256 {
        // SAFETY: the caller's promise.
        let [a, b, c, d, e, f, g, h] = std::array::from_fn(|row| unsafe { self.at(row, offset).cast::<i16>().read_unaligned() });
        _mm256_cvtph_ps(_mm_setr_epi16(a, b, c, d, e, f, g, h))
    }

    /// The four bytes at `offset`.
    ///
    /// # Safety
    /// Each block has them.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) unsafe fn word(&self, offset: usize) -> __m256i {
        // SAFETY: the caller's promise.
        let [a, b, c, d, e, f, g, h] = std::array::from_fn(|row| unsafe { self.at(row, offset).cast::<i32>().read_unaligned() });
        _mm256_setr_epi32(a, b, c, d, e, f, g, h)
    }

    /// The byte at `offset`.
    ///
    /// # Safety
    /// Each block has it.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) unsafe fn byte(&self, offset: usize) -> __m256i {
        // SAFETY: the caller's promise.
        let [a, b, c, d, e, f, g, h] = std::array::from_fn(|row| i32::from(unsafe { self.at(row, offset).read() }));
        _mm256_setr_epi32(a, b, c, d, e, f, g, h)
    }
}

/// Sixteen bytes of each of eight rows, turned: vector `i` has bytes `4·i` to `4·i + 3` of row `r` in lane `r`.
///
/// # Safety
/// Sixteen bytes can be read at each pointer.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn columns(rows: [*const u8; PANEL_ROWS]) -> [__m256i; 4] {
    // SAFETY: the caller's promise.
    let pair = |row: usize| unsafe { _mm256_loadu2_m128i(rows[row + 4].cast(), rows[row].cast()) };
    let (a, b, c, d) = (pair(0), pair(1), pair(2), pair(3));
    let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab_low, cd_low),
        _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// The lower and the upper halves of eight words.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn half_pairs(words: __m256i) -> [__m256; 2] {
    let lower = _mm256_and_si256(words, _mm256_set1_epi32(0xFFFF));
    let packed = _mm256_packus_epi32(lower, _mm256_srli_epi32(words, 16)); // lower a–d, upper a–d, lower e–h, upper e–h
    let packed = _mm256_permute4x64_epi64(packed, 0b11_01_10_00);
    [_mm256_cvtph_ps(_mm256_castsi256_si128(packed)), _mm256_cvtph_ps(_mm256_extracti128_si256(packed, 1))]
}

/// The low nibbles of sixteen bytes, then their high ones.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn nibbles(bytes: [__m256i; 4]) -> ByteColumns {
    let mask = _mm256_set1_epi8(15);
    let mut nibbles = [_mm256_setzero_si256(); 8];
    let (low, high) = nibbles.split_at_mut(4);
    for ((low, high), bytes) in low.iter_mut().zip(high).zip(bytes) {
        *low = _mm256_and_si256(bytes, mask);
        *high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
    }
    nibbles
}

/// Bits `SHIFT` and above of each byte, as many as `mask` has.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn bits_from<const SHIFT: i32>(bytes: &ByteColumns, mask: i8) -> ByteColumns {
    let mut bits = *bytes;
    for bits in &mut bits {
        *bits = _mm256_and_si256(_mm256_srli_epi16::<SHIFT>(*bits), _mm256_set1_epi8(mask));
    }
    bits
}

/// For shifts by what is constant only once loops are unrolled.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn count(bits: usize) -> __m128i {
    _mm_cvtsi32_si128(bits as i32)
}

/// Of each 32-bit word the bits from `begin` on that `mask` lets through.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn bits_of(words: __m256i, begin: usize, mask: i32) -> __m256i {
    _mm256_and_si256(_mm256_srl_epi32(words, count(begin)), _mm256_set1_epi32(mask))
}

/// The low nibbles of each byte, or its high ones.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn nibbles_of(bytes: &ByteColumns, is_high: bool) -> ByteColumns {
    if is_high { bits_from::<4>(bytes, 15) } else { bits_from::<0>(bytes, 15) }
}

/// Sets the bits of `added` in each byte of `columns` where `bits` has, or lacks, the one that `mask` has.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn or_where<const SET: bool>(columns: &mut ByteColumns, bits: &ByteColumns, mask: i8, added: i8) {
    let mask = _mm256_set1_epi8(mask);
    let compared = if SET { mask } else { _mm256_setzero_si256() };
    for (column, bits) in columns.iter_mut().zip(bits) {
        let is_so = _mm256_cmpeq_epi8(_mm256_and_si256(*bits, mask), compared);
        *column = _mm256_or_si256(*column, _mm256_and_si256(is_so, _mm256_set1_epi8(added)));
    }
}

/// Of each bit of 32-bit words, from the lowest on, a byte with all bits set, or none.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn spread_bits(words: __m256i) -> ByteColumns {
    // Vector `i` has columns `4·i` to `4·i + 3`, whose bits are in the lower or the upper half of byte `i / 2`.
    let mut spread = [words; 8];
    for (byte, vectors) in spread.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        // Byte `byte` of each lane four times: the places in a 128-bit half where each lane begins, and `byte` further.
        let begins = _mm256_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0C0C_0C0C, 0, 0x0404_0404, 0x0808_0808, 0x0C0C_0C0C);
        let copied = _mm256_shuffle_epi8(words, _mm256_add_epi8(begins, _mm256_set1_epi8(byte as i8)));
        *vectors = [copied, _mm256_srli_epi16(copied, 4)];
    }
    let of_column = _mm256_set1_epi32(0x0804_0201);
    for bits in &mut spread {
        *bits = _mm256_cmpeq_epi8(_mm256_and_si256(*bits, of_column), of_column);
    }
    spread
}

/// Bytes of even and of odd place as i16, without signs.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn unsigned_pairs(columns: &ByteColumns) -> [__m256i; N_PAIRS] {
    let mut pairs = [_mm256_setzero_si256(); N_PAIRS];
    for (pair, bytes) in pairs.as_chunks_mut().0.iter_mut().zip(columns) {
        *pair = [_mm256_and_si256(*bytes, _mm256_set1_epi16(0xFF)), _mm256_srli_epi16(*bytes, 8)];
    }
    pairs
}

/// Bytes of even and of odd place as i16, with their signs.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn signed_pairs(columns: &ByteColumns) -> [__m256i; N_PAIRS] {
    let mut pairs = [_mm256_setzero_si256(); N_PAIRS];
    for (pair, bytes) in pairs.as_chunks_mut().0.iter_mut().zip(columns) {
        *pair = [_mm256_srai_epi16(_mm256_slli_epi16(*bytes, 8), 8), _mm256_srai_epi16(*bytes, 8)];
    }
    pairs
}

/// The factors as vectors.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn registers(factors: &[[f32; PANEL_ROWS]; MAX_FACTORS]) -> [__m256; MAX_FACTORS] {
    let mut vectors = [_mm256_setzero_ps(); MAX_FACTORS];
    for (vector, factors) in vectors.iter_mut().zip(factors) {
        // SAFETY: eight f32.
        *vector = unsafe { _mm256_loadu_ps(factors.as_ptr()) };
    }
    vectors
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn lanes(vector: __m256) -> [f32; PANEL_ROWS] {
    let mut values = [0.0; PANEL_ROWS];
    // SAFETY: a vector has eight f32.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), vector) };
    values
}
