//! The options of `tierflow train`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::model::{IoArg, ModelArgs};
use super::{parse_positive, parse_value, parse_whole};
use crate::device::{DeviceChoice, MaxMemory};
use crate::dtype::DType;
use crate::train::{DataOptions, LoraOptions, MixedPrecision, OptimizerKind, Scheduler, TrainOn, TrainOptions};

/// `tierflow train`
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// File with a JSON record a line
    ///
    /// Each has messages, text, or prompt and completion.
    #[arg(long, env = "TIERFLOW_DATA", value_name = "FILE.jsonl")]
    pub data: PathBuf,
    /// Folder for what is trained, the log and checkpoints
    #[arg(short, long, env = "TIERFLOW_OUT", value_name = "DIR")]
    pub out: PathBuf,
    /// Times to go through the data
    #[arg(long, env = "TIERFLOW_EPOCHS", value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    pub epochs: u32,
    /// Steps in all, whatever --epochs says
    #[arg(long, env = "TIERFLOW_STEPS", value_name = "N", value_parser = parse_positive)]
    pub steps: Option<u32>,
    /// What of it takes memory.
    #[command(flatten)]
    pub shape: TrainShapeArgs,
    /// Batches of a step
    #[arg(long, env = "TIERFLOW_ACCUMULATE", value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    pub accumulate: u32,
    /// Cut longer records instead
    #[arg(long, env = "TIERFLOW_TRUNCATE")]
    pub truncate: bool,
    /// Let short records stand side by side, as many as have no more than --seq-len tokens together
    #[arg(long, env = "TIERFLOW_PACKING")]
    pub packing: bool,
    /// What is learnt: answers, or all of a record
    #[arg(long, env = "TIERFLOW_TRAIN_ON", value_name = "WHAT", default_value = "answers")]
    pub train_on: TrainOnArg,
    /// What the adapter is multiplied by, times its rank
    #[arg(long, env = "TIERFLOW_LORA_ALPHA", value_name = "ALPHA", default_value_t = 32.0, conflicts_with = "full")]
    pub lora_alpha: f32,
    /// How the weights of --full are written; by default as the model's files have them
    #[arg(long, env = "TIERFLOW_DTYPE", value_name = "DTYPE", requires = "full")]
    pub dtype: Option<WrittenArg>,
    /// Greatest learning rate
    #[arg(long, env = "TIERFLOW_LR", value_name = "RATE", default_value_t = 2e-4)]
    pub lr: f64,
    /// How the learning rate changes behind its warm-up
    #[arg(long, env = "TIERFLOW_SCHEDULER", value_name = "NAME", default_value = "linear")]
    pub scheduler: SchedulerArg,
    /// Steps in which the learning rate rises; below 1, their share of all
    #[arg(long, env = "TIERFLOW_WARMUP", value_name = "N", default_value_t = 0.0)]
    pub warmup: f64,
    /// Optimiser
    #[arg(long, env = "TIERFLOW_OPTIMIZER", value_name = "NAME", default_value = "adamw")]
    pub optimizer: OptimizerArg,
    /// Share of each value that is taken away, times the learning rate
    #[arg(long, env = "TIERFLOW_WEIGHT_DECAY", value_name = "SHARE", default_value_t = 0.0)]
    pub weight_decay: f32,
    /// Length that gradients are shortened to; 0 leaves them
    #[arg(long, env = "TIERFLOW_GRAD_CLIP", value_name = "LENGTH", default_value_t = 1.0)]
    pub grad_clip: f64,
    /// Chooses the first values, the order of the records and what is zeroed
    #[arg(short, long, env = "TIERFLOW_SEED", value_name = "N", default_value_t = 0, allow_negative_numbers = true, value_parser = parse_whole)]
    pub seed: i64,
    /// Records that are not learnt, whose loss is shown
    #[arg(long, env = "TIERFLOW_EVAL_DATA", value_name = "FILE.jsonl")]
    pub eval_data: Option<PathBuf>,
    /// Steps between two evaluations; by default one epoch's
    #[arg(long, env = "TIERFLOW_EVAL_EVERY", value_name = "N", requires = "eval_data", value_parser = parse_positive)]
    pub eval_every: Option<u32>,
    /// Steps between two checkpoints
    #[arg(long, env = "TIERFLOW_SAVE_EVERY", value_name = "N", value_parser = parse_positive)]
    pub save_every: Option<u32>,
    /// Go on from the latest checkpoint there, if any
    #[arg(long, env = "TIERFLOW_RESUME")]
    pub resume: bool,
    /// Folder for TensorBoard's event files
    #[arg(long, env = "TIERFLOW_LOGGING_DIR", value_name = "DIR")]
    pub logging_dir: Option<PathBuf>,
    /// What computes: auto, cpu, gpu, gpu:N
    ///
    /// Or by vendor: cuda, cuda:N, xpu, mps. Also -dev.
    #[arg(long, env = "TIERFLOW_DEVICE", default_value = "auto", value_parser = parse_value::<DeviceChoice>)]
    pub device: DeviceChoice,
    /// Memory to use, as in gpu=6GiB,cpu=16GiB
    ///
    /// Layers without room on the GPU stream from host memory, those without room there from disk.
    #[arg(long, env = "TIERFLOW_MAX_MEMORY", value_name = "SIZES", value_parser = parse_value::<MaxMemory>)]
    pub max_memory: Option<MaxMemory>,
    /// Threads that compute
    #[arg(short, long, env = "TIERFLOW_THREADS", value_name = "N", value_parser = parse_positive)]
    pub threads: Option<u32>,
    /// How weights are read from files
    #[arg(long, env = "TIERFLOW_IO", value_name = "MODE")]
    pub io: Option<IoArg>,
    /// Print a line of JSON for each step
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
    /// Say nothing on stderr but errors
    #[arg(short, long, env = "TIERFLOW_QUIET")]
    pub quiet: bool,
}

/// What of training takes memory.
#[derive(Debug, Clone, Args)]
pub struct TrainShapeArgs {
    /// Records that are computed together
    #[arg(long, env = "TIERFLOW_BATCH", value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    pub batch: u32,
    /// Tokens of a record, at most; longer ones are left out
    #[arg(long, env = "TIERFLOW_SEQ_LEN", value_name = "N", default_value_t = 512, value_parser = parse_positive)]
    pub seq_len: u32,
    /// Rank of the adapter's matrices
    #[arg(long, env = "TIERFLOW_LORA_R", value_name = "N", default_value_t = 16, value_parser = parse_positive)]
    pub lora_r: u32,
    /// Linear layers that learn, as in q_proj,v_proj
    ///
    /// By default all but the head.
    #[arg(long, env = "TIERFLOW_TARGET", value_name = "NAMES", value_delimiter = ',')]
    pub target: Vec<String>,
    /// Train the model's own weights, not an adapter
    ///
    /// All of them, or the modules of --target: linear layers, norms, embeddings, the head. On the host; the folder then holds the whole model.
    #[arg(long, env = "TIERFLOW_FULL", conflicts_with_all = ["lora_r", "modules_to_save", "dropout", "mixed_precision"])]
    pub full: bool,
    /// Norms whose own weights learn, by the ends of their names
    ///
    /// As PEFT's modules_to_save: norm is all that end so.
    #[arg(long, env = "TIERFLOW_MODULES_TO_SAVE", value_name = "NAMES", value_delimiter = ',')]
    pub modules_to_save: Vec<String>,
    /// How frozen matrices in F32 are held: no, fp16, bf16
    ///
    /// Rounded to 16 bits they take half the memory. Those in fewer bits stay as they are; what is trained and all arithmetic are in F32.
    #[arg(long, env = "TIERFLOW_MIXED_PRECISION", value_name = "TYPE", hide_possible_values = true, default_value = "no")]
    pub mixed_precision: MixedPrecisionArg,
    /// Share of the adapter's inputs that are zeroed
    #[arg(long, env = "TIERFLOW_DROPOUT", value_name = "SHARE", default_value_t = 0.0)]
    pub dropout: f32,
}

impl TrainShapeArgs {
    /// Options of training with these sizes, all else as it is by default.
    pub fn options(&self) -> TrainOptions {
        let targets = self.target.iter().filter(|target| !target.is_empty() && *target != "all-linear").cloned().collect();
        let modules_to_save = self.modules_to_save.iter().filter(|end| !end.is_empty()).cloned().collect();
        let lora = LoraOptions { rank: self.lora_r as usize, targets, dropout: self.dropout, modules_to_save, ..LoraOptions::default() };
        let (batch, seq_len) = (self.batch as usize, self.seq_len as usize);
        // Where a plan goes by it, training has its own folder.
        let (mixed_precision, spill) = (self.mixed_precision.into(), Some(".".into()));
        TrainOptions { lora, full: self.full, mixed_precision, batch, seq_len, spill, ..TrainOptions::default() }
    }
}

/// What is learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TrainOnArg {
    /// Answers, completions, plain texts
    Answers,
    /// All of a record
    All,
}

/// How the learning rate changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SchedulerArg {
    /// Falls in a line
    Linear,
    /// Falls as half a cosine
    Cosine,
    /// Stays
    Constant,
}

/// How trained weights are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WrittenArg {
    /// 32 bits
    F32,
    /// 16 bits, with the exponents of 32
    Bf16,
}

impl WrittenArg {
    /// The dtype.
    pub fn dtype(self) -> DType {
        match self {
            WrittenArg::F32 => DType::F32,
            WrittenArg::Bf16 => DType::BF16,
        }
    }
}

/// How frozen matrices in F32 are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MixedPrecisionArg {
    /// As they are stored
    No,
    /// Rounded to F16
    Fp16,
    /// Rounded to BF16
    Bf16,
}

impl From<MixedPrecisionArg> for MixedPrecision {
    fn from(arg: MixedPrecisionArg) -> MixedPrecision {
        match arg {
            MixedPrecisionArg::No => MixedPrecision::No,
            MixedPrecisionArg::Fp16 => MixedPrecision::Fp16,
            MixedPrecisionArg::Bf16 => MixedPrecision::Bf16,
        }
    }
}

/// How gradients become steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OptimizerArg {
    /// Adam with decoupled weight decay
    Adamw,
    /// Gradient descent with a momentum of 0.9
    Sgd,
}

impl TrainArgs {
    /// How records are read.
    pub fn data_options(&self) -> DataOptions {
        let train_on = match self.train_on {
            TrainOnArg::Answers => TrainOn::Answers,
            TrainOnArg::All => TrainOn::All,
        };
        DataOptions { train_on, seq_len: self.shape.seq_len as usize, truncates: self.truncate }
    }

    /// How the model is trained; steps are not known before the data is.
    pub fn options(&self) -> TrainOptions {
        let shape = self.shape.options();
        TrainOptions {
            lora: LoraOptions { alpha: self.lora_alpha, ..shape.lora },
            full: shape.full,
            mixed_precision: shape.mixed_precision,
            optimizer: match self.optimizer {
                OptimizerArg::Adamw => OptimizerKind::Adamw,
                OptimizerArg::Sgd => OptimizerKind::Sgd,
            },
            learning_rate: self.lr,
            scheduler: match self.scheduler {
                SchedulerArg::Linear => Scheduler::Linear,
                SchedulerArg::Cosine => Scheduler::Cosine,
                SchedulerArg::Constant => Scheduler::Constant,
            },
            n_warmup: 0,
            weight_decay: self.weight_decay,
            grad_clip: (self.grad_clip != 0.0).then_some(self.grad_clip),
            batch: shape.batch,
            accumulate: self.accumulate as usize,
            n_steps: 0,
            seq_len: shape.seq_len,
            packs: self.packing,
            seed: self.seed.cast_unsigned(),
            spill: Some(self.out.clone()),
        }
    }
}
