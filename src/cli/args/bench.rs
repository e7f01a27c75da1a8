//! The arguments of `tierflow bench`: llama-bench's, with its defaults, lists among them.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueEnum};

use super::{GpuLayers, ModelArgs, PlacementArgs, parse_positive, parse_value};
use crate::error::{Error, Result};

/// `tierflow bench`
#[derive(Debug, Clone, Args)]
#[command(mut_args(with_list))]
pub struct BenchArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Placement options that may be lists here. Read before [`PlacementArgs`], which takes the first value of each.
    #[command(flatten)]
    pub lists: PlacementLists,
    /// What is measured.
    #[command(flatten)]
    pub tests: TestArgs,
    /// Where it goes.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// Format: md, csv, json or jsonl
    #[arg(short, long, env = "TIERFLOW_OUTPUT", value_name = "FORMAT", default_value = "md", hide_possible_values = true)]
    pub output: BenchOutput,
    /// The report as JSON, as with `-o json`
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
    /// Write a Chrome/Perfetto trace of the last run
    #[arg(long, env = "TIERFLOW_TRACE", value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// What is measured.
#[derive(Debug, Clone, Args)]
pub struct TestArgs {
    /// Prompt tokens, as in 128,512; 0: none
    ///
    /// Of prefill runs, one number or several. Every list here may have ranges, as in 1-4, 100-500+100 or 128-512*2.
    #[arg(short = 'p', long, env = "TIERFLOW_N_PROMPT", value_name = "N,…", value_delimiter = ',', default_value = "512", value_parser = parse_count)]
    pub n_prompt: Vec<u32>,
    /// Tokens to generate; 0 for none
    ///
    /// In decode runs, one number or several.
    #[arg(short = 'n', long, env = "TIERFLOW_N_GEN", value_name = "N,…", value_delimiter = ',', default_value = "128", value_parser = parse_count)]
    pub n_gen: Vec<u32>,
    /// Prompt, then generated tokens in one run (-pg)
    ///
    /// May be given several times.
    #[arg(long, env = "TIERFLOW_PG", value_name = "P,G", value_parser = parse_value::<PromptThenGenerate>)]
    pub pg: Vec<PromptThenGenerate>,
    /// Tokens in the context beforehand
    ///
    /// One number or several.
    #[arg(short = 'd', long, env = "TIERFLOW_N_DEPTH", value_name = "N,…", value_delimiter = ',', default_value = "0", value_parser = parse_count)]
    pub n_depth: Vec<u32>,
    /// Runs of each test
    ///
    /// After one that warms up.
    #[arg(short, long, env = "TIERFLOW_REPETITIONS", value_name = "N", default_value_t = 5)]
    #[arg(value_parser = parse_positive)]
    pub repetitions: u32,
}

/// Reads a number of a list whose ranges were expanded already.
fn parse_count(text: &str) -> std::result::Result<u32, String> {
    text.trim().parse().map_err(|_| format!("`{text}` is no number, and no range of at most 1000 as in 1-4, 100-500+100 or 128-512*2"))
}

/// Formats of a bench report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchOutput {
    /// A markdown table, as llama-bench prints.
    Md,
    /// Comma-separated values, every one in quotes, under llama-bench's names.
    Csv,
    /// One JSON object with all rows, under llama-bench's names.
    Json,
    /// A JSON object on a line for each row, as soon as it is measured.
    Jsonl,
}

/// Tokens of a run that reads a prompt and then generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptThenGenerate {
    /// Tokens of the prompt.
    pub n_prompt: u32,
    /// Tokens that are generated; not both are zero.
    pub n_gen: u32,
}

impl FromStr for PromptThenGenerate {
    type Err = Error;

    fn from_str(text: &str) -> Result<PromptThenGenerate> {
        let count = |text: &str| text.trim().parse::<u32>().ok();
        match text.split_once(',').and_then(|(prompt, generate)| count(prompt).zip(count(generate))) {
            Some((n_prompt, n_gen)) if (n_prompt, n_gen) != (0, 0) => Ok(PromptThenGenerate { n_prompt, n_gen }),
            _ => Err(Error::InvalidArgument {
                option: "--pg".into(),
                reason: format!("`{text}` is no pair; write PROMPT,GENERATE in tokens, as in 512,128, of which one may be 0"),
            }),
        }
    }
}

/// Placement options of which `bench` takes lists: all values of each. Other subcommands take one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementLists {
    /// Threads of the host; empty where the number is left to the machine.
    pub threads: Vec<u32>,
    /// Most layers that are resident on GPUs.
    pub n_gpu_layers: Vec<GpuLayers>,
    /// Sequences side by side; empty for one.
    pub n_seqs: Vec<u32>,
    /// Most prompt tokens in one forward; empty where the plan chooses.
    pub batch_size: Vec<u32>,
    /// Most prompt tokens that a kernel sees at once; empty where the plan chooses.
    pub ubatch_size: Vec<u32>,
}

/// Identifiers of those options.
const LISTS: [&str; 5] = ["threads", "n_gpu_layers", "n_seqs", "batch_size", "ubatch_size"];

/// Lets an option of the placement be a list.
fn with_list(arg: Arg) -> Arg {
    if LISTS.contains(&arg.get_id().as_str()) {
        arg.action(ArgAction::Append).value_delimiter(',').allow_hyphen_values(true).value_name("N,…")
    } else {
        arg
    }
}

impl FromArgMatches for PlacementLists {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<PlacementLists, clap::Error> {
        Ok(PlacementLists {
            threads: matches.get_many("threads").unwrap_or_default().copied().collect(),
            n_gpu_layers: matches.get_many("n_gpu_layers").unwrap_or_default().copied().collect(),
            n_seqs: matches.get_many("n_seqs").unwrap_or_default().copied().collect(),
            batch_size: matches.get_many("batch_size").unwrap_or_default().copied().collect(),
            ubatch_size: matches.get_many("ubatch_size").unwrap_or_default().copied().collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = PlacementLists::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The options themselves are [`PlacementArgs`]'.
impl Args for PlacementLists {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct Bench {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn bench(line: &str) -> std::result::Result<BenchArgs, clap::Error> {
        Bench::try_parse_from(["bench", "m"].into_iter().chain(line.split_whitespace())).map(|bench| bench.args)
    }

    #[test]
    fn the_defaults_are_llama_benchs() {
        let args = bench("").unwrap();
        assert_eq!((args.tests.n_prompt, args.tests.n_gen, args.tests.n_depth), (vec![512], vec![128], vec![0]));
        assert_eq!((args.tests.repetitions, args.tests.pg, args.output), (5, vec![], BenchOutput::Md));
        assert_eq!(
            args.lists,
            PlacementLists {
                threads: vec![],
                n_gpu_layers: vec![GpuLayers::Auto],
                n_seqs: vec![],
                batch_size: vec![],
                ubatch_size: vec![]
            }
        );
    }

    #[test]
    fn lists_come_with_commas_and_by_repetition() {
        let args =
            bench("-p 128,512 -p 7 -n 0 --pg 16,4 --pg 0,2 -d 0,64 -t 1,2 --n-gpu-layers -1,99,all --n-seqs 1,8 -b 64,32 --ubatch-size 8")
                .unwrap();
        assert_eq!((args.tests.n_prompt, args.tests.n_gen, args.tests.n_depth), (vec![128, 512, 7], vec![0], vec![0, 64]));
        let pair = |n_prompt, n_gen| PromptThenGenerate { n_prompt, n_gen };
        assert_eq!(args.tests.pg, [pair(16, 4), pair(0, 2)]);
        assert_eq!((args.lists.threads, args.lists.batch_size, args.lists.ubatch_size), (vec![1, 2], vec![64, 32], vec![8]));
        assert_eq!((args.lists.n_seqs, args.placement.n_seqs), (vec![1, 8], Some(1)));
        assert_eq!(args.lists.n_gpu_layers, [GpuLayers::Auto, GpuLayers::Count(99), GpuLayers::All]);
        assert_eq!((args.placement.threads, args.placement.n_gpu_layers), (Some(1), GpuLayers::Auto));
        for line in ["-p 1,x", "--pg 512", "--pg 0,0", "--pg 1,2,3", "-t 1,,2", "-b 0", "-p 9-3", "-o sql", "-r 0"] {
            assert!(bench(line).is_err(), "{line}");
        }
    }
}
