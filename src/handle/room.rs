//! Room in the cache. A generation begins where all that it may become has room beside all that the others may become; until then sequences keep what
//! they have of earlier texts, which goes when blocks are needed: what was used longest ago first.

use std::collections::BTreeSet;

use super::Request;
use super::begin::Known;
use super::running::{Begun, Progress};
use super::thread::EngineThread;
use crate::error::{Error, Result};
use crate::stream::{KvBlocks, MAX_TOKENS_TOGETHER};

impl EngineThread {
    /// Whether anything can be computed, or begun.
    pub(super) fn can_go_on(&self) -> bool {
        let waits = self.full_with == Some(self.n_under_way());
        let is_able = |progress: &Progress| matches!(progress, Progress::Begun(_)) || !waits;
        let can_run = self.running.iter().any(|running| is_able(&running.progress) && running.listener.has_room());
        can_run || (!waits && !self.scorings.is_empty())
    }

    /// Notes that something waits until other generations are under way.
    pub(super) fn note_full(&mut self) {
        self.full_with = Some(self.n_under_way());
    }

    /// Generations that have begun and not ended.
    fn n_under_way(&self) -> usize {
        self.under_way().count()
    }

    fn under_way(&self) -> impl Iterator<Item = (u32, &Begun)> {
        self.running.iter().filter_map(|running| match &running.progress {
            Progress::Begun(begun) => Some((running.sequence, &**begun)),
            Progress::Requested(_) => None,
        })
    }

    /// Blocks that a request may come to take: those of its prompt and of all tokens that it lets be generated. A plan has room for any one.
    pub(super) fn n_needed(&self, request: &Request) -> usize {
        let most = request.options.max_tokens.unwrap_or(usize::MAX);
        let n_tokens = request.prompt.len().saturating_add(most).min(self.engine.plan().ctx_size);
        n_tokens.div_ceil(KvBlocks::BLOCK_LEN)
    }

    /// Whether a request has to wait for the room of what has begun.
    pub(super) fn waits_for_room(&self, sequence: u32, known: Known, request: &Request) -> bool {
        let (from, n_tokens) = known.elsewhere.unwrap_or((sequence, known.n_own));
        let shared = self.engine.kv_blocks().table(from).get(..n_tokens / KvBlocks::BLOCK_LEN).unwrap_or_default();
        !self.has_room(self.n_needed(request), shared)
    }

    /// Whether so many blocks, of which some are `shared`, have room beside those that generations under way have and may come to take.
    pub(super) fn has_room(&self, n_blocks: usize, shared: &[u32]) -> bool {
        let blocks = self.engine.kv_blocks();
        let mut held: BTreeSet<u32> = shared.iter().copied().collect();
        let mut n_to_come = n_blocks.saturating_sub(shared.len());
        for (sequence, begun) in self.under_way() {
            // A block that is not whole yet may have to become another one.
            let n_whole = self.sequences[sequence as usize].tokens.len() / KvBlocks::BLOCK_LEN;
            held.extend(blocks.table(sequence).iter().take(n_whole));
            n_to_come += begun.n_reserved.saturating_sub(n_whole);
        }
        held.len() + n_to_come <= blocks.n_blocks()
    }

    /// How many of the first `n_tokens` of sequence `from` another one can begin with: all, or those in whole blocks where there is no room for
    /// a copy of the last one.
    ///
    /// # Errors
    /// Those of the devices.
    pub(super) fn n_shareable(&mut self, from: u32, n_tokens: usize) -> Result<usize> {
        let n_copied = usize::from(!n_tokens.is_multiple_of(KvBlocks::BLOCK_LEN));
        match self.make_free(n_copied, &[from]) {
            Err(Error::KvCacheFull { .. }) => Ok(n_tokens / KvBlocks::BLOCK_LEN * KvBlocks::BLOCK_LEN),
            made => made.map(|()| n_tokens),
        }
    }

    /// Frees the blocks that the next part of each prompt and the next tokens of each generation take, so that no forward lacks any.
    ///
    /// # Errors
    /// Those of the devices.
    pub(super) fn make_room(&mut self) -> Result<()> {
        let n_tokens_max = self.engine.plan().forward.n_tokens;
        let mut n_new = 0;
        for running in &self.running {
            let Progress::Begun(begun) = &running.progress else { continue };
            let n_cached = self.sequences[running.sequence as usize].tokens.len();
            self.engine.give_back_blocks(running.sequence, n_cached);
            // The last part of a prompt is followed by a token at once, and that by a draft.
            let end = n_cached + begun.due.len().min(n_tokens_max) + 1 + MAX_TOKENS_TOGETHER;
            let end = end.min(begun.n_reserved * KvBlocks::BLOCK_LEN).max(n_cached);
            n_new += self.engine.kv_blocks().n_new(running.sequence, &(n_cached..end));
        }
        self.make_free(n_new, &[])
    }

    /// Frees so many blocks: what sequences have cached goes where no generation goes on from it, but of those in `kept`.
    ///
    /// # Errors
    /// [`Error::KvCacheFull`] where that is not enough; those of the devices.
    pub(super) fn make_free(&mut self, n_blocks: usize, kept: &[u32]) -> Result<()> {
        loop {
            let n_free = self.engine.kv_blocks().n_free();
            if n_free >= n_blocks {
                return Ok(());
            }
            let busy: BTreeSet<u32> = self.under_way().map(|(sequence, _)| sequence).chain(kept.iter().copied()).collect();
            let has_some = |sequence: &u32| !busy.contains(sequence) && !self.engine.kv_blocks().table(*sequence).is_empty();
            let idle = (0..self.sequences.len() as u32).filter(has_some);
            let Some(oldest) = idle.min_by_key(|sequence| self.sequences[*sequence as usize].last_use) else {
                return Err(Error::KvCacheFull { needed: n_blocks * KvBlocks::BLOCK_LEN, available: n_free * KvBlocks::BLOCK_LEN });
            };
            self.keep_history(oldest, &[])?;
            self.forget(oldest);
        }
    }

    /// Forgets what a sequence has cached.
    pub(super) fn forget(&mut self, sequence: u32) {
        self.sequences[sequence as usize].tokens.clear();
        self.engine.clear_sequence(sequence);
    }
}
