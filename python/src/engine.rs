//! `Engine`, an open model, and `Answer`, a stream of one.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyByteArray;
use serde_json::json;
use tierflow::engine::{LoadProgress, requests_to_later_stages};
use tierflow::platform::block_on;
use tierflow::server::{LocalResponse, LocalServer, ServerSettings};
use tierflow::text::{EmbeddingSettings, Pooling, Special, Tokenizer};
use tierflow::{EngineHandle, Error, Positions, Result};
use tokio::runtime::{Builder, Runtime};

use crate::numbers::array_of;
use crate::options::{LOGIT_ROWS, Options, invalid, locate};
use crate::stage::{Asked, Later};
use crate::wait::{Progress, in_background, wait_while};
use crate::{errors, plan, process};

/// Requests that may wait for a sequence.
const MAX_WAITING: usize = 1 << 16;
/// How long `close` waits for the memory of the model to be given back.
const MAX_CLOSING: Duration = Duration::from_secs(30);

/// An open model.
#[pyclass(frozen, module = "tierflow._tierflow")]
pub struct Engine {
    open: Mutex<Option<Arc<Open>>>,
    owner: u32,
}

/// What an engine has until it is closed.
struct Open {
    handle: EngineHandle,
    /// Absent where the engine makes embeddings.
    server: Option<Arc<LocalServer>>,
    embeddings: EmbeddingSettings,
    /// What it asks other machines for, where these compute later layers.
    later: Option<Later>,
    /// Absent only while it is dropped.
    runtime: Option<Runtime>,
    is_closed: AtomicBool,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Open {
    /// Locates, plans and loads.
    fn new(options: &Options, progress: &Progress) -> Result<Open> {
        let path = locate(&options.model, options.fetch, progress)?;
        let prepared = options.prepare(&path)?;
        let n_layers = prepared.model.config.n_layers;
        let generates = prepared.model.has_head() || prepared.model.gives_hidden();
        let embeddings = match generates {
            true => EmbeddingSettings::default(),
            false => EmbeddingSettings::open(&prepared.checkpoint)?,
        };
        let note = |loaded: LoadProgress| progress.note(loaded.done.0, loaded.total.0);
        let mut engine = block_on(prepared.load(&note))?;
        let mut later = None;
        if let Some((_, end)) = options.layers.filter(|(_, end)| *end < n_layers) {
            let (stages, requests) = requests_to_later_stages(end..n_layers, LOGIT_ROWS);
            engine = engine.continue_with(stages)?;
            later = Some(Later::new(requests));
        }
        let handle = engine.spawn()?;
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("tierflow-answers").enable_time().build();
        let runtime = runtime.map_err(|error| Error::io("start", "the thread of answers", error))?;
        let settings = ServerSettings { model_name: options.model.clone(), n_waiting: MAX_WAITING, ..ServerSettings::default() };
        let server = match generates {
            true => Some(Arc::new(runtime.block_on(LocalServer::new(handle.clone(), settings))?)),
            false => None,
        };
        Ok(Open { handle, server, embeddings, later, runtime: Some(runtime), is_closed: AtomicBool::new(false) })
    }

    /// Waits for `future`, which ends when the wait does.
    fn run<T: Send + 'static>(&self, py: Python<'_>, future: impl Future<Output = T> + Send + 'static) -> PyResult<T> {
        let runtime = self.runtime.as_ref().ok_or_else(closed)?;
        let (sender, receiver) = channel();
        let task = runtime.spawn(async move { drop(sender.send(future.await)) });
        let waited = wait_while(py, receiver, || !self.is_closed.load(Ordering::SeqCst));
        if !matches!(waited, Ok(Some(_))) {
            task.abort();
        }
        waited?.ok_or_else(closed)
    }

    fn server(&self) -> PyResult<Arc<LocalServer>> {
        let refusal = || errors::raised(&invalid("embedding", "this engine makes embeddings and generates nothing".into()));
        self.server.clone().ok_or_else(refusal)
    }

    fn tokenizer(&self) -> PyResult<&Tokenizer> {
        self.handle.tokenizer().ok_or_else(|| errors::new("ModelError", "the model has no tokenizer"))
    }

    /// Refuses tokens that the model does not know, and more than the context holds.
    fn check(&self, tokens: &[u32]) -> PyResult<()> {
        let (vocab_size, available) = (self.handle.config().vocab_size, self.handle.plan().ctx_size);
        let error = match tokens.iter().find(|token| **token as usize >= vocab_size) {
            Some(&token) => Error::TokenOutOfVocabulary { token, vocab_size },
            None if tokens.is_empty() => invalid("tokens", "is empty".into()),
            None if tokens.len() > available => Error::ContextFull { needed: tokens.len(), available },
            None => return Ok(()),
        };
        Err(errors::raised(&error))
    }

    /// The rows that `of_row` makes of the logits after `positions` of `tokens`.
    fn rows(
        &self,
        py: Python<'_>,
        tokens: Vec<u32>,
        positions: Positions,
        mut of_row: impl FnMut(Vec<f32>) -> Vec<f32> + Send + 'static,
    ) -> PyResult<Vec<f32>> {
        let server = self.server()?;
        let rows: Arc<Mutex<Result<Vec<f32>>>> = Arc::new(Mutex::new(Ok(Vec::new())));
        let made = Arc::clone(&rows);
        let each = move |row: Vec<f32>| {
            let mut rows = locked(&rows);
            match (row.iter().position(|logit| !logit.is_finite()), rows.as_mut()) {
                (_, Err(_)) => {}
                (Some(token), _) => *rows = Err(Error::NotFinite { token, value: row[token] }),
                (None, Ok(rows)) => rows.extend(of_row(row)),
            }
        };
        let outcome = self.run(py, async move { server.logits(tokens, positions, each).await })?;
        outcome.map_err(|error| errors::raised(&error))?;
        std::mem::replace(&mut *locked(&made), Ok(Vec::new())).map_err(|error| errors::raised(&error))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn closed() -> PyErr {
    errors::new("ClosedError", "the engine is closed; open another one")
}

impl Engine {
    fn opened(&self) -> PyResult<Arc<Open>> {
        process::check()?;
        locked(&self.open).clone().ok_or_else(closed)
    }
}

#[pymethods]
impl Engine {
    /// Opens a model as `options`, JSON, say; `progress` is called with bytes that are there and bytes in all.
    #[staticmethod]
    #[pyo3(signature = (options, progress = None))]
    fn open(py: Python<'_>, options: &str, progress: Option<&Bound<'_, PyAny>>) -> PyResult<Engine> {
        process::check()?;
        let options = Options::from_json(options).map_err(|error| errors::raised(&error))?;
        let open = in_background(py, progress, move |progress| Open::new(&options, progress))?;
        Ok(Engine { open: Mutex::new(Some(Arc::new(open))), owner: std::process::id() })
    }

    /// Ends what runs and gives the memory back.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        process::check()?;
        let Some(open) = locked(&self.open).take() else { return Ok(()) };
        open.is_closed.store(true, Ordering::SeqCst);
        let model = Arc::downgrade(&open.handle.model());
        py.detach(move || {
            drop(open);
            let begin = Instant::now();
            while model.strong_count() > 0 && begin.elapsed() < MAX_CLOSING {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(())
    }

    #[getter]
    fn is_closed(&self) -> bool {
        process::is_fork_of(self.owner) || locked(&self.open).is_none()
    }

    /// What is known of the model, as JSON.
    fn facts(&self) -> PyResult<String> {
        let open = self.opened()?;
        let (config, plan, prepared) = (open.handle.config(), open.handle.plan(), open.handle.prepared());
        let tokenizer = open.handle.tokenizer();
        let facts = json!({
            "name": config.name,
            "family": config.family.name,
            "path": prepared.checkpoint.path,
            "size_bytes": prepared.checkpoint.catalog.size_bytes().0,
            "n_parameters": prepared.checkpoint.catalog.n_values(),
            "n_layers": config.n_layers,
            "hidden_size": config.hidden_size,
            "vocab_size": config.vocab_size,
            "ctx_size": plan.ctx_size,
            "trained_ctx_size": config.context_length,
            "n_seqs": plan.n_seqs,
            "embedding": !open.handle.gives_logits(),
            "bos_token": tokenizer.and_then(|tokenizer| tokenizer.bos_token()),
            "eos_tokens": tokenizer.map(|tokenizer| tokenizer.eos_tokens()),
            "has_chat_template": open.handle.chat_template().is_some(),
        });
        Ok(facts.to_string())
    }

    /// The plan in words, as JSON, and as a device map in JSON.
    fn plan(&self) -> PyResult<(String, String, String)> {
        Ok(plan::told(self.opened()?.handle.prepared()))
    }

    /// The next forward that later stages are asked for: tokens, sequences, positions, rows and best tokens of each; and hidden states.
    /// `None` where there will be no more.
    fn next_request<'py>(&self, py: Python<'py>) -> PyResult<Option<(Asked, Bound<'py, PyByteArray>)>> {
        let open = self.opened()?;
        let later = open.later.as_ref().ok_or_else(closed)?;
        Ok(open.run(py, later.next())?.map(|request| later.told(py, request)))
    }

    /// Answers it with rows of numbers, or with the best tokens of each row.
    fn answer_request(&self, rows: Option<&[u8]>, best: Vec<Vec<(u32, f32)>>) -> PyResult<()> {
        self.opened()?.later.iter().for_each(|later| later.answer(rows, best.clone()));
        Ok(())
    }

    /// Says why it has no answer.
    fn fail_request(&self, reason: String) -> PyResult<()> {
        self.opened()?.later.iter().for_each(|later| later.fail(reason.clone()));
        Ok(())
    }

    /// The tokens of `text`.
    fn encode(&self, py: Python<'_>, text: &str, add_special: bool, parse_special: bool) -> PyResult<Vec<u32>> {
        let open = self.opened()?;
        let tokenizer = open.tokenizer()?;
        let special = if add_special { Special::Add } else { Special::Leave };
        let encoded = py.detach(|| match parse_special {
            true => tokenizer.encode(text, special),
            false => tokenizer.encode_plain(text, special),
        });
        encoded.map_err(|error| errors::raised(&error))
    }

    /// The text of `tokens`, special ones left out.
    fn decode(&self, tokens: Vec<u32>) -> PyResult<String> {
        let open = self.opened()?;
        let vocab_size = open.handle.config().vocab_size;
        match tokens.iter().find(|token| **token as usize >= vocab_size) {
            Some(&token) => Err(errors::raised(&Error::TokenOutOfVocabulary { token, vocab_size })),
            None => Ok(open.tokenizer()?.decode(&tokens)),
        }
    }

    /// Posts JSON to a path of the server's: its status and its answer.
    fn post(&self, py: Python<'_>, path: String, body: String) -> PyResult<(u16, String)> {
        let open = self.opened()?;
        let server = open.server()?;
        open.run(py, async move {
            let response = server.post(&path, body).await;
            (response.status, response.text().await)
        })
    }

    /// The same for an answer that comes in pieces.
    fn stream(&self, py: Python<'_>, path: String, body: String) -> PyResult<Answer> {
        let open = self.opened()?;
        let server = open.server()?;
        let response = open.run(py, async move { server.post(&path, body).await })?;
        Ok(Answer {
            status: response.status,
            open: Arc::downgrade(&open),
            response: Arc::new(tokio::sync::Mutex::new(Some(response))),
            owner: std::process::id(),
        })
    }

    /// The logits after each of `tokens`, or after the last one.
    fn logits<'py>(&self, py: Python<'py>, tokens: Vec<u32>, all: bool) -> PyResult<Bound<'py, PyByteArray>> {
        let open = self.opened()?;
        open.check(&tokens)?;
        let positions = if all { Positions::All } else { Positions::Last };
        Ok(array_of(py, &open.rows(py, tokens, positions, |row| row)?))
    }

    /// How likely each of `tokens` is after those before it, as logarithms; the first has none.
    fn score<'py>(&self, py: Python<'py>, mut tokens: Vec<u32>) -> PyResult<Bound<'py, PyByteArray>> {
        let open = self.opened()?;
        open.check(&tokens)?;
        let mut next = tokens.split_off(1).into_iter();
        if next.len() == 0 {
            return Ok(array_of(py, &[]));
        }
        tokens.extend(next.as_slice().iter().take(next.len() - 1));
        let score = move |row: Vec<f32>| next.next().map(|token| log_probability(&row, token)).into_iter().collect();
        Ok(array_of(py, &open.rows(py, tokens, Positions::All, score)?))
    }

    /// One vector for each of `texts`, as numbers one after the other, and how many a vector has.
    #[pyo3(signature = (texts, pooling, normalize, prompt_name))]
    fn embed<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<String>,
        pooling: Option<&str>,
        normalize: Option<bool>,
        prompt_name: Option<&str>,
    ) -> PyResult<(Bound<'py, PyByteArray>, usize)> {
        let open = self.opened()?;
        let raised = |error: Error| errors::raised(&error);
        if open.server.is_some() {
            let reason = "this engine generates text; open the model with embedding=True to make embeddings".into();
            return Err(raised(invalid("embedding", reason)));
        }
        let pooling = pooling_of(pooling).map_err(raised)?.or(open.embeddings.pooling).unwrap_or(Pooling::Mean);
        let prompt = open.embeddings.prompt(prompt_name).map_err(raised)?;
        let mut values = Vec::new();
        let mut width = 0;
        for text in texts {
            let tokens = self.encode(py, &format!("{prompt}{text}"), true, false)?;
            open.check(&tokens)?;
            let handle = open.handle.clone();
            let pooled = open.run(py, async move { handle.embed(tokens, pooling).await })?.map_err(raised)?;
            let is_normalized = normalize.unwrap_or(open.embeddings.normalize);
            let embedding = open.handle.prepared().finished_embedding(open.embeddings.project(pooled), is_normalized).map_err(raised)?;
            width = embedding.len();
            values.extend(embedding);
        }
        Ok((array_of(py, &values), width))
    }
}

fn pooling_of(word: Option<&str>) -> Result<Option<Pooling>> {
    Ok(match word {
        None => None,
        Some("mean") => Some(Pooling::Mean),
        Some("cls") => Some(Pooling::Cls),
        Some("last") => Some(Pooling::Last),
        Some(other) => return Err(invalid("pooling", format!("`{other}` is none of mean, cls and last"))),
    })
}

/// The logarithm of the probability that `logits` give `token`.
fn log_probability(logits: &[f32], token: u32) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    let own = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    (f64::from(own - most) - sum.ln()) as f32
}

impl Drop for Engine {
    fn drop(&mut self) {
        // What a fork has of it belongs to threads that are not there; to take it apart could wait for them forever.
        if process::is_fork_of(self.owner) {
            std::mem::forget(locked(&self.open).take());
        }
    }
}

/// An answer that comes in pieces.
#[pyclass(frozen, module = "tierflow._tierflow")]
pub struct Answer {
    /// The status of HTTP.
    #[pyo3(get)]
    status: u16,
    open: Weak<Open>,
    response: Arc<tokio::sync::Mutex<Option<LocalResponse>>>,
    owner: u32,
}

#[pymethods]
impl Answer {
    /// The next piece, or `None` at the end. An exception ends the answer.
    fn next(&self, py: Python<'_>) -> PyResult<Option<String>> {
        process::check()?;
        let open = self.open.upgrade().ok_or_else(closed)?;
        let response = Arc::clone(&self.response);
        let piece = open.run(py, async move {
            match response.lock().await.as_mut() {
                Some(response) => response.next().await.map(|piece| String::from_utf8_lossy(&piece).into_owned()),
                None => None,
            }
        });
        if !matches!(piece, Ok(Some(_))) {
            self.close(py);
        }
        piece
    }

    /// Ends the answer before its next token.
    fn close(&self, py: Python<'_>) {
        if process::is_fork_of(self.owner) {
            return;
        }
        let response = Arc::clone(&self.response);
        // Whoever waits for a piece has the lock until it is there.
        let end = async move { drop(response.lock().await.take()) };
        match (self.response.try_lock(), self.open.upgrade()) {
            (Ok(mut response), _) => py.detach(|| drop(response.take())),
            (Err(_), Some(open)) => drop(open.runtime.as_ref().map(|runtime| runtime.spawn(end))),
            (Err(_), None) => {}
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if process::is_fork_of(self.owner) {
            std::mem::forget(Arc::clone(&self.response));
        }
    }
}
