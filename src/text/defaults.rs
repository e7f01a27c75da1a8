//! The generation settings that a model comes with. Knows only what its files say, not what the user wants.

use serde::Deserialize;

use super::files::{self, MAX_CONFIG_BYTES, text_error};
use super::sampling::{MAX_PENALTY, MAX_TEMPERATURE, MIN_PENALTY};
use crate::error::Result;
use crate::platform::Folder;
use crate::weights::{Checkpoint, Format, Metadata};

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
        let Some(config) = files::read_json::<GenerationConfig>(&folder, "generation_config.json", MAX_CONFIG_BYTES)? else {
            return Ok(ModelDefaults::default());
        };
        let greedy = config.do_sample == Some(false);
        let defaults = ModelDefaults {
            temperature: if greedy { Some(0.0) } else { config.temperature },
            top_k: config.top_k.map(all_if_not_positive),
            top_p: config.top_p,
            min_p: config.min_p,
            repeat_penalty: config.repetition_penalty,
            repeat_last_n: None,
        };
        defaults.checked(folder.path_of("generation_config.json"))
    }

    /// Those under `general.sampling` (`gguf-py`'s `Keys.General.SAMPLING_*`).
    pub fn from_metadata(metadata: &Metadata) -> Result<ModelDefaults> {
        let float = |name: &str| metadata.float(&format!("general.sampling.{name}")).map(|value| value.map(|value| value as f32));
        let count = |name: &str| match metadata.get(&format!("general.sampling.{name}")) {
            Some(crate::weights::MetaValue::Signed(value)) => Ok(Some(all_if_not_positive(*value))),
            _ => metadata
                .unsigned(&format!("general.sampling.{name}"))
                .map(|value| value.map(|value| u32::try_from(value).unwrap_or(u32::MAX))),
        };
        let defaults = ModelDefaults {
            temperature: float("temp")?.or(float("temperature")?),
            top_k: count("top_k")?,
            top_p: float("top_p")?,
            min_p: float("min_p")?,
            repeat_penalty: float("penalty_repeat")?,
            repeat_last_n: count("penalty_last_n")?,
        };
        defaults.checked(&metadata.path)
    }

    /// Refuses values that no sampler takes, here where the file at fault is known.
    fn checked(self, path: impl std::fmt::Display) -> Result<ModelDefaults> {
        let ranges = [
            ("temperature", self.temperature, 0.0, MAX_TEMPERATURE),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repetition_penalty", self.repeat_penalty, MIN_PENALTY, MAX_PENALTY),
        ];
        // Written so that NaN fails.
        let wrong = ranges.into_iter().find(|(_, value, least, most)| value.is_some_and(|value| !(value >= *least && value <= *most)));
        match wrong {
            Some((name, Some(value), least, most)) => {
                Err(text_error(path, format!("{name} {value} is out of range; allowed is {least} to {most}")))
            }
            _ => Ok(self),
        }
    }
}

/// `top_k` of 0 or below means all tokens.
fn all_if_not_positive(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

/// `generation_config.json`, as far as it matters here.
#[derive(Debug, Deserialize)]
struct GenerationConfig {
    #[serde(default)]
    do_sample: Option<bool>,
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    top_k: Option<i64>,
    #[serde(default)]
    top_p: Option<f32>,
    #[serde(default)]
    min_p: Option<f32>,
    #[serde(default)]
    repetition_penalty: Option<f32>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::weights::MetaValue;

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
    fn bad_values_name_file_and_key() {
        for (text, fault) in
            [(r#"{"temperature": -1}"#, "temperature -1"), (r#"{"top_p": 2}"#, "top_p 2"), (r#"{"top_k": "x"}"#, "cannot be read")]
        {
            let error = from_json(text).unwrap_err().to_string();
            assert!(error.contains("generation_config.json") && error.contains(fault), "{error}");
        }
    }

    #[test]
    fn metadata_gives_the_same() {
        let entries = BTreeMap::from([
            ("general.sampling.temp".to_owned(), MetaValue::Float(0.5)),
            ("general.sampling.top_k".to_owned(), MetaValue::Signed(20)),
        ]);
        let defaults = ModelDefaults::from_metadata(&Metadata::new("m.gguf", entries)).unwrap();
        assert_eq!(defaults, ModelDefaults { temperature: Some(0.5), top_k: Some(20), ..Default::default() });
    }
}
