//! The public API: open a model, see its plan, run forwards. Prints nothing and never blocks.

mod draft_model;
mod drafts;
mod embed;
mod experts;
mod inspection;
mod later;
mod learn;
mod load;
mod prepare;
mod sequence_file;
mod split;
mod text;

use std::collections::HashMap;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::device::Device;
use crate::error::{Error, Result, Setting};
use crate::gpu::ObjectCounts;
use crate::model::{Checkpoint, ModelConfig};
use crate::plan::{ForwardSize, Plan, Workload};
use crate::platform::clock::Instant;
use crate::session::Session;
use crate::stream::{self, Batch, CachedPositions, Cancelled, Executors, Halves, KvBlocks, Logits, Store, Trace};
use crate::text::{ChatMessage, ChatTemplate, ModelDefaults, TemplateInput, Tokenizer, Written};
use crate::units::Bytes;
pub(crate) use draft_model::DraftWish;
use draft_model::{DraftModel, Timings};
pub use embed::normalized;
pub use inspection::{AtDType, Inspection, Named, Needs};
pub use later::{LaterLogits, LaterStages, StageRequest, StageRequests, batch_of_hidden, requests_to_later_stages};
pub use learn::Observed;
pub use load::LoadProgress;
use prepare::ModelSource;
pub use prepare::{EngineBuilder, Prepared, TextFiles};
pub use split::{Link, Machine, Split, StagePlan, split};
pub use text::ModelText;

/// A loaded model, ready to compute.
pub struct Engine {
    executors: Executors,
    cached: CachedPositions,
    /// Whether batches of these workloads, whole and in halves, are computed in halves.
    known_halves: HashMap<[Workload; 3], bool>,
    store: Arc<Store>,
    /// What each sequence multiplies LoRA adapters by, where sequences choose.
    lora_scales: Vec<Vec<f32>>,
    /// What drafts for it.
    draft: Option<Box<DraftModel>>,
    /// Of forwards of few tokens, where something drafts.
    timings: Timings,
    /// Forwards of few tokens since the expert caches were last looked at.
    n_since_adapted: usize,
    /// What computes the layers behind its own, where it has the first stage of a model.
    later: Option<Box<dyn LaterStages>>,
    /// Dropped last: who sees it gone knows that the memory is given back.
    model: Arc<LoadedModel>,
}

/// Shapes of batches whose halves are known: more are asked for anew.
const MAX_KNOWN_HALVES: usize = 256;

/// What is known of a loaded model: plan, texts, trace. [`Engine`] and its handles dereference to it.
pub struct LoadedModel {
    prepared: Prepared,
    trace: Trace,
    text: ModelText,
    /// Predicted once it is asked for.
    decode_secs: OnceLock<Vec<f64>>,
    /// Whether later stages give the logits, and of how many positions at once.
    later_rows: Option<usize>,
}

impl Deref for Engine {
    type Target = LoadedModel;

    fn deref(&self) -> &LoadedModel {
        &self.model
    }
}

/// The peak memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct MemoryUse {
    /// Which device.
    pub device: Device,
    /// Most bytes that were in use at a time.
    pub peak: Bytes,
    /// What the plan promised not to exceed.
    pub budget: Option<Bytes>,
}

impl Engine {
    /// Begins to describe how `model` (a folder or a `.gguf` file) shall be opened.
    pub fn builder(model: impl AsRef<Path>) -> EngineBuilder {
        EngineBuilder::new(ModelSource::Path(model.as_ref().to_owned()))
    }

    /// As [`Engine::builder`], for a model whose headers were read already, such as one [from
    /// sources](Checkpoint::from_sources).
    pub fn builder_of(checkpoint: Arc<Checkpoint>) -> EngineBuilder {
        EngineBuilder::new(ModelSource::Open(checkpoint))
    }

    /// What is known of the model, for callers that outlive a borrow of the engine.
    pub fn model(&self) -> Arc<LoadedModel> {
        Arc::clone(&self.model)
    }

    /// A new sequence. There is one KV cache, so a session has the engine to itself.
    pub fn session(&mut self) -> Session<'_> {
        self.resume(Vec::new())
    }

    /// The sequence of an earlier session, whose [`Session::tokens`] these are: for those who cannot keep the session itself.
    /// No other session may have computed in between, or the cache holds what that one computed.
    pub fn resume(&mut self, tokens: Vec<u32>) -> Session<'_> {
        Session::resumed(self, 0, tokens)
    }

    /// The sequence `sequence` of the plan's, from 0 on, whose tokens in the cache are these.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the plan provides for fewer sequences.
    pub fn session_of(&mut self, sequence: u32, tokens: Vec<u32>) -> Result<Session<'_>> {
        let n_seqs = self.model.prepared.plan.n_seqs;
        if sequence as usize >= n_seqs {
            let reason = format!("there is no sequence {sequence}, the plan provides for {n_seqs}");
            return Err(Error::InvalidArgument { option: Setting::NSeqs.into(), reason });
        }
        Ok(Session::resumed(self, sequence, tokens))
    }

    /// Runs one forward: the logits of the positions that the batch asks for, in its order. One that failed, or that was dropped
    /// before its end, leaves the engine usable: the positions of its batch count as not cached.
    ///
    /// # Errors
    /// [`Error::TokenOutOfVocabulary`], [`Error::ContextFull`], [`Error::InvalidArgument`] for a batch larger than planned, or one whose
    /// earlier positions are not cached; [`Error::KvCacheFull`]; [`Error::FileChanged`], [`Error::Io`] and [`Error::Gpu`] where a device fails;
    /// [`Error::DeviceTimeout`] where an adapter does not answer ([`EngineBuilder::gpu_timeout`]); after [`Error::DeviceLost`] the model
    /// must be loaded again.
    pub async fn forward(&mut self, batch: &Batch) -> Result<Vec<Logits>> {
        self.forward_until(batch, &|| false).await
    }

    /// As [`Engine::forward`]; it ends before its next step once `cancelled` is true.
    ///
    /// # Errors
    /// As of [`Engine::forward`]; [`Error::Interrupted`].
    pub async fn forward_unless(&mut self, batch: &Batch, cancelled: &AtomicBool) -> Result<Vec<Logits>> {
        self.forward_until(batch, &|| cancelled.load(Ordering::Relaxed)).await
    }

    /// As [`Engine::forward_unless`], with any condition.
    pub(crate) async fn forward_until(&mut self, batch: &Batch, cancelled: &Cancelled<'_>) -> Result<Vec<Logits>> {
        self.check_begins_with_tokens()?;
        self.forward_from(batch, None, cancelled).await
    }

    /// The logits of a batch, or what a stage gives of it. It begins with the batch's tokens, or with what is `given` for them.
    async fn forward_from(&mut self, batch: &Batch, given: Option<&[f32]>, cancelled: &Cancelled<'_>) -> Result<Vec<Logits>> {
        batch.check(self.config(), self.plan().ctx_size, self.plan().n_seqs, self.forward_size())?;
        self.cached.check(batch)?;
        if self.executors.is_midway() {
            let recovered = stream::recover(&self.model.prepared.schedule, &mut self.executors).await;
            recovered.map_err(|error| self.executors.cause_of(error))?;
        }
        self.adapt_experts(batch.workload())?;
        self.cached.begin(batch);
        for (sequence, positions) in batch.written() {
            self.executors.make_room(sequence, positions).map_err(|error| self.executors.cause_of(error))?;
        }
        let begin = Instant::now();
        let logits = match self.later {
            None => self.compute(batch, given, cancelled).await?,
            Some(_) => self.forward_through(batch, given, cancelled).await?,
        };
        self.cached.end(batch);
        if self.draft.is_some() {
            self.timings.note(batch.tokens.len(), begin.elapsed().as_secs_f64());
        }
        Ok(logits)
    }

    /// What its own layers make of a batch.
    async fn compute(&mut self, batch: &Batch, given: Option<&[f32]>, cancelled: &Cancelled<'_>) -> Result<Vec<Logits>> {
        let halves = if given.is_none() { self.halves_that_pay(batch) } else { None };
        let logits = stream::forward(&self.model.prepared.schedule, &mut self.executors, batch, given, halves, cancelled).await;
        logits.map_err(|error| self.executors.cause_of(error))
    }

    /// Gives sequence `to` the first `n_tokens` positions of sequence `from` in place of its own: what two texts begin with is computed
    /// once, and kept once, in whole blocks of positions.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where so many positions of `from` are not cached or there is no such sequence, and of a model with
    /// [recurrent states](crate::model::Model::is_recurrent), which are those after the last token alone; [`Error::Gpu`] and
    /// [`Error::DeviceLost`] where a device fails.
    pub fn copy_sequence(&mut self, from: u32, to: u32, n_tokens: usize) -> Result<()> {
        let n_seqs = self.plan().n_seqs;
        let invalid = |reason: String| Err(Error::InvalidArgument { option: Setting::NSeqs.into(), reason });
        if let Some(sequence) = [from, to].into_iter().find(|sequence| *sequence as usize >= n_seqs) {
            return invalid(format!("there is no sequence {sequence}, the plan provides for {n_seqs}"));
        }
        self.model
            .can_copy_sequences()
            .map_err(|reason| Error::InvalidArgument { option: Setting::NSeqs.into(), reason: reason.into() })?;
        if self.lora_scales(from) != self.lora_scales(to) {
            return invalid(format!("sequences {from} and {to} multiply LoRA adapters by other numbers"));
        }
        let n_cached = self.cached.n_reusable(from, n_tokens);
        if n_cached < n_tokens {
            return invalid(format!("{n_tokens} positions of sequence {from} were to be copied, {n_cached} are cached"));
        }
        if from == to {
            return Ok(());
        }
        self.cached.set(to, 0);
        self.executors.share_positions([from, to], n_tokens).map_err(|error| self.executors.cause_of(error))?;
        self.cached.set(to, n_tokens);
        Ok(())
    }

    /// Forgets what is cached of a sequence: others get its room in the KV cache.
    pub fn clear_sequence(&mut self, sequence: u32) {
        self.cached.set(sequence, 0);
        self.executors.truncate_sequence(sequence, 0);
    }

    /// Gives back blocks of the KV cache behind the first `n_tokens` positions of a sequence, which nobody goes on with.
    pub fn give_back_blocks(&mut self, sequence: u32, n_tokens: usize) {
        self.executors.truncate_sequence(sequence, n_tokens);
    }

    /// Which blocks of the KV cache each sequence has.
    pub fn kv_blocks(&self) -> &KvBlocks {
        self.executors.kv_blocks()
    }

    /// What a sequence multiplies each LoRA adapter by; empty where sequences choose nothing.
    pub fn lora_scales(&self, sequence: u32) -> &[f32] {
        self.lora_scales.get(sequence as usize).map(Vec::as_slice).unwrap_or_default()
    }

    /// Lets a sequence multiply each LoRA adapter by these, in the order in which they were given
    /// ([`EngineBuilder::lora_scales`]). Where they differ from those before, what was cached of it is computed again; whether they did.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where sequences choose nothing, of numbers of another length or that are none, and of a sequence that
    /// is not there.
    pub fn set_lora_scales(&mut self, sequence: u32, scales: &[f32]) -> Result<bool> {
        self.model.prepared.check_lora_scales(scales)?;
        let n_seqs = self.lora_scales.len();
        let Some(own) = self.lora_scales.get_mut(sequence as usize) else {
            let reason = format!("there is no sequence {sequence}, the plan provides for {n_seqs}");
            return Err(Error::InvalidArgument { option: "scales of LoRA adapters".into(), reason });
        };
        if own == scales {
            return Ok(false);
        }
        own.clear();
        own.extend_from_slice(scales);
        self.cached.set(sequence, 0);
        self.store.set_lora_scales(self.lora_scales.clone());
        Ok(true)
    }

    /// How many of the first `n_tokens` positions of a sequence need not be computed again: those that are cached; of a model with
    /// [recurrent states](crate::model::Model::is_recurrent) all, or none where its states are of another position.
    pub(crate) fn n_reusable(&self, sequence: u32, n_tokens: usize) -> usize {
        self.cached.n_reusable(sequence, n_tokens)
    }

    /// The halves of a batch, where it should be computed in halves: as the plan's predictions say, which are asked once for each shape.
    fn halves_that_pay(&mut self, batch: &Batch) -> Option<Halves> {
        let prepared = &self.model.prepared;
        if prepared.schedule.in_halves.is_empty() {
            return None;
        }
        let halves = Halves::of(batch)?;
        let (whole, parts) = (batch.workload(), halves.workloads());
        let rounded = |workload: Workload| Workload { position: workload.position.next_power_of_two(), ..workload };
        if self.known_halves.len() >= MAX_KNOWN_HALVES {
            self.known_halves.clear();
        }
        let known = self.known_halves.entry([whole, parts[0], parts[1]].map(rounded));
        known.or_insert_with(|| prepared.halves_pay(whole, parts)).then_some(halves)
    }

    /// How long an adapter may finish nothing before a wait on it ends in [`Error::DeviceTimeout`], from now on.
    pub fn set_gpu_timeout(&self, timeout: Duration) {
        self.executors.gpus().for_each(|(_, gpu)| gpu.deadline.set_timeout(timeout));
    }

    /// A function that takes the adapter `device` away, as a driver's reset does, for tests.
    #[doc(hidden)]
    pub fn loss_of(&self, device: Device) -> Option<impl FnOnce() + Send + 'static> {
        let lost = self.executors.gpus().find(|(own, _)| *own == device).map(|(_, gpu)| gpu.device.clone());
        lost.map(|lost| move || lost.destroy())
    }

    /// Bind groups and pipelines that were made so far for each adapter that computes.
    pub fn object_counts(&self) -> Vec<(Device, ObjectCounts)> {
        self.executors.devices().iter().filter_map(|(device, executor)| Some((*device, executor.object_counts()?))).collect()
    }

    /// Peak bytes and budget of each device, those that compute first. On adapters every allocation is counted, on the host what the store and
    /// the executor have allocated.
    pub fn memory_use(&self) -> Vec<MemoryUse> {
        let plan = &self.model.prepared.plan;
        let of = |device: Device, peak: Bytes| MemoryUse { device, peak, budget: plan.device(device).and_then(|device| device.budget) };
        let beside: Bytes = self.executors.devices().iter().map(|(_, executor)| executor.peak_on_host()).sum();
        let weights_on_host = |device: Device| if device == Device::Cpu { self.store.host_bytes() + beside } else { Bytes::ZERO };
        let mut list: Vec<MemoryUse> =
            self.executors.devices().iter().map(|(device, executor)| of(*device, executor.peak() + weights_on_host(*device))).collect();
        if list.iter().all(|memory| memory.device != Device::Cpu) {
            list.push(of(Device::Cpu, weights_on_host(Device::Cpu)));
        }
        list
    }
}

impl LoadedModel {
    /// Where every weight is stored and who computes with it.
    pub fn plan(&self) -> &Plan {
        &self.prepared.plan
    }

    /// What was known before loading: model, devices, schedule.
    pub fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    /// What one forward may ask for at most.
    pub fn forward_size(&self) -> ForwardSize {
        let own = self.prepared.plan.forward;
        ForwardSize { n_logit_rows: self.later_rows.unwrap_or(own.n_logit_rows), ..own }
    }

    /// Whether its forwards give logits: its own, or those of later stages.
    pub fn gives_logits(&self) -> bool {
        self.later_rows.is_some() || self.prepared.model.has_head()
    }

    /// Whether what is cached of one sequence can be given to another, or why not.
    pub(crate) fn can_copy_sequences(&self) -> std::result::Result<(), &'static str> {
        match self.later_rows {
            _ if self.prepared.model.is_recurrent() => Err("the model has recurrent states, which cannot be copied up to a position"),
            Some(_) => Err("other machines keep a part of what is cached, which is not copied"),
            None => Ok(()),
        }
    }

    /// The model's sizes and settings.
    pub fn config(&self) -> &ModelConfig {
        &self.prepared.model.config
    }

    /// What makes tokens of texts.
    pub fn text(&self) -> &ModelText {
        &self.text
    }

    /// The model's tokenizer, unless it was skipped.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.text.tokenizer()
    }

    /// The model's chat template, if its files have one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.text.chat_template()
    }

    /// The tokens of `text` as it is, with the token before it that the model expects at a beginning.
    ///
    /// # Errors
    /// As of [`ModelText::encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.text.encode(text, Written::Parsed)
    }

    /// The tokens of a conversation in the model's chat template, up to where the answer begins.
    ///
    /// # Errors
    /// As of [`ModelText::encode_chat`].
    pub fn encode_chat(&self, messages: &[ChatMessage]) -> Result<Vec<u32>> {
        self.encode_chat_with(messages, &TemplateInput::default(), Written::Parsed)
    }

    /// As [`LoadedModel::encode_chat`], with tools and whatever else the template may know, and with a choice of what becomes of special
    /// tokens that the texts spell out.
    ///
    /// # Errors
    /// As of [`ModelText::encode_chat`].
    pub fn encode_chat_with(&self, messages: &[ChatMessage], input: &TemplateInput, written: Written) -> Result<Vec<u32>> {
        self.text.encode_chat(messages, input, written)
    }

    /// The model's own generation settings.
    pub fn defaults(&self) -> &ModelDefaults {
        self.text.defaults()
    }

    /// What happened when.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }
}
