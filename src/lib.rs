//! tierflow runs language models that are larger than the GPU's memory.
pub mod device;
pub mod dtype;
pub mod error;
pub mod gpu;
pub mod kernels;
pub mod units;
pub mod weights;
