//! The arguments of `tierflow bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ModelArgs, PlacementArgs};

/// `tierflow bench`
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where it goes.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// Prompt tokens of a prefill run; 0 for none
    #[arg(short = 'p', long, env = "TIERFLOW_N_PROMPT", default_value_t = 128)]
    pub n_prompt: u32,
    /// Tokens of a decode run; 0 for none
    #[arg(short = 'n', long, env = "TIERFLOW_N_GEN", default_value_t = 32)]
    pub n_gen: u32,
    /// Runs of each, after one that warms up
    #[arg(short, long, env = "TIERFLOW_REPETITIONS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub repetitions: u32,
    /// Form of the report
    #[arg(short, long, env = "TIERFLOW_OUTPUT", default_value = "md")]
    pub output: BenchOutput,
    /// The report as JSON, as with `-o json`
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
    /// Write a Chrome/Perfetto trace of the last run
    #[arg(long, env = "TIERFLOW_TRACE", value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// Forms of a bench report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchOutput {
    /// A markdown table, as llama-bench prints.
    Md,
    /// JSON with llama-bench's field names.
    Json,
}
