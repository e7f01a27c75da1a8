//! `tierflow config`: writes the config file, shows every setting and where it comes from, prints the file's path.
//!
//! The file holds defaults for the options that every command with a model takes. They are handed to clap as defaults, so that
//! the command line, the environment and the file are read by one parser. A setting is what [`Setting::all`] finds among the
//! options; there is no second list of them.

mod ask;
mod edit;
mod file;
mod setting;
mod show;

use std::io::{self, IsTerminal};
use std::path::Path;

use clap::ArgMatches;
use clap::parser::ValueSource;

use crate::cli::args::{ConfigAction, ConfigArgs};
use crate::cli::terminal::{note, print, print_path};
use crate::error::{Error, Result};
use crate::platform::write_with_folder;
use edit::Change;
pub(super) use file::ConfigFile;
use file::Location;
use setting::Setting;

/// Writes, shows or names the config file. `file` is what was read of it, or why it cannot be read; `matches` are those of `args`.
///
/// # Errors
/// A file that cannot be read or written, unless it is to be replaced; [`Error::InvalidArgument`] where there is neither a setting
/// to write nor a terminal to ask on.
pub(super) fn run(args: &ConfigArgs, file: Result<ConfigFile>, matches: &ArgMatches) -> Result<()> {
    match (&args.action, matches.subcommand()) {
        (Some(ConfigAction::Path), _) => print_path(&Location::find()?.path),
        (Some(ConfigAction::Show(show)), Some((_, matches))) => show::run(show, &file?, matches),
        _ => write(args, file, matches),
    }
}

/// Writes what was typed; with `--default` over the defaults in a new file, else over what the file holds.
fn write(args: &ConfigArgs, file: Result<ConfigFile>, matches: &ArgMatches) -> Result<()> {
    let location = Location::find()?;
    let typed = typed_settings(matches)?;
    let (text, changes) = if args.default {
        if !args.yes && holds_something(&location.path) && !may_replace(&location.path)? {
            note(&format!("{} stays as it is\n", location.path.display()));
            return Ok(());
        }
        let defaults = Setting::all().into_iter().filter_map(|setting| {
            let default = setting.default()?;
            Some(Change { setting, value: Some(default) })
        });
        (String::new(), defaults.chain(typed).collect())
    } else if typed.is_empty() {
        let file = file?.require_read()?;
        let answers = answers(&file)?;
        (file.text, answers)
    } else {
        (file?.require_read()?.text, typed)
    };
    write_with_folder(&location.path, edit::apply(&text, &changes)?.as_bytes())?;
    print(&format!("wrote {}\n", location.path.display()))
}

/// Whether a file that would be lost is at `path`; one that cannot be read may be one.
fn holds_something(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Ok(metadata) => metadata.is_file() && metadata.len() > 0,
        Err(reason) => reason.kind() != io::ErrorKind::NotFound,
    }
}

/// Asks whether the file at `path` may be replaced.
fn may_replace(path: &Path) -> Result<bool> {
    let Some((mut input, mut output)) = terminal() else {
        return Err(Error::InvalidArgument {
            option: "--default".into(),
            reason: format!("{} is there already; add --yes to replace it", path.display()),
        });
    };
    ask::yes(&format!("{} is there already. Replace it?", path.display()), &mut input, &mut output)
}

/// Where questions are asked and answered, if the user sits there.
fn terminal() -> Option<(io::StdinLock<'static>, io::StderrLock<'static>)> {
    let (stdin, stderr) = (io::stdin(), io::stderr());
    (stdin.is_terminal() && stderr.is_terminal()).then(|| (stdin.lock(), stderr.lock()))
}

/// The settings on the command line.
fn typed_settings(matches: &ArgMatches) -> Result<Vec<Change>> {
    let is_typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    if let Some(name) = setting::hidden_options().into_iter().find(|(id, _)| is_typed(id)).map(|(_, name)| name) {
        return Err(Error::InvalidArgument {
            option: format!("--{name}").into(),
            reason: "is no setting of the config file; give it where it is needed".into(),
        });
    }
    let typed = Setting::all().into_iter().filter(|setting| is_typed(setting.id()));
    typed
        .map(|setting| {
            let value = setting.value_in(matches).ok_or_else(|| Error::InvalidArgument {
                option: format!("--{}", setting.name()).into(),
                reason: "is not UTF-8, as the config file must be; choose another name".into(),
            })?;
            Ok(Change { setting, value: Some(value) })
        })
        .collect()
}

/// What the user answers on the terminal.
fn answers(file: &ConfigFile) -> Result<Vec<Change>> {
    let Some((mut input, mut output)) = terminal() else {
        return Err(Error::InvalidArgument {
            option: "tierflow config".into(),
            reason: "there is no terminal to ask on; give settings (--device gpu:0), or --default to write the defaults".into(),
        });
    };
    ask::ask(&ask::questions(ask::devices()), file, &mut input, &mut output)
}
