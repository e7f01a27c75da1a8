//! x86-64: AVX2 with FMA and F16C (every desktop processor since 2013 or so), and VNNI for the integers where there is one.

mod blocks;
mod floats;
mod vnni;

use super::Simd;

static AVX2: Simd = Simd {
    name: "AVX2",
    multiply_rows: blocks::multiply_rows,
    unpack: blocks::unpack,
    multiply_panel: blocks::multiply_panel,
    dot_rows: floats::dot_rows,
    decode: floats::decode,
    dots: floats::dots,
    weighted_sums: floats::weighted_sums,
};

static VNNI: Simd = Simd { name: "AVX-512 VNNI", multiply_rows: vnni::multiply_rows, multiply_panel: vnni::multiply_panel, ..AVX2 };

/// What this processor can run, the fastest first.
/// Nobody else reaches the two tables, which is what makes their functions safe to call.
pub(super) fn found() -> impl Iterator<Item = &'static Simd> {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let vnni = avx2 && is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl");
    [(vnni, &VNNI), (avx2, &AVX2)].into_iter().filter(|(is_found, _)| *is_found).map(|(_, simd)| simd)
}
