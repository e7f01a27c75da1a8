//! From a path to a plan: reads the headers, looks at the machine's devices, finds which may compute, and plans. Loads nothing.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::accelerate::{DeviceMap, ModuleTree};
use crate::device::{AdapterKind, Device, DeviceChoice, DeviceSpec, GpuLimits, KernelChoice, Rates, no_gpu};
use crate::dtype::DType;
use crate::engine::{Engine, ModelText};
use crate::error::{Error, Result, Setting};
use crate::gpu::{self, AdapterFound};
use crate::lora::{self, Adapter, Scaled, Scales};
use crate::machine::{self, Measure};
use crate::model::{Checkpoint, Model, Op, Unit};
use crate::plan::{
    self, Explanation, Forecast, PlacementRule, Plan, PlanOptions, Prediction, ResidentLayers, Schedule, UploadPath, Workload,
};
use crate::platform::{self, IoMode};
use crate::units::{Bytes, counted};
use crate::weights::Catalog;

/// What to open and how. Made by [`Engine::builder`].
#[derive(Debug, Clone)]
pub struct EngineBuilder {
    pub(super) model: ModelSource,
    device: DeviceChoice,
    io: IoMode,
    limits: Option<GpuLimits>,
    text: TextFiles,
    text_first: bool,
    without_head: bool,
    layers: Option<Range<usize>>,
    options: PlanOptions,
    compute_on: Option<Vec<Device>>,
    n_virtual: usize,
    measure: Measure,
    kernels: KernelChoice,
    machine: Option<Vec<DeviceSpec>>,
    gpu_timeout: Duration,
    loras: Vec<Scaled>,
    lora_scales: Scales,
    matrices_in: Option<DType>,
}

/// Where the model is.
#[derive(Debug, Clone)]
pub(super) enum ModelSource {
    /// In files that are still to be opened.
    Path(PathBuf),
    /// Here: its headers were read.
    Open(Arc<Checkpoint>),
}

impl ModelSource {
    fn open(&self, io: IoMode) -> Result<Arc<Checkpoint>> {
        match self {
            ModelSource::Path(path) => Checkpoint::open(path, io).map(Arc::new),
            ModelSource::Open(checkpoint) => Ok(Arc::clone(checkpoint)),
        }
    }

    /// Its path, if it has one.
    fn path(&self) -> Option<&Path> {
        match self {
            ModelSource::Path(path) => Some(path),
            ModelSource::Open(_) => None,
        }
    }
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
    /// What the machine has, its rates as runs have shown them to be.
    pub devices: Vec<DeviceSpec>,
    /// Where every weight will be stored and who will compute with it.
    pub plan: Arc<Plan>,
    /// The steps of one forward.
    pub schedule: Schedule,
    /// Its predicted speed.
    pub forecast: Forecast,
    /// What was asked of the plan.
    pub options: PlanOptions,
    /// The LoRA adapters that are added to it.
    pub loras: Vec<lora::Summary>,
    pub(super) means: Means,
}

/// What a model is loaded with.
pub(super) struct Means {
    /// The adapters; of a plan, those that compute.
    pub(super) adapters: Vec<AdapterFound>,
    /// Whether the machine that the plan is for is this one.
    pub(super) is_here: bool,
    /// The devices with their rates as measured, and what runs showed of them.
    pub(super) measured: Vec<DeviceSpec>,
    /// Whether runs correct the rates that are kept.
    pub(super) learns: bool,
    pub(super) path: Option<PathBuf>,
    pub(super) limits: Option<GpuLimits>,
    pub(super) gpu_timeout: Duration,
    pub(super) text_files: TextFiles,
    /// What of the text files was read already.
    pub(super) text: Option<ModelText>,
}

impl EngineBuilder {
    pub(super) fn new(model: ModelSource) -> EngineBuilder {
        EngineBuilder {
            model,
            device: DeviceChoice::Auto,
            io: IoMode::default(),
            limits: None,
            text: TextFiles::default(),
            text_first: false,
            without_head: false,
            layers: None,
            options: PlanOptions::default(),
            compute_on: None,
            n_virtual: 1,
            measure: Measure::Quick,
            kernels: KernelChoice::default(),
            machine: None,
            gpu_timeout: gpu::GPU_TIMEOUT,
            loras: Vec::new(),
            lora_scales: Scales::Fixed,
            matrices_in: None,
        }
    }

    /// Which devices compute; [`DeviceChoice::Auto`] by default.
    #[must_use]
    pub fn device(mut self, device: DeviceChoice) -> EngineBuilder {
        self.device = device;
        self
    }

    /// Which devices compute, as it was said.
    pub(crate) fn device_choice(&self) -> DeviceChoice {
        self.device
    }

    /// What `device` may use; may be called once per device.
    #[must_use]
    pub fn max_memory(mut self, device: Device, budget: Bytes) -> EngineBuilder {
        self.options.max_memory.insert(device, budget);
        self
    }

    /// Matrices that are stored in F32 are rounded to this dtype, [`DType::F16`] or [`DType::BF16`], and take half the bytes.
    #[must_use]
    pub(crate) fn matrices_in(mut self, dtype: Option<DType>) -> EngineBuilder {
        self.matrices_in = dtype;
        self
    }

    /// Positions per sequence; by default as many as the plan finds room for.
    #[must_use]
    pub fn ctx_size(mut self, ctx_size: usize) -> EngineBuilder {
        self.options.ctx_size = Some(ctx_size);
        self
    }

    /// How the model's files are read; positioned reads by default.
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

    /// Whether tokenizer and chat template are read; by default they are.
    #[must_use]
    pub fn text(mut self, text: TextFiles) -> EngineBuilder {
        self.text = text;
        self
    }

    /// Reads tokenizer and chat template before the machine is looked at, not when the model is loaded: a plan for what is left of the
    /// memory then leaves theirs out.
    #[must_use]
    pub fn text_first(mut self) -> EngineBuilder {
        self.text_first = true;
        self
    }

    /// Leaves the model's head out: forwards give the normed last hidden states in place of logits, as
    /// [`Engine::embed`] wants them. Such an engine generates nothing.
    #[must_use]
    pub fn without_head(mut self) -> EngineBuilder {
        self.without_head = true;
        self
    }

    /// Opens a stage of the model: these layers alone, so that several machines together compute a model that none holds. Without the first
    /// layer, forwards take hidden states ([`Engine::forward_hidden`]); without the last, they give them, unless later stages are [told
    /// of](Engine::continue_with).
    #[must_use]
    pub fn layers(mut self, layers: Range<usize>) -> EngineBuilder {
        self.layers = Some(layers);
        self
    }

    /// All options of the planner at once. `compute_on` is overridden by [`EngineBuilder::device`] and [`EngineBuilder::compute_on`].
    #[must_use]
    pub fn plan_options(mut self, options: PlanOptions) -> EngineBuilder {
        self.options = options;
        self
    }

    /// Exactly these devices may compute, in the order in which layers are given to them. Overrides [`EngineBuilder::device`].
    #[must_use]
    pub fn compute_on(mut self, devices: impl IntoIterator<Item = Device>) -> EngineBuilder {
        self.compute_on = Some(devices.into_iter().collect());
        self
    }

    /// Lists every adapter `n` times, each with its share of the memory and opened on its own: simulates a machine with several adapters on
    /// one.
    #[must_use]
    pub fn virtual_gpus(mut self, n: usize) -> EngineBuilder {
        self.n_virtual = n;
        self
    }

    /// Whether rates that are not known are measured (in a few seconds, once for each device and dtype); by default they are.
    /// Without, a plan is made with typical rates.
    #[must_use]
    pub fn measure(mut self, measure: Measure) -> EngineBuilder {
        self.measure = measure;
        self
    }

    /// Which kernels adapters may run; the fastest by default.
    #[must_use]
    pub fn kernels(mut self, kernels: KernelChoice) -> EngineBuilder {
        self.kernels = kernels;
        self
    }

    /// Plans for this machine, which need not be here (see [`machine::read_devices_file`]); such a plan cannot be loaded.
    #[must_use]
    pub fn machine(mut self, devices: Vec<DeviceSpec>) -> EngineBuilder {
        self.machine = Some(devices);
        self
    }

    /// How long an adapter may finish nothing before a wait on it ends in [`Error::DeviceTimeout`]; [`gpu::GPU_TIMEOUT`] by
    /// default. In a browser, where the browser watches over adapters itself, it is not used.
    #[must_use]
    pub fn gpu_timeout(mut self, timeout: Duration) -> EngineBuilder {
        self.gpu_timeout = timeout;
        self
    }

    /// Adds a LoRA adapter, which is multiplied by `scale` besides its own scaling; several are added up. Their matrices are resident wherever
    /// the weights that they adapt are stored.
    #[must_use]
    pub fn lora(mut self, adapter: Arc<Adapter>, scale: f32) -> EngineBuilder {
        self.loras.push(Scaled { adapter, scale });
        self
    }

    /// Whether sequences choose what LoRA adapters are multiplied by ([`Engine::set_lora_scales`]); by default they do not.
    #[must_use]
    pub fn lora_scales(mut self, scales: Scales) -> EngineBuilder {
        self.lora_scales = scales;
        self
    }

    /// Reads headers, looks at the machine and plans. Nothing is loaded.
    ///
    /// # Errors
    /// Those of reading headers, [`Error::NoGpu`] where an adapter is demanded that is not there, [`Error::DoesNotFit`].
    pub async fn prepare(self) -> Result<Prepared> {
        let surveyed = self.survey().await?;
        let plan = plan::plan(&surveyed.checkpoint.catalog, &surveyed.model, &surveyed.devices, &surveyed.options)?;
        Ok(surveyed.with(plan))
    }

    /// The devices of this machine with their rates for the model, as a plan of it elsewhere may be told of them
    /// ([`EngineBuilder::machine`]).
    ///
    /// # Errors
    /// As of [`EngineBuilder::prepare`].
    pub async fn devices(self) -> Result<Vec<DeviceSpec>> {
        Ok(self.survey().await?.means.measured)
    }

    /// Reads headers and looks at the machine: all that a plan needs.
    pub(super) async fn survey(mut self) -> Result<Surveyed> {
        platform::start_threads(None)?;
        if let Some(saved) = &self.options.saved {
            self.compute_on = Some(saved.executors());
        }
        let (checkpoint, model) = self.open_model()?;
        let loras = self.loras.iter().map(Scaled::summary).collect();
        let text = if self.text_first { Some(ModelText::open(&checkpoint, self.text)?) } else { None };
        let mut adapters = self.adapters().await?;
        let specs: Vec<DeviceSpec> = match &self.machine {
            Some(devices) => devices.clone(),
            None => adapters.iter().map(|found| found.spec.clone()).collect(),
        };
        let compute_on = self.may_compute(&specs)?;
        let dtypes = dtypes_of(&model, &checkpoint.catalog);
        for found in adapters.iter_mut().filter(|found| compute_on.contains(&found.spec.device)) {
            self.look_at(found, &dtypes).await?;
        }
        let measured = match &self.machine {
            Some(_) => specs,
            None => self.with_host_and_disk(&adapters, &dtypes).await,
        };
        let devices = plan::corrected(&measured, plan::main_dtype(&checkpoint.catalog, &model));
        // Executors cut submissions by the same rates.
        for found in &mut adapters {
            found.spec.rates =
                devices.iter().find(|spec| spec.device == found.spec.device).map_or_else(Rates::default, |spec| spec.rates.clone());
        }
        let learns = self.machine.is_none() && self.is_usual() && model.is_whole();
        let options = options_for(&model, PlanOptions { compute_on, ..self.options });
        warn_of_vain_options(&options, model.config.context_length);
        warn_of_large_budgets(&options, &devices);
        if let PlacementRule::Given(map) = &options.placement {
            check_map(map, &ModuleTree::of_model(&checkpoint.catalog, &model)?)?;
        }
        let means = Means {
            adapters,
            is_here: self.machine.is_none(),
            measured,
            learns,
            path: self.model.path().map(Path::to_owned),
            limits: self.limits,
            gpu_timeout: self.gpu_timeout,
            text_files: self.text,
            text,
        };
        Ok(Surveyed { checkpoint, model, devices, options, loras, means })
    }

    /// The devices of this machine that [`EngineBuilder::prepare`] would measure before it plans, which takes a while: rates of them are
    /// not known that the model needs. In a machine that is described there are none.
    ///
    /// # Errors
    /// As of [`EngineBuilder::prepare`].
    pub async fn unmeasured(&self) -> Result<Vec<Device>> {
        if self.machine.is_some() {
            return Ok(Vec::new());
        }
        let (checkpoint, model) = self.open_model()?;
        let (mut adapters, dtypes) = (self.adapters().await?, dtypes_of(&model, &checkpoint.catalog));
        let specs: Vec<DeviceSpec> = adapters.iter().map(|found| found.spec.clone()).collect();
        let compute_on = self.may_compute(&specs)?;
        adapters.retain(|found| compute_on.contains(&found.spec.device) && machine::is_to_be_measured(found, self.measure, &dtypes));
        let host = machine::is_host_to_be_measured(self.measure, &dtypes).then_some(Device::Cpu);
        Ok(adapters.into_iter().map(|found| found.spec.device).chain(host).collect())
    }

    /// Those of `specs` that may compute, and the host where it may.
    fn may_compute(&self, specs: &[DeviceSpec]) -> Result<Vec<Device>> {
        match &self.compute_on {
            Some(devices) => checked(devices),
            None => Ok(with_host_for_experts(candidates(self.device, &named_adapters(&self.options)?, specs)?, &self.options.placement)),
        }
    }

    /// The model's headers, and what of it is to be computed: with LoRA adapters, without its head, with some layers.
    fn open_model(&self) -> Result<(Arc<Checkpoint>, Model)> {
        let checkpoint = self.model.open(self.io)?;
        let checkpoint = self.matrices_in.map_or(checkpoint.clone(), |dtype| Arc::new(checkpoint.narrowed(dtype)));
        let n_tensors = checkpoint.catalog.tensors.len();
        tracing::debug!("{}: {:?}, {n_tensors} tensors, {}", checkpoint.path, checkpoint.format, checkpoint.catalog.size_bytes());
        let model = Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape))?;
        let (checkpoint, model) = match self.loras.as_slice() {
            [] => (checkpoint, model),
            scaled => lora::apply(&checkpoint, model, scaled, self.lora_scales).map(|(checkpoint, model)| (Arc::new(checkpoint), model))?,
        };
        let model = if self.without_head { model.without_head() } else { model };
        let model = match &self.layers {
            Some(layers) => model.stage(layers.clone())?,
            None => model,
        };
        Ok((checkpoint, model))
    }

    /// Whether the kept rates apply to runs: no kernels or limits of the adapters are forbidden.
    fn is_usual(&self) -> bool {
        self.measure != Measure::Never && self.limits.is_none() && self.kernels == KernelChoice::Auto && self.n_virtual == 1
    }

    /// The adapters of this machine. Where none is needed, none is looked for, so that a broken driver does no harm.
    async fn adapters(&self) -> Result<Vec<AdapterFound>> {
        let needs_none = match &self.compute_on {
            Some(devices) => devices.iter().all(|device| *device == Device::Cpu),
            None => self.device == DeviceChoice::Cpu,
        };
        if needs_none || self.machine.is_some() {
            return Ok(Vec::new());
        }
        let adapters = gpu::divided(machine::adapters().await?, self.n_virtual);
        adapters.iter().for_each(|found| tracing::debug!("{}: {} ({})", found.spec.device, found.spec.name, found.spec.driver));
        Ok(adapters)
    }

    /// Completes what is known of an adapter that may compute: the limits in force, and the rates of uploads and of products in `dtypes`.
    async fn look_at(&self, found: &mut AdapterFound, dtypes: &[DType]) -> Result<()> {
        // An adapter that cannot be opened says so when it is loaded; a plan needs no more than its specs.
        found.spec.rates = machine::rates_of(found, self.measure, dtypes).await.unwrap_or_else(|error| {
            tracing::warn!("the rates of {} were not measured: {error}", found.spec.name);
            Rates::default()
        });
        // Whatever is forbidden to this run, rates are those of the adapter itself.
        found.kernels = self.kernels;
        if let (Some(asked), Some(own)) = (self.limits, found.spec.limits) {
            found.spec.limits = Some(asked.within(own));
        }
        let cannot_map = !found.spec.rates.is_empty() && found.spec.rates.upload_mapped.is_none();
        if self.options.upload == Some(UploadPath::Mapped) && cannot_map {
            let reason = format!("{} cannot map memory that its kernels read; use auto or staged", found.spec.name);
            return Err(Error::InvalidArgument { option: Setting::Upload.into(), reason });
        }
        Ok(())
    }

    /// The specs of the adapters, of host memory and of the disk of the model's files.
    async fn with_host_and_disk(&self, adapters: &[AdapterFound], dtypes: &[DType]) -> Vec<DeviceSpec> {
        let mut devices: Vec<DeviceSpec> = adapters.iter().map(|found| found.spec.clone()).collect();
        devices.push(DeviceSpec { rates: machine::host_rates(self.measure, dtypes).await, ..machine::host_spec() });
        let rates = machine::disk_rates(self.model.path(), self.measure).unwrap_or_else(|error| {
            tracing::warn!("the disk was not measured: {error}");
            Rates::default()
        });
        devices.push(DeviceSpec { rates, ..machine::disk_spec() });
        devices
    }

    /// Reads headers, plans and loads.
    ///
    /// # Errors
    /// Those of [`EngineBuilder::prepare`] and [`Prepared::load`].
    pub async fn open(self) -> Result<Engine> {
        self.prepare().await?.load(&|_| {}).await
    }
}

/// What is known of a model and a machine before it is planned.
pub(super) struct Surveyed {
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) model: Model,
    pub(super) devices: Vec<DeviceSpec>,
    pub(super) options: PlanOptions,
    loras: Vec<lora::Summary>,
    pub(super) means: Means,
}

impl Surveyed {
    /// The same with its plan.
    pub(super) fn with(self, plan: Plan) -> Prepared {
        let Surveyed { checkpoint, model, devices, options, loras, mut means } = self;
        let (schedule, executors) = (Schedule::new(&plan), plan.executors());
        tracing::debug!("{executors:?} compute; {} chunks in {} steps", plan.chunks.len(), schedule.steps.len());
        let forecast = plan::forecast(&plan, &checkpoint.catalog, &model, &devices, &options);
        means.adapters.retain(|found| executors.contains(&found.spec.device));
        Prepared { checkpoint, model, devices, plan: Arc::new(plan), schedule, forecast, options, loras, means }
    }
}

/// What is asked of the planner, as far as the model says more of it.
pub(super) fn options_for(model: &Model, mut options: PlanOptions) -> PlanOptions {
    if model.is_encoder() && options.ubatch_size.is_none() {
        // Tokens see what stands behind them: all of a text goes into one forward.
        options.ubatch_size = Some(options.ctx_size.unwrap_or(model.config.context_length));
    }
    if model.gives_hidden() {
        // The next stage needs those of all tokens.
        options.logit_rows = usize::MAX;
    }
    if options.compute_on == [Device::Cpu] {
        // Where no GPU computes, none has a part in the plan.
        options.max_memory.retain(|device, _| *device == Device::Cpu);
    }
    options
}

/// Warns of options that will have no effect.
fn warn_of_vain_options(options: &PlanOptions, trained: usize) {
    if let Some(asked) = options.ctx_size.filter(|asked| *asked > trained) {
        let setting = Setting::CtxSize.field();
        tracing::warn!(setting, value = asked, "the model was trained for {trained} positions, and may answer badly beyond them");
    }
    let wants_layers = match options.resident_layers {
        ResidentLayers::Auto => false,
        ResidentLayers::AtMost(n_layers) => n_layers > 0,
        ResidentLayers::All => true,
    };
    if wants_layers && options.compute_on.iter().all(|device| *device == Device::Cpu) {
        tracing::warn!(setting = Setting::ResidentLayers.field(), "no GPU computes, the host does all; the device `gpu` demands one");
    }
}

/// Warns of budgets that are larger than a device's memory: a plan uses them all the same.
fn warn_of_large_budgets(options: &PlanOptions, devices: &[DeviceSpec]) {
    for (device, budget) in &options.max_memory {
        let spec = devices.iter().find(|spec| spec.device == *device);
        if let Some((spec, capacity)) = spec.and_then(|spec| Some((spec, spec.capacity?)))
            && *budget > capacity
        {
            let source = &spec.capacity_source;
            let (setting, value) = (Setting::MaxMemory.field(), tracing::field::display(format!("{device}={budget}")));
            tracing::warn!(setting, value, "more than the {capacity} that are usable ({source}); a run may fail that uses it all");
        }
    }
}

/// Refuses a map that leaves a part of the model without a device; names that fit nothing are reported.
fn check_map(map: &DeviceMap, tree: &ModuleTree) -> Result<()> {
    match map.check(tree) {
        Ok(notice) => {
            notice.iter().for_each(|notice| tracing::warn!("{notice}"));
            Ok(())
        }
        Err(Error::InvalidArgument { reason, .. }) => {
            let why = map.misnaming(tree).map(|why| format!("; {why}")).unwrap_or_default();
            Err(Error::InvalidArgument { option: Setting::Placement.into(), reason: format!("{reason}{why}") })
        }
        Err(other) => Err(other),
    }
}

/// The dtypes of the model's matrices.
fn dtypes_of(model: &Model, catalog: &Catalog) -> Vec<DType> {
    let mut dtypes: Vec<DType> = model.units.iter().flat_map(Unit::matrices).map(|id| catalog[id].dtype).collect();
    let has_lora = model.units.iter().flat_map(|unit| &unit.ops).any(|op| matches!(op, Op::LoraMatMul(_)));
    dtypes.extend(has_lora.then_some(DType::F32));
    dtypes.sort_unstable();
    dtypes.dedup();
    dtypes
}

/// The adapters that have a budget, or that a device map names.
fn named_adapters(options: &PlanOptions) -> Result<Vec<Device>> {
    let mut named: Vec<Device> = options.max_memory.keys().copied().collect();
    if let PlacementRule::Given(map) = &options.placement {
        for (_, key) in map.iter() {
            named.push(key.try_into()?);
        }
    }
    named.retain(|device| matches!(device, Device::Gpu(_)));
    named.sort_unstable();
    named.dedup();
    Ok(named)
}

/// These devices, and the host where it is to compute experts beside them.
fn with_host_for_experts(mut devices: Vec<Device>, placement: &PlacementRule) -> Vec<Device> {
    if matches!(placement, PlacementRule::ExpertsOnHost(_)) && !devices.contains(&Device::Cpu) {
        devices.push(Device::Cpu);
    }
    devices
}

/// The devices that may compute, in the order in which layers are given to them.
fn candidates(choice: DeviceChoice, named: &[Device], specs: &[DeviceSpec]) -> Result<Vec<Device>> {
    let demanded = match choice {
        DeviceChoice::Cpu => vec![Device::Cpu],
        DeviceChoice::GpuAt(index) => vec![Device::Gpu(index)],
        DeviceChoice::Named(word) => return candidates(word.resolve(specs)?.try_into()?, named, specs),
        DeviceChoice::Gpu if named.is_empty() => vec![Device::Gpu(0)],
        DeviceChoice::Gpu => named.to_vec(),
        // A software adapter runs on the very cores that the host executor uses better: it is taken only by name.
        DeviceChoice::Auto if named.is_empty() => {
            let real = specs.iter().filter(|spec| spec.limits.is_some() && spec.kind != Some(AdapterKind::Software));
            real.map(|spec| spec.device).chain([Device::Cpu]).collect()
        }
        DeviceChoice::Auto => named.iter().copied().chain([Device::Cpu]).collect(),
    };
    let is_there = |device: &Device| !matches!(device, Device::Gpu(_)) || specs.iter().any(|spec| spec.device == *device);
    match demanded.iter().find(|device| !is_there(device)) {
        Some(missing) => Err(no_gpu(format!("{missing} was asked for"), specs.iter().filter(|spec| spec.limits.is_some()))),
        None => Ok(demanded),
    }
}

impl Prepared {
    /// Whether a batch of this workload is computed in these halves, as [`plan::predict`] decides it.
    pub(super) fn halves_pay(&self, whole: Workload, halves: [Workload; 2]) -> bool {
        plan::halves_pay(&self.plan, &self.checkpoint.catalog, &self.model, &self.devices, whole, halves)
    }

    /// The predicted time of one forward.
    pub fn predict(&self, workload: Workload) -> Prediction {
        plan::predict(&self.plan, &self.checkpoint.catalog, &self.model, &self.devices, workload)
    }

    /// The adapter of a device that the plan computes with, where it is in this machine.
    pub fn adapter(&self, device: Device) -> Option<&AdapterFound> {
        self.means.adapters.iter().find(|found| found.spec.device == device)
    }

    /// Whether the machine that the plan is for is this one.
    pub fn is_here(&self) -> bool {
        self.means.is_here
    }

    /// The model in a line, and the plan.
    pub fn summary(&self) -> String {
        let (config, plan) = (&self.model.config, &self.plan);
        let name = if config.name.is_empty() { &self.checkpoint.path } else { &config.name };
        let loras: String = self.loras.iter().map(|lora| format!("{lora}\n")).collect();
        format!("{name}  {}  {}\n{loras}{plan}", self.checkpoint.catalog.size_bytes(), counted(config.n_layers, "layer"))
    }

    /// The plan and all that it rests on, as `tierflow plan --json` prints it; [`SavedPlan::from_json`](plan::SavedPlan::from_json) reads it.
    pub fn to_json(&self, explanation: &Explanation) -> serde_json::Value {
        let mut json = self.to_saved_json();
        json["model"] = serde_json::json!(self.checkpoint.path);
        json["explanation"] = serde_json::json!(explanation);
        json["schedule"] = serde_json::json!(self.schedule);
        json["device_specs"] = serde_json::json!(self.devices);
        if !self.loras.is_empty() {
            json["loras"] = serde_json::json!(self.loras);
        }
        json
    }

    /// The plan and what it needs to be made again, as `tierflow plan --export-plan` writes it.
    pub fn to_saved_json(&self) -> serde_json::Value {
        self.plan.to_saved_json(&self.checkpoint.catalog, &self.model, &self.devices)
    }

    /// The plan's alternatives, and what more memory would bring. Takes about as long as planning.
    pub fn explain(&self) -> Explanation {
        plan::explain(&self.plan, &self.checkpoint.catalog, &self.model, &self.devices, &self.options)
    }
}

/// Devices that were named one by one, each once.
fn checked(devices: &[Device]) -> Result<Vec<Device>> {
    if devices.contains(&Device::Disk) {
        return Err(Error::InvalidArgument {
            option: Setting::Device.into(),
            reason: "the disk computes nothing; name gpu:N or cpu".into(),
        });
    }
    let mut once: Vec<Device> = Vec::with_capacity(devices.len());
    for device in devices {
        if !once.contains(device) {
            once.push(*device);
        }
    }
    Ok(once)
}
