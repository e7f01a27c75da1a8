//! The one error type. Each variant names the thing at fault and carries the numbers. What to change is data, too, so that whoever
//! shows an error says it in words of their own ([`Error::in_words`]).

mod remedy;

use std::fmt;

use crate::units::Bytes;
pub use remedy::{Advice, Argument, BudgetToSet, Fields, Remedy, Setting, Words};

/// Result of every fallible function of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, for the caller to match on.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    Io {
        /// The operation: "open", "read 4096 bytes at 128 of", ...
        action: String,
        /// The file or folder.
        path: String,
        /// The system's own words.
        source: std::io::Error,
    },
    /// A file is not what its format demands.
    InvalidFile {
        /// The file.
        path: String,
        /// What is wrong with it, where.
        reason: String,
        /// What to change, where it is known.
        advice: Advice,
    },
    /// A file cannot be mapped into memory, or not be shown from its map.
    NotMapped {
        /// The file, or a part of it.
        path: String,
        /// Why.
        reason: String,
    },
    /// A file was truncated or rewritten while the model ran.
    FileChanged {
        /// The file.
        path: String,
        /// What was seen.
        reason: String,
    },
    /// The model is well-formed but of a kind that tierflow cannot run.
    UnsupportedModel {
        /// The file that says so.
        path: String,
        /// The architecture, dtype or setting, and what is supported.
        reason: String,
    },
    /// The model is well-formed, but no adapter can run it; the host can.
    UnsupportedOnGpu {
        /// The model's first file.
        path: String,
        /// What adapters cannot compute.
        reason: String,
    },
    /// A tensor that the architecture needs is in none of the model's files.
    MissingTensor {
        /// The model.
        path: String,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor has not the shape that the config demands.
    WrongShape {
        /// The model.
        path: String,
        /// The tensor's name.
        tensor: String,
        /// What the config demands.
        expected: Vec<u64>,
        /// What the file says.
        found: Vec<u64>,
    },
    /// An option or argument has a value that is not allowed.
    InvalidArgument {
        /// Which.
        option: Argument,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// No budget is enough for what is asked.
    NoBudgetIsEnough {
        /// What to change.
        advice: Advice,
    },
    /// The model, as asked for, does not fit a budget or a limit.
    DoesNotFit {
        /// The device whose budget or limit is too small.
        device: String,
        /// The least that would do.
        needed: Bytes,
        /// What there is.
        available: Bytes,
        /// What to change.
        advice: Advice,
    },
    /// Several budgets are too small, and raising one of them is not enough, or needs more than the machine has.
    DoNotFit {
        /// The devices, what does, and what there is.
        shortfalls: Vec<Shortfall>,
        /// What to change.
        advice: Advice,
    },
    /// A limit of an adapter stands in the way, whatever its budget.
    ExceedsLimit {
        /// The adapter.
        device: String,
        /// What is needed at once.
        needed: Bytes,
        /// The most that the adapter takes.
        available: Bytes,
        /// What to change.
        advice: Advice,
    },
    /// The prompt and its answer need more positions than the context has.
    ContextFull {
        /// Positions needed.
        needed: usize,
        /// Positions there are.
        available: usize,
    },
    /// A token id outside the vocabulary.
    TokenOutOfVocabulary {
        /// The token.
        token: u32,
        /// Tokens that the model knows.
        vocab_size: usize,
    },
    /// The tokenizer or the chat template cannot be read or used.
    Text {
        /// Where it came from.
        path: String,
        /// What is wrong.
        reason: String,
        /// What to change, where something helps.
        advice: Advice,
    },
    /// There is no adapter, or not the one demanded.
    NoGpu {
        /// What was asked, and what there is.
        reason: String,
        /// What to do, where it is known.
        advice: Advice,
    },
    /// The adapter or its driver failed.
    Gpu {
        /// The adapter's name.
        adapter: String,
        /// What it said.
        reason: String,
        /// What to do, where it is known.
        advice: Advice,
    },
    /// The adapter was taken away: its driver was reset, or the browser needed its memory.
    DeviceLost {
        /// The adapter's name.
        adapter: String,
        /// What the driver said, and what to do.
        reason: String,
    },
    /// The adapter finished nothing for as long as it may: it hangs, or is busy with something else. The engine stays usable: the next
    /// forward waits for the adapter once more, and ends in [`Error::DeviceLost`] if it still finishes nothing.
    DeviceTimeout {
        /// The adapter's name.
        adapter: String,
        /// How long it was waited for.
        waited: std::time::Duration,
    },
    /// The logits hold a NaN or an infinity: broken weights or a broken driver.
    NotFinite {
        /// The first such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// In training, the loss or a gradient was not finite for several steps in a row.
    TrainingDiverged {
        /// The last of them, from 1 on.
        step: u64,
    },
    /// In training, a loss is not finite.
    LossNotFinite {
        /// The loss.
        loss: f64,
    },
    /// In training, the sum of gradients of a step is not finite.
    GradientNotFinite,
    /// A hub or another server did not deliver.
    Network {
        /// What was asked for.
        url: String,
        /// What happened instead, and what to do.
        reason: String,
    },
    /// Another machine, which computes layers of the model, failed, or cannot be reached.
    StageFailed {
        /// Which layers, and what happened.
        reason: String,
    },
    /// More tokens than the KV cache has room for.
    KvCacheFull {
        /// How many need room.
        needed: usize,
        /// How many there is room for.
        available: usize,
    },
    /// All sequences that the plan provides for are in use.
    AllSequencesInUse {
        /// How many there are.
        n_seqs: usize,
    },
    /// The engine's thread has ended.
    EngineGone,
    /// The user interrupted.
    Interrupted,
    /// A bug in tierflow.
    Internal {
        /// What was found.
        reason: String,
    },
}

/// A budget that is too small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortfall {
    /// The device.
    pub device: String,
    /// The least that would do.
    pub needed: Bytes,
    /// What there is.
    pub available: Bytes,
}

fn together(shortfalls: &[Shortfall]) -> String {
    let devices: Vec<String> = shortfalls.iter().map(|short| short.device.clone()).collect();
    let needs = shortfalls
        .iter()
        .map(|short| format!("{} needs at least {}, has {}", short.device, short.needed.typed(), short.available.typed_down()));
    format!("{} together: {}", devices.join(" and "), needs.collect::<Vec<_>>().join("; "))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_words(&Fields))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl Error {
    /// The whole text: what is wrong, and what to change, with these words for settings.
    pub fn in_words(&self, words: &dyn Words) -> String {
        let reason = self.error(words);
        match self.advice().in_words(words) {
            advice if advice.is_empty() => reason,
            advice => format!("{reason}; {advice}"),
        }
    }

    /// What is wrong.
    fn error(&self, words: &dyn Words) -> String {
        match self {
            Error::Io { action, path, source } => format!("cannot {action} {path}: {source}"),
            Error::InvalidFile { path, reason, .. }
            | Error::UnsupportedModel { path, reason }
            | Error::UnsupportedOnGpu { path, reason }
            | Error::Text { path, reason, .. } => format!("{path}: {reason}"),
            Error::NotMapped { path, reason } => format!("cannot map {path}: {reason}"),
            Error::FileChanged { path, reason } => format!("{path} changed while it was in use: {reason}; load the model again"),
            Error::MissingTensor { path, tensor } => format!("{path}: tensor `{tensor}` is missing"),
            Error::WrongShape { path, tensor, expected, found } => {
                format!("{path}: tensor `{tensor}` has shape {found:?} where the config demands {expected:?}")
            }
            Error::InvalidArgument { option, reason } => format!("{}: {reason}", option.in_words(words)),
            Error::NoBudgetIsEnough { .. } => format!("{}: no budget is enough", words.setting(Setting::MaxMemory)),
            Error::DoesNotFit { device, needed, available, .. } => {
                format!("does not fit {device}: needs at least {}, has {}", needed.typed(), available.typed_down())
            }
            Error::DoNotFit { shortfalls, .. } => format!("does not fit {}", together(shortfalls)),
            Error::ExceedsLimit { device, needed, available, .. } => {
                format!("exceeds a limit of {device}: needs {needed}, may have {available}")
            }
            Error::ContextFull { needed, available } => format!("the prompt has {needed} tokens and the context holds {available}"),
            Error::TokenOutOfVocabulary { token, vocab_size } => {
                format!("token {token} is outside the vocabulary of {vocab_size} tokens; ids go from 0 to one less")
            }
            Error::NoGpu { reason, .. } => format!("no usable GPU: {reason}"),
            Error::Gpu { adapter, reason, .. } | Error::DeviceLost { adapter, reason } => format!("{adapter}: {reason}"),
            Error::DeviceTimeout { adapter, waited } => {
                let secs = waited.as_secs_f64();
                format!("{adapter} has finished nothing for {secs} s: its driver may hang, or other programs keep it busy")
            }
            Error::NotFinite { token, value } => {
                format!("the model computed {value} as the logit of token {token}; its weights (or the GPU driver) are broken")
            }
            Error::LossNotFinite { loss } => format!("the loss is {loss}; its gradients were not added"),
            Error::GradientNotFinite => "the gradients are not finite; no step was taken".to_owned(),
            Error::TrainingDiverged { step } => {
                format!(
                    "the loss or a gradient was not finite for three steps in a row, up to step {step}; the adapter stays as it was before"
                )
            }
            Error::Network { url, reason } => format!("{url}: {reason}"),
            Error::StageFailed { reason } => format!("a later stage of the model failed: {reason}"),
            Error::KvCacheFull { needed, available } => {
                format!("{needed} more tokens need room in the KV cache, which has room for {available}")
            }
            Error::AllSequencesInUse { n_seqs } => format!("all {n_seqs} sequences are in use"),
            Error::EngineGone => "the engine has ended; load the model again".to_owned(),
            Error::Interrupted => "interrupted".to_owned(),
            Error::Internal { reason } => format!("{reason}; this is a bug in tierflow, please report it"),
        }
    }

    /// What to change.
    pub fn advice(&self) -> Advice {
        match self {
            Error::InvalidFile { advice, .. }
            | Error::Text { advice, .. }
            | Error::NoBudgetIsEnough { advice }
            | Error::DoesNotFit { advice, .. }
            | Error::DoNotFit { advice, .. }
            | Error::ExceedsLimit { advice, .. }
            | Error::NoGpu { advice, .. }
            | Error::Gpu { advice, .. } => advice.clone(),
            Error::NotMapped { .. } => [Remedy::Use(Setting::Io, "pread".into())].into(),
            Error::UnsupportedOnGpu { .. } => [Remedy::Use(Setting::Device, "cpu".into())].into(),
            Error::ContextFull { .. } => [Remedy::Raise(Setting::CtxSize), Remedy::other("shorten the prompt")].into(),
            Error::DeviceTimeout { .. } => {
                [Remedy::other("run again"), Remedy::other("end what else uses it"), Remedy::Raise(Setting::GpuTimeout)].into()
            }
            Error::NotFinite { .. } => [Remedy::CompareWith(Setting::Device, "cpu".into())].into(),
            Error::TrainingDiverged { .. } | Error::LossNotFinite { .. } | Error::GradientNotFinite => {
                [Remedy::other("lower the learning rate"), Remedy::other("let it rise over more steps"), Remedy::other("shorten gradients")]
                    .into()
            }
            Error::KvCacheFull { .. } => [Remedy::other("clear a sequence"), Remedy::Raise(Setting::KvSize)].into(),
            Error::AllSequencesInUse { .. } => [Remedy::other("drop one"), Remedy::Raise(Setting::NSeqs)].into(),
            _ => Advice::default(),
        }
    }

    /// The process exit code for this error: 1 failed, 2 bad usage, 3 does not fit, 4 no usable GPU, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::InvalidArgument { .. } | Error::NoBudgetIsEnough { .. } => 2,
            Error::DoesNotFit { .. } | Error::DoNotFit { .. } | Error::ExceedsLimit { .. } => 3,
            Error::NoGpu { .. } => 4,
            Error::Interrupted => 130,
            _ => 1,
        }
    }

    /// An [`Error::Io`] about `path`.
    pub fn io(action: impl Into<String>, path: impl std::fmt::Display, source: std::io::Error) -> Error {
        Error::Io { action: action.into(), path: path.to_string(), source }
    }

    /// An [`Error::Gpu`] of `adapter`.
    pub fn gpu(adapter: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Gpu { adapter: adapter.into(), reason: reason.into(), advice: Advice::default() }
    }

    /// An [`Error::Internal`].
    pub fn internal(reason: impl Into<String>) -> Error {
        Error::Internal { reason: reason.into() }
    }

    /// An [`Error::InvalidFile`] about `path`.
    pub fn invalid_file(path: impl std::fmt::Display, reason: impl Into<String>) -> Error {
        Error::InvalidFile { path: path.to_string(), reason: reason.into(), advice: Advice::default() }
    }
}
