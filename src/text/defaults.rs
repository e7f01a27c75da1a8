//! The generation settings that a model comes with. Knows only what its files say, not what the user wants.

use serde_json::Value;

use super::files::{self, MAX_CONFIG_BYTES};
use super::sampling::{MAX_PENALTY, MAX_TEMPERATURE, MIN_PENALTY};
use crate::error::Result;
use crate::model::{Checkpoint, Format};
use crate::platform::Folder;
use crate::weights::{MetaValue, Metadata};

/// Settings that the model's makers recommend; `None` where they say nothing.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct ModelDefaults {
    /// See [`super::SamplingSettings::temperature`]; 0 where the model wants no sampling at all.
    pub temperature: Option<f32>,
    /// See [`super::SamplingSettings::top_k`].
    pub top_k: Option<u32>,
    /// See [`super::SamplingSettings::top_p`].
    pub top_p: Option<f32>,
    /// See [`super::SamplingSettings::min_p`].
    pub min_p: Option<f32>,
    /// See [`super::SamplingSettings::repeat_penalty`].
    pub repeat_penalty: Option<f32>,
    /// See [`super::SamplingSettings::repeat_last_n`].
    pub repeat_last_n: Option<u32>,
}

impl ModelDefaults {
    /// Those of `checkpoint`: `generation_config.json` of a folder, `general.sampling.*` of a GGUF file.
    pub fn open(checkpoint: &Checkpoint) -> Result<ModelDefaults> {
        match (&checkpoint.format, &checkpoint.metadata) {
            (Format::HuggingFace { folder }, _) => ModelDefaults::from_folder(folder),
            (Format::Gguf, Some(metadata)) => ModelDefaults::from_metadata(metadata),
            (Format::Gguf, None) => Ok(ModelDefaults::default()),
        }
    }

    /// Those in `generation_config.json`, if there is one.
    pub fn from_folder(folder: impl Into<Folder>) -> Result<ModelDefaults> {
        let folder = folder.into();
        let Some(fields) = files::read_fields(&folder, "generation_config.json", MAX_CONFIG_BYTES)? else {
            return Ok(ModelDefaults::default());
        };
        let path = folder.path_of("generation_config.json");
        let number = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => usable(&path, name, text, text.trim().parse().ok()),
            Some(value) => usable(&path, name, value, value.as_f64()),
        };
        let mut defaults = ModelDefaults::of(&path, number, ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", ""]);
        if fields.get("do_sample") == Some(&Value::Bool(false)) {
            defaults.temperature = Some(0.0);
        }
        Ok(defaults)
    }

    /// Those under `general.sampling` (`gguf-py`'s `Keys.General.SAMPLING_*`).
    pub fn from_metadata(metadata: &Metadata) -> Result<ModelDefaults> {
        let number = |name: &str| {
            let value = metadata.get(&format!("general.sampling.{name}"))?;
            let number = match value {
                MetaValue::Unsigned(value) => Some(*value as f64),
                MetaValue::Signed(value) => Some(*value as f64),
                MetaValue::Float(value) => Some(*value),
                _ => None,
            };
            usable(&metadata.path, name, "of its kind", number)
        };
        let temperature = if metadata.get("general.sampling.temp").is_some() { "temp" } else { "temperature" };
        let names = [temperature, "top_k", "top_p", "min_p", "penalty_repeat", "penalty_last_n"];
        Ok(ModelDefaults::of(&metadata.path, number, names))
    }

    /// The settings that `number` has under `names` (in the order of the fields). What no sampler takes is said and left out: the
    /// program's own default takes its place.
    fn of(path: &str, number: impl Fn(&str) -> Option<f64>, names: [&str; 6]) -> ModelDefaults {
        let [temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n] = names;
        let within = |name: &str, least: f32, most: f32| {
            let value = number(name)?;
            // Written so that NaN is outside.
            let inside = Some(value as f32).filter(|value| *value >= least && *value <= most);
            if inside.is_none() {
                tracing::warn!("{path}: {name} {value} is out of range ({least} to {most}) and is ignored");
            }
            inside
        };
        let count = |name: &str| {
            let value = number(name)?;
            usable(path, name, value, Some(value).filter(|value| value.fract() == 0.0)).map(all_if_not_positive)
        };
        ModelDefaults {
            temperature: within(temperature, 0.0, MAX_TEMPERATURE),
            top_k: count(top_k),
            top_p: within(top_p, 0.0, 1.0),
            min_p: within(min_p, 0.0, 1.0),
            repeat_penalty: within(repeat_penalty, MIN_PENALTY, MAX_PENALTY),
            repeat_last_n: count(repeat_last_n),
        }
    }
}

/// `number`, or a word that `value` is none.
fn usable(path: &str, name: &str, value: impl std::fmt::Display, number: Option<f64>) -> Option<f64> {
    if number.is_none() {
        tracing::warn!("{path}: {name} {value} is no number that can be used and is ignored");
    }
    number
}

/// A count of 0 or below means all tokens.
fn all_if_not_positive(value: f64) -> u32 {
    value.clamp(0.0, f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn from_json(text: &str) -> Result<ModelDefaults> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
        ModelDefaults::from_folder(folder.path())
    }

    #[test]
    fn a_folder_gives_what_its_file_says() {
        let defaults =
            from_json(r#"{"temperature": 0.6, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1.1, "eos_token_id": [1, 2]}"#).unwrap();
        let expected =
            ModelDefaults { temperature: Some(0.6), top_p: Some(0.9), top_k: Some(0), repeat_penalty: Some(1.1), ..Default::default() };
        assert_eq!(defaults, expected);
        assert_eq!(from_json(r#"{"do_sample": false, "temperature": 0.6}"#).unwrap().temperature, Some(0.0));
        assert_eq!(from_json("{}").unwrap(), ModelDefaults::default());
        assert_eq!(ModelDefaults::from_folder(std::path::Path::new("no/such/folder")).unwrap(), ModelDefaults::default());
    }

    #[test]
    fn what_no_sampler_takes_is_left_out_and_the_rest_stays() {
        let defaults = from_json(
            r#"{"temperature": "0.6", "top_k": 50.0, "top_p": 1.5, "min_p": [1], "repetition_penalty": 0, "max_length": Infinity,
                "do_sample": true, "do_sample": null}"#,
        );
        assert_eq!(defaults.unwrap(), ModelDefaults { temperature: Some(0.6), top_k: Some(50), ..Default::default() });
        let defaults = from_json(r#"{"temperature": -1, "top_k": "x", "top_p": NaN, "min_p": 0.1}"#).unwrap();
        assert_eq!(defaults, ModelDefaults { min_p: Some(0.1), ..Default::default() });
        let error = from_json("{").unwrap_err().to_string();
        assert!(error.contains("generation_config.json") && error.contains("cannot be read"), "{error}");
    }

    #[test]
    fn metadata_gives_the_same() {
        let entries = BTreeMap::from([
            ("general.sampling.temp".to_owned(), MetaValue::Float(0.5)),
            ("general.sampling.top_k".to_owned(), MetaValue::Signed(20)),
            ("general.sampling.top_p".to_owned(), MetaValue::Float(1.5)),
            ("general.sampling.min_p".to_owned(), MetaValue::String("x".into())),
        ]);
        let defaults = ModelDefaults::from_metadata(&Metadata::new("m.gguf", entries)).unwrap();
        assert_eq!(defaults, ModelDefaults { temperature: Some(0.5), top_k: Some(20), ..Default::default() });
    }
}
