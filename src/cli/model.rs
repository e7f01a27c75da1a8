//! From arguments to an engine: which files, which budgets, which options. Shared by every subcommand with a model.

use std::path::{Path, PathBuf};

use crate::cli::args::{GpuLayers, IoArg, KvDtypeArg, ModelSource, PlacementArgs, UploadArg};
use crate::cli::pull::pull_with_bar;
use crate::cli::terminal::{Progress, Visibility};
use crate::device::GpuLimits;
use crate::engine::{Engine, EngineBuilder, Prepared};
use crate::error::{Error, Result};
use crate::hub::{self, HubConfig};
use crate::plan::{KvDType, PlanOptions, ResidentLayers, UploadPath};
use crate::platform::IoMode;

/// The files of a model: a path, a model in the hub's cache, or one that is fetched now.
///
/// # Errors
/// Where nothing of that name is there; those of fetching.
pub fn locate(source: &ModelSource, visibility: Visibility) -> Result<PathBuf> {
    match source {
        ModelSource::Named(name) if Path::new(name).exists() => Ok(name.into()),
        ModelSource::Named(name) => {
            let not_there = || Error::InvalidArgument {
                option: "MODEL".into(),
                fault: format!("`{name}` is neither a folder nor a file, nor a model in the cache; `tierflow ls` lists those, `tierflow pull ORG/NAME` fetches one"),
            };
            let model = hub::parse_model_ref(name).map_err(|_| not_there())?;
            hub::cached(&HubConfig::from_env()?, &model)?.ok_or_else(not_there)
        }
        ModelSource::Hub(model) => {
            let config = HubConfig::from_env()?;
            match hub::cached(&config, model)? {
                Some(path) => Ok(path),
                None => Ok(pull_with_bar(&config, model, visibility)?.path),
            }
        }
    }
}

/// An engine builder with all that `placement` says.
///
/// # Errors
/// [`Error::InvalidArgument`] for options that contradict each other.
pub fn builder(model: &Path, placement: &PlacementArgs, options: PlanOptions) -> Result<EngineBuilder> {
    if let Some(n_threads) = placement.threads {
        // A pool that was made before keeps its size; then this is a no-op.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(n_threads as usize).build_global();
    }
    let kv_dtype = match placement.kv_dtype()? {
        None | Some(KvDtypeArg::F32) => KvDType::F32,
        Some(KvDtypeArg::F16) => KvDType::F16,
    };
    let io = match placement.io {
        None | Some(IoArg::Pread) => IoMode::Pread,
        Some(IoArg::Mmap) => IoMode::Mmap,
    };
    // --batch-size is what a user of llama.cpp sets to bound a prompt's memory; forwards are never larger.
    let ubatch_size = [placement.batch_size, placement.ubatch_size].into_iter().flatten().min();
    let options = PlanOptions {
        max_memory: placement.max_memory.clone().unwrap_or_default().iter().collect(),
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
    Ok(Engine::builder(model).device(placement.device).io(io).limits(limits).plan_options(options))
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
