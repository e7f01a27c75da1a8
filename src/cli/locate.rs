//! From the model that the user names to the folder or file that holds it.

use std::path::{Path, PathBuf};

use crate::cli::args::ModelSource;
use crate::cli::pull::{Fetch, pull_with_bar};
use crate::cli::terminal::{Visibility, note};
use crate::error::{Error, Result};
use crate::hub::{self, HubConfig, ModelRef};

/// Most names of cached models that an error lists.
const MOST_ALIKE: usize = 5;

/// Where the model lies. A name is a path first, then a model in the cache; only `-hf` fetches.
///
/// # Errors
/// [`Error::InvalidArgument`] where the name is neither; as [`hub::pull`] where the model is fetched.
pub fn locate(source: &ModelSource, bar: Visibility) -> Result<PathBuf> {
    locate_in(source, Absent::Refused, &HubConfig::from_env, bar)
}

/// As [`locate`], but a name as a hub has them is fetched where the cache lacks it, as ollama does.
///
/// # Errors
/// As [`locate`].
pub fn locate_or_fetch(source: &ModelSource, bar: Visibility) -> Result<PathBuf> {
    locate_in(source, Absent::Fetched, &HubConfig::from_env, bar)
}

/// What to do about a named model that the cache lacks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// Refuse it, and say how to fetch it.
    Refused,
    /// Fetch it.
    Fetched,
}

fn locate_in(source: &ModelSource, absent: Absent, config: &dyn Fn() -> Result<HubConfig>, bar: Visibility) -> Result<PathBuf> {
    let name = match source {
        ModelSource::Named(name) => name,
        ModelSource::Hub(model) => return cached_or_pulled(&config()?, model, bar),
    };
    let on_hub = name.to_str().filter(|name| hub::looks_like_model_ref(name) && !is_path_of_gguf(name));
    match Path::new(name).try_exists() {
        Ok(true) => return Ok(PathBuf::from(name)),
        // Where that is not known, as in a folder that another user owns, the error of opening it says why.
        Err(_) if on_hub.is_none() => return Ok(PathBuf::from(name)),
        _ => {}
    }
    let Some(named) = on_hub else { return Err(no_name(&name.to_string_lossy(), config)) };
    let (config, model) = (config()?, hub::parse_model_ref(named)?);
    if let Some(path) = hub::cached(&config, &model)? {
        return Ok(path);
    }
    let cache = config.cache_dir.display();
    if absent == Absent::Refused || config.offline {
        return Err(not_found(named, &format!("is no folder or file, and not (wholly) in {cache}; fetch it with: tierflow pull {named}")));
    }
    if bar != Visibility::Hidden {
        note(&format!("`{named}` is no folder or file here, and not in {cache}: fetching it from {}\n", config.endpoint));
    }
    pull_with_bar(&config, &model, Fetch::Missing, bar).map(|pulled| pulled.path)
}

/// Whether `FOLDER/NAME.gguf` is written, which a hub has as `ORG/NAME:FILE.gguf` alone.
fn is_path_of_gguf(name: &str) -> bool {
    !name.contains(':') && name.to_ascii_lowercase().ends_with(".gguf")
}

/// Why a name is none, with the models of the cache that may be meant.
fn no_name(name: &str, config: &dyn Fn() -> Result<HubConfig>) -> Error {
    // ollama's names are of its own library: NAME:SIZE.
    let bare = name.split(':').next().unwrap_or(name).to_lowercase();
    let cached = config().and_then(|config| hub::list_cached(&config)).unwrap_or_default();
    let alike: Vec<String> = cached
        .into_iter()
        .map(|model| model.repo)
        .filter(|repo| !bare.is_empty() && !bare.contains('/') && repo.to_lowercase().contains(&bare))
        .take(MOST_ALIKE)
        .collect();
    let cached = if alike.is_empty() { String::new() } else { format!("; the cache has {}", alike.join(", ")) };
    let is_path = bare.contains(['/', '\\']) || bare.ends_with(".gguf");
    let library = if is_path { "" } else { ", as in HuggingFaceTB/SmolLM2-135M-Instruct (ollama's library is another)" };
    not_found(name, &format!("is no folder or file; check the path, or name a model of the hub as ORG/NAME{library}{cached}"))
}

fn cached_or_pulled(config: &HubConfig, model: &ModelRef, bar: Visibility) -> Result<PathBuf> {
    match hub::cached(config, model) {
        Ok(Some(path)) => Ok(path),
        // What of the cache cannot be read, the hub may say.
        Ok(None) | Err(Error::Io { .. }) => Ok(pull_with_bar(config, model, Fetch::Missing, bar)?.path),
        Err(error) => Err(error),
    }
}

fn not_found(name: &str, reason: &str) -> Error {
    Error::InvalidArgument { option: "MODEL".into(), reason: format!("`{name}` {reason}") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_name_is_a_path_first_and_then_a_model_in_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let config = || {
            Ok(HubConfig {
                endpoint: "http://127.0.0.1:9".into(),
                cache_dir: cache.path().to_owned(),
                token: None,
                offline: true,
                retry_delay: Duration::ZERO,
            })
        };
        let locate = |name: &str| locate_in(&ModelSource::Named(name.into()), Absent::Refused, &config, Visibility::Hidden);
        let here = cache.path().to_str().unwrap();
        assert_eq!(locate(here).unwrap(), cache.path());
        assert!(locate("org/name").unwrap_err().to_string().contains("tierflow pull org/name"));
        for path in ["/no/such.gguf", "no-such/model.gguf"] {
            assert!(locate(path).unwrap_err().to_string().contains("check the path"), "{path}");
        }
        // Whether it exists is not known: the error of opening it says why.
        let behind_a_file = cache.path().join("file").join("m.gguf");
        std::fs::write(cache.path().join("file"), "").unwrap();
        assert_eq!(locate(behind_a_file.to_str().unwrap()).unwrap(), behind_a_file);

        let root = cache.path().join("models--org--name");
        std::fs::create_dir_all(root.join("snapshots/c0ffee")).unwrap();
        std::fs::create_dir_all(root.join("refs")).unwrap();
        std::fs::write(root.join("refs/main"), "c0ffee").unwrap();
        let file = root.join("snapshots/c0ffee/m-Q4_0.gguf");
        std::fs::write(&file, "GGUF").unwrap();
        assert_eq!(locate("org/name").unwrap(), file);
        assert_eq!(locate("hf.co/org/name:Q4_0").unwrap(), file);
        for name in ["name", "NAME:7b", "Org"] {
            assert!(locate(name).unwrap_err().to_string().ends_with("; the cache has org/name"), "{name}");
        }
        let refusal = locate("llama3.2").unwrap_err().to_string();
        assert!(refusal.contains("ollama") && !refusal.contains("the cache has"), "{refusal}");
        let hub = ModelSource::Hub(hub::parse_model_ref("org/name:q4_0").unwrap());
        assert_eq!(locate_in(&hub, Absent::Refused, &config, Visibility::Hidden).unwrap(), file);
    }
}
