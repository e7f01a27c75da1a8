//! What is written of training: the adapter in PEFT's form, checkpoints to go on from. Models that were trained whole are written by
//! [`super::whole`].

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::adapter::{Adapter, Layer};
use super::optim::{Optimizer, OptimizerKind, Scheduler};
use super::trainer::{MixedPrecision, Progress, TrainOptions};
use super::whole;
use crate::error::{Error, Result};
use crate::lora::{self, LowRank, NormValues, Settings};
use crate::model::Checkpoint;
use crate::platform;

/// What the folders of checkpoints are called, before the number of steps.
const PREFIX: &str = "step-";
/// What is being written.
const PARTIAL: &str = ".partial";
const STATE_NAME: &str = "state.json";
const OPTIMIZER_SCHEMA: &str = "tierflow.optimizer/1";
const FIRST_NAME: &str = "first";
const SECOND_NAME: &str = "second";
const ADAPTER_NAME: &str = "adapter";
const WEIGHTS_NAME: &str = "weights";

/// What a checkpoint says besides its tensors. All but the progress must be the same to go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    schema: String,
    progress: Progress,
    n_taken: u64,
    optimizer: OptimizerKind,
    learning_rate: f64,
    scheduler: Scheduler,
    n_warmup: u64,
    n_steps: u64,
    weight_decay: f32,
    grad_clip: Option<f64>,
    batch: usize,
    accumulate: usize,
    seq_len: usize,
    #[serde(default)]
    packs: bool,
    seed: u64,
    dropout: f32,
    #[serde(default)]
    full: bool,
    #[serde(default)]
    mixed_precision: MixedPrecision,
}

impl State {
    pub(super) fn of(options: &TrainOptions, progress: Progress, n_taken: u64) -> State {
        State {
            schema: "tierflow.train/1".into(),
            progress,
            n_taken,
            optimizer: options.optimizer,
            learning_rate: options.learning_rate,
            scheduler: options.scheduler,
            n_warmup: options.n_warmup,
            n_steps: options.n_steps,
            weight_decay: options.weight_decay,
            grad_clip: options.grad_clip,
            batch: options.batch,
            accumulate: options.accumulate,
            seq_len: options.seq_len,
            packs: options.packs,
            seed: options.seed,
            dropout: options.lora.dropout,
            full: options.full,
            mixed_precision: options.mixed_precision,
        }
    }

    /// The names of what differs in another one.
    fn differences(&self, other: &State) -> Vec<String> {
        let [own, other] = [self, other].map(|state| serde_json::to_value(state).unwrap_or_default());
        let (Value::Object(own), Value::Object(other)) = (own, other) else { return Vec::new() };
        let differs = |(name, value): (&String, &Value)| {
            (name != "progress" && name != "n_taken" && other.get(name) != Some(value))
                .then(|| format!("{name} ({}, not {value})", other.get(name).unwrap_or(&Value::Null)))
        };
        own.iter().filter_map(differs).collect()
    }
}

/// Writes `layers`, of the shape of `adapter`, in PEFT's form.
pub(super) fn write_adapter(adapter: &Adapter, layers: &[Layer], checkpoint: &Checkpoint, folder: &Path) -> Result<()> {
    adapter_of(adapter, layers, checkpoint, folder)?.write(folder)
}

/// `layers`, of the shape of `adapter`, as others know them; messages call it `path`.
pub(super) fn adapter_of(adapter: &Adapter, layers: &[Layer], checkpoint: &Checkpoint, path: &Path) -> Result<lora::Adapter> {
    let (norms, linears): (Vec<_>, Vec<_>) = layers.iter().zip(&adapter.rows).partition(|(layer, _)| layer.is_norm());
    let mut targets: Vec<String> =
        linears.iter().map(|(layer, _)| layer.module.rsplit('.').next().unwrap_or_default().to_owned()).collect();
    targets.sort_unstable();
    targets.dedup();
    let mut settings = Settings::new(adapter.rank, f64::from(adapter.alpha), targets);
    settings.base_model = Some(checkpoint.path.clone());
    settings.dropout = f64::from(adapter.dropout);
    settings.modules_to_save.clone_from(&adapter.modules_to_save);
    let norms = norms.into_iter().map(|(layer, _)| {
        let bias = (!layer.b.is_empty()).then(|| layer.b.clone());
        (layer.module.clone(), NormValues { weight: layer.a.clone(), bias })
    });
    let norms = norms.collect();
    let linears = linears.into_iter().map(|(layer, rows)| {
        let up = for_transformers(&layer.b, rows, adapter.rank);
        let scaling = settings.scaling_of(&layer.module).map_err(Error::internal)?;
        let (down, rank) = (layer.a.clone(), adapter.rank);
        let (n_inputs, n_outputs) = (layer.n_inputs, layer.n_outputs);
        Ok((layer.module.clone(), LowRank { rank, n_inputs, n_outputs, down, up, scaling }))
    });
    let linears = linears.collect::<Result<_>>()?;
    Ok(lora::Adapter { path: path.display().to_string(), settings, linears, norms })
}

/// Writes `layers`, of the shape of what is trained, so that [`read_layers`] reads them.
fn write_layers(adapter: &Adapter, layers: &[Layer], checkpoint: &Checkpoint, folder: &Path) -> Result<()> {
    if adapter.is_whole { whole::write_values(layers, folder) } else { write_adapter(adapter, layers, checkpoint, folder) }
}

/// Reads the values of `adapter` from a folder.
pub(super) fn read_adapter(adapter: &mut Adapter, folder: &Path) -> Result<()> {
    let mut layers = std::mem::take(&mut adapter.layers);
    let read = read_layers(adapter, &mut layers, folder);
    adapter.layers = layers;
    read
}

/// Reads what [`write_layers`] wrote, of the shape of what is trained.
fn read_layers(adapter: &Adapter, layers: &mut [Layer], folder: &Path) -> Result<()> {
    if adapter.is_whole {
        return whole::read_values(layers, folder);
    }
    let Adapter { rank, rows, .. } = adapter;
    let rank = *rank;
    let mut found = lora::Adapter::open(folder)?;
    for (layer, rows) in layers.iter_mut().zip(rows) {
        let other =
            || Error::invalid_file(folder.display(), format!("is of another adapter: `{}` is missing or of another shape", layer.module));
        if layer.is_norm() {
            let NormValues { weight, bias } = found.norms.remove(&layer.module).ok_or_else(other)?;
            let bias = bias.unwrap_or_default();
            if (weight.len(), bias.len()) != (layer.a.len(), layer.b.len()) {
                return Err(other());
            }
            (layer.a, layer.b) = (weight, bias);
            continue;
        }
        let linear = found.linears.remove(&layer.module).ok_or_else(other)?;
        if (linear.down.len(), linear.up.len(), linear.rank) != (layer.a.len(), layer.b.len(), rank) {
            return Err(other());
        }
        layer.a = linear.down;
        layer.b = for_model(&linear.up, rows, rank);
    }
    match found.linears.keys().chain(found.norms.keys()).next() {
        Some(module) => Err(Error::invalid_file(folder.display(), format!("is of another adapter: it has `{module}`"))),
        None => Ok(()),
    }
}

/// B as transformers has its rows, which GGUF files may have in another order.
fn for_transformers(b: &[f32], rows: &[usize], rank: usize) -> Vec<f32> {
    let mut ordered = vec![0.0; b.len()];
    rows.iter().zip(b.chunks_exact(rank)).for_each(|(row, values)| ordered[row * rank..][..rank].copy_from_slice(values));
    ordered
}

/// The other way round.
fn for_model(b: &[f32], rows: &[usize], rank: usize) -> Vec<f32> {
    rows.iter().flat_map(|row| &b[row * rank..][..rank]).copied().collect()
}

/// Writes what an optimiser keeps of the adapter's matrices.
fn write_means(optimizer: &Optimizer, adapter: &Adapter, checkpoint: &Checkpoint, folder: &Path) -> Result<()> {
    write_layers(adapter, &optimizer.first, checkpoint, &folder.join(FIRST_NAME))?;
    if optimizer.second.is_empty() { Ok(()) } else { write_layers(adapter, &optimizer.second, checkpoint, &folder.join(SECOND_NAME)) }
}

/// Reads what [`write_means`] wrote.
fn read_means(optimizer: &mut Optimizer, adapter: &Adapter, folder: &Path) -> Result<()> {
    read_layers(adapter, &mut optimizer.first, &folder.join(FIRST_NAME))?;
    if optimizer.second.is_empty() {
        return Ok(());
    }
    read_layers(adapter, &mut optimizer.second, &folder.join(SECOND_NAME))
}

/// What an optimiser's folder says besides its tensors.
#[derive(Debug, Serialize, Deserialize)]
struct OptimizerState {
    schema: String,
    optimizer: OptimizerKind,
    n_taken: u64,
}

/// Writes an optimiser into a folder.
pub(super) fn write_optimizer(optimizer: &Optimizer, adapter: &Adapter, checkpoint: &Checkpoint, folder: &Path) -> Result<()> {
    write_means(optimizer, adapter, checkpoint, folder)?;
    let state = OptimizerState { schema: OPTIMIZER_SCHEMA.into(), optimizer: optimizer.kind, n_taken: optimizer.n_taken };
    let text = serde_json::to_string_pretty(&state).map_err(|error| Error::internal(error.to_string()))?;
    platform::write_with_folder(&folder.join(STATE_NAME), text.as_bytes())
}

/// Reads what [`write_optimizer`] wrote; where that fails, `optimizer` stays as it is.
pub(super) fn read_optimizer(optimizer: &mut Optimizer, adapter: &Adapter, folder: &Path) -> Result<()> {
    let path = folder.join(STATE_NAME);
    let state: OptimizerState = read_state(&path)?;
    if (state.schema.as_str(), state.optimizer) != (OPTIMIZER_SCHEMA, optimizer.kind) {
        return Err(Error::invalid_file(path.display(), format!("is of an optimiser of another kind: {:?}", state.optimizer)));
    }
    let mut read = optimizer.clone();
    read_means(&mut read, adapter, folder)?;
    *optimizer = Optimizer { n_taken: state.n_taken, ..read };
    Ok(())
}

fn read_state<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).map_err(|error| Error::io("read", path.display(), error))?;
    serde_json::from_slice(&text).map_err(|error| Error::invalid_file(path.display(), error.to_string()))
}

/// The checkpoints below a folder by their steps, the latest last.
fn checkpoints(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", folder.display(), error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| Error::io("read", folder.display(), error))?.path();
        let step = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        found.extend(step.map(|step| (step, path)));
    }
    found.sort();
    Ok(found)
}

/// The folder of a checkpoint that holds what is trained.
fn values_name(adapter: &Adapter) -> &'static str {
    if adapter.is_whole { WEIGHTS_NAME } else { ADAPTER_NAME }
}

/// Writes a checkpoint below `folder`, then removes the former ones.
pub(super) fn write_checkpoint(
    state: &State,
    adapter: &Adapter,
    optimizer: &Optimizer,
    checkpoint: &Checkpoint,
    folder: &Path,
) -> Result<()> {
    let former = checkpoints(folder)?;
    let target = folder.join(format!("{PREFIX}{:06}", state.progress.n_done));
    let partial = folder.join(format!("{PREFIX}{:06}{PARTIAL}", state.progress.n_done));
    remove(&partial)?;
    write_layers(adapter, &adapter.layers, checkpoint, &partial.join(values_name(adapter)))?;
    write_means(optimizer, adapter, checkpoint, &partial)?;
    let text = serde_json::to_string_pretty(state).map_err(|error| Error::internal(error.to_string()))?;
    platform::write_with_folder(&partial.join(STATE_NAME), text.as_bytes())?;
    remove(&target)?;
    fs::rename(&partial, &target).map_err(|error| Error::io("rename", partial.display(), error))?;
    former.iter().filter(|(_, path)| *path != target).try_for_each(|(_, path)| remove(path))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", folder.display(), error)),
        _ => Ok(()),
    }
}

/// Reads the latest checkpoint below `folder`, if there is one; `own` is what this run would write.
pub(super) fn read_checkpoint(own: &State, adapter: &mut Adapter, optimizer: &mut Optimizer, folder: &Path) -> Result<Option<Progress>> {
    let Some((_, latest)) = checkpoints(folder)?.pop() else { return Ok(None) };
    let path = latest.join(STATE_NAME);
    let state: State = read_state(&path)?;
    let differences = own.differences(&state);
    if !differences.is_empty() {
        let reason = format!("is of a run with other options: {}; give the same, or begin anew in another folder", differences.join(", "));
        return Err(Error::invalid_file(path.display(), reason));
    }
    read_adapter(adapter, &latest.join(values_name(adapter)))?;
    read_means(optimizer, adapter, &latest)?;
    optimizer.n_taken = state.n_taken;
    Ok(Some(state.progress))
}
