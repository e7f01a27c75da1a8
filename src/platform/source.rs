//! Where the bytes of a model come from: the trait, and opening a source by path. Knows nothing of what the bytes mean.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::direct::DirectBuffer;
use crate::error::{Error, Result, Setting};

/// A source of a model's bytes. Offsets are absolute and requests are ranges, so that a file or a server can answer them.
#[expect(clippy::len_without_is_empty, reason = "an empty file is refused at opening")]
pub trait ByteSource: Send + Sync + fmt::Debug {
    /// What the source is called in messages: its path as it was given.
    fn path(&self) -> &str;

    /// Its size in bytes when it was opened.
    fn len(&self) -> u64;

    /// Reads exactly `buffer.len()` bytes from `offset` on. A source that was truncated or rewritten since its opening is
    /// [`Error::FileChanged`]; a read that fails or ends early is an error with path and offset.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Reads as [`ByteSource::read_at`] does, but by direct I/O where the source can, past the page cache: for bytes that are read
    /// again and again and may not be kept in memory. They are in `buffer` until its next use.
    fn read_direct<'b>(&self, offset: u64, len: usize, buffer: &'b mut DirectBuffer) -> Result<&'b [u8]> {
        self.read_at(offset, buffer.aligned(len)?)?;
        Ok(buffer.aligned(len)?)
    }

    /// As [`ByteSource::read_direct`], into the first `len` bytes of `block`; what lies behind may be overwritten. Fastest where
    /// offset, address and length of `block` are multiples of 4096.
    fn read_into(&self, offset: u64, block: &mut [u8], len: usize) -> Result<()> {
        self.read_at(offset, &mut block[..len])
    }

    /// The bytes themselves, where the source is mapped, the range is inside it and it is unchanged.
    /// `None` means: read them (and see the error, if there is one).
    fn view(&self, _offset: u64, _len: u64) -> Option<&[u8]> {
        None
    }

    /// A hint that the range will be read soon. Never fails.
    fn will_need(&self, _offset: u64, _len: u64) {}

    /// A hint that the range will not be read soon, so that no memory need hold it. Never fails.
    fn drop_behind(&self, _offset: u64, _len: u64) {}
}

/// How the system is asked for the bytes of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IoMode {
    /// Positioned reads; the file may also be mapped, and is checked before a view of it is handed out.
    Mmap,
    /// Positioned reads only: errors of the disk arrive as errors.
    #[default]
    Pread,
}

impl fmt::Display for IoMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            IoMode::Mmap => "mmap",
            IoMode::Pread => "pread",
        })
    }
}

impl FromStr for IoMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<IoMode> {
        match text {
            "mmap" => Ok(IoMode::Mmap),
            "pread" => Ok(IoMode::Pread),
            _ => Err(Error::InvalidArgument { option: Setting::Io.into(), reason: format!("`{text}` is not known; write mmap or pread") }),
        }
    }
}

/// Opens a regular, non-empty file. FIFOs, devices and folders are refused without blocking on them.
#[cfg(not(target_arch = "wasm32"))]
pub fn open_source(path: &Path, mode: IoMode) -> Result<Arc<dyn ByteSource>> {
    let file = super::file::FileSource::open(path)?;
    match mode {
        IoMode::Pread => Ok(Arc::new(file)),
        IoMode::Mmap => super::mapping::map(file),
    }
}

/// A browser has no files to open by path.
#[cfg(target_arch = "wasm32")]
pub fn open_source(path: &Path, _mode: IoMode) -> Result<Arc<dyn ByteSource>> {
    Err(Error::io("open", path.display(), std::io::ErrorKind::Unsupported.into()))
}

/// Reads all of a source of at most `cap` bytes.
pub(super) fn read_small(source: &dyn ByteSource, cap: u64) -> Result<Vec<u8>> {
    if source.len() > cap {
        let reason = format!("has {} bytes, more than the {cap} that are allowed for this file", source.len());
        return Err(Error::invalid_file(source.path(), reason));
    }
    let len = usize::try_from(source.len()).map_err(|_| Error::invalid_file(source.path(), "is too large for this machine"))?;
    let mut bytes = vec![0; len];
    source.read_at(0, &mut bytes)?;
    Ok(bytes)
}
