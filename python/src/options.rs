//! How a model is opened, as Python's arguments say it, and where it lies.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tierflow::accelerate::{DeviceMap, DeviceMapMode};
use tierflow::device::{DeviceChoice, KernelChoice, MaxMemory};
use tierflow::engine::{EngineBuilder, Prepared};
use tierflow::hub::{self, HubConfig};
use tierflow::lora::{Adapter, Scales};
use tierflow::machine::{Measure, read_devices_file};
use tierflow::plan::{Context, ExpertCacheRule, HostLayers, PlacementRule, PlanOptions, ResidentLayers, Spill, UploadPath};
use tierflow::platform::{IoMode, block_on, start_threads};
use tierflow::{Engine, Error, KvDType, Result};

use crate::wait::Progress;

/// Positions whose logits one forward gives: as many as `tierflow logits --all` asks for.
pub const LOGIT_ROWS: usize = 16;
/// The same of an engine that makes embeddings, as `tierflow embed` asks for.
const EMBEDDING_ROWS: usize = 512;

/// The arguments of `tierflow.Engine`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    pub model: String,
    device: String,
    device_map: Value,
    no_split_module_classes: Option<Vec<String>>,
    /// `gpu:0=4GiB,cpu=16GiB`.
    max_memory: Option<String>,
    ctx_size: usize,
    n_seqs: usize,
    /// -1 asks for all of them.
    n_gpu_layers: Option<i64>,
    n_cpu_moe: Option<usize>,
    kv_dtype: String,
    ubatch_size: Option<usize>,
    slots: Option<usize>,
    lookahead: Option<usize>,
    upload: String,
    io: String,
    kernels: String,
    expert_cache: String,
    strict: bool,
    fit: bool,
    measure: bool,
    gpu_timeout: f64,
    virtual_gpus: usize,
    threads: Option<usize>,
    /// Whether it makes embeddings; an encoder does in any case.
    embedding: bool,
    /// Whether a model that is not here is fetched.
    pub fetch: bool,
    /// A file that describes the machine to plan for.
    machine: Option<PathBuf>,
    /// Folders or GGUF files of LoRA adapters, and their scales.
    lora: Vec<(PathBuf, f32)>,
    /// The layers from the first to the one behind the last, where other machines compute the others.
    #[serde(default)]
    pub layers: Option<(usize, usize)>,
}

impl Options {
    /// The arguments as Python's side writes them.
    pub fn from_json(json: &str) -> Result<Options> {
        serde_json::from_str(json).map_err(|error| Error::internal(format!("the options cannot be read: {error}")))
    }

    /// The plan for the model at `path`, with its head or, where embeddings are asked for or it is an encoder, without.
    pub fn prepare(&self, path: &Path) -> Result<Prepared> {
        start_threads(self.threads.filter(|n_threads| *n_threads > 0))?;
        if self.embedding {
            return self.prepare_embedder(path);
        }
        if let Some((first, end)) = self.layers {
            return block_on(self.builder_of_text(path)?.layers(first..end).prepare());
        }
        let prepared = block_on(self.builder_of_text(path)?.lora_scales(Scales::Chosen).prepare())?;
        // Of an encoder, that is known only now.
        if prepared.model.has_head() { Ok(prepared) } else { self.prepare_embedder(path) }
    }

    /// How a model that generates is opened.
    pub fn builder_of_text(&self, path: &Path) -> Result<EngineBuilder> {
        Ok(self.builder(path, LOGIT_ROWS)?.text_first())
    }

    fn prepare_embedder(&self, path: &Path) -> Result<Prepared> {
        block_on(self.builder(path, EMBEDDING_ROWS)?.without_head().text_first().prepare())
    }

    fn builder(&self, path: &Path, logit_rows: usize) -> Result<EngineBuilder> {
        let upload = match self.upload.as_str() {
            "auto" => None,
            "mapped" => Some(UploadPath::Mapped),
            "staged" => Some(UploadPath::Staged),
            other => return Err(invalid("upload", format!("`{other}` is none of auto, mapped and staged"))),
        };
        let kernels = match self.kernels.as_str() {
            "auto" => KernelChoice::Auto,
            "portable" => KernelChoice::Portable,
            other => return Err(invalid("kernels", format!("`{other}` is neither auto nor portable"))),
        };
        let io = io_mode(&self.io)?;
        let resident_layers = match self.n_gpu_layers {
            None => ResidentLayers::Auto,
            Some(n_layers) => usize::try_from(n_layers).map_or(ResidentLayers::All, ResidentLayers::AtMost),
        };
        let max_memory: MaxMemory = self.max_memory.as_deref().map(str::parse).transpose()?.unwrap_or_default();
        let options = PlanOptions {
            max_memory: max_memory.iter().collect(),
            ctx_size: (self.ctx_size > 0).then_some(self.ctx_size),
            context: if self.fit { Context::Fit } else { Context::Comfortable },
            placement: self.placement()?,
            no_split: self.no_split_module_classes.clone(),
            spill: if self.strict { Spill::Refused } else { Spill::Allowed },
            n_seqs: self.n_seqs,
            ubatch_size: self.ubatch_size,
            logit_rows,
            kv_dtype: self.kv_dtype.parse::<KvDType>()?,
            resident_layers,
            expert_cache: self.expert_cache.parse::<ExpertCacheRule>()?,
            n_slots: self.slots,
            lookahead: self.lookahead,
            upload,
            ..PlanOptions::default()
        };
        let timeout = Duration::try_from_secs_f64(self.gpu_timeout)
            .map_err(|_| invalid("gpu_timeout", format!("{} is no number of seconds", self.gpu_timeout)))?;
        let mut builder = Engine::builder(path)
            .device(self.device.parse::<DeviceChoice>()?)
            .io(io)
            .plan_options(options)
            .measure(if self.measure { Measure::Quick } else { Measure::Never })
            .kernels(kernels)
            .virtual_gpus(self.virtual_gpus)
            .gpu_timeout(timeout);
        for (folder, scale) in &self.lora {
            builder = builder.lora(Arc::new(Adapter::open(folder)?), *scale);
        }
        match &self.machine {
            Some(file) => Ok(builder.machine(read_devices_file(file)?)),
            None => Ok(builder),
        }
    }

    /// `auto` places by rates, the other words of Accelerate's by its rules, and an object is a map.
    fn placement(&self) -> Result<PlacementRule> {
        Ok(match (&self.device_map, self.n_cpu_moe) {
            (_, Some(n_layers)) => PlacementRule::ExpertsOnHost(HostLayers::First(n_layers)),
            (Value::Null, None) => PlacementRule::Auto,
            (Value::String(rule), None) if rule == "auto" => PlacementRule::Auto,
            (Value::String(rule), None) => PlacementRule::Accelerate(rule.parse::<DeviceMapMode>()?),
            (map, None) => PlacementRule::Given(DeviceMap::from_json(&map.to_string(), "device_map")?),
        })
    }
}

/// Where the model that is called `name` lies: a path, or a model in the hub's cache, which is brought there where `fetches`.
pub fn locate(name: &str, fetches: bool, progress: &Progress) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    let is_path_of_gguf = !name.contains(':') && name.to_ascii_lowercase().ends_with(".gguf");
    if path.exists() || is_path_of_gguf || !hub::looks_like_model_ref(name) {
        return Ok(path);
    }
    let (config, model) = (HubConfig::from_env()?, hub::parse_model_ref(name)?);
    if let Some(path) = hub::cached(&config, &model)? {
        return Ok(path);
    }
    if !fetches {
        let reason = format!("`{name}` is no folder or file, and not (wholly) in {}; allow fetch=True", config.cache_dir.display());
        return Err(invalid("model", reason));
    }
    hub::pull(&config, &model, &mut |fetched| progress.note(fetched.done.0, fetched.total.0)).map(|pulled| pulled.path)
}

/// How weights are read.
pub fn io_mode(word: &str) -> Result<IoMode> {
    match word {
        "pread" => Ok(IoMode::Pread),
        "mmap" => Ok(IoMode::Mmap),
        other => Err(invalid("io", format!("`{other}` is neither pread nor mmap"))),
    }
}

/// A refusal of the argument `argument`.
pub fn invalid(argument: &str, reason: String) -> Error {
    Error::InvalidArgument { option: argument.into(), reason }
}
