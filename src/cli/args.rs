//! The arguments of every subcommand, as clap reads them. Each flag has an environment variable: `--ctx-size` has
//! `TIERFLOW_CTX_SIZE`. Flags and defaults are llama.cpp's where it has them, and a config file may replace the defaults.
//! Defines what can be written, not what it does.

mod advice;
mod batch;
mod bench;
mod cache_files;
mod chat;
mod config;
mod convert;
mod drafts;
mod embed;
mod generation;
mod help;
mod lora;
mod model;
mod override_tensor;
mod overrule;
mod planning;
mod sampling;
mod serve;
mod tokenize;
mod train;
mod variables;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::FalseyValueParser;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::cli::familiar;
use crate::cli::terminal::{Stream, note_styled, wrapped};
use crate::cli::words::text_of;
use crate::error::Error;
pub use batch::BatchArgs;
pub use bench::{BenchArgs, BenchOutput, PlacementLists, TestArgs};
pub use chat::ChatArgs;
pub use config::{ConfigAction, ConfigArgs, ConfigShowArgs};
pub use convert::ConvertArgs;
pub use drafts::{DraftArgs, SpecTypeArg};
pub use embed::EmbedArgs;
pub use generation::{GenerationArgs, RunArgs, Thinking};
pub use lora::{LoraArg, LoraArgs};
pub use model::{CacheArgs, GpuLayers, IoArg, KernelsArg, ModelArgs, ModelSource, PlacementArgs, UploadArg};
pub use override_tensor::OverrideTensors;
pub use planning::{DeviceMapArg, MixArg, NoSplitArg, ObjectiveArg};
pub use sampling::SamplingArgs;
pub use serve::{Key, ServeArgs};
pub use tokenize::TokenizeArgs;
pub use train::{TrainArgs, TrainShapeArgs, WrittenArg};
pub use variables::blame_variable;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "tierflow", version, about, max_term_width = 80, arg_required_else_help = true)]
#[command(args_override_self = true, disable_help_subcommand = true)]
// Without clap's empty lines below `about` and the usage, the commands fit a screen.
#[command(help_template = "{about-with-newline}{usage-heading} {usage}\n{all-args}{after-help}")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer one prompt, or chat
    #[command(visible_alias = "chat")]
    Run(Box<RunArgs>),
    /// Serve a model to clients of OpenAI, Anthropic and Ollama
    #[command(alias = "server")]
    Serve(Box<ServeArgs>),
    /// Answer the requests of a file into another one
    Batch(Box<BatchArgs>),
    /// Show where every layer would live; loads nothing
    Plan(PlanArgs),
    /// List adapters, host memory and disk
    Devices(DevicesArgs),
    /// Show what a model is made of and what it needs
    #[command(visible_alias = "show")]
    Inspect(InspectArgs),
    /// Measure prefill and decode rates
    Bench(BenchArgs),
    /// Show the tokens of a text
    #[command(hide = true)]
    Tokenize(TokenizeArgs),
    /// Make vectors of texts
    #[command(alias = "embedding")]
    Embed(EmbedArgs),
    /// Teach a model the records of a file: an adapter beside it, or itself
    #[command(alias = "finetune")]
    Train(Box<TrainArgs>),
    /// Write a model as a GGUF file, quantised or not
    #[command(alias = "quantize")]
    Convert(ConvertArgs),
    /// Compute the logits of given tokens, for checks
    #[command(hide = true)]
    Logits(LogitsArgs),
    /// Run a Python script over one worker or several
    Launch(LaunchArgs),
    /// Print a report to paste into a bug
    Doctor(DoctorArgs),
    /// Fetch a model from a Hugging Face hub into its standard cache
    #[command(alias = "get", alias = "download")]
    Pull(PullArgs),
    /// List the models in the cache
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Write the defaults of all commands, or show them
    Config(Box<ConfigArgs>),
    /// Print a completion script for a shell
    // Once in a shell's life; the others fill the screen.
    #[command(hide = true)]
    Completions(CompletionsArgs),
}

/// A command line that was read.
pub struct Read {
    /// What to do.
    pub command: Command,
    /// The subcommand's name.
    pub verb: String,
    /// Its options and where their values come from.
    pub matches: ArgMatches,
    /// Notes for the user on how the command line was read, a line each.
    pub notes: Vec<String>,
}

impl Cli {
    /// Reads the arguments, program name first; `defaults` take the place of the program's own, by an option's long name.
    /// Of an option that is given several times, the last counts, as in llama.cpp.
    /// Prints and ends the process on bad usage (2) and `--help` (0).
    pub fn read(arguments: impl IntoIterator<Item = OsString>, defaults: &BTreeMap<String, OsString>) -> Read {
        Cli::try_read(arguments, defaults).unwrap_or_else(|error| end(&error))
    }

    fn try_read(arguments: impl IntoIterator<Item = OsString>, defaults: &BTreeMap<String, OsString>) -> Result<Read, clap::Error> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let command = with_defaults(with_switches_from_env(Cli::command()), defaults);
        let command = variables::without_empty(help::with_help(command, help::Length::wanted(&arguments)));
        let rewritten = familiar::rewrite(arguments, &command)?;
        let command = rewritten.without_revoked(command);
        let familiar::Rewritten { arguments, notes, .. } = rewritten;
        let matches = command.clone().try_get_matches_from(&arguments);
        let mut matches =
            matches.map_err(|error| advice::with_apt_advice(variables::blamed(error, &command, &arguments), &command, &arguments))?;
        let mut subcommand =
            command.find_subcommand(matches.subcommand_name().unwrap_or_default()).map_or(command.clone(), familiar::named);
        let mut cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut subcommand))?;
        let (verb, matches) = matches.remove_subcommand().unwrap_or_default();
        overrule::drop_overruled(&mut cli.command, &matches).map_err(|error| error.format(&mut subcommand))?;
        Ok(Read { command: cli.command, verb, matches, notes })
    }
}

/// Prints a help on stdout or an error on stderr, on a terminal with lines that fit it, and ends the process.
fn end(error: &clap::Error) -> ! {
    if error.use_stderr() {
        let text = error.render();
        let text = if Stream::Stderr.has_colour() { text.ansi().to_string() } else { text.to_string() };
        note_styled(&wrapped(&text, Stream::Stderr.width()));
        std::process::exit(error.exit_code());
    }
    error.exit()
}

/// Gives the options that `defaults` name these defaults, in every subcommand that has them.
pub fn with_defaults(command: clap::Command, defaults: &BTreeMap<String, OsString>) -> clap::Command {
    let default_of = |arg: &clap::Arg| arg.get_long().and_then(|long| defaults.get(long)).cloned();
    command
        .mut_args(|arg| match default_of(&arg) {
            Some(default) => arg.default_value(default),
            None => arg,
        })
        .mut_subcommands(|command| with_defaults(command, defaults))
}

/// Lets every switch be set from the environment by any word but an empty one, `0`, `no`, `off` and `false`.
pub fn with_switches_from_env(command: clap::Command) -> clap::Command {
    let is_switch = |arg: &clap::Arg| matches!(arg.get_action(), clap::ArgAction::SetTrue);
    command
        .mut_args(|arg| if is_switch(&arg) { arg.value_parser(FalseyValueParser::new()) } else { arg })
        .mut_subcommands(with_switches_from_env)
}

/// `tierflow pull`
#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// Model on the hub; of several .gguf files, name one or its quantisation
    #[arg(value_name = "ORG/NAME[:QUANT|:FILE]")]
    pub model: String,
    /// Branch, tag or commit
    #[arg(long, env = "TIERFLOW_REVISION", default_value = "main")]
    pub revision: String,
    /// Fetch every file again, whatever the cache has
    #[arg(long, env = "TIERFLOW_FORCE")]
    pub force: bool,
    /// No progress bar
    #[arg(short, long, env = "TIERFLOW_QUIET")]
    pub quiet: bool,
    /// Print the result as JSON
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
}

/// `tierflow ls`
#[derive(Debug, Clone, Args)]
pub struct LsArgs {
    /// Print the list as JSON
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
}

/// `tierflow completions`
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// Shell to write for
    pub shell: clap_complete::Shell,
}

/// `tierflow devices`
#[derive(Debug, Clone, Args)]
pub struct DevicesArgs {
    /// Measure upload, copy, compute and disk rates (takes a few seconds) and keep them for later plans
    #[arg(long, env = "TIERFLOW_MEASURE")]
    pub measure: bool,
    /// Also search for the fastest kernels of each data type (takes up to a minute for each adapter)
    #[arg(long, env = "TIERFLOW_TUNE")]
    pub tune: bool,
    /// Show the rates of each data type
    #[arg(short, long, env = "TIERFLOW_VERBOSE")]
    pub verbose: bool,
    /// Print the devices as JSON
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
    /// Where measured rates are kept.
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// `tierflow launch`, whose arguments the Python package reads
#[derive(Debug, Clone, Args)]
pub struct LaunchArgs {
    /// Options of `accelerate launch`, the script, and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// `tierflow doctor`
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Print the report as JSON
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
    /// Where measured rates are kept.
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// `tierflow inspect`
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Print the report as JSON
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
}

/// `tierflow plan`
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where it goes.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// Plan for the machine that FILE describes
    ///
    /// Instead of this one; `tierflow devices --json` writes such a file.
    #[arg(long, env = "TIERFLOW_DEVICES", value_name = "FILE")]
    pub devices: Option<PathBuf>,
    /// Write where each module is stored as a device map that Accelerate and transformers read
    #[arg(long, env = "TIERFLOW_EXPORT_DEVICE_MAP", value_name = "FILE.json")]
    pub export_device_map: Option<PathBuf>,
    /// Write the plan to a file for --plan
    #[arg(long, env = "TIERFLOW_EXPORT_PLAN", value_name = "FILE.json")]
    pub export_plan: Option<PathBuf>,
    /// Print the steps of one forward too
    #[arg(long, env = "TIERFLOW_SCHEDULE")]
    pub schedule: bool,
    /// Plan what `tierflow train` would take, instead of answers
    #[arg(long, env = "TIERFLOW_TRAIN", conflicts_with_all = ["export_device_map", "export_plan", "schedule"])]
    pub train: bool,
    /// Of what sizes.
    #[command(flatten)]
    pub shape: TrainShapeArgs,
    /// Print plan and schedule as JSON
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
}

/// `tierflow logits`
#[derive(Debug, Clone, Args)]
pub struct LogitsArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Token ids of the prompt
    #[arg(long, env = "TIERFLOW_TOKENS", value_name = "ID,ID,…", value_delimiter = ',', required = true, value_parser = parse_token)]
    pub tokens: Vec<u32>,
    /// Where it goes.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// Logits of every position, not only of the last
    #[arg(long, env = "TIERFLOW_ALL")]
    pub all: bool,
    /// Only the K highest logits of a position
    #[arg(long, env = "TIERFLOW_TOP", value_name = "K")]
    pub top: Option<usize>,
    /// Print the logits as JSON
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
    /// Write the logits to a file of safetensors
    ///
    /// As a tensor `logits` [n_tokens, vocab_size] in F32.
    #[arg(long, env = "TIERFLOW_OUT", value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Reads a whole number, which may be negative.
fn parse_whole(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| format!("`{text}` is no whole number"))
}

/// Reads a whole number from `least` on; `or` says what else may be given.
fn parse_from(least: u32, or: &str, text: &str) -> Result<u32, String> {
    let number = text.parse::<i128>().ok();
    if number.is_some_and(|number| number > u32::MAX.into()) {
        return Err(format!("the largest number is {}", u32::MAX));
    }
    let read = number.and_then(|number| u32::try_from(number).ok()).filter(|number| *number >= least);
    read.ok_or_else(|| format!("give a whole number from {least} on{or}"))
}

/// Reads a whole number that is at least 1.
fn parse_positive(text: &str) -> Result<u32, String> {
    parse_from(1, "", text)
}

/// Reads the id of a token.
fn parse_token(text: &str) -> Result<u32, String> {
    parse_from(0, "", text.trim()).map_err(|reason| format!("no token id: {reason}"))
}

/// Reads a whole number; llama.cpp's -1 is the default, which is 0 here.
fn parse_or_default(text: &str) -> Result<u32, String> {
    from_or_default(0, text)
}

/// As [`parse_or_default`], for what is at least 1.
fn parse_positive_or_default(text: &str) -> Result<u32, String> {
    from_or_default(1, text)
}

fn from_or_default(least: u32, text: &str) -> Result<u32, String> {
    if text == "-1" { Ok(0) } else { parse_from(least, ", or -1 for the default", text) }
}

/// Reads a value by its own `FromStr`; clap names the option, so the error's own name for it is left out.
fn parse_value<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| match error {
        Error::InvalidArgument { reason, .. } => reason,
        other => text_of(&other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::KvDType;

    fn read(line: &str) -> Result<Command, clap::Error> {
        read_with(&[], line)
    }

    fn read_with(defaults: &[(&str, &str)], line: &str) -> Result<Command, clap::Error> {
        let arguments = ["tierflow"].into_iter().chain(line.split_whitespace()).map(OsString::from);
        let defaults = defaults.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        Cli::try_read(arguments, &defaults).map(|read| read.command)
    }

    fn run(line: &str) -> RunArgs {
        match read(&format!("run {line}")) {
            Ok(Command::Run(args)) => *args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_surface_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_twin_in_the_environment() {
        for command in Cli::command().get_subcommands() {
            for arg in command.get_arguments() {
                let Some(long) = arg.get_long().filter(|long| *long != "help") else { continue };
                let twin = match long {
                    // What is written is what is typed.
                    "default" | "yes" => continue,
                    "cache-dir" => "TIERFLOW_CACHE".to_owned(),
                    _ => format!("TIERFLOW_{}", long.to_uppercase().replace('-', "_")),
                };
                let env = arg.get_env().map(|env| env.to_string_lossy().into_owned());
                assert_eq!(env, Some(twin), "{} --{long}", command.get_name());
            }
        }
    }

    #[test]
    fn a_llama_cli_line_is_read() {
        let args = run(
            "-m model.gguf -ngl 20 -c 4096 -n -1 -s -1 --temp 0 -fa on -ctk f16 -ctv f16 -ub 256 -b 512 -t 4 -p hi --jinja --mlock --no-warmup",
        );
        assert_eq!(args.model.source().unwrap(), ModelSource::Named("model.gguf".into()));
        assert_eq!(args.placement.n_gpu_layers, GpuLayers::Count(20));
        assert_eq!((args.placement.ctx_size, args.generation.predict, args.generation.seed), (4096, -1, -1));
        assert_eq!((args.placement.ubatch_size, args.placement.batch_size, args.placement.threads), (Some(256), Some(512), Some(4)));
        assert_eq!(args.placement.kv_dtype(), KvDType::F16);
        assert_eq!((args.generation.sampling.temp, args.generation.prompt.as_deref()), (Some(0.0), Some("hi")));
    }

    #[test]
    fn negative_numbers_and_texts_with_dashes_are_values() {
        let args = run("m -n -1 -s -1 -p -ngl --stop --- --stop END");
        assert_eq!((args.generation.predict, args.generation.seed), (-1, -1));
        assert_eq!(args.generation.prompt.as_deref(), Some("-ngl"));
        assert_eq!(args.generation.stop, ["---", "END"]);
        assert!(read("run m -n -x").is_err());
        let reason = read("run m -n many").unwrap_err().to_string();
        assert!(reason.contains("`many` is no whole number"), "{reason}");
    }

    #[test]
    fn a_model_is_named_in_one_way() {
        assert_eq!(run("model").model.source().unwrap(), ModelSource::Named("model".into()));
        let hub = run("-hf org/name:Q4_0 -p x").model.source().unwrap();
        assert!(matches!(hub, ModelSource::Hub(model) if model.wanted.as_deref() == Some("Q4_0")));
        assert_eq!(run("").model.source().unwrap_err().exit_code(), 2);
        let Ok(Command::Plan(twice)) = read("plan a -m b") else { panic!("clap itself takes both") };
        assert_eq!(twice.model.source().unwrap_err().exit_code(), 2);
    }

    #[test]
    fn words_after_the_model_are_the_prompt() {
        let words = |line: &str| {
            let args = run(line);
            let (model, words) = args.words();
            let text = |word: &std::ffi::OsStr| word.to_str().unwrap().to_owned();
            (model.map(text), words.into_iter().map(text).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(words("m hello"), (Some("m".into()), "hello".into()));
        assert_eq!(words("m why is -n 3 the sky blue"), (Some("m".into()), "why is the sky blue".into()));
        assert_eq!(words("-m m hello there"), (None, "hello there".into()));
        assert_eq!(run("-m m hello").source().unwrap(), ModelSource::Named("m".into()));
        assert!(run("b.gguf hello -m m").source().unwrap_err().to_string().contains("named twice"));
    }

    #[test]
    fn the_last_of_a_repeated_option_counts() {
        let args = run("m -c 128 -c 256 --max-memory cpu=1GiB --max-memory gpu:0=2GiB -n 4 --n-predict 8 --raw --raw --strict --strict=no");
        assert_eq!((args.placement.ctx_size, args.generation.predict, args.generation.raw), (256, 8, true));
        assert_eq!((args.placement.max_memory.unwrap().to_string(), args.placement.strict), ("gpu:0=2GiB".into(), false));
        assert_eq!(run("-m a -m b").source().unwrap(), ModelSource::Named("b".into()));
        assert_eq!(run("m --stop a --stop b").generation.stop, ["a", "b"], "what may be given several times adds up");
    }

    #[test]
    fn minus_one_is_the_default_where_llama_cpp_has_it_so() {
        let args = run("m -ngl -1 -c -1 --top-k -1 -n -1 -s -1 -t -1 -np -1 --repeat-last-n -1");
        assert_eq!((args.placement.n_gpu_layers, args.placement.ctx_size), (GpuLayers::Auto, 0));
        assert_eq!((args.placement.threads, args.placement.n_seqs, args.generation.sampling.top_k), (Some(0), Some(0), Some(0)));
        assert_eq!(run("m -ngl -2").placement.n_gpu_layers, GpuLayers::All);
        for line in ["-c -2", "-ngl -3", "--top-k -2", "-t x", "-np 0", "-b -1"] {
            assert!(read(&format!("run m {line}")).is_err(), "{line}");
        }
    }

    #[test]
    fn other_programs_names_of_options_are_read() {
        let args =
            run("m --gpu-layers 3 --temperature 0.5 --system-prompt s --max-tokens 7 --prompt-file f --top_k 5 --ctx_size=64 -r END");
        assert_eq!(
            (args.placement.n_gpu_layers, args.generation.sampling.temp, args.generation.predict),
            (GpuLayers::Count(3), Some(0.5), 7)
        );
        assert_eq!((args.generation.system.as_deref(), args.generation.file), (Some("s"), Some("f".into())));
        assert_eq!((args.generation.sampling.top_k, args.placement.ctx_size, args.generation.stop), (Some(5), 64, vec!["END".to_owned()]));
        assert_eq!(run("m --system-prompt-file f --no-mmap").placement.io, Some(IoArg::Pread));
    }

    #[test]
    fn budgets_devices_and_sizes_are_read_by_their_own_rules() {
        let args = run("m --max-memory gpu:0=40MiB,cpu=64MiB --device gpu:1 --limit-buffer 16MiB -ngl all");
        assert_eq!(args.placement.max_memory.unwrap().to_string(), "gpu:0=40MiB,cpu=64MiB");
        assert_eq!(args.placement.device.to_string(), "gpu:1");
        assert_eq!((args.placement.limit_buffer, args.placement.n_gpu_layers), (Some(crate::units::Bytes::mib(16)), GpuLayers::All));
        let error = read("run m --max-memory tpu=1GiB").unwrap_err().to_string();
        assert!(error.contains("`tpu` is no device") && error.matches("--max-memory").count() <= 2, "{error}");
    }

    #[test]
    fn tokens_are_a_list() {
        let Ok(Command::Logits(args)) = read("logits m --tokens 1,2,3 --top 5") else { panic!("refused") };
        assert_eq!((args.tokens, args.top), (vec![1, 2, 3], Some(5)));
        assert!(read("logits m --tokens 1,-2").is_err());
        assert!(read("logits m").is_err());
    }

    #[test]
    fn the_options_of_planning_are_read() {
        let args =
            run("m --objective throughput --device-map maps/a.json --strict --mix 64:8 -np 4 --virtual-gpus 8 --no-measure").placement;
        assert_eq!((args.objective, args.device_map), (ObjectiveArg::Throughput, DeviceMapArg::File("maps/a.json".into())));
        assert_eq!((args.mix, args.n_seqs, args.virtual_gpus), (MixArg { n_prompt: 64, n_generate: 8 }, Some(4), 8));
        assert_eq!((args.strict, args.fit, args.no_measure), (true, false, true));
        let defaults = run("m --parallel 2").placement;
        assert_eq!((defaults.objective, defaults.device_map, defaults.mix), Default::default());
        assert_eq!((defaults.n_seqs, defaults.virtual_gpus, defaults.strict), (Some(2), 1, false));
        let Ok(Command::Plan(plan)) = read("plan m --devices d.json --export-device-map out.json") else { panic!("refused") };
        assert_eq!((plan.devices, plan.export_device_map), (Some("d.json".into()), Some("out.json".into())));
        for line in [
            "--virtual-gpus 0",
            "--virtual-gpus 9",
            "-np 0",
            "--mix 0:0",
            "--objective fast",
            "--device-map map",
            "--no-split ,",
            "--devices d.json",
        ] {
            assert!(read(&format!("run m {line}")).is_err(), "{line}");
        }
    }

    #[test]
    fn defaults_are_replaced_and_lose_to_what_is_typed() {
        let defaults = [("device", "cpu"), ("max-memory", "cpu=1GiB"), ("strict", "true"), ("kv-dtype", "f16"), ("slots", "3")];
        let placement = |line: &str| match read_with(&defaults, &format!("plan m {line}")) {
            Ok(Command::Plan(args)) => args.placement,
            other => panic!("{line}: {other:?}"),
        };
        let args = placement("");
        assert_eq!((args.device.to_string(), args.strict, args.slots), ("cpu".into(), true, Some(3)));
        assert_eq!(args.max_memory.unwrap().to_string(), "cpu=1GiB");
        let args = placement("--device gpu:1 --strict=no -ctk f32 -ctv f32");
        assert_eq!((args.device.to_string(), args.strict), ("gpu:1".into(), false));
        assert_eq!(args.kv_dtype(), KvDType::F32);
        assert_eq!(placement("").kv_dtype(), KvDType::F16);
        // One for both, one for each, and one for one of them.
        for (line, expected) in [
            ("--kv-dtype q8_0", "q8_0"),
            ("--kv-dtype q8_0/q4_0", "q8_0/q4_0"),
            ("-ctk q8_0", "q8_0/f16"),
            ("-ctv q4_0", "f16/q4_0"),
            ("-ctk f32 -ctv q8_0", "f32/q8_0"),
            ("--kv-dtype q4_0 -ctk f16", "f16/q4_0"),
        ] {
            assert_eq!(placement(line).kv_dtype().to_string(), expected, "{line}");
        }
        for line in ["--kv-dtype q4", "--kv-dtype f16/", "--kv-dtype f16/f16/f16", "-ctk f16/f16", "-ctv F16"] {
            assert!(read(&format!("plan m {line}")).is_err(), "{line}");
        }
    }
}
