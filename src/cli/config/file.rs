//! The config file as it is read: where it lies, and the value of every setting in it, checked. Knows TOML, not what a
//! setting does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, TableLike};

use super::setting::{Kind, Setting};
use crate::error::{Error, Result};

/// The version of the file's format that this program reads and writes.
pub(super) const VERSION: i64 = 1;

/// The key that holds it.
pub(super) const VERSION_KEY: &str = "version";

/// Where the config file lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    /// The file, which need not be there.
    pub(super) path: PathBuf,
    /// Whether the user named it, so that its absence is an error.
    is_named: bool,
}

impl Location {
    /// `$TIERFLOW_CONFIG`, else `tierflow/config.toml` in the user's config folder.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where there is neither.
    pub(super) fn find() -> Result<Location> {
        let named = std::env::var_os("TIERFLOW_CONFIG").filter(|path| !path.is_empty());
        match (named, dirs::config_dir()) {
            (Some(path), _) => Ok(Location { path: path.into(), is_named: true }),
            (None, Some(folder)) => Ok(Location { path: folder.join("tierflow").join("config.toml"), is_named: false }),
            (None, None) => Err(Error::InvalidArgument {
                option: "TIERFLOW_CONFIG".into(),
                reason: "there is no config folder, because there is no home folder; set the variable to the path of a file".into(),
            }),
        }
    }
}

/// A config file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct ConfigFile {
    /// Where it lies; `None` where there is no place for one.
    location: Option<Location>,
    /// Whether it is there.
    exists: bool,
    /// What it holds; empty where it is not there.
    pub(super) text: String,
    /// Its settings as they would be typed, by name.
    values: BTreeMap<String, OsString>,
    /// Why it could not be read, where nobody named it.
    read_error: Option<(ErrorKind, String)>,
}

impl ConfigFile {
    /// Reads the user's config file. One that is not there is empty, and so is one that nobody named and that cannot be read: a
    /// program that runs as another user than its home folder's, as in containers, has no defaults of its own, and needs none.
    ///
    /// # Errors
    /// [`Error::Io`] where a file that the user named cannot be read; [`Error::InvalidArgument`] naming file, line and key where it
    /// holds what is not allowed.
    pub(in crate::cli) fn load() -> Result<ConfigFile> {
        match Location::find() {
            Ok(location) => ConfigFile::load_at(location),
            Err(_) => Ok(ConfigFile { location: None, exists: false, text: String::new(), values: BTreeMap::new(), read_error: None }),
        }
    }

    /// As [`ConfigFile::load`], from another place.
    #[cfg(test)]
    pub(super) fn load_from(path: PathBuf) -> Result<ConfigFile> {
        ConfigFile::load_at(Location { path, is_named: true })
    }

    fn load_at(location: Location) -> Result<ConfigFile> {
        let (bytes, read_error) = match std::fs::read(&location.path) {
            Ok(bytes) => (Some(bytes), None),
            Err(error) if error.kind() == ErrorKind::NotFound => (None, None),
            Err(error) if location.is_named => return Err(Error::io("read", location.path.display(), error)),
            // A home that is no folder, such as a service's /dev/null, holds no file.
            Err(error) if error.kind() == ErrorKind::NotADirectory => (None, None),
            Err(error) => (None, Some((error.kind(), error.to_string()))),
        };
        let exists = bytes.is_some();
        let reader = Reader { path: &location.path };
        let text = reader.decode(bytes.unwrap_or_default())?;
        let values = reader.read(&text)?;
        Ok(ConfigFile { location: Some(location), exists, text, values, read_error })
    }

    /// The file, for commands that are about it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the user named a file that is not there.
    pub(in crate::cli) fn demand(self) -> Result<ConfigFile> {
        match &self.location {
            Some(location) if location.is_named && !self.exists => Err(Error::InvalidArgument {
                option: "TIERFLOW_CONFIG".into(),
                reason: format!("there is no file {}; write it with: tierflow config", location.path.display()),
            }),
            _ => Ok(self),
        }
    }

    /// Logs that the file could not be read: as a warning where it exists, at debug level where even that is not known.
    pub(in crate::cli) fn log_read_error(&self) {
        let (Some(path), Some((_, error))) = (self.path(), &self.read_error) else { return };
        match path.symlink_metadata() {
            Ok(_) => tracing::warn!("the config file {} is left out, since it cannot be read: {error}", path.display()),
            Err(_) => tracing::debug!("whether there is a config file {} is not known: {error}", path.display()),
        }
    }

    /// The file, for commands that change or replace what it holds.
    ///
    /// # Errors
    /// [`Error::Io`] where it could not be read.
    pub(super) fn require_read(self) -> Result<ConfigFile> {
        match (&self.read_error, self.path()) {
            (Some((kind, error)), Some(path)) => Err(Error::io("read", path.display(), std::io::Error::new(*kind, error.clone()))),
            _ => Ok(self),
        }
    }

    /// Its settings as they would be typed, by name.
    pub(in crate::cli) fn values(&self) -> &BTreeMap<String, OsString> {
        &self.values
    }

    /// Its path, where there is a place for one.
    pub(super) fn path(&self) -> Option<&Path> {
        self.location.as_ref().map(|location| location.path.as_path())
    }

    /// Whether it is there.
    pub(super) fn exists(&self) -> bool {
        self.exists
    }
}

/// Reads one file, and names it in every error.
struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn decode(&self, bytes: Vec<u8>) -> Result<String> {
        String::from_utf8(bytes).map_err(|error| {
            let good = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
            let end = good.len();
            self.error(&good, Some(end..end), None, "is not UTF-8 here, as TOML must be")
        })
    }

    /// The settings in `text` as they would be typed, by name.
    fn read(&self, text: &str) -> Result<BTreeMap<String, OsString>> {
        let document = Document::parse(text).map_err(|error| {
            let words = error.message().trim().replace('\n', ", ");
            self.error(text, error.span(), None, &format!("is no TOML here: {words}"))
        })?;
        let table = document.as_table();
        // The version first: what else a newer file holds is not for this program to judge.
        if let Some(item) = table.get(VERSION_KEY) {
            self.check_version(text, item)?;
        }
        let settings = Setting::all();
        let mut values = BTreeMap::new();
        for (name, item) in table.iter().filter(|(name, _)| *name != VERSION_KEY) {
            let span = table.key(name).and_then(toml_edit::Key::span).or(item.span());
            let Some(setting) = settings.iter().find(|setting| setting.name() == name) else {
                let names: Vec<&str> = settings.iter().map(Setting::name).collect();
                return Err(self.error(text, span, Some(name), &format!("is no setting; there are {}", names.join(", "))));
            };
            let value = self.value(text, setting, item, span)?;
            values.insert(name.to_owned(), setting.anchored(&value, self.path.parent().unwrap_or(Path::new(""))));
        }
        Ok(values)
    }

    fn check_version(&self, text: &str, item: &Item) -> Result<()> {
        let reason = match item.as_integer() {
            Some(VERSION) => return Ok(()),
            Some(version) if version > VERSION => {
                format!(
                    "{version} is newer than {VERSION}, which this tierflow reads; update it, or begin anew with: tierflow config --default"
                )
            }
            _ => format!("there is no such version; write {VERSION}"),
        };
        Err(self.error(text, item.span(), Some(VERSION_KEY), &reason))
    }

    /// The value of one setting as it would be typed.
    fn value(&self, text: &str, setting: &Setting, item: &Item, span: Option<Range<usize>>) -> Result<String> {
        let invalid = |reason: String| self.error(text, span.clone(), Some(setting.name()), &reason);
        let kind = setting.kind();
        let written = match (kind, item.as_table_like()) {
            (Kind::Budgets, Some(budgets)) => self.budgets(text, setting, budgets)?,
            (Kind::Switch, _) => item.as_bool().map(|is_on| is_on.to_string()),
            (Kind::Number, _) => item.as_integer().map(|number| number.to_string()),
            (Kind::NumberOrText, _) if item.is_integer() => item.as_integer().map(|number| number.to_string()),
            _ => item.as_str().map(str::to_owned),
        };
        let written = written.ok_or_else(|| invalid(format!("{} is not allowed; write {}", described(item), kind.allowed())))?;
        setting.check(&written).map_err(invalid)?;
        Ok(written)
    }

    /// A table of budgets as it would be typed; an empty table is none.
    fn budgets(&self, text: &str, setting: &Setting, budgets: &dyn TableLike) -> Result<Option<String>> {
        let mut entries = Vec::new();
        for (device, item) in budgets.iter() {
            let span = budgets.key(device).and_then(toml_edit::Key::span).or(item.span());
            let key = format!("{}.{device}", setting.name());
            let size = item.as_str().map(str::to_owned).or_else(|| item.as_integer().map(|bytes| bytes.to_string()));
            let entry = size.map(|size| format!("{device}={size}"));
            let checked = match entry {
                Some(entry) => setting.check(&entry).map(|()| entry),
                None => Err(format!("{} is not allowed; write a size as \"6GiB\"", described(item))),
            };
            entries.push(checked.map_err(|reason| self.error(text, span, Some(&key), &reason))?);
        }
        Ok((!entries.is_empty()).then(|| entries.join(",")))
    }

    /// The error of `key` at `span` of `text`.
    fn error(&self, text: &str, span: Option<Range<usize>>, key: Option<&str>, reason: &str) -> Error {
        let before = span.and_then(|span| text.get(..span.start)).unwrap_or_default();
        let place = format!("{}, line {}", self.path.display(), before.matches('\n').count() + 1);
        let option = key.map_or_else(|| place.clone(), |key| format!("{place}, `{key}`"));
        Error::InvalidArgument { option: option.into(), reason: reason.into() }
    }
}

/// A value as a user would call it.
fn described(item: &Item) -> String {
    match item.type_name() {
        "string" => "a text".into(),
        "integer" => "a whole number".into(),
        "boolean" => "true or false".into(),
        "float" => "a broken number".into(),
        "array" | "array of tables" => "a list".into(),
        "table" | "inline table" => "such a table".into(),
        other => format!("a {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BTreeMap<String, OsString>> {
        Reader { path: Path::new("/c/config.toml") }.read(text)
    }

    #[test]
    fn every_kind_of_value_is_read_as_it_would_be_typed() {
        let values = read(
            "version = 1\ndevice = \"gpu:1\"\nctx-size = 4096\nn-gpu-layers = 20\nstrict = true\ncache-dir = \"rates\"\n\
             [max-memory]\n\"gpu:0\" = \"6GiB\"\ncpu = 1024\n",
        )
        .unwrap();
        let folder = Path::new("/c").join("rates");
        let expected = [
            ("cache-dir", folder.to_str().unwrap()),
            ("ctx-size", "4096"),
            ("device", "gpu:1"),
            ("max-memory", "gpu:0=6GiB,cpu=1024"),
            ("n-gpu-layers", "20"),
            ("strict", "true"),
        ];
        assert_eq!(values.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect::<Vec<_>>(), expected);
        assert_eq!(read("max-memory = \"cpu=1GiB\"\nn-gpu-layers = \"all\"").unwrap().len(), 2);
        assert_eq!(read("max-memory.cpu = \"1GiB\"").unwrap()["max-memory"], "cpu=1GiB");
        assert!(read("").unwrap().is_empty() && read("# nothing\n").unwrap().is_empty());
    }

    #[test]
    fn errors_name_file_line_and_key_and_what_is_allowed() {
        for (text, line, key, allowed) in [
            ("\ndevise = \"cpu\"", 2, "devise", "device, "),
            ("device = 1", 1, "device", "a text in quotes"),
            ("device = \"tpu\"", 1, "device", "auto, gpu, gpu:N, cpu"),
            ("\n\nctx-size = \"4096\"", 3, "ctx-size", "a whole number"),
            ("ctx-size = 4.5", 1, "ctx-size", "a whole number"),
            ("ctx-size = -2", 1, "ctx-size", "give a whole number from 0 on, or -1 for the default"),
            ("slots = 0", 1, "slots", "give a whole number from 1 on"),
            ("strict = \"yes\"", 1, "strict", "true or false"),
            ("objective = \"speed\"", 1, "objective", "latency or throughput"),
            ("n-gpu-layers = true", 1, "n-gpu-layers", "a whole number, or"),
            ("device = [\"cpu\"]", 1, "device", "a text in quotes"),
            ("mix = 2026-01-01", 1, "mix", "a text in quotes"),
            ("max-memory = 5", 1, "max-memory", "table"),
            ("max-memory = {}", 1, "max-memory", "table"),
            ("[max-memory]\ncpu = \"1GiB\"\ntpu = \"1GiB\"", 3, "max-memory.tpu", "gpu:N or cpu"),
            ("[max-memory]\n\ncpu = true", 3, "max-memory.cpu", "6GiB"),
            ("[max-memory]\ngpu = \"1GiB\"\n\"gpu:0\" = \"1GiB\"", 1, "max-memory", "named twice"),
            ("[[max-memory]]\ncpu = \"1GiB\"", 1, "max-memory", "table"),
            ("device.name = \"cpu\"", 1, "device", "a text in quotes"),
            ("version = 2\nfuture = 1", 1, "version", "newer"),
            ("version = 0", 1, "version", "write 1"),
            ("version = \"1\"", 1, "version", "write 1"),
        ] {
            let error = read(text).unwrap_err();
            let message = error.to_string();
            assert!(message.starts_with(&format!("/c/config.toml, line {line}, `{key}`: ")), "{text}: {message}");
            assert!(message.contains(allowed), "{text}: {message}");
            assert_eq!(error.exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn what_is_no_toml_is_refused_with_its_line() {
        let deep = format!("device = {}", "[".repeat(10_000));
        for (text, line) in [
            ("device = \"cpu\"\ndevice = \"gpu\"", 2),
            ("device = \"cpu", 1),
            ("\n= 3", 2),
            ("x", 1),
            ("[max-memory", 1),
            (&deep, 1),
            ("device = \"\\u0000", 1),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("/c/config.toml, line {line}: is no TOML here: ")), "{text}: {message}");
        }
        let reader = Reader { path: Path::new("/c/config.toml") };
        let message = reader.decode(b"device = \"cpu\"\n# \xff".to_vec()).unwrap_err().to_string();
        assert!(message.starts_with("/c/config.toml, line 2: is not UTF-8"), "{message}");
    }

    #[test]
    fn no_cut_or_changed_file_panics() {
        let text = "version = 1\ndevice = \"gpu:1\"\nmax-memory = { \"gpu:0\" = \"6GiB\", cpu = 1_0 }\nmix = '1:2'\n";
        for at in 0..text.len() {
            let _ = read(&text[..at]);
            for letter in ["\"", "=", "{", "[", "\n", "ü", "\0", "9"] {
                let _ = read(&format!("{}{letter}{}", &text[..at], &text[at + 1..]));
            }
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_empty_unless_it_was_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str, is_named| ConfigFile::load_at(Location { path: folder.path().join(name), is_named });
        assert!(at("none.toml", false).unwrap().demand().unwrap().values().is_empty());
        let message = at("none.toml", true).unwrap().demand().unwrap_err().to_string();
        assert!(message.contains("none.toml") && message.contains("tierflow config"), "{message}");
        assert!(at("", true).is_err(), "a folder is no file");
    }

    #[test]
    fn a_file_that_nobody_named_and_that_cannot_be_read_is_empty_but_not_to_be_written_over() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let at = |path: PathBuf| ConfigFile::load_at(Location { path, is_named: false }).unwrap();
        // A folder in its place cannot be read even by root.
        let unread = at(folder.path().to_owned());
        assert!(unread.values().is_empty() && !unread.exists());
        let reason = unread.require_read().unwrap_err().to_string();
        assert!(reason.contains(&folder.path().display().to_string()), "{reason}");
        let nowhere = at(folder.path().join("file").join("config.toml"));
        assert!(nowhere.require_read().unwrap().values().is_empty(), "where a home is no folder there is no file");
    }
}
