//! A model over several machines: `Stage`, the layers of one that begins with hidden states, what an engine with the first layers asks later
//! stages for, and how layers are divided.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyByteArray;
use serde::Deserialize;
use serde_json::{Value, json};
use tierflow::engine::{Link, Machine, Split, StageRequest, StageRequests, split};
use tierflow::machine::{DevicesFile, parse_devices};
use tierflow::platform::block_on;
use tierflow::stream::{Batch, BatchToken, Logits, LogitsRequest};
use tierflow::{Error, Result};

use crate::engine::closed;
use crate::numbers::{array_of, values_of};
use crate::options::{Options, invalid, locate};
use crate::wait::in_background;
use crate::{errors, plan, process};

/// A batch as Python has it: tokens, their sequences and positions, the rows that are asked for, and how many of their best tokens (0: all).
pub type Asked = (Vec<u32>, Vec<u32>, Vec<u32>, Vec<u32>, usize);

/// Rows of logits or hidden states: all numbers, one row behind the other, or the best tokens of each.
type Rows<'py> = (Option<Bound<'py, PyByteArray>>, Vec<Vec<(u32, f32)>>);

/// Layers of a model that begin with hidden states.
#[pyclass(frozen, module = "tierflow._tierflow")]
pub struct Stage {
    engine: Mutex<Option<tierflow::Engine>>,
    owner: u32,
}

#[pymethods]
impl Stage {
    /// Opens layers of a model as `options`, JSON, say.
    #[staticmethod]
    #[pyo3(signature = (options, progress = None))]
    fn open(py: Python<'_>, options: &str, progress: Option<&Bound<'_, PyAny>>) -> PyResult<Stage> {
        process::check()?;
        let options = Options::from_json(options).map_err(|error| errors::raised(&error))?;
        let engine = in_background(py, progress, move |progress| {
            let prepared = options.prepare(&locate(&options.model, options.fetch, progress)?)?;
            block_on(prepared.load(&|loaded| progress.note(loaded.done.0, loaded.total.0)))
        })?;
        Ok(Stage { engine: Mutex::new(Some(engine)), owner: std::process::id() })
    }

    /// The plan in words, as JSON, and as a device map in JSON.
    fn plan(&self, py: Python<'_>) -> PyResult<(String, String, String)> {
        self.with(py, |engine| Ok(plan::told(engine.prepared())))
    }

    /// What the layers make of hidden states, `[n_tokens, hidden_size]` as little-endian floats.
    fn forward<'py>(&self, py: Python<'py>, asked: Asked, hidden: &[u8]) -> PyResult<Rows<'py>> {
        let batch = batch_of(asked).map_err(|error| errors::raised(&error))?;
        let hidden = values_of(hidden);
        let rows = self.with(py, move |engine| block_on(engine.forward_hidden(&batch, &hidden)))?;
        Ok(rows_of(py, rows))
    }

    /// Gives the memory back.
    fn close(&self, py: Python<'_>) {
        if !process::is_fork_of(self.owner) {
            py.detach(|| drop(self.engine.lock().unwrap_or_else(PoisonError::into_inner).take()));
        }
    }
}

impl Stage {
    fn with<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut tierflow::Engine) -> Result<T> + Send) -> PyResult<T> {
        process::check()?;
        let done = py.detach(|| self.engine.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(work));
        done.ok_or_else(closed)?.map_err(|error| errors::raised(&error))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What a fork has of it belongs to threads that are not there.
        if process::is_fork_of(self.owner) {
            std::mem::forget(self.engine.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

/// What an engine with the first layers asks later stages for.
pub struct Later {
    requests: Arc<tokio::sync::Mutex<StageRequests>>,
    /// The one that is not answered yet.
    pending: Mutex<Option<StageRequest>>,
}

impl Later {
    pub fn new(requests: StageRequests) -> Later {
        Later { requests: Arc::new(tokio::sync::Mutex::new(requests)), pending: Mutex::new(None) }
    }

    /// The next request, once it comes.
    pub fn next(&self) -> impl Future<Output = Option<StageRequest>> + Send + 'static {
        let requests = Arc::clone(&self.requests);
        async move { requests.lock().await.next().await }
    }

    /// What Python is told of a request, which is answered later.
    pub fn told<'py>(&self, py: Python<'py>, request: StageRequest) -> (Asked, Bound<'py, PyByteArray>) {
        let told = (asked_of(&request.batch), array_of(py, &request.hidden));
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
        told
    }

    /// Answers it.
    pub fn answer(&self, rows: Option<&[u8]>, best: Vec<Vec<(u32, f32)>>) {
        let Some(request) = self.pending.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let logits = match rows {
            None => best.into_iter().map(Logits::Top).collect(),
            Some(rows) => {
                let values = values_of(rows);
                let width = (values.len() / request.batch.logits_for.len().max(1)).max(1);
                values.chunks(width).map(|row| Logits::All(row.to_vec())).collect()
            }
        };
        request.answer(Ok(logits));
    }

    /// Says why there is no answer.
    pub fn fail(&self, reason: String) {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner).take();
        pending.into_iter().for_each(|request| request.answer(Err(Error::StageFailed { reason: reason.clone() })));
    }
}

fn asked_of(batch: &Batch) -> Asked {
    let of_tokens = |of: fn(&BatchToken) -> u32| batch.tokens.iter().map(of).collect();
    let k = if let LogitsRequest::TopK(k) = batch.logits_request { k } else { 0 };
    (of_tokens(|token| token.token), of_tokens(|token| token.sequence), of_tokens(|token| token.position), batch.logits_for.clone(), k)
}

fn batch_of((tokens, sequences, positions, logits_for, k): Asked) -> Result<Batch> {
    if [sequences.len(), positions.len()] != [tokens.len(); 2] {
        return Err(invalid(
            "tokens",
            format!("are {}, with {} sequences and {} positions", tokens.len(), sequences.len(), positions.len()),
        ));
    }
    let places = tokens.into_iter().zip(sequences).zip(positions);
    let tokens = places.map(|((token, sequence), position)| BatchToken { token, sequence, position }).collect();
    let logits_request = if k == 0 { LogitsRequest::All } else { LogitsRequest::TopK(k) };
    Ok(Batch { tokens, logits_for, logits_request })
}

fn rows_of(py: Python<'_>, rows: Vec<Logits>) -> Rows<'_> {
    let (mut all, mut best) = (Vec::new(), Vec::new());
    for row in rows {
        match row {
            Logits::All(row) => all.extend(row),
            Logits::Top(row) => best.push(row),
        }
    }
    (best.is_empty().then(|| array_of(py, &all)), best)
}

/// The devices of this machine as a plan for the model of `options` sees them, as `tierflow devices --json` tells them.
#[pyfunction]
pub fn devices_for(py: Python<'_>, options: &str) -> PyResult<String> {
    process::check()?;
    let options = Options::from_json(options).map_err(|error| errors::raised(&error))?;
    let devices = in_background(py, None, move |progress| {
        let path = locate(&options.model, options.fetch, progress)?;
        block_on(options.builder_of_text(&path)?.devices())
    })?;
    serde_json::to_string(&DevicesFile::new(devices, Default::default())).map_err(|error| errors::new("EngineError", &error.to_string()))
}

/// One machine, as Python describes it.
#[derive(Deserialize)]
struct Described {
    name: String,
    options: Options,
    devices: Value,
}

/// Divides a model among machines, JSON, with the ways between them: what each computes, as JSON.
#[pyfunction]
pub fn divide(py: Python<'_>, machines: String, links: String) -> PyResult<String> {
    process::check()?;
    let divided = in_background(py, None, move |progress| {
        let unreadable = |error| Error::internal(format!("machines cannot be read: {error}"));
        let described: Vec<Described> = serde_json::from_str(&machines).map_err(unreadable)?;
        let links: Vec<Link> = serde_json::from_str(&links).map_err(unreadable)?;
        let machines = described.into_iter().map(|one| {
            let devices = parse_devices(one.devices.to_string().as_bytes(), &one.name)?;
            let path = locate(&one.options.model, one.options.fetch, progress)?;
            Ok(Machine { builder: one.options.builder_of_text(&path)?.machine(devices), name: one.name })
        });
        let divided = block_on(split(machines.collect::<Result<_>>()?, &links))?;
        Ok(told(&divided, &links))
    })?;
    Ok(divided.to_string())
}

fn told(divided: &Split, links: &[Link]) -> Value {
    let stage = |stage: &tierflow::engine::StagePlan| {
        let layers = [stage.layers.start, stage.layers.end];
        json!({ "name": stage.name, "layers": layers, "plan": stage.plan, "text": stage.plan.to_string(), "forecast": stage.forecast })
    };
    let [prompt, answer] = divided.tokens_per_sec();
    json!({
        "stages": divided.stages.iter().map(stage).collect::<Vec<_>>(),
        "links": links,
        "ctx_size": divided.ctx_size,
        "ubatch_size": divided.ubatch_size,
        "prediction": {
            "prompt_tokens": divided.prefill.0,
            "prompt_secs": divided.prefill.1,
            "prompt_tokens_per_sec": prompt,
            "token_secs": divided.decode_secs,
            "tokens_per_sec": answer,
        },
    })
}
