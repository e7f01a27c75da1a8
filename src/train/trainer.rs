//! The loop of training: batches forward and back, steps of the optimiser, what is kept between them.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::adapter::{Adapter, LoraOptions};
use super::data::{DataSet, Example, Sequence, n_targets};
use super::gpu::{GpuPasses, GpuUse, MostTokens};
use super::kept::KeptInputs;
use super::optim::{Gradients, Optimizer, OptimizerKind, Scheduler};
use super::pass::HostPasses;
use super::planning::{Opening, TrainingPlan};
use super::saved;
use super::weights::Weights;
use super::whole;
use crate::device::Device;
use crate::dtype::DType;
use crate::engine::{EngineBuilder, LoadProgress, ModelText};
use crate::error::{Error, Remedy, Result, Setting};
use crate::host;
use crate::model::{Model, UnitKind};
use crate::platform::Turns;
use crate::platform::clock::Instant;
use crate::stream::{Batch, BatchToken, LogitsRequest, Store};
use crate::units::Bytes;

/// How frozen matrices that are stored in F32 are held in memory, and stream. Those that are stored in fewer bits stay as they are; what is trained,
/// its gradients and all arithmetic are in F32, so that losses need no scaling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MixedPrecision {
    /// As they are stored.
    #[default]
    No,
    /// Rounded to [`DType::F16`].
    Fp16,
    /// Rounded to [`DType::BF16`].
    Bf16,
}

impl MixedPrecision {
    /// What they are rounded to.
    pub(super) fn dtype(self) -> Option<DType> {
        match self {
            MixedPrecision::No => None,
            MixedPrecision::Fp16 => Some(DType::F16),
            MixedPrecision::Bf16 => Some(DType::BF16),
        }
    }
}

/// How a model is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOptions {
    /// What is trained.
    pub lora: LoraOptions,
    /// Whether that is the model's own weights instead of an adapter: all of them, or those of the modules that
    /// [`LoraOptions::targets`] names, of which all else is passed over. They are trained on the host.
    pub full: bool,
    /// How frozen matrices that are stored in F32 are held.
    pub mixed_precision: MixedPrecision,
    /// How gradients become steps.
    pub optimizer: OptimizerKind,
    /// The greatest learning rate.
    pub learning_rate: f64,
    /// How it changes.
    pub scheduler: Scheduler,
    /// Steps in which it rises.
    pub n_warmup: u64,
    /// Share of each value that is taken away at a learning rate of 1.
    pub weight_decay: f32,
    /// Length that gradients are shortened to; `None` leaves them.
    pub grad_clip: Option<f64>,
    /// Examples that are computed together.
    pub batch: usize,
    /// Batches of a step.
    pub accumulate: usize,
    /// Steps in all.
    pub n_steps: u64,
    /// Tokens of an example, at most.
    pub seq_len: usize,
    /// Whether short examples stand side by side, as many as have no more than `seq_len` tokens together; each attends to itself alone.
    pub packs: bool,
    /// Chooses the first values of the adapter, the order of the examples and what dropout zeroes.
    pub seed: u64,
    /// A folder on whose disk what units have read may wait for their way back, where host memory has no room for it: in a file without
    /// a name. The bits are the same.
    pub spill: Option<PathBuf>,
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions {
            lora: LoraOptions::default(),
            full: false,
            mixed_precision: MixedPrecision::No,
            optimizer: OptimizerKind::Adamw,
            learning_rate: 2e-4,
            scheduler: Scheduler::Linear,
            n_warmup: 0,
            weight_decay: 0.0,
            grad_clip: Some(1.0),
            batch: 1,
            accumulate: 1,
            n_steps: 1,
            seq_len: 512,
            packs: false,
            seed: 0,
            spill: None,
        }
    }
}

/// What one step did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Which step, from 1 on.
    pub step: u64,
    /// How often the data was gone through, as a fraction.
    pub epoch: f64,
    /// The mean loss of the trained tokens, in nats; not a number where the step was skipped for it.
    pub loss: f64,
    /// The length of all gradients together, before they were shortened.
    pub grad_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Tokens that were computed.
    pub n_tokens: usize,
    /// Seconds that it took.
    pub secs: f64,
    /// Frozen weights that came to what computes: from the host to a GPU, or from disk to the host.
    #[serde(default)]
    pub streamed_bytes: Bytes,
    /// Whether nothing was changed, since the loss or a gradient was not finite.
    pub is_skipped: bool,
}

impl StepReport {
    /// Tokens that were computed in a second.
    pub fn tokens_per_sec(&self) -> f64 {
        self.n_tokens as f64 / self.secs.max(1e-9)
    }
}

/// Steps in a row that may be skipped.
const MOST_SKIPPED: u64 = 3;

/// A model in training. Its own weights stay as they are, and an adapter beside them is trained, on the host or by a GPU; or, with
/// [`TrainOptions::full`], they are trained themselves.
///
/// ```no_run
/// # async fn example() -> tierflow::Result<()> {
/// use tierflow::Engine;
/// use tierflow::train::{DataOptions, DataSet, TrainOn, TrainOptions, Trainer};
///
/// let options = TrainOptions { n_steps: 100, ..TrainOptions::default() };
/// let mut trainer = Trainer::open(Engine::builder("model"), options, &|_| {}).await?;
/// let records = DataOptions { train_on: TrainOn::Answers, seq_len: 512, truncates: false };
/// let data = DataSet::read("facts.jsonl".as_ref(), trainer.text(), records)?;
/// while let Some(report) = trainer.step(&data).await? {
///     println!("{} {}", report.step, report.loss);
/// }
/// trainer.save_adapter("adapter".as_ref())?;
/// # Ok(())
/// # }
/// ```
pub struct Trainer {
    pub(super) model: Arc<Model>,
    pub(super) weights: Weights,
    text: ModelText,
    options: TrainOptions,
    pub(super) adapter: Adapter,
    optimizer: Optimizer,
    pub(super) progress: Progress,
    /// What computes the passes, where the host does not.
    gpu: Option<GpuPasses>,
    /// What units have read, where the host computes.
    kept: KeptInputs,
    spills: bool,
    /// Ends the passes.
    is_cancelled: Arc<AtomicBool>,
}

/// How far training has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps that are done, skipped ones too.
    pub n_done: u64,
    /// Steps that were skipped.
    pub n_skipped: u64,
    /// Steps that were skipped one behind the other, up to now.
    pub n_skipped_in_a_row: u64,
}

impl Trainer {
    /// Opens a model for training: `builder` says which one, on which device, and what it may use of memory. Of a GPU that computes, the budget
    /// holds as many weights as it has room for; the others stream from host memory, and layers that have no room there from disk, three times in
    /// each batch. On the host, layers that have no room are read from disk as often.
    ///
    /// # Errors
    /// Those of planning and reading; [`Error::UnsupportedModel`] where gradients of its operations are not computed;
    /// [`Error::InvalidArgument`] for an option that is not possible; [`Error::DoesNotFit`].
    pub async fn open(builder: EngineBuilder, options: TrainOptions, progress: &(dyn Fn(LoadProgress) + Sync)) -> Result<Trainer> {
        let Opening { mut prepared, mut adapter, gpu, found, spills, .. } = Opening::new(builder, &options).await?;
        let mut kept = KeptInputs::new(options.spill.as_deref().filter(|_| spills))?;
        let text = prepared.take_text()?;
        let of_trained: Bytes = match options.full {
            true => adapter.tensors().into_iter().map(|id| prepared.checkpoint.catalog[id].size_bytes).sum(),
            false => Bytes::ZERO,
        };
        let total = of_trained + Store::bytes_to_load(&prepared.checkpoint, &prepared.model, &prepared.plan);
        let done = AtomicU64::new(0);
        let loaded = |bytes: Bytes| {
            let done = done.fetch_add(bytes.0, Ordering::Relaxed) + bytes.0;
            progress(LoadProgress { done: Bytes(done), total });
        };
        let store = Store::load(Arc::clone(&prepared.checkpoint), &prepared.model, Arc::clone(&prepared.plan), &loaded)?;
        let weights = Weights::new(&prepared.model, Arc::clone(&prepared.plan), Arc::new(store))?;
        if options.full {
            whole::begin(&mut adapter, &prepared.checkpoint, &loaded)?;
        } else {
            adapter.begin_norms(&weights.vectors);
        }
        let optimizer = Optimizer::new(options.optimizer, options.weight_decay, adapter.zeros());
        let model = Arc::new(prepared.model);
        let gpu = match gpu.zip(found) {
            None => None,
            Some(((_, budget), found)) => {
                let most = MostTokens(options.batch * options.seq_len);
                let kept = std::mem::take(&mut kept);
                Some(GpuPasses::open(&found, budget, &model, &weights, &adapter, most, kept).await?)
            }
        };
        let (progress, is_cancelled) = (Progress::default(), Arc::default());
        Ok(Trainer { model, weights, text, options, adapter, optimizer, progress, gpu, kept, spills, is_cancelled })
    }

    /// What training would take, as [`Trainer::open`] would do it.
    ///
    /// # Errors
    /// As of [`Trainer::open`], but for those of reading weights.
    pub async fn plan(builder: EngineBuilder, options: &TrainOptions) -> Result<TrainingPlan> {
        Opening::new(builder, options).await?.plan(options)
    }

    /// The model's tokenizer and chat template, which records are read with.
    pub fn text(&self) -> &ModelText {
        &self.text
    }

    /// What is trained.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// What is used of the GPU that computes; `None` where the host does.
    pub fn gpu_use(&self) -> Option<GpuUse> {
        self.gpu.as_ref().map(GpuPasses::gpu_use)
    }

    /// Frozen weights that have come to what computes up to now.
    fn streamed(&self) -> Bytes {
        self.gpu.as_ref().map_or_else(|| self.weights.bytes_read(), GpuPasses::streamed)
    }

    /// How it is trained.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Changes how many steps there are in all, once the size of the data is known.
    pub fn set_steps(&mut self, n_steps: u64, n_warmup: u64) {
        (self.options.n_steps, self.options.n_warmup) = (n_steps, n_warmup);
    }

    /// The same for data that is gone through `epochs` times, unless `steps` says otherwise. Of `warmup` steps the learning rate rises; below 1 it is
    /// their share of all.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a warm-up that is none.
    pub fn set_epochs(&mut self, data: &DataSet, epochs: u32, steps: Option<u32>, warmup: f64) -> Result<()> {
        if !(warmup.is_finite() && warmup >= 0.0) {
            return Err(Error::InvalidArgument { option: "the warm-up".into(), reason: format!("is {warmup}; it is 0 or more") });
        }
        let n_steps = steps.map_or_else(|| self.steps_per_epoch(data).saturating_mul(epochs.into()), u64::from);
        let n_warmup = if warmup < 1.0 { (warmup * n_steps as f64).ceil() } else { warmup };
        self.set_steps(n_steps, (n_warmup as u64).min(n_steps));
        Ok(())
    }

    /// Ends what is computed before its next unit once `flag` is set, with [`Error::Interrupted`]; nothing that is trained changes then.
    pub fn cancel_with(&mut self, flag: Arc<AtomicBool>) {
        self.is_cancelled = flag;
    }

    /// Steps that go through the data once.
    pub fn steps_per_epoch(&self, data: &DataSet) -> u64 {
        self.groups(data).len().div_ceil(self.options.batch * self.options.accumulate) as u64
    }

    /// The examples that stand for one each.
    fn groups(&self, data: &DataSet) -> Vec<Vec<usize>> {
        data.groups(self.options.packs.then_some(self.options.seq_len))
    }

    /// The next step; `None` once all are done.
    ///
    /// # Errors
    /// Those of reading weights; [`Error::TrainingDiverged`] where the loss was not finite for three steps in a row.
    pub async fn step(&mut self, data: &DataSet) -> Result<Option<StepReport>> {
        if self.progress.n_done >= self.options.n_steps {
            return Ok(None);
        }
        let (step, per_epoch) = (self.progress.n_done, self.steps_per_epoch(data).max(1));
        let groups = self.groups(data);
        let order = DataSet::order(groups.len(), self.options.seed, step / per_epoch);
        let at_once = self.options.batch * self.options.accumulate;
        let chosen = order.chunks(at_once).nth((step % per_epoch) as usize).unwrap_or_default();
        let examples: Vec<&Example> = chosen.iter().flat_map(|group| &groups[*group]).map(|index| &data.examples[*index]).collect();
        let report = self.step_on(&examples).await?;
        Ok(Some(StepReport { epoch: (step + 1) as f64 / per_epoch as f64, ..report }))
    }

    /// The next step, on examples of the caller's choice.
    ///
    /// # Errors
    /// As of [`Trainer::step`].
    pub async fn step_on(&mut self, examples: &[&Example]) -> Result<StepReport> {
        let (begin, streamed) = (Instant::now(), self.streamed());
        let step = self.progress.n_done;
        let (loss, mut gradients) = self.gradients(examples).await?;
        let grad_norm = gradients.norm();
        let factor = self.options.scheduler.factor(step, self.options.n_warmup, self.options.n_steps);
        let learning_rate = self.options.learning_rate * factor;
        let is_skipped = !(loss.is_finite() && grad_norm.is_finite());
        self.progress.n_done += 1;
        if is_skipped {
            self.progress.n_skipped += 1;
            self.progress.n_skipped_in_a_row += 1;
            if self.progress.n_skipped_in_a_row >= MOST_SKIPPED {
                return Err(Error::TrainingDiverged { step: step + 1 });
            }
        } else {
            self.progress.n_skipped_in_a_row = 0;
            if let Some(most) = self.options.grad_clip {
                gradients.clip(grad_norm, most);
            }
            self.optimizer.step(&mut self.adapter.layers, &gradients.layers, learning_rate);
        }
        let n_tokens = examples.iter().map(|example| example.tokens.len()).sum();
        let secs = begin.elapsed().as_secs_f64();
        let streamed_bytes = self.streamed().saturating_sub(streamed);
        Ok(StepReport { step: step + 1, epoch: 0.0, loss, grad_norm, learning_rate, n_tokens, secs, streamed_bytes, is_skipped })
    }

    /// The mean loss of the trained tokens of `examples`, and the gradients of the adapter's matrices.
    ///
    /// # Errors
    /// Those of reading weights.
    pub async fn gradients(&mut self, examples: &[&Example]) -> Result<(f64, Gradients)> {
        let sequences: Vec<Sequence> = examples.iter().map(|example| Sequence::from(*example)).collect();
        let n_trained = n_targets(&sequences).max(1);
        let mut gradients = self.no_gradients();
        let loss = self.pass_over(&sequences, Some(self.draw(0)), Some((1.0 / n_trained as f32, &mut gradients))).await?;
        Ok((loss / n_trained as f64, gradients))
    }

    /// The mean loss of the trained tokens of all examples, as the model predicts them now.
    ///
    /// # Errors
    /// Those of reading weights.
    pub async fn evaluate(&mut self, data: &DataSet) -> Result<f64> {
        let sequences: Vec<Sequence> = data.examples.iter().map(Sequence::from).collect();
        Ok(self.pass_over(&sequences, None, None).await? / n_targets(&sequences).max(1) as f64)
    }

    /// The sum of the losses of all targets of `sequences`, of which some are computed at a time; with a factor, the gradients of the loss
    /// times it are added to those that are given. `draw` names the first one's draw of the dropout; none is without.
    pub(super) async fn pass_over(
        &mut self,
        sequences: &[Sequence],
        draw: Option<u64>,
        gradients: Option<(f32, &mut Gradients)>,
    ) -> Result<f64> {
        let units = self.trained_units();
        let first_kept = match &gradients {
            Some(_) if self.trains_embedding() => units.start,
            Some(_) => units.clone().find(|unit| self.is_adapted(*unit)).unwrap_or(units.end),
            None => units.end,
        };
        if self.gpu.is_some() {
            return self.pass_over_on_gpu(sequences, draw, units, first_kept, gradients).await;
        }
        let Trainer { model, weights, adapter, options, kept, is_cancelled, .. } = self;
        let mut pauses = Pauses { is_cancelled, turns: Turns::new() };
        let (mut gradients, mut loss) = (gradients, 0.0);
        for (index, sequences) in batches(options, sequences).into_iter().enumerate() {
            let (batch, targets) = batch_of(sequences);
            if targets.is_empty() {
                continue;
            }
            let mut passes = HostPasses::new(model, weights, adapter, kept);
            passes.begin(&batch, draw.map(|draw| draw.wrapping_add(index as u64)))?;
            for unit in units.clone() {
                pauses.pause().await?;
                host::among_threads(|| passes.forward(unit, unit >= first_kept))?;
            }
            let gradient_of = gradients.as_mut().map(|(factor, sum)| (*factor, &mut sum.layers[..]));
            let of_batch = host::among_threads(|| passes.loss(&targets, gradient_of))?;
            loss += of_batch;
            let Some((_, gradients)) = gradients.as_mut().filter(|_| of_batch.is_finite()) else { continue };
            for unit in (first_kept..units.end).rev() {
                pauses.pause().await?;
                host::among_threads(|| passes.backward(unit, &mut gradients.layers))?;
            }
            passes.backward_embedding(&batch.tokens, &mut gradients.layers);
        }
        Ok(loss)
    }

    /// The same where a GPU computes.
    async fn pass_over_on_gpu(
        &mut self,
        sequences: &[Sequence],
        draw: Option<u64>,
        units: Range<usize>,
        first_kept: usize,
        gradients: Option<(f32, &mut Gradients)>,
    ) -> Result<f64> {
        let Trainer { weights, adapter, gpu: Some(gpu), options, is_cancelled, .. } = self else {
            return Err(Error::internal("no adapter computes"));
        };
        let mut pauses = Pauses { is_cancelled, turns: Turns::new() };
        let factor = gradients.as_ref().map(|(factor, _)| *factor);
        let mut loss = 0.0;
        gpu.begin(adapter)?;
        for (index, sequences) in batches(options, sequences).into_iter().enumerate() {
            let (batch, targets) = batch_of(sequences);
            if targets.is_empty() {
                continue;
            }
            gpu.begin_batch(weights, &batch, draw.map(|draw| draw.wrapping_add(index as u64)))?;
            for unit in units.clone() {
                pauses.pause().await?;
                gpu.forward(weights, unit, unit >= first_kept).await?;
            }
            let of_batch = gpu.loss(weights, &targets, factor).await?;
            loss += of_batch;
            if factor.is_some() && of_batch.is_finite() {
                for unit in (first_kept..units.end).rev() {
                    pauses.pause().await?;
                    gpu.backward(weights, unit).await?;
                }
            }
        }
        if let Some((_, gradients)) = gradients {
            gpu.add_gradients(adapter, &mut gradients.layers).await?;
        }
        Ok(loss)
    }

    /// The name of the dropout's draw number `index` of the next step.
    pub(super) fn draw(&self, index: u64) -> u64 {
        self.options.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(self.progress.n_done << 20).wrapping_add(index)
    }

    /// The units between the embedding and the head.
    fn trained_units(&self) -> Range<usize> {
        let end = self.model.units.iter().position(|unit| unit.kind == UnitKind::Head).unwrap_or(self.model.units.len());
        1..end
    }

    fn is_adapted(&self, unit: usize) -> bool {
        let (unit, adapter) = (&self.model.units[unit], &self.adapter);
        unit.matrices().any(|weight| adapter.beside(weight).is_some() || adapter.trains(weight))
            || unit.vectors().any(|vector| adapter.trains(vector))
    }

    fn trains_embedding(&self) -> bool {
        let tables = self.model.embeddings().map(|(table, _)| table);
        tables.chain(self.model.positions()).any(|table| self.adapter.trains(table))
    }

    /// Begins with the values of an adapter in PEFT's form, of the same layers and rank.
    ///
    /// # Errors
    /// Those of reading; [`Error::InvalidFile`] where it is of other layers.
    pub fn begin_from(&mut self, folder: &Path) -> Result<()> {
        saved::read_adapter(&mut self.adapter, folder)
    }

    /// Whether what units have read waits for its way back in a file of [`TrainOptions::spill`].
    pub fn spills(&self) -> bool {
        self.spills
    }

    /// Bytes of the model's matrices that are read from disk, each time anew.
    pub fn bytes_on_disk(&self) -> Bytes {
        self.weights.bytes_on_disk(&self.adapter)
    }

    /// Writes the adapter in PEFT's form into a folder, which is made where there is none.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file; [`Error::InvalidArgument`] where the model's own weights are trained.
    pub fn save_adapter(&self, folder: &Path) -> Result<()> {
        self.check_is_whole(false)?;
        saved::write_adapter(&self.adapter, &self.adapter.layers, self.weights.checkpoint(), folder)
    }

    /// Names and bytes of the files that [`Trainer::save_adapter`] writes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the model's own weights are trained.
    pub fn adapter_files(&self) -> Result<[(&'static str, Vec<u8>); 2]> {
        self.check_is_whole(false)?;
        saved::adapter_of(&self.adapter, &self.adapter.layers, self.weights.checkpoint(), Path::new(""))?.files()
    }

    /// Writes the model with its trained weights into a folder, which is made where there is none: a model as the one that it was read from, with
    /// its config and tokenizer, in `dtype` or in the dtypes that it has there.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file; [`Error::InvalidArgument`] where an adapter is trained, or the folder is the model's.
    pub fn save_model(&self, folder: &Path, dtype: Option<DType>) -> Result<()> {
        self.check_is_whole(true)?;
        if let Some(other) = dtype.filter(|dtype| !matches!(dtype, DType::F32 | DType::F16 | DType::BF16)) {
            let reason = format!("is {other}; trained weights are written in F32, F16 or BF16");
            return Err(Error::InvalidArgument { option: "dtype".into(), reason });
        }
        whole::write_model(&self.adapter, self.weights.checkpoint(), folder, dtype)
    }

    /// Whether [`Trainer::save_model`] may write to a folder, before there is anything to write.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where it is the model's own.
    pub fn check_folder(&self, folder: &Path) -> Result<()> {
        whole::check_folder(self.weights.checkpoint(), folder)
    }

    fn check_is_whole(&self, is_whole: bool) -> Result<()> {
        if self.adapter.is_whole == is_whole {
            return Ok(());
        }
        let reason = if is_whole { "is an adapter; save that" } else { "are the model's own weights; save the model" };
        Err(Error::InvalidArgument { option: "what is trained".into(), reason: reason.into() })
    }

    /// Writes all that training goes on from into a folder below `folder`, in place of the former one, which stays until the new one is
    /// whole.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn save_checkpoint(&self, folder: &Path) -> Result<()> {
        let state = saved::State::of(&self.options, self.progress, self.optimizer.n_taken);
        saved::write_checkpoint(&state, &self.adapter, &self.optimizer, self.weights.checkpoint(), folder)
    }

    /// Goes on from the latest checkpoint below `folder`; `false` where there is none. What follows has the same bits as if training had
    /// never stopped.
    ///
    /// # Errors
    /// Those of reading; [`Error::InvalidFile`] where it is of another adapter, or of other options than these.
    pub fn resume(&mut self, folder: &Path) -> Result<bool> {
        let own = saved::State::of(&self.options, self.progress, self.optimizer.n_taken);
        let Some(found) = saved::read_checkpoint(&own, &mut self.adapter, &mut self.optimizer, folder)? else {
            return Ok(false);
        };
        self.progress = found;
        Ok(true)
    }
}

/// What happens between two units: messages are received where computing keeps them waiting, and whoever wants no more is heard.
struct Pauses<'a> {
    is_cancelled: &'a AtomicBool,
    turns: Turns,
}

impl Pauses<'_> {
    async fn pause(&mut self) -> Result<()> {
        self.turns.give().await;
        if self.is_cancelled.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

pub(super) fn no_room(needed: Bytes, available: Bytes, is_whole: bool) -> Error {
    let shorter = Remedy::other("train with shorter sequences or fewer examples at once");
    let raise = Remedy::Raise(Setting::MaxMemory);
    let advice = match is_whole {
        true => [Remedy::other("train an adapter, or the model's own weights of fewer modules"), shorter, raise].into(),
        false => [shorter, raise].into(),
    };
    Error::DoesNotFit { device: Device::Cpu.to_string(), needed, available, advice }
}

/// Sequences that are computed together, one behind the other: as many as were asked for, or, where they are packed, as have no more tokens than so many
/// of full length.
fn batches<'a>(options: &TrainOptions, sequences: &'a [Sequence]) -> Vec<&'a [Sequence]> {
    if !options.packs {
        return sequences.chunks(options.batch).collect();
    }
    let (mut all, mut rest) = (Vec::new(), sequences);
    while !rest.is_empty() {
        let ends = rest.iter().scan(0, |end, sequence| {
            *end += sequence.tokens.len();
            Some(*end)
        });
        let n = ends.take_while(|end| *end <= options.batch * options.seq_len).count().max(1);
        let (batch, behind) = rest.split_at(n);
        all.push(batch);
        rest = behind;
    }
    all
}

/// Sequences side by side, and the tokens that are predicted.
fn batch_of(sequences: &[Sequence]) -> (Batch, Vec<u32>) {
    let mut batch = Batch { logits_request: LogitsRequest::All, ..Batch::default() };
    let mut targets = Vec::new();
    for (number, sequence) in (0u32..).zip(sequences) {
        for ((position, token), target) in (0u32..).zip(&sequence.tokens).zip(&sequence.targets) {
            if let Some(target) = target {
                batch.logits_for.push(batch.tokens.len() as u32);
                targets.push(*target);
            }
            batch.tokens.push(BatchToken { token: *token, sequence: number, position });
        }
    }
    (batch, targets)
}

pub(super) fn check(options: &TrainOptions) -> Result<()> {
    let invalid = |option: &str, reason: String| Err(Error::InvalidArgument { option: option.into(), reason });
    let TrainOptions { learning_rate, weight_decay, grad_clip, batch, accumulate, seq_len, .. } = *options;
    if !(learning_rate.is_finite() && learning_rate > 0.0) {
        return invalid("the learning rate", format!("is {learning_rate}; it is above 0"));
    }
    if !(weight_decay.is_finite() && weight_decay >= 0.0) {
        return invalid("the weight decay", format!("is {weight_decay}; it is 0 or above"));
    }
    if grad_clip.is_some_and(|most| !(most.is_finite() && most > 0.0)) {
        return invalid("the length that gradients are shortened to", "is above 0".into());
    }
    for (what, value) in [("examples at once", batch), ("batches of a step", accumulate)] {
        if !(1..=1 << 16).contains(&value) {
            return invalid(what, format!("are {value}; they are from 1 to 65536"));
        }
    }
    if options.full && options.mixed_precision != MixedPrecision::No {
        return invalid("mixed precision", "is for adapters; the model's own weights are trained in F32".into());
    }
    if seq_len < 2 {
        return invalid("the length of sequences", format!("is {seq_len}; it is 2 or more"));
    }
    Ok(())
}

/// What training holds besides the model's weights: what units have read, the operations of one unit with their gradients, logits of a slice,
/// and the adapter with its gradients and the optimiser's means. Where it `spills`, what two units have read.
pub(super) fn bytes_needed(model: &Model, options: &TrainOptions, n_values: usize, on_host: bool, spills: bool) -> Bytes {
    let n_tokens = (options.batch * options.seq_len) as u64;
    let widths: u64 = model.values().filter(|(id, _)| *id != model.logits).map(|(_, value)| value.width as u64).sum();
    let kept = if spills { 2 } else { model.units.len() as u64 } * model.config.hidden_size as u64;
    if !on_host {
        return Bytes((n_tokens * kept + n_values as u64 * 4) * 4);
    }
    // What is trained, its gradients and what the optimiser keeps of them.
    let copies = if options.optimizer == OptimizerKind::Adamw { 4 } else { 3 };
    // Values, what operations have kept of them and their gradients; a slice of logits and their slopes.
    Bytes((n_tokens * (kept + 4 * widths) + n_values as u64 * copies + (3 << 22)) * 4)
}
