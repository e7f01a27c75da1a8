//! A file mapped into memory: the only module that maps files, and the only one that must be trusted about it.
//!
//! No map of a file that others may write is sound by proof. What is done about it: the file is compared with what was opened before
//! every view, plain reads never go through the map, and where a file is truncated under a view all the same, the
//! guard ends the process with a message that names the file, in programs that ask for it.

#[cfg(unix)]
mod guard;

use std::fmt;
use std::sync::Arc;

use memmap2::{Mmap, MmapOptions};

use super::direct::DirectBuffer;
#[cfg(unix)]
use super::file::reach_back;
use super::file::{Advice, FileSource, advise};
use super::source::ByteSource;
use crate::error::{Error, Result};
#[cfg(unix)]
pub use guard::guard_maps;

/// Nothing needs to be guarded: the system does not let a mapped file be truncated.
#[cfg(not(unix))]
pub fn guard_maps(_advice: &'static str) {}

/// Maps an open file. Where the table of guarded maps is full the file is read by position instead.
pub(super) fn map(file: FileSource) -> Result<Arc<dyn ByteSource>> {
    let not_mapped = |reason: String| Error::NotMapped { path: file.path().to_owned(), reason };
    let len = usize::try_from(file.len()).map_err(|_| not_mapped("it is too large for this machine".into()))?;
    // SAFETY: the bytes behind a view can change if another process writes the file. They are only ever copied or uploaded as plain
    // numbers, whose every bit pattern is valid, and each view is preceded by a check that the file is unchanged.
    let map = unsafe { MmapOptions::new().len(len).map(file.file()) };
    let map = map.map_err(|source| not_mapped(source.to_string()))?;
    #[cfg(unix)]
    let Some(guard) = guard::Guard::new(map.as_ptr() as usize, map.len(), file.path()) else {
        return Ok(Arc::new(file));
    };
    Ok(Arc::new(MappedFile {
        #[cfg(unix)]
        _guard: guard,
        map,
        file,
    }))
}

/// A mapped file. Fields are dropped in order: the guard leaves its table before the map ends.
struct MappedFile {
    #[cfg(unix)]
    _guard: guard::Guard,
    map: Mmap,
    file: FileSource,
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedFile").field("file", &self.file).finish_non_exhaustive()
    }
}

impl ByteSource for MappedFile {
    fn path(&self) -> &str {
        self.file.path()
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    /// Reads by position and not from the map: a failing disk is then an error and no signal.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_at(offset, buffer)
    }

    fn read_direct<'b>(&self, offset: u64, len: usize, buffer: &'b mut DirectBuffer) -> Result<&'b [u8]> {
        self.file.read_direct(offset, len, buffer)
    }

    fn read_into(&self, offset: u64, block: &mut [u8], len: usize) -> Result<()> {
        self.file.read_into(offset, block, len)
    }

    fn view(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let end = usize::try_from(offset.checked_add(len)?).ok()?;
        let bytes = self.map.get(usize::try_from(offset).ok()?..end)?;
        self.file.check().ok()?;
        Some(bytes)
    }

    fn will_need(&self, offset: u64, len: u64) {
        #[cfg(unix)]
        if let Some((offset, len)) = self.range(offset, len) {
            // Only a hint: where it fails, pages arrive when they are touched.
            let _ = self.map.advise_range(memmap2::Advice::WillNeed, offset, len);
        }
        #[cfg(not(unix))]
        advise(self.file.file(), offset, len, Advice::WillNeed);
    }

    fn drop_behind(&self, offset: u64, len: u64) {
        #[cfg(unix)]
        let (from, n_bytes) = reach_back(offset, len);
        #[cfg(unix)]
        if let Some((offset, len)) = self.range(from, n_bytes) {
            // SAFETY: the map is shared and read-only, so that pages given up here are read from the file again, with the same bytes.
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len) };
        }
        // The page cache keeps pages that are mapped; now that they are not, it may let go of them as well.
        advise(self.file.file(), offset, len, Advice::DontNeed);
    }
}

#[cfg(unix)]
impl MappedFile {
    /// The range in the map's own numbers, where it is inside and not empty.
    fn range(&self, offset: u64, len: u64) -> Option<(usize, usize)> {
        if len == 0 || !self.file.contains(offset, len) {
            return None;
        }
        Some((usize::try_from(offset).ok()?, usize::try_from(len).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_end_with_the_file_they_show() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.bin");
        std::fs::write(&path, (0..=255).cycle().take(20_000).collect::<Vec<u8>>()).unwrap();
        let source = map(FileSource::open(&path).unwrap()).unwrap();
        assert_eq!(source.view(256, 4), Some(&[0, 1, 2, 3][..]));
        assert_eq!(source.view(19_999, 2), None, "past the end");
        assert_eq!(source.view(u64::MAX, 2), None);
        source.will_need(0, 20_000);
        source.drop_behind(0, 20_000);
        assert_eq!(source.view(4095, 2), Some(&[255, 0][..]), "dropped pages come back");
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
        assert_eq!(source.view(0, 4), None, "a changed file is not shown");
        assert!(matches!(source.read_at(0, &mut [0; 4]), Err(Error::FileChanged { .. })));
    }
}
