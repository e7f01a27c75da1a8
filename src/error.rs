//! The one error type. Each variant names the thing at fault, carries the numbers, and its text says what to change.

use crate::units::Bytes;

/// Result of every fallible function of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, for the caller to match on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried: "open", "read 4096 bytes at 128 of", ...
        action: String,
        /// The file or folder.
        path: String,
        /// The system's own words.
        source: std::io::Error,
    },
    /// A file is not what its format demands.
    #[error("{path}: {fault}")]
    InvalidFile {
        /// The file.
        path: String,
        /// What is wrong with it, where.
        fault: String,
    },
    /// A file was truncated or rewritten while the model ran.
    #[error("{path} changed while it was in use: {fault}; load the model again")]
    FileChanged {
        /// The file.
        path: String,
        /// What was seen.
        fault: String,
    },
    /// The model is well-formed but of a kind that tierflow cannot run.
    #[error("{path}: {fault}")]
    UnsupportedModel {
        /// The file that says so.
        path: String,
        /// The architecture, dtype or setting, and what is supported.
        fault: String,
    },
    /// A tensor that the architecture needs is in none of the model's files.
    #[error("{path}: tensor `{tensor}` is missing")]
    MissingTensor {
        /// The model.
        path: String,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor has not the shape that the config demands.
    #[error("{path}: tensor `{tensor}` has shape {found:?} where the config demands {expected:?}")]
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
    /// An option or argument is out of its domain.
    #[error("{option}: {fault}")]
    InvalidArgument {
        /// The option as the user writes it.
        option: String,
        /// What is wrong and what is allowed.
        fault: String,
    },
    /// The model, as asked for, does not fit a budget or a limit.
    #[error("does not fit {device}: needs at least {}, has {}; {advice}", needed.typed(), available.typed_down())]
    DoesNotFit {
        /// The device whose budget or limit is too small.
        device: String,
        /// The least that would do.
        needed: Bytes,
        /// What there is.
        available: Bytes,
        /// The option to change.
        advice: String,
    },
    /// Several budgets are too small, and none of them is enough alone, or more than the machine has.
    #[error("does not fit {}; {advice}", in_words(shortfalls))]
    DoNotFit {
        /// The devices, what does, and what there is.
        shortfalls: Vec<Shortfall>,
        /// The options to change.
        advice: String,
    },
    /// A limit of an adapter stands in the way, whatever its budget.
    #[error("exceeds a limit of {device}: needs {needed}, may have {available}; {advice}")]
    ExceedsLimit {
        /// The adapter.
        device: String,
        /// What is needed at once.
        needed: Bytes,
        /// The most that the adapter takes.
        available: Bytes,
        /// What to change.
        advice: String,
    },
    /// The prompt and its answer need more positions than the context has.
    #[error("the prompt has {needed} tokens and the context holds {available}; raise --ctx-size or shorten the prompt")]
    ContextFull {
        /// Positions needed.
        needed: usize,
        /// Positions there are.
        available: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab_size} tokens; ids go from 0 to one less")]
    TokenOutOfVocabulary {
        /// The token.
        token: u32,
        /// Tokens that the model knows.
        vocab_size: usize,
    },
    /// The tokenizer or the chat template cannot be read or used.
    #[error("{path}: {fault}")]
    Text {
        /// Where it came from.
        path: String,
        /// What is wrong.
        fault: String,
    },
    /// There is no adapter, or not the one demanded.
    #[error("no usable GPU: {fault}")]
    NoGpu {
        /// What was asked, what there is, what to do.
        fault: String,
    },
    /// The adapter or its driver failed.
    #[error("{adapter}: {fault}")]
    Gpu {
        /// The adapter's name.
        adapter: String,
        /// What it said, and what to do.
        fault: String,
    },
    /// The adapter was taken away: its driver was reset, or the browser needed its memory.
    #[error("{adapter}: {fault}")]
    DeviceLost {
        /// The adapter's name.
        adapter: String,
        /// What the driver said, and what to do.
        fault: String,
    },
    /// The adapter finished nothing for as long as it may: it hangs, or is busy with something else. The engine stays usable: the next
    /// forward waits for the adapter once more, and ends in [`Error::DeviceLost`] where that is in vain.
    #[error(
        "{adapter} has finished nothing for {} s: its driver may hang, or other programs keep it busy; \
         run again, end what else uses it, or allow more with gpu_timeout",
        waited.as_secs_f64()
    )]
    DeviceTimeout {
        /// The adapter's name.
        adapter: String,
        /// How long it was waited for.
        waited: std::time::Duration,
    },
    /// The logits hold a NaN or an infinity: broken weights or a broken driver.
    #[error(
        "the model computed {value} as the score of token {token}; its weights (or the GPU driver) are broken: compare with --device cpu"
    )]
    NotFinite {
        /// The first such token.
        token: usize,
        /// Its score.
        value: f32,
    },
    /// A hub or another server did not deliver.
    #[error("{url}: {fault}")]
    Network {
        /// What was asked for.
        url: String,
        /// What came instead, and what to do.
        fault: String,
    },
    /// All sequences that the plan provides for are in use.
    #[error("all {n_seqs} sequences are in use; drop one, or plan for more")]
    AllSequencesInUse {
        /// How many there are.
        n_seqs: usize,
    },
    /// The engine's thread has ended.
    #[error("the engine has ended; load the model again")]
    EngineGone,
    /// The user interrupted.
    #[error("interrupted")]
    Interrupted,
    /// tierflow did not keep to its own rules.
    #[error("{fault}; this is a fault of tierflow, please report it")]
    Internal {
        /// What was found.
        fault: String,
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

fn in_words(shortfalls: &[Shortfall]) -> String {
    let devices: Vec<String> = shortfalls.iter().map(|short| short.device.clone()).collect();
    let needs = shortfalls
        .iter()
        .map(|short| format!("{} needs at least {}, has {}", short.device, short.needed.typed(), short.available.typed_down()));
    format!("{} together: {}", devices.join(" and "), needs.collect::<Vec<_>>().join("; "))
}

impl Error {
    /// The process exit code for this error: 1 failed, 2 bad usage, 3 does not fit, 4 no usable GPU, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::InvalidArgument { .. } => 2,
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

    /// An [`Error::Internal`].
    pub fn internal(fault: impl Into<String>) -> Error {
        Error::Internal { fault: fault.into() }
    }

    /// An [`Error::InvalidFile`] about `path`.
    pub fn invalid_file(path: impl std::fmt::Display, fault: impl Into<String>) -> Error {
        Error::InvalidFile { path: path.to_string(), fault: fault.into() }
    }
}
