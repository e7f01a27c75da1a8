//! Measured rates, kept in one file for all devices of this user. A cache: what cannot be read is measured anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::device::Rates;
use crate::platform;
use crate::units::Bytes;

/// Form of the file, meaning of its figures, and generation of the kernels that they were measured with. A file of another version
/// is measured anew.
const VERSION: u32 = 7;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    /// By device: name and driver of an adapter, processor and threads, file system.
    rates: BTreeMap<String, Rates>,
    /// Memory that adapters gave which report none.
    #[serde(default)]
    memory: BTreeMap<String, Bytes>,
}

impl Default for File {
    fn default() -> File {
        File { version: VERSION, rates: BTreeMap::new(), memory: BTreeMap::new() }
    }
}

/// The rates that were measured of the device that `key` names.
pub(super) fn find(key: &str) -> Option<Rates> {
    read(&path()?).rates.remove(key)
}

/// Keeps `rates`, dated now where they have no date, for later plans. A cache that cannot be written is no error.
pub(super) fn keep(key: String, mut rates: Rates) -> Rates {
    rates.measured_at = rates.measured_at.or_else(platform::clock::unix_seconds);
    change(|file| file.rates.extend([(key, rates.clone())]));
    rates
}

/// The memory that the adapter that `key` names gave.
pub(super) fn find_memory(key: &str) -> Option<Bytes> {
    read(&path()?).memory.remove(key)
}

/// Keeps how much memory an adapter gave.
pub(super) fn keep_memory(key: String, size: Bytes) {
    change(|file| file.memory.extend([(key, size)]));
}

fn path() -> Option<PathBuf> {
    Some(platform::cache_folder()?.join("rates.json"))
}

fn read(path: &Path) -> File {
    let file = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    file.filter(|file: &File| file.version == VERSION).unwrap_or_default()
}

fn change(change: impl FnOnce(&mut File)) {
    let Some(path) = path() else { return };
    let mut file = read(&path);
    change(&mut file);
    write(&path, &file);
}

fn write(path: &Path, file: &File) {
    let text = serde_json::to_vec_pretty(file).map_err(|error| error.to_string());
    let written = text.and_then(|text| platform::write_atomically(path, &text).map_err(|error| error.to_string()));
    if let Err(error) = written {
        tracing::debug!("the measured rates were not kept: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BytesPerSec;

    #[test]
    fn rates_are_kept_and_other_versions_are_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rates.json");
        assert!(read(&path).rates.is_empty());
        let rates = Rates { disk_read: Some(BytesPerSec(3e9)), ..Rates::default() };
        let kept = BTreeMap::from([("disk".to_owned(), rates)]);
        write(&path, &File { rates: kept.clone(), ..File::default() });
        assert_eq!(read(&path).rates, kept);
        let text = std::fs::read_to_string(&path).unwrap();
        for broken in [
            text.replace(&format!("\"version\": {VERSION}"), "\"version\": 1"),
            text[..text.len() / 2].to_owned(),
            "{\"disk\": {}}".to_owned(),
        ] {
            std::fs::write(&path, &broken).unwrap();
            assert!(read(&path).rates.is_empty(), "{broken}");
        }
    }
}
