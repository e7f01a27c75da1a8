//! Models from a Hugging Face hub, in its standard cache: what to fetch, fetching it, finding it again.
//! Knows files and names, not what is in them. Python's `huggingface_hub` finds what this fetches, and vice versa.

mod cache;
mod choose;
mod client;
mod config;
mod fetch;
mod model_ref;
mod quantisation;

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::units::Bytes;
use cache::RepoCache;
pub use cache::{CachedModel, list_cached};
use client::{ATTEMPTS, ATTEMPTS_BESIDE_CACHE, Client};
pub use config::{HubConfig, Token};
pub use model_ref::{ModelRef, looks_like_model_ref, parse_model_ref};

/// How far a fetch is; given to the callback after every block that arrives, and before every wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file, as the hub calls it.
    pub file: &'a str,
    /// Bytes of it that are here.
    pub done: Bytes,
    /// Its size.
    pub total: Bytes,
    /// How long nothing will happen now, before the hub is asked again.
    pub waiting: Option<Duration>,
}

impl<'a> Progress<'a> {
    fn of(file: &'a str, done: Bytes, total: Bytes) -> Progress<'a> {
        Progress { file, done, total, waiting: None }
    }
}

/// What is fetched of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// What the cache lacks, or has in another size than the hub.
    Missing,
    /// All of it, whatever the cache has.
    Anew,
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

/// Brings the files of `model` into the cache, unless they are there in the size that the hub names, and returns where they lie. Where
/// the hub cannot be reached and the cache holds the whole model, that one is taken, with a warning in the log.
///
/// An interrupted fetch is resumed. Several processes may pull the same model at once: each blob is
/// written under a name of its own or under a lock, and appears whole. Large files are checked by the SHA-256 that the hub names.
///
/// # Errors
/// [`Error::Network`] with the address and what to do (no such repository, token needed, offline, wrong size or content),
/// [`Error::InvalidArgument`] where the files asked for are none, several or of a quantisation that does not run, or where the token
/// is none, [`Error::Io`] about the cache.
pub fn pull(config: &HubConfig, model: &ModelRef, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Pulled> {
    bring(config, model, Way::Missing, progress)
}

/// As [`pull`], but fetches every file of `model` again and puts it in the place of what the cache has.
///
/// # Errors
/// As [`pull`].
pub fn pull_anew(config: &HubConfig, model: &ModelRef, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Pulled> {
    bring(config, model, Way::Anew, progress)
}

fn bring(config: &HubConfig, model: &ModelRef, way: Way, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Pulled> {
    let whole = if way == Way::Missing { cached_whole(config, model) } else { Ok(None) };
    if config.offline {
        let reason = match way {
            Way::Missing => {
                let cache = config.cache_dir.display();
                format!("HF_HUB_OFFLINE is set and {model} is not (wholly) in {cache}; unset it to fetch the model")
            }
            Way::Anew => format!("HF_HUB_OFFLINE is set; unset it to fetch {model} again"),
        };
        return whole?.ok_or_else(|| Error::Network { url: format!("{}/{}", config.endpoint, model.repo), reason });
    }
    let client = Client::new(config)?;
    let attempts = if matches!(whole, Ok(Some(_))) { ATTEMPTS_BESIDE_CACHE } else { ATTEMPTS };
    let listing = match (client.list_files(model, attempts), whole) {
        (Ok(listing), _) => listing,
        (Err(failure), Ok(Some(whole))) if failure.is_outage => {
            tracing::warn!("{}; {model} is wholly in the cache, which is used", failure.error);
            return Ok(whole);
        }
        (Err(failure), _) => return Err(*failure.error),
    };
    let cache = RepoCache::new(&config.cache_dir, &model.repo);
    let chosen = choose::choose_files(model, &listing.files)?;
    if let Some(doubt) = choose::doubt(&chosen) {
        tracing::warn!("{doubt}");
    }
    if !chosen.is_complete() {
        return Err(choose::refusal(model, &format!("the repository lacks files that belong to {}", chosen.files.join(", "))));
    }
    let mut fetched = Bytes::ZERO;
    for file in &chosen.files {
        fetched += fetch::fetch_file(&client, &cache, &listing.commit, file, way, progress)?;
    }
    // The model is there all the same, as in a cache that may only be read.
    if let Err(error) = cache.write_ref(&model.revision, &listing.commit) {
        tracing::warn!(
            "{error}; the cache does not note that {} is {}, so that the hub is asked next time",
            model.revision,
            listing.commit
        );
    }
    Ok(Pulled { path: chosen.path_in(&cache.snapshot(&listing.commit)), commit: listing.commit, fetched })
}

/// The model as it is in the cache, where all of it is there.
fn cached_whole(config: &HubConfig, model: &ModelRef) -> Result<Option<Pulled>> {
    let Some(path) = cached(config, model)? else { return Ok(None) };
    let commit = RepoCache::new(&config.cache_dir, &model.repo).commit(&model.revision)?.unwrap_or_default();
    Ok(Some(Pulled { path, commit, fetched: Bytes::ZERO }))
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
