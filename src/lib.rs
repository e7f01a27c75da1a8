//! tierflow runs language models that are larger than the GPU's memory.
pub mod device;
pub mod dtype;
pub mod error;
pub mod platform;
pub mod text;
pub mod units;
pub mod weights;
