//! The formats that weights are stored in: headers become a [`Catalog`], GGUF's key-value pairs a [`Metadata`]. Knows no model.

mod catalog;
pub(crate) mod coded;
pub(crate) mod derived;
pub(crate) mod folder;
mod gathered;
pub(crate) mod gguf;
#[cfg(test)]
mod in_memory;
mod lfs;
mod mxfp4;
mod narrowed;
pub(crate) mod packed;
mod python_json;
mod rearranged;
pub(crate) mod safetensors;
pub(crate) mod scaled;

pub use catalog::{Catalog, Shard, TensorId, TensorInfo};
pub(crate) use derived::add_file;
pub(crate) use gathered::{Gathered, Piece};
pub use gguf::{MetaValue, Metadata, NewFile, NewTensor, WrittenValue, written_pairs};
pub(crate) use mxfp4::{Apart, mxfp4_blocks};
pub(crate) use narrowed::NarrowedMatrix;
pub(crate) use python_json::{CONSTANTS as PYTHON_CONSTANTS, parse as parse_python_json};
pub(crate) use rearranged::{Order, rearranged};
pub(crate) use safetensors::{Header, header as safetensors_header, read_header};
