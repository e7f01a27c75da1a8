//! The tips at the end of clap's errors, kept only where they help: a similar name where it is close, and `--` before a text.

use std::ffi::OsString;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::similar::nearest;

/// clap's `error` of these arguments, with other tips where its own mislead: names that clap finds similar may have little in common.
pub(super) fn with_apt_advice(mut error: clap::Error, command: &Command, arguments: &[OsString]) -> clap::Error {
    let verb = arguments.get(1).and_then(|verb| verb.to_str()).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let flag = text(&error, ContextKind::InvalidArg).filter(|flag| flag.starts_with('-'));
            if let (Some(flag), Some(subcommand)) = (flag, command.find_subcommand(verb)) {
                of_flag(&mut error, &flag, subcommand);
            }
        }
        ErrorKind::InvalidSubcommand => {
            // Not for what follows a subcommand.
            if let Some(word) = text(&error, ContextKind::InvalidSubcommand).filter(|word| word == verb) {
                of_verb(&mut error, &word, command);
            }
        }
        _ => {}
    }
    error
}

fn text(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    }
}

fn of_flag(error: &mut clap::Error, flag: &str, subcommand: &Command) {
    // Several words are a text that begins with a dash.
    if !flag.contains(char::is_whitespace) {
        error.remove(ContextKind::Suggested);
    }
    error.remove(ContextKind::SuggestedArg);
    let Some(name) = flag.strip_prefix("--").map(|name| name.replace('_', "-")) else { return };
    let names: Vec<&str> = subcommand.get_arguments().filter_map(|arg| arg.get_long_and_visible_aliases()).flatten().collect();
    if let Some(near) = nearest(&name, names) {
        error.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{near}")));
    }
}

/// Says how a model is run where a word resembles no subcommand.
fn of_verb(error: &mut clap::Error, word: &str, command: &Command) {
    error.remove(ContextKind::SuggestedSubcommand);
    let tip = match nearest(word, command.get_subcommands().map(Command::get_name)) {
        Some(name) => format!("a similar subcommand exists: '{name}'"),
        None => format!("a model is run by: tierflow run {word}"),
    };
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
}
