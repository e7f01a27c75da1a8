//! Small JSON files beside a model's weights, read with a limit. Knows none of their keys.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::platform::read_small_file;

/// `generation_config.json`, `config.json`: a few kilobytes in practice.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// `tokenizer_config.json`: lists thousands of added tokens at times.
pub(super) const MAX_TOKENIZER_CONFIG_BYTES: u64 = 16 << 20;
/// `tokenizer.json`.
pub(super) const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// The file's bytes, or `None` where there is no such file.
pub(super) fn read_optional(path: &Path, cap: u64) -> Result<Option<Vec<u8>>> {
    match read_small_file(path, cap) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// The file as JSON, or `None` where there is no such file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path, cap: u64) -> Result<Option<T>> {
    let Some(bytes) = read_optional(path, cap)? else { return Ok(None) };
    parse_json(path, &bytes).map(Some)
}

/// `bytes` as JSON; `path` is for the message.
pub(super) fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| text_error(path.display(), format!("cannot be read: {error}")))
}

/// An [`Error::Text`] about `path`.
pub(super) fn text_error(path: impl std::fmt::Display, fault: impl Into<String>) -> Error {
    Error::Text { path: path.to_string(), fault: fault.into() }
}
