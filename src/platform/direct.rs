//! Direct I/O (reads past the page cache), for weights that are read again at every forward and must not fill memory.
//! Cheaper too: the kernel neither looks for pages nor copies out of them.

#[cfg(not(target_arch = "wasm32"))]
mod reads;

#[cfg(not(target_arch = "wasm32"))]
pub(super) use reads::{aligned_range, is_aligned, open, read};

use super::pages::{LARGE_PAGE, Pages};
use crate::error::Result;
use crate::units::Bytes;

/// Offsets, lengths and addresses of such reads are multiples of this, which is a multiple of every disk's logical block.
pub const ALIGNMENT: usize = 4096;

/// Memory that a disk can write to directly; grows to the largest request and is used again.
#[derive(Debug, Default)]
pub struct DirectBuffer {
    pages: Option<Pages>,
}

impl DirectBuffer {
    /// `len` bytes at an aligned address.
    ///
    /// # Errors
    /// [`Error::Io`] where the system has no memory left.
    pub(super) fn aligned(&mut self, len: usize) -> Result<&mut [u8]> {
        let pages = match self.pages.take() {
            Some(pages) if pages.len() >= len => pages,
            // Whole large pages, since a last one that is not whole would lie in small ones.
            _ => Pages::of(Bytes(len as u64).align_up(LARGE_PAGE as u64))?,
        };
        Ok(&mut self.pages.insert(pages)[..len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_grow() {
        let mut buffer = DirectBuffer::default();
        for len in [4096, 8192, 4096, 1 << 20] {
            let bytes = buffer.aligned(len).unwrap();
            assert_eq!((bytes.len(), bytes.as_ptr().align_offset(ALIGNMENT)), (len, 0));
        }
    }
}
