//! From the model that the user names to the folder or file that holds it.

use std::path::{Path, PathBuf};

use crate::cli::args::ModelSource;
use crate::cli::pull::{Fetch, pull_with_bar};
use crate::cli::terminal::Visibility;
use crate::error::{Error, Result};
use crate::hub::{self, HubConfig, ModelRef};

/// Where the model lies. A name is a path first, then a model in the cache; only `-hf` fetches.
///
/// # Errors
/// [`Error::InvalidArgument`] where the name is neither; as [`hub::pull`] where the model is fetched.
pub fn locate(source: &ModelSource, bar: Visibility) -> Result<PathBuf> {
    locate_in(source, &HubConfig::from_env, bar)
}

fn locate_in(source: &ModelSource, config: &dyn Fn() -> Result<HubConfig>, bar: Visibility) -> Result<PathBuf> {
    let name = match source {
        ModelSource::Named(name) => name,
        ModelSource::Hub(model) => return cached_or_pulled(&config()?, model, bar),
    };
    // A name on a hub has no letter outside ASCII.
    let on_hub = name.to_str().filter(|name| hub::looks_like_model_ref(name));
    match Path::new(name).try_exists() {
        Ok(true) => return Ok(PathBuf::from(name)),
        // Where that cannot be told, as in a folder of somebody else, opening it says why.
        Err(_) if on_hub.is_none() => return Ok(PathBuf::from(name)),
        _ => {}
    }
    let shown = name.to_string_lossy();
    let Some(named) = on_hub else {
        return Err(not_found(&shown, "is no folder or file; check the path, or name a model of the hub as ORG/NAME"));
    };
    let (config, model) = (config()?, hub::parse_model_ref(named)?);
    hub::cached(&config, &model)?.ok_or_else(|| {
        let cache = config.cache_dir.display();
        not_found(named, &format!("is no folder or file, and not (wholly) in {cache}; fetch it with: tierflow pull {named}"))
    })
}

fn cached_or_pulled(config: &HubConfig, model: &ModelRef, bar: Visibility) -> Result<PathBuf> {
    match hub::cached(config, model) {
        Ok(Some(path)) => Ok(path),
        // What of the cache cannot be read, the hub may say.
        Ok(None) | Err(Error::Io { .. }) => Ok(pull_with_bar(config, model, Fetch::Missing, bar)?.path),
        Err(error) => Err(error),
    }
}

fn not_found(name: &str, fault: &str) -> Error {
    Error::InvalidArgument { option: "MODEL".into(), fault: format!("`{name}` {fault}") }
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
        let locate = |name: &str| locate_in(&ModelSource::Named(name.into()), &config, Visibility::Hidden);
        let here = cache.path().to_str().unwrap();
        assert_eq!(locate(here).unwrap(), cache.path());
        assert!(locate("org/name").unwrap_err().to_string().contains("tierflow pull org/name"));
        assert!(locate("/no/such.gguf").unwrap_err().to_string().contains("check the path"));
        // Whether it is there cannot be told: the error of opening says why.
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
        let hub = ModelSource::Hub(hub::parse_model_ref("org/name:q4_0").unwrap());
        assert_eq!(locate_in(&hub, &config, Visibility::Hidden).unwrap(), file);
    }
}
