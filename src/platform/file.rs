//! A file that is read by position; every read checks that the file is unchanged since it was opened.
//!
//! The open file is what is read, so that a model may be deleted, renamed or replaced while it runs. A new length is an error. A new
//! time of writing alone may mean nothing (`touch`, a backup that was put back): then samples of the bytes are compared with those of
//! the opening, and the run goes on with a warning where they are the same.

use std::fs::{File, Metadata, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use super::direct::{self, DirectBuffer};
use super::source::ByteSource;
use crate::error::{Error, Result};

/// Ranges of a file that are compared where its time of writing has changed, its first and its last among them.
const N_SAMPLES: u64 = 16;
/// Bytes of one.
const SAMPLE_BYTES: u64 = 4 << 10;

/// An open regular file and what it looked like when it was opened.
#[derive(Debug)]
pub(super) struct FileSource {
    file: File,
    name: String,
    /// Absolute, since the working folder may change.
    location: PathBuf,
    size: u64,
    /// Samples of its bytes.
    samples: u64,
    /// The time of writing for which the bytes were last found to be those of the opening.
    modified: Mutex<Option<SystemTime>>,
    /// Whether a change of that time was logged.
    is_logged: AtomicBool,
    inode: Option<(u64, u64)>,
    /// The same file, opened for reads past the page cache at the first of them; `None` where there are none.
    direct: OnceLock<Option<File>>,
}

impl FileSource {
    /// Opens `path`, which must name a regular file that is not empty.
    pub(super) fn open(path: &Path) -> Result<FileSource> {
        let name = path.display().to_string();
        let file = open_without_blocking(path).map_err(|source| Error::io("open", &name, source))?;
        let metadata = file.metadata().map_err(|source| Error::io("examine", &name, source))?;
        if !metadata.is_file() {
            let kind = if metadata.is_dir() { "is a folder" } else { "is a pipe, device or socket" };
            return Err(Error::invalid_file(name, format!("{kind}, not a regular file")));
        }
        if metadata.len() == 0 {
            return Err(Error::invalid_file(name, "is empty"));
        }
        let location = std::path::absolute(path).map_err(|source| Error::io("locate", &name, source))?;
        let samples = samples(&file, metadata.len()).map_err(|source| Error::io("read", &name, source))?;
        Ok(FileSource {
            file,
            name,
            location,
            size: metadata.len(),
            samples,
            modified: Mutex::new(metadata.modified().ok()),
            is_logged: AtomicBool::new(false),
            inode: inode(&metadata),
            direct: OnceLock::new(),
        })
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Whether the file is as it was opened: of the same size, and with the same bytes in its samples where it was written to.
    pub(super) fn check(&self) -> Result<()> {
        let now = self.file.metadata().map_err(|source| Error::io("examine", &self.name, source))?;
        if now.len() != self.size {
            return Err(self.changed(format!("it had {} bytes and now has {}", self.size, now.len())));
        }
        let mut known = self.modified.lock().unwrap_or_else(PoisonError::into_inner);
        if now.modified().ok() == *known {
            return Ok(());
        }
        let samples = samples(&self.file, self.size).map_err(|source| Error::io("read", &self.name, source))?;
        if samples != self.samples {
            return Err(self.changed("it was written to"));
        }
        if !self.is_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!("{} was written to or touched while it is in use; its length and samples of its bytes are the same", self.name);
        }
        *known = now.modified().ok();
        Ok(())
    }

    /// The file for reads past the page cache, if it is still the same one.
    fn direct(&self) -> Option<&File> {
        let open = || direct::open(&self.location).filter(|file| file.metadata().is_ok_and(|now| inode(&now) == self.inode));
        self.direct.get_or_init(open).as_ref()
    }

    /// Whether `block` was read past the page cache, up to `len` at least; its offset, address and length must be aligned.
    fn fill_directly(&self, offset: u64, block: &mut [u8], len: usize) -> bool {
        self.direct().is_some_and(|file| direct::read(file, read_some, offset, block, len).is_some())
    }

    fn changed(&self, reason: impl Into<String>) -> Error {
        Error::FileChanged { path: self.name.clone(), reason: reason.into() }
    }

    fn ended_early(&self, offset: u64, wanted: usize, got: usize) -> Error {
        let reason = format!("the read of {wanted} bytes at offset {offset} ended after {got}");
        Error::invalid_file(&self.name, reason)
    }

    /// Whether the range lies inside the file as it was opened.
    pub(super) fn contains(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.size)
    }
}

impl ByteSource for FileSource {
    fn path(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let wanted = buffer.len();
        if !self.contains(offset, wanted as u64) {
            let reason = format!("a read of {wanted} bytes at offset {offset} passes its end at {}", self.size);
            return Err(Error::invalid_file(&self.name, reason));
        }
        let mut got = 0;
        while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match read_some(&self.file, rest, offset + got as u64) {
                Ok(0) => {
                    self.check()?;
                    return Err(self.ended_early(offset, wanted, got));
                }
                Ok(n) => got += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::io(format!("read {wanted} bytes at offset {offset} of"), &self.name, source)),
            }
        }
        // Checked after the bytes arrived: this also sees a change that happened while they were read.
        self.check()
    }

    fn read_direct<'b>(&self, offset: u64, len: usize, buffer: &'b mut DirectBuffer) -> Result<&'b [u8]> {
        let range = direct::aligned_range(offset, len).filter(|_| self.contains(offset, len as u64));
        if let Some((begin, whole, skip)) = range
            && self.fill_directly(begin, buffer.aligned(whole)?, skip + len)
        {
            self.check()?;
            return Ok(&buffer.aligned(whole)?[skip..skip + len]);
        }
        // Where that failed, the plain way says why, or succeeds.
        self.read_at(offset, buffer.aligned(len)?)?;
        self.drop_behind(offset, len as u64);
        Ok(buffer.aligned(len)?)
    }

    fn read_into(&self, offset: u64, block: &mut [u8], len: usize) -> Result<()> {
        if direct::is_aligned(offset, block) && self.contains(offset, len as u64) && self.fill_directly(offset, block, len) {
            return self.check();
        }
        self.read_at(offset, &mut block[..len])?;
        self.drop_behind(offset, len as u64);
        Ok(())
    }

    fn will_need(&self, offset: u64, len: u64) {
        advise(&self.file, offset, len, Advice::WillNeed);
    }

    fn drop_behind(&self, offset: u64, len: u64) {
        advise(&self.file, offset, len, Advice::DontNeed);
    }
}

/// A checksum over samples that are spread evenly over the file.
fn samples(file: &File, size: u64) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    let last = size.saturating_sub(SAMPLE_BYTES);
    let mut bytes = [0; SAMPLE_BYTES as usize];
    for index in 0..N_SAMPLES {
        let offset = (u128::from(last) * u128::from(index) / u128::from(N_SAMPLES - 1)) as u64;
        let mut got = 0;
        while got < bytes.len() {
            match read_some(file, &mut bytes[got..], offset + got as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        hasher.write(&bytes[..got]);
        if last == 0 {
            break;
        }
    }
    Ok(hasher.finish())
}

/// A range to drop, extended backwards. The page cache holds files in folios and keeps a folio that is only partly in the range.
/// A forward drops chunk after chunk, so that reaching back frees the folio that straddles two chunks.
#[cfg(unix)]
pub(super) fn reach_back(offset: u64, len: u64) -> (u64, u64) {
    const LARGEST_FOLIO: u64 = 2 << 20;
    let reach = LARGEST_FOLIO.min(offset);
    (offset - reach, len.saturating_add(reach))
}

/// What to do with a range of the page cache.
#[derive(Clone, Copy)]
pub(super) enum Advice {
    /// Read ahead.
    WillNeed,
    /// Forget.
    DontNeed,
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub(super) fn advise(file: &File, offset: u64, len: u64, advice: Advice) {
    let (offset, len, advice) = match advice {
        Advice::WillNeed => (offset, len, rustix::fs::Advice::WillNeed),
        Advice::DontNeed => {
            let (offset, len) = reach_back(offset, len);
            (offset, len, rustix::fs::Advice::DontNeed)
        }
    };
    if let Some(len) = std::num::NonZeroU64::new(len) {
        // Only a hint: a file system that cannot take it loses speed, not correctness.
        let _ = rustix::fs::fadvise(file, offset, Some(len), advice);
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
pub(super) fn advise(_file: &File, _offset: u64, _len: u64, _advice: Advice) {}

#[cfg(unix)]
fn open_without_blocking(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // O_NONBLOCK: the opening of a FIFO without a writer would wait for ever. Regular files do not notice it.
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

#[cfg(not(unix))]
fn open_without_blocking(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).open(path)
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn inode(_metadata: &Metadata) -> Option<(u64, u64)> {
    None
}

#[cfg(unix)]
fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file_of(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.bin");
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn reads_are_exact_and_stay_inside() {
        let (_folder, path) = file_of(b"0123456789");
        let source = FileSource::open(&path).unwrap();
        let mut buffer = [0; 4];
        source.read_at(6, &mut buffer).unwrap();
        assert_eq!(&buffer, b"6789");
        let reason = source.read_at(7, &mut buffer).unwrap_err().to_string();
        assert!(reason.contains("weights.bin") && reason.contains("offset 7"), "{reason}");
        assert!(source.read_at(u64::MAX, &mut buffer).is_err());
    }

    #[test]
    fn reads_into_a_block_bring_what_is_asked_for_up_to_the_end_of_the_file() {
        let bytes: Vec<u8> = (0..10_000u32).map(|byte| (byte / 7) as u8).collect();
        let (_folder, path) = file_of(&bytes);
        let source = FileSource::open(&path).unwrap();
        let mut block = crate::platform::Pages::of(crate::units::Bytes(8192)).unwrap();
        for (offset, begin, len) in [(0u64, 0usize, 4096usize), (4096, 0, 5904), (4096, 4096, 10), (123, 0, 8000), (4096, 7, 100)] {
            let range = if begin == 7 { 7..200 } else { begin..8192 };
            source.read_into(offset, &mut block[range.clone()], len).unwrap();
            assert_eq!(block[range][..len], bytes[offset as usize..][..len], "{len} bytes at {offset}");
        }
        let reason = source.read_into(8192, &mut block, 4096).unwrap_err().to_string();
        assert!(reason.contains("offset 8192"), "{reason}");
    }

    #[test]
    fn a_truncated_file_is_seen() {
        let (_folder, path) = file_of(&[1; 10_000]);
        let source = FileSource::open(&path).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
        for offset in [0, 5000] {
            let error = source.read_at(offset, &mut [0; 50]).unwrap_err();
            assert!(matches!(error, Error::FileChanged { .. }), "{error}");
            assert!(error.to_string().contains("10000 bytes and now has 100"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_replaced_or_deleted_is_read_to_its_end() {
        let bytes: Vec<u8> = (0..20_000u32).map(|byte| (byte / 7) as u8).collect();
        let (folder, path) = file_of(&bytes);
        let source = FileSource::open(&path).unwrap();
        let other = folder.path().join("other");
        std::fs::write(&other, [2; 20_000]).unwrap();
        std::fs::rename(&other, &path).unwrap();
        let mut block = crate::platform::Pages::of(crate::units::Bytes(8192)).unwrap();
        let mut check = || {
            let mut buffer = [0; 50];
            source.read_at(15_000, &mut buffer).unwrap();
            assert_eq!(buffer, bytes[15_000..][..50]);
            source.read_into(4096, &mut block, 4096).unwrap();
            assert_eq!(block[..4096], bytes[4096..][..4096]);
        };
        check();
        std::fs::remove_file(&path).unwrap();
        check();
    }

    #[test]
    fn a_file_that_is_touched_is_read_on() {
        let (_folder, path) = file_of(&[1; 100_000]);
        let source = FileSource::open(&path).unwrap();
        let touch = |secs| {
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(secs);
            OpenOptions::new().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        for secs in [1_000, 2_000] {
            touch(secs);
            source.read_at(50_000, &mut [0; 50]).unwrap();
        }
    }

    #[test]
    fn a_rewritten_file_is_seen_at_both_ends_and_between() {
        for (offset, size) in [(0, 100), (99, 100), (0, 1_000_000), (999_999, 1_000_000), (333_000, 1_000_000)] {
            let (_folder, path) = file_of(&vec![1; size]);
            let source = FileSource::open(&path).unwrap();
            let mut file = OpenOptions::new().write(true).open(&path).unwrap();
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset)).unwrap();
            file.write_all(&vec![2; (size - offset as usize).min(100_000)]).unwrap();
            // The clock of a file system ticks coarsely.
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            let error = source.read_at(0, &mut [0; 50]).unwrap_err();
            assert!(matches!(error, Error::FileChanged { .. }), "{error}");
        }
    }
}
