//! Changes of the config file that leave everything else in it, such as comments, as its owner wrote it.

use std::path::Path;

use toml_edit::{DocumentMut, InlineTable, Item, Value};

use super::file::{VERSION, VERSION_KEY};
use super::setting::{Kind, Setting};
use crate::error::{Error, Result};

/// What a new file begins with.
const HEAD: &str = "# Settings of tierflow: defaults of its options, by their long names. Options and TIERFLOW_* variables win over them.\n\
                    # `tierflow config show` lists every setting, its value and where the value comes from.\n\n";

/// One setting that changes.
#[derive(Debug, Clone)]
pub(super) struct Change {
    /// Which.
    pub(super) setting: Setting,
    /// Its new value as it would be typed; `None` takes it out of the file.
    pub(super) value: Option<String>,
}

/// The file `text`, changed; an empty one becomes a new file.
///
/// # Errors
/// [`Error::InvalidArgument`] where `text` is no TOML, or a path no UTF-8; [`Error::Io`] where the working folder is gone, from which relative paths go.
pub(super) fn apply(text: &str, changes: &[Change]) -> Result<String> {
    let begun = if text.trim().is_empty() { format!("{HEAD}{VERSION_KEY} = {VERSION}\n") } else { text.to_owned() };
    let mut document: DocumentMut = begun.parse().map_err(|reason: toml_edit::TomlError| Error::InvalidArgument {
        option: "config file".into(),
        reason: format!("is no TOML: {}", reason.message()),
    })?;
    let here = std::env::current_dir().map_err(|reason| Error::io("find", "the working folder", reason))?;
    for change in changes {
        let name = change.setting.name();
        match &change.value {
            Some(value) => set(&mut document, &change.setting, value, &here)?,
            None => drop(document.remove(name)),
        }
    }
    Ok(document.to_string())
}

/// Gives one setting a value: in its place where it is there, else with its meaning as a comment.
fn set(document: &mut DocumentMut, setting: &Setting, text: &str, here: &Path) -> Result<()> {
    let anchored = setting.anchored(text, here).into_string().map_err(|path| Error::InvalidArgument {
        option: format!("--{}", setting.name()).into(),
        reason: format!("{} is not UTF-8, as the config file must be; choose another place", path.display()),
    })?;
    let mut value = value_of(setting, &anchored);
    match document.get_mut(setting.name()) {
        Some(Item::Value(old)) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        // A table ends where the next one begins: a key that takes its place goes among the others, and so goes in anew.
        Some(_) => {
            document.remove(setting.name());
            insert(document, setting, value);
        }
        None => insert(document, setting, value),
    }
    Ok(())
}

fn insert(document: &mut DocumentMut, setting: &Setting, value: Value) {
    document.insert(setting.name(), Item::Value(value));
    if let Some(mut key) = document.key_mut(setting.name()) {
        key.leaf_decor_mut().set_prefix(format!("\n{}", comment(&setting.help())));
    }
}

/// `text` as lines of a comment, broken between words where they grow long.
fn comment(text: &str) -> String {
    const WIDTH: usize = 110;
    let mut comment = String::new();
    for line in text.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let mut written = format!("# {indent}");
        for word in line.split_whitespace() {
            if written.len() + word.len() > WIDTH {
                comment.push_str(written.trim_end());
                written = format!("\n# {indent}");
            }
            written.push_str(word);
            written.push(' ');
        }
        comment.push_str(written.trim_end());
        comment.push('\n');
    }
    comment
}

/// `text` in TOML.
fn value_of(setting: &Setting, text: &str) -> Value {
    match setting.kind() {
        Kind::Number | Kind::NumberOrText => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
        Kind::Switch => Value::from(text == "true"),
        Kind::Budgets => {
            let budgets: InlineTable =
                text.split(',').filter_map(|entry| entry.split_once('=')).map(|(device, size)| (device.trim(), size.trim())).collect();
            Value::from(budgets)
        }
        Kind::Text | Kind::Folder | Kind::TextOrFile => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(name: &str, value: Option<&str>) -> Change {
        let setting = Setting::all().into_iter().find(|setting| setting.name() == name).unwrap();
        Change { setting, value: value.map(str::to_owned) }
    }

    #[test]
    fn a_new_file_explains_every_key() {
        let text =
            apply("", &[change("device", Some("gpu:0")), change("max-memory", Some("gpu:0=6GiB, cpu=12GiB")), change("slots", Some("4"))]);
        let text = text.unwrap();
        assert!(text.starts_with(HEAD), "{text}");
        assert!(
            text.contains(
                "\n# What computes: auto, cpu, gpu, gpu:N. Or by vendor: cuda, cuda:N, xpu, mps. Also -dev.\ndevice = \"gpu:0\"\n"
            ),
            "{text}"
        );
        assert!(text.contains("\nmax-memory = { \"gpu:0\" = \"6GiB\", cpu = \"12GiB\" }\n"), "{text}");
        assert!(text.ends_with("\n# Slots of the ring on the GPU\nslots = 4\n"), "{text}");
    }

    #[test]
    fn comments_are_broken_between_words() {
        let text = comment(&format!("{}\n  word: meaning", "twelve chars ".repeat(20)));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 4 && lines.iter().all(|line| line.starts_with("# ") && line.len() <= 110), "{text}");
        assert_eq!(lines[3], "#   word: meaning");
    }

    #[test]
    fn an_owners_comments_stay() {
        let before = "# mine\ndevice = \"cpu\" # for now\n\n# old\nslots = 2\n\n[max-memory]\ncpu = \"1GiB\"\n# end\n";
        let after = apply(before, &[change("device", Some("gpu")), change("slots", None), change("strict", Some("true"))]).unwrap();
        let expected = "# mine\ndevice = \"gpu\" # for now\n\n# Refuse a plan that puts weights anywhere but on the devices named in --max-memory \
                        or --device\nstrict = true\n\n[max-memory]\ncpu = \"1GiB\"\n# end\n";
        assert_eq!(after, expected);
        let after = apply(before, &[change("max-memory", Some("cpu=2GiB"))]).unwrap();
        assert!(after.contains("max-memory = { cpu = \"2GiB\" }") && !after.contains("[max-memory]"), "{after}");
    }

    #[test]
    fn every_default_can_be_written_and_read_back() {
        let defaults = Setting::all().into_iter().filter_map(|setting| {
            let value = setting.default()?;
            Some(Change { setting, value: Some(value) })
        });
        let defaults: Vec<Change> = defaults.collect();
        let text = apply("", &defaults).unwrap();
        let again = apply(&text, &defaults).unwrap();
        assert_eq!(text, again);
        assert!(defaults.iter().all(|change| text.contains(&format!("\n{} = ", change.setting.name()))), "{text}");
    }
}
