//! The key-value part of a GGUF file as typed values. Knows neither the bytes they came from nor what a key means.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// One value. GGUF's many integer and float widths are widened to one of each.
#[derive(Debug, Clone, PartialEq)]
pub enum MetaValue {
    /// `u8`, `u16`, `u32` or `u64`.
    Unsigned(u64),
    /// `i8`, `i16`, `i32` or `i64`.
    Signed(i64),
    /// `f32` or `f64`.
    Float(f64),
    /// `bool`.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Array of texts.
    Strings(Vec<String>),
    /// Array of `f32` or `f64`.
    Floats(Vec<f32>),
    /// Array of integers of any width.
    Integers(Vec<i64>),
    /// Array of `bool`.
    Bools(Vec<bool>),
}

impl MetaValue {
    /// What kind of value this is, for messages.
    fn kind(&self) -> &'static str {
        match self {
            MetaValue::Unsigned(_) | MetaValue::Signed(_) => "an integer",
            MetaValue::Float(_) => "a float",
            MetaValue::Bool(_) => "a bool",
            MetaValue::String(_) => "a string",
            MetaValue::Strings(_) => "an array of strings",
            MetaValue::Floats(_) => "an array of floats",
            MetaValue::Integers(_) => "an array of integers",
            MetaValue::Bools(_) => "an array of bools",
        }
    }
}

/// All key-value pairs of one GGUF file. Every getter answers `Ok(None)` for an absent key
/// and an error that names file and key for a value of another kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata {
    /// The file, for messages.
    pub path: String,
    entries: BTreeMap<String, MetaValue>,
}

impl Metadata {
    /// Metadata of the file `path`.
    pub fn new(path: impl Into<String>, entries: BTreeMap<String, MetaValue>) -> Metadata {
        Metadata { path: path.into(), entries }
    }

    /// The value of `key`, whatever its kind.
    pub fn get(&self, key: &str) -> Option<&MetaValue> {
        self.entries.get(key)
    }

    /// All pairs, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &MetaValue)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A non-negative integer, however it is stored.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(MetaValue::Unsigned(value)) => Ok(Some(*value)),
            Some(MetaValue::Signed(value)) => match u64::try_from(*value) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(Error::invalid_file(&self.path, format!("metadata key `{key}` is {value}, it must not be negative"))),
            },
            Some(other) => Err(self.wrong_kind(key, other, "an integer")),
        }
    }

    /// A float of either width.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(MetaValue::Float(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong_kind(key, other, "a float")),
        }
    }

    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(MetaValue::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong_kind(key, other, "a bool")),
        }
    }

    /// A text.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(MetaValue::String(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong_kind(key, other, "a string")),
        }
    }

    /// An array of texts.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        match self.get(key) {
            None => Ok(None),
            Some(MetaValue::Strings(values)) => Ok(Some(values)),
            Some(other) => Err(self.wrong_kind(key, other, "an array of strings")),
        }
    }

    /// An array of floats.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        match self.get(key) {
            None => Ok(None),
            Some(MetaValue::Floats(values)) => Ok(Some(values)),
            Some(other) => Err(self.wrong_kind(key, other, "an array of floats")),
        }
    }

    /// An array of integers.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>> {
        match self.get(key) {
            None => Ok(None),
            Some(MetaValue::Integers(values)) => Ok(Some(values)),
            Some(other) => Err(self.wrong_kind(key, other, "an array of integers")),
        }
    }

    /// An array of bools.
    pub fn bools(&self, key: &str) -> Result<Option<&[bool]>> {
        match self.get(key) {
            None => Ok(None),
            Some(MetaValue::Bools(values)) => Ok(Some(values)),
            Some(other) => Err(self.wrong_kind(key, other, "an array of bools")),
        }
    }

    fn wrong_kind(&self, key: &str, found: &MetaValue, wanted: &str) -> Error {
        Error::invalid_file(&self.path, format!("metadata key `{key}` is {}, it must be {wanted}", found.kind()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn getters_tell_absent_from_wrong() {
        let entries = BTreeMap::from([
            ("count".to_owned(), MetaValue::Signed(7)),
            ("negative".to_owned(), MetaValue::Signed(-1)),
            ("name".to_owned(), MetaValue::String("tiny".into())),
        ]);
        let metadata = Metadata::new("model.gguf", entries);
        assert_eq!(metadata.unsigned("count").unwrap(), Some(7));
        assert_eq!(metadata.unsigned("absent").unwrap(), None);
        assert_eq!(metadata.string("name").unwrap(), Some("tiny"));
        let reason = metadata.unsigned("name").unwrap_err().to_string();
        assert!(reason.contains("model.gguf") && reason.contains("`name` is a string"), "{reason}");
        assert!(metadata.unsigned("negative").unwrap_err().to_string().contains("-1"));
    }
}
