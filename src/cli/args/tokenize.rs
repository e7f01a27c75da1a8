//! The options of `tierflow tokenize`.

use std::path::PathBuf;

use clap::Args;

use super::model::{ModelArgs, ModelSource, choose_source, first_word_as_text};
use crate::error::Result;

/// `tierflow tokenize`
#[derive(Debug, Clone, Args)]
pub struct TokenizeArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Text; - or none reads it from stdin
    #[arg(value_name = "TEXT")]
    pub text_word: Option<String>,
    /// The same as TEXT
    #[arg(short, long, env = "TIERFLOW_PROMPT", value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// File with the text
    #[arg(short, long, env = "TIERFLOW_FILE", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Read the text from stdin
    #[arg(long, env = "TIERFLOW_STDIN")]
    pub stdin: bool,
    /// Print the ids alone, as a list
    #[arg(long, env = "TIERFLOW_IDS")]
    pub ids: bool,
    /// Print ids and pieces as JSON
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
    /// Put no BOS or EOS around the text, whatever the model wants
    #[arg(long, alias = "no-bos", env = "TIERFLOW_NO_SPECIAL")]
    pub no_special: bool,
    /// Treat special tokens in the text as ordinary text
    #[arg(long, env = "TIERFLOW_NO_PARSE_SPECIAL")]
    pub no_parse_special: bool,
    /// Print the number of tokens too
    #[arg(long, env = "TIERFLOW_SHOW_COUNT")]
    pub show_count: bool,
}

impl TokenizeArgs {
    /// The words without a flag: the model's name and the text. With `-m` or `-hf` the first word is the text.
    ///
    /// # Errors
    /// [`crate::error::Error::InvalidArgument`] where the text is no UTF-8.
    pub fn text(&self) -> Result<Option<String>> {
        let first = if self.is_named_by_flag() { first_word_as_text(&self.model)? } else { None };
        Ok(self.text_word.clone().or(first))
    }

    /// The one model that is named.
    ///
    /// # Errors
    /// [`crate::error::Error::InvalidArgument`] where none is named, or two.
    pub fn source(&self) -> Result<ModelSource> {
        choose_source(&self.model, self.model.model.as_deref().filter(|_| !self.is_named_by_flag()))
    }

    /// `-m` or `-hf` names the model, and there is no second word.
    fn is_named_by_flag(&self) -> bool {
        (self.model.model_flag.is_some() || self.model.hf_repo.is_some()) && self.text_word.is_none()
    }
}
