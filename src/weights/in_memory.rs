//! A file in memory, for the tests of this module.

use crate::error::Result;
use crate::platform::ByteSource;

/// The bytes of the file. It must not be read past its end.
#[derive(Debug)]
pub(super) struct Memory(pub(super) Vec<u8>);

impl ByteSource for Memory {
    fn path(&self) -> &str {
        "memory"
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        buffer.copy_from_slice(&self.0[offset as usize..][..buffer.len()]);
        Ok(())
    }
}
