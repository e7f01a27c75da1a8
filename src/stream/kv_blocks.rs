//! Which blocks of the caches of keys and values each sequence has. A sequence takes blocks as it grows; what two sequences begin with
//! alike they have in common, in whole blocks. A block that is in several tables is never written: who is to write there gets a copy of
//! what it keeps. The blocks of all layers and devices are the same; this knows their numbers alone.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::kernels::kv_tables::BLOCK_POSITIONS;
use crate::stream::Batch;

const BLOCK_LEN: usize = BLOCK_POSITIONS as usize;

/// The tables of all sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvBlocks {
    /// By sequence: the blocks of its positions, in their order.
    tables: Vec<Vec<u32>>,
    /// By block: the tables that it is in.
    n_users: Vec<u32>,
    /// Blocks in no table; the last one is taken next.
    free: Vec<u32>,
}

/// The first positions of a block, which another block is to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// The block that has them.
    pub from: u32,
    /// The block that gets them.
    pub to: u32,
    /// How many.
    pub n_positions: usize,
}

impl KvBlocks {
    /// Positions of a block.
    pub const BLOCK_LEN: usize = BLOCK_LEN;

    /// Empty sequences, and so many free blocks.
    pub fn new(n_seqs: usize, n_blocks: usize) -> KvBlocks {
        KvBlocks { tables: vec![Vec::new(); n_seqs], n_users: vec![0; n_blocks], free: (0..n_blocks as u32).rev().collect() }
    }

    /// As many blocks as a batch that begins all of its sequences takes, side by side.
    ///
    /// # Errors
    /// None.
    pub(crate) fn of(batch: &Batch) -> Result<KvBlocks> {
        let written = batch.written();
        let n_blocks = written.iter().map(|(_, positions)| positions.end.div_ceil(BLOCK_LEN)).sum();
        let mut blocks = KvBlocks::new(written.iter().map(|(sequence, _)| *sequence as usize + 1).max().unwrap_or(0), n_blocks);
        for (sequence, positions) in written {
            blocks.make_room(sequence, 0..positions.end)?;
        }
        Ok(blocks)
    }

    /// Blocks of a sequence; none of one that is not there.
    pub fn table(&self, sequence: u32) -> &[u32] {
        self.tables.get(sequence as usize).map(Vec::as_slice).unwrap_or_default()
    }

    /// Sequences that there are.
    pub fn n_seqs(&self) -> usize {
        self.tables.len()
    }

    /// Blocks in all.
    pub fn n_blocks(&self) -> usize {
        self.n_users.len()
    }

    /// Blocks in no table.
    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    /// Lets a sequence be written at `positions`: what it has behind their beginning is forgotten, and all of them get blocks that are its own.
    /// What must be copied before, where it shared the block in whose midst they begin.
    ///
    /// # Errors
    /// Where no block is free; the sequence then has those before `positions` alone.
    pub fn make_room(&mut self, sequence: u32, positions: Range<usize>) -> Result<Option<BlockCopy>> {
        self.truncate(sequence, positions.start);
        let (n_kept, n_needed) = (positions.start % BLOCK_LEN, positions.end.div_ceil(BLOCK_LEN));
        let n_new = self.n_new(sequence, &positions);
        if n_new > self.n_free() {
            return Err(Error::KvCacheFull { needed: n_new * BLOCK_LEN, available: self.n_free() * BLOCK_LEN });
        }
        let copy = if n_kept > 0 { self.own_last(sequence, n_kept)? } else { None };
        while self.table(sequence).len() < n_needed {
            let block = self.take()?;
            self.tables[sequence as usize].push(block);
        }
        Ok(copy)
    }

    /// Blocks that a sequence lacks to be written at `positions`.
    pub fn n_new(&self, sequence: u32, positions: &Range<usize>) -> usize {
        let table = self.table(sequence);
        let is_shared = |block: &u32| self.n_users[*block as usize] > 1;
        let begins_in_shared = !positions.start.is_multiple_of(BLOCK_LEN) && table.get(positions.start / BLOCK_LEN).is_some_and(is_shared);
        let n_own = table.len().min(positions.start.div_ceil(BLOCK_LEN));
        positions.end.div_ceil(BLOCK_LEN).saturating_sub(n_own) + usize::from(begins_in_shared)
    }

    /// Lets sequence `to` begin with the first `n_positions` of sequence `from`, in place of its own: whole blocks become those of both. What
    /// must be copied of a last one that is not whole.
    ///
    /// # Errors
    /// Where no block is free; the sequence then has none.
    pub fn share(&mut self, from: u32, to: u32, n_positions: usize) -> Result<Option<BlockCopy>> {
        let n_whole = n_positions / BLOCK_LEN;
        let shared = self.table(from).get(..n_whole).unwrap_or_default().to_vec();
        let last = self.table(from).get(n_whole).copied().filter(|_| !n_positions.is_multiple_of(BLOCK_LEN));
        shared.iter().for_each(|block| self.n_users[*block as usize] += 1);
        self.truncate(to, 0);
        self.tables[to as usize] = shared;
        let Some(from) = last else { return Ok(None) };
        let to_block = self.take().inspect_err(|_| self.truncate(to, 0))?;
        self.tables[to as usize].push(to_block);
        Ok(Some(BlockCopy { from, to: to_block, n_positions: n_positions % BLOCK_LEN }))
    }

    /// Gives back the blocks behind the first `n_positions` of a sequence.
    pub fn truncate(&mut self, sequence: u32, n_positions: usize) {
        let Some(table) = self.tables.get_mut(sequence as usize) else { return };
        let n_kept = n_positions.div_ceil(BLOCK_LEN).min(table.len());
        // The first one is taken first again.
        for block in table.split_off(n_kept).into_iter().rev() {
            self.give_back(block);
        }
    }

    /// Lets the last block of a sequence be its own, with the `n_kept` positions that it begins with.
    fn own_last(&mut self, sequence: u32, n_kept: usize) -> Result<Option<BlockCopy>> {
        let Some(&from) = self.table(sequence).last().filter(|block| self.n_users[**block as usize] > 1) else { return Ok(None) };
        let to = self.take()?;
        self.give_back(from);
        if let Some(last) = self.tables[sequence as usize].last_mut() {
            *last = to;
        }
        Ok(Some(BlockCopy { from, to, n_positions: n_kept }))
    }

    fn take(&mut self) -> Result<u32> {
        let block = self.free.pop().ok_or(Error::KvCacheFull { needed: BLOCK_LEN, available: 0 })?;
        self.n_users[block as usize] = 1;
        Ok(block)
    }

    fn give_back(&mut self, block: u32) {
        let n_users = &mut self.n_users[block as usize];
        *n_users -= 1;
        if *n_users == 0 {
            self.free.push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sequences as they should be, and the memory that the tables lead to.
    struct Checked {
        blocks: KvBlocks,
        memory: Vec<[u32; BLOCK_LEN]>,
        texts: Vec<Vec<u32>>,
        next: u32,
    }

    impl Checked {
        fn new(n_seqs: usize, n_blocks: usize) -> Checked {
            let (memory, texts) = (vec![[0; BLOCK_LEN]; n_blocks], vec![Vec::new(); n_seqs]);
            Checked { blocks: KvBlocks::new(n_seqs, n_blocks), memory, texts, next: 1 }
        }

        fn copy(&mut self, copy: Option<BlockCopy>) {
            let Some(BlockCopy { from, to, n_positions }) = copy else { return };
            let kept = self.memory[from as usize];
            self.memory[to as usize][..n_positions].copy_from_slice(&kept[..n_positions]);
        }

        /// Writes positions from `begin` on, as a forward does; whether there was room.
        fn write(&mut self, sequence: usize, begin: usize, len: usize) -> bool {
            let begin = begin.min(self.texts[sequence].len());
            self.texts[sequence].truncate(begin);
            let Ok(copy) = self.blocks.make_room(sequence as u32, begin..begin + len) else { return false };
            self.copy(copy);
            for position in begin..begin + len {
                let block = self.blocks.table(sequence as u32)[position / BLOCK_LEN];
                self.memory[block as usize][position % BLOCK_LEN] = self.next;
                self.texts[sequence].push(self.next);
                self.next += 1;
            }
            true
        }

        fn share(&mut self, from: usize, to: usize, n_positions: usize) {
            let n_positions = n_positions.min(self.texts[from].len());
            if from == to {
                return;
            }
            match self.blocks.share(from as u32, to as u32, n_positions) {
                Ok(copy) => {
                    self.copy(copy);
                    self.texts[to] = self.texts[from][..n_positions].to_vec();
                }
                Err(_) => self.texts[to].clear(),
            }
        }

        /// Each sequence reads what was written there, and every block is free or counted where it is.
        fn check(&self) {
            for (sequence, text) in self.texts.iter().enumerate() {
                let table = self.blocks.table(sequence as u32);
                let read = |position: usize| self.memory[table[position / BLOCK_LEN] as usize][position % BLOCK_LEN];
                assert!((0..text.len()).map(read).eq(text.iter().copied()), "sequence {sequence}");
            }
            let mut n_users = vec![0; self.blocks.n_blocks()];
            self.blocks.tables.iter().flatten().for_each(|block| n_users[*block as usize] += 1);
            assert_eq!(n_users, self.blocks.n_users);
            let mut free = self.blocks.free.clone();
            free.sort_unstable();
            let unused = (0..).zip(&n_users).filter(|(_, n_users)| **n_users == 0).map(|(block, _)| block);
            assert!(unused.eq(free), "a block is lost, or free twice");
        }
    }

    #[test]
    fn whole_blocks_are_shared_and_the_last_one_is_copied() {
        let mut checked = Checked::new(3, 12);
        assert!(checked.write(0, 0, 100));
        checked.share(0, 1, 70);
        checked.share(0, 2, 64);
        let [first, second, third] = [0, 1, 2].map(|sequence| checked.blocks.table(sequence).to_vec());
        assert_eq!((&second[..2], &third[..]), (&first[..2], &first[..2]));
        assert_eq!((second.len(), second[2] != first[2]), (3, true));
        assert_eq!(checked.blocks.n_free(), 12 - 4 - 1, "what is alike is there once");
        // Whoever goes on in the midst of a block of several gets one of its own.
        assert!(checked.write(2, 40, 1));
        assert_ne!(checked.blocks.table(2)[1], first[1]);
        assert!(checked.write(0, 0, 1));
        assert_eq!(checked.blocks.table(1), second);
        checked.check();
        checked.blocks.truncate(1, 0);
        assert_eq!(checked.blocks.n_free(), 12 - 1 - 2);
    }

    #[test]
    fn a_pool_that_is_used_up_says_so_and_keeps_what_is_there() {
        let mut checked = Checked::new(2, 3);
        assert!(checked.write(0, 0, 64) && checked.write(1, 0, 32));
        assert!(!checked.write(1, 32, 1));
        checked.check();
        assert!(checked.write(0, 10, 5), "its own blocks suffice");
        assert!(checked.write(1, 32, 1));
        checked.check();
    }

    proptest! {
        #[test]
        fn no_block_is_lost_and_no_sequence_writes_into_another(
            n_blocks in 1usize..24,
            steps in prop::collection::vec((0usize..3, 0usize..4, 0usize..4, 0usize..160, 1usize..70), 0..60),
        ) {
            let mut checked = Checked::new(4, n_blocks);
            for (kind, one, other, place, len) in steps {
                match kind {
                    0 => drop(checked.write(one, place, len)),
                    1 => checked.share(one, other, place),
                    _ => {
                        checked.texts[one].truncate(place);
                        checked.blocks.truncate(one as u32, place);
                    }
                }
                checked.check();
            }
        }
    }
}
