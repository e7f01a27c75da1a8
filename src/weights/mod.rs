//! Checkpoints: headers become a [`Catalog`] and a [`ModelConfig`]; tensor bytes are read where they lie. Knows no device.

mod catalog;
mod checkpoint;
mod config;
mod folder;
mod gguf;
mod hf;
mod lfs;
mod limits;
mod python_json;
mod safetensors;

pub use catalog::{Catalog, Shard, TensorId, TensorInfo};
pub use checkpoint::{Checkpoint, Format};
pub use config::{Architecture, ModelConfig, RopeConfig, RopePairs, RopeScaling};
pub use gguf::{MetaValue, Metadata};
pub(crate) use python_json::parse as parse_python_json;
