//! A vector of ones, as a file has it that is none: weights that checkpoints leave out.

use std::sync::Arc;

use super::derived::DerivedMatrix;
use crate::error::Result;
use crate::platform::ByteSource;

/// So many ones, in f32.
#[derive(Debug)]
pub(crate) struct Ones {
    /// A file of the checkpoint, for messages.
    source: Arc<dyn ByteSource>,
    n_values: u64,
}

impl Ones {
    pub(crate) fn new(source: Arc<dyn ByteSource>, n_values: u64) -> Ones {
        Ones { source, n_values }
    }
}

impl DerivedMatrix for Ones {
    fn source(&self) -> &dyn ByteSource {
        self.source.as_ref()
    }

    fn size(&self) -> u64 {
        4 * self.n_values
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let one = 1f32.to_le_bytes();
        for (byte, at) in buffer.iter_mut().zip(offset..) {
            *byte = one[(at % 4) as usize];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::in_memory::Memory;

    #[test]
    fn any_range_is_of_ones() {
        let ones = Ones::new(Arc::new(Memory(Vec::new())), 5);
        let mut all = vec![7; ones.size() as usize];
        ones.read(0, &mut all).unwrap();
        assert_eq!(all, 1f32.to_le_bytes().repeat(5));
        let mut some = [7; 6];
        ones.read(3, &mut some).unwrap();
        assert_eq!(some, all[3..9]);
    }
}
