//! The options of `tierflow run`: prompt, sampling, output.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::chat::ChatArgs;
use super::model::{ModelArgs, ModelSource, PlacementArgs, choose_source};
use super::{parse_or_default, parse_whole};
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

/// A token and its bias, in llama.cpp's form.
fn parse_bias(text: &str) -> std::result::Result<(u32, f32), String> {
    let wrong = || "is no token id with a bias; write 15043+1, 15043-0.5 or 15043-inf".to_owned();
    let at = text.find(['+', '-']).ok_or_else(wrong)?;
    let (id, bias) = text.split_at(at);
    Ok((id.parse().map_err(|_| wrong())?, bias.parse().map_err(|_| wrong())?))
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
    /// Temperature; 0 takes the likeliest [default: 0.8]
    ///
    /// Of every sampling option, the default is the model's own where it has one.
    #[arg(long, alias = "temperature", env = "TIERFLOW_TEMP", value_name = "T", allow_negative_numbers = true)]
    pub temp: Option<f32>,
    /// Sample among the K likeliest tokens; 0 for all [default: 40]
    ///
    /// -1 means all, too. The default is the model's own where it has one.
    #[arg(long, env = "TIERFLOW_TOP_K", value_name = "K", value_parser = parse_or_default, allow_negative_numbers = true)]
    pub top_k: Option<u32>,
    /// Sample among the likeliest tokens whose probabilities add up to this [default: 0.95]
    ///
    /// The default is the model's own where it has one.
    #[arg(long, env = "TIERFLOW_TOP_P", value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Sample among tokens at least this likely, relative to the likeliest [default: the model's, else 0.05]
    #[arg(long, env = "TIERFLOW_MIN_P", value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Divide the logits of repeated tokens by this [default: the model's, else 1]
    #[arg(long, env = "TIERFLOW_REPEAT_PENALTY", value_name = "X", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// Take this from the logits of repeated tokens [default: 0]
    #[arg(long, env = "TIERFLOW_PRESENCE_PENALTY", value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Take this from the logits of repeated tokens each time that they came [default: 0]
    #[arg(long, env = "TIERFLOW_FREQUENCY_PENALTY", value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Add to the logit of a token, as in 15043+1 or 15043-1; may be given several times
    ///
    /// -inf forbids the token. `tierflow tokenize` shows ids.
    #[arg(short = 'l', long, env = "TIERFLOW_LOGIT_BIAS", value_name = "ID+X", value_parser = parse_bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// How many of the last tokens count as repeated; 0 none, -1 all [default: 64]
    #[arg(long, env = "TIERFLOW_REPEAT_LAST_N", value_name = "N", allow_negative_numbers = true, value_parser = parse_whole)]
    pub repeat_last_n: Option<i64>,
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
