//! How a model's hidden states become the embedding of a text, as its files say: the modules of sentence-transformers beside a folder's
//! config (`modules.json`, what the folders of its modules hold, `config_sentence_transformers.json`), `ARCHITECTURE.pooling_type` and the
//! layers of a GGUF file (`enum llama_pooling_type` of llama.h).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::dense::Dense;
use super::files::{self, MAX_CONFIG_BYTES, text_error};
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Format};
use crate::platform::Folder;
use crate::units::listed;
use crate::weights::Metadata;

/// What becomes of the hidden states of a text's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first one's: that of `[CLS]`.
    Cls,
    /// The last one's.
    Last,
}

/// How a model makes embeddings.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingSettings {
    /// What its files say; `None` where they say nothing.
    pub pooling: Option<Pooling>,
    /// The linear layers that what was pooled goes through.
    pub dense: Vec<Dense>,
    /// Whether embeddings are scaled to the length 1.
    pub normalize: bool,
    /// Texts that are put before what is embedded, by their names, such as `query`.
    pub prompts: BTreeMap<String, String>,
    /// The name of the prompt that is taken where none is asked for.
    pub default_prompt: Option<String>,
}

impl Default for EmbeddingSettings {
    fn default() -> EmbeddingSettings {
        EmbeddingSettings { pooling: None, dense: Vec::new(), normalize: true, prompts: BTreeMap::new(), default_prompt: None }
    }
}

impl EmbeddingSettings {
    /// Those of `checkpoint`.
    ///
    /// # Errors
    /// [`Error::Text`] for files that cannot be read; [`Error::UnsupportedModel`] for a pooling or a module that is not known here;
    /// [`Error::InvalidFile`] for layers that do not read what is before them.
    pub fn open(checkpoint: &Checkpoint) -> Result<EmbeddingSettings> {
        let settings = match (&checkpoint.format, &checkpoint.metadata) {
            (Format::HuggingFace { folder }, _) => EmbeddingSettings::from_folder(folder)?,
            (Format::Gguf, Some(metadata)) => {
                EmbeddingSettings { dense: Dense::from_checkpoint(checkpoint)?, ..EmbeddingSettings::from_metadata(metadata)? }
            }
            (Format::Gguf, None) => EmbeddingSettings::default(),
        };
        let mut width = checkpoint.config.hidden_size;
        for dense in &settings.dense {
            if dense.n_inputs() != width {
                let reason = format!("a layer of its embeddings reads {} values where there are {width}", dense.n_inputs());
                return Err(Error::invalid_file(&checkpoint.path, reason));
            }
            width = dense.n_outputs();
        }
        Ok(settings)
    }

    /// What becomes of hidden states that were pooled, before they are scaled to the length 1.
    pub fn project(&self, pooled: Vec<f32>) -> Vec<f32> {
        self.dense.iter().fold(pooled, |embedding, dense| dense.apply(&embedding))
    }

    fn from_metadata(metadata: &Metadata) -> Result<EmbeddingSettings> {
        let architecture = metadata.string("general.architecture")?.unwrap_or_default();
        let key = format!("{architecture}.pooling_type");
        let pooling = match metadata.unsigned(&key)? {
            None | Some(0) => None,
            Some(1) => Some(Pooling::Mean),
            Some(2) => Some(Pooling::Cls),
            Some(3) => Some(Pooling::Last),
            Some(4) => return Err(unsupported(&metadata.path, "is a reranker, which gives scores of pairs and no embeddings")),
            Some(other) => return Err(unsupported(&metadata.path, &format!("{key} is {other}; 0 to 3 are known (none, mean, cls, last)"))),
        };
        Ok(EmbeddingSettings { pooling, ..EmbeddingSettings::default() })
    }

    fn from_folder(folder: &Folder) -> Result<EmbeddingSettings> {
        let mut settings = EmbeddingSettings::default();
        if let Some(modules) = modules(folder)? {
            settings.normalize = false;
            for (kind, path) in modules {
                match kind.as_str() {
                    "Transformer" => {}
                    "Normalize" => settings.normalize = true,
                    "Pooling" => settings.pooling = Some(pooling_of(folder, &path)?),
                    "Dense" if settings.pooling.is_some() && !settings.normalize => {
                        if !is_plain(&path) {
                            return Err(text_error(folder.path_of(MODULES), format!("names the module `{path}`, which is not there")));
                        }
                        settings.dense.push(Dense::from_folder(folder, &path)?);
                    }
                    "Dense" => {
                        return Err(unsupported(&folder.path_of(MODULES), "has a module Dense that is not between Pooling and Normalize"));
                    }
                    other => return Err(unsupported(&folder.path_of(MODULES), &format!("has a module {other}, which tierflow lacks"))),
                }
            }
        }
        let Some(fields) = files::read_fields(folder, "config_sentence_transformers.json", MAX_CONFIG_BYTES)? else { return Ok(settings) };
        if let Some(Value::Object(prompts)) = fields.get("prompts") {
            settings.prompts = prompts.iter().filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned()))).collect();
        }
        settings.default_prompt = fields.get("default_prompt_name").and_then(Value::as_str).map(str::to_owned);
        Ok(settings)
    }

    /// The text that is put before what is embedded: the prompt `name`, or the default one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that the model does not have.
    pub fn prompt(&self, name: Option<&str>) -> Result<&str> {
        let Some(name) = name.or(self.default_prompt.as_deref()) else { return Ok("") };
        self.prompts.get(name).map(String::as_str).ok_or_else(|| {
            let known: Vec<&str> = self.prompts.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", listed(&known)) };
            Error::InvalidArgument { option: "prompt name".into(), reason: format!("the model has no prompt `{name}`; {known}") }
        })
    }
}

const MODULES: &str = "modules.json";

/// The modules of sentence-transformers in their order: the last part of the type's name, and the folder.
fn modules(folder: &Folder) -> Result<Option<Vec<(String, String)>>> {
    let Some(bytes) = files::read_optional(folder, MODULES, MAX_CONFIG_BYTES)? else { return Ok(None) };
    let path = folder.path_of(MODULES);
    let listed: Vec<Map<String, Value>> =
        serde_json::from_slice(&bytes).map_err(|error| text_error(&path, format!("cannot be read: {error}")))?;
    let text = |module: &Map<String, Value>, key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let module = |module: &Map<String, Value>| {
        let kind = text(module, "type");
        (kind.rsplit('.').next().unwrap_or_default().to_owned(), text(module, "path"))
    };
    Ok(Some(listed.iter().map(module).collect()))
}

/// Whether it is the name of a folder beside the model's files.
fn is_plain(path: &str) -> bool {
    !path.is_empty() && path.chars().all(|character| character.is_ascii_alphanumeric() || "_-".contains(character))
}

/// The one pooling that the config in the folder `path` switches on.
fn pooling_of(folder: &Folder, path: &str) -> Result<Pooling> {
    let name = format!("{path}/config.json");
    let fields = if is_plain(path) { files::read_fields(folder, &name, MAX_CONFIG_BYTES)? } else { None };
    let fields = fields.ok_or_else(|| text_error(folder.path_of(MODULES), format!("names the pooling `{name}`, which is not there")))?;
    let mut on = fields.iter().filter(|(key, value)| key.starts_with("pooling_mode_") && **value == Value::Bool(true));
    let mode = match (fields.get("pooling_mode"), on.next(), on.next()) {
        (Some(Value::String(mode)), ..) => mode.as_str(),
        (_, Some((mode, _)), None) => mode.trim_start_matches("pooling_mode_"),
        (_, None, _) => return Err(unsupported(&folder.path_of(&name), "switches on no pooling")),
        _ => return Err(unsupported(&folder.path_of(&name), "joins several poolings, which tierflow does not")),
    };
    match mode {
        "mean_tokens" | "mean" => Ok(Pooling::Mean),
        "cls_token" | "cls" => Ok(Pooling::Cls),
        "lasttoken" => Ok(Pooling::Last),
        other => Err(unsupported(&folder.path_of(&name), &format!("wants the pooling `{other}`; mean, cls and lasttoken are known"))),
    }
}

fn unsupported(path: &str, reason: &str) -> Error {
    Error::UnsupportedModel { path: path.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Result<EmbeddingSettings> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = root.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        EmbeddingSettings::from_folder(&Folder::from(root.path()))
    }

    const MODULES_JSON: &str = r#"[{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]"#;

    #[test]
    fn modules_say_how_to_pool() {
        assert_eq!(of(&[]).unwrap(), EmbeddingSettings::default());
        for (config, expected) in [
            (r#"{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}"#, Pooling::Mean),
            (r#"{"pooling_mode_cls_token": true}"#, Pooling::Cls),
            (r#"{"pooling_mode_lasttoken": true, "include_prompt": true}"#, Pooling::Last),
            (r#"{"pooling_mode": "mean"}"#, Pooling::Mean),
        ] {
            let settings = of(&[("modules.json", MODULES_JSON), ("1_Pooling/config.json", config)]).unwrap();
            assert_eq!((settings.pooling, settings.normalize), (Some(expected), true), "{config}");
        }
        let (without, _) = MODULES_JSON.rsplit_once(",\n").unwrap();
        let settings = of(&[("modules.json", &format!("{without}]")), ("1_Pooling/config.json", r#"{"pooling_mode": "cls"}"#)]).unwrap();
        assert!(!settings.normalize);
    }

    #[test]
    fn what_is_not_known_is_refused_by_its_name() {
        let pooling = |config: &str| of(&[("modules.json", MODULES_JSON), ("1_Pooling/config.json", config)]).unwrap_err().to_string();
        assert!(pooling(r#"{"pooling_mode_max_tokens": true}"#).contains("`max_tokens`"));
        assert!(pooling(r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#).contains("several"));
        assert!(pooling("{}").contains("no pooling"));
        assert!(of(&[("modules.json", MODULES_JSON)]).unwrap_err().to_string().contains("1_Pooling/config.json"));
        let second = |kind: &str, files: &[(&str, &str)]| {
            let modules = MODULES_JSON.replace("Normalize\"", kind);
            let pooling = [("modules.json", modules.as_str()), ("1_Pooling/config.json", r#"{"pooling_mode": "mean"}"#)];
            of(&[&pooling, files].concat()).unwrap_err().to_string()
        };
        let error = second("LayerNorm\"", &[]);
        assert!(error.contains("module LayerNorm"), "{error}");
        let error = second("Dense\"", &[]);
        assert!(error.contains("2_Dense/config.json") && error.contains("missing"), "{error}");
        let config = "2_Dense/config.json";
        for (fields, named) in [
            (r#"{"activation_function": "torch.nn.modules.activation.ReLU"}"#, "`ReLU`"),
            (r#"{"activation_function": "x.Tanh", "module_input_name": "token_embeddings"}"#, "`token_embeddings`"),
            (r#"{"activation_function": "torch.nn.modules.linear.Identity"}"#, "no *.safetensors"),
        ] {
            let error = second("Dense\"", &[(config, fields)]);
            assert!(error.contains(named), "{fields}: {error}");
        }
        let early = MODULES_JSON.replace("Pooling\"", "Dense\"");
        assert!(of(&[("modules.json", &early)]).unwrap_err().to_string().contains("not between"));
        let away = MODULES_JSON.replace("1_Pooling", "../../etc");
        assert!(of(&[("modules.json", &away)]).unwrap_err().to_string().contains("not there"));
    }

    #[test]
    fn prompts_are_known_by_name() {
        let config = r#"{"prompts": {"query": "Query: ", "document": ""}, "default_prompt_name": null}"#;
        let settings = of(&[("config_sentence_transformers.json", config)]).unwrap();
        assert_eq!((settings.prompt(Some("query")).unwrap(), settings.prompt(None).unwrap()), ("Query: ", ""));
        let error = settings.prompt(Some("x")).unwrap_err().to_string();
        assert!(error.contains("document and query"), "{error}");
    }
}
