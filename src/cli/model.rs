//! From arguments to an engine: budgets and options. Shared by every subcommand with a model.

use std::path::Path;

use crate::cli::args::{DeviceMapArg, GpuLayers, IoArg, KernelsArg, KvDtypeArg, ObjectiveArg, PlacementArgs, UploadArg};
use crate::cli::terminal::{Progress, Visibility, note};
use crate::device::{GpuLimits, KernelChoice};
use crate::engine::{Engine, EngineBuilder, Prepared};
use crate::error::{Error, Result};
use crate::machine::Measure;
use crate::plan::accelerate::{DeviceMap, DeviceMapMode};
use crate::plan::{Context, Homes, KvDType, Mix, Objective, PlanOptions, ResidentLayers, Spill, UploadPath};
use crate::platform::{self, IoMode};

/// No device map is longer.
const MAP_BYTES_MAX: u64 = 64 << 20;

/// An engine builder with all that `placement` says.
///
/// # Errors
/// [`crate::error::Error::InvalidArgument`] for options that contradict each other.
pub fn builder(model: &Path, placement: &PlacementArgs, options: PlanOptions) -> Result<EngineBuilder> {
    // 0 leaves the number to the machine.
    start_threads(placement.threads.filter(|n_threads| *n_threads > 0))?;
    let kv_dtype = match placement.kv_dtype()? {
        None | Some(KvDtypeArg::F16) => KvDType::F16,
        Some(KvDtypeArg::F32) => KvDType::F32,
    };
    let io = match placement.io {
        None | Some(IoArg::Pread) => IoMode::Pread,
        Some(IoArg::Mmap) => IoMode::Mmap,
    };
    // --batch-size is what a user of llama.cpp sets to bound a prompt's memory; forwards are never larger.
    let ubatch_size = [placement.batch_size, placement.ubatch_size].into_iter().flatten().min();
    if placement.no_split.is_some() && matches!(placement.device_map, DeviceMapArg::Auto | DeviceMapArg::File(_)) {
        let fault = "is for Accelerate's rules: add --device-map sequential, balanced or balanced_low_0".into();
        return Err(Error::InvalidArgument { option: "--no-split".into(), fault });
    }
    let options = PlanOptions {
        max_memory: placement.max_memory.clone().unwrap_or_default().iter().collect(),
        homes: homes(&placement.device_map)?,
        no_split: placement.no_split.clone().map(|classes| classes.0),
        objective: match placement.objective {
            ObjectiveArg::Latency => Objective::Latency,
            ObjectiveArg::Throughput => Objective::Throughput,
        },
        mix: Mix { n_prompt: placement.mix.n_prompt as usize, n_generated: placement.mix.n_generate as usize },
        spill: if placement.strict { Spill::Refused } else { Spill::Allowed },
        context: if placement.fit { Context::Fit } else { Context::Comfortable },
        n_seqs: placement.n_seqs.filter(|n_seqs| *n_seqs > 0).map_or(options.n_seqs, |n_seqs| n_seqs as usize),
        ctx_size: (placement.ctx_size > 0).then_some(placement.ctx_size as usize),
        ubatch_size: options.ubatch_size.or(ubatch_size.map(|n_tokens| n_tokens as usize)),
        kv_dtype,
        resident_layers: match placement.n_gpu_layers {
            GpuLayers::Auto => ResidentLayers::Auto,
            GpuLayers::All => ResidentLayers::All,
            GpuLayers::Count(n_layers) => ResidentLayers::AtMost(n_layers as usize),
        },
        n_slots: placement.slots.map(|n_slots| n_slots as usize),
        lookahead: placement.lookahead.map(|lookahead| lookahead as usize),
        upload: match placement.upload {
            UploadArg::Auto => None,
            UploadArg::Mapped => Some(UploadPath::Mapped),
            UploadArg::Staged => Some(UploadPath::Staged),
        },
        ..options
    };
    let limits = (placement.limit_buffer.is_some() || placement.limit_binding.is_some()).then(|| {
        let defaults = GpuLimits::default();
        GpuLimits {
            max_buffer_bytes: placement.limit_buffer.unwrap_or(defaults.max_buffer_bytes),
            max_binding_bytes: placement.limit_binding.unwrap_or(defaults.max_binding_bytes),
            ..defaults
        }
    });
    let measure = if placement.no_measure { Measure::Never } else { Measure::Quick };
    let builder = Engine::builder(model).device(placement.device).io(io).limits(limits).plan_options(options);
    let kernels = match placement.kernels {
        KernelsArg::Auto => KernelChoice::Auto,
        KernelsArg::Portable => KernelChoice::Portable,
    };
    Ok(builder.measure(measure).kernels(kernels).virtual_gpus(placement.virtual_gpus as usize))
}

/// Starts the threads that were asked for, but no more than run at once: others would only wait for a core.
fn start_threads(asked: Option<u32>) -> Result<()> {
    let most = platform::n_threads();
    if let Some(asked) = asked.filter(|asked| *asked as usize > most) {
        note(&format!("--threads {asked}: {most} run at once here, and so many are started\n"));
    }
    platform::start_threads(asked.map(|asked| most.min(asked as usize)))
}

/// The rule by which weights find their homes; a map is read from its file.
fn homes(argument: &DeviceMapArg) -> Result<Homes> {
    Ok(match argument {
        DeviceMapArg::Auto => Homes::Auto,
        DeviceMapArg::Sequential => Homes::Accelerate(DeviceMapMode::Sequential),
        DeviceMapArg::Balanced => Homes::Accelerate(DeviceMapMode::Balanced),
        DeviceMapArg::BalancedLow0 => Homes::Accelerate(DeviceMapMode::BalancedLow0),
        DeviceMapArg::File(path) => {
            let json = platform::read_text(path, MAP_BYTES_MAX)?;
            Homes::Given(DeviceMap::from_json(&json, &path.display().to_string())?)
        }
    })
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
