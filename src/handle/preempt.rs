//! Which generations go on where the cache has no room for the next tokens of all: the one that began last is paused, and what it has in the cache
//! moves to host memory as it is, so that nothing is computed again. It comes back before newer requests begin.
//!
//! Nobody waits for ever, since there is an order in which all can end ([`is_safe`]): host memory has room for the latest ones, and the cache for
//! each of the others once those before it have ended. No generation takes a block by which that would not be so any more.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::histories::History;
use super::room::Need;
use super::running::{Begun, Progress, Running};
use super::thread::EngineThread;
use crate::error::{Error, Result};
use crate::platform;
use crate::stream::{KvBlocks, MAX_TOKENS_TOGETHER};
use crate::units::Bytes;

/// What a generation under way takes of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share<'a> {
    /// Its whole blocks, which others may have, too.
    whole: &'a [u32],
    /// Blocks that it takes beside these by the end of the turn.
    n_more: usize,
    /// Those that it may come to take beside them.
    n_most: usize,
    /// Bytes in host memory that it would take then.
    kept: Bytes,
}

/// Whether all of these can end, those that began first first: the latest ones leave the cache as far as `limit` has room for them, and each of
/// the others has room in `n_blocks` beside what those behind it have.
fn is_safe(shares: &[Share], mut limit: Bytes, n_blocks: usize) -> bool {
    let mut staying = shares;
    while let Some((last, before)) = staying.split_last()
        && let Some(rest) = limit.0.checked_sub(last.kept.0)
    {
        (limit, staying) = (Bytes(rest), before);
    }
    let (mut held, mut n_more) = (BTreeSet::<u32>::new(), 0);
    staying.iter().rev().all(|share| {
        held.extend(share.whole);
        let has_room = held.len() + share.n_most + n_more <= n_blocks;
        n_more += share.n_more;
        has_room
    })
}

/// Which of some generations, in the order of their beginnings, may be paused for the others, the best first: those that do not go on in this turn,
/// and the latest one that does, unless no other does.
fn candidates(are_left_out: &[bool]) -> Vec<usize> {
    let latest_first = |is_wanted: bool| (0..are_left_out.len()).rev().filter(move |index| are_left_out[*index] == is_wanted);
    let others_go_on = latest_first(false).count() > 1;
    latest_first(true).chain(latest_first(false).take(usize::from(others_go_on))).collect()
}

impl EngineThread {
    /// Whether generations can be paused: what a whole context takes has room in host memory.
    pub(super) fn can_preempt(&self) -> bool {
        let plan = self.engine.plan();
        self.histories.limit() >= plan.sequence_bytes(&self.engine.prepared().model, plan.ctx_size)
    }

    /// Bytes in host memory of what is in so many blocks of a sequence.
    fn bytes_of(&self, n_blocks: usize) -> Bytes {
        let plan = self.engine.plan();
        plan.sequence_bytes(&self.engine.prepared().model, (n_blocks * KvBlocks::BLOCK_LEN).min(plan.ctx_size))
    }

    /// Bytes in host memory of paused generations.
    pub(super) fn paused_bytes(&self) -> Bytes {
        self.running.iter().map(Running::kept_bytes).sum()
    }

    /// Where generations under way are in `running`, in the order of their beginnings.
    fn by_age(&self) -> Vec<usize> {
        let number = |(index, running): (usize, &Running)| match &running.progress {
            Progress::Begun(begun) => Some((begun.number, index)),
            Progress::Requested(_) | Progress::Paused { .. } => None,
        };
        let mut all: Vec<(u64, usize)> = self.running.iter().enumerate().filter_map(number).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, index)| index).collect()
    }

    fn is_left_out(&self, index: usize) -> bool {
        matches!(self.running.get(index), Some(Running { progress: Progress::Begun(begun), .. }) if begun.is_left_out)
    }

    /// Where the tokens of a generation end that this turn computes at most.
    fn end_of(&self, sequence: u32, begun: &Begun) -> usize {
        let n_cached = self.sequences[sequence as usize].tokens.len();
        if begun.is_left_out {
            return n_cached;
        }
        // The last part of a prompt is followed by a token at once, and that by a draft.
        let n_due = begun.due.len().min(self.engine.plan().forward.n_tokens);
        (n_cached + n_due + 1 + MAX_TOKENS_TOGETHER).min(begun.n_most * KvBlocks::BLOCK_LEN).max(n_cached)
    }

    /// Blocks that this turn takes.
    fn n_new(&self) -> usize {
        let n_new = |(sequence, begun): (u32, &Begun)| {
            let n_cached = self.sequences[sequence as usize].tokens.len();
            self.engine.kv_blocks().n_new(sequence, &(n_cached..self.end_of(sequence, begun)))
        };
        self.under_way().map(n_new).sum()
    }

    /// What generations under way take, in the order of their beginnings.
    fn shares(&self) -> Vec<Share<'_>> {
        let share = |index: usize| {
            let Some(Running { sequence, progress: Progress::Begun(begun), .. }) = self.running.get(index) else { return None };
            let table = self.engine.kv_blocks().table(*sequence);
            let n_whole = self.sequences[*sequence as usize].tokens.len() / KvBlocks::BLOCK_LEN;
            let n_blocks = self.end_of(*sequence, begun).div_ceil(KvBlocks::BLOCK_LEN);
            Some(Share {
                whole: table.get(..n_whole).unwrap_or_default(),
                n_more: n_blocks.saturating_sub(n_whole),
                n_most: begun.n_most.saturating_sub(n_whole),
                kept: self.bytes_of(n_blocks),
            })
        };
        self.by_age().into_iter().filter_map(share).collect()
    }

    fn are_safe(&self, shares: &[Share], taken: Bytes) -> bool {
        let limit = Bytes(self.histories.limit().0.saturating_sub(taken.0));
        is_safe(shares, limit, self.engine.kv_blocks().n_blocks())
    }

    /// Whether those under way and one more can end.
    pub(super) fn is_safe_with(&self, need: Need, shared: &[u32]) -> bool {
        let mut shares = self.shares();
        let n_own = |n_blocks: usize| n_blocks.saturating_sub(shared.len());
        let own = Share { whole: shared, n_more: n_own(need.soon), n_most: n_own(need.most), kept: self.bytes_of(need.soon) };
        let n_before = self.under_way().filter(|(_, begun)| begun.number < need.number).count();
        shares.insert(n_before, own);
        self.are_safe(&shares, Bytes(self.paused_bytes().0.saturating_sub(need.kept.0)))
    }

    /// Frees the blocks that the next part of each prompt and the next tokens of each generation take, so that no forward lacks any. Where that
    /// are too many, generations are paused or left out of this turn.
    ///
    /// # Errors
    /// Those of the devices.
    pub(super) fn make_room(&mut self) -> Result<()> {
        let n_most: usize = self.under_way().map(|(_, begun)| begun.n_most).sum();
        let all_fit = n_most <= self.engine.kv_blocks().n_blocks();
        for running in &mut self.running {
            let is_read = running.is_read();
            if let Progress::Begun(begun) = &mut running.progress {
                begun.is_left_out = !all_fit && !is_read;
            }
        }
        loop {
            if all_fit || self.are_safe(&self.shares(), self.paused_bytes()) {
                match self.make_free(self.n_new(), &[]) {
                    Err(Error::KvCacheFull { .. }) => {}
                    made => return made,
                }
                if self.pause_one()? {
                    continue;
                }
            }
            if !self.leave_out_one() {
                return self.make_way();
            }
        }
    }

    /// Leaves the latest generation out of this turn; not the oldest of all, whose end the others wait for.
    fn leave_out_one(&mut self) -> bool {
        let by_age = self.by_age();
        let latest = by_age.iter().skip(1).rev().copied().find(|index| !self.is_left_out(*index));
        let Some(Running { progress: Progress::Begun(begun), .. }) = latest.and_then(|index| self.running.get_mut(index)) else {
            return false;
        };
        begun.is_left_out = true;
        self.note_full();
        true
    }

    /// Makes room for the oldest generation alone, whatever the limit of host memory, which was lowered where it is in the way.
    fn make_way(&mut self) -> Result<()> {
        loop {
            let made = self.make_free(self.n_new(), &[]);
            let latest = self.by_age().into_iter().skip(1).next_back();
            match (&made, latest) {
                (Err(Error::KvCacheFull { .. }), Some(latest)) if self.pause(latest, true)? => {}
                _ => return made,
            }
        }
    }

    /// Pauses the generation that is the best to pause; whether there is one.
    fn pause_one(&mut self) -> Result<bool> {
        let by_age = self.by_age();
        let are_left_out: Vec<bool> = by_age.iter().map(|index| self.is_left_out(*index)).collect();
        for candidate in candidates(&are_left_out) {
            if self.can_pause(candidate) && self.pause(by_age[candidate], false)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the others can end all the same where that one of all under way, by their beginnings, is paused.
    fn can_pause(&self, candidate: usize) -> bool {
        let mut shares = self.shares();
        let taken = self.paused_bytes() + shares.remove(candidate).kept;
        taken <= self.histories.limit() && self.are_safe(&shares, taken)
    }

    /// Pauses the generation that is there in `running`; whether what it has in the cache can be kept, within the limit or `beyond` it.
    fn pause(&mut self, index: usize, beyond: bool) -> Result<bool> {
        let Some(sequence) = self.running.get(index).map(|running| running.sequence) else { return Ok(false) };
        let tokens = &self.sequences[sequence as usize].tokens;
        let n_bytes = self.bytes_of(tokens.len().div_ceil(KvBlocks::BLOCK_LEN));
        if !self.histories.make_room(self.paused_bytes() + n_bytes) {
            if !beyond {
                return Ok(false);
            }
            self.histories.clear();
        }
        let history = match tokens.is_empty() {
            true => None,
            false => match platform::block_on(History::of(&mut self.engine, sequence, tokens, Bytes(u64::MAX)))? {
                Some(history) => Some(history),
                None => return Ok(false),
            },
        };
        let Some(mut running) = self.running.remove(index) else { return Ok(false) };
        if let Progress::Begun(begun) = running.progress {
            running.progress = Progress::Paused { begun, history };
            self.told.n_preemptions.fetch_add(1, Ordering::Relaxed);
            self.forget(sequence);
        }
        self.running.push_back(running);
        Ok(true)
    }

    /// Brings back generations that were paused, in the order of their beginnings, while there is room for them. Those that nobody reads make room.
    pub(super) fn come_back(&mut self) {
        while let Some((sequence, need)) = self.next_to_come_back() {
            while !self.has_room(need, &[]) {
                if !self.pause_unread() {
                    return self.note_full();
                }
            }
            self.bring_back(sequence);
        }
    }

    /// The paused generation that began first of those that somebody reads, and what it needs.
    fn next_to_come_back(&self) -> Option<(u32, Need)> {
        let paused = self.running.iter().filter(|running| running.is_read()).filter_map(|running| match &running.progress {
            Progress::Paused { begun, history } => Some((running.sequence, begun, history)),
            Progress::Requested(_) | Progress::Begun(_) => None,
        });
        let (sequence, begun, history) = paused.min_by_key(|(_, begun, _)| begun.number)?;
        Some((sequence, Need::of_paused(begun, history.as_ref())))
    }

    /// Pauses the latest generation that nobody reads, where there is one that can be; whether it was.
    pub(super) fn pause_unread(&mut self) -> bool {
        let by_age = self.by_age();
        let is_unread = |candidate: &usize| self.running.get(by_age[*candidate]).is_some_and(|running| !running.is_read());
        let unread = (0..by_age.len()).rev().filter(is_unread).find(|candidate| self.can_pause(*candidate));
        unread.is_some_and(|unread| {
            self.pause(by_age[unread], false).unwrap_or_else(|error| {
                self.note_loss(&error);
                false
            })
        })
    }

    fn bring_back(&mut self, sequence: u32) {
        let index = self.running.iter().position(|running| running.sequence == sequence);
        let Some(mut running) = index.and_then(|index| self.running.remove(index)) else { return };
        let Progress::Paused { begun, history } = running.progress else { return };
        let tokens = history.as_ref().map(|history| history.tokens().to_vec()).unwrap_or_default();
        running.progress = Progress::Begun(begun);
        match history.map_or(Ok(()), |history| self.give_back(sequence, history)) {
            Ok(()) => self.sequences[sequence as usize].tokens = tokens,
            Err(error) if self.note_loss(&error) => running.read_again(tokens),
            Err(error) => return running.listener.send(Err(error)),
        }
        self.running.push_back(running);
    }

    fn give_back(&mut self, sequence: u32, history: History) -> Result<()> {
        self.make_free(history.n_blocks(), &[])?;
        history.give_back(&mut self.engine, sequence).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that has so many blocks that nobody else has, from `first` on, and may come to have `n_most`.
    fn share(whole: &[u32], n_more: usize, n_most: usize, kept: u64) -> Share<'_> {
        Share { whole, n_more, n_most: n_most - whole.len(), kept: Bytes(kept) }
    }

    #[test]
    fn a_state_is_safe_where_all_can_end_one_after_the_other() {
        let (first, second, third) = ([0, 1, 2], [3, 4, 5], [6, 7]);
        let shares = [share(&first, 1, 8, 4), share(&second, 1, 8, 4), share(&third, 1, 8, 3)];
        // Where nothing can be kept, the first one needs 8 beside 4 and 3, and the second one 8 beside 3.
        assert!(is_safe(&shares, Bytes::ZERO, 15) && !is_safe(&shares, Bytes::ZERO, 14));
        // The last one leaves, then the last two, then all.
        assert!(is_safe(&shares, Bytes(3), 12) && !is_safe(&shares, Bytes(3), 11));
        assert!(is_safe(&shares, Bytes(7), 8) && !is_safe(&shares, Bytes(7), 7));
        assert!(is_safe(&shares, Bytes(11), 0) && is_safe(&[], Bytes::ZERO, 0));
        // A first one that ends soon is not all that matters.
        let shares = [share(&first, 0, 3, 4), share(&second, 1, 8, 4), share(&third, 1, 8, 3)];
        assert!(is_safe(&shares, Bytes::ZERO, 11) && !is_safe(&shares, Bytes::ZERO, 10));
    }

    #[test]
    fn blocks_of_several_count_once() {
        let (first, second) = ([0, 1, 2], [0, 1, 5]);
        let shares = [share(&first, 1, 6, 9), share(&second, 1, 6, 9)];
        assert!(is_safe(&shares, Bytes::ZERO, 8) && !is_safe(&shares, Bytes::ZERO, 7));
    }

    #[test]
    fn those_that_stand_still_are_paused_first_and_then_the_latest_but_never_the_only_one_that_goes_on() {
        assert_eq!(candidates(&[false, false, false]), [2]);
        assert_eq!(candidates(&[true, false, true, false, false]), [2, 0, 4]);
        assert_eq!(candidates(&[true, false, true]), [2, 0]);
        assert_eq!(candidates(&[false]), [0; 0]);
        assert_eq!(candidates(&[]), [0; 0]);
    }
}
