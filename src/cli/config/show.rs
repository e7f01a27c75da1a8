//! `tierflow config show`: every setting, its value, and the source of the value.

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::file::ConfigFile;
use super::setting::{Kind, Setting};
use crate::cli::args::ConfigShowArgs;
use crate::cli::terminal::{Align, print, print_json, table};
use crate::error::Result;
use crate::platform::cache_folder;

/// Prints a table, or JSON.
///
/// # Errors
/// As [`print()`].
pub(super) fn run(args: &ConfigShowArgs, file: &ConfigFile, matches: &ArgMatches) -> Result<()> {
    let settings = Setting::all();
    if args.json {
        let rows = settings.iter().map(|setting| {
            let value = value(setting, matches);
            let value = match (setting.kind(), value) {
                (Kind::Switch, Some(text)) => (text == "true").into(),
                (Kind::Number | Kind::NumberOrText, Some(text)) => text.parse::<u32>().map_or_else(|_| text.into(), Into::into),
                (_, text) => serde_json::Value::from(text),
            };
            (setting.name().to_owned(), serde_json::json!({ "value": value, "source": source(setting, file, matches) }))
        });
        return print_json(&serde_json::json!({
            "schema": "tierflow.config/1",
            "path": file.path().map(std::path::Path::to_string_lossy),
            "exists": file.exists(),
            "settings": rows.collect::<serde_json::Map<_, _>>(),
        }));
    }
    let rows: Vec<Vec<String>> = settings
        .iter()
        .map(|setting| {
            let value = value(setting, matches).unwrap_or_else(|| "–".into());
            vec![setting.name().to_owned(), value, source(setting, file, matches)]
        })
        .collect();
    print(&table(&[("SETTING", Align::Left), ("VALUE", Align::Left), ("FROM", Align::Left)], &rows))
}

fn value(setting: &Setting, matches: &ArgMatches) -> Option<String> {
    setting.value_in(matches).or_else(|| match setting.kind() {
        Kind::Folder => Some(cache_folder()?.to_string_lossy().into_owned()),
        _ => None,
    })
}

/// Where the value of `setting` comes from.
fn source(setting: &Setting, file: &ConfigFile, matches: &ArgMatches) -> String {
    match (matches.value_source(setting.id()), file.path()) {
        (Some(ValueSource::CommandLine), _) => "flag".into(),
        (Some(ValueSource::EnvVariable), _) => format!("environment {}", setting.variable()),
        (_, Some(path)) if file.values().contains_key(setting.name()) => format!("config file {}", path.display()),
        _ => "default".into(),
    }
}
