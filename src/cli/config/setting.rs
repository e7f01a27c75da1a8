//! One setting of the config file: an option that every command with a model takes. Its name, meaning, allowed values and default are read
//! from clap's description of the option.

use std::any::TypeId;
use std::error::Error as _;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgMatches, Args, Command};

use crate::cli::args::{DeviceMapArg, GpuLayers, PlacementArgs};
use crate::device::MaxMemory;

/// A setting.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    arg: Arg,
}

/// What a setting may be in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A text.
    Text,
    /// A whole number.
    Number,
    /// A whole number or a word.
    NumberOrText,
    /// `true` or `false`.
    Switch,
    /// A table of devices and sizes, or a text.
    Budgets,
    /// The path of a folder.
    Folder,
    /// A word, or the path of a file.
    TextOrFile,
}

impl Kind {
    /// What may be written, in words for the user.
    pub(super) fn allowed(self) -> &'static str {
        match self {
            Kind::Text => "a text in quotes",
            Kind::Number => "a whole number",
            Kind::NumberOrText => "a whole number, or a text in quotes",
            Kind::Switch => "true or false",
            Kind::Budgets => "a table as { \"gpu:0\" = \"6GiB\", cpu = \"12GiB\" }",
            Kind::Folder => "a folder's path in quotes",
            Kind::TextOrFile => "a text or a file's path in quotes",
        }
    }
}

impl Setting {
    /// Every setting, in the order of `--help`.
    pub(super) fn all() -> Vec<Setting> {
        // A plan, a profile of experts and adapters are for one model, and no defaults.
        let is_of_one_model = |arg: &Arg| ["plan", "expert_profile", "lora"].contains(&arg.get_id().as_str());
        options().filter(|arg| !arg.is_hide_set() && !is_of_one_model(arg)).map(|arg| Setting { arg }).collect()
    }

    /// Its key in the file, which is the option's long name.
    pub(super) fn name(&self) -> &str {
        self.arg.get_long().unwrap_or_default()
    }

    /// clap's name for it.
    pub(super) fn id(&self) -> &str {
        self.arg.get_id().as_str()
    }

    /// Its environment variable.
    pub(super) fn variable(&self) -> String {
        self.arg.get_env().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Its meaning, and in a line each the words that it may be where there are few.
    pub(super) fn help(&self) -> String {
        let help = self.arg.get_long_help().or(self.arg.get_help()).map(ToString::to_string).unwrap_or_default();
        let mut help = help.replace("\n\n", ". ");
        if self.kind() == Kind::Text {
            for word in self.arg.get_possible_values() {
                let meaning = word.get_help().map(ToString::to_string).unwrap_or_default();
                help.push_str(&format!("\n  {}: {meaning}", word.get_name()));
            }
        }
        help
    }

    /// Its default value.
    pub(super) fn default(&self) -> Option<String> {
        self.arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned())
    }

    /// What it may be in the file.
    pub(super) fn kind(&self) -> Kind {
        let value = self.arg.get_value_parser().type_id();
        let kinds = [
            (TypeId::of::<u32>(), Kind::Number),
            (TypeId::of::<GpuLayers>(), Kind::NumberOrText),
            (TypeId::of::<bool>(), Kind::Switch),
            (TypeId::of::<MaxMemory>(), Kind::Budgets),
            (TypeId::of::<PathBuf>(), Kind::Folder),
            (TypeId::of::<DeviceMapArg>(), Kind::TextOrFile),
        ];
        kinds.into_iter().find(|(known, _)| value == *known).map_or(Kind::Text, |(_, kind)| kind)
    }

    /// Its value among `matches` as it was written; `None` where there is none, or none in UTF-8.
    pub(super) fn value_in(&self, matches: &ArgMatches) -> Option<String> {
        let written = matches.get_raw(self.id())?.next()?.to_str()?;
        Some(match matches.try_get_one::<bool>(self.id()) {
            Ok(Some(is_on)) => is_on.to_string(),
            _ => written.to_owned(),
        })
    }

    /// Reads `text` as the command line would.
    ///
    /// # Errors
    /// What is wrong with it, and what is allowed.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        let command = Command::new("setting").no_binary_name(true).arg(self.arg.clone().env(None::<&str>));
        match command.try_get_matches_from([format!("--{}={text}", self.name())]) {
            Ok(_) => Ok(()),
            Err(error) => Err(match (error.get(ContextKind::ValidValue), error.source()) {
                (Some(ContextValue::Strings(words)), _) => format!("`{text}` is not allowed; write {}", words.join(" or ")),
                (_, Some(reason)) => reason.to_string(),
                _ => format!("`{text}` is not allowed; write {}", self.kind().allowed()),
            }),
        }
    }

    /// `text` with a path made absolute: one that is relative goes from `base`, `~/` from the home folder.
    pub(super) fn anchored(&self, text: &str, base: &Path) -> OsString {
        let is_path = match self.kind() {
            Kind::Folder => !text.is_empty(),
            Kind::TextOrFile => matches!(DeviceMapArg::from_os(text.as_ref()), Ok(DeviceMapArg::File(_))),
            _ => false,
        };
        if !is_path {
            return text.into();
        }
        let home = text.strip_prefix("~/").and_then(|rest| Some(dirs::home_dir()?.join(rest)));
        home.unwrap_or_else(|| base.join(text)).into()
    }
}

/// Identifiers and long names of the options that are no settings: those that `--help` hides.
pub(super) fn hidden_options() -> Vec<(String, String)> {
    let hidden = options().filter(Arg::is_hide_set);
    hidden.map(|arg| (arg.get_id().to_string(), arg.get_long().unwrap_or_default().to_owned())).collect()
}

fn options() -> impl Iterator<Item = Arg> {
    PlacementArgs::augment_args(Command::new("settings")).get_arguments().cloned().collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::Cli;

    fn setting(name: &str) -> Setting {
        Setting::all().into_iter().find(|setting| setting.name() == name).unwrap_or_else(|| panic!("no setting {name}"))
    }

    #[test]
    fn every_setting_has_name_variable_and_meaning() {
        for setting in Setting::all() {
            assert!(!setting.name().is_empty() && !setting.help().is_empty(), "{setting:?}");
            assert!(setting.variable().starts_with("TIERFLOW_"), "{}", setting.name());
            if let Some(default) = setting.default() {
                assert_eq!(setting.check(&default), Ok(()), "{}", setting.name());
            }
        }
    }

    #[test]
    fn a_settings_name_means_the_same_in_every_subcommand() {
        let settings = Setting::all();
        for command in Cli::command().get_subcommands() {
            for arg in command.get_arguments() {
                let Some(setting) = settings.iter().find(|setting| Some(setting.name()) == arg.get_long()) else { continue };
                let about = (command.get_name(), setting.name());
                assert_eq!((arg.get_id(), arg.get_env()), (setting.arg.get_id(), setting.arg.get_env()), "{about:?}");
                assert_eq!(arg.get_value_parser().type_id(), setting.arg.get_value_parser().type_id(), "{about:?}");
            }
        }
    }

    #[test]
    fn kinds_follow_the_types_of_the_options() {
        for (name, kind) in [
            ("device", Kind::Text),
            ("objective", Kind::Text),
            ("mix", Kind::Text),
            ("ctx-size", Kind::Number),
            ("slots", Kind::Number),
            ("virtual-gpus", Kind::Number),
            ("gpu-timeout", Kind::Number),
            ("n-gpu-layers", Kind::NumberOrText),
            ("strict", Kind::Switch),
            ("max-memory", Kind::Budgets),
            ("cache-dir", Kind::Folder),
            ("device-map", Kind::TextOrFile),
        ] {
            assert_eq!(setting(name).kind(), kind, "{name}");
        }
    }

    #[test]
    fn values_are_checked_as_on_the_command_line() {
        for (name, good, bad, allowed) in [
            ("device", "gpu:3", "tpu", "auto, gpu, gpu:N, cpu"),
            ("objective", "throughput", "speed", "latency or throughput"),
            ("max-memory", "gpu:0=1GiB", "gpu:0", "DEVICE=SIZE"),
            ("slots", "1", "0", "give a whole number from 1 on"),
            ("virtual-gpus", "8", "9", "1..=8"),
            ("gpu-timeout", "600", "0", "not in 1.."),
        ] {
            assert_eq!(setting(name).check(good), Ok(()), "{name}");
            let reason = setting(name).check(bad).unwrap_err();
            assert!(reason.contains(allowed), "{name}: {reason}");
        }
    }

    #[test]
    fn relative_paths_go_from_the_given_folder() {
        let base = Path::new("/etc/tierflow");
        assert_eq!(Path::new(&setting("cache-dir").anchored("rates", base)), base.join("rates"));
        assert_eq!(Path::new(&setting("device-map").anchored("map.json", base)), base.join("map.json"));
        assert_eq!(setting("device-map").anchored("balanced", base), "balanced");
        assert_eq!(setting("device").anchored("map.json", base), "map.json");
        assert_eq!(setting("cache-dir").anchored("", base), "");
    }
}
