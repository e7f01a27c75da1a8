//! A file of matrices that are made of what other files store, as they are read: plans, slots and kernels know one order and few dtypes.

use std::fmt;
use std::sync::Arc;

use crate::error::Result;
use crate::platform::{self, ByteSource};
use crate::units::Bytes;
use crate::weights::Shard;

/// A matrix that is made of what a file stores.
pub(crate) trait DerivedMatrix: fmt::Debug + Send + Sync {
    /// Where it is stored.
    fn source(&self) -> &dyn ByteSource;

    /// Bytes that it is made into.
    fn size(&self) -> u64;

    /// Those from `offset` on, which lie in it.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

/// A part of a matrix, which is filled with what of each block lies in it.
pub(super) struct Wanted<'a> {
    pub(super) offset: u64,
    pub(super) buffer: &'a mut [u8],
}

impl Wanted<'_> {
    /// Takes what is wanted of `block`, which begins at byte `at` of the matrix.
    pub(super) fn put(&mut self, at: u64, block: &[u8]) {
        let (begin, end) = (at.max(self.offset), (at + block.len() as u64).min(self.offset + self.buffer.len() as u64));
        if begin < end {
            let target = (begin - self.offset) as usize..(end - self.offset) as usize;
            self.buffer[target].copy_from_slice(&block[(begin - at) as usize..(end - at) as usize]);
        }
    }
}

/// The matrices, one behind the other.
#[derive(Debug, Default)]
pub(crate) struct DerivedFile {
    /// The first file, for messages.
    path: String,
    len: u64,
    matrices: Vec<(u64, Box<dyn DerivedMatrix>)>,
}

impl DerivedFile {
    /// Appends a matrix; where its bytes begin here, and how many they are.
    pub(crate) fn push(&mut self, matrix: impl DerivedMatrix + 'static) -> (u64, Bytes) {
        if self.matrices.is_empty() {
            matrix.source().path().clone_into(&mut self.path);
        }
        let (begin, size) = (self.len, Bytes(matrix.size()));
        self.len = (begin + size.0).next_multiple_of(platform::DIRECT_ALIGNMENT as u64);
        self.matrices.push((begin, Box::new(matrix)));
        (begin, size)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.matrices.is_empty()
    }
}

/// Adds a file that is made to those that a checkpoint has.
pub(crate) fn add_file(file: impl ByteSource + 'static, shards: &mut Vec<Shard>, sources: &mut Vec<Arc<dyn ByteSource>>) {
    shards.push(Shard { path: file.path().to_owned(), size_bytes: Bytes(file.len()) });
    sources.push(Arc::new(file));
}

impl ByteSource for DerivedFile {
    fn path(&self) -> &str {
        &self.path
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset + buffer.len() as u64;
        // What lies between matrices is nobody's.
        buffer.fill(0);
        // Those that begin before the end; of them only the last few reach behind the offset.
        let behind = self.matrices.partition_point(|(begin, _)| *begin < end);
        for (begin, matrix) in self.matrices[..behind].iter().rev() {
            let (from, to) = ((*begin).max(offset), (begin + matrix.size()).min(end));
            if from < to {
                matrix.read(from - begin, &mut buffer[(from - offset) as usize..(to - offset) as usize])?;
            }
            if *begin <= offset {
                break;
            }
        }
        Ok(())
    }
}
