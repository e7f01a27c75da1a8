//! The options of `tierflow serve`.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::model::{ModelArgs, PlacementArgs};
use super::parse_value;
use super::sampling::SamplingArgs;
use crate::server::KeepAlive;
use crate::units::Bytes;

/// `tierflow serve`
#[derive(Debug, Clone, Args)]
#[command(mut_arg("temp", |temp| temp.hide_short_help(true)))]
pub struct ServeArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Further models, each loaded when a request names it
    #[arg(value_name = "MODEL")]
    pub more_models: Vec<OsString>,
    /// Folder whose models are served: its .gguf files and folders, each loaded when a request names it
    #[arg(long, env = "TIERFLOW_MODELS_DIR", value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
    /// How long one of several models stays loaded that nobody asks, as in 5m; -1 for ever [default: 5m]
    #[arg(long, env = "TIERFLOW_KEEP_ALIVE", value_name = "TIME", allow_hyphen_values = true)]
    pub keep_alive: Option<KeepAlive>,
    /// Address to listen on; any but this machine's own needs --api-key or --allow-remote
    #[arg(long, env = "TIERFLOW_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub host: String,
    /// Port to listen on; 0 for a free one
    #[arg(long, env = "TIERFLOW_PORT", default_value_t = 8080, value_name = "N")]
    pub port: u16,
    /// Key that every request must carry; in TIERFLOW_API_KEY, other users do not see it
    #[arg(long, env = "TIERFLOW_API_KEY", value_name = "KEY", value_parser = parse_key)]
    pub api_key: Option<Key>,
    /// Let other machines ask without a key
    #[arg(long, env = "TIERFLOW_ALLOW_REMOTE")]
    pub allow_remote: bool,
    /// Origin of web pages that may ask, as in http://localhost:3000; * for all; may be given several times
    #[arg(long, env = "TIERFLOW_CORS", value_name = "ORIGIN")]
    pub cors: Vec<String>,
    /// Requests that may wait for a sequence; more are refused
    #[arg(long, env = "TIERFLOW_QUEUE", default_value_t = 64, value_name = "N")]
    pub queue: u32,
    /// Host memory for conversations whose sequences others took, as in 2GiB; a bare number is MiB, 0 keeps none
    ///
    /// One that comes back goes on where it was. Answers that are paused since --kv-size is full wait there, too. By default a sixteenth of the
    /// memory, 8 GiB at most, or none beside a budget of cpu.
    #[arg(long, env = "TIERFLOW_CACHE_RAM", value_name = "SIZE", value_parser = parse_cache_ram)]
    pub cache_ram: Option<Bytes>,
    /// Name under which the model is asked for, instead of its file's
    #[arg(long, env = "TIERFLOW_ALIAS", value_name = "NAME")]
    pub alias: Option<String>,
    /// Make embeddings instead of text, as models for embeddings do by themselves
    #[arg(long, alias = "embedding", env = "TIERFLOW_EMBEDDINGS")]
    pub embeddings: bool,
    /// How tokens are chosen where a request says nothing.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Where it goes.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// Say nothing on stderr but errors
    #[arg(short, long, env = "TIERFLOW_QUIET")]
    pub quiet: bool,
}

/// A key, which is not shown.
#[derive(Clone)]
pub struct Key(pub String);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(hidden)")
    }
}

/// Reads a size, or MiB as llama.cpp has them.
fn parse_cache_ram(text: &str) -> Result<Bytes, String> {
    match text.trim().parse::<u32>() {
        Ok(n_mib) => Ok(Bytes::mib(n_mib.into())),
        Err(_) => parse_value(text),
    }
}

/// Reads a key. What is none is refused later, since clap would repeat it.
fn parse_key(text: &str) -> Result<Key, Infallible> {
    Ok(Key(text.to_owned()))
}
