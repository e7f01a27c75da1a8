//! The options of `tierflow run`: prompt, sampling, output.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::Args;

use super::model::{ModelArgs, ModelSource, PlacementArgs, choose_source};
use crate::error::Result;

/// `tierflow run`
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Prompt; without one, a pipe on stdin is the prompt and a terminal starts a chat
    #[arg(value_name = "PROMPT")]
    pub prompt_word: Option<String>,
    /// Where it goes.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// What is generated.
    #[command(flatten)]
    pub generation: GenerationArgs,
    /// Print one JSON object with text and statistics instead of the text
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
    #[command(flatten)]
    ignored: IgnoredArgs,
}

impl RunArgs {
    /// The words without a flag: the model's name and the prompt. With `-m` or `-hf` the first word is the prompt.
    pub fn words(&self) -> (Option<&OsStr>, Option<&OsStr>) {
        let (first, second) = (self.model.model.as_deref(), self.prompt_word.as_deref().map(OsStr::new));
        let is_named_by_flag = self.model.model_flag.is_some() || self.model.hf_repo.is_some();
        if is_named_by_flag && second.is_none() { (None, first) } else { (first, second) }
    }

    /// The one model that is named.
    ///
    /// # Errors
    /// [`crate::error::Error::InvalidArgument`] where none is named, or two.
    pub fn source(&self) -> Result<ModelSource> {
        choose_source(&self.model, self.words().0)
    }
}

/// What is generated. An option that is `None` leaves the choice to the model's own settings, then to the default.
#[derive(Debug, Clone, Args)]
pub struct GenerationArgs {
    /// Prompt; - reads it from stdin
    #[arg(short, long, env = "TIERFLOW_PROMPT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// File with the prompt
    #[arg(short, long, env = "TIERFLOW_FILE", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// System message of the chat template (-sys)
    #[arg(long, env = "TIERFLOW_SYSTEM", value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// File with the system message (-sysf)
    #[arg(long, env = "TIERFLOW_SYSTEM_FILE", value_name = "FILE")]
    pub system_file: Option<PathBuf>,
    /// Most tokens to generate; -1 goes on until the model ends
    #[arg(short = 'n', long, env = "TIERFLOW_PREDICT", default_value_t = -1, allow_negative_numbers = true, value_name = "N")]
    pub predict: i64,
    /// Seed of the sampling; -1 takes a random one and prints it
    #[arg(short, long, env = "TIERFLOW_SEED", default_value_t = -1, allow_negative_numbers = true, value_name = "N")]
    pub seed: i64,
    /// Temperature; 0 always takes the likeliest token [default: the model's, else 0.8]
    #[arg(long, env = "TIERFLOW_TEMP", value_name = "T", allow_negative_numbers = true)]
    pub temp: Option<f32>,
    /// Sample among the K likeliest tokens; 0 among all [default: the model's, else 40]
    #[arg(long, env = "TIERFLOW_TOP_K", value_name = "K")]
    pub top_k: Option<usize>,
    /// Sample among the likeliest tokens that hold this share of the probability [default: the model's, else 0.95]
    #[arg(long, env = "TIERFLOW_TOP_P", value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Sample among tokens at least this likely, relative to the likeliest [default: the model's, else 0.05]
    #[arg(long, env = "TIERFLOW_MIN_P", value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Divide the scores of repeated tokens by this [default: the model's, else 1]
    #[arg(long, env = "TIERFLOW_REPEAT_PENALTY", value_name = "X", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// How many last tokens count as repeated; 0 none, -1 all [default: 64]
    #[arg(long, env = "TIERFLOW_REPEAT_LAST_N", value_name = "N", allow_negative_numbers = true)]
    pub repeat_last_n: Option<i64>,
    /// Text that ends the answer; may be given several times
    #[arg(long, env = "TIERFLOW_STOP", value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Give the prompt to the model as it is, without the chat template
    #[arg(long, env = "TIERFLOW_RAW")]
    pub raw: bool,
    /// Special tokens that the prompt spells are text like any other
    #[arg(long, env = "TIERFLOW_NO_PARSE_SPECIAL")]
    pub no_parse_special: bool,
    /// Go on where the model would end
    #[arg(long, env = "TIERFLOW_IGNORE_EOS")]
    pub ignore_eos: bool,
}

/// Flags of llama.cpp's command lines that have nothing to change here.
#[derive(Debug, Clone, Args)]
struct IgnoredArgs {
    #[arg(long, env = "TIERFLOW_NO_WARMUP", hide = true)]
    no_warmup: bool,
    #[arg(long, env = "TIERFLOW_JINJA", hide = true)]
    jinja: bool,
    #[arg(long, env = "TIERFLOW_MLOCK", hide = true)]
    mlock: bool,
    #[arg(long, env = "TIERFLOW_FLASH_ATTN", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "on")]
    flash_attn: Option<String>,
}
