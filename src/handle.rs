//! An engine on a thread of its own, which many may hold: handles are clones, sequences live side by side, tokens come as streams.
//! Commands and tokens cross by channels; whoever drops a stream ends its work before the next submission.

use std::collections::VecDeque;
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};

use futures_channel::mpsc as tokens;
use futures_channel::oneshot;
use futures_core::Stream;

use crate::engine::{Engine, LoadedModel};
use crate::error::{Error, Result};
use crate::session::{FinishReason, GenerateOptions, Generated, GenerationState, Session};
use crate::text::Sampler;

/// A loaded model on a thread of its own. Clones are handles of the same engine, which ends when the last handle and the last sequence
/// are gone.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    model: Arc<LoadedModel>,
}

/// One of the plan's sequences, with a KV cache of its own, until it is dropped.
pub struct Sequence {
    handle: EngineHandle,
    id: u32,
}

/// The tokens of one generation, as they come. Dropping it ends the generation before its next submission.
pub struct TokenStream {
    steps: tokens::UnboundedReceiver<Result<Step>>,
    cancelled: Arc<AtomicBool>,
    finish: Option<FinishReason>,
    n_prompt: usize,
}

/// What the engine's thread sends.
enum Step {
    /// The prompt is read; so many tokens of it were computed.
    Prompt(usize),
    Token(Generated),
    End(FinishReason),
}

enum Command {
    /// Take a free sequence.
    Open(oneshot::Sender<Result<u32>>),
    Close(u32),
    Generate(Running),
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
        let (sender, commands) = mpsc::channel();
        let model = self.model();
        let thread = std::thread::Builder::new().name("tierflow-engine".into()).spawn(move || Worker::new(self).run(&commands));
        thread.map_err(|source| Error::io("start", "the engine's thread", source))?;
        Ok(EngineHandle { commands: sender, model })
    }
}

impl EngineHandle {
    /// A sequence that nobody else holds.
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

    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| Error::EngineGone)
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
        let stream = TokenStream { steps, cancelled: Arc::default(), finish: None, n_prompt: 0 };
        let stage = Stage::Prompt(Box::new(Request { prompt, sampler, options }));
        let cancelled = Arc::clone(&stream.cancelled);
        self.handle.send(Command::Generate(Running { sequence: self.id, stage, steps: sender, cancelled }))?;
        Ok(stream)
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

    /// What ends the generation before its next submission, once it is true; what was generated until then stays.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// Why it ended; `None` while it has not, and where it was cancelled.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Tokens of the prompt that were computed, once the first token is there; the others were in the cache.
    pub fn n_prompt(&self) -> usize {
        self.n_prompt
    }
}

impl Stream for TokenStream {
    type Item = Result<Generated>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Generated>>> {
        loop {
            match std::task::ready!(Pin::new(&mut self.steps).poll_next(context)) {
                Some(Ok(Step::Prompt(n_prompt))) => self.n_prompt = n_prompt,
                Some(Ok(Step::Token(generated))) => return Poll::Ready(Some(Ok(generated))),
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
    }
}

/// The engine's thread.
struct Worker {
    engine: Engine,
    /// Per sequence of the plan.
    sequences: Vec<Held>,
    /// In the order of their turns.
    running: VecDeque<Running>,
}

/// A sequence as the engine's thread keeps it.
#[derive(Default)]
struct Held {
    is_open: bool,
    /// Tokens in its cache.
    tokens: Vec<u32>,
}

/// A generation under way.
struct Running {
    sequence: u32,
    stage: Stage,
    steps: tokens::UnboundedSender<Result<Step>>,
    cancelled: Arc<AtomicBool>,
}

/// How far it has come.
enum Stage {
    /// Its prompt is still to be read.
    Prompt(Box<Request>),
    Tokens(Box<GenerationState>),
}

impl Worker {
    fn new(engine: Engine) -> Worker {
        let n_seqs = engine.plan().n_seqs;
        Worker { engine, sequences: (0..n_seqs).map(|_| Held::default()).collect(), running: VecDeque::new() }
    }

    /// Until the last handle is gone. While nothing runs it waits for commands; otherwise each generation has its turn: a prompt, or
    /// one token.
    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        loop {
            if self.running.is_empty() {
                match commands.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.obey(command);
            }
            if let Some(next) = self.running.pop_front()
                && let Some(going) = self.turn(next)
            {
                self.running.push_back(going);
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Open(reply) => {
                let found = self.sequences.iter().position(|held| !held.is_open);
                let opened = found.map(|id| id as u32).ok_or(Error::AllSequencesInUse { n_seqs: self.sequences.len() });
                // Where nobody waits for it any more, it stays free.
                if let (Ok(()), Some(id)) = (reply.send(opened), found) {
                    self.sequences[id].is_open = true;
                }
            }
            Command::Close(sequence) => {
                self.running.retain(|running| running.sequence != sequence);
                if let Some(held) = self.sequences.get_mut(sequence as usize) {
                    *held = Held::default();
                }
            }
            Command::Generate(running) => {
                self.running.retain(|other| other.sequence != running.sequence);
                self.running.push_back(running);
            }
        }
    }

    /// The next step of a generation; yields it where it goes on.
    fn turn(&mut self, running: Running) -> Option<Running> {
        let Running { sequence, stage, steps, cancelled } = running;
        if cancelled.load(Ordering::Relaxed) {
            return None;
        }
        let held = &mut self.sequences[sequence as usize].tokens;
        let mut session = match self.engine.session_of(sequence, std::mem::take(held)) {
            Ok(session) => session,
            Err(error) => return fail(&steps, error),
        };
        session.cancel_with(Arc::clone(&cancelled));
        let outcome = match stage {
            Stage::Prompt(request) => block_on(start(&mut session, *request)),
            Stage::Tokens(state) => block_on(step(&mut session, state)),
        };
        *held = session.tokens().to_vec();
        match outcome {
            Ok((sent, state)) => {
                let is_heard = sent.into_iter().all(|step| steps.unbounded_send(Ok(step)).is_ok());
                state.filter(|_| is_heard).map(|state| Running { sequence, stage: Stage::Tokens(state), steps, cancelled })
            }
            Err(Error::Interrupted) => None,
            Err(error) => fail(&steps, error),
        }
    }
}

/// What is sent, and the generation where it goes on.
type Outcome = Result<(Vec<Step>, Option<Box<GenerationState>>)>;

async fn start(session: &mut Session<'_>, request: Request) -> Outcome {
    let Request { prompt, sampler, options } = request;
    let state = GenerationState::begin(session, &prompt, sampler, options).await?;
    Ok((vec![Step::Prompt(state.n_prompt())], Some(Box::new(state))))
}

async fn step(session: &mut Session<'_>, mut state: Box<GenerationState>) -> Outcome {
    let token = state.next(session).await?.map(Step::Token);
    let finish = state.finish_reason().map(Step::End);
    let goes_on = finish.is_none();
    Ok((token.into_iter().chain(finish).collect(), goes_on.then_some(state)))
}

/// Tells the error; the generation ends with it.
fn fail(steps: &tokens::UnboundedSender<Result<Step>>, error: Error) -> Option<Running> {
    // Nobody may listen any more.
    let _ = steps.unbounded_send(Err(error));
    None
}

/// Polls the future on this thread, which sleeps while it waits.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
