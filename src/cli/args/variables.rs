//! The environment variables of options. Empty ones count as unset, and an error in one names the variable, since the user did not
//! type the option.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory};

use super::Cli;
use crate::cli::words::Options;
use crate::error::Error;

/// `command` without the variables that are empty, as docker compose and scripts leave them.
pub(super) fn without_empty(command: Command) -> Command {
    command
        .mut_args(|arg| match arg.get_env() {
            Some(variable) if std::env::var_os(variable).is_some_and(|value| value.is_empty()) => arg.env(None::<&str>),
            _ => arg,
        })
        .mut_subcommands(without_empty)
}

/// clap's `error` of these arguments, with a variable's name for an option's where the variable is at fault. `command` is as it was
/// before clap built it, since options of a built one do not change.
pub(super) fn blamed(mut error: clap::Error, command: &Command, arguments: &[OsString]) -> clap::Error {
    let verb = arguments.get(1).and_then(|verb| verb.to_str()).unwrap_or_default();
    let named = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(named)) => named.clone(),
        _ => return error,
    };
    let mut built = command.clone();
    built.build();
    let arg = built.find_subcommand(verb).and_then(|subcommand| subcommand.get_arguments().find(|arg| arg.to_string() == named));
    let Some((arg, variable)) = arg.and_then(|arg| Some((arg, arg.get_env()?.to_string_lossy().into_owned()))) else { return error };
    // Without the variable, it is refused only where it was typed.
    let id = arg.get_id().clone();
    let without = command.clone().mut_subcommand(verb, |subcommand| subcommand.mut_arg(id, |arg| arg.env(None::<&str>)));
    let is_typed = match without.try_get_matches_from(arguments) {
        Err(again) => again.get(ContextKind::InvalidArg) == error.get(ContextKind::InvalidArg),
        Ok(_) => false,
    };
    if !is_typed {
        error.insert(ContextKind::InvalidArg, ContextValue::String(variable));
    }
    error
}

/// The `error` of a subcommand whose options are `matches`, with a variable's name for an option's where the value came from there.
pub fn blame_variable(error: Error, verb: &str, matches: &ArgMatches) -> Error {
    let Error::InvalidArgument { option, reason } = error else { return error };
    let command = Cli::command();
    let name = option.in_words(&Options);
    let is_named = |arg: &&Arg| match name.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long),
        None => name == "MODEL" && arg.get_long() == Some("model"),
    };
    let arg = command.find_subcommand(verb).and_then(|subcommand| subcommand.get_arguments().find(is_named));
    let variable = arg.filter(|arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::EnvVariable)).and_then(Arg::get_env);
    match variable {
        Some(variable) => Error::InvalidArgument { option: variable.to_string_lossy().into_owned().into(), reason },
        None => Error::InvalidArgument { option, reason },
    }
}
