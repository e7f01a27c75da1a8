//! Tensors whose bytes lie in several places of their files, as a file of their own that has them in one piece: the matrices of all experts
//! of a layer, of which folders have a tensor for each. What is read is what is stored, and only where it is stored.

use std::sync::Arc;

use crate::error::Result;
use crate::platform::{self, ByteSource};
use crate::weights::TensorInfo;

/// Bytes of a file that belong to a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Which file.
    pub(crate) shard: u32,
    /// Where they begin in it.
    pub(crate) offset: u64,
    /// How many.
    pub(crate) len: u64,
}

/// The tensors, one behind the other, read from where they are stored.
#[derive(Debug)]
pub(crate) struct Gathered {
    /// The first of the files, for messages.
    path: String,
    len: u64,
    /// In the order of their places here.
    pieces: Vec<Placed>,
}

#[derive(Debug)]
struct Placed {
    source: Arc<dyn ByteSource>,
    stored: u64,
    /// Where it lies here.
    begin: u64,
    len: u64,
}

impl Gathered {
    /// Gives each of `tensors` a place in one file of number `shard`, which reads its pieces from the files `sources`. `None` where there
    /// are no tensors.
    pub(crate) fn of(tensors: Vec<(&mut TensorInfo, Vec<Piece>)>, sources: &[Arc<dyn ByteSource>], shard: u32) -> Option<Gathered> {
        let mut file: Option<Gathered> = None;
        for (tensor, pieces) in tensors {
            let mut begin = file.as_ref().map_or(0, |file| file.len);
            (tensor.shard, tensor.offset) = (shard, begin);
            for piece in pieces {
                let Some(source) = sources.get(piece.shard as usize) else { continue };
                let file = file.get_or_insert_with(|| Gathered { path: source.path().to_owned(), len: 0, pieces: Vec::new() });
                file.pieces.push(Placed { source: Arc::clone(source), stored: piece.offset, begin, len: piece.len });
                begin += piece.len;
                file.len = begin.next_multiple_of(platform::DIRECT_ALIGNMENT as u64);
            }
        }
        file
    }

    /// The pieces that have any of the bytes from `offset` on, each with where these begin in it and how many they are.
    fn within(&self, offset: u64, len: u64) -> impl Iterator<Item = (&Placed, u64, u64)> {
        let end = offset.saturating_add(len);
        let first = self.pieces.partition_point(|piece| piece.begin + piece.len <= offset);
        self.pieces[first..].iter().take_while(move |piece| piece.begin < end).map(move |piece| {
            let begin = piece.begin.max(offset);
            (piece, begin - piece.begin, (piece.begin + piece.len).min(end) - begin)
        })
    }
}

impl ByteSource for Gathered {
    fn path(&self) -> &str {
        &self.path
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        // What lies between tensors is nobody's.
        buffer.fill(0);
        for (piece, begin, len) in self.within(offset, buffer.len() as u64) {
            let at = (piece.begin + begin - offset) as usize;
            piece.source.read_at(piece.stored + begin, &mut buffer[at..at + len as usize])?;
        }
        Ok(())
    }

    fn view(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let (piece, begin, found) = self.within(offset, len).next()?;
        if found == len { piece.source.view(piece.stored + begin, len) } else { None }
    }

    fn will_need(&self, offset: u64, len: u64) {
        self.within(offset, len).for_each(|(piece, begin, len)| piece.source.will_need(piece.stored + begin, len));
    }

    fn drop_behind(&self, offset: u64, len: u64) {
        self.within(offset, len).for_each(|(piece, begin, len)| piece.source.drop_behind(piece.stored + begin, len));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dtype::DType;
    use crate::units::Bytes;
    use crate::weights::in_memory::Memory;

    proptest! {
        #[test]
        fn any_range_is_that_of_the_pieces_one_behind_the_other(
            tensors in prop::collection::vec(prop::collection::vec((0..2u32, 0..100u64, 1..50u64), 1..5), 1..4),
            [begin, len] in prop::array::uniform2(0.0..1.0f64),
        ) {
            let stored: [Vec<u8>; 2] = [0, 1].map(|shard| (0..150).map(|index| index + shard * 100).collect());
            let sources = stored.clone().map(|bytes| Arc::new(Memory(bytes)) as Arc<dyn ByteSource>);
            let mut infos: Vec<TensorInfo> = tensors
                .iter()
                .map(|_| TensorInfo { name: String::new(), dtype: DType::F32, shape: vec![1], shard: 0, offset: 0, size_bytes: Bytes(4) })
                .collect();
            let pieces = |tensor: &Vec<(u32, u64, u64)>| tensor.iter().map(|&(shard, offset, len)| Piece { shard, offset, len }).collect();
            let file = Gathered::of(infos.iter_mut().zip(tensors.iter().map(pieces)).collect(), &sources, 2).unwrap();
            let mut expected = vec![0u8; file.len() as usize];
            for (info, tensor) in infos.iter().zip(&tensors) {
                prop_assert_eq!(info.shard, 2);
                let bytes: Vec<u8> =
                    tensor.iter().flat_map(|&(shard, at, len)| stored[shard as usize][at as usize..][..len as usize].to_vec()).collect();
                expected[info.offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
            let begin = (begin * file.len() as f64) as usize;
            let mut read = vec![1; (len * (file.len() as usize - begin) as f64) as usize];
            file.read_at(begin as u64, &mut read).unwrap();
            prop_assert_eq!(&read, &expected[begin..begin + read.len()]);
        }
    }
}
