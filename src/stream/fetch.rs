//! Which ranges of the files are read for a chunk. Neighbouring bytes of a file are read at once, whatever their order in the chunk:
//! disks are fast with few large requests, and the matrices of a layer mostly lie together.

use std::ops::Range;

use crate::device::Device;
use crate::plan::{Chunk, FILE_ALIGNMENT, FileRange, Slice, file_ranges};
use crate::platform::DIRECT_ALIGNMENT;
use crate::units::Bytes;
use crate::weights::Catalog;

/// Most bytes of a read: with the rounding to a disk's blocks at both ends, two large pages hold it.
const MOST_BYTES: u64 = (4 << 20) - (8 << 10);
/// Bytes between two slices that are read and thrown away, at most: they take about as long as the fixed time of another read.
const GAP_BYTES: u64 = 128 << 10;

/// How a chunk comes from disk.
#[derive(Debug)]
pub(super) enum Reads {
    /// It is not stored on disk.
    None,
    /// Into a buffer, and from there to the places in the slot.
    Copied(Vec<Fetch>),
    /// Into the slot itself, which has the layout of the files.
    InPlace(Vec<InPlaceRead>),
}

impl Reads {
    /// The reads that bring `chunk` to who computes with it.
    pub(super) fn of(chunk: &Chunk, executor: Device, catalog: &Catalog) -> Reads {
        let ranges = if executor == Device::Cpu { file_ranges(chunk, catalog) } else { None };
        match (chunk.stored_on, ranges) {
            (Device::Disk, Some(ranges)) => Reads::InPlace(in_place_reads(&ranges)),
            (Device::Disk, None) => Reads::Copied(fetches(chunk, catalog)),
            _ => Reads::None,
        }
    }
}

/// One read into the slot itself.
#[derive(Debug, PartialEq)]
pub(super) struct InPlaceRead {
    /// Which file of the checkpoint.
    pub(super) shard: u32,
    /// Where in the file.
    pub(super) offset: u64,
    /// The range of the chunk's block; its bytes beyond `len` have no meaning.
    pub(super) block: Range<usize>,
    /// How much of it.
    pub(super) len: usize,
}

/// One read, and where its bytes belong in the chunk.
#[derive(Debug, PartialEq)]
pub(super) struct Fetch {
    /// Which file of the checkpoint.
    pub(super) shard: u32,
    /// Where in the file.
    pub(super) offset: u64,
    /// How much of it.
    pub(super) len: usize,
    parts: Vec<Part>,
}

/// Part of a slice within a read.
#[derive(Debug, PartialEq)]
struct Part {
    /// Where they are in the buffer of the read.
    from: usize,
    len: usize,
    /// Where they belong in the chunk's block.
    to: usize,
}

impl Fetch {
    /// Bytes of it that are weights.
    pub(super) fn stored_bytes(&self) -> Bytes {
        Bytes(self.parts.iter().map(|part| part.len as u64).sum())
    }

    /// What was read, as parts, each with its place in the chunk's block.
    pub(super) fn parts<'a>(&'a self, read: &'a [u8]) -> impl Iterator<Item = (usize, &'a [u8])> {
        self.parts.iter().map(|part| (part.to, &read[part.from..part.from + part.len]))
    }

    /// Takes as much of `rest` as one read may bring, or nothing of it.
    fn take(&mut self, shard: u32, rest: &mut Rest) {
        let end = self.offset + self.len as u64;
        let is_near = self.shard == shard && rest.offset.checked_sub(end).is_some_and(|gap| gap <= GAP_BYTES);
        let from = rest.offset.saturating_sub(self.offset);
        let len = rest.len.min(MOST_BYTES.saturating_sub(from));
        if !is_near || len == 0 {
            return;
        }
        self.parts.push(Part { from: from as usize, len: len as usize, to: rest.to as usize });
        self.len = (from + len) as usize;
        *rest = Rest { offset: rest.offset + len, len: rest.len - len, to: rest.to + len };
    }
}

/// The rest of a slice: where it is in its file and where it belongs in the chunk.
struct Rest {
    offset: u64,
    len: u64,
    to: u64,
}

/// The reads that bring `chunk`, in the order of the files.
fn fetches(chunk: &Chunk, catalog: &Catalog) -> Vec<Fetch> {
    let mut slices: Vec<&Slice> = chunk.slices.iter().collect();
    slices.sort_by_key(|slice| slice.place(catalog));
    let mut fetches: Vec<Fetch> = Vec::new();
    for slice in slices {
        let (shard, offset) = slice.place(catalog);
        let mut rest = Rest { offset, len: slice.size_bytes, to: slice.offset };
        if let Some(last) = fetches.last_mut() {
            last.take(shard, &mut rest);
        }
        while rest.len > 0 {
            let mut fetch = Fetch { shard, offset: rest.offset, len: 0, parts: Vec::new() };
            fetch.take(shard, &mut rest);
            fetches.push(fetch);
        }
    }
    fetches
}

/// Most bytes of a read that is not rounded: two large pages.
const MOST_IN_PLACE_BYTES: u64 = 4 << 20;
const _: () = assert!(MOST_IN_PLACE_BYTES.is_multiple_of(FILE_ALIGNMENT));
// Otherwise reads into slots would silently take the slow path, through the page cache.
const _: () = assert!(FILE_ALIGNMENT.is_multiple_of(DIRECT_ALIGNMENT as u64));

fn in_place_reads(ranges: &[FileRange]) -> Vec<InPlaceRead> {
    let mut reads = Vec::new();
    for range in ranges {
        for done in (0..range.len).step_by(MOST_IN_PLACE_BYTES as usize) {
            let len = (range.len - done).min(MOST_IN_PLACE_BYTES);
            let begin = range.block_offset + done;
            let block = begin as usize..(begin + len).next_multiple_of(FILE_ALIGNMENT) as usize;
            reads.push(InPlaceRead { shard: range.shard, offset: range.file_offset + done, block, len: len as usize });
        }
    }
    reads
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::samples::{chunk_of, chunk_with_gaps};

    fn ranges(fetches: &[Fetch]) -> Vec<(u32, u64, usize)> {
        fetches.iter().map(|fetch| (fetch.shard, fetch.offset, fetch.len)).collect()
    }

    #[test]
    fn what_lies_together_is_read_at_once_and_what_does_not_is_not() {
        let (chunk, catalog) = chunk_of(&[(0, 3000, 1000), (0, 1000, 500), (1, 1500, 700), (0, 900_000, 300)]);
        let fetches = fetches(&chunk, &catalog);
        assert_eq!(ranges(&fetches), [(0, 1000, 3000), (0, 900_000, 300), (1, 1500, 700)]);
        assert_eq!(fetches[0].stored_bytes(), Bytes(1500));
        let read: Vec<u8> = (0..3000u32).map(|byte| (byte / 10) as u8).collect();
        let parts: Vec<_> = fetches[0].parts(&read).collect();
        assert_eq!(parts, [(1024, &read[..500]), (0, &read[2000..])]);
    }

    #[test]
    fn a_range_is_read_in_steps_up_to_the_end_of_its_last_slice() {
        let range = FileRange { shard: 1, file_offset: 8192, block_offset: 4096, len: MOST_IN_PLACE_BYTES + 5 };
        let (step, second) = (MOST_IN_PLACE_BYTES as usize, 8192 + MOST_IN_PLACE_BYTES);
        let reads = in_place_reads(&[range]);
        assert_eq!(
            reads,
            [
                InPlaceRead { shard: 1, offset: 8192, block: 4096..4096 + step, len: step },
                InPlaceRead { shard: 1, offset: second, block: 4096 + step..8192 + step, len: 5 },
            ]
        );
    }

    proptest! {
        #[test]
        fn every_byte_comes_once_and_no_read_is_too_large(
            gaps in prop::collection::vec((0u64..200_000, 1u64..6_000_000, 0u32..2), 1..8),
            turn in any::<usize>(),
        ) {
            let (chunk, catalog) = chunk_with_gaps(&gaps, turn);
            let fetches = fetches(&chunk, &catalog);
            let mut came: Vec<(u64, u64, u32, u64)> = Vec::new();
            for fetch in &fetches {
                prop_assert!(fetch.len as u64 <= MOST_BYTES);
                for part in &fetch.parts {
                    prop_assert!(part.from + part.len <= fetch.len);
                    came.push((part.to as u64, part.len as u64, fetch.shard, fetch.offset + part.from as u64));
                }
            }
            came.sort_unstable();
            let mut came = came.into_iter().peekable();
            for slice in &chunk.slices {
                let tensor = &catalog[slice.tensor];
                let mut done = 0;
                while done < slice.size_bytes {
                    let (to, len, shard, from) = came.next().unwrap();
                    prop_assert_eq!((to, shard, from), (slice.offset + done, tensor.shard, tensor.offset + done));
                    done += len;
                }
                prop_assert_eq!(done, slice.size_bytes);
            }
            prop_assert!(came.next().is_none());
        }
    }
}
