//! What training takes of devices, and how long, before anything is loaded.

use serde::Serialize;

use super::adapter::Adapter;
use super::gpu::{GpuPlan, MostTokens, mask_bytes};
use super::pass;
use super::trainer::{TrainOptions, bytes_needed, check, no_room};
use crate::device::{Device, DeviceChoice, DeviceSpec, Origin};
use crate::engine::{EngineBuilder, Prepared};
use crate::error::{Error, Result};
use crate::gpu::AdapterFound;
use crate::plan::Workload;
use crate::units::Bytes;

/// How often a batch passes through the model, counted in forwards: forward, forward once more unit by unit, and back, whose products are as large.
const FORWARDS: f64 = 3.0;

/// What training takes.
#[derive(Debug, Clone, Serialize)]
pub struct TrainingPlan {
    /// Tokens of a batch, at most.
    pub n_tokens: usize,
    /// Values that are trained.
    pub n_values: usize,
    /// The device that computes first, then host memory where that is another one.
    pub devices: Vec<TrainingDevice>,
    /// Bytes that are read from disk at each pass.
    pub on_disk: Bytes,
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
    /// All else: values and gradients, what is trained with the optimiser's state, slots.
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
}

impl Opening {
    /// Reads the model's headers and plans.
    ///
    /// # Errors
    /// As of [`super::Trainer::open`], but for those of reading weights.
    pub(super) async fn new(builder: EngineBuilder, options: &TrainOptions) -> Result<Opening> {
        check(options)?;
        let builder = builder.ctx_size(options.seq_len);
        let chosen = builder.clone().prepare().await?;
        pass::check(&chosen.model, &chosen.checkpoint.path)?;
        let adapter = Adapter::new(&chosen.checkpoint, &chosen.model, &options.lora, options.seed)?;
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
        let host_bytes = bytes_needed(&chosen.model, options, adapter.n_values(), gpu.is_none()) + masks;
        // What training needs besides is taken off the budget of the plan; a GPU that shares the host's memory has its part of it already.
        let mut host = builder.device(DeviceChoice::Cpu);
        if let Some(budget) = chosen.plan.device(Device::Cpu).and_then(|device| device.budget) {
            let Some(rest) = budget.0.checked_sub(host_bytes.0) else { return Err(no_room(host_bytes, budget)) };
            host = host.max_memory(Device::Cpu, Bytes(rest));
        }
        let prepared = host.prepare().await?;
        if options.seq_len > prepared.model.config.context_length {
            let reason = format!("is {}; the model was made for {} positions", options.seq_len, prepared.model.config.context_length);
            return Err(Error::InvalidArgument { option: "the length of sequences".into(), reason });
        }
        let secs = if gpu.is_some() { prediction.secs } else { prepared.predict(workload).secs };
        Ok(Opening { prepared, adapter, gpu, found, secs: secs * FORWARDS, rates: prediction.rates, host_bytes })
    }

    /// What it takes.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] of a GPU.
    pub(super) fn plan(&self, options: &TrainOptions) -> Result<TrainingPlan> {
        let Opening { prepared, adapter, gpu, .. } = self;
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
            let chunks = 0..prepared.plan.chunks.len();
            chunks.filter(|chunk| prepared.plan.stored_on(*chunk) == on).map(|chunk| prepared.plan.chunks[chunk].stored_bytes()).sum()
        };
        let (weights, on_disk) = (stored(Device::Cpu), stored(Device::Disk));
        let budget = prepared.plan.device(Device::Cpu).and_then(|device| device.budget).map(|rest| rest + self.host_bytes);
        let streamed = if gpu.is_none() { on_disk } else { Bytes::ZERO };
        devices.push(TrainingDevice { device: Device::Cpu, budget, weights, training: self.host_bytes, streamed });
        let tokens_per_sec = n_tokens as f64 / self.secs.max(1e-9);
        Ok(TrainingPlan { n_tokens, n_values: adapter.n_values(), devices, on_disk, secs: self.secs, tokens_per_sec, rates: self.rates })
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
        for TrainingDevice { device, budget, weights, training, streamed } in &self.devices {
            let of = budget.map_or(String::new(), |budget| format!(" of {budget}"));
            text.push_str(&format!(
                "  {:<11}  {}{of}: {weights} of weights, {training} of values, adapter and gradients",
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
        let rates = if self.rates == Origin::Measured { "" } else { ", by rates that were not measured" };
        text.push_str(&format!("  {:<11}  {:.1} s a batch, {:.1} tokens/s{rates}\n", "predicted", self.secs, self.tokens_per_sec));
        text
    }
}
