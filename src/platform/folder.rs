//! The files of a model by their names, whether they lie in a folder or were handed in one by one. Knows none of their formats.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::source::{self, ByteSource, IoMode};
use crate::error::{Error, Result};

/// Files that belong together.
#[derive(Debug, Clone)]
pub enum Folder {
    /// A folder of the file system.
    Path(PathBuf),
    /// Sources that were opened elsewhere, each under the name of its [`ByteSource::path`]: the only ones in a browser.
    Sources(Vec<Arc<dyn ByteSource>>),
}

impl Folder {
    /// What the file `name` is called in messages.
    pub fn path_of(&self, name: &str) -> String {
        match self {
            Folder::Path(folder) => folder.join(name).display().to_string(),
            Folder::Sources(_) => name.to_owned(),
        }
    }

    /// Whether there is something called `name`.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Folder::Path(folder) => folder.join(name).symlink_metadata().is_ok(),
            Folder::Sources(sources) => sources.iter().any(|source| source.path() == name),
        }
    }

    /// The names of all files that end in `.extension`, sorted.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be listed.
    pub fn names_with(&self, extension: &str) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Folder::Path(folder) => {
                let failed = |source| Error::io("list", folder.display(), source);
                let entries = std::fs::read_dir(folder).map_err(failed)?;
                let name =
                    |entry: std::io::Result<std::fs::DirEntry>| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
                entries.map(name).collect::<Result<_>>()?
            }
            Folder::Sources(sources) => sources.iter().map(|source| source.path().to_owned()).collect(),
        };
        names.retain(|name| Path::new(name).extension().is_some_and(|found| found == extension));
        names.sort();
        Ok(names)
    }

    /// Opens the file `name`.
    ///
    /// # Errors
    /// Those of [`source::open_source`]; [`Error::Io`] of the kind [`ErrorKind::NotFound`] where there is no such file.
    pub fn open(&self, name: &str, mode: IoMode) -> Result<Arc<dyn ByteSource>> {
        match self {
            Folder::Path(folder) => source::open_source(&folder.join(name), mode),
            Folder::Sources(sources) => {
                let found = sources.iter().find(|source| source.path() == name);
                found.cloned().ok_or_else(|| Error::io("open", name, ErrorKind::NotFound.into()))
            }
        }
    }

    /// Reads a whole file of at most `cap` bytes, for configs and other small text.
    ///
    /// # Errors
    /// Those of [`Folder::open`] and of reading; [`Error::InvalidFile`] for a file that is larger.
    pub fn read_small(&self, name: &str, cap: u64) -> Result<Vec<u8>> {
        source::read_small(self.open(name, IoMode::Pread)?.as_ref(), cap)
    }
}

impl fmt::Display for Folder {
    /// The folder, or the first of the sources.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Folder::Path(folder) => folder.display().fmt(f),
            Folder::Sources(sources) => f.pad(sources.first().map_or("no file", |source| source.path())),
        }
    }
}

impl From<&Path> for Folder {
    fn from(folder: &Path) -> Folder {
        Folder::Path(folder.to_owned())
    }
}

impl From<&Folder> for Folder {
    fn from(folder: &Folder) -> Folder {
        folder.clone()
    }
}
