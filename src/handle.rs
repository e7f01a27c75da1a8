//! An engine on a thread of its own, for many callers: handles can be cloned, several sequences are generated at the same time, and tokens
//! come as streams. Commands and tokens cross by channels. A stream that is dropped ends its work before the next submission, and one that
//! is not read pauses.
//!
//! The engine's thread takes turns: one part of one prompt, as large as the plan's forward, then one token of every sequence that
//! generates. Those tokens share forwards, as many as go through the kernels of a single token ([`MAX_TOKENS_TOGETHER`]): so each sequence
//! gets bit for bit what it gets alone, and a long prompt holds the others up for one part of it at a time. Drafts of the sequences take
//! what room is left.
//!
//! What a prompt has in common with the text of another sequence is not computed again: both have the same blocks of the cache. Where that one
//! is still reading it, the prompt waits: many requests with one system prompt read it once.
//!
//! A generation begins once the cache has room for all that it may become; what sequences keep from earlier texts makes room for it.
//!
//! Where an adapter is lost, the engine is opened again if it was said how, and generations under way read their texts once more.
//!
//! [`MAX_TOKENS_TOGETHER`]: crate::stream::MAX_TOKENS_TOGETHER

mod histories;
mod room;

use std::collections::VecDeque;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::task::{Context, Poll};

use futures_channel::mpsc as tokens;
use futures_channel::oneshot;
use futures_core::Stream;

use self::histories::{Histories, History};
use crate::engine::{Engine, LoadedModel};
use crate::error::{Error, Result};
use crate::platform;
use crate::session::{DraftStatistics, FinishReason, GenerateOptions, Generated, GenerationState, Offer, drafted, n_known};
use crate::stream::{Batch, BatchToken, ExpertStatistics, KvBlocks, Logits, LogitsRequest};
use crate::text::{Pooling, Sampler};
use crate::units::Bytes;

/// Most unread steps of a stream: its generation pauses until they are read.
pub const MAX_UNREAD: usize = 64;

/// Fewer positions than so many are computed anew rather than copied from another sequence, or waited for.
const MIN_COPIED: usize = 16;

/// After so many losses of an adapter without a forward between them, those whose forward it was get the error.
const LOSSES_IN_A_ROW: usize = 2;

/// A loaded model on a thread of its own. Clones are handles of the same engine, which ends when the last handle, sequence and stream are
/// gone.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    model: Arc<LoadedModel>,
    told: Arc<Told>,
    end: EngineEnd,
}

/// What the engine's thread tells all handles, as it was after the last forward.
struct Told {
    experts: Mutex<ExpertStatistics>,
    /// Tokens in the cache of each sequence of the plan.
    n_cached: Vec<AtomicUsize>,
    /// Bytes of what is kept of sequences that made room for others.
    of_histories: AtomicU64,
}

impl Told {
    fn note_cached(&self, sequence: u32, n_tokens: usize) {
        if let Some(n_cached) = self.n_cached.get(sequence as usize) {
            n_cached.store(n_tokens, Ordering::Relaxed);
        }
    }
}

/// The end of an engine's thread: its memory is free again.
#[derive(Clone, Default)]
pub struct EngineEnd(Arc<(Mutex<bool>, Condvar)>);

/// Says so when it is dropped.
struct Ending(EngineEnd);

/// One of the plan's sequences, with a KV cache of its own, until it is dropped.
pub struct Sequence {
    handle: EngineHandle,
    id: u32,
}

/// The tokens of one generation, as they come. Dropping it ends the generation before its next submission.
pub struct TokenStream {
    steps: tokens::UnboundedReceiver<Result<Step>>,
    cancelled: Arc<AtomicBool>,
    unread: Arc<Unread>,
    commands: mpsc::Sender<Command>,
    finish: Option<FinishReason>,
    n_prompt: usize,
    drafts: DraftStatistics,
}

/// The steps that a stream has not read yet, as its reader and the engine's thread share them.
#[derive(Default)]
struct Unread {
    n_steps: AtomicUsize,
    /// Whether the engine's thread waits for them to be read.
    is_awaited: AtomicBool,
}

/// What the engine's thread sends.
enum Step {
    /// The prompt is read; so many tokens of it were computed.
    Prompt(usize),
    /// A token, and what drafts had brought by then.
    Token(Generated, DraftStatistics),
    End(FinishReason),
}

enum Command {
    /// Take a free sequence.
    Open(oneshot::Sender<Result<u32>>),
    Close(u32),
    Generate(Running),
    /// Make an embedding.
    Embed(Vec<u32>, Pooling, oneshot::Sender<Result<Vec<f32>>>),
    /// Give the logits of tokens.
    Score(Scoring),
    /// Tell something of the engine.
    Ask(Box<dyn FnOnce(&Engine) + Send>),
    /// Multiply LoRA adapters by these from now on.
    Scale(u32, Vec<f32>),
    /// Keep so many bytes of sequences that make room for others.
    KeepHistories(Bytes),
    /// Look again: a stream that was full is not any more.
    Wake,
}

/// Tokens whose logits are asked for.
struct Scoring {
    sequence: u32,
    tokens: Vec<u32>,
    positions: Positions,
    each: Box<dyn FnMut(Vec<f32>) + Send>,
    cancelled: Arc<AtomicBool>,
    reply: oneshot::Sender<Result<()>>,
}

/// Positions of a text whose logits are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// Each of them. Those that one forward gives are [`PlanOptions::logit_rows`](crate::plan::PlanOptions::logit_rows).
    All,
    /// The last one.
    Last,
}

/// Sets a flag when it is dropped.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Request {
    prompt: Vec<u32>,
    sampler: Sampler,
    options: GenerateOptions,
}

impl Engine {
    /// Puts the engine on a thread of its own.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses a thread.
    pub fn spawn(self) -> Result<EngineHandle> {
        self.spawn_with(None)
    }

    /// The same; after the loss of an adapter `reopen` opens the engine again, on its thread and once the lost one is gone, for as many
    /// sequences. Generations under way go on where they were.
    ///
    /// # Errors
    /// As of [`Engine::spawn`].
    pub fn spawn_reopening(self, reopen: impl FnMut() -> Result<Engine> + Send + 'static) -> Result<EngineHandle> {
        self.spawn_with(Some(Box::new(reopen)))
    }

    fn spawn_with(self, reopen: Option<Reopen>) -> Result<EngineHandle> {
        let (sender, commands) = mpsc::channel();
        let model = self.model();
        let n_cached = (0..model.plan().n_seqs).map(|_| AtomicUsize::new(0)).collect();
        let told = Arc::new(Told { experts: Mutex::default(), n_cached, of_histories: AtomicU64::new(0) });
        let end = EngineEnd::default();
        let (ending, of_thread) = (Ending(end.clone()), Arc::clone(&told));
        let run = move || {
            // Dropped last, also where the thread panics.
            let _ending = ending;
            EngineThread::new(self, reopen, of_thread).run(&commands);
        };
        let thread = std::thread::Builder::new().name("tierflow-engine".into()).spawn(run);
        thread.map_err(|source| Error::io("start", "the engine's thread", source))?;
        Ok(EngineHandle { commands: sender, model, told, end })
    }
}

impl EngineHandle {
    /// Takes a free sequence.
    ///
    /// # Errors
    /// [`Error::AllSequencesInUse`] where the plan provides for no more ([`n_seqs`](crate::plan::PlanOptions::n_seqs));
    /// [`Error::EngineGone`].
    pub async fn sequence(&self) -> Result<Sequence> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Open(reply))?;
        let id = answer.await.map_err(|_| Error::EngineGone)??;
        Ok(Sequence { handle: self.clone(), id })
    }

    /// The embedding of `tokens`, as [`Engine::embed`] makes it. One is made at a time.
    ///
    /// # Errors
    /// Those of [`Engine::embed`]; [`Error::EngineGone`].
    pub async fn embed(&self, tokens: Vec<u32>, pooling: Pooling) -> Result<Vec<f32>> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Embed(tokens, pooling, reply))?;
        answer.await.map_err(|_| Error::EngineGone)?
    }

    /// What `ask` finds out of the engine, between two forwards.
    ///
    /// # Errors
    /// [`Error::EngineGone`].
    pub async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(&Engine) -> T + Send + 'static) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Ask(Box::new(move |engine| drop(reply.send(ask(engine))))))?;
        answer.await.map_err(|_| Error::EngineGone)
    }

    /// What the expert caches of all adapters were asked for until the last forward; waits for nothing.
    pub fn expert_statistics(&self) -> ExpertStatistics {
        *self.told.experts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens in the cache of each of the plan's sequences ([`Sequence::id`]) after the last forward; waits for nothing. What they take is
    /// [`Plan::sequence_bytes`](crate::plan::Plan::sequence_bytes).
    pub fn cached_tokens(&self) -> Vec<usize> {
        self.told.n_cached.iter().map(|n_cached| n_cached.load(Ordering::Relaxed)).collect()
    }

    /// Lets host memory hold so many bytes of what is cached of sequences when another text takes their place: a text that goes on from one of
    /// them later is not computed from its beginning. None by default.
    ///
    /// # Errors
    /// [`Error::EngineGone`].
    pub fn keep_histories(&self, limit: Bytes) -> Result<()> {
        self.send(Command::KeepHistories(limit))
    }

    /// Bytes that these take after the last forward; waits for nothing.
    pub fn history_bytes(&self) -> Bytes {
        Bytes(self.told.of_histories.load(Ordering::Relaxed))
    }

    /// What is known of the model, for callers that outlive the handle.
    pub fn model(&self) -> Arc<LoadedModel> {
        Arc::clone(&self.model)
    }

    /// What tells of the engine's end, which comes some time after that of its last handle.
    pub fn end(&self) -> EngineEnd {
        self.end.clone()
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| Error::EngineGone)
    }
}

impl EngineEnd {
    /// Waits for it.
    pub fn wait(&self) {
        let (has_ended, changed) = &*self.0;
        let mut ended = has_ended.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            ended = changed.wait(ended).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let (has_ended, changed) = &*self.0.0;
        *has_ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }
}

impl Deref for EngineHandle {
    type Target = LoadedModel;

    fn deref(&self) -> &LoadedModel {
        &self.model
    }
}

impl Sequence {
    /// Reads the prompt and generates after it. What the sequence's cache holds of the prompt is not computed again. A generation that
    /// is still under way on this sequence ends first.
    ///
    /// # Errors
    /// [`Error::EngineGone`]; what else fails comes through the stream.
    pub fn generate(&mut self, prompt: Vec<u32>, sampler: Sampler, options: GenerateOptions) -> Result<TokenStream> {
        let (sender, steps) = tokens::unbounded();
        let (cancelled, unread, commands) = (Arc::default(), Arc::default(), self.handle.commands.clone());
        let stream = TokenStream { steps, cancelled, unread, commands, finish: None, n_prompt: 0, drafts: DraftStatistics::default() };
        let progress = Progress::Requested(Box::new(Request { prompt, sampler, options }));
        let listener = Listener { steps: sender, cancelled: Arc::clone(&stream.cancelled), unread: Arc::clone(&stream.unread) };
        self.handle.send(Command::Generate(Running { sequence: self.id, progress, listener }))?;
        Ok(stream)
    }

    /// Lets the sequence multiply LoRA adapters by these from its next generation on, as [`Engine::set_lora_scales`] does. A generation
    /// that is still under way on it with others ends.
    ///
    /// # Errors
    /// As of [`Engine::set_lora_scales`]; [`Error::EngineGone`].
    pub fn set_lora_scales(&mut self, scales: Vec<f32>) -> Result<()> {
        self.handle.prepared().check_lora_scales(&scales)?;
        if scales.is_empty() { Ok(()) } else { self.handle.send(Command::Scale(self.id, scales)) }
    }

    /// Calls `each`, on the engine's thread, with the logits after `positions` of `tokens`, in order. A generation that is still under way
    /// on this sequence ends first; other sequences wait. Where the future is dropped, it ends before its next submission.
    ///
    /// # Errors
    /// Those of [`Session::append`](crate::session::Session::append); [`Error::EngineGone`].
    pub async fn logits(&mut self, tokens: Vec<u32>, positions: Positions, each: impl FnMut(Vec<f32>) + Send + 'static) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancels = SetOnDrop(Arc::clone(&cancelled));
        let scoring = Scoring { sequence: self.id, tokens, positions, each: Box::new(each), cancelled, reply };
        self.handle.send(Command::Score(scoring))?;
        answer.await.map_err(|_| Error::EngineGone)?
    }

    /// Its number among the plan's sequences, from 0 on.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The engine that it is of.
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        // Where the engine is gone, so is the sequence.
        let _ = self.handle.send(Command::Close(self.id));
    }
}

impl TokenStream {
    /// The next token, or `None` at the end.
    ///
    /// # Errors
    /// Those of [`Session::append`](crate::session::Session::append), [`Error::NotFinite`], [`Error::EngineGone`].
    pub async fn next(&mut self) -> Result<Option<Generated>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await.transpose()
    }

    /// Set to true, it ends the generation before its next submission; what was generated until then stays.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// Steps that wait to be read: tokens, and that the prompt was read. No more than [`MAX_UNREAD`].
    pub fn n_unread(&self) -> usize {
        self.unread.n_steps.load(Ordering::SeqCst)
    }

    /// A step was read.
    fn note_read(&self) {
        self.unread.n_steps.fetch_sub(1, Ordering::SeqCst);
        if self.unread.is_awaited.swap(false, Ordering::SeqCst) {
            // Where the engine is gone, nobody waits.
            let _ = self.commands.send(Command::Wake);
        }
    }

    /// Why it ended; `None` while it has not, and where it was cancelled.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Tokens of the prompt that were computed, once the first token is there; the others were in the cache.
    pub fn n_prompt(&self) -> usize {
        self.n_prompt
    }

    /// Forwards after the prompt, and what drafts brought, up to the last token that was read.
    pub fn drafts(&self) -> DraftStatistics {
        self.drafts
    }
}

impl Stream for TokenStream {
    type Item = Result<Generated>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Generated>>> {
        loop {
            let step = std::task::ready!(Pin::new(&mut self.steps).poll_next(context));
            if step.is_some() {
                self.note_read();
            }
            match step {
                Some(Ok(Step::Prompt(n_prompt))) => self.n_prompt = n_prompt,
                Some(Ok(Step::Token(generated, drafts))) => {
                    self.drafts = drafts;
                    return Poll::Ready(Some(Ok(generated)));
                }
                Some(Ok(Step::End(finish))) => {
                    self.finish = Some(finish);
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        // Others may wait for its room in the cache. Where the engine is gone, nobody does.
        let _ = self.commands.send(Command::Wake);
    }
}

/// Opens an engine again.
type Reopen = Box<dyn FnMut() -> Result<Engine> + Send>;

/// The engine's thread.
struct EngineThread {
    engine: Engine,
    reopen: Option<Reopen>,
    told: Arc<Told>,
    /// Losses of an adapter since a forward went well. While there is one, nothing is computed before the engine is opened again.
    n_losses: usize,
    is_lost: bool,
    /// Per sequence of the plan.
    sequences: Vec<SequenceState>,
    /// In the order of their turns.
    running: VecDeque<Running>,
    /// What is kept of sequences that made room for others.
    histories: Histories,
    /// Generations that were under way when another one did not find room in the cache: it waits until these are others.
    full_with: Option<usize>,
    /// Generations that have begun so far.
    n_begun: u64,
    /// Tokens whose logits are asked for, in the order of coming.
    scorings: VecDeque<Scoring>,
}

/// A sequence as the engine's thread keeps it.
#[derive(Default)]
struct SequenceState {
    is_open: bool,
    /// Tokens in its cache.
    tokens: Vec<u32>,
    /// Which of all generations was the last one to begin there.
    last_use: u64,
}

/// How much of a prompt is cached.
#[derive(Clone, Copy)]
struct Known {
    /// Tokens of it in the cache of its own sequence.
    n_own: usize,
    /// Another sequence and its tokens, where it has so many more that they are worth copying.
    elsewhere: Option<(u32, usize)>,
}

/// A generation under way.
struct Running {
    sequence: u32,
    progress: Progress,
    listener: Listener,
}

/// The progress of a generation.
enum Progress {
    /// Nothing was done yet.
    Requested(Box<Request>),
    Begun(Box<Begun>),
}

struct Begun {
    state: GenerationState,
    /// Tokens to be computed before the next one is chosen: what is left of the prompt, or the last token. At least one.
    due: Vec<u32>,
    /// Tokens that are computed behind what is due, since they may be next.
    draft: Vec<u32>,
    /// Whether the listener knows that the prompt was read.
    prompt_is_reported: bool,
    /// Blocks of the cache that it may come to have.
    n_reserved: usize,
}

/// Who gets the steps.
struct Listener {
    steps: tokens::UnboundedSender<Result<Step>>,
    cancelled: Arc<AtomicBool>,
    unread: Arc<Unread>,
}

impl Listener {
    fn send(&self, step: Result<Step>) {
        self.unread.n_steps.fetch_add(1, Ordering::SeqCst);
        // Nobody may listen any more.
        let _ = self.steps.unbounded_send(step);
    }

    /// Whether nobody wants more steps.
    fn is_gone(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.steps.is_closed()
    }

    /// Whether it may get more steps. If not, it wakes the engine's thread once it may.
    fn has_room(&self) -> bool {
        if self.room() > 0 {
            return true;
        }
        self.unread.is_awaited.store(true, Ordering::SeqCst);
        self.room() > 0
    }

    /// How many more steps it may get.
    fn room(&self) -> usize {
        MAX_UNREAD.saturating_sub(self.unread.n_steps.load(Ordering::SeqCst))
    }
}

impl Running {
    /// The tokens to be computed next; none before it has begun.
    fn due(&self) -> &[u32] {
        match &self.progress {
            Progress::Requested(_) => &[],
            Progress::Begun(begun) => &begun.due,
        }
    }

    /// The tokens to be computed behind them.
    fn draft(&self) -> &[u32] {
        match &self.progress {
            Progress::Requested(_) => &[],
            Progress::Begun(begun) => &begun.draft,
        }
    }

    /// The draft that may be computed behind what is due, where `cached` are the tokens in its cache.
    fn offer(&self, cached: &[u32], model: &LoadedModel) -> Offer {
        let Progress::Begun(begun) = &self.progress else { return Offer::default() };
        let mut offer = begun.state.offer(cached, model);
        // The token that is due gives a step as well.
        offer.truncate(self.listener.room().saturating_sub(1));
        offer
    }
}

impl EngineThread {
    fn new(engine: Engine, reopen: Option<Reopen>, told: Arc<Told>) -> EngineThread {
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
    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        loop {
            if self.is_lost {
                match self.reopened() {
                    Some(reopened) => self = reopened,
                    None => return refuse(commands),
                }
            }
            self.running.retain(|running| !running.listener.is_gone());
            (0..).zip(&self.sequences).for_each(|(sequence, state)| self.told.note_cached(sequence, state.tokens.len()));
            self.told.of_histories.store(self.histories.size().0, Ordering::Relaxed);
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
            self.score_what_has_room();
            self.begin();
            if let Err(error) = self.make_room() {
                // The forward that lacks it tells of it.
                self.note_loss(&error);
            }
            self.read_on();
            self.generate();
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
            if let Progress::Begun(begun) = &mut running.progress {
                let read = std::mem::take(&mut sequences[running.sequence as usize].tokens);
                begun.due.splice(0..0, read);
                begun.draft.clear();
            }
        }
        sequences.iter_mut().for_each(|sequence| sequence.tokens.clear());
        // Another plan may have other devices.
        histories.clear();
        let reopen = Some(reopen);
        Some(EngineThread {
            engine,
            reopen,
            told,
            n_losses,
            is_lost: false,
            sequences,
            running,
            histories,
            full_with: None,
            n_begun,
            scorings,
        })
    }

    /// Notes the loss of an adapter, where that is the error; whether the engine is opened again for it.
    fn note_loss(&mut self, error: &Error) -> bool {
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
            let n_tokens = scoring.tokens.len().min(self.engine.plan().ctx_size);
            if !scoring.reply.is_canceled() && !self.has_room(n_tokens.div_ceil(KvBlocks::BLOCK_LEN), &[]) {
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
        let n_tokens = tokens.len().min(self.engine.plan().ctx_size);
        let made_free = self.make_free(n_tokens.div_ceil(KvBlocks::BLOCK_LEN), &[]);
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

    /// Begins the generations that were asked for, but those that had better wait for another one to read what both have in common.
    fn begin(&mut self) {
        let is_begun = |running: &Running| matches!(running.progress, Progress::Begun(_));
        let (begun, requested): (Vec<Running>, Vec<Running>) = std::mem::take(&mut self.running).into_iter().partition(is_begun);
        self.running = begun.into();
        for Running { sequence, progress, listener } in requested {
            let Progress::Requested(request) = progress else { continue };
            let known = self.known(sequence, &request.prompt);
            // Whoever asked first begins first, so that nobody waits forever.
            let is_full = self.full_with.is_some() || self.waits_for_room(sequence, known, &request);
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
        let n_reserved = self.n_needed(&request);
        let Request { prompt, sampler, options } = request;
        self.n_begun += 1;
        self.sequences[sequence as usize].last_use = self.n_begun;
        let n_cached = known.elsewhere.map_or(known.n_own, |(_, n_tokens)| n_tokens);
        // It is taken before the sequence's own needs its room.
        let history = self.history_of(sequence, &prompt, n_cached, n_reserved);
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
        Ok(Begun { state, due, draft: Vec::new(), prompt_is_reported: false, n_reserved })
    }

    /// Keeps what a sequence has cached, where `prompt` makes most of it void.
    fn keep_history(&mut self, sequence: u32, prompt: &[u32]) -> Result<()> {
        let tokens = &self.sequences[sequence as usize].tokens;
        let is_worth_it = tokens.len() >= MIN_COPIED && n_known(tokens, prompt) * 2 < tokens.len();
        if is_worth_it && let Some(history) = platform::block_on(History::of(&mut self.engine, sequence, tokens, self.histories.limit()))? {
            self.histories.keep(history);
        }
        Ok(())
    }

    /// Takes what was kept that has so much more than `n_cached` tokens of `prompt` that it is worth bringing back, where there is room for it and
    /// for `n_reserved` blocks.
    fn history_of(&mut self, sequence: u32, prompt: &[u32], n_cached: usize, n_reserved: usize) -> Option<History> {
        let is_recurrent = self.engine.prepared().model.is_recurrent();
        let best = self.histories.best(self.engine.lora_scales(sequence), prompt, is_recurrent);
        let (index, _) = best.filter(|(_, n_alike)| *n_alike >= n_cached + MIN_COPIED)?;
        let history = self.histories.take(index)?;
        if self.has_room(history.n_blocks().max(n_reserved), &[]) {
            return Some(history);
        }
        self.histories.keep(history);
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
            is_alike && is_worth_it && running.due().len() > 1 && running.listener.has_room()
        };
        self.running.iter().any(is_read_by)
    }

    /// Computes one part of the prompt whose turn it is.
    fn read_on(&mut self) {
        let is_next = |running: &Running| running.due().len() > 1 && running.listener.has_room();
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
        let is_ready = |running: &Running| running.due().len() == 1 && running.listener.has_room();
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

/// The logits that a generation needs.
fn logits_request(running: &Running) -> LogitsRequest {
    match &running.progress {
        Progress::Requested(_) => LogitsRequest::TopK(1),
        Progress::Begun(begun) => begun.state.logits_request(),
    }
}
