//! A loaded model: it answers, and keeps a trace of what happened when.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use js_sys::Function;
use tierflow::engine::MemoryUse;
use tierflow::session::{FinishReason, GenerateOptions};
use tierflow::stream::{Span, Trace};
use tierflow::text::{SamplingFlags, fresh_seed};
use tierflow::{ChatMessage, Error, Sampler, SamplingSettings};
use wasm_bindgen::prelude::*;

use crate::answer_of;
use crate::error::{Result, invalid, json};
use crate::fields::Fields;
use crate::prompt::{self, Pace};

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
    pace: Cell<Pace>,
    cancelled: Arc<AtomicBool>,
}

/// What to answer, and how.
#[derive(Debug)]
struct Request {
    /// A conversation.
    messages: Option<Vec<ChatMessage>>,
    /// A message of the user, or with `raw` a text to continue.
    prompt: Option<String>,
    /// The prompt goes to the model as it is.
    raw: bool,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<u32>,
    seed: Option<u64>,
    stop: Vec<String>,
}

impl Request {
    fn read(text: &str) -> Result<Request, Error> {
        let mut fields = Fields::of("request", text)?;
        let (number, count) = ("a number", "a whole number from 0 on");
        let request = Request {
            messages: fields.take("messages", "a list of messages, each with a role and a content")?,
            prompt: fields.take("prompt", "a text")?,
            raw: fields.take("raw", "true or false")?.unwrap_or_default(),
            max_tokens: fields.take("max_tokens", count)?,
            temperature: fields.take("temperature", number)?,
            top_k: fields.take("top_k", count)?,
            top_p: fields.take("top_p", number)?,
            min_p: fields.take("min_p", number)?,
            repeat_penalty: fields.take("repeat_penalty", number)?,
            repeat_last_n: fields.take("repeat_last_n", count)?,
            seed: fields.take("seed", count)?,
            stop: fields.take("stop", "a list of texts")?.unwrap_or_default(),
        };
        fields.finish()?;
        // What the page makes of parts is one text.
        let is_text = |message: &ChatMessage| message.fields().get("content").is_some_and(serde_json::Value::is_string);
        if !request.messages.iter().flatten().all(is_text) {
            return Err(invalid("messages", "give a list of messages, each with a role and a content that is a text"));
        }
        Ok(request)
    }
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
            pace: Cell::new(Pace::new(&engine.prepared().forecast)),
            cancelled: Arc::default(),
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

    /// Answers `request` (JSON). `on_part` is called with how many tokens of the prompt are read and how many there are, `on_step` each
    /// token of the answer and the text that it completes. Either may return a promise, which is waited for, and ends the answer
    /// with false. Yields JSON: the answer, why it ended (`stop`, `length` or `cancelled`), counts and times.
    pub async fn generate(&self, request: &str, on_part: Function, on_step: Function) -> Result<String> {
        let request = Request::read(request)?;
        let busy = || invalid("generate", "an answer is under way, or an earlier one failed; wait for it, or load the model again");
        let mut engine = self.engine.take().ok_or_else(busy)?;
        self.cancelled.store(false, Ordering::Relaxed);
        let answer = self.answer(&mut engine, request, &on_part, &on_step).await;
        self.note_memory(&engine);
        self.engine.replace(Some(engine));
        Ok(json(&answer?)?)
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
        Ok(json(&serde_json::json!({"spans": shown, "summary": self.trace.summary(), "now_secs": self.trace.now()}))?)
    }

    /// The whole trace as a Chrome/Perfetto file.
    pub fn perfetto(&self) -> Result<String> {
        Ok(json(&self.trace.to_chrome_json(&|chunk| self.chunk_names.get(chunk).cloned().unwrap_or_default()))?)
    }

    /// Peak bytes per device beside the budgets (`devices`), and the memory that WebAssembly has taken (`wasm_bytes`), as JSON.
    pub fn memory(&self) -> Result<String> {
        Ok(json(&serde_json::json!({"devices": *self.memory.borrow(), "wasm_bytes": wasm_bytes()}))?)
    }

    async fn answer(
        &self,
        engine: &mut tierflow::Engine,
        request: Request,
        on_part: &Function,
        on_step: &Function,
    ) -> Result<serde_json::Value, Error> {
        let sampling = sampling(engine, &request)?;
        let seed = request.seed.unwrap_or_else(fresh_seed);
        let prompt = prompt_of(engine, &request)?;
        let trace = &self.trace;
        trace.clear();
        let mut session = engine.resume(self.cached.take());
        session.cancel_with(Arc::clone(&self.cancelled));
        let begin = trace.now();
        let mut pace = self.pace.get();
        let read = prompt::read(&mut session, &prompt, &mut pace, trace, on_part).await;
        self.pace.set(pace);
        let prompt::Read { n_known, is_whole } = read?;
        let (mut text, mut tokens, mut first_secs, mut finish) = (String::new(), Vec::new(), None, None);
        let mut prompt_secs = trace.now() - begin;
        let mut n_read = session.tokens().len();
        if is_whole {
            let options = GenerateOptions { max_tokens: request.max_tokens, stop: request.stop, ..GenerateOptions::default() };
            let mut generation = session.generate(&prompt, Sampler::new(sampling, seed), options).await?;
            (prompt_secs, n_read) = (trace.now() - begin, prompt.len());
            while let Some(step) = generation.next().await? {
                first_secs.get_or_insert_with(|| trace.now() - begin);
                text.push_str(&step.text);
                tokens.push(step.token);
                self.note_memory(generation.engine());
                let goes_on = answer_of(on_step.call2(&JsValue::NULL, &step.token.into(), &step.text.into())).await;
                if !goes_on || self.cancelled.load(Ordering::Relaxed) {
                    break;
                }
            }
            finish = generation.finish_reason();
        }
        let decode_secs = trace.now() - begin - prompt_secs;
        self.cached.replace(session.tokens().to_vec());
        Ok(serde_json::json!({
            "text": text,
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

    fn note_memory(&self, engine: &tierflow::Engine) {
        self.memory.replace(engine.memory_use());
    }
}

/// The model's own settings, over them what the request says.
fn sampling(engine: &tierflow::Engine, request: &Request) -> Result<SamplingSettings, Error> {
    let flags = SamplingFlags {
        temperature: request.temperature,
        top_k: request.top_k,
        top_p: request.top_p,
        min_p: request.min_p,
        repeat_penalty: request.repeat_penalty,
        repeat_last_n: request.repeat_last_n,
        ..SamplingFlags::default()
    };
    SamplingSettings::merged(engine.defaults(), &flags)
}

/// The tokens of what is asked: through the chat template, or as it is with `raw` or where the model has no template.
fn prompt_of(engine: &tierflow::Engine, request: &Request) -> Result<Vec<u32>, Error> {
    let messages = match (&request.messages, &request.prompt) {
        (Some(messages), None) => messages.clone(),
        (None, Some(prompt)) => vec![ChatMessage::new("user", prompt)],
        _ => return Err(invalid("request", "needs either messages or a prompt")),
    };
    if request.raw || engine.chat_template().is_none() {
        let texts: Vec<Cow<'_, str>> = messages.iter().map(ChatMessage::text).collect();
        return engine.encode(&texts.join("\n"));
    }
    engine.encode_chat(&messages)
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
