//! The reads themselves, of files that were opened for them.

use std::fs::File;
use std::io;

use super::ALIGNMENT;

/// The aligned range around `len` bytes at `offset`: where it begins, its length, and where the wanted bytes begin in it.
pub fn aligned_range(offset: u64, len: usize) -> Option<(u64, usize, usize)> {
    let skip = usize::try_from(offset % ALIGNMENT as u64).ok()?;
    let whole = skip.checked_add(len)?.checked_next_multiple_of(ALIGNMENT)?;
    Some((offset - skip as u64, whole, skip))
}

/// Whether such a read may fill all of `block` from `offset` on.
pub fn is_aligned(offset: u64, block: &[u8]) -> bool {
    offset.is_multiple_of(ALIGNMENT as u64) && block.len().is_multiple_of(ALIGNMENT) && block.as_ptr().align_offset(ALIGNMENT) == 0
}

/// Opens a file for such reads; `None` where the system or the file system has none.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn open(path: &std::path::Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT | libc::O_NONBLOCK).open(path).ok()
}

/// As above; here there are none.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn open(_path: &std::path::Path) -> Option<File> {
    None
}

/// Fills `buffer` from `offset` on until it holds `needed` bytes; the rest may lie past the end of the file.
/// `None` where the file system turns out not to allow such reads: read another way.
pub fn read(
    file: &File,
    read_some: impl Fn(&File, &mut [u8], u64) -> io::Result<usize>,
    offset: u64,
    buffer: &mut [u8],
    needed: usize,
) -> Option<()> {
    let mut got = 0;
    while got < needed {
        match read_some(file, buffer.get_mut(got..)?, offset + got as u64) {
            Ok(n) if n > 0 && (got + n >= needed || n.is_multiple_of(ALIGNMENT)) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return None,
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_aligned_and_hold_what_is_wanted() {
        assert_eq!(aligned_range(0, 4096), Some((0, 4096, 0)));
        assert_eq!(aligned_range(5000, 10), Some((4096, 4096, 904)));
        assert_eq!(aligned_range(8191, 2), Some((4096, 8192, 4095)));
        assert_eq!(aligned_range(1, usize::MAX), None);
    }
}
