//! The options of `tierflow embed`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::model::{ModelArgs, ModelSource, PlacementArgs, choose_source, first_word_as_text};
use crate::error::Result;
use crate::text::Pooling;

/// `tierflow embed`
#[derive(Debug, Clone, Args)]
pub struct EmbedArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Texts; - or none reads them from stdin, one a line
    #[arg(value_name = "TEXT")]
    pub texts: Vec<String>,
    /// File with texts, one a line
    #[arg(short, long, env = "TIERFLOW_FILE", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Where it goes.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// Which hidden states count [default: the model's, else mean]
    #[arg(long, env = "TIERFLOW_POOLING", value_name = "POOLING")]
    pub pooling: Option<PoolingArg>,
    /// Do not scale vectors to the length 1
    #[arg(long, env = "TIERFLOW_NO_NORMALIZE")]
    pub no_normalize: bool,
    /// The model's prompt that goes before each text
    #[arg(long, env = "TIERFLOW_PROMPT_NAME", value_name = "NAME")]
    pub prompt_name: Option<String>,
    /// Print the embeddings as JSON
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
}

/// `--pooling`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PoolingArg {
    /// The mean of all.
    Mean,
    /// The first one's.
    Cls,
    /// The last one's.
    Last,
}

impl From<PoolingArg> for Pooling {
    fn from(arg: PoolingArg) -> Pooling {
        match arg {
            PoolingArg::Mean => Pooling::Mean,
            PoolingArg::Cls => Pooling::Cls,
            PoolingArg::Last => Pooling::Last,
        }
    }
}

impl EmbedArgs {
    /// The words without a flag: the model's name, then texts. With `-m` or `-hf` all of them are texts.
    ///
    /// # Errors
    /// [`crate::error::Error::InvalidArgument`] where the first text is no UTF-8.
    pub fn texts(&self) -> Result<Vec<String>> {
        let first = if self.is_named_by_flag() { first_word_as_text(&self.model)? } else { None };
        Ok(first.into_iter().chain(self.texts.iter().cloned()).collect())
    }

    /// The one model that is named.
    ///
    /// # Errors
    /// [`crate::error::Error::InvalidArgument`] where none is named, or two.
    pub fn source(&self) -> Result<ModelSource> {
        choose_source(&self.model, self.model.model.as_deref().filter(|_| !self.is_named_by_flag()))
    }

    /// `-m` or `-hf` names the model.
    fn is_named_by_flag(&self) -> bool {
        self.model.model_flag.is_some() || self.model.hf_repo.is_some()
    }
}
