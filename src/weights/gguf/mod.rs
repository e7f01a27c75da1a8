//! GGUF files, versions 2 and 3: header, metadata and tensor list become a catalog and a config.

mod metadata;

pub use metadata::{MetaValue, Metadata};
