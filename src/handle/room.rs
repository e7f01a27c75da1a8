//! Room in the cache. A generation begins where all that it may become has room beside all that the others may become; where generations can be
//! [paused](super::preempt), where it has room for a while beside the others. Until then sequences keep what they have of earlier texts, which goes
//! when blocks are needed: what was used longest ago first.

use std::collections::BTreeSet;

use super::Request;
use super::begin::Known;
use super::histories::History;
use super::running::{Begun, Progress};
use super::thread::EngineThread;
use crate::error::{Error, Result};
use crate::stream::KvBlocks;
use crate::units::Bytes;

/// Tokens behind its text that a generation must have room for to begin, or to come back, where generations can be paused: so many come before it
/// can be paused for want of room.
const N_AHEAD: usize = 128;

/// Blocks of a text of `n_tokens`, of what is cached and what is to be read, and of the next tokens, where it may come to take `most`.
fn soon(n_tokens: usize, most: usize) -> usize {
    (n_tokens + N_AHEAD).div_ceil(KvBlocks::BLOCK_LEN).min(most)
}

/// What a generation needs that is to begin or to come back.
#[derive(Clone, Copy)]
pub(super) struct Need {
    /// Blocks that it must have room for at once.
    pub(super) soon: usize,
    /// Blocks that it may come to take.
    pub(super) most: usize,
    /// Bytes in host memory that it gives back.
    pub(super) kept: Bytes,
    /// Which of all generations it is, by their beginnings; the last one where it has not begun.
    pub(super) number: u64,
}

impl Need {
    /// That of a generation which is to begin with a text of `n_tokens`, and may come to take `most` blocks.
    fn of(n_tokens: usize, most: usize) -> Need {
        Need { soon: soon(n_tokens, most), most, kept: Bytes::ZERO, number: u64::MAX }
    }

    /// That of one which is to come back.
    pub(super) fn of_paused(begun: &Begun, history: Option<&History>) -> Need {
        let n_tokens = history.map_or(0, |history| history.tokens().len()) + begun.due.len();
        let kept = history.map_or(Bytes::ZERO, History::size);
        Need { kept, number: begun.number, ..Need::of(n_tokens, begun.n_most) }
    }

    /// At least so many blocks.
    pub(super) fn at_least(self, n_blocks: usize) -> Need {
        Need { soon: self.soon.max(n_blocks), most: self.most.max(n_blocks), ..self }
    }
}

/// How many generations are under way, and how many of these somebody reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct UnderWay {
    n_begun: usize,
    n_read: usize,
}

impl EngineThread {
    /// Whether anything can be computed, begun or brought back.
    pub(super) fn can_go_on(&self) -> bool {
        let waits = self.full_with == Some(self.n_under_way());
        let is_able = |progress: &Progress| !waits || matches!(progress, Progress::Begun(begun) if !begun.is_left_out);
        let can_run = self.running.iter().any(|running| is_able(&running.progress) && running.is_read());
        can_run || (!waits && !self.scorings.is_empty())
    }

    /// Notes that something waits until other generations are under way.
    pub(super) fn note_full(&mut self) {
        self.full_with = Some(self.n_under_way());
    }

    fn n_under_way(&self) -> UnderWay {
        let begun = self.running.iter().filter(|running| matches!(running.progress, Progress::Begun(_)));
        begun.fold(UnderWay { n_begun: 0, n_read: 0 }, |UnderWay { n_begun, n_read }, running| UnderWay {
            n_begun: n_begun + 1,
            n_read: n_read + usize::from(running.is_read()),
        })
    }

    /// Generations that have begun and not ended, but those that are paused.
    pub(super) fn under_way(&self) -> impl Iterator<Item = (u32, &Begun)> {
        self.running.iter().filter_map(|running| match &running.progress {
            Progress::Begun(begun) => Some((running.sequence, &**begun)),
            Progress::Requested(_) | Progress::Paused { .. } => None,
        })
    }

    /// What a request needs for its prompt and the tokens that it lets be generated. A plan has room for any one.
    pub(super) fn need_of(&self, request: &Request) -> Need {
        let most = request.options.max_tokens.unwrap_or(usize::MAX);
        Need::of(request.prompt.len(), self.n_blocks_of(request.prompt.len().saturating_add(most)))
    }

    /// Blocks that so many tokens of a sequence take, of which it has no more than a context.
    pub(super) fn n_blocks_of(&self, n_tokens: usize) -> usize {
        n_tokens.min(self.engine.plan().ctx_size).div_ceil(KvBlocks::BLOCK_LEN)
    }

    /// Whether a request has to wait for the room of what has begun.
    pub(super) fn waits_for_room(&self, sequence: u32, known: Known, request: &Request) -> bool {
        let (from, n_tokens) = known.elsewhere.unwrap_or((sequence, known.n_own));
        let shared = self.engine.kv_blocks().table(from).get(..n_tokens / KvBlocks::BLOCK_LEN).unwrap_or_default();
        !self.has_room(self.need_of(request), shared)
    }

    /// Whether a generation that begins with the blocks of `shared` has room beside those under way, so that all of them can end.
    pub(super) fn has_room(&self, need: Need, shared: &[u32]) -> bool {
        let n_blocks = self.engine.kv_blocks().n_blocks();
        let n_own = |n_blocks: usize| n_blocks.saturating_sub(shared.len());
        let all_fit = self.n_taken(shared, |_, begun| begun.n_most) + n_own(need.most) <= n_blocks;
        let soon_of = |n_cached: usize, begun: &Begun| soon(n_cached + begun.due.len(), begun.n_most);
        all_fit || (self.can_preempt() && self.n_taken(shared, soon_of) + n_own(need.soon) <= n_blocks && self.is_safe_with(need, shared))
    }

    /// Whether so many blocks have room beside what generations under way have by now.
    pub(super) fn has_room_now(&self, n_blocks: usize) -> bool {
        self.n_taken(&[], |n_cached, _| n_cached.div_ceil(KvBlocks::BLOCK_LEN)) + n_blocks <= self.engine.kv_blocks().n_blocks()
    }

    /// Blocks that generations under way take beside those in `shared` where each takes as many as `n_blocks_of` says, which is told the tokens
    /// that it has in the cache.
    fn n_taken(&self, shared: &[u32], n_blocks_of: impl Fn(usize, &Begun) -> usize) -> usize {
        let blocks = self.engine.kv_blocks();
        let mut held: BTreeSet<u32> = shared.iter().copied().collect();
        let mut n_to_come = 0;
        for (sequence, begun) in self.under_way() {
            // A block that is not whole yet may have to become another one.
            let n_cached = self.sequences[sequence as usize].tokens.len();
            let n_whole = n_cached / KvBlocks::BLOCK_LEN;
            held.extend(blocks.table(sequence).iter().take(n_whole));
            n_to_come += n_blocks_of(n_cached, begun).saturating_sub(n_whole);
        }
        held.len() + n_to_come
    }

    /// Gives back what drafts took behind the tokens of generations.
    pub(super) fn give_back_unused(&mut self) {
        let under_way: Vec<u32> = self.under_way().map(|(sequence, _)| sequence).collect();
        for sequence in under_way {
            self.engine.give_back_blocks(sequence, self.sequences[sequence as usize].tokens.len());
        }
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
