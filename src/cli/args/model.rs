//! Which model, and where it goes: the options that every subcommand with a model shares.

use std::ffi::{OsStr, OsString};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{FalseyValueParser, OsStringValueParser, PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, ArgAction, Args, ValueEnum};

use super::drafts::DraftArgs;
use super::lora::LoraArgs;
use super::override_tensor::OverrideTensors;
use super::planning::{DeviceMapArg, MixArg, NoSplitArg, ObjectiveArg};
use super::{parse_or_default, parse_positive, parse_positive_or_default, parse_value};
use crate::device::{DeviceChoice, MaxMemory};
use crate::error::{Error, Result};
use crate::hub::{ModelRef, parse_model_ref};
use crate::plan::{CacheDType, ExpertCacheRule, ExpertMissRule, HostLayers, KvDType};
use crate::platform::IoMode;
use crate::units::Bytes;

/// Which model.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Folder, .gguf file, or ORG/NAME:QUANT in the Hugging Face cache
    ///
    /// `run` fetches what the cache lacks.
    #[arg(value_name = "MODEL")]
    pub model: Option<OsString>,
    /// The same as MODEL
    #[arg(id = "model_flag", short = 'm', long = "model", env = "TIERFLOW_MODEL", value_name = "MODEL")]
    pub model_flag: Option<OsString>,
    /// ORG/NAME:QUANT, fetched where the cache lacks it (-hf)
    ///
    /// A model on a Hugging Face hub.
    #[arg(long, env = "TIERFLOW_HF_REPO", value_name = "NAME")]
    pub hf_repo: Option<String>,
    /// File of --hf-repo (-hff)
    #[arg(long, env = "TIERFLOW_HF_FILE", value_name = "FILE", requires = "hf_repo")]
    pub hf_file: Option<String>,
}

/// Where a model comes from, before anything has been looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder or file if there is one of that name, else a model in the hub's cache.
    Named(OsString),
    /// A model on the hub, to be fetched where the cache lacks it.
    Hub(ModelRef),
}

impl ModelArgs {
    /// The one model that is named.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where none is named, or two.
    pub fn source(&self) -> Result<ModelSource> {
        choose_source(self, self.model.as_deref())
    }
}

/// The first word, where it is no model but a text.
///
/// # Errors
/// [`Error::InvalidArgument`] where it is not UTF-8.
pub(super) fn first_word_as_text(args: &ModelArgs) -> Result<Option<String>> {
    let invalid = |_| Error::InvalidArgument { option: "TEXT".into(), reason: "is not UTF-8; give -f FILE".into() };
    args.model.clone().map(|word| word.into_string().map_err(invalid)).transpose()
}

/// The model among the flags of `args` and the word `positional`.
pub(super) fn choose_source(args: &ModelArgs, positional: Option<&OsStr>) -> Result<ModelSource> {
    let invalid = |reason: &str| Error::InvalidArgument { option: "MODEL".into(), reason: reason.into() };
    match (positional, args.model_flag.as_deref(), args.hf_repo.as_deref()) {
        (Some(named), None, None) | (None, Some(named), None) => Ok(ModelSource::Named(named.to_owned())),
        (None, None, Some(repo)) => {
            let mut model = parse_model_ref(repo)?;
            if let Some(file) = &args.hf_file {
                model = parse_model_ref(&format!("{}:{file}", model.repo))?;
            }
            Ok(ModelSource::Hub(model))
        }
        (None, None, None) => {
            Err(invalid("no model is named; give a folder, a .gguf file, or ORG/NAME of a hub, as in HuggingFaceTB/SmolLM2-135M-Instruct"))
        }
        _ => Err(invalid("the model is named twice; give MODEL, -m or -hf, and only one of them")),
    }
}

/// Where the model goes and how it gets there. The options that `--help` shows are the settings of the config file.
#[derive(Debug, Clone, Args)]
#[command(mut_args(with_revocable_switch))]
pub struct PlacementArgs {
    /// Memory to use, as in gpu:0=4GiB,cpu=16GiB
    ///
    /// Of a device that is not named, all free memory is used, less a margin.
    #[arg(long, env = "TIERFLOW_MAX_MEMORY", value_name = "SIZES", value_parser = parse_value::<MaxMemory>)]
    pub max_memory: Option<MaxMemory>,
    /// What computes: auto, cpu, gpu, gpu:N
    ///
    /// Or by vendor: cuda, cuda:N, xpu, mps. Also -dev.
    #[arg(long, env = "TIERFLOW_DEVICE", default_value = "auto", value_parser = parse_value::<DeviceChoice>)]
    pub device: DeviceChoice,
    /// What the plan is made for
    #[arg(long, env = "TIERFLOW_OBJECTIVE", value_name = "GOAL", default_value = "latency")]
    pub objective: ObjectiveArg,
    /// Rule of placement: auto is by measured rates; sequential, balanced and balanced_low_0 are those of Hugging Face
    /// Accelerate; FILE.json is a map that Accelerate, transformers or `tierflow plan --export-device-map` wrote
    #[arg(
        long, env = "TIERFLOW_DEVICE_MAP", value_name = "RULE|FILE.json", default_value_t,
        value_parser = OsStringValueParser::new().try_map(|text| DeviceMapArg::from_os(&text))
    )]
    pub device_map: DeviceMapArg,
    /// Use the plan in this file, which `tierflow plan --export-plan` or `plan --json` wrote, if it still fits
    ///
    /// It cannot be combined with options that shape a plan, such as -c, -ngl and --device-map; --max-memory limits it.
    #[arg(long, env = "TIERFLOW_PLAN", value_name = "FILE.json", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub plan: Option<PathBuf>,
    /// Classes of modules that Accelerate's rules keep whole: names with commas, or none to split inside layers; by default
    /// layers stay whole
    #[arg(long, env = "TIERFLOW_NO_SPLIT", value_name = "none|CLASS,…", value_parser = parse_value::<NoSplitArg>)]
    pub no_split: Option<NoSplitArg>,
    /// Refuse a plan that puts weights anywhere but on the devices named in --max-memory or --device
    #[arg(long, env = "TIERFLOW_STRICT")]
    pub strict: bool,
    /// The largest context with which nothing streams
    ///
    /// Every weight stays resident. Where that cannot be, the error says what to change.
    #[arg(long, env = "TIERFLOW_FIT")]
    pub fit: bool,
    /// Prompt and generated tokens of a typical request, for which the plan is made
    #[arg(long, env = "TIERFLOW_MIX", value_name = "PROMPT:GENERATE", default_value_t, value_parser = parse_value::<MixArg>)]
    pub mix: MixArg,
    /// Sequences that are generated at once (-np)
    #[arg(long, visible_alias = "parallel", env = "TIERFLOW_N_SEQS", value_name = "N")]
    #[arg(value_parser = parse_positive_or_default, allow_negative_numbers = true)]
    pub n_seqs: Option<u32>,
    /// Positions of context; 0: the model's
    ///
    /// With 0 there are fewer where the budgets have no room for the model's.
    #[arg(short, long, env = "TIERFLOW_CTX_SIZE", default_value_t = 0, value_name = "N")]
    #[arg(value_parser = parse_or_default, allow_negative_numbers = true)]
    pub ctx_size: u32,
    /// Tokens in the KV cache of all sequences together
    ///
    /// Sequences take room as they grow, and share what they begin with. Without it, there is room for the whole context of each. What -c is to
    /// llama.cpp with --kv-unified. Answers of a server that find no room for their next tokens are paused in host memory (--cache-ram).
    #[arg(long, env = "TIERFLOW_KV_SIZE", value_name = "N", value_parser = parse_positive)]
    pub kv_size: Option<u32>,
    /// Layers on GPUs at most (-ngl)
    ///
    /// The most layers that may be resident there: a number, auto or all.
    #[arg(long, alias = "gpu-layers", env = "TIERFLOW_N_GPU_LAYERS", default_value = "auto", value_name = "N")]
    #[arg(value_parser = parse_value::<GpuLayers>, allow_negative_numbers = true)]
    pub n_gpu_layers: GpuLayers,
    /// Most prompt tokens in one forward
    #[arg(short, long, env = "TIERFLOW_BATCH_SIZE", value_name = "N", value_parser = parse_positive)]
    pub batch_size: Option<u32>,
    /// Most prompt tokens that a kernel sees at once (-ub)
    #[arg(long, env = "TIERFLOW_UBATCH_SIZE", value_name = "N", value_parser = parse_positive)]
    pub ubatch_size: Option<u32>,
    /// Data type of the KV cache (-ctk, -ctv)
    ///
    /// Of keys and of values, or of each: q8_0/q4_0. -ctk sets that of keys, -ctv that of values.
    #[arg(long, env = "TIERFLOW_KV_DTYPE", value_name = "DTYPE", value_parser = CacheDTypes::<KvDType>(PhantomData))]
    pub kv_dtype: Option<KvDType>,
    /// llama.cpp's option for keys alone.
    #[arg(long, env = "TIERFLOW_CACHE_TYPE_K", hide = true, value_parser = CacheDTypes::<CacheDType>(PhantomData))]
    pub cache_type_k: Option<CacheDType>,
    /// The same for values.
    #[arg(long, env = "TIERFLOW_CACHE_TYPE_V", hide = true, value_parser = CacheDTypes::<CacheDType>(PhantomData))]
    pub cache_type_v: Option<CacheDType>,
    /// How weights are read from files
    #[arg(long, env = "TIERFLOW_IO", value_name = "MODE")]
    pub io: Option<IoArg>,
    /// Units fetched and uploaded ahead of the one that computes
    #[arg(long, env = "TIERFLOW_LOOKAHEAD", value_name = "N")]
    pub lookahead: Option<u32>,
    /// The CPU computes the experts of the first N layers (-ncmoe)
    ///
    /// Of mixtures of experts; everything else is resident on the GPU.
    #[arg(long, env = "TIERFLOW_N_CPU_MOE", value_name = "N")]
    pub n_cpu_moe: Option<u32>,
    /// The CPU computes the experts of all layers (-cmoe)
    #[arg(long, env = "TIERFLOW_CPU_MOE")]
    pub cpu_moe: bool,
    /// The CPU computes the experts whose names in GGUF files match, as in exps=CPU (-ot)
    ///
    /// REGEX=DEVICE, several after commas, of which the first that matches counts: `blk\.([0-9])\..*exps=CPU` means ten layers.
    #[arg(long, env = "TIERFLOW_OVERRIDE_TENSOR", value_name = "REGEX=DEVICE", conflicts_with_all = ["n_cpu_moe", "cpu_moe"])]
    pub override_tensor: Option<OverrideTensors>,
    /// Whether experts that do not fit the GPU pass through a cache there (auto, on, off)
    ///
    /// Only the experts that tokens take are moved, and those that are used often stay.
    #[arg(long, env = "TIERFLOW_EXPERT_CACHE", value_name = "CHOICE", default_value = "auto")]
    pub expert_cache: ExpertCacheRule,
    /// Who computes with experts that are not in the cache (auto, upload, host)
    ///
    /// upload: the GPU, once they are there; host: the CPU, from its own memory; auto: both at once, in shares that end together by the
    /// measured rates. What the CPU computes is rounded differently, so that answers may differ a little with what happens to be cached.
    #[arg(long, env = "TIERFLOW_EXPERT_MISSES", value_name = "CHOICE", default_value = "auto")]
    pub expert_misses: ExpertMissRule,
    /// Begin with the experts in the cache that this file says are taken often, and write to it which ones were
    ///
    /// The plan then says what the cache will find instead of assuming it. A file that is not there yet is made. A server writes it when it ends.
    #[arg(long, env = "TIERFLOW_EXPERT_PROFILE", value_name = "FILE.json", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub expert_profile: Option<PathBuf>,
    /// Slots of the ring on the GPU
    #[arg(long, env = "TIERFLOW_SLOTS", value_name = "N", value_parser = parse_positive)]
    pub slots: Option<u32>,
    /// How weights are uploaded to the GPU; auto measures and takes the faster way
    #[arg(long, env = "TIERFLOW_UPLOAD", value_name = "PATH", default_value = "auto")]
    pub upload: UploadArg,
    /// Kernels of adapters; auto takes the fastest that were measured, portable those that every adapter runs
    #[arg(long, env = "TIERFLOW_KERNELS", value_name = "CHOICE", default_value = "auto")]
    pub kernels: KernelsArg,
    /// Threads that compute on the CPU; 0 for one per core
    #[arg(short, long, env = "TIERFLOW_THREADS", value_name = "N", value_parser = parse_or_default, allow_negative_numbers = true)]
    pub threads: Option<u32>,
    /// Do not measure a device that is not known yet; plan with typical rates
    #[arg(long, env = "TIERFLOW_NO_MEASURE")]
    pub no_measure: bool,
    /// Seconds without any finished work after which a run gives up on an adapter
    #[arg(
        long, env = "TIERFLOW_GPU_TIMEOUT", default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub gpu_timeout: u32,
    /// Open every adapter N times, each as an adapter of its own, for tests and rehearsals
    #[arg(
        long, env = "TIERFLOW_VIRTUAL_GPUS", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8)
    )]
    pub virtual_gpus: u32,
    /// Which adapters.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// Whether tokens are drafted.
    #[command(flatten)]
    pub drafts: DraftArgs,
    /// Where measured rates are kept.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Pretend that the adapter allows no larger buffer.
    #[arg(long, env = "TIERFLOW_LIMIT_BUFFER", hide = true, value_parser = parse_value::<Bytes>)]
    pub limit_buffer: Option<Bytes>,
    /// Pretend that the adapter allows no larger storage binding.
    #[arg(long, env = "TIERFLOW_LIMIT_BINDING", hide = true, value_parser = parse_value::<Bytes>)]
    pub limit_binding: Option<Bytes>,
}

impl PlacementArgs {
    /// Data types of the KV cache.
    pub fn kv_dtype(&self) -> KvDType {
        let KvDType { keys, values } = self.kv_dtype.unwrap_or_default();
        KvDType { keys: self.cache_type_k.unwrap_or(keys), values: self.cache_type_v.unwrap_or(values) }
    }

    /// Of how many layers the host computes the experts, where that is asked for.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] beside a rule of placement.
    pub fn experts_on_host(&self) -> Result<Option<HostLayers>> {
        let invalid = |option: &str, reason: String| Error::InvalidArgument { option: option.into(), reason };
        let (option, layers) = match (&self.override_tensor, self.cpu_moe, self.n_cpu_moe) {
            (Some(names), ..) => {
                let option = "--override-tensor";
                (option, HostLayers::Listed(names.layers().map_err(|reason| invalid(option, reason))?))
            }
            (None, true, _) => ("--cpu-moe", HostLayers::First(usize::MAX)),
            (None, false, Some(n_layers)) => ("--n-cpu-moe", HostLayers::First(n_layers as usize)),
            (None, false, None) => return Ok(None),
        };
        if self.device_map != DeviceMapArg::Auto {
            return Err(invalid(option, "is a placement of its own; leave --device-map out".into()));
        }
        Ok(Some(layers))
    }
}

/// The switches that the config file can set.
const REVOCABLE_SWITCHES: [&str; 4] = ["strict", "fit", "no_measure", "cpu_moe"];

/// Lets the command line switch off what the config file or the environment has switched on: `--strict=no`.
fn with_revocable_switch(arg: Arg) -> Arg {
    if !REVOCABLE_SWITCHES.contains(&arg.get_id().as_str()) {
        return arg;
    }
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .value_name("BOOL")
        .value_parser(FalseyValueParser::new())
        .default_value("false")
        .default_missing_value("true")
        .hide_default_value(true)
        .hide_possible_values(true)
}

/// Where tierflow keeps what it has measured.
#[derive(Debug, Clone, Args)]
pub struct CacheArgs {
    /// Folder of measured rates; without one, tierflow's in the user's cache folder
    #[arg(long, env = "TIERFLOW_CACHE", value_name = "DIR", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub cache_dir: Option<PathBuf>,
}

/// How many layers may be resident on GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuLayers {
    /// As many as the budgets allow.
    Auto,
    /// All of them; it is an error where they do not fit.
    All,
    /// No more than this.
    Count(u32),
}

impl FromStr for GpuLayers {
    type Err = Error;

    fn from_str(text: &str) -> Result<GpuLayers> {
        match text {
            // The numbers are llama.cpp's.
            "auto" | "-1" => Ok(GpuLayers::Auto),
            "all" | "-2" => Ok(GpuLayers::All),
            _ => text.parse().map(GpuLayers::Count).map_err(|_| Error::InvalidArgument {
                option: "--n-gpu-layers".into(),
                reason: format!("`{text}` is no number of layers; write a number, auto or all"),
            }),
        }
    }
}

/// Reads data types of the KV cache. Those of one word are what completions offer.
#[derive(Debug, Clone)]
struct CacheDTypes<T>(PhantomData<T>);

impl<T: FromStr<Err = Error> + Clone + Send + Sync + 'static> TypedValueParser for CacheDTypes<T> {
    type Value = T;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        StringValueParser::new().try_map(|text| parse_value::<T>(&text)).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let meaning = |dtype: CacheDType| match dtype {
            CacheDType::F32 => "4 bytes a number",
            CacheDType::F16 => "2 bytes a number",
            CacheDType::Q8_0 => "8 bits a number, and a scale for each 32",
            CacheDType::Q4_0 => "4 bits a number, and a scale for each 32",
        };
        Some(Box::new(CacheDType::ALL.into_iter().map(move |dtype| PossibleValue::new(dtype.to_string()).help(meaning(dtype)))))
    }
}

/// Ways to read weights from files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IoArg {
    /// Through maps, which are checked.
    Mmap,
    /// Through reads at positions.
    Pread,
}

impl IoArg {
    /// What is asked for; reads where nothing is.
    pub fn mode(asked: Option<IoArg>) -> IoMode {
        match asked {
            None | Some(IoArg::Pread) => IoMode::Pread,
            Some(IoArg::Mmap) => IoMode::Mmap,
        }
    }
}

/// Kernels that adapters run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KernelsArg {
    /// The fastest that were measured.
    Auto,
    /// Those that every adapter runs.
    Portable,
}

/// Ways to upload weights to the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UploadArg {
    /// The one that measured faster.
    Auto,
    /// Slots that the host maps.
    Mapped,
    /// A staging ring and a copy on the queue.
    Staged,
}
