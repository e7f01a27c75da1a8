//! From arguments to an engine: budgets and options. Shared by every subcommand with a model.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::accelerate::{DeviceMap, DeviceMapMode};
use crate::cli::args::{DeviceMapArg, GpuLayers, IoArg, KernelsArg, LoraArg, ModelSource, ObjectiveArg, PlacementArgs, UploadArg};
use crate::cli::expert_profile;
use crate::cli::locate::locate_or_fetch;
use crate::cli::terminal::{Progress, Visibility, note};
use crate::device::{GpuLimits, KernelChoice};
use crate::engine::{Engine, EngineBuilder, Prepared};
use crate::error::{Error, Result};
use crate::lora::Scaled;
use crate::machine::Measure;
use crate::plan::{Context, Mix, Objective, PlacementRule, PlanOptions, ResidentLayers, SavedPlan, Spill, UploadPath};
use crate::platform;
use crate::session::{DraftSource, Speculation};
use crate::stream::MAX_TOKENS_TOGETHER;
use crate::units::Bytes;

/// The longest device map that is read.
const MAP_BYTES_MAX: u64 = 64 << 20;
/// The longest plan that is read; one of a thousand layers in `plan --json` has some megabytes.
const PLAN_BYTES_MAX: u64 = 256 << 20;

/// Where a model goes, checked before one is looked for.
#[derive(Clone)]
pub struct Placement<'a> {
    args: &'a PlacementArgs,
    options: PlanOptions,
}

impl<'a> Placement<'a> {
    /// All that `args` say, over `options`.
    ///
    /// # Errors
    /// [`crate::error::Error::InvalidArgument`] for options that contradict each other; those of reading a device map or a plan.
    pub fn of(args: &'a PlacementArgs, options: PlanOptions) -> Result<Placement<'a>> {
        args.drafts.check()?;
        if let Some(file) = &args.plan {
            let saved = SavedPlan::from_json(&platform::read_text(file, PLAN_BYTES_MAX)?, &file.display().to_string())?;
            // A plan from a file holds everything that shapes it.
            let options = PlanOptions { saved: Some(Arc::new(saved)), ..PlanOptions::default() };
            return Ok(Placement { args, options: with_purpose(args, options)? });
        }
        if args.no_split.is_some() && matches!(args.device_map, DeviceMapArg::Auto | DeviceMapArg::File(_)) {
            let reason = "is for Accelerate's rules: add --device-map sequential, balanced or balanced_low_0".into();
            return Err(Error::InvalidArgument { option: "--no-split".into(), reason });
        }
        // --batch-size is what a user of llama.cpp sets to bound a prompt's memory; forwards are never larger.
        let ubatch_size = [args.batch_size, args.ubatch_size].into_iter().flatten().min();
        let options = PlanOptions {
            placement: match args.experts_on_host()? {
                Some(layers) => PlacementRule::ExpertsOnHost(layers),
                None => placement_rule(&args.device_map)?,
            },
            no_split: args.no_split.clone().map(|classes| classes.0),
            spill: if args.strict { Spill::Refused } else { Spill::Allowed },
            context: if args.fit { Context::Fit } else { Context::Comfortable },
            n_seqs: args.n_seqs.filter(|n_seqs| *n_seqs > 0).map_or(options.n_seqs, |n_seqs| n_seqs as usize),
            ctx_size: (args.ctx_size > 0).then_some(args.ctx_size as usize),
            kv_size: args.kv_size.map(|kv_size| kv_size as usize),
            ubatch_size: options.ubatch_size.or(ubatch_size.map(|n_tokens| n_tokens as usize)),
            kv_dtype: args.kv_dtype(),
            resident_layers: match args.n_gpu_layers {
                GpuLayers::Auto => ResidentLayers::Auto,
                GpuLayers::All => ResidentLayers::All,
                GpuLayers::Count(n_layers) => ResidentLayers::AtMost(n_layers as usize),
            },
            n_slots: args.slots.map(|n_slots| n_slots as usize),
            lookahead: args.lookahead.map(|lookahead| lookahead as usize),
            expert_cache: args.expert_cache,
            expert_misses: args.expert_misses,
            // Each drafted token has logits of its own, and so has the one that is due.
            logit_rows: match args.drafts.speculation().source {
                DraftSource::None => options.logit_rows,
                DraftSource::NgramSimple | DraftSource::Model => {
                    options.logit_rows.max(MAX_TOKENS_TOGETHER.min(args.drafts.draft_max as usize + 1))
                }
            },
            upload: match args.upload {
                UploadArg::Auto => None,
                UploadArg::Mapped => Some(UploadPath::Mapped),
                UploadArg::Staged => Some(UploadPath::Staged),
            },
            ..options
        };
        Ok(Placement { args, options: with_purpose(args, options)? })
    }

    /// The same for work with one sequence, whatever `--objective` and `--n-seqs` say.
    pub fn of_one_sequence(mut self) -> Placement<'a> {
        self.options.objective = Objective::Latency;
        self
    }

    /// The same for work that is all its sequences at once.
    pub fn of_many_sequences(mut self) -> Placement<'a> {
        self.options.objective = Objective::Throughput;
        self
    }

    /// An engine builder for `model`.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] where the system gives no thread; those of reading adapters.
    pub fn builder(self, model: &Path) -> Result<EngineBuilder> {
        let Placement { args, options } = self;
        // 0 leaves the number to the machine.
        start_threads(args.threads.filter(|n_threads| *n_threads > 0))?;
        let io = IoArg::mode(args.io);
        let limits = (args.limit_buffer.is_some() || args.limit_binding.is_some()).then(|| {
            let defaults = GpuLimits::default();
            GpuLimits {
                max_buffer_bytes: args.limit_buffer.unwrap_or(defaults.max_buffer_bytes),
                max_binding_bytes: args.limit_binding.unwrap_or(defaults.max_binding_bytes),
                ..defaults
            }
        });
        let builder = Engine::builder(model).device(args.device).io(io).limits(limits).plan_options(options);
        let loras = LoraArg::read(&args.lora.lora)?.into_iter();
        Ok(with_machine(loras.fold(builder, |builder, Scaled { adapter, scale }| builder.lora(adapter, scale)), args))
    }
}

/// `builder` for the machine as `args` describe it.
fn with_machine(builder: EngineBuilder, args: &PlacementArgs) -> EngineBuilder {
    let measure = if args.no_measure { Measure::Never } else { Measure::Quick };
    let kernels = match args.kernels {
        KernelsArg::Auto => KernelChoice::Auto,
        KernelsArg::Portable => KernelChoice::Portable,
    };
    let builder = builder.measure(measure).kernels(kernels).virtual_gpus(args.virtual_gpus as usize);
    builder.gpu_timeout(Duration::from_secs(args.gpu_timeout.into()))
}

/// Plans a model by `builder`, beside the model that drafts for it where there is one: that one is opened first, for as many sequences and
/// no longer texts, and what it takes is left out of the budgets.
///
/// # Errors
/// Those of planning both, and of opening the small one.
pub fn prepare_with_draft(
    args: &PlacementArgs,
    visibility: Visibility,
    builder: impl Fn() -> Result<EngineBuilder>,
) -> Result<(Prepared, Option<Engine>)> {
    let prepared = pollster::block_on(builder()?.prepare())?;
    let Some(name) = &args.drafts.model_draft else { return Ok((prepared, None)) };
    let path = locate_or_fetch(&ModelSource::Named(name.clone()), visibility)?;
    let budgets = args.max_memory.clone().unwrap_or_default();
    let draft = |ctx_size| {
        let n_seqs = prepared.plan.n_seqs;
        let options = PlanOptions { n_seqs, logit_rows: n_seqs, ctx_size, max_memory: budgets.iter().collect(), ..PlanOptions::default() };
        let builder = Engine::builder(&path).device(args.drafts.device_draft).plan_options(options);
        pollster::block_on(with_machine(builder, args).text_first().prepare())
    };
    let mut drafting = draft(None)?;
    if drafting.plan.ctx_size > prepared.plan.ctx_size {
        drafting = draft(Some(prepared.plan.ctx_size))?;
    }
    let draft = load_with_bar(drafting, visibility)?;
    let mut builder = builder()?;
    for (device, budget) in budgets.iter() {
        let taken = draft.plan().device(device).map_or(Bytes::ZERO, |plan| plan.used.total());
        builder = builder.max_memory(device, budget.saturating_sub(taken));
    }
    Ok((pollster::block_on(builder.prepare())?, Some(draft)))
}

/// Loads a model, and lets `draft` draft for it.
///
/// # Errors
/// Those of loading; [`Error::InvalidArgument`] where the two do not fit each other.
pub fn load_with_draft(prepared: Prepared, draft: Option<Engine>, visibility: Visibility) -> Result<Engine> {
    let mut engine = load_with_bar(prepared, visibility)?;
    if let Some(draft) = draft {
        engine.draft_with(draft).map_err(|error| match error {
            Error::InvalidArgument { reason, .. } => Error::InvalidArgument { option: "--model-draft".into(), reason },
            error => error,
        })?;
    }
    Ok(engine)
}

/// `options` for the memory that may be used and what it is used for.
fn with_purpose(args: &PlacementArgs, options: PlanOptions) -> Result<PlanOptions> {
    Ok(PlanOptions {
        max_memory: args.max_memory.clone().unwrap_or_default().iter().collect(),
        objective: match args.objective {
            ObjectiveArg::Latency => Objective::Latency,
            ObjectiveArg::Throughput => Objective::Throughput,
        },
        mix: Mix { n_prompt: args.mix.n_prompt as usize, n_generated: args.mix.n_generate as usize },
        expert_profile: args.expert_profile.as_deref().map(expert_profile::read).transpose()?.flatten().map(Arc::new),
        ..options
    })
}

/// Starts the threads that were asked for, but no more than run at once: others would only wait for a core.
fn start_threads(asked: Option<u32>) -> Result<()> {
    let most = platform::n_threads();
    if let Some(asked) = asked.filter(|asked| *asked as usize > most) {
        note(&format!("--threads {asked}: {most} are started, as many as run at once here\n"));
    }
    platform::start_threads(asked.map(|asked| most.min(asked as usize)))
}

/// The rule of placement; a device map is read from its file.
fn placement_rule(argument: &DeviceMapArg) -> Result<PlacementRule> {
    Ok(match argument {
        DeviceMapArg::Auto => PlacementRule::Auto,
        DeviceMapArg::Sequential => PlacementRule::Accelerate(DeviceMapMode::Sequential),
        DeviceMapArg::Balanced => PlacementRule::Accelerate(DeviceMapMode::Balanced),
        DeviceMapArg::BalancedLow0 => PlacementRule::Accelerate(DeviceMapMode::BalancedLow0),
        DeviceMapArg::File(path) => {
            let json = platform::read_text(path, MAP_BYTES_MAX)?;
            PlacementRule::Given(DeviceMap::from_json(&json, &path.display().to_string())?)
        }
    })
}

/// Says so where tokens are to be drafted and cannot be.
pub fn warn_of_vain_drafts(prepared: &Prepared, speculation: &Speculation) {
    if speculation.source == DraftSource::None {
        return;
    }
    match prepared.most_drafted() {
        Ok(most) if most < speculation.least => tracing::warn!("nothing is drafted: at most {most} tokens can be"),
        Ok(_) => {}
        Err(reason) => tracing::warn!("nothing is drafted: {reason}"),
    }
}

/// Loads with a bar on stderr.
///
/// # Errors
/// Those of loading.
pub fn load_with_bar(prepared: Prepared, visibility: Visibility) -> Result<Engine> {
    let bar = Progress::new(visibility);
    let engine = pollster::block_on(prepared.load(&|progress| bar.update("loading", progress.done, progress.total)));
    bar.finish();
    engine
}
