//! Where a model or a prompt can be named in several ways, the one on the command line wins over another's twin in the environment.

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::{Command, ModelArgs, RunArgs};

/// Drops from `command` what was set in the environment and is named on the command line in another way.
pub(super) fn drop_overruled(command: &mut Command, matches: &ArgMatches) {
    match command {
        Command::Run(args) => overrule_run(args, matches),
        Command::Plan(args) => overrule_model(&mut args.model, matches, args_name_model(matches)),
        Command::Inspect(args) => overrule_model(&mut args.model, matches, args_name_model(matches)),
        Command::Bench(args) => overrule_model(&mut args.model, matches, args_name_model(matches)),
        Command::Logits(args) => overrule_model(&mut args.model, matches, args_name_model(matches)),
        Command::Devices(_) | Command::Doctor(_) | Command::Pull(_) | Command::Ls(_) | Command::Completions(_) => {}
    }
}

fn args_name_model(matches: &ArgMatches) -> bool {
    ["model", "model_flag", "hf_repo"].iter().any(|id| is_from(matches, id, ValueSource::CommandLine))
}

/// With one word and no prompt beside it, the word is the prompt of the model that the environment names.
fn overrule_run(args: &mut RunArgs, matches: &ArgMatches) {
    let typed = |id| is_from(matches, id, ValueSource::CommandLine);
    let flag_names_model = typed("model_flag") || typed("hf_repo");
    let prompt_is_flag = typed("prompt") || typed("file");
    let word_is_model = typed("model") && (typed("prompt_word") || prompt_is_flag);
    overrule_model(&mut args.model, matches, flag_names_model || word_is_model);
    let word_is_prompt = typed("prompt_word") || (args.words().1.is_some() && typed("model"));
    if word_is_prompt || prompt_is_flag {
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
