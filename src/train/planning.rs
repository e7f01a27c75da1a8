//! What training takes of devices, and how long, before anything is loaded.

use std::sync::Arc;

use serde::Serialize;

use super::adapter::Adapter;
use super::gpu::{GpuPlan, MostTokens, mask_bytes};
use super::pass;
use super::trainer::{TrainOptions, bytes_needed, check, no_room};
use super::whole;
use crate::device::{Device, DeviceChoice, DeviceSpec, Origin};
use crate::engine::{EngineBuilder, Prepared};
use crate::error::{Error, Result, Setting};
use crate::gpu::AdapterFound;
use crate::model::UnitKind;
use crate::plan::{Chunk, Workload};
use crate::units::Bytes;

/// How often a batch passes through the model, counted in forwards: forward, forward once more unit by unit, and back, whose products are as large.
const FORWARDS: f64 = 3.0;
/// The same where gradients of all weights are computed, which are products as large again.
const FULL_FORWARDS: f64 = 4.0;

/// What training takes.
#[derive(Debug, Clone, Serialize)]
pub struct TrainingPlan {
    /// Tokens of a batch, at most.
    pub n_tokens: usize,
    /// Values that are trained.
    pub n_values: usize,
    /// Whether they are the model's own.
    pub full: bool,
    /// The device that computes first, then host memory where that is another one.
    pub devices: Vec<TrainingDevice>,
    /// Bytes that are read from disk at each pass.
    pub on_disk: Bytes,
    /// Bytes of what units have read that wait on disk for their way back, of a full batch.
    pub kept_on_disk: Bytes,
    /// Predicted seconds of a full batch: three forwards, as the plan for answers has them.
    pub secs: f64,
    /// Tokens that are trained on in a second.
    pub tokens_per_sec: f64,
    /// Where the rates of the prediction come from.
    pub rates: Origin,
}

/// What training takes of one device.
#[derive(Debug, Clone, Serialize)]
pub struct TrainingDevice {
    /// Which.
    pub device: Device,
    /// What it may take.
    pub budget: Option<Bytes>,
    /// Frozen weights that stay there.
    pub weights: Bytes,
    /// All else: values and gradients, what is trained, in F32, with the optimiser's state, slots.
    pub training: Bytes,
    /// Frozen weights that pass through it.
    pub streamed: Bytes,
}

/// A model that is ready to be opened for training.
pub(super) struct Opening {
    /// The plan of the host's memory.
    pub(super) prepared: Prepared,
    pub(super) adapter: Adapter,
    /// The GPU that computes, if one does.
    pub(super) gpu: Option<(DeviceSpec, Bytes)>,
    /// The same, where it is in this machine.
    pub(super) found: Option<AdapterFound>,
    secs: f64,
    rates: Origin,
    /// What training takes of host memory besides weights.
    host_bytes: Bytes,
    /// Whether what units have read goes to disk.
    pub(super) spills: bool,
}

impl Opening {
    /// Reads the model's headers and plans.
    ///
    /// # Errors
    /// As of [`super::Trainer::open`], but for those of reading weights.
    pub(super) async fn new(builder: EngineBuilder, options: &TrainOptions) -> Result<Opening> {
        check(options)?;
        let builder = builder.ctx_size(options.seq_len).matrices_in(options.mixed_precision.dtype());
        let builder = if options.full { on_host(builder)? } else { builder };
        let chosen = builder.clone().prepare().await?;
        pass::check(&chosen.model, &chosen.checkpoint.path)?;
        let adapter = match options.full {
            true => whole::adapter(&chosen.checkpoint, &chosen.model, options)?,
            false => Adapter::new(&chosen.checkpoint, &chosen.model, &options.lora, options.seed)?,
        };
        let gpu = gpu_of(&chosen);
        let found = gpu.as_ref().and_then(|(spec, _)| chosen.adapter(spec.device)).cloned();
        let workload = Workload {
            n_tokens: options.batch * options.seq_len,
            n_logit_rows: options.batch * options.seq_len,
            position: options.seq_len.div_ceil(2),
            n_seqs: options.batch,
        };
        let prediction = chosen.predict(workload);
        let masks = if gpu.is_some() { mask_bytes(&chosen.model, &adapter, MostTokens(workload.n_tokens)) } else { Bytes::ZERO };
        let needed = |spills| bytes_needed(&chosen.model, options, adapter.n_values(), gpu.is_none(), spills) + masks;
        let budget = chosen.plan.device(Device::Cpu).and_then(|device| device.budget);
        let in_memory = beside(builder.clone(), budget, needed(false), options.full).await;
        let spills = options.spill.is_some() && matches!(in_memory, Err(Error::DoesNotFit { .. }));
        let host_bytes = needed(spills);
        let mut prepared = if spills { beside(builder, budget, host_bytes, options.full).await? } else { in_memory? };
        if options.full {
            leave_on_disk(&mut prepared, &adapter);
        }
        if options.seq_len > prepared.model.config.context_length {
            let reason = format!("is {}; the model was made for {} positions", options.seq_len, prepared.model.config.context_length);
            return Err(Error::InvalidArgument { option: "the length of sequences".into(), reason });
        }
        let secs = match (options.full, gpu.is_some()) {
            // Of weights that are trained nothing comes from disk.
            (true, _) => prediction.secs * FULL_FORWARDS,
            (_, true) => prediction.secs * FORWARDS,
            (_, false) => prepared.predict(workload).secs * FORWARDS,
        };
        let rates = prediction.rates;
        Ok(Opening { prepared, adapter, gpu, found, secs, rates, host_bytes, spills })
    }

    /// What it takes.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] of a GPU.
    pub(super) fn plan(&self, options: &TrainOptions) -> Result<TrainingPlan> {
        let Opening { prepared, adapter, gpu, .. } = self;
        let kept = options.batch * options.seq_len * prepared.model.units.len() * prepared.model.config.hidden_size * 4;
        let kept_on_disk = Bytes(if self.spills { kept as u64 } else { 0 });
        let n_tokens = options.batch * options.seq_len;
        let mut devices = Vec::new();
        if let Some((spec, budget)) = gpu {
            let max_binding = spec.limits.map_or(Bytes(128 << 20), |limits| limits.max_binding_bytes);
            let model = (&prepared.model, &prepared.checkpoint.catalog);
            let plan = GpuPlan::new(&spec.device.to_string(), [*budget, max_binding], model, adapter, MostTokens(n_tokens))?;
            let [weights, streamed] = plan.weights();
            let training = plan.peak().saturating_sub(weights);
            devices.push(TrainingDevice { device: spec.device, budget: Some(*budget), weights, training, streamed });
        }
        let stored = |on: Device| -> Bytes {
            let chunks = prepared.plan.chunks.iter().filter(|chunk| !adapter.is_all_of(chunk));
            chunks.filter(|chunk| chunk.stored_on == on).map(Chunk::stored_bytes).sum()
        };
        let (weights, on_disk) = (stored(Device::Cpu), stored(Device::Disk));
        let budget = prepared.plan.device(Device::Cpu).and_then(|device| device.budget).map(|rest| rest + self.host_bytes);
        let streamed = if gpu.is_none() { on_disk } else { Bytes::ZERO };
        devices.push(TrainingDevice { device: Device::Cpu, budget, weights, training: self.host_bytes, streamed });
        let tokens_per_sec = n_tokens as f64 / self.secs.max(1e-9);
        let (n_values, full) = (adapter.n_values(), options.full);
        Ok(TrainingPlan { n_tokens, n_values, full, devices, on_disk, kept_on_disk, secs: self.secs, tokens_per_sec, rates: self.rates })
    }
}

/// The plan of a host whose `budget` training takes `host_bytes` of; a GPU that shares the host's memory has its part of it already.
async fn beside(builder: EngineBuilder, budget: Option<Bytes>, host_bytes: Bytes, full: bool) -> Result<Prepared> {
    let mut host = builder.device(DeviceChoice::Cpu);
    if let Some(budget) = budget {
        let Some(rest) = budget.0.checked_sub(host_bytes.0) else { return Err(no_room(host_bytes, budget, full)) };
        host = host.max_memory(Device::Cpu, Bytes(rest));
    }
    host.prepare().await
}

/// The same on the host, where the model's own weights are trained.
fn on_host(builder: EngineBuilder) -> Result<EngineBuilder> {
    match builder.device_choice() {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(builder.device(DeviceChoice::Cpu)),
        other => {
            let reason = format!("is {other}; the model's own weights are trained on the host alone: take cpu, or train an adapter there");
            Err(Error::InvalidArgument { option: Setting::Device.into(), reason })
        }
    }
}

/// What is trained is not loaded a second time, as it is stored.
fn leave_on_disk(prepared: &mut Prepared, adapter: &Adapter) {
    let embedding = prepared.model.embedding();
    let plan = Arc::make_mut(&mut prepared.plan);
    plan.chunks.iter_mut().filter(|chunk| adapter.is_all_of(chunk)).for_each(|chunk| chunk.stored_on = Device::Disk);
    if embedding.is_some_and(|table| adapter.trains(table)) {
        plan.units.iter_mut().filter(|unit| unit.kind == UnitKind::Embedding).for_each(|unit| unit.stored_on = Device::Disk);
    }
}

/// The first GPU that the plan computes with, and its budget.
fn gpu_of(prepared: &Prepared) -> Option<(DeviceSpec, Bytes)> {
    let device = prepared.plan.executors().into_iter().find(|device| matches!(device, Device::Gpu(_)))?;
    let spec = prepared.devices.iter().find(|spec| spec.device == device)?;
    Some((spec.clone(), prepared.plan.device(device)?.budget?))
}

impl TrainingPlan {
    /// As text, a line for each device.
    pub fn report(&self) -> String {
        let mut text = format!("training of {} values, batches of {} tokens at most\n", self.n_values, self.n_tokens);
        let [frozen, what] = if self.full { ["frozen ", "trained weights"] } else { ["", "adapter"] };
        for TrainingDevice { device, budget, weights, training, streamed } in &self.devices {
            let of = budget.map_or(String::new(), |budget| format!(" of {budget}"));
            text.push_str(&format!(
                "  {:<11}  {}{of}: {weights} of {frozen}weights, {training} of values, {what} and gradients",
                device.to_string(),
                *weights + *training
            ));
            if *streamed > Bytes::ZERO {
                text.push_str(&format!("; {streamed} stream through it"));
            }
            text.push('\n');
        }
        if self.on_disk > Bytes::ZERO {
            text.push_str(&format!("  {:<11}  {} are read at each pass\n", "disk", self.on_disk));
        }
        if self.kept_on_disk > Bytes::ZERO {
            let kept = self.kept_on_disk;
            text.push_str(&format!("  {:<11}  {kept} of what units have read wait there in each batch, in a temporary file\n", "disk"));
        }
        let rates = if self.rates == Origin::Measured { "" } else { ", by rates that were not measured" };
        text.push_str(&format!("  {:<11}  {:.1} s a batch, {:.1} tokens/s{rates}\n", "predicted", self.secs, self.tokens_per_sec));
        text
    }
}
