//! `Trainer`, a model whose adapter is trained by a loop in Python, and `Optimizer`, what takes its steps.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyByteArray;
use serde::Deserialize;
use serde_json::{Value, json};
use tierflow::device::{DeviceChoice, MaxMemory};
use tierflow::engine::LoadProgress;
use tierflow::machine::Measure;
use tierflow::platform::{IoMode, block_on, start_threads};
use tierflow::text::{Special, Tokenizer};
use tierflow::train::{
    self, DataOptions, DataSet, Gradients, Layer, LoraOptions, LossOptions, MixedPrecision, OptimizerKind, Progress as Steps, Sequence,
    TrainOn, TrainOptions,
};
use tierflow::{Engine, Error, Result};

use crate::numbers::{bytes_of, values_of};
use crate::options::{invalid, io_mode, locate};
use crate::wait::{Progress, in_background};
use crate::{errors, process};

/// The arguments of `tierflow.LoraModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    model: String,
    device: String,
    /// `gpu:0=4GiB,cpu=16GiB`.
    max_memory: Option<String>,
    io: String,
    threads: Option<usize>,
    fetch: bool,
    mixed_precision: MixedPrecision,
    seq_len: usize,
    batch_size: usize,
    seed: u64,
    r: usize,
    alpha: f32,
    dropout: f32,
    /// Ends of the names of linear layers; none stands for all of them.
    target_modules: Vec<String>,
    /// Ends of the names of norms that are trained whole.
    modules_to_save: Vec<String>,
}

impl Options {
    fn io(&self) -> Result<IoMode> {
        io_mode(&self.io)
    }

    fn train(&self) -> TrainOptions {
        let (targets, modules_to_save) = (self.target_modules.clone(), self.modules_to_save.clone());
        let lora = LoraOptions { rank: self.r, alpha: self.alpha, targets, dropout: self.dropout, modules_to_save };
        let Options { mixed_precision, batch_size: batch, seq_len, seed, .. } = *self;
        TrainOptions { lora, mixed_precision, batch, seq_len, seed, ..TrainOptions::default() }
    }
}

/// What a trainer has until it is closed.
struct Open {
    trainer: train::Trainer,
    gradients: Gradients,
    facts: String,
}

impl Open {
    fn new(options: &Options, progress: &Progress) -> Result<Open> {
        start_threads(options.threads.filter(|n_threads| *n_threads > 0))?;
        let path = locate(&options.model, options.fetch, progress)?;
        let device = options.device.parse::<DeviceChoice>()?;
        let max_memory: MaxMemory = options.max_memory.as_deref().map(str::parse).transpose()?.unwrap_or_default();
        let mut builder = Engine::builder(&path).device(device).io(options.io()?).measure(Measure::Never);
        for (device, budget) in max_memory.iter() {
            builder = builder.max_memory(device, budget);
        }
        let note = |loaded: LoadProgress| progress.note(loaded.done.0, loaded.total.0);
        let trainer = block_on(train::Trainer::open(builder, options.train(), &note))?;
        let layer = |layer: &Layer| json!([layer.module, layer.n_inputs, layer.n_outputs, layer.is_norm() && !layer.b.is_empty()]);
        let tokenizer = trainer.text().tokenizer();
        let facts = json!({
            "path": path,
            "layers": trainer.adapter().layers.iter().map(layer).collect::<Value>(),
            "n_values": trainer.adapter().n_values(),
            "n_parameters": trainer.n_parameters(),
            "vocab_size": trainer.vocab_size(),
            "device": trainer.gpu_use().map_or_else(|| "cpu".to_owned(), |gpu| gpu.adapter),
            "bytes_on_disk": trainer.bytes_on_disk().0,
            "bos_token": tokenizer.and_then(|tokenizer| tokenizer.bos_token()),
            "eos_tokens": tokenizer.map(|tokenizer| tokenizer.eos_tokens()),
        });
        Ok(Open { gradients: trainer.no_gradients(), trainer, facts: facts.to_string() })
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.trainer.text().tokenizer().ok_or_else(|| invalid("model", "has no tokenizer".into()))
    }
}

/// A model in training.
#[pyclass(frozen, module = "tierflow._tierflow")]
pub struct Trainer {
    open: Mutex<Option<Arc<Mutex<Open>>>>,
    owner: u32,
}

/// What takes steps, and keeps something from one to the next.
#[pyclass(frozen, module = "tierflow._tierflow")]
pub struct Optimizer(Arc<Mutex<train::Optimizer>>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Token ids of some sequences and what is predicted after each: -1 is nothing.
fn sequences(tokens: Vec<Vec<u32>>, targets: Vec<Vec<i64>>) -> Vec<Sequence> {
    let row = |targets: Vec<i64>| targets.into_iter().map(|target| u32::try_from(target).ok()).collect();
    tokens.into_iter().zip(targets).map(|(tokens, targets)| Sequence { tokens, targets: row(targets) }).collect()
}

impl Trainer {
    fn opened(&self) -> PyResult<Arc<Mutex<Open>>> {
        process::check()?;
        locked(&self.open).clone().ok_or_else(|| errors::new("ClosedError", "the model is closed; open another one"))
    }

    /// Does `work` on a thread of its own and waits for it.
    fn run<T: Send + 'static>(&self, py: Python<'_>, work: impl FnOnce(&mut Open) -> Result<T> + Send + 'static) -> PyResult<T> {
        let open = self.opened()?;
        in_background(py, None, move |_| work(&mut locked(&open)))
    }
}

#[pymethods]
impl Trainer {
    /// Opens a model as `options`, JSON, say; `progress` is called with bytes that are there and bytes in all.
    #[staticmethod]
    #[pyo3(signature = (options, progress = None))]
    fn open(py: Python<'_>, options: &str, progress: Option<&Bound<'_, PyAny>>) -> PyResult<Trainer> {
        process::check()?;
        let options: Options = serde_json::from_str(options)
            .map_err(|error| errors::raised(&Error::internal(format!("the options cannot be read: {error}"))))?;
        let open = in_background(py, progress, move |progress| Open::new(&options, progress))?;
        Ok(Trainer { open: Mutex::new(Some(Arc::new(Mutex::new(open)))), owner: std::process::id() })
    }

    /// Gives the memory back, once nothing computes any more.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        process::check()?;
        let open = locked(&self.open).take();
        py.detach(move || drop(open));
        Ok(())
    }

    #[getter]
    fn is_closed(&self) -> bool {
        process::is_fork_of(self.owner) || locked(&self.open).is_none()
    }

    /// What is known of the model and its adapter, as JSON.
    fn facts(&self, py: Python<'_>) -> PyResult<String> {
        self.run(py, |open| Ok(open.facts.clone()))
    }

    /// The loss of a batch; with a factor, the gradients of it times the loss are added up.
    #[pyo3(signature = (tokens, targets, draw, n_items, factor = None))]
    fn loss(
        &self,
        py: Python<'_>,
        tokens: Vec<Vec<u32>>,
        targets: Vec<Vec<i64>>,
        draw: Option<u64>,
        n_items: Option<usize>,
        factor: Option<f64>,
    ) -> PyResult<f64> {
        let (sequences, options) = (sequences(tokens, targets), LossOptions { draw, n_items });
        self.run(py, move |open| match factor {
            None => block_on(open.trainer.loss(&sequences, options)),
            Some(factor) => block_on(open.trainer.add_gradients(&sequences, options, factor, &mut open.gradients)),
        })
    }

    /// The gradients that were added up, as numbers: of each layer A, then B.
    fn gradients<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyByteArray>> {
        let bytes = self.run(py, |open| Ok(bytes_of(open.gradients.values())))?;
        Ok(PyByteArray::new(py, &bytes))
    }

    /// Puts others in their place.
    fn set_gradients(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
        let values = values_of(bytes);
        self.run(py, move |open| {
            if values.len() != open.trainer.adapter().n_values() {
                return Err(invalid("gradients", format!("are {}; there are {}", values.len(), open.trainer.adapter().n_values())));
            }
            open.gradients.values_mut().zip(values).for_each(|(own, value)| *own = value);
            Ok(())
        })
    }

    /// The length of the gradients together, which are shortened to `most` where they are longer.
    fn clip(&self, py: Python<'_>, most: f64) -> PyResult<f64> {
        self.run(py, move |open| {
            let norm = open.gradients.norm();
            open.gradients.clip(norm, most);
            Ok(norm)
        })
    }

    /// Begins a new sum of gradients.
    fn zero_gradients(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, |open| {
            open.gradients.values_mut().for_each(|value| *value = 0.0);
            Ok(())
        })
    }

    /// The values of the adapter, in the order of the gradients.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyByteArray>> {
        let bytes = self.run(py, |open| Ok(bytes_of(open.trainer.adapter().layers.iter().flat_map(Layer::values))))?;
        Ok(PyByteArray::new(py, &bytes))
    }

    /// Puts others in their place.
    fn set_values(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
        let values = values_of(bytes);
        self.run(py, move |open| open.trainer.set_values(&values))
    }

    /// An optimiser, `adamw` or `sgd`, before its first step.
    fn optimizer(&self, py: Python<'_>, kind: String) -> PyResult<Optimizer> {
        let kind: OptimizerKind =
            serde_json::from_value(Value::String(kind)).map_err(|error| errors::raised(&Error::internal(error.to_string())))?;
        self.run(py, move |open| Ok(Optimizer(Arc::new(Mutex::new(open.trainer.new_optimizer(kind, 0.0))))))
    }

    /// A step against the gradients that were added up;
    /// `settings` are weight decay, betas, epsilon and momentum.
    fn step(&self, py: Python<'_>, optimizer: &Optimizer, rate: f64, settings: (f32, [f32; 2], f32, f32)) -> PyResult<()> {
        let optimizer = Arc::clone(&optimizer.0);
        self.run(py, move |open| {
            let mut optimizer = locked(&optimizer);
            (optimizer.weight_decay, optimizer.betas, optimizer.epsilon, optimizer.momentum) = settings;
            open.trainer.apply(&mut optimizer, &open.gradients, rate)
        })
    }

    /// Steps that were taken.
    fn n_steps(&self, py: Python<'_>) -> PyResult<u64> {
        self.run(py, |open| Ok(open.trainer.progress().n_done))
    }

    /// Says how many there were.
    fn set_n_steps(&self, py: Python<'_>, n_done: u64) -> PyResult<()> {
        self.run(py, move |open| {
            open.trainer.set_progress(Steps { n_done, ..Steps::default() });
            Ok(())
        })
    }

    /// Writes the adapter in PEFT's form into a folder.
    fn save_adapter(&self, py: Python<'_>, folder: PathBuf) -> PyResult<()> {
        self.run(py, move |open| open.trainer.save_adapter(&folder))
    }

    /// Takes the values of an adapter of the same layers and rank.
    fn load_adapter(&self, py: Python<'_>, folder: PathBuf) -> PyResult<()> {
        self.run(py, move |open| open.trainer.begin_from(&folder))
    }

    /// Writes what an optimiser keeps into a folder.
    fn save_optimizer(&self, py: Python<'_>, optimizer: &Optimizer, folder: PathBuf) -> PyResult<()> {
        let optimizer = Arc::clone(&optimizer.0);
        self.run(py, move |open| open.trainer.save_optimizer(&locked(&optimizer), &folder))
    }

    /// Reads it again.
    fn load_optimizer(&self, py: Python<'_>, optimizer: &Optimizer, folder: PathBuf) -> PyResult<()> {
        let optimizer = Arc::clone(&optimizer.0);
        self.run(py, move |open| open.trainer.load_optimizer(&mut locked(&optimizer), &folder))
    }

    /// The tokens of `text`.
    fn encode(&self, py: Python<'_>, text: String, add_special: bool) -> PyResult<Vec<u32>> {
        let special = if add_special { Special::Add } else { Special::Leave };
        self.run(py, move |open| open.tokenizer()?.encode(&text, special))
    }

    /// Tokens of the records of a file, as JSON: of each the ids, and those that are trained, the others as -100; then how many were left
    /// out and how many cut.
    fn records(&self, py: Python<'_>, path: PathBuf, trains_all: bool, truncates: bool) -> PyResult<String> {
        self.run(py, move |open| {
            let train_on = if trains_all { TrainOn::All } else { TrainOn::Answers };
            let options = DataOptions { train_on, seq_len: open.trainer.options().seq_len, truncates };
            let data = DataSet::read(&path, open.trainer.text(), options)?;
            let record = |example: &train::Example| {
                let labels = example.tokens.iter().zip(&example.is_trained);
                let labels: Vec<i64> = labels.map(|(token, is_trained)| if *is_trained { i64::from(*token) } else { -100 }).collect();
                json!([example.tokens, labels])
            };
            let records: Value = data.examples.iter().map(record).collect();
            Ok(json!([records, data.n_too_long, data.n_truncated]).to_string())
        })
    }
}

impl Drop for Trainer {
    fn drop(&mut self) {
        // Of a fork, the threads that may have it are not there.
        if process::is_fork_of(self.owner) {
            std::mem::forget(locked(&self.open).take());
        }
    }
}
