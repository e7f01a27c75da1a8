//! Checkpoints: headers become a [`Catalog`] and a [`ModelConfig`]; tensor bytes are read where they lie. Knows no device.

mod catalog;
mod config;
mod gguf;

pub use catalog::{Catalog, Shard, TensorId, TensorInfo};
pub use config::{Architecture, ModelConfig, RopeConfig, RopePairs, RopeScaling};
pub use gguf::{MetaValue, Metadata};
