//! One answer after the other to a request's work, on one sequence: its text as it comes, told apart from reasoning, and what it took.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::app::App;
use super::error::ApiError;
use super::grammar::Grammar;
use super::pool::Lease;
use super::scored::ScoredToken;
use super::work::{How, Work};
use crate::handle::TokenStream;
use crate::session::FinishReason;
use crate::text::{Call, CallPart, CallTeller, ReasoningSplitter, Sampler, Segment, ToolSplitter};

/// A sequence that answers.
pub(super) struct Answering {
    app: Arc<App>,
    lease: Lease,
    /// Whether calls that are held to a form are told before they are whole.
    tells_pieces: bool,
    /// `None` before the first answer.
    current: Option<Current>,
}

/// An answer under way. When it is dropped, its generation ends before the next submission.
struct Current {
    stream: TokenStream,
    splitter: ReasoningSplitter,
    /// Where the model may call.
    calls: Option<ToolSplitter>,
    teller: CallTeller,
    stops: Vec<String>,
    begin: Instant,
    first: Option<Instant>,
    usage: Usage,
    has_ended: bool,
}

/// What came with a token.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) reasoning: String,
    pub(super) text: String,
    /// What the model calls.
    pub(super) calls: Vec<Call>,
    /// The same as it comes, in parts that are all there with the end of a call.
    pub(super) pieces: Vec<CallPart>,
    /// How likely its token was, where that was asked for and the token is of the answer.
    pub(super) scored: Option<ScoredToken>,
}

/// Tokens of an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) n_prompt: usize,
    /// Tokens of the prompt that were not computed, since the sequence had them.
    pub(super) n_cached: usize,
    pub(super) n_generated: usize,
    /// Tokens of reasoning, of those that were generated.
    pub(super) n_reasoning: usize,
}

/// How an answer ended.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) finish: FinishReason,
    pub(super) usage: Usage,
    /// Whether it calls tools.
    pub(super) has_calls: bool,
    /// The text that ended it, where not the model did.
    pub(super) stop: Option<String>,
    /// Until the first token.
    pub(super) prompt_time: Duration,
    /// From the first token on.
    pub(super) answer_time: Duration,
}

impl Usage {
    /// The tokens of all answers of a request. Several answers to one prompt have it counted once for each prompt, as OpenAI does.
    pub(super) fn sum(usages: &[Usage], n_answers: usize) -> Usage {
        let prompts = || usages.iter().step_by(n_answers.max(1));
        Usage {
            n_prompt: prompts().map(|usage| usage.n_prompt).sum(),
            n_cached: prompts().map(|usage| usage.n_cached).sum(),
            n_generated: usages.iter().map(|usage| usage.n_generated).sum(),
            n_reasoning: usages.iter().map(|usage| usage.n_reasoning).sum(),
        }
    }
}

impl Current {
    /// Tells reasoning, answer and calls apart.
    fn part_of(&mut self, segments: Vec<Segment>) -> Part {
        let (mut part, mut said) = (Part::default(), Vec::new());
        for segment in segments {
            match (segment, &mut self.calls) {
                (Segment::Reasoning(text), _) => part.reasoning.push_str(&text),
                (Segment::Answer(text), None) => part.text.push_str(&text),
                (Segment::Answer(text), Some(calls)) => said.extend(calls.push(&text)),
            }
        }
        if self.has_ended {
            said.extend(self.calls.take().into_iter().flat_map(ToolSplitter::finish));
        }
        let told = self.teller.tell(said);
        part.text.push_str(&told.text);
        Part { pieces: told.parts, calls: told.calls, ..part }
    }
}

impl Answering {
    /// Waits for a sequence.
    pub(super) async fn wait(app: &Arc<App>, work: &Work) -> Result<Answering, ApiError> {
        let first = work.prompts.first().map(Vec::as_slice).unwrap_or_default();
        let lease = app.pool.lease(first, &work.how.loras).await?;
        Ok(Answering { app: Arc::clone(app), lease, tells_pieces: false, current: None })
    }

    /// Tells calls as they come, where they are sure to become ones.
    pub(super) fn tell_pieces(&mut self) {
        self.tells_pieces = true;
    }

    /// Begins an answer.
    pub(super) fn begin(&mut self, prompt: &[u32], seed: u64, work: &Work) -> Result<(), ApiError> {
        let How { sampling, options, grammar, tools, .. } = &work.how;
        self.end();
        let splitter = match work.splits_reasoning {
            true => self.app.engine.text().reasoning_splitter(prompt),
            false => ReasoningSplitter::new(None),
        };
        let splitter = if tools.is_some() { splitter.telling_calls() } else { splitter };
        let sampler = Sampler::new(sampling.clone(), seed);
        let sampler = match grammar {
            Some(grammar) => sampler.constrained(grammar.constraint()?),
            None => sampler,
        };
        let stream = self.lease.sequence()?.generate(prompt.to_vec(), sampler, options.clone())?;
        self.lease.tokens.clear();
        self.lease.tokens.extend_from_slice(prompt);
        let usage = Usage { n_prompt: prompt.len(), ..Usage::default() };
        let stops = options.stop.clone();
        let calls = tools.as_ref().map(|tools| ToolSplitter::new(tools.format, tools.list.clone(), self.app.engine.tokenizer()));
        let is_sure = self.tells_pieces && matches!(grammar, Some(Grammar::Calls(_)));
        let calls = if is_sure { calls.map(ToolSplitter::telling_pieces) } else { calls };
        self.current = Some(Current {
            stream,
            splitter,
            calls,
            teller: CallTeller::default(),
            stops,
            begin: Instant::now(),
            first: None,
            usage,
            has_ended: false,
        });
        Ok(())
    }

    /// The next part, which may be empty, or `None` at the end. Nothing is lost where the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Part>, ApiError> {
        let Some(current) = self.current.as_mut().filter(|current| !current.has_ended) else { return Ok(None) };
        let step = current.stream.next().await?;
        current.usage.n_cached = current.usage.n_prompt.saturating_sub(current.stream.n_prompt());
        let segments = match &step {
            Some(step) => {
                current.first.get_or_insert_with(Instant::now);
                current.usage.n_generated += 1;
                self.lease.tokens.push(step.token);
                let mark = current.calls.as_ref().map_or("", |calls| calls.mark(step.token));
                current.splitter.push_token(step.token, &format!("{}{mark}", step.text))
            }
            None => {
                current.has_ended = true;
                std::mem::replace(&mut current.splitter, ReasoningSplitter::new(None)).finish()
            }
        };
        let mut part = current.part_of(segments);
        let is_thought = !part.reasoning.is_empty() && part.text.is_empty();
        if let Some(step) = &step {
            current.usage.n_reasoning += usize::from(is_thought);
            part.scored = if is_thought { None } else { ScoredToken::of(&self.app, step) };
        }
        let is_over =
            step.is_none() && part.reasoning.is_empty() && part.text.is_empty() && part.calls.is_empty() && part.pieces.is_empty();
        Ok((!is_over).then_some(part))
    }

    /// How the answer ended that [`Answering::next`] has no more of.
    pub(super) fn outcome(&self) -> End {
        let Some(current) = &self.current else {
            let (prompt_time, answer_time) = Default::default();
            return End { finish: FinishReason::Stop, usage: Usage::default(), has_calls: false, stop: None, prompt_time, answer_time };
        };
        let finish = current.stream.finish_reason().unwrap_or(FinishReason::Stop);
        let first = current.first.unwrap_or_else(Instant::now);
        End {
            finish,
            usage: current.usage,
            has_calls: current.teller.n_calls() > 0,
            stop: (finish == FinishReason::Stop).then(|| self.stop_of(current)).flatten(),
            prompt_time: first - current.begin,
            answer_time: first.elapsed(),
        }
    }

    /// The first stop string in what was generated, unless the model itself ended.
    fn stop_of(&self, current: &Current) -> Option<String> {
        let tokenizer = self.app.engine.tokenizer().filter(|_| !current.stops.is_empty())?;
        let generated = self.lease.tokens.get(current.usage.n_prompt..)?;
        if generated.last().is_some_and(|last| tokenizer.eos_tokens().contains(last)) {
            return None;
        }
        let text = tokenizer.decode(generated);
        let found = current.stops.iter().filter_map(|stop| Some((text.find(stop.as_str())?, stop)));
        found.min_by_key(|(at, _)| *at).map(|(_, stop)| stop.clone())
    }

    /// Notes what the answer took, whole or not.
    fn end(&mut self) {
        if let Some(current) = self.current.take() {
            self.app.metrics.count_answer(&current.usage, current.stream.finish_reason().is_some());
            self.app.metrics.count_drafts(&current.stream.drafts());
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.end();
    }
}
