//! The engine's thread: it does what handles ask for, and computes in turns.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, mpsc};

use super::histories::Histories;
use super::room::UnderWay;
use super::running::{Progress, Running, logits_request};
use super::{Command, Positions, Scoring, Step, Told};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::platform;
use crate::session::{Offer, drafted};
use crate::stream::{Batch, BatchToken, Logits, LogitsRequest};

/// After so many losses of an adapter without a forward between them, those whose forward it was get the error.
const LOSSES_IN_A_ROW: usize = 2;

/// Opens an engine again.
pub(super) type Reopen = Box<dyn FnMut() -> Result<Engine> + Send>;

/// The engine's thread.
pub(super) struct EngineThread {
    pub(super) engine: Engine,
    reopen: Option<Reopen>,
    pub(super) told: Arc<Told>,
    /// Losses of an adapter since a forward went well. While there is one, nothing is computed before the engine is opened again.
    n_losses: usize,
    is_lost: bool,
    /// Per sequence of the plan.
    pub(super) sequences: Vec<SequenceState>,
    /// In the order of their turns.
    pub(super) running: VecDeque<Running>,
    /// What is kept of sequences that made room for others.
    pub(super) histories: Histories,
    /// What was under way when a generation did not find room in the cache: it waits until that is something else.
    pub(super) full_with: Option<UnderWay>,
    /// Generations that have begun so far.
    pub(super) n_begun: u64,
    /// Tokens whose logits are asked for, in the order of coming.
    pub(super) scorings: VecDeque<Scoring>,
}

/// A sequence as the engine's thread keeps it.
#[derive(Default)]
pub(super) struct SequenceState {
    is_open: bool,
    /// Tokens in its cache.
    pub(super) tokens: Vec<u32>,
    /// Which of all generations was the last one to begin there.
    pub(super) last_use: u64,
}

impl EngineThread {
    pub(super) fn new(engine: Engine, reopen: Option<Reopen>, told: Arc<Told>) -> EngineThread {
        let sequences = (0..engine.plan().n_seqs).map(|_| SequenceState::default()).collect();
        let (running, histories) = (VecDeque::new(), Histories::default());
        EngineThread {
            engine,
            reopen,
            told,
            n_losses: 0,
            is_lost: false,
            sequences,
            running,
            histories,
            full_with: None,
            n_begun: 0,
            scorings: VecDeque::new(),
        }
    }

    /// Runs until the last handle is gone. Waits for commands while there is nothing to compute.
    pub(super) fn run(mut self, commands: &mpsc::Receiver<Command>) {
        loop {
            if self.is_lost {
                match self.reopened() {
                    Some(reopened) => self = reopened,
                    None => return refuse(commands),
                }
            }
            self.running.retain(|running| !running.listener.is_gone());
            self.tell();
            if !self.can_go_on() {
                match commands.recv() {
                    Ok(command) => self.execute(command),
                    Err(_) => return,
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.execute(command);
            }
            self.full_with = None;
            self.give_back_unused();
            self.score_what_has_room();
            self.come_back();
            self.begin();
            if let Err(error) = self.make_room() {
                // The forward that lacks it tells of it.
                self.note_loss(&error);
            }
            self.read_on();
            self.generate();
        }
    }

    /// Tells handles how it is.
    fn tell(&self) {
        (0..).zip(&self.sequences).for_each(|(sequence, state)| self.told.note_cached(sequence, state.tokens.len()));
        self.told.note_blocks(self.engine.kv_blocks());
        self.told.of_histories.store((self.histories.size() + self.paused_bytes()).0, Ordering::Relaxed);
        for (sequence, told) in (0..).zip(&self.told.are_paused) {
            let is_paused = |running: &Running| running.sequence == sequence && matches!(running.progress, Progress::Paused { .. });
            told.store(self.running.iter().any(is_paused), Ordering::Relaxed);
        }
    }

    /// The same with an engine that was opened again; `None` where it cannot be, of which those who wait are told.
    fn reopened(self) -> Option<EngineThread> {
        let EngineThread { engine, reopen, told, n_losses, mut sequences, mut running, mut histories, n_begun, scorings, .. } = self;
        let scales: Vec<Vec<f32>> = (0..).take(sequences.len()).map(|sequence| engine.lora_scales(sequence).to_vec()).collect();
        // Two engines may have no room beside each other.
        drop(engine);
        let mut reopen = reopen?;
        let is_whole = |engine: &Engine| engine.plan().n_seqs == sequences.len();
        let reopened = reopen().and_then(|engine| match is_whole(&engine) {
            true => Ok(engine),
            false => Err(Error::internal("the engine was opened again with another number of sequences")),
        });
        let mut engine = match reopened {
            Ok(engine) => engine,
            Err(error) => {
                tracing::error!("after the loss of an adapter the model cannot be opened again: {error}");
                // An error is told once.
                let mut error = Some(error);
                running.iter().for_each(|running| running.listener.send(Err(error.take().unwrap_or(Error::EngineGone))));
                return None;
            }
        };
        for (sequence, scales) in (0..).zip(&scales).filter(|(_, scales)| !scales.is_empty()) {
            // They were those of an engine of the same adapters.
            let _ = engine.set_lora_scales(sequence, scales);
        }
        tracing::warn!("an adapter was lost; the model is open again");
        for running in &mut running {
            running.read_again(std::mem::take(&mut sequences[running.sequence as usize].tokens));
        }
        sequences.iter_mut().for_each(|sequence| sequence.tokens.clear());
        // Another plan may have other devices.
        histories.clear();
        let begun = EngineThread::new(engine, Some(reopen), told);
        Some(EngineThread { n_losses, sequences, running, histories, n_begun, scorings, ..begun })
    }

    /// Notes the loss of an adapter, where that is the error; whether the engine is opened again for it.
    pub(super) fn note_loss(&mut self, error: &Error) -> bool {
        if self.reopen.is_none() || !matches!(error, Error::DeviceLost { .. }) {
            return false;
        }
        self.is_lost = true;
        self.n_losses += 1;
        // What is lost with every forward would be lost forever.
        self.n_losses < LOSSES_IN_A_ROW
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Open(reply) => {
                let found = self.sequences.iter().position(|sequence| !sequence.is_open);
                let opened = found.map(|id| id as u32).ok_or(Error::AllSequencesInUse { n_seqs: self.sequences.len() });
                // Where nobody waits for it any more, it stays free.
                if let (Ok(()), Some(id)) = (reply.send(opened), found) {
                    self.sequences[id].is_open = true;
                }
            }
            Command::Close(sequence) => {
                self.running.retain(|running| running.sequence != sequence);
                if let Some(state) = self.sequences.get_mut(sequence as usize) {
                    *state = SequenceState::default();
                    self.engine.clear_sequence(sequence);
                }
            }
            Command::Generate(running) => {
                self.running.retain(|other| other.sequence != running.sequence);
                self.running.push_back(running);
            }
            Command::Embed(tokens, pooling, reply) => {
                // Where nobody waits any more, nothing is computed.
                if !reply.is_canceled() {
                    let embedding = platform::block_on(self.engine.embed(&tokens, pooling));
                    if let Err(error) = &embedding {
                        self.note_loss(error);
                    }
                    let _ = reply.send(embedding);
                }
            }
            Command::Score(scoring) => {
                self.running.retain(|running| running.sequence != scoring.sequence);
                self.scorings.push_back(scoring);
            }
            Command::Ask(ask) => ask(&self.engine),
            Command::Scale(sequence, scales) => {
                if self.engine.lora_scales(sequence) != scales
                    && let Err(error) = self.keep_history(sequence, &[])
                {
                    self.note_loss(&error);
                }
                // They were checked where they were given.
                if self.engine.set_lora_scales(sequence, &scales).unwrap_or(false) {
                    self.running.retain(|running| running.sequence != sequence);
                    self.sequences[sequence as usize].tokens.clear();
                }
            }
            Command::KeepHistories(limit) => {
                // A part of the model is not all that is kept.
                if self.engine.check_whole().is_ok() {
                    self.histories = Histories::new(limit);
                }
            }
            Command::Wake => {}
        }
    }

    /// Gives the logits that were asked for, in the order of coming, while there is room.
    fn score_what_has_room(&mut self) {
        while let Some(scoring) = self.scorings.pop_front() {
            if !scoring.reply.is_canceled() && !self.has_room_now(self.n_blocks_of(scoring.tokens.len())) {
                self.note_full();
                return self.scorings.push_front(scoring);
            }
            self.score(scoring);
        }
    }

    /// Gives the logits of tokens; the sequence then holds these.
    fn score(&mut self, Scoring { sequence, tokens, positions, mut each, cancelled, reply }: Scoring) {
        // Where nobody waits any more, nothing is computed.
        if reply.is_canceled() {
            return;
        }
        self.forget(sequence);
        let made_free = self.make_free(self.n_blocks_of(tokens.len()), &[]);
        let cached = &mut self.sequences[sequence as usize].tokens;
        let computed = made_free.and_then(|()| self.engine.session_of(sequence, Vec::new())).and_then(|mut session| {
            session.cancel_with(cancelled);
            match positions {
                Positions::All => platform::block_on(session.append_scoring_all(&tokens, each))?,
                Positions::Last => {
                    if let Logits::All(logits) = platform::block_on(session.append(&tokens, LogitsRequest::All))? {
                        each(logits);
                    }
                }
            }
            Ok(())
        });
        match &computed {
            Ok(()) => *cached = tokens,
            Err(error) => {
                self.note_loss(error);
            }
        }
        // Nobody may wait any more.
        let _ = reply.send(computed);
    }

    /// Computes one part of the prompt whose turn it is.
    fn read_on(&mut self) {
        let is_next = |running: &Running| running.due().len() > 1 && running.is_in_turn();
        let next = self.running.iter().position(is_next).and_then(|index| self.running.remove(index));
        if let Some(running) = next {
            let n_tokens = running.due().len().min(self.engine.plan().forward.n_tokens);
            let read = self.compute(vec![running], n_tokens);
            self.running.extend(read);
        }
    }

    /// Computes one token of each sequence that generates, several in a forward, and drafts where there is room for them.
    fn generate(&mut self) {
        let n_together = self.engine.prepared().n_together();
        let is_ready = |running: &Running| running.due().len() == 1 && running.is_in_turn();
        let (ready, others): (Vec<Running>, Vec<Running>) = std::mem::take(&mut self.running).into_iter().partition(is_ready);
        self.running = others.into();
        let (whole, best): (Vec<Running>, Vec<Running>) =
            ready.into_iter().partition(|running| logits_request(running) == LogitsRequest::All);
        for mut ready in [whole, best] {
            while !ready.is_empty() {
                let rest = ready.split_off(ready.len().min(n_together));
                self.draft(&mut ready);
                let computed = self.compute(ready, 1);
                self.running.extend(computed);
                ready = rest;
            }
        }
    }

    /// Chooses the drafts of generations that go into one forward.
    fn draft(&mut self, ready: &mut [Running]) {
        let offer = |running: &Running| running.offer(&self.sequences[running.sequence as usize].tokens, &self.engine);
        let offers: Vec<Offer> = ready.iter().map(offer).collect();
        let place = |running: &Running| (running.sequence, self.sequences[running.sequence as usize].tokens.as_slice());
        let places: Vec<(u32, &[u32])> = ready.iter().map(place).collect();
        let drafts = platform::block_on(drafted(offers, &places, &mut self.engine));
        for (running, draft) in ready.iter_mut().zip(drafts) {
            if let Progress::Begun(begun) = &mut running.progress {
                begun.draft = draft;
            }
        }
    }

    /// Computes the first `n_tokens` that are due of each of `some` in one forward, and returns those that go on. Where a forward of several
    /// fails, each is tried alone, so that none ends with the error of another.
    fn compute(&mut self, some: Vec<Running>, n_tokens: usize) -> Vec<Running> {
        if self.is_lost {
            return some;
        }
        match self.forward(&some, n_tokens) {
            Ok(logits) => {
                self.n_losses = 0;
                *self.told.experts.lock().unwrap_or_else(PoisonError::into_inner) = self.engine.expert_statistics();
                let mut logits = logits.into_iter();
                let mut with_own = |running: Running| {
                    let own = logits.by_ref().take(1 + running.draft().len()).collect();
                    self.go_on(running, n_tokens, own)
                };
                some.into_iter().filter_map(&mut with_own).collect()
            }
            // All of them were cancelled.
            Err(Error::Interrupted) => Vec::new(),
            Err(error) if self.note_loss(&error) => some,
            Err(Error::DeviceLost { adapter, reason }) => {
                let error = || Error::DeviceLost { adapter: adapter.clone(), reason: reason.clone() };
                some.iter().for_each(|running| running.listener.send(Err(error())));
                Vec::new()
            }
            Err(_) if some.len() > 1 => some.into_iter().flat_map(|running| self.compute(vec![running], n_tokens)).collect(),
            Err(error) => {
                if let Some(alone) = some.first() {
                    alone.listener.send(Err(error));
                }
                Vec::new()
            }
        }
    }

    fn forward(&mut self, some: &[Running], n_tokens: usize) -> Result<Vec<Logits>> {
        let mut batch = Batch::default();
        for running in some {
            let first = self.sequences[running.sequence as usize].tokens.len() as u32;
            let tokens = running.due().iter().take(n_tokens).chain(running.draft());
            batch.tokens.extend((first..).zip(tokens).map(|(position, &token)| BatchToken { token, sequence: running.sequence, position }));
            let end = batch.tokens.len() as u32;
            batch.logits_for.extend(end.saturating_sub(1 + running.draft().len() as u32)..end);
        }
        // Logits are needed only after all that is due: others need not cross the link.
        let wanted = some.iter().filter(|running| running.due().len() == n_tokens).map(logits_request);
        batch.logits_request = wanted
            .max_by_key(|request| if let LogitsRequest::TopK(k) = request { *k } else { usize::MAX })
            .unwrap_or(LogitsRequest::TopK(1));
        let is_cancelled = || some.iter().all(|running| running.listener.cancelled.load(Ordering::Relaxed));
        platform::block_on(self.engine.forward_until(&batch, &is_cancelled))
    }

    /// Goes on after `n_tokens` of what is due were computed, and its draft; `logits` are those behind them, which count where that was all
    /// that is due. Returns the generation unless it has ended.
    fn go_on(&mut self, mut running: Running, n_tokens: usize, logits: Vec<Logits>) -> Option<Running> {
        let cached = &mut self.sequences[running.sequence as usize].tokens;
        let Running { sequence, progress: Progress::Begun(begun), listener } = &mut running else { return None };
        cached.extend(begun.due.drain(..n_tokens));
        let draft = std::mem::take(&mut begun.draft);
        if listener.is_gone() {
            return None;
        }
        if !begun.due.is_empty() {
            return Some(running);
        }
        if !std::mem::replace(&mut begun.prompt_is_reported, true) {
            listener.send(Ok(Step::Prompt(begun.state.n_prompt())));
        }
        begun.state.take(draft, logits);
        loop {
            match begun.state.next(cached.len(), &self.engine) {
                Ok(token) => token.into_iter().for_each(|token| listener.send(Ok(Step::Token(token, begun.state.drafts())))),
                Err(error) => {
                    listener.send(Err(error));
                    return None;
                }
            }
            if let Some(finish) = begun.state.finish_reason() {
                self.told.note_cached(*sequence, cached.len());
                self.told.note_blocks(self.engine.kv_blocks());
                listener.send(Ok(Step::End(finish)));
                return None;
            }
            // Where the token was drafted, the logits behind it are there.
            if let Some(due) = begun.state.advance(cached) {
                begun.due.push(due);
                return Some(running);
            }
        }
    }
}

/// Answers what is asked of an engine that is gone, until nobody can ask any more.
fn refuse(commands: &mpsc::Receiver<Command>) {
    for command in commands {
        // Nobody may wait any more.
        match command {
            Command::Open(reply) => drop(reply.send(Err(Error::EngineGone))),
            Command::Generate(running) => running.listener.send(Err(Error::EngineGone)),
            Command::Embed(_, _, reply) => drop(reply.send(Err(Error::EngineGone))),
            Command::Score(scoring) => drop(scoring.reply.send(Err(Error::EngineGone))),
            Command::Ask(_) | Command::Close(_) | Command::Scale(..) | Command::KeepHistories(_) | Command::Wake => {}
        }
    }
}
