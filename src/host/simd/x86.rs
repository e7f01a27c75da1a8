//! x86-64: AVX2 with FMA and F16C, which nearly every processor since 2013 has; where there is AVX-512 with VNNI, it multiplies prompts.

mod blocks;
mod columns;
mod floats;
mod formats;
mod sums;
mod tiles;
mod wide;

use super::Simd;

static AVX2: Simd = Simd {
    name: "AVX2",
    multiply_rows: blocks::multiply_rows,
    unpack: blocks::unpack,
    multiply_panel: blocks::multiply_panel,
    multiply_two_panels: None,
    dot_rows: floats::dot_rows,
    arrange: tiles::arrange,
    multiply_tile: tiles::multiply_tile,
    dots: floats::dots,
    add_weighted_sums: floats::add_weighted_sums,
    decode: floats::decode,
};

static AVX512: Simd = Simd { name: "AVX-512", multiply_two_panels: Some(wide::multiply_two_panels), ..AVX2 };

/// What this processor can run. Nobody else reaches the table, which is what makes its functions safe to call.
pub(super) fn found() -> impl Iterator<Item = &'static Simd> {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let avx512 = avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
    avx512.then_some(&AVX512).into_iter().chain(avx2.then_some(&AVX2))
}
