//! One sequence on an engine: prompts in, tokens out.

mod draft;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::engine::{Engine, LoadedModel};
use crate::error::{Error, Result, Setting};
use crate::stream::{Batch, BatchToken, Logits, LogitsRequest};
use crate::text::{Candidate, Detokenizer, LogitsNeeded, Sampler, StopStrings, TokenLogprobs};
use draft::Drafts;
pub use draft::{DraftSource, DraftStatistics, Speculation};
pub(crate) use draft::{Offer, drafted};

/// A sequence in the KV cache.
pub struct Session<'a> {
    engine: &'a mut Engine,
    /// Which of the plan's sequences.
    sequence: u32,
    tokens: Vec<u32>,
    cancelled: Arc<AtomicBool>,
}

/// When a generation ends by itself, and how it goes.
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// Most tokens to generate; `None` until the model ends or the context is full.
    pub max_tokens: Option<usize>,
    /// Go on after the model's end tokens.
    pub ignore_eos: bool,
    /// Texts that end the generation; they are not part of its text.
    pub stop: Vec<String>,
    /// Whether tokens are drafted, several of which then come of one forward; the text is the same.
    pub speculation: Speculation,
    /// Tell how likely each token was, and so many of the likeliest ones.
    pub n_logprobs: Option<usize>,
}

/// Why a generation ended, in the words of the OpenAI API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model's own end, or a stop string.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
}

/// One step of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The token.
    pub token: u32,
    /// Text that is complete with it; often a word, sometimes empty.
    pub text: String,
    /// How likely it was, where [`GenerateOptions::n_logprobs`] asks for it.
    pub logprobs: Option<TokenLogprobs>,
}

/// Tokens as they come: call [`Generation::next`] until it yields `None`.
pub struct Generation<'s, 'a> {
    session: &'s mut Session<'a>,
    state: GenerationState,
}

/// The state of a generation, without its session.
pub(crate) struct GenerationState {
    sampler: Sampler,
    options: GenerateOptions,
    detokenizer: Option<Detokenizer>,
    stop: StopStrings,
    /// The last generated token, which is computed only when the next one is asked for.
    last: Option<u32>,
    /// The logits by which the next tokens are chosen: those after the last token that was due, and after each that was drafted.
    logits: VecDeque<Logits>,
    drafts: Drafts,
    /// Tokens before the generated ones.
    n_before: usize,
    n_prompt: usize,
    n_generated: usize,
    finish: Option<FinishReason>,
}

impl<'a> Session<'a> {
    pub(crate) fn resumed(engine: &'a mut Engine, sequence: u32, tokens: Vec<u32>) -> Session<'a> {
        Session { engine, sequence, tokens, cancelled: Arc::default() }
    }

    /// The engine it runs on.
    pub fn engine(&self) -> &Engine {
        self.engine
    }

    /// The tokens whose keys and values are in the cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Ends what runs with [`Error::Interrupted`], before its next submission, once `cancelled` is true. Of a long prompt, the forwards
    /// that ended before stay in the cache.
    pub fn cancel_with(&mut self, cancelled: Arc<AtomicBool>) {
        self.cancelled = cancelled;
    }

    /// Forgets everything from position `n_tokens` on.
    pub fn truncate(&mut self, n_tokens: usize) {
        self.tokens.truncate(n_tokens);
    }

    /// Appends `tokens` and returns the logits after the last one. Long prompts take as many forwards as the plan's forward size requires.
    ///
    /// # Errors
    /// [`Error::ContextFull`] before anything is computed; those of [`Engine::forward`].
    pub async fn append(&mut self, tokens: &[u32], logits_request: LogitsRequest) -> Result<Logits> {
        self.check_room(tokens.len())?;
        let n_tokens_max = self.engine.plan().forward.n_tokens;
        self.check_whole(tokens.len(), n_tokens_max)?;
        self.restore().await?;
        let mut logits = None;
        let n_parts = tokens.len().div_ceil(n_tokens_max);
        for (index, part) in tokens.chunks(n_tokens_max).enumerate() {
            let batch = Batch {
                tokens: self.placed(self.tokens.len(), part),
                logits_for: vec![part.len() as u32 - 1],
                // Only the logits after the whole prompt are needed: those of its parts need not cross the link.
                logits_request: if index + 1 == n_parts { logits_request } else { LogitsRequest::TopK(1) },
            };
            logits = self.engine.forward_unless(&batch, &self.cancelled).await?.into_iter().next();
            self.tokens.extend_from_slice(part);
        }
        logits.ok_or_else(nothing_to_continue)
    }

    /// Calls `each` with the logits of every position of `tokens`, in order.
    ///
    /// # Errors
    /// As of [`Session::append`].
    pub async fn append_scoring_all(&mut self, tokens: &[u32], mut each: impl FnMut(Vec<f32>)) -> Result<()> {
        self.check_room(tokens.len())?;
        let forward = self.engine.forward_size();
        let n_rows_max = forward.n_logit_rows.min(forward.n_tokens);
        self.check_whole(tokens.len(), n_rows_max)?;
        self.restore().await?;
        for part in tokens.chunks(n_rows_max) {
            let batch = Batch {
                tokens: self.placed(self.tokens.len(), part),
                logits_for: (0..part.len() as u32).collect(),
                logits_request: LogitsRequest::All,
            };
            for logits in self.engine.forward_unless(&batch, &self.cancelled).await? {
                if let Logits::All(logits) = logits {
                    each(logits);
                }
            }
            self.tokens.extend_from_slice(part);
        }
        Ok(())
    }

    /// Appends `due` and computes `draft` behind it, which does not count as appended: the logits after each of them.
    async fn append_with_draft(&mut self, due: u32, draft: &[u32], logits_request: LogitsRequest) -> Result<Vec<Logits>> {
        self.check_room(1)?;
        self.restore().await?;
        let tokens = self.placed(self.tokens.len(), &[&[due], draft].concat());
        let batch = Batch { logits_for: (0..tokens.len() as u32).collect(), tokens, logits_request };
        let logits = self.engine.forward_unless(&batch, &self.cancelled).await?;
        self.tokens.push(due);
        Ok(logits)
    }

    /// `tokens` at the positions of this sequence from `first` on.
    fn placed(&self, first: usize, tokens: &[u32]) -> Vec<BatchToken> {
        let sequence = self.sequence;
        (first as u32..).zip(tokens).map(|(position, &token)| BatchToken { token, sequence, position }).collect()
    }

    /// Computes again what is not cached of the sequence any more: of a model with recurrent states all of it, where the states are of
    /// another position.
    async fn restore(&mut self) -> Result<()> {
        let n_tokens_max = self.engine.plan().forward.n_tokens;
        let mut n_cached = self.engine.n_reusable(self.sequence, self.tokens.len());
        while let Some(part) = self.tokens[n_cached..].chunks(n_tokens_max).next() {
            let logits_for = vec![part.len() as u32 - 1];
            let batch = Batch { tokens: self.placed(n_cached, part), logits_for, logits_request: LogitsRequest::TopK(1) };
            self.engine.forward_unless(&batch, &self.cancelled).await?;
            n_cached += part.len();
        }
        Ok(())
    }

    /// Writes the tokens, and what the cache keeps of them, to a file that [`Session::load`] reads: whole, or not at all.
    ///
    /// # Errors
    /// [`Error::Io`]; those of the devices.
    pub async fn save(&mut self, file: &Path) -> Result<()> {
        self.restore().await?;
        self.engine.save_sequence(self.sequence, &self.tokens, file).await
    }

    /// Takes tokens and cache from such a file in place of its own: what comes next is computed with the same bits as behind the session
    /// that was saved. After an error the session is empty.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] where the file is broken, or was saved with other weights, another dtype of the cache or other devices;
    /// [`Error::Io`]; those of the devices.
    pub async fn load(&mut self, file: &Path) -> Result<()> {
        self.tokens.clear();
        self.tokens = self.engine.load_sequence(self.sequence, file).await?;
        Ok(())
    }

    /// Refuses to cut a text of an encoder, whose tokens see what stands behind them.
    fn check_whole(&self, n_tokens: usize, most: usize) -> Result<()> {
        let is_whole = self.tokens.is_empty() && n_tokens <= most;
        if is_whole || !self.engine.prepared().model.is_encoder() {
            return Ok(());
        }
        let reason = format!("an encoder reads all of a text at once: {n_tokens} tokens, of which {most} go into one forward");
        Err(Error::InvalidArgument { option: Setting::UbatchSize.into(), reason })
    }

    fn check_room(&self, n_tokens: usize) -> Result<()> {
        self.engine.prepared().check_room(self.tokens.len() + n_tokens)
    }

    /// Reads the prompt and begins to generate. What is already cached of it is not computed again.
    ///
    /// # Errors
    /// As of [`Session::append`].
    pub async fn generate<'s>(&'s mut self, prompt: &[u32], sampler: Sampler, options: GenerateOptions) -> Result<Generation<'s, 'a>> {
        let (mut state, due) = GenerationState::begin(self.engine, self.sequence, &mut self.tokens, prompt, sampler, options)?;
        let logits = self.append(&due, state.logits_request()).await?;
        state.take(Vec::new(), vec![logits]);
        Ok(Generation { session: self, state })
    }
}

/// How many of the first tokens of `prompt` are `cached`.
pub(crate) fn n_known(cached: &[u32], prompt: &[u32]) -> usize {
    cached.iter().zip(prompt).take_while(|(a, b)| a == b).count()
}

fn nothing_to_continue() -> Error {
    Error::InvalidArgument { option: Setting::Prompt.into(), reason: "is empty; there is nothing to continue".into() }
}

impl Generation<'_, '_> {
    /// The next token, or `None` at the end. The last one carries the text that was held back.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for broken weights; those of [`Engine::forward`].
    pub async fn next(&mut self) -> Result<Option<Generated>> {
        let Generation { session, state } = self;
        if let Some(due) = state.advance(&mut session.tokens) {
            let offer = state.offer(&session.tokens, session.engine);
            let drafts = drafted(vec![offer], &[(session.sequence, session.tokens.as_slice())], session.engine).await;
            let draft = drafts.into_iter().next().unwrap_or_default();
            let logits = session.append_with_draft(due, &draft, state.logits_request()).await?;
            state.take(draft, logits);
        }
        state.next(session.tokens.len(), session.engine)
    }

    /// Whether the next token would be the last, since the context has no room for one after it; [`Generation::shift`] makes some.
    pub fn is_context_full(&self) -> bool {
        let GenerationState { options, n_generated, finish, last, .. } = &self.state;
        let more_wanted = options.max_tokens.is_none_or(|most| n_generated + 1 < most);
        let is_going = finish.is_none() && last.is_some();
        is_going && more_wanted && self.session.tokens.len() + 1 >= self.session.engine.plan().ctx_size
    }

    /// Replaces the prompt by `prompt` and goes on, as if the same tokens had been generated after it: they are computed anew after the new
    /// prompt.
    ///
    /// # Errors
    /// [`Error::ContextFull`] where that leaves no room, and nothing has changed; those of [`Session::append`], after which the
    /// generation cannot go on.
    pub async fn shift(&mut self, prompt: &[u32]) -> Result<()> {
        let generated = self.session.tokens.get(self.state.n_before..).unwrap_or_default();
        let tokens = [prompt, generated].concat();
        let available = self.session.engine.plan().ctx_size;
        if tokens.len() >= available {
            return Err(Error::ContextFull { needed: tokens.len() + 1, available });
        }
        self.state.n_before = prompt.len();
        self.state.drop_ahead();
        let n_known = n_known(&self.session.tokens, &tokens);
        self.session.truncate(n_known);
        if n_known < tokens.len() {
            self.session.append(&tokens[n_known..], LogitsRequest::TopK(1)).await?;
        }
        Ok(())
    }

    /// Makes room in a full context: the first `n_keep` tokens stay, half of those behind them leave, and what is left stands side by side.
    /// Its keys and values are computed anew, as if nothing had been between, so that this is right for every family. Returns how many left.
    ///
    /// # Errors
    /// [`Error::ContextFull`] where none would leave; those of [`Session::append`], after which the generation cannot go on.
    pub async fn drop_half(&mut self, n_keep: usize) -> Result<usize> {
        let Generation { session, state } = self;
        let n_tokens = session.tokens.len();
        let n_keep = n_keep.min(n_tokens);
        let n_dropped = (n_tokens - n_keep) / 2;
        if n_dropped == 0 {
            return Err(Error::ContextFull { needed: n_tokens + 2, available: session.engine.plan().ctx_size });
        }
        let behind = session.tokens.split_off(n_keep + n_dropped);
        session.truncate(n_keep);
        state.n_before = state.n_before.min(n_keep) + state.n_before.saturating_sub(n_keep + n_dropped);
        state.drop_ahead();
        session.append(&behind, LogitsRequest::TopK(1)).await?;
        Ok(n_dropped)
    }

    /// The engine it runs on.
    pub fn engine(&self) -> &Engine {
        self.session.engine
    }

    /// Why it ended; `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.state.finish_reason()
    }

    /// Tokens of the prompt that were computed; the others were in the cache.
    pub fn n_prompt(&self) -> usize {
        self.state.n_prompt()
    }

    /// Tokens generated so far, an end token included.
    pub fn n_generated(&self) -> usize {
        self.state.n_generated
    }

    /// Forwards after the prompt, and what drafts brought.
    pub fn drafts(&self) -> DraftStatistics {
        self.state.drafts()
    }
}

impl GenerationState {
    /// Begins after `prompt`. `cached` are the tokens of `sequence` in the cache; those beyond its common beginning with `prompt` are cut off,
    /// and all of them where the model has recurrent states and must begin anew. Returns the
    /// state and the tokens of the prompt that are still to be computed, at least one.
    pub(crate) fn begin(
        engine: &Engine,
        sequence: u32,
        cached: &mut Vec<u32>,
        prompt: &[u32],
        mut sampler: Sampler,
        options: GenerateOptions,
    ) -> Result<(GenerationState, Vec<u32>)> {
        if !engine.gives_logits() {
            let reason = "has no head and generates nothing: the model is an encoder, or was opened without its head".into();
            return Err(Error::InvalidArgument { option: "engine".into(), reason });
        }
        let stop = StopStrings::new(options.stop.clone())?;
        let finish = (options.max_tokens == Some(0)).then_some(FinishReason::Length);
        // The last token is always computed, since its logits are needed.
        let n_known = n_known(cached, prompt).min(prompt.len().saturating_sub(1));
        let n_known = engine.n_reusable(sequence, n_known);
        let due = prompt[n_known..].to_vec();
        if due.is_empty() {
            return Err(nothing_to_continue());
        }
        cached.truncate(n_known);
        engine.prepared().check_room(prompt.len())?;
        // Tokens of the prompt count for the repetition penalty, as in llama.cpp.
        prompt.iter().for_each(|&token| sampler.remember(token));
        let state = GenerationState {
            detokenizer: engine.tokenizer().map(|tokenizer| tokenizer.detokenizer()),
            stop,
            sampler,
            drafts: Drafts::new(options.speculation),
            options,
            last: None,
            logits: VecDeque::new(),
            n_before: prompt.len(),
            n_prompt: due.len(),
            n_generated: 0,
            finish,
        };
        Ok((state, due))
    }

    /// Tokens of the prompt that were computed; the others were in the cache.
    pub(crate) fn n_prompt(&self) -> usize {
        self.n_prompt
    }

    /// Why it ended; `None` while it has not.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Forwards after the prompt, and what drafts brought.
    pub(crate) fn drafts(&self) -> DraftStatistics {
        self.drafts.statistics
    }

    /// Goes on to the last token. Where it was drafted, it is in the cache, and joins `cached`; else it is returned and must be computed
    /// before the next one is chosen. `None` too before the first one, which follows the prompt, and at the end.
    pub(crate) fn advance(&mut self, cached: &mut Vec<u32>) -> Option<u32> {
        let due = self.due()?;
        if self.drafts.take(due) {
            cached.push(due);
            return None;
        }
        self.logits.clear();
        Some(due)
    }

    /// The draft that may be computed behind the token that is due, where `cached` are the tokens in the cache before it.
    pub(crate) fn offer(&self, cached: &[u32], model: &LoadedModel) -> Offer {
        let (Some(due), Ok(most)) = (self.due(), model.prepared().most_drafted()) else { return Offer::default() };
        let in_context = model.plan().ctx_size.saturating_sub(cached.len() + 1);
        // The forward gives one token more than were drafted.
        let wanted = self.options.max_tokens.map_or(usize::MAX, |most| most.saturating_sub(self.n_generated + 1));
        self.drafts.offer(cached, due, most.min(in_context).min(wanted))
    }

    /// Takes the logits of a forward: those after what was due, the prompt or a token, and those after each token of `draft`.
    pub(crate) fn take(&mut self, draft: Vec<u32>, logits: Vec<Logits>) {
        let logits_request = self.logits_request();
        self.logits = logits.into_iter().map(|logits| logits.limited_to(logits_request)).collect();
        if self.last.is_some() {
            self.drafts.begin(draft);
        }
    }

    /// Forgets what was computed ahead.
    fn drop_ahead(&mut self) {
        self.logits.clear();
        self.drafts.drop_ahead();
    }

    fn due(&self) -> Option<u32> {
        self.last.filter(|_| self.finish.is_none())
    }

    /// The logits that the sampler needs.
    pub(crate) fn logits_request(&self) -> LogitsRequest {
        match self.sampler.needs() {
            _ if self.options.n_logprobs.is_some() => LogitsRequest::All,
            LogitsNeeded::Greedy => LogitsRequest::TopK(1),
            LogitsNeeded::TopK(k) if k as usize <= crate::plan::sizes::TOP_K_MAX => LogitsRequest::TopK(k as usize),
            LogitsNeeded::TopK(_) | LogitsNeeded::All => LogitsRequest::All,
        }
    }

    /// Chooses the next token, by the logits after the `n_cached` tokens in the cache; `None` at the end.
    pub(crate) fn next(&mut self, n_cached: usize, model: &LoadedModel) -> Result<Option<Generated>> {
        if self.finish.is_some() {
            return Ok(None);
        }
        let logits = self.logits.pop_front().ok_or_else(|| Error::internal("a token was to be chosen without logits"))?;
        let mut candidates = candidates(&logits)?;
        let token = self.sampler.sample(&mut candidates)?;
        self.sampler.accept(token)?;
        let logprobs = self.options.n_logprobs.and_then(|n_top| logprobs(&logits, token, n_top));
        self.last = Some(token);
        self.n_generated += 1;
        let is_end = model.tokenizer().is_some_and(|tokenizer| tokenizer.eos_tokens().contains(&token));
        let mut text = String::new();
        if is_end && !self.options.ignore_eos {
            self.finish = Some(FinishReason::Stop);
        } else {
            let complete = self.detokenizer.as_mut().map(|detokenizer| detokenizer.push(token)).unwrap_or_default();
            let outcome = self.stop.push(&complete);
            text = outcome.text;
            if outcome.stopped {
                self.finish = Some(FinishReason::Stop);
                return Ok(Some(Generated { token, text, logprobs }));
            }
            let context_is_full = n_cached >= model.plan().ctx_size;
            if context_is_full || self.options.max_tokens.is_some_and(|most| self.n_generated >= most) {
                self.finish = Some(FinishReason::Length);
            }
        }
        if self.finish.is_some() {
            text.push_str(&self.held_back());
        }
        Ok(Some(Generated { token, text, logprobs }))
    }

    /// Text that waited for the rest of a character or of a stop string, neither of which came.
    fn held_back(&mut self) -> String {
        let rest = self.detokenizer.as_mut().map(Detokenizer::finish).unwrap_or_default();
        let outcome = self.stop.push(&rest);
        let mut text = outcome.text;
        if !outcome.stopped {
            text.push_str(&self.stop.finish());
        }
        text
    }
}

fn logprobs(logits: &Logits, token: u32, n_top: usize) -> Option<TokenLogprobs> {
    match logits {
        Logits::All(logits) => TokenLogprobs::of(logits, token, n_top),
        Logits::Top(_) => None,
    }
}

fn candidates(logits: &Logits) -> Result<Vec<Candidate>> {
    let candidates: Vec<Candidate> = match logits {
        Logits::All(logits) => (0..).zip(logits).map(|(token, &logit)| Candidate { token, logit }).collect(),
        Logits::Top(best) => best.iter().map(|&(token, logit)| Candidate { token, logit }).collect(),
    };
    match candidates.iter().find(|candidate| !candidate.logit.is_finite()) {
        Some(broken) => Err(Error::NotFinite { token: broken.token as usize, value: broken.logit }),
        None => Ok(candidates),
    }
}
