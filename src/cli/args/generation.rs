//! The options of `tierflow run`: prompt, sampling, output.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::cache_files::CacheFileArgs;
use super::chat::ChatArgs;
use super::model::{ModelArgs, ModelSource, PlacementArgs, choose_source};
use super::parse_whole;
use super::sampling::SamplingArgs;
use crate::cli::familiar::names_a_model;
use crate::error::Result;

/// `tierflow run`
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Prompt, in one word or several; without one, a chat
    ///
    /// The text of a pipe on stdin goes before it, and is the prompt where it stands alone.
    #[arg(value_name = "PROMPT")]
    pub prompt_words: Vec<OsString>,
    /// What is generated.
    #[command(flatten)]
    pub generation: GenerationArgs,
    /// Where it goes.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// How a chat goes.
    #[command(flatten)]
    pub chat: ChatArgs,
    /// What is kept for the next run.
    #[command(flatten)]
    pub cache_files: CacheFileArgs,
    /// Print one JSON object instead of the text
    ///
    /// With text and statistics.
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
    /// Write a Chrome/Perfetto trace
    #[arg(long, env = "TIERFLOW_TRACE", value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Say more on stderr
    #[arg(short, long, env = "TIERFLOW_VERBOSE")]
    pub verbose: bool,
    /// Say nothing on stderr but errors
    #[arg(short, long, env = "TIERFLOW_QUIET")]
    pub quiet: bool,
}

impl RunArgs {
    /// The words without a flag: the model's name and the prompt's words. With `-m` or `-hf` all words are the prompt's.
    pub fn words(&self) -> (Option<&OsStr>, Vec<&OsStr>) {
        let (first, others) = (self.model.model.as_deref(), self.prompt_words.iter().map(OsString::as_os_str));
        let is_named_by_flag = self.model.model_flag.is_some() || self.model.hf_repo.is_some();
        if is_named_by_flag { (None, first.into_iter().chain(others).collect()) } else { (first, others.collect()) }
    }

    /// The one model that is named.
    ///
    /// # Errors
    /// [`crate::error::Error::InvalidArgument`] where none is named, or two.
    pub fn source(&self) -> Result<ModelSource> {
        let (named, words) = self.words();
        // With -m or -hf, a first word that can only be a model is no prompt.
        let twice = words.first().filter(|word| named.is_none() && names_a_model(word));
        choose_source(&self.model, named.or(twice.copied()))
    }
}

/// Whether a model thinks before it answers, in ollama's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Thinking {
    /// It does.
    #[value(alias = "on")]
    True,
    /// It does not.
    #[value(alias = "off")]
    False,
    /// A little.
    Low,
    /// More.
    Medium,
    /// Much.
    High,
}

/// What is generated. An option that is `None` leaves the choice to the model's own settings, then to the default.
#[derive(Debug, Clone, Args)]
pub struct GenerationArgs {
    /// Prompt; - reads it from stdin
    #[arg(short, long, env = "TIERFLOW_PROMPT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// File with the prompt
    #[arg(short, long, alias = "prompt-file", env = "TIERFLOW_FILE", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// System message of the chat template (-sys)
    #[arg(long, alias = "system-prompt", env = "TIERFLOW_SYSTEM", value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// File with the system message (-sysf)
    #[arg(long, alias = "system-prompt-file", env = "TIERFLOW_SYSTEM_FILE", value_name = "FILE")]
    pub system_file: Option<PathBuf>,
    /// Tokens to generate; -1 for no limit
    ///
    /// Without one it goes on until the model ends or the context is full.
    #[arg(short = 'n', long, aliases = ["n-predict", "max-tokens", "max-new-tokens", "num-predict"], env = "TIERFLOW_PREDICT")]
    #[arg(default_value_t = -1, allow_negative_numbers = true, value_name = "N", value_parser = parse_whole)]
    pub predict: i64,
    /// Seed of the sampling; -1 for a random one
    ///
    /// The random one is printed.
    #[arg(short, long, env = "TIERFLOW_SEED", default_value_t = -1, allow_negative_numbers = true, value_name = "N", value_parser = parse_whole)]
    pub seed: i64,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Text that ends the answer; may be given several times
    #[arg(long, alias = "reverse-prompt", env = "TIERFLOW_STOP", value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Hold the answer to a grammar in llama.cpp's form (GBNF)
    #[arg(long, env = "TIERFLOW_GRAMMAR", value_name = "GRAMMAR", group = "form")]
    pub grammar: Option<String>,
    /// File with the grammar
    #[arg(long, env = "TIERFLOW_GRAMMAR_FILE", value_name = "FILE", group = "form")]
    pub grammar_file: Option<PathBuf>,
    /// Hold the answer to JSON that keeps to a schema; {} for any
    #[arg(short = 'j', long, env = "TIERFLOW_JSON_SCHEMA", value_name = "SCHEMA", group = "form")]
    pub json_schema: Option<String>,
    /// File with the schema (-jf)
    #[arg(long, env = "TIERFLOW_JSON_SCHEMA_FILE", value_name = "FILE", group = "form")]
    pub json_schema_file: Option<PathBuf>,
    /// Hold the answer to a regular expression, which describes all of it
    #[arg(long, env = "TIERFLOW_REGEX", value_name = "REGEX", group = "form")]
    pub regex: Option<String>,
    /// Let the model think before it answers; low, medium or high says how much
    ///
    /// Passed to the chat template as `enable_thinking` and `reasoning_effort`; without it, the template decides.
    #[arg(long, env = "TIERFLOW_THINK", value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(overrides_with = "no_think")]
    pub think: Option<Thinking>,
    /// Let the model answer without thinking
    #[arg(long, alias = "nothink", env = "TIERFLOW_NO_THINK", overrides_with = "think")]
    pub no_think: bool,
    /// Print the answer alone, without what the model thinks before it
    #[arg(long, alias = "hidethinking", env = "TIERFLOW_HIDE_THINKING")]
    pub hide_thinking: bool,
    /// Give the prompt to the model as it is, without the chat template
    #[arg(long, env = "TIERFLOW_RAW")]
    pub raw: bool,
    /// Treat special tokens in the prompt as ordinary text
    #[arg(long, env = "TIERFLOW_NO_PARSE_SPECIAL")]
    pub no_parse_special: bool,
    /// Go on after the token with which the model ends
    #[arg(long, env = "TIERFLOW_IGNORE_EOS")]
    pub ignore_eos: bool,
}
