//! From arguments to an engine: budgets and options. Shared by every subcommand with a model.

use std::path::Path;

use crate::cli::args::{GpuLayers, IoArg, KvDtypeArg, PlacementArgs, UploadArg};
use crate::cli::terminal::{Progress, Visibility};
use crate::device::GpuLimits;
use crate::engine::{Engine, EngineBuilder, Prepared};
use crate::error::Result;
use crate::plan::{KvDType, PlanOptions, ResidentLayers, UploadPath};
use crate::platform::IoMode;

/// An engine builder with all that `placement` says.
///
/// # Errors
/// [`crate::error::Error::InvalidArgument`] for options that contradict each other.
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
