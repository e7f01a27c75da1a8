//! How a generation begins: where its sequence holds a part of its prompt, another one does, or what was kept in host memory.

use super::Request;
use super::histories::History;
use super::room::Need;
use super::running::{Begun, Progress, Running};
use super::thread::EngineThread;
use crate::error::Result;
use crate::platform;
use crate::session::{GenerationState, n_known};

/// Fewer positions than so many are computed anew rather than copied from another sequence, or waited for.
const MIN_COPIED: usize = 16;

/// How much of a prompt is cached.
#[derive(Clone, Copy)]
pub(super) struct Known {
    /// Tokens of it in the cache of its own sequence.
    pub(super) n_own: usize,
    /// Another sequence and its tokens, where it has so many more that they are worth copying.
    pub(super) elsewhere: Option<(u32, usize)>,
}

impl EngineThread {
    /// Begins the generations that were asked for, but those that had better wait for another one to read what both have in common.
    pub(super) fn begin(&mut self) {
        let is_requested = |running: &Running| matches!(running.progress, Progress::Requested(_));
        let (requested, begun): (Vec<Running>, Vec<Running>) = std::mem::take(&mut self.running).into_iter().partition(is_requested);
        self.running = begun.into();
        for Running { sequence, progress, listener } in requested {
            let Progress::Requested(request) = progress else { continue };
            let mut known = self.known(sequence, &request.prompt);
            // Whoever asked first begins first, so that nobody waits forever.
            let mut is_full = self.full_with.is_some();
            while !is_full && self.waits_for_room(sequence, known, &request) {
                // Those that nobody reads make room, also of what the prompt has in common with them.
                is_full = !self.pause_unread();
                known = self.known(sequence, &request.prompt);
            }
            if is_full {
                self.note_full();
            }
            if is_full || self.is_being_read(sequence, &request.prompt, known) {
                self.running.push_back(Running { sequence, progress: Progress::Requested(request), listener });
                continue;
            }
            match self.begin_one(sequence, known, *request) {
                Ok(begun) => self.running.push_back(Running { sequence, progress: Progress::Begun(Box::new(begun)), listener }),
                Err(error) => {
                    self.note_loss(&error);
                    listener.send(Err(error));
                }
            }
        }
    }

    fn begin_one(&mut self, sequence: u32, known: Known, request: Request) -> Result<Begun> {
        let need = self.need_of(&request);
        let Request { prompt, sampler, options } = request;
        self.n_begun += 1;
        self.sequences[sequence as usize].last_use = self.n_begun;
        let n_cached = known.elsewhere.map_or(known.n_own, |(_, n_tokens)| n_tokens);
        // It is taken before the sequence's own needs its room.
        let history = self.history_of(sequence, &prompt, n_cached, need);
        self.keep_history(sequence, &prompt)?;
        if let Some(history) = history {
            self.forget(sequence);
            self.make_free(history.n_blocks(), &[])?;
            self.sequences[sequence as usize].tokens = history.give_back(&mut self.engine, sequence)?;
        } else if let Some((from, n_tokens)) = known.elsewhere {
            self.forget(sequence);
            let n_tokens = self.n_shareable(from, n_tokens)?;
            self.engine.copy_sequence(from, sequence, n_tokens)?;
            self.sequences[sequence as usize].tokens.extend_from_slice(&prompt[..n_tokens]);
        }
        let cached = &mut self.sequences[sequence as usize].tokens;
        let (state, due) = GenerationState::begin(&self.engine, sequence, cached, &prompt, sampler, options)?;
        let (number, n_most) = (self.n_begun, need.most);
        Ok(Begun { number, state, due, draft: Vec::new(), prompt_is_reported: false, n_most, is_left_out: false })
    }

    /// Keeps what a sequence has cached, where `prompt` makes most of it void.
    pub(super) fn keep_history(&mut self, sequence: u32, prompt: &[u32]) -> Result<()> {
        let tokens = &self.sequences[sequence as usize].tokens;
        let is_worth_it = tokens.len() >= MIN_COPIED && n_known(tokens, prompt) * 2 < tokens.len();
        if is_worth_it && let Some(history) = platform::block_on(History::of(&mut self.engine, sequence, tokens, self.histories.limit()))? {
            self.histories.keep(history, self.paused_bytes());
        }
        Ok(())
    }

    /// Takes what was kept that has so much more than `n_cached` tokens of `prompt` that it is worth bringing back, where there is room for it and
    /// for what the prompt needs.
    fn history_of(&mut self, sequence: u32, prompt: &[u32], n_cached: usize, need: Need) -> Option<History> {
        let is_recurrent = self.engine.prepared().model.is_recurrent();
        let best = self.histories.best(self.engine.lora_scales(sequence), prompt, is_recurrent);
        let (index, _) = best.filter(|(_, n_alike)| *n_alike >= n_cached + MIN_COPIED)?;
        let history = self.histories.take(index)?;
        if self.has_room(need.at_least(history.n_blocks()), &[]) {
            return Some(history);
        }
        self.histories.keep(history, self.paused_bytes());
        None
    }

    /// What is cached of a sequence's next prompt, there and elsewhere.
    fn known(&self, sequence: u32, prompt: &[u32]) -> Known {
        let n_cached = |sequence: u32| self.engine.n_reusable(sequence, n_known(&self.sequences[sequence as usize].tokens, prompt));
        let n_own = n_cached(sequence);
        // Recurrent states are those after the last token alone.
        let is_alike = |other: u32| self.engine.lora_scales(other) == self.engine.lora_scales(sequence);
        let others = (0..self.sequences.len() as u32)
            .filter(|other| *other != sequence && is_alike(*other) && self.engine.can_copy_sequences().is_ok());
        let best = others.map(|other| (other, n_cached(other))).max_by_key(|(_, n_tokens)| *n_tokens);
        Known { n_own, elsewhere: best.filter(|(_, n_tokens)| *n_tokens >= n_own + MIN_COPIED) }
    }

    /// Whether another sequence that computes alike is reading more of `prompt` than any has in its cache.
    fn is_being_read(&self, sequence: u32, prompt: &[u32], Known { n_own, elsewhere }: Known) -> bool {
        if self.engine.can_copy_sequences().is_err() {
            return false;
        }
        let n_cached = elsewhere.map_or(n_own, |(_, n_tokens)| n_tokens);
        let is_read_by = |running: &Running| {
            let tokens = &self.sequences[running.sequence as usize].tokens;
            let n_alike = n_known(tokens, prompt);
            let n_due = if n_alike == tokens.len() { n_known(running.due(), &prompt[n_alike..]) } else { 0 };
            let is_worth_it = n_alike + n_due > n_cached && n_alike + n_due >= n_own + MIN_COPIED;
            let is_alike = self.engine.lora_scales(running.sequence) == self.engine.lora_scales(sequence);
            is_alike && is_worth_it && running.due().len() > 1 && running.is_read()
        };
        self.running.iter().any(is_read_by)
    }
}
