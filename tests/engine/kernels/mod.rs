//! Every kernel on the adapter against its reference on the host, at odd sizes, under WebGPU's default limits.

mod attention;
mod back;
mod experts;
mod matmul;
mod small;

/// Sums of products in another order than the reference's: roundings of f32, grown where a lone sum happens to cancel.
const SUM_TOLERANCE: f32 = 1e-5;
/// A driver's exp is good to a few units in the last place for f32, and the sums come on top.
const EXP_TOLERANCE: f32 = 1e-5;
