//! Reads past the page cache, for weights that are read again at every forward and must not fill memory on their way.
//! Cheaper too: the kernel neither looks for pages nor copies out of them.

#[cfg(not(target_arch = "wasm32"))]
mod reads;

#[cfg(not(target_arch = "wasm32"))]
pub(super) use reads::{aligned_range, open, read};

/// Offsets, lengths and addresses of such reads are multiples of this; every disk's logical block divides it.
const ALIGNMENT: usize = 4096;

/// Memory that a disk can write to directly; grows to the largest request and is used again.
#[derive(Debug, Default)]
pub struct DirectBuffer {
    bytes: Vec<u8>,
}

impl DirectBuffer {
    /// `len` bytes at an aligned address.
    pub(super) fn aligned(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() < len + ALIGNMENT {
            self.bytes = vec![0; len + ALIGNMENT];
        }
        let begin = self.bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        &mut self.bytes[begin..begin + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_grow() {
        let mut buffer = DirectBuffer::default();
        for len in [4096, 8192, 4096, 1 << 20] {
            let bytes = buffer.aligned(len);
            assert_eq!((bytes.len(), bytes.as_ptr().align_offset(ALIGNMENT)), (len, 0));
        }
    }
}
