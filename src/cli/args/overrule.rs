//! Where several options set the same thing, the one on the command line wins over another one's environment variable, and both
//! win over the config file.

use std::cmp::Ordering;
use std::ffi::OsStr;

use clap::ArgMatches;
use clap::error::ErrorKind;
use clap::parser::ValueSource;

use super::{Command, ModelArgs, PlacementArgs, RunArgs};
use crate::cli::familiar::names_a_model;
use crate::hub::looks_like_model_ref;

/// Drops from `command` what a stronger source names in another way.
///
/// # Errors
/// Where one source names a plan and what shapes another one.
pub(super) fn drop_overruled(command: &mut Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    let (model, placement) = match command {
        Command::Run(args) => {
            overrule_run(args, matches);
            return overrule_placement(&mut args.placement, matches);
        }
        Command::Serve(args) => (&mut args.model, Some(&mut args.placement)),
        Command::Batch(args) => (&mut args.model, Some(&mut args.placement)),
        Command::Plan(args) => (&mut args.model, Some(&mut args.placement)),
        Command::Bench(args) => (&mut args.model, Some(&mut args.placement)),
        Command::Embed(args) => (&mut args.model, Some(&mut args.placement)),
        Command::Logits(args) => (&mut args.model, Some(&mut args.placement)),
        Command::Inspect(args) => (&mut args.model, None),
        Command::Tokenize(args) => (&mut args.model, None),
        Command::Train(args) => (&mut args.model, None),
        Command::Convert(args) => (&mut args.model, None),
        Command::Launch(_)
        | Command::Devices(_)
        | Command::Doctor(_)
        | Command::Pull(_)
        | Command::Ls(_)
        | Command::Config(_)
        | Command::Completions(_) => return Ok(()),
    };
    overrule_model(model, matches, args_name_model(matches));
    placement.map_or(Ok(()), |placement| overrule_placement(placement, matches))
}

fn overrule_placement(args: &mut PlacementArgs, matches: &ArgMatches) -> Result<(), clap::Error> {
    overrule_kv_dtype(args, matches);
    overrule_plan(args, matches)
}

/// The options that shape a plan, all of which a plan from a file has settled.
const SHAPING: [&str; 22] = [
    "device",
    "device_map",
    "no_split",
    "strict",
    "fit",
    "n_seqs",
    "ctx_size",
    "kv_size",
    "n_gpu_layers",
    "batch_size",
    "ubatch_size",
    "kv_dtype",
    "cache_type_k",
    "cache_type_v",
    "lookahead",
    "slots",
    "upload",
    "expert_cache",
    "expert_misses",
    "n_cpu_moe",
    "cpu_moe",
    "override_tensor",
];

/// A plan from a file wins over options that shape a plan if those come from a weaker source, and loses to those from a stronger one.
fn overrule_plan(args: &mut PlacementArgs, matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some(of_plan) = matches.value_source("plan") else { return Ok(()) };
    let given = |id: &&str| matches.value_source(id).is_some_and(|source| source >= of_plan);
    let Some(shaping) = SHAPING.into_iter().filter(given).max_by_key(|id| matches.value_source(id)) else { return Ok(()) };
    if matches.value_source(shaping) > Some(of_plan) {
        args.plan = None;
        return Ok(());
    }
    let name = shaping.replace('_', "-");
    let reason = format!("--plan cannot be used with --{name}, which the plan has settled; leave out one of them");
    Err(clap::Error::raw(ErrorKind::ArgumentConflict, reason))
}

/// llama.cpp's options for keys and for values count, unless `--kv-dtype` comes from a stronger source.
fn overrule_kv_dtype(args: &mut PlacementArgs, matches: &ArgMatches) {
    let of_both = matches.value_source("kv_dtype");
    for (id, value) in [("cache_type_k", &mut args.cache_type_k), ("cache_type_v", &mut args.cache_type_v)] {
        if matches.value_source(id) < of_both {
            *value = None;
        }
    }
}

fn args_name_model(matches: &ArgMatches) -> bool {
    ["model", "model_flag", "hf_repo"].iter().any(|id| is_from(matches, id, ValueSource::CommandLine))
}

/// Words beside a model that the environment names are the prompt, unless the first can only be a model, or a prompt stands beside it.
fn overrule_run(args: &mut RunArgs, matches: &ArgMatches) {
    let typed = |id| is_from(matches, id, ValueSource::CommandLine);
    let flag_names_model = typed("model_flag") || typed("hf_repo");
    let prompt_is_flag = typed("prompt") || typed("file");
    let first = args.model.model.as_deref().filter(|_| !flag_names_model);
    let is_model = |word: &OsStr| {
        let is_on_hub = word.to_str().is_some_and(looks_like_model_ref);
        names_a_model(word) || prompt_is_flag || (!args.prompt_words.is_empty() && is_on_hub)
    };
    let is_named = flag_names_model || first.is_some_and(is_model);
    overrule_model(&mut args.model, matches, is_named);
    match matches.value_source("think").cmp(&matches.value_source("no_think")) {
        Ordering::Less => args.generation.think = args.generation.think.filter(|_| !args.generation.no_think),
        Ordering::Equal => {}
        Ordering::Greater => args.generation.no_think &= args.generation.think.is_none(),
    }
    if !args.words().1.is_empty() || prompt_is_flag {
        let generation = &mut args.generation;
        drop_from_env(&mut generation.prompt, matches, "prompt");
        drop_from_env(&mut generation.file, matches, "file");
    }
}

fn overrule_model(args: &mut ModelArgs, matches: &ArgMatches, is_typed: bool) {
    if is_typed {
        drop_from_env(&mut args.model_flag, matches, "model_flag");
        drop_from_env(&mut args.hf_repo, matches, "hf_repo");
    }
}

fn drop_from_env<T>(value: &mut Option<T>, matches: &ArgMatches, id: &str) {
    if is_from(matches, id, ValueSource::EnvVariable) {
        *value = None;
    }
}

fn is_from(matches: &ArgMatches, id: &str, source: ValueSource) -> bool {
    matches.value_source(id) == Some(source)
}
