//! The options of `tierflow batch`.

use std::path::PathBuf;

use clap::Args;

use super::model::{ModelArgs, PlacementArgs};

/// `tierflow batch`
#[derive(Debug, Clone, Args)]
pub struct BatchArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// File with a request a line, as OpenAI's batches have them
    #[arg(short, long, env = "TIERFLOW_INPUT", value_name = "FILE")]
    pub input: PathBuf,
    /// File for the answers; what it has of them already is kept, and the batch goes on behind it
    #[arg(short, long, env = "TIERFLOW_OUTPUT", value_name = "FILE")]
    pub output: PathBuf,
    /// Name under which requests may ask for the model, besides its file's
    #[arg(long, env = "TIERFLOW_ALIAS", value_name = "NAME")]
    pub alias: Option<String>,
    /// Where it goes.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// Say nothing on stderr but errors
    #[arg(short, long, env = "TIERFLOW_QUIET")]
    pub quiet: bool,
}
