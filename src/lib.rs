//! tierflow runs language models that are larger than the GPU's memory.
#[cfg(not(target_arch = "wasm32"))]
pub mod cli;
pub mod device;
pub mod dtype;
pub mod error;
#[cfg(not(target_arch = "wasm32"))]
pub mod hub;
pub mod platform;
pub mod units;
pub mod weights;
