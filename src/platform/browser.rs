//! The host as a browser's worker sees it: next to nothing is known of it, and there are neither folders nor threads of its own.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::HostMemory;
use crate::error::{Error, Result};
use crate::units::Bytes;

/// A worker of a page is one thread, and while that waits no answer can reach it.
pub const MAY_BLOCK: bool = false;

/// The tab's memory that weights may take by default. WebAssembly could address 4 GiB,
/// but browsers end tabs that take much less, on phones above all.
const USABLE_MEMORY: Bytes = Bytes::mib(512);

/// Memory of the tab.
pub fn host_memory() -> HostMemory {
    HostMemory { total: USABLE_MEMORY, available: USABLE_MEMORY }
}

/// The processor's largest cache, of which a page learns nothing.
pub fn largest_cache() -> Option<Bytes> {
    None
}

/// What computes when the host does.
pub fn cpu_name() -> String {
    "WebAssembly".into()
}

/// Threads that run at once.
pub fn n_threads() -> usize {
    1
}

/// There is no folder.
pub fn choose_cache_folder(_folder: PathBuf) {}

/// There is no folder.
pub fn cache_folder() -> Option<PathBuf> {
    None
}

/// What is kept by its name: as long as the worker runs, and for longer where the page stores it.
static KEPT: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::new(BTreeMap::new());

/// What was kept as `name`.
pub fn kept(name: &str) -> Option<Vec<u8>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
}

/// Keeps `bytes` as `name`.
///
/// # Errors
/// None.
pub fn keep(name: &str, bytes: &[u8]) -> Result<()> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), bytes.to_vec());
    Ok(())
}

/// There is no folder.
pub fn temporary_folder() -> PathBuf {
    PathBuf::new()
}

/// There is no file system.
pub fn file_system_of(_path: &Path) -> Option<String> {
    None
}

/// Nothing can be written.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub fn write_atomically(path: &Path, _bytes: &[u8]) -> Result<()> {
    Err(Error::io("write", path.display(), ErrorKind::Unsupported.into()))
}

/// Nothing can be written.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub fn write_with_folder(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, bytes)
}

/// A file that is being written; there is none.
pub struct Checked<'a>(std::marker::PhantomData<&'a ()>);

impl Checked<'_> {
    /// Appends nothing.
    ///
    /// # Errors
    /// None.
    pub fn write_all(&mut self, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Nothing is written here, either.
///
/// # Errors
/// [`Error::Io`], always.
pub fn write_atomically_by(path: &Path, _fill: impl FnMut(&mut Checked<'_>) -> Result<()>) -> Result<()> {
    write_atomically(path, &[])
}

/// A file for what has no room in memory; there is none.
#[derive(Debug)]
pub enum ScratchFile {}

impl ScratchFile {
    /// Makes none.
    ///
    /// # Errors
    /// [`Error::Io`], always.
    pub fn create(folder: &Path) -> Result<ScratchFile> {
        Err(Error::io("make a temporary file in", folder.display(), ErrorKind::Unsupported.into()))
    }

    /// Is never called.
    ///
    /// # Errors
    /// None.
    pub fn write_at(&mut self, _offset: u64, _bytes: &[u8]) -> Result<()> {
        match *self {}
    }

    /// Is never called.
    ///
    /// # Errors
    /// None.
    pub fn read_at(&mut self, _offset: u64, _buffer: &mut [u8]) -> Result<()> {
        match *self {}
    }
}

/// There are no files.
pub fn is_same_file(_one: &Path, _other: &Path) -> bool {
    false
}

/// Nothing can be written.
///
/// # Errors
/// Always, of the kind [`ErrorKind::Unsupported`].
pub fn with_temporary_file<T>(
    _folder: &Path,
    _fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    _read: impl FnOnce(&Path) -> T,
) -> std::io::Result<T> {
    Err(ErrorKind::Unsupported.into())
}
