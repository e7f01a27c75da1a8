//! The host's arithmetic: what the kernels' references define, in vector instructions and on all threads. Knows no plan and no schedule.
//!
//! No result depends on how rows are cut, on which thread computes, or on the tokens beside. `crate::host::simd` holds the
//! instructions, the kernels' references say what is computed.

mod attention;
mod delta_rule;
mod elementwise;
mod exp;
mod experts;
mod input;
mod kept;
mod kv_cache;
mod product;
mod quantise;
pub mod simd;

pub use attention::attention;
pub use delta_rule::delta_rule;
pub use elementwise::{add, glu, layer_norm, map, rms_norm, rope};
pub use experts::{ExpertScratch, multiply_experts};
pub use input::{Input, InputFormat, Operand};
pub use kv_cache::{Cached, KvCache};
pub use product::{Part, multiply, multiply_all};

/// Runs `work` on one of the threads that the operations here spread over. They meet there without the two handovers that each
/// would begin and end with elsewhere, so what is made of many of them should be wrapped in this.
pub fn among_threads<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}
