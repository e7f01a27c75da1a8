//! The layout of chunks that are read from disk straight into their slots: slices have the same distances as in the file, so that nothing
//! has to be copied to its place.

use crate::plan::{Chunk, Slice};
use crate::units::Bytes;
use crate::weights::Catalog;

/// The offset of such a slice in its block equals its offset in the file modulo this. A multiple of a disk's logical block, as offsets,
/// lengths and addresses of direct I/O must be.
pub const FILE_ALIGNMENT: u64 = 4096;

/// Most bytes that a slice adds to such a chunk as padding: the rest of a block of the file before and after it.
pub(super) const SLICE_PADDING: Bytes = Bytes(2 * FILE_ALIGNMENT);

/// A range of a file that a chunk contains unchanged, rounded to [`FILE_ALIGNMENT`] at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRange {
    /// Which file of the checkpoint.
    pub shard: u32,
    /// Where in the file; a multiple of [`FILE_ALIGNMENT`].
    pub file_offset: u64,
    /// Where in the chunk's block; a multiple of [`FILE_ALIGNMENT`].
    pub block_offset: u64,
    /// Bytes up to the end of its last slice, which may be the end of the file.
    pub len: u64,
}

impl FileRange {
    fn block_end(&self) -> u64 {
        (self.block_offset + self.len).next_multiple_of(FILE_ALIGNMENT)
    }
}

/// Lays `chunk` out as in the files: slices that are near each other there keep their distance, and the gaps between such ranges are left
/// out.
pub(super) fn lay_out_as_in_files(chunk: &mut Chunk, catalog: &Catalog) {
    let ranges = ranges_of(&chunk.slices, catalog);
    chunk.size_bytes = size_of(&ranges);
    for slice in &mut chunk.slices {
        let (shard, offset) = slice.place(catalog);
        let holds = |range: &&FileRange| range.shard == shard && (range.file_offset..range.file_offset + range.len).contains(&offset);
        if let Some(range) = ranges.iter().find(holds) {
            slice.offset = range.block_offset + (offset - range.file_offset);
        }
    }
}

/// Bytes of the block that `chunk` has once it is [laid out](lay_out_as_in_files).
pub(super) fn size_as_in_files(chunk: &Chunk, catalog: &Catalog) -> Bytes {
    size_of(&ranges_of(&chunk.slices, catalog))
}

fn size_of(ranges: &[FileRange]) -> Bytes {
    Bytes(ranges.last().map_or(0, FileRange::block_end))
}

/// The ranges that a chunk consists of, in the order of the files; `None` where it is not laid out so.
pub fn file_ranges(chunk: &Chunk, catalog: &Catalog) -> Option<Vec<FileRange>> {
    let mut laid_out = chunk.clone();
    lay_out_as_in_files(&mut laid_out, catalog);
    (laid_out == *chunk).then(|| ranges_of(&chunk.slices, catalog))
}

/// The ranges of these slices. Slices are one range where they are adjacent, or so near that two paddings would take more than the gap.
fn ranges_of(slices: &[Slice], catalog: &Catalog) -> Vec<FileRange> {
    let mut places: Vec<(u32, u64, u64)> = slices
        .iter()
        .map(|slice| {
            let (shard, offset) = slice.place(catalog);
            (shard, offset, slice.size_bytes)
        })
        .collect();
    places.sort_unstable();
    let mut ranges: Vec<FileRange> = Vec::new();
    for (shard, offset, len) in places {
        let end = offset + len;
        match ranges.last_mut() {
            Some(last) if last.shard == shard && offset <= last.file_offset + last.len + SLICE_PADDING.0 => {
                last.len = last.len.max(end - last.file_offset);
            }
            last => {
                let file_offset = offset / FILE_ALIGNMENT * FILE_ALIGNMENT;
                let block_offset = last.map_or(0, |last| last.block_end());
                ranges.push(FileRange { shard, file_offset, block_offset, len: end - file_offset });
            }
        }
    }
    ranges
}

/// Chunks and catalogs for tests of layouts and reads.
#[cfg(test)]
pub(crate) mod samples {
    use crate::device::Device;
    use crate::dtype::DType;
    use crate::plan::{Chunk, SLICE_ALIGNMENT, Slice};
    use crate::units::Bytes;
    use crate::weights::{Catalog, Shard, TensorId, TensorInfo};

    /// Tensors of bytes as (shard, offset, size) in two files, and a chunk of all of them in this order.
    pub(crate) fn chunk_of(tensors: &[(u32, u64, u64)]) -> (Chunk, Catalog) {
        let info = |(index, &(shard, offset, size)): (usize, &(u32, u64, u64))| TensorInfo {
            name: index.to_string(),
            dtype: DType::F16,
            shape: vec![size / 2, 1],
            shard,
            offset,
            size_bytes: Bytes(size),
        };
        let file = Shard { path: "x".into(), size_bytes: Bytes::gib(1) };
        let catalog = Catalog::new(vec![file.clone(), file], tensors.iter().enumerate().map(info).collect());
        let mut block = 0;
        let slice = |(index, &(_, _, size_bytes)): (usize, &(u32, u64, u64))| {
            let offset = block;
            block += size_bytes.next_multiple_of(SLICE_ALIGNMENT);
            Slice { tensor: TensorId(index as u32), first_row: 0, n_rows: size_bytes / 2, offset, size_bytes }
        };
        let slices = tensors.iter().enumerate().map(slice).collect();
        (Chunk { stored_on: Device::Disk, slices, work: Vec::new(), size_bytes: Bytes(block), is_cached: false }, catalog)
    }

    /// As [`chunk_of`], of tensors that follow in their file after a gap each, as (gap, values, shard), rotated by `turn`.
    pub(crate) fn chunk_with_gaps(gaps: &[(u64, u64, u32)], turn: usize) -> (Chunk, Catalog) {
        let mut ends = [8u64; 2];
        let behind = |&(gap, values, shard): &(u64, u64, u32)| {
            let offset = ends[shard as usize] + gap;
            ends[shard as usize] = offset + 2 * values;
            (shard, offset, 2 * values)
        };
        let mut tensors: Vec<(u32, u64, u64)> = gaps.iter().map(behind).collect();
        tensors.rotate_left(turn % gaps.len());
        chunk_of(&tensors)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::samples::{chunk_of, chunk_with_gaps};
    use super::*;

    #[test]
    fn what_lies_near_is_one_range_and_what_does_not_is_closed_up() {
        let (mut chunk, catalog) = chunk_of(&[(0, 9000, 100), (0, 5000, 300), (1, 6000, 5000), (0, 90_000, 10)]);
        assert_eq!(file_ranges(&chunk, &catalog), None);
        lay_out_as_in_files(&mut chunk, &catalog);
        let offsets: Vec<u64> = chunk.slices.iter().map(|slice| slice.offset).collect();
        assert_eq!(offsets, [9000 - 4096, 5000 - 4096, 12_288 + 6000 - 4096, 8192 + 90_000 % 4096]);
        assert_eq!(chunk.size_bytes, Bytes(20_480));
        let range = |shard, file_offset, block_offset, len| FileRange { shard, file_offset, block_offset, len };
        let expected = [range(0, 4096, 0, 5004), range(0, 86_016, 8192, 3994), range(1, 4096, 12_288, 6904)];
        assert_eq!(file_ranges(&chunk, &catalog).unwrap(), expected);
    }

    proptest! {
        #[test]
        fn ranges_hold_all_slices_apart_from_each_other(
            gaps in prop::collection::vec((0u64..20_000, 1u64..60_000, 0u32..2), 1..8),
            turn in 0usize..8,
        ) {
            let (mut chunk, catalog) = chunk_with_gaps(&gaps, turn);
            let most = chunk.stored_bytes() + SLICE_PADDING.times(gaps.len() as u64);
            let promised = size_as_in_files(&chunk, &catalog);
            lay_out_as_in_files(&mut chunk, &catalog);
            prop_assert_eq!(chunk.size_bytes, promised);
            prop_assert!(chunk.size_bytes <= most);
            let ranges = file_ranges(&chunk, &catalog).unwrap();
            let mut block_end = 0;
            for range in &ranges {
                prop_assert_eq!((range.file_offset % FILE_ALIGNMENT, range.block_offset % FILE_ALIGNMENT), (0, 0));
                prop_assert!(range.block_offset >= block_end);
                block_end = range.block_end();
            }
            prop_assert!(block_end == chunk.size_bytes.0);
            for slice in &chunk.slices {
                let (shard, offset) = slice.place(&catalog);
                let holds = |range: &&FileRange| {
                    range.shard == shard && range.file_offset <= offset && offset + slice.size_bytes <= range.file_offset + range.len
                };
                let range = ranges.iter().find(holds).unwrap();
                prop_assert_eq!(slice.offset - range.block_offset, offset - range.file_offset);
            }
        }
    }
}
