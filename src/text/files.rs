//! Small JSON files beside a model's weights, read with a limit. Knows none of their keys.

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::platform::Folder;

/// `generation_config.json`, `config.json`: a few kilobytes in practice.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// `tokenizer_config.json`: lists thousands of added tokens at times.
pub(super) const MAX_TOKENIZER_CONFIG_BYTES: u64 = 16 << 20;
/// `tokenizer.json`.
pub(super) const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// The bytes of the file `name`, or `None` where there is no such file.
pub(super) fn read_optional(folder: &Folder, name: &str, cap: u64) -> Result<Option<Vec<u8>>> {
    match folder.read_small(name, cap) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// The file `name` as JSON, or `None` where there is no such file.
pub(super) fn read_json<T: DeserializeOwned>(folder: &Folder, name: &str, cap: u64) -> Result<Option<T>> {
    let Some(bytes) = read_optional(folder, name, cap)? else { return Ok(None) };
    parse_json(&folder.path_of(name), &bytes).map(Some)
}

/// `bytes` as JSON; `path` is for the message.
pub(super) fn parse_json<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| text_error(path, format!("cannot be read: {error}")))
}

/// An [`Error::Text`] about `path`.
pub(super) fn text_error(path: impl std::fmt::Display, fault: impl Into<String>) -> Error {
    Error::Text { path: path.to_string(), fault: fault.into() }
}
