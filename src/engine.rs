//! The face: open a model, see the plan, run forwards. Prints nothing and never blocks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::device::{AdapterKind, Device, DeviceChoice, DeviceSpec, GpuLimits, Rates};
use crate::error::{Error, Result};
use crate::gpu::{AdapterFound, Gpu};
use crate::machine::{self, Measure};
use crate::model::Model;
use crate::plan::{self, Plan, PlanOptions, Schedule, UploadPath};
use crate::platform::IoMode;
use crate::session::Session;
use crate::stream::{self, Batch, GpuExecutor, HostExecutor, Prediction, Scores, Store, Trace};
use crate::text::{ChatMessage, ChatTemplate, GenerationPrompt, ModelDefaults, Special, Tokenizer};
use crate::units::Bytes;
use crate::weights::{Checkpoint, ModelConfig};

/// What to open and how. Made by [`Engine::builder`].
#[derive(Debug, Clone)]
pub struct EngineBuilder {
    model: PathBuf,
    device: DeviceChoice,
    io: IoMode,
    limits: Option<GpuLimits>,
    text: TextFiles,
    options: PlanOptions,
}

/// Whether tokenizer and chat template are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TextFiles {
    /// They are, and must be there.
    #[default]
    Read,
    /// They are not: token ids go in and out.
    Skip,
}

/// A model whose headers are read, on a machine whose devices are known: everything that a plan needs.
pub struct Prepared {
    /// The model's files.
    pub checkpoint: Arc<Checkpoint>,
    /// Its units and operations.
    pub model: Model,
    /// What the machine has.
    pub devices: Vec<DeviceSpec>,
    /// Where everything will live.
    pub plan: Arc<Plan>,
    /// The steps of one forward.
    pub schedule: Schedule,
    /// What a decode step is predicted to cost; `None` while the rates are not measured.
    pub prediction: Option<Prediction>,
    adapter: Option<AdapterFound>,
    limits: Option<GpuLimits>,
    text: TextFiles,
}

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes that are where they belong.
    pub done: Bytes,
    /// Bytes in all.
    pub total: Bytes,
}

/// A loaded model, ready to compute.
pub struct Engine {
    prepared: Prepared,
    executor: AnyExecutor,
    trace: Trace,
    tokenizer: Option<Tokenizer>,
    chat_template: Option<ChatTemplate>,
    defaults: ModelDefaults,
    store: Arc<Store>,
}

/// The most that was ever in use on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct MemoryUse {
    /// Which device.
    pub device: Device,
    /// Bytes at the worst moment.
    pub peak: Bytes,
    /// What the plan promised not to exceed.
    pub budget: Option<Bytes>,
}

/// The executors that compute in earnest.
enum AnyExecutor {
    Gpu(Box<GpuExecutor>),
    Host(Box<HostExecutor>),
}

impl EngineBuilder {
    /// Who shall compute; [`DeviceChoice::Auto`] unless told otherwise.
    #[must_use]
    pub fn device(mut self, device: DeviceChoice) -> EngineBuilder {
        self.device = device;
        self
    }

    /// What `device` may use; may be called once per device.
    #[must_use]
    pub fn max_memory(mut self, device: Device, budget: Bytes) -> EngineBuilder {
        self.options.max_memory.insert(device, budget);
        self
    }

    /// Positions per sequence; as many as the plan finds room for unless told otherwise.
    #[must_use]
    pub fn ctx_size(mut self, ctx_size: usize) -> EngineBuilder {
        self.options.ctx_size = Some(ctx_size);
        self
    }

    /// How the model's files are read; positioned reads unless told otherwise.
    #[must_use]
    pub fn io(mut self, io: IoMode) -> EngineBuilder {
        self.io = io;
        self
    }

    /// Artificial, smaller adapter limits: plans and runs as on an adapter that has no more.
    #[must_use]
    pub fn limits(mut self, limits: Option<GpuLimits>) -> EngineBuilder {
        self.limits = limits;
        self
    }

    /// Whether tokenizer and chat template are read; they are unless told otherwise.
    #[must_use]
    pub fn text(mut self, text: TextFiles) -> EngineBuilder {
        self.text = text;
        self
    }

    /// All options of the planner at once. `execute_on` is overruled by [`EngineBuilder::device`].
    #[must_use]
    pub fn plan_options(mut self, options: PlanOptions) -> EngineBuilder {
        self.options = options;
        self
    }

    /// Reads headers, looks at the machine and plans. Nothing is loaded.
    ///
    /// # Errors
    /// Those of reading headers, [`Error::NoGpu`] where an adapter is demanded that is not there, [`Error::DoesNotFit`].
    pub async fn prepare(self) -> Result<Prepared> {
        let checkpoint = Arc::new(Checkpoint::open(&self.model, self.io)?);
        let model = Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape))?;
        let n_tensors = checkpoint.catalog.tensors.len();
        tracing::debug!("{}: {:?}, {n_tensors} tensors, {}", checkpoint.path, checkpoint.format, checkpoint.catalog.size_bytes());
        // Without need of a GPU, a broken driver is nobody's business.
        let mut adapters = if self.device == DeviceChoice::Cpu { Vec::new() } else { machine::adapters().await? };
        adapters.iter().for_each(|found| tracing::debug!("{}: {} ({})", found.spec.device, found.spec.name, found.spec.driver));
        let execute_on = choose_device(self.device, &self.options.max_memory, &adapters)?;
        if let Device::Gpu(index) = execute_on
            && let Some(found) = adapters.get_mut(index as usize)
        {
            if let (Some(asked), Some(own)) = (self.limits, found.spec.limits) {
                found.spec.limits = Some(asked.within(own));
            }
            // An adapter that cannot be opened says so when it is loaded; a plan needs no more than its specs.
            found.spec.rates = machine::rates_of(found, Measure::Quick).await.unwrap_or_else(|error| {
                tracing::warn!("the rates of {} were not measured: {error}", found.spec.name);
                Rates::default()
            });
            if self.options.upload == Some(UploadPath::Mapped) && found.spec.rates.upload_mapped.is_none() {
                let fault = format!("{} cannot map memory that its kernels read; use auto or staged", found.spec.name);
                return Err(Error::InvalidArgument { option: "--upload".into(), fault });
            }
        }
        let mut devices: Vec<DeviceSpec> = adapters.iter().map(|found| found.spec.clone()).collect();
        devices.push(machine::host_spec());
        devices.push(machine::disk_spec());
        let mut options = PlanOptions { execute_on, ..self.options };
        if execute_on == Device::Cpu {
            // Where no GPU computes, none has a part in the plan.
            options.max_memory.retain(|device, _| *device == Device::Cpu);
        }
        if let Some(idle) = options.max_memory.keys().find(|device| !matches!(device, Device::Cpu) && **device != execute_on) {
            let fault =
                format!("{idle} has a budget, but {execute_on} computes, alone; leave {idle} out, or choose it with --device {idle}");
            return Err(Error::InvalidArgument { option: "--max-memory".into(), fault });
        }
        let plan = plan::plan(&checkpoint.catalog, &model, &devices, &options)?;
        let schedule = Schedule::new(&plan);
        tracing::debug!("{} computes; {} pieces in {} steps; {:?}", plan.execute_on, plan.pieces.len(), schedule.steps.len(), plan.ring);
        let rates = |device| devices.iter().find(|spec| spec.device == device).map(|spec| spec.rates.clone()).unwrap_or_default();
        let prediction = stream::predict(&plan, &schedule, &rates(execute_on), &rates(Device::Disk))?;
        let adapter = match execute_on {
            Device::Gpu(index) => adapters.into_iter().nth(index as usize),
            Device::Cpu | Device::Disk => None,
        };
        Ok(Prepared {
            checkpoint,
            model,
            devices,
            plan: Arc::new(plan),
            schedule,
            prediction,
            adapter,
            limits: self.limits,
            text: self.text,
        })
    }

    /// Reads headers, plans and loads.
    ///
    /// # Errors
    /// Those of [`EngineBuilder::prepare`] and [`Prepared::load`].
    pub async fn open(self) -> Result<Engine> {
        self.prepare().await?.load(&|_| {}).await
    }
}

fn choose_device(choice: DeviceChoice, budgets: &BTreeMap<Device, Bytes>, adapters: &[AdapterFound]) -> Result<Device> {
    let there_is = || {
        let names: Vec<String> = adapters.iter().map(|found| format!("{} ({})", found.spec.device, found.spec.name)).collect();
        if names.is_empty() {
            "there is no adapter; install a Vulkan driver (on Debian: mesa-vulkan-drivers), or use --device cpu".into()
        } else {
            format!("there is {}", names.join(", "))
        }
    };
    let budgeted = budgets.keys().find(|device| matches!(device, Device::Gpu(_))).copied();
    let demanded = match choice {
        DeviceChoice::Cpu => return Ok(Device::Cpu),
        DeviceChoice::GpuAt(index) => Some(Device::Gpu(index)),
        DeviceChoice::Gpu => Some(budgeted.unwrap_or(Device::Gpu(0))),
        DeviceChoice::Auto => budgeted,
        DeviceChoice::Named(word) => {
            let device = word.resolve(adapters.iter().map(|found| &found.spec))?;
            return choose_device(device.try_into()?, budgets, adapters);
        }
    };
    match demanded {
        Some(Device::Gpu(index)) if index as usize >= adapters.len() => {
            Err(Error::NoGpu { fault: format!("gpu:{index} was asked for; {}", there_is()) })
        }
        Some(device) => Ok(device),
        // A software adapter runs on the very cores that the host executor uses better: it is taken only by name.
        None => Ok(adapters.iter().find(|found| is_hardware(found)).map_or(Device::Cpu, |found| found.spec.device)),
    }
}

fn is_hardware(found: &AdapterFound) -> bool {
    found.spec.kind != Some(AdapterKind::Software)
}

impl Prepared {
    /// Loads what the plan holds in memory and starts the ring. `progress` is called from several threads.
    ///
    /// # Errors
    /// Those of reading, of the adapter, and of a tokenizer that is there but broken.
    pub async fn load(self, progress: &(dyn Fn(LoadProgress) + Sync)) -> Result<Engine> {
        let (tokenizer, chat_template) = match self.text {
            TextFiles::Read => {
                let tokenizer = Tokenizer::open(&self.checkpoint)?;
                let chat_template = ChatTemplate::open(&self.checkpoint, &tokenizer)?;
                (Some(tokenizer), chat_template)
            }
            TextFiles::Skip => (None, None),
        };
        let defaults = ModelDefaults::open(&self.checkpoint)?;
        let total = Store::bytes_to_load(&self.checkpoint, &self.model, &self.plan);
        let done = std::sync::atomic::AtomicU64::new(0);
        let step = |bytes: Bytes| {
            let done = done.fetch_add(bytes.0, std::sync::atomic::Ordering::Relaxed) + bytes.0;
            progress(LoadProgress { done: Bytes(done), total });
        };
        let trace = Trace::default();
        let store = Arc::new(Store::load(Arc::clone(&self.checkpoint), &self.model, Arc::clone(&self.plan), &step)?);
        let mut executor = match &self.adapter {
            Some(found) => {
                let budget = self.plan.device(self.plan.execute_on).and_then(|device| device.budget).unwrap_or_default();
                let gpu = Gpu::open(found, budget, self.limits).await?;
                let executor = GpuExecutor::new(gpu, &self.model, Arc::clone(&self.plan), Arc::clone(&store), trace.clone(), &step).await?;
                AnyExecutor::Gpu(Box::new(executor))
            }
            None => AnyExecutor::Host(Box::new(HostExecutor::new(&self.model, Arc::clone(&self.plan), Arc::clone(&store), trace.clone())?)),
        };
        match &mut executor {
            AnyExecutor::Gpu(executor) => stream::prologue(&self.schedule, executor.as_mut())?,
            AnyExecutor::Host(executor) => stream::prologue(&self.schedule, executor.as_mut())?,
        }
        Ok(Engine { prepared: self, executor, trace, tokenizer, chat_template, defaults, store })
    }
}

impl Engine {
    /// Begins to describe how `model` (a folder or a `.gguf` file) shall be opened.
    pub fn builder(model: impl AsRef<Path>) -> EngineBuilder {
        EngineBuilder {
            model: model.as_ref().to_owned(),
            device: DeviceChoice::Auto,
            io: IoMode::default(),
            limits: None,
            text: TextFiles::default(),
            options: PlanOptions::default(),
        }
    }

    /// Where everything lives.
    pub fn plan(&self) -> &Plan {
        &self.prepared.plan
    }

    /// What was known before loading: model, devices, schedule, prediction.
    pub fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    /// The model's sizes and settings.
    pub fn config(&self) -> &ModelConfig {
        &self.prepared.model.config
    }

    /// The model's tokenizer, unless it was skipped.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The model's chat template, if its files have one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// The tokens of `text` as it is, with the token before it that the model expects at a beginning.
    ///
    /// # Errors
    /// [`Error::Text`] where the tokenizer was skipped or cannot take the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.demand_tokenizer()?.encode(text, Special::Add)
    }

    /// The tokens of a conversation in the model's chat template, up to where the answer begins.
    ///
    /// # Errors
    /// [`Error::Text`] where there is no tokenizer or template, or the template refuses the messages.
    pub fn encode_chat(&self, messages: &[ChatMessage]) -> Result<Vec<u32>> {
        let template =
            self.chat_template().ok_or_else(|| self.text_fault("there is no chat template; give the prompt as it is (--raw)"))?;
        self.demand_tokenizer()?.encode(&template.render(messages, GenerationPrompt::Add)?, Special::Leave)
    }

    fn demand_tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer().ok_or_else(|| self.text_fault("the tokenizer was not read; open the model with TextFiles::Read"))
    }

    fn text_fault(&self, fault: &str) -> Error {
        Error::Text { path: self.prepared.checkpoint.path.clone(), fault: fault.into() }
    }

    /// The model's own generation settings.
    pub fn defaults(&self) -> &ModelDefaults {
        &self.defaults
    }

    /// What happened when.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// A new sequence. There is one KV cache, so a session has the engine to itself.
    pub fn session(&mut self) -> Session<'_> {
        Session::new(self)
    }

    /// Runs one forward: the scores of the positions that the batch asks for, in its order.
    ///
    /// # Errors
    /// [`Error::TokenOutOfVocabulary`], [`Error::ContextFull`], [`Error::InvalidArgument`] for a batch larger than planned;
    /// [`Error::FileChanged`], [`Error::Io`] and [`Error::Gpu`] where a device fails.
    pub async fn forward(&mut self, batch: &Batch) -> Result<Vec<Scores>> {
        batch.check(&self.prepared.model.config, &self.prepared.plan)?;
        let schedule = &self.prepared.schedule;
        let output = match &mut self.executor {
            AnyExecutor::Gpu(executor) => stream::forward(schedule, executor.as_mut(), batch).await?,
            AnyExecutor::Host(executor) => stream::forward(schedule, executor.as_mut(), batch).await?,
        };
        Ok(output.unwrap_or_default())
    }

    /// Peak bytes per device beside the budgets: by the accounting of every allocation on an adapter, by counting what
    /// is held on the host.
    pub fn memory_use(&self) -> Vec<MemoryUse> {
        let plan = &self.prepared.plan;
        let of = |device: Device, peak: Bytes| MemoryUse { device, peak, budget: plan.device(device).and_then(|device| device.budget) };
        match &self.executor {
            AnyExecutor::Gpu(executor) => vec![of(plan.execute_on, executor.peak()), of(Device::Cpu, self.store.held_bytes())],
            AnyExecutor::Host(executor) => vec![of(Device::Cpu, executor.peak())],
        }
    }
}
