//! A loaded model: it answers, and keeps a trace of what happened when.

use std::cell::{Cell, OnceCell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use js_sys::Function;
use serde_json::{Value, json};
use tierflow::engine::{MemoryUse, Observed};
use tierflow::plan::Forwards;
use tierflow::session::{FinishReason, GenerateOptions};
use tierflow::stream::{ExpertStatistics, Span, Trace};
use tierflow::text::{Call, CallPart, CallTeller, FormVocabulary, ReasoningSplitter, Segment, ToolSplitter, fresh_seed};
use tierflow::{Error, Generated, Sampler};
use wasm_bindgen::prelude::*;

use crate::answer_of;
use crate::embedding;
use crate::error::{self, Result, invalid};
use crate::prompt::{self, Pace, Part};
use crate::request::{Asked, Request};

/// A loaded model. While it generates, its plan, trace and memory can still be asked for.
#[wasm_bindgen]
pub struct Engine {
    /// Taken out while it generates.
    engine: RefCell<Option<tierflow::Engine>>,
    /// Tokens whose keys and values are in the cache.
    cached: RefCell<Vec<u32>>,
    plan: String,
    trace: Trace,
    chunk_names: Vec<String>,
    memory: RefCell<Vec<MemoryUse>>,
    /// By layer what its cached experts were asked for, as JSON.
    experts: RefCell<Value>,
    pace: Cell<Pace>,
    /// Answers so far.
    n_answers: Cell<usize>,
    has_learnt: Cell<bool>,
    cancelled: Arc<AtomicBool>,
    /// The vocabulary as forms of answers read it.
    forms: OnceCell<FormVocabulary>,
}

impl Engine {
    /// `plan` is what [`crate::model::Model::plan`] returned.
    pub fn new(engine: tierflow::Engine, plan: String) -> Engine {
        let made = engine.plan();
        engine.trace().keep_many();
        Engine {
            cached: RefCell::default(),
            plan,
            trace: engine.trace().clone(),
            chunk_names: (0..made.chunks.len()).map(|chunk| made.chunk_name(chunk)).collect(),
            memory: RefCell::new(engine.memory_use()),
            experts: RefCell::new(experts_of(&engine)),
            pace: Cell::new(Pace::new(&engine.prepared().forecast)),
            n_answers: Cell::default(),
            has_learnt: Cell::default(),
            cancelled: Arc::default(),
            forms: OnceCell::new(),
            engine: RefCell::new(Some(engine)),
        }
    }
}

#[wasm_bindgen]
impl Engine {
    /// Where everything is stored, as [`crate::model::Model::plan`] returns it.
    pub fn plan(&self) -> String {
        self.plan.clone()
    }

    /// Answers `request` (JSON). `on_part` is called with how many tokens of the prompt are read and how many there are, `on_step` with
    /// each token of the answer as JSON: `token`, what it completes of the answer (`text`) and of what the model thinks before it
    /// (`reasoning`), and how likely it was where that is asked for (`logprobs`). Either may return a promise, which is waited for,
    /// and ends the answer with false. Yields JSON: the answer, why it ended (`stop`, `length` or `cancelled`), counts and times.
    pub async fn generate(&self, request: &str, on_part: Function, on_step: Function) -> Result<String> {
        let request = Request::read(request)?;
        let mut engine = self.engine.take().ok_or_else(busy)?;
        self.cancelled.store(false, Ordering::Relaxed);
        let answer = self.answer(&mut engine, request, &on_part, &on_step).await;
        self.note(&engine);
        self.engine.replace(Some(engine));
        Ok(error::json(&answer?)?)
    }

    /// The embedding of each text of `request` (JSON: `input`, a list of texts), pooled, projected and scaled as the model's files say, and its
    /// tokens, as JSON. The model was loaded for embeddings. `on_text` is called with how many are done and how many there are, and ends
    /// the work with false.
    pub async fn embed(&self, request: &str, on_text: Function) -> Result<String> {
        let texts = embedding::read(request)?;
        let mut engine = self.engine.take().ok_or_else(busy)?;
        self.cached.take();
        let embeddings = embedding::embed(&mut engine, &texts, &on_text).await;
        self.note(&engine);
        self.engine.replace(Some(engine));
        Ok(error::json(&embeddings?)?)
    }

    /// Whether an answer since this was asked last may have corrected the rates that are known of this machine.
    pub fn learnt(&self) -> bool {
        self.has_learnt.take()
    }

    /// Ends what is generated before its next forward.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// What happened when in the latest `n_forwards` forwards, and what all forwards add up to, as JSON.
    pub fn trace(&self, n_forwards: usize) -> Result<String> {
        let spans = self.trace.spans();
        let latest = spans.iter().map(|span| span.forward).max().unwrap_or(0);
        let shown: Vec<&Span> = spans.iter().filter(|span| span.forward + n_forwards > latest).collect();
        Ok(error::json(&json!({"spans": shown, "summary": self.trace.summary(), "now_secs": self.trace.now()}))?)
    }

    /// The whole trace as a Chrome/Perfetto file.
    pub fn perfetto(&self) -> Result<String> {
        Ok(error::json(&self.trace.to_chrome_json(&|chunk| self.chunk_names.get(chunk).cloned().unwrap_or_default()))?)
    }

    /// Peak bytes per device beside the budgets (`devices`), and the memory that WebAssembly has taken (`wasm_bytes`), as JSON.
    pub fn memory(&self) -> Result<String> {
        Ok(error::json(&json!({"devices": *self.memory.borrow(), "wasm_bytes": wasm_bytes()}))?)
    }

    /// What the expert cache was asked for since the model was loaded, layer by layer, as JSON: `name`, `n_hits`, `n_misses`, `n_on_host`,
    /// `uploaded` (bytes). Nothing where there is no such cache.
    pub fn experts(&self) -> Result<String> {
        Ok(error::json(&*self.experts.borrow())?)
    }

    async fn answer(
        &self,
        engine: &mut tierflow::Engine,
        request: Request,
        on_part: &Function,
        on_step: &Function,
    ) -> Result<Value, Error> {
        let sampling = request.sampling(engine)?;
        let seed = request.seed.unwrap_or_else(fresh_seed);
        let Asked { prompt, splitter, calls, constraint } = request.asked(&self.forms, engine)?;
        let trace = &self.trace;
        trace.clear();
        let mut session = engine.resume(self.cached.take());
        session.cancel_with(Arc::clone(&self.cancelled));
        let begin = trace.now();
        let mut pace = self.pace.get();
        let read = prompt::read(&mut session, &prompt, &mut pace, trace, on_part).await;
        self.pace.set(pace);
        let prompt::Read { n_known, is_whole, mut largest } = read?;
        let (mut said, mut tokens, mut first_secs, mut finish) = (Said::new(splitter, calls), Vec::new(), None, None);
        let mut prompt_secs = trace.now() - begin;
        let (mut n_read, mut forward_secs) = (session.tokens().len(), 0.0);
        if is_whole {
            let (max_tokens, stop, n_logprobs) = (request.max_tokens, request.stop, request.logprobs);
            let options = GenerateOptions { max_tokens, stop, n_logprobs, ..GenerateOptions::default() };
            let sampler = Sampler::new(sampling, seed);
            let sampler = match constraint {
                Some(constraint) => sampler.constrained(constraint),
                None => sampler,
            };
            let begin_secs = trace.now();
            let mut generation = session.generate(&prompt, sampler, options).await?;
            largest = largest.larger(Part { n_before: n_read, n_tokens: prompt.len() - n_read, secs: trace.now() - begin_secs });
            (prompt_secs, n_read) = (trace.now() - begin, prompt.len());
            loop {
                let begin_secs = trace.now();
                let Some(step) = generation.next().await? else { break };
                // The first token comes out of the prompt's own forward.
                forward_secs += if tokens.is_empty() { 0.0 } else { trace.now() - begin_secs };
                first_secs.get_or_insert_with(|| trace.now() - begin);
                tokens.push(step.token);
                self.note(generation.engine());
                let told = said.step(generation.engine(), &step);
                let goes_on = answer_of(on_step.call1(&JsValue::NULL, &told.to_string().into())).await;
                if !goes_on || self.cancelled.load(Ordering::Relaxed) {
                    break;
                }
            }
            finish = generation.finish_reason();
            let answer = Forwards::of_answer(n_read, tokens.len().saturating_sub(1));
            self.learn(generation.engine(), largest, answer, forward_secs);
        }
        let rest = said.finish();
        if !rest.is_null() {
            answer_of(on_step.call1(&JsValue::NULL, &rest.to_string().into())).await;
        }
        let decode_secs = trace.now() - begin - prompt_secs;
        self.cached.replace(session.tokens().to_vec());
        Ok(json!({
            "text": said.text,
            "reasoning": said.reasoning,
            "calls": said.made,
            "tokens": tokens,
            "finish_reason": finish_reason(finish),
            "n_prompt": n_read - n_known,
            "n_cached": n_known,
            "n_generated": tokens.len(),
            "prompt_secs": prompt_secs,
            "decode_secs": decode_secs,
            "ttft_secs": first_secs.unwrap_or(prompt_secs),
            "seed": seed,
            "summary": trace.summary(),
        }))
    }

    /// Corrects the rates that are known of this machine by a part of a prompt, and by the forwards of an answer, which took `secs`: by those
    /// of the first, second, fourth, eighth, … answer. What all of a long conversation show alike need not be kept each time.
    fn learn(&self, engine: &tierflow::Engine, part: Part, answer: Forwards, secs: f64) {
        let n_answers = self.n_answers.get() + 1;
        self.n_answers.set(n_answers);
        if !n_answers.is_power_of_two() {
            return;
        }
        let of_prompt = Forwards::of_prompt(part.n_before, part.n_tokens, part.n_tokens);
        let shown = [(of_prompt, part.secs), (answer, secs)].map(|(forwards, secs)| Observed { forwards, secs, waited: None });
        // A first prompt also waits for what compiles.
        engine.learn(&shown[usize::from(n_answers == 1)..]);
        self.has_learnt.set(true);
    }

    /// Keeps what may be asked for while the engine is busy.
    fn note(&self, engine: &tierflow::Engine) {
        self.memory.replace(engine.memory_use());
        self.experts.replace(experts_of(engine));
    }
}

fn experts_of(engine: &tierflow::Engine) -> Value {
    let layers = engine.expert_statistics_of_layers().into_iter();
    layers
        .map(|(name, ExpertStatistics { n_hits, n_misses, n_on_host, uploaded })| {
            json!({"name": name, "n_hits": n_hits, "n_misses": n_misses, "n_on_host": n_on_host, "uploaded": uploaded})
        })
        .collect()
}

/// What was said so far: reasoning, answer and calls apart.
struct Said {
    splitter: ReasoningSplitter,
    calls: Option<ToolSplitter>,
    teller: CallTeller,
    text: String,
    reasoning: String,
    /// Calls that are whole, in OpenAI's form.
    made: Vec<Value>,
}

impl Said {
    fn new(splitter: ReasoningSplitter, calls: Option<ToolSplitter>) -> Said {
        let (text, reasoning) = (String::new(), String::new());
        Said { splitter, calls, teller: CallTeller::default(), text, reasoning, made: Vec::new() }
    }

    /// Takes a step, and describes it.
    fn step(&mut self, engine: &tierflow::Engine, step: &Generated) -> Value {
        let mark = self.calls.as_ref().map_or("", |calls| calls.mark(step.token));
        let segments = self.splitter.push_token(step.token, &format!("{}{mark}", step.text));
        let mut told = self.take(segments, false);
        told["token"] = step.token.into();
        if let (Some(logprobs), Some(tokenizer)) = (&step.logprobs, engine.text().tokenizer()) {
            let likely = |id: u32, logprob: f32| json!({"token": tokenizer.piece(id), "logprob": logprob, "bytes": null});
            let mut chosen = likely(step.token, logprobs.logprob);
            chosen["top_logprobs"] = logprobs.top.iter().map(|&(id, logprob)| likely(id, logprob)).collect();
            told["logprobs"] = chosen;
        }
        told
    }

    /// Takes what was held back in case that a mark followed; null where there is nothing.
    fn finish(&mut self) -> Value {
        let segments = std::mem::replace(&mut self.splitter, ReasoningSplitter::new(None)).finish();
        if segments.is_empty() && self.calls.is_none() { Value::Null } else { self.take(segments, true) }
    }

    fn take(&mut self, segments: Vec<Segment>, is_last: bool) -> Value {
        let (mut text, mut reasoning, mut said) = (String::new(), String::new(), Vec::new());
        for segment in segments {
            match (segment, &mut self.calls) {
                (Segment::Reasoning(part), _) => reasoning.push_str(&part),
                (Segment::Answer(part), None) => text.push_str(&part),
                (Segment::Answer(part), Some(calls)) => said.extend(calls.push(&part)),
            }
        }
        if is_last {
            said.extend(self.calls.take().into_iter().flat_map(ToolSplitter::finish));
        }
        let told = self.teller.tell(said);
        text.push_str(&told.text);
        self.text.push_str(&text);
        self.reasoning.push_str(&reasoning);
        self.made.extend(told.calls.iter().map(Call::to_json));
        let parts: Vec<Value> = told.parts.iter().map(CallPart::to_json).collect();
        json!({"text": text, "reasoning": reasoning, "calls": parts})
    }
}

fn busy() -> Error {
    invalid("engine", "an answer is under way, or an earlier one failed; wait for it, or load the model again")
}

fn finish_reason(finish: Option<FinishReason>) -> &'static str {
    match finish {
        Some(FinishReason::Stop) => "stop",
        Some(FinishReason::Length) => "length",
        None => "cancelled",
    }
}

/// The memory that WebAssembly has taken of the tab; it never gives any back.
fn wasm_bytes() -> f64 {
    let memory: js_sys::WebAssembly::Memory = wasm_bindgen::memory().unchecked_into();
    f64::from(memory.buffer().unchecked_into::<js_sys::ArrayBuffer>().byte_length())
}
