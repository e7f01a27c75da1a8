//! Matrices that a file has transposed or with their rows in another order, as a file of their own that has them row by row as the model
//! computes with them. The values pass as they are stored; they change places on the way from the disk to wherever their placement is,
//! so that plans, slots and kernels know one order only.

use std::sync::Arc;

use crate::error::Result;
use crate::platform::{self, ByteSource};
use crate::units::Bytes;
use crate::weights::TensorInfo;
use crate::weights::derived::{DerivedFile, DerivedMatrix};

/// Bytes that are read at a time, at most, where a row of the file is not longer.
const BLOCK_BYTES: u64 = 256 << 10;

/// In which order a file has a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Its columns are where others have rows.
    Transposed,
    /// The rows of one head behind those of another, each head with those of all parts; as the model computes with them, all heads of a
    /// part are one behind the other. Vectors have single values as rows.
    ByHeads {
        /// How many heads.
        n_heads: u64,
        /// Rows that each has of each part, such as queries, keys and values; 0 of those that there are not.
        parts: [u64; 4],
    },
    /// The first rows of each head, transposed; the others are left out.
    HeadsTransposed {
        /// How many heads.
        n_heads: u64,
        /// How many rows of each.
        n_rows: u64,
    },
}

/// A matrix that a file has otherwise.
#[derive(Debug)]
struct Rearranged {
    source: Arc<dyn ByteSource>,
    /// Where the file has it.
    stored: u64,
    /// How many bytes of it the file has.
    stored_size: Bytes,
    n_rows: u64,
    n_columns: u64,
    /// Bytes of a value, where values are stored one by one.
    width: u64,
    size: Bytes,
    order: Order,
}

/// Makes of each of `tensors` of the files `sources` one of file number `shard`; those to transpose have single values. `None` where there
/// are none.
pub(crate) fn rearranged(tensors: Vec<(&mut TensorInfo, Order)>, sources: &[Arc<dyn ByteSource>], shard: u32) -> Option<DerivedFile> {
    let mut file = DerivedFile::default();
    for (tensor, order) in tensors {
        let Some(source) = sources.get(tensor.shard as usize) else { continue };
        let (stored_size, width) = (tensor.size_bytes, tensor.size_bytes.0 / tensor.n_values().max(1));
        match (tensor.shape.as_mut_slice(), order) {
            ([n_rows, n_columns], Order::Transposed) => std::mem::swap(n_rows, n_columns),
            ([n_all, n_columns], Order::HeadsTransposed { n_heads, n_rows }) if n_heads * n_rows <= *n_all => {
                (*n_all, *n_columns) = (n_heads * *n_columns, n_rows);
                tensor.size_bytes = Bytes(tensor.n_values() * width);
            }
            ([n_found, n_rows, n_columns], Order::HeadsTransposed { n_heads, n_rows: n_expected })
                if (*n_found, *n_rows) == (n_heads, n_expected) =>
            {
                std::mem::swap(n_rows, n_columns);
            }
            ([n_rows, ..], Order::ByHeads { n_heads, parts }) if *n_rows > 0 && *n_rows == n_heads * parts.iter().sum::<u64>() => {}
            // The model will say that it has another shape.
            _ => continue,
        }
        let n_columns = match order {
            Order::HeadsTransposed { n_rows, .. } => n_rows,
            Order::Transposed | Order::ByHeads { .. } => tensor.shape[1..].iter().product(),
        };
        let n_rows = tensor.n_values() / n_columns.max(1);
        let (stored, size) = (tensor.offset, tensor.size_bytes);
        let (offset, _) = file.push(Rearranged { source: Arc::clone(source), stored, stored_size, n_rows, n_columns, width, size, order });
        (tensor.shard, tensor.offset) = (shard, offset);
    }
    (!file.is_empty()).then_some(file)
}

impl DerivedMatrix for Rearranged {
    fn source(&self) -> &dyn ByteSource {
        self.source.as_ref()
    }

    fn size(&self) -> u64 {
        self.size.0
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self.order {
            Order::Transposed => self.read_transposed(offset, buffer),
            Order::ByHeads { n_heads, parts } => self.read_heads(n_heads, parts, offset, buffer),
            Order::HeadsTransposed { n_heads, .. } => self.read_heads_transposed(n_heads, offset, buffer),
        }
    }
}

impl Rearranged {
    fn read_heads(&self, n_heads: u64, parts: [u64; 4], offset: u64, buffer: &mut [u8]) -> Result<()> {
        let row_bytes = self.size.0 / self.n_rows;
        let head_bytes = parts.iter().sum::<u64>() * row_bytes;
        let end = offset + buffer.len() as u64;
        // Where a part of all heads begins here, and where in each head of the file.
        let (mut begin, mut in_head) = (0, 0);
        for part_bytes in parts.map(|n_rows| n_rows * row_bytes) {
            let mut at = offset.max(begin);
            while at < end.min(begin + n_heads * part_bytes) {
                let (head, within) = ((at - begin) / part_bytes, (at - begin) % part_bytes);
                let len = (part_bytes - within).min(end - at);
                self.source
                    .read_at(self.stored + head * head_bytes + in_head + within, &mut buffer[(at - offset) as usize..][..len as usize])?;
                at += len;
            }
            begin += n_heads * part_bytes;
            in_head += part_bytes;
        }
        Ok(())
    }

    fn read_heads_transposed(&self, n_heads: u64, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (size, stored_size) = (Bytes(self.size.0 / n_heads), Bytes(self.stored_size.0 / n_heads));
        let of_head = |head: u64| Rearranged {
            source: Arc::clone(&self.source),
            stored: self.stored + head * stored_size.0,
            stored_size,
            n_rows: self.n_rows / n_heads,
            size,
            order: Order::Transposed,
            ..*self
        };
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let within = at % size.0;
            let (now, behind) = rest.split_at_mut((size.0 - within).min(rest.len() as u64) as usize);
            of_head(at / size.0).read_transposed(within, now)?;
            at += now.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    /// Rows here are columns of the file, where most of a row lies beside what is wanted if few of
    /// its values are: those are read by themselves then.
    fn read_transposed(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let row_bytes = self.n_columns * self.width;
        let rows = offset / row_bytes..(offset + buffer.len() as u64).div_ceil(row_bytes);
        let n_wanted = rows.end - rows.start;
        let reads_all = 2 * n_wanted >= self.n_rows;
        let (n_read, first) = if reads_all { (self.n_rows, 0) } else { (n_wanted, rows.start) };
        let read_bytes = n_read * self.width;
        let n_at_once = if reads_all { (BLOCK_BYTES / read_bytes).max(1) } else { 1 };
        let mut block = platform::zeroed((n_at_once.min(self.n_columns) * read_bytes) as usize, "a matrix that is stored transposed")?;
        let mut column = 0;
        while column < self.n_columns {
            let n_columns = n_at_once.min(self.n_columns - column);
            let block = &mut block[..(n_columns * read_bytes) as usize];
            self.source.read_at(self.stored + (column * self.n_rows + first) * self.width, block)?;
            for row in rows.clone() {
                for index in 0..n_columns {
                    let from = (index * read_bytes + (row - first) * self.width) as usize;
                    let to = row * row_bytes + (column + index) * self.width;
                    put(&block[from..][..self.width as usize], to, offset, buffer);
                }
            }
            column += n_columns;
        }
        Ok(())
    }
}

/// Writes a value that belongs at `to` into `buffer`, which begins at `offset`: all of it, or what of it lies there.
fn put(value: &[u8], to: u64, offset: u64, buffer: &mut [u8]) {
    if let Some(target) = to.checked_sub(offset).and_then(|to| buffer.get_mut(to as usize..to as usize + value.len())) {
        target.copy_from_slice(value);
        return;
    }
    for (index, byte) in (to..).zip(value) {
        if let Some(target) = index.checked_sub(offset).and_then(|index| buffer.get_mut(index as usize)) {
            *target = *byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dtype::DType;
    use crate::weights::in_memory::Memory;

    fn matrix(dtype: DType, shape: [u64; 2], offset: u64) -> TensorInfo {
        let size_bytes = Bytes(dtype.size_bytes(shape[0] * shape[1]).unwrap());
        TensorInfo { name: String::new(), dtype, shape: shape.into(), shard: 0, offset, size_bytes }
    }

    #[test]
    fn heads_of_a_part_are_put_together() {
        let source: Arc<dyn ByteSource> = Arc::new(Memory((0..48).collect()));
        // Two heads of three parts with two, one and three rows, two columns of halves.
        let mut tensor = matrix(DType::F16, [12, 2], 0);
        let file = rearranged(vec![(&mut tensor, Order::ByHeads { n_heads: 2, parts: [2, 1, 3, 0] })], &[source], 1).unwrap();
        let heads = [0u8..8, 24..32, 8..12, 32..36, 12..24, 36..48];
        let expected: Vec<u8> = heads.into_iter().flatten().collect();
        for (begin, end) in [(0, 48), (3, 21), (8, 9)] {
            let mut read = vec![0; end - begin];
            file.read_at(begin as u64, &mut read).unwrap();
            assert_eq!(read, expected[begin..end]);
        }
    }

    #[test]
    fn matrices_of_experts_are_transposed_each_for_itself() {
        // Two experts, each of two rows and three columns of halves.
        let source: Arc<dyn ByteSource> = Arc::new(Memory((0..24).collect()));
        let mut tensor = TensorInfo { shape: vec![2, 2, 3], ..matrix(DType::F16, [4, 3], 0) };
        let order = Order::HeadsTransposed { n_heads: 2, n_rows: 2 };
        let file = rearranged(vec![(&mut tensor, order)], &[source], 1).unwrap();
        assert_eq!((&tensor.shape, tensor.size_bytes), (&vec![2, 3, 2], Bytes(24)));
        let mut read = vec![0; 24];
        file.read_at(0, &mut read).unwrap();
        let first = [0u8, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11];
        assert_eq!(read, [first, first.map(|byte| byte + 12)].concat());
    }

    #[test]
    fn rows_of_heads_are_transposed_each_head_for_itself() {
        // Two heads of three rows, the first two of which are asked for, with four columns of halves.
        let source: Arc<dyn ByteSource> = Arc::new(Memory((0..48).collect()));
        let mut tensor = matrix(DType::F16, [6, 4], 0);
        let order = Order::HeadsTransposed { n_heads: 2, n_rows: 2 };
        let file = rearranged(vec![(&mut tensor, order)], &[source], 1).unwrap();
        assert_eq!((&tensor.shape, tensor.size_bytes), (&vec![8, 2], Bytes(32)));
        let values = (0u8..2).flat_map(|head| (0..4).flat_map(move |column| (0..2).map(move |row| head * 24 + row * 8 + column * 2)));
        let expected: Vec<u8> = values.flat_map(|first| [first, first + 1]).collect();
        for (begin, end) in [(0, 32), (3, 21), (15, 17)] {
            let mut read = vec![0; end - begin];
            file.read_at(begin as u64, &mut read).unwrap();
            assert_eq!(read, expected[begin..end]);
        }
    }

    proptest! {
        #[test]
        fn any_range_is_that_of_the_matrices_row_by_row(
            [rows, columns, others] in prop::array::uniform3(1u64..70),
            [begin, len] in prop::array::uniform2(0.0..1.0f64),
        ) {
            let mut tensors = [matrix(DType::F32, [rows, columns], 8), matrix(DType::F16, [others, rows], 8 + 4 * rows * columns)];
            let stored = tensors.clone();
            let bytes: Vec<u8> = (0..8 + 4 * rows * columns + 2 * others * rows).map(|index| (index * 7 % 251) as u8).collect();
            let source: Arc<dyn ByteSource> = Arc::new(Memory(bytes.clone()));
            let file = rearranged(tensors.iter_mut().map(|tensor| (tensor, Order::Transposed)).collect(), &[source], 5).unwrap();
            let mut expected = vec![0u8; file.len() as usize];
            for (tensor, stored) in tensors.iter().zip(&stored) {
                prop_assert_eq!((tensor.shard, &tensor.shape), (5, &vec![stored.shape[1], stored.shape[0]]));
                let width = stored.size_bytes.0 / stored.n_values();
                for (row, column) in (0..stored.shape[0]).flat_map(|row| (0..stored.shape[1]).map(move |column| (row, column))) {
                    let from = (stored.offset + (row * stored.shape[1] + column) * width) as usize;
                    let to = (tensor.offset + (column * stored.shape[0] + row) * width) as usize;
                    expected[to..to + width as usize].copy_from_slice(&bytes[from..from + width as usize]);
                }
            }
            let begin = (begin * file.len() as f64) as usize;
            let mut read = vec![1; (len * (file.len() as usize - begin) as f64) as usize];
            file.read_at(begin as u64, &mut read).unwrap();
            prop_assert_eq!(&read, &expected[begin..begin + read.len()]);
        }
    }
}
