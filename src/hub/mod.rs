//! Models from a Hugging Face hub, in its standard cache: what to fetch, fetching it, finding it again.
//! Knows files and names, not what is in them. Python's `huggingface_hub` finds what this fetches, and the reverse.

mod cache;
mod choose;
mod client;
mod config;
mod fetch;
mod model_ref;

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::units::Bytes;
use cache::RepoCache;
pub use cache::{CachedModel, list_cached};
use client::Client;
pub use config::{HubConfig, Token};
pub use model_ref::{ModelRef, looks_like_model_ref, parse_model_ref};

/// How far a fetch is; given to the callback after every block that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file, as the hub calls it.
    pub file: &'a str,
    /// Bytes of it that are here.
    pub done: Bytes,
    /// Its size.
    pub total: Bytes,
}

/// What a pull brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// What to open: a `.gguf`, or a folder with `config.json` and safetensors.
    pub path: PathBuf,
    /// The commit that `revision` stood for.
    pub commit: String,
    /// Bytes that came over the network; zero where all was in the cache.
    pub fetched: Bytes,
}

/// Brings the files of `model` into the cache, as far as they are not there yet, and says where they lie.
///
/// An interrupted fetch is taken up where it ended. Several processes may pull the same model at once: each blob is
/// written under a name of its own or under a lock, and appears whole.
///
/// # Errors
/// [`Error::Network`] with the address and what to do (no such repository, token needed, offline, wrong size),
/// [`Error::InvalidArgument`] where the files asked for are none or several, [`Error::Io`] about the cache.
pub fn pull(config: &HubConfig, model: &ModelRef, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Pulled> {
    let cache = RepoCache::new(&config.cache_dir, &model.repo);
    if config.offline {
        let commit = cache.commit(&model.revision)?.unwrap_or_default();
        return match cached(config, model)? {
            Some(path) => Ok(Pulled { path, commit, fetched: Bytes::ZERO }),
            None => Err(Error::Network {
                url: format!("{}/{}", config.endpoint, model.repo),
                fault: format!(
                    "HF_HUB_OFFLINE is set and {model} is not (wholly) in {}; unset it to fetch the model",
                    config.cache_dir.display()
                ),
            }),
        };
    }
    let client = Client::new(config);
    let listing = client.list_files(model)?;
    let chosen = choose::choose_files(model, &listing.files)?;
    let mut fetched = Bytes::ZERO;
    for file in &chosen.files {
        fetched += fetch::fetch_file(&client, &cache, &listing.commit, file, progress)?;
    }
    cache.write_ref(&model.revision, &listing.commit)?;
    Ok(Pulled { path: chosen.path_in(&cache.snapshot(&listing.commit)), commit: listing.commit, fetched })
}

/// Where the files of `model` lie in the cache: a `.gguf` or a folder; `None` where it is not there, or not wholly.
/// Asks no server.
///
/// # Errors
/// [`Error::Io`] where the cache cannot be read; [`Error::InvalidArgument`] where the cache holds the repository and
/// the files asked for are several.
pub fn cached(config: &HubConfig, model: &ModelRef) -> Result<Option<PathBuf>> {
    let cache = RepoCache::new(&config.cache_dir, &model.repo);
    let Some(commit) = cache.commit(&model.revision)? else { return Ok(None) };
    let files = cache.files(&commit)?;
    let chosen = match choose::choose_files(model, &files) {
        Ok(chosen) => chosen,
        Err(_) if choose::holds_no_candidate(model, &files) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(chosen.is_complete().then(|| chosen.path_in(&cache.snapshot(&commit))))
}
