//! Memory for many bytes, in large pages where the system has them: a disk's transfer into such memory, and a walk through it, touch
//! few pages instead of thousands. On a virtual disk, reads of 2 MiB past the page cache were twice as fast that way and took a
//! quarter of the system's time (3.3 GB/s and 28 ms of it per GB, beside 1.5–2 GB/s and 95–120 ms); decoding on two cores gained 5–15 %.

use std::io;
use std::ops::{Deref, DerefMut};

use crate::error::{Error, Result};
use crate::units::Bytes;

/// The size of a large page, and what the address is a multiple of where there are any.
pub const LARGE_PAGE: usize = 2 << 20;

/// Zeroed memory. Where the system gives large pages, all of it but what is left behind the last whole one lies in them.
#[derive(Debug)]
pub struct Pages {
    memory: Memory,
    begin: usize,
    len: usize,
}

impl Pages {
    /// So much memory.
    ///
    /// # Errors
    /// [`Error::Io`] where the system has it not.
    pub fn of(size: Bytes) -> Result<Pages> {
        let len = usize::try_from(size.0).map_err(|_| io::ErrorKind::OutOfMemory.into());
        let made = len.and_then(|len| allocate(len).map(|(memory, begin)| Pages { memory, begin, len }));
        made.map_err(|fault| Error::io("allocate", format!("{size} of host memory"), fault))
    }
}

#[cfg(not(target_arch = "wasm32"))]
type Memory = memmap2::MmapMut;

/// Memory that `len` bytes fit in, and where in it they begin.
#[cfg(not(target_arch = "wasm32"))]
fn allocate(len: usize) -> io::Result<(Memory, usize)> {
    let memory = Memory::map_anon(len.checked_add(LARGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?)?;
    let begin = memory.as_ptr().align_offset(LARGE_PAGE).min(LARGE_PAGE);
    // A system that has no large pages goes on with small ones.
    #[cfg(target_os = "linux")]
    if len >= LARGE_PAGE {
        let _ = memory.advise_range(memmap2::Advice::HugePage, begin, len / LARGE_PAGE * LARGE_PAGE);
    }
    Ok((memory, begin))
}

#[cfg(target_arch = "wasm32")]
type Memory = Vec<u8>;

#[cfg(target_arch = "wasm32")]
fn allocate(len: usize) -> io::Result<(Memory, usize)> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    memory.resize(len, 0);
    Ok((memory, 0))
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.begin..self.begin + self.len]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.begin..self.begin + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zeroed_aligned_and_as_long_as_asked() {
        for len in [1, 4096, LARGE_PAGE - 1, LARGE_PAGE, 2 * LARGE_PAGE + 5] {
            let mut pages = Pages::of(Bytes(len as u64)).unwrap();
            assert_eq!((pages.len(), pages.as_ptr().align_offset(LARGE_PAGE)), (len, 0));
            assert!(pages.iter().all(|byte| *byte == 0));
            pages.fill(7);
            assert_eq!(pages[len - 1], 7);
        }
        let fault = Pages::of(Bytes(u64::MAX)).unwrap_err().to_string();
        assert!(fault.contains("of host memory"), "{fault}");
    }
}
