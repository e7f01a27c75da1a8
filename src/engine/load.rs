//! From a plan to an engine: every device that computes is opened under its own budget, and weights are loaded to where the plan stores
//! them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::device::Device;
use crate::engine::draft_model::Timings;
use crate::engine::{Engine, LoadedModel, ModelText, Prepared};
use crate::error::{Error, Result, Setting};
use crate::gpu::Gpu;
use crate::stream::{self, CachedPositions, DeviceExecutor, Executors, GpuExecutor, HostExecutor, Store, Trace, WarmExperts};
use crate::units::Bytes;

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes that are where they belong.
    pub done: Bytes,
    /// Bytes in all.
    pub total: Bytes,
}

impl Prepared {
    /// Loads the weights that the plan keeps in memory and starts the rings. `progress` is called from several threads.
    ///
    /// # Errors
    /// Those of reading, of the adapter, and of a tokenizer that is there but broken.
    pub async fn load(mut self, progress: &(dyn Fn(LoadProgress) + Sync)) -> Result<Engine> {
        if !self.means.is_here {
            let reason = "the plan is for a machine that is described; leave the description out to run here".into();
            return Err(Error::InvalidArgument { option: Setting::Machine.into(), reason });
        }
        let text = self.take_text()?;
        let warm = WarmExperts::of_plan(&self.plan, &self.model, self.options.expert_profile.as_deref());
        let to_warm: Bytes = warm.values().map(|warm| warm.size(&self.plan, &self.model)).sum();
        let total = Store::bytes_to_load(&self.checkpoint, &self.model, &self.plan) + to_warm;
        let done = AtomicU64::new(0);
        let step = |bytes: Bytes| {
            let done = done.fetch_add(bytes.0, Ordering::Relaxed) + bytes.0;
            progress(LoadProgress { done: Bytes(done), total });
        };
        let trace = Trace::default();
        let store = Arc::new(Store::load(Arc::clone(&self.checkpoint), &self.model, Arc::clone(&self.plan), &step)?);
        let lora_scales = self.given_lora_scales();
        store.set_lora_scales(lora_scales.clone());
        let mut devices = Vec::new();
        for device in self.plan.executors() {
            devices.push((device, self.open(device, &store, &trace, &step).await?));
        }
        let mut executors = Executors::new(Arc::clone(&self.plan), Arc::clone(&store), trace.clone(), devices);
        stream::prologue(&self.schedule, &mut executors)?;
        executors.warm_experts(&warm, &step)?;
        let cached = CachedPositions::new(self.plan.n_seqs, self.model.is_recurrent());
        let model = Arc::new(LoadedModel { prepared: self, trace, text, decode_secs: OnceLock::new(), later_rows: None });
        let known_halves = HashMap::new();
        let timings = Timings::default();
        Ok(Engine { model, executors, cached, known_halves, store, lora_scales, draft: None, timings, n_since_adapted: 0, later: None })
    }

    /// The model's tokenizer, chat template and generation settings, which are read once: here, or when the model is loaded.
    ///
    /// # Errors
    /// Those of files that are there but broken, or must be there.
    pub fn text(&mut self) -> Result<&ModelText> {
        let text = self.take_text()?;
        Ok(self.means.text.insert(text))
    }

    pub(crate) fn take_text(&mut self) -> Result<ModelText> {
        match self.means.text.take() {
            Some(text) => Ok(text),
            None => ModelText::open(&self.checkpoint, self.means.text_files),
        }
    }

    /// What each sequence multiplies LoRA adapters by unless it chooses; nothing where none does.
    fn given_lora_scales(&self) -> Vec<Vec<f32>> {
        let n_seqs = if self.model.lora_scales.is_some() { self.plan.n_seqs } else { 0 };
        vec![self.loras.iter().map(|lora| lora.scale).collect(); n_seqs]
    }

    /// Checks what a sequence is to multiply LoRA adapters by: a number for each, where sequences choose, else nothing.
    pub(crate) fn check_lora_scales(&self, scales: &[f32]) -> Result<()> {
        let n_adapters = if self.model.lora_scales.is_some() { self.loras.len() } else { 0 };
        if scales.len() == n_adapters && scales.iter().all(|scale| scale.is_finite()) {
            return Ok(());
        }
        let reason = format!("must be {n_adapters} numbers, one for each adapter that sequences choose");
        Err(Error::InvalidArgument { option: "scales of LoRA adapters".into(), reason })
    }

    /// [`Error::ContextFull`] where the context has fewer than `needed` positions.
    pub(crate) fn check_room(&self, needed: usize) -> Result<()> {
        let available = self.plan.ctx_size;
        if needed > available { Err(Error::ContextFull { needed, available }) } else { Ok(()) }
    }

    /// Opens `device` under its own budget and loads what is resident there.
    async fn open(&self, device: Device, store: &Arc<Store>, trace: &Trace, progress: &(dyn Fn(Bytes) + Sync)) -> Result<DeviceExecutor> {
        let (plan, store, trace) = (Arc::clone(&self.plan), Arc::clone(store), trace.clone());
        let Some(found) = self.adapter(device) else {
            return Ok(DeviceExecutor::Host(Box::new(HostExecutor::new(&self.model, plan, store, trace)?)));
        };
        let budget = plan.device(device).and_then(|device| device.budget).unwrap_or_default();
        let gpu = Gpu::open(found, budget, self.means.limits).await?;
        gpu.deadline.set_timeout(self.means.gpu_timeout);
        Ok(DeviceExecutor::Gpu(Box::new(GpuExecutor::new(gpu, device, &self.model, plan, store, trace, progress).await?)))
    }
}
