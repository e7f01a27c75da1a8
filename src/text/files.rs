//! Small JSON files beside a model's weights, read with a limit. Knows none of their keys.

use serde_json::{Map, Value};

use crate::error::{Advice, Error, Result};
use crate::platform::Folder;
use crate::weights::parse_python_json;

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

/// The fields of the file `name`, or `None` where there is no such file. What Python's `json` reads is read; each reader looks at the
/// fields that it needs and says which of them it cannot use.
pub(super) fn read_fields(folder: &Folder, name: &str, cap: u64) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = read_optional(folder, name, cap)? else { return Ok(None) };
    let path = folder.path_of(name);
    match parse_python_json(&bytes).map_err(|error| text_error(&path, format!("cannot be read: {error}")))? {
        Value::Object(fields) => Ok(Some(fields)),
        _ => Err(text_error(&path, "cannot be read: it is no JSON object")),
    }
}

/// An [`Error::Text`] about `path`.
pub(super) fn text_error(path: impl std::fmt::Display, reason: impl Into<String>) -> Error {
    Error::Text { path: path.to_string(), reason: reason.into(), advice: Advice::default() }
}
