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
//! A generation begins once the cache has room for all that it may become, or, where generations may be paused, for its prompt and some tokens
//! more; what sequences keep from earlier texts makes room for it. Where the next tokens find none, the generation that began last is paused: what
//! it has in the cache waits in host memory, and comes back as it was.
//!
//! Where an adapter is lost, the engine is opened again if it was said how, and generations under way read their texts once more.
//!
//! [`MAX_TOKENS_TOGETHER`]: crate::stream::MAX_TOKENS_TOGETHER

mod begin;
mod histories;
mod preempt;
mod room;
mod running;
mod thread;

use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::task::{Context, Poll};

use futures_channel::mpsc as tokens;
use futures_channel::oneshot;
use futures_core::Stream;

use self::running::{Listener, Progress, Running};
use self::thread::{EngineThread, Reopen};
use crate::engine::{Engine, LoadedModel};
use crate::error::{Error, Result};
use crate::session::{DraftStatistics, FinishReason, GenerateOptions, Generated};
use crate::stream::{ExpertStatistics, KvBlocks};
use crate::text::{Pooling, Sampler};
use crate::units::Bytes;

/// Most unread steps of a stream: its generation pauses until they are read.
pub const MAX_UNREAD: usize = 64;

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
    /// Blocks of the KV cache that sequences have.
    n_used_blocks: AtomicUsize,
    /// Bytes of what is kept of sequences that made room for others.
    of_histories: AtomicU64,
    /// Whether the generation of each sequence of the plan is paused.
    are_paused: Vec<AtomicBool>,
    /// Generations that were paused so far.
    n_preemptions: AtomicU64,
}

impl Told {
    fn note_cached(&self, sequence: u32, n_tokens: usize) {
        if let Some(n_cached) = self.n_cached.get(sequence as usize) {
            n_cached.store(n_tokens, Ordering::Relaxed);
        }
    }

    fn note_blocks(&self, blocks: &KvBlocks) {
        self.n_used_blocks.store(blocks.n_blocks() - blocks.n_free(), Ordering::Relaxed);
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
        let are_paused = (0..model.plan().n_seqs).map(|_| AtomicBool::new(false)).collect();
        let (experts, n_used_blocks, of_histories, n_preemptions) = Default::default();
        let told = Arc::new(Told { experts, n_cached, n_used_blocks, of_histories, are_paused, n_preemptions });
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

    /// Blocks of the KV cache that sequences have after the last forward, each counted once whoever shares it; waits for nothing. What they
    /// take is [`Plan::blocks_bytes`](crate::plan::Plan::blocks_bytes).
    pub fn used_kv_blocks(&self) -> usize {
        self.told.n_used_blocks.load(Ordering::Relaxed)
    }

    /// Lets host memory hold so many bytes of what is cached of sequences when another text takes their place: a text that goes on from one of
    /// them later is not computed from its beginning. None by default.
    ///
    /// Where that is as much as a whole context takes, generations begin before the KV cache has room for all that they may become, and are
    /// paused where it has none for their next tokens: what they have in it is kept there meanwhile.
    ///
    /// # Errors
    /// [`Error::EngineGone`].
    pub fn keep_histories(&self, limit: Bytes) -> Result<()> {
        self.send(Command::KeepHistories(limit))
    }

    /// Bytes that these take after the last forward, those of paused generations among them; waits for nothing.
    pub fn history_bytes(&self) -> Bytes {
        Bytes(self.told.of_histories.load(Ordering::Relaxed))
    }

    /// How often a generation was paused, so that others have its room in the KV cache; waits for nothing.
    pub fn n_preemptions(&self) -> u64 {
        self.told.n_preemptions.load(Ordering::Relaxed)
    }

    /// Whether the generation of each of the plan's sequences ([`Sequence::id`]) was paused after the last forward; waits for nothing.
    pub fn paused_sequences(&self) -> Vec<bool> {
        self.told.are_paused.iter().map(|is_paused| is_paused.load(Ordering::Relaxed)).collect()
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
