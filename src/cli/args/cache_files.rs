//! The files of `tierflow run` that keep a sequence from one run to the next.

use std::path::{Path, PathBuf};

use clap::Args;

/// What is read before a run, and written after it.
#[derive(Debug, Clone, Args)]
pub struct CacheFileArgs {
    /// Write the tokens and their KV cache to a file
    ///
    /// After the answer, or at the end of the chat. The file is as large as the cache of so many tokens, and is for this model, data type
    /// and device alone.
    #[arg(long, env = "TIERFLOW_CACHE_SAVE", value_name = "FILE")]
    pub cache_save: Option<PathBuf>,
    /// Begin with the tokens of such a file
    ///
    /// Of a prompt that begins with the same tokens, only what is new is computed.
    #[arg(long, env = "TIERFLOW_CACHE_LOAD", value_name = "FILE")]
    pub cache_load: Option<PathBuf>,
    /// llama.cpp's: read where it is there, and written.
    #[arg(long, env = "TIERFLOW_PROMPT_CACHE", hide = true, conflicts_with_all = ["cache_save", "cache_load"], value_name = "FILE")]
    pub prompt_cache: Option<PathBuf>,
    /// llama.cpp's: the file is not written.
    #[arg(long, env = "TIERFLOW_PROMPT_CACHE_RO", hide = true, requires = "prompt_cache")]
    pub prompt_cache_ro: bool,
}

impl CacheFileArgs {
    /// The file that is read.
    pub fn loaded(&self) -> Option<&Path> {
        self.cache_load.as_deref().or_else(|| self.prompt_cache.as_deref().filter(|file| file.exists()))
    }

    /// The file that is written.
    pub fn saved(&self) -> Option<&Path> {
        self.cache_save.as_deref().or_else(|| self.prompt_cache.as_deref().filter(|_| !self.prompt_cache_ro))
    }
}
