//! What to change where something cannot be done, as data. Whoever shows it supplies the names of the settings: the library those of its own
//! fields, the command line its options.

use std::fmt;

use crate::units::Bytes;

/// Something that a caller can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Setting {
    /// [`EngineBuilder::max_memory`](crate::engine::EngineBuilder::max_memory).
    MaxMemory,
    /// [`EngineBuilder::device`](crate::engine::EngineBuilder::device).
    Device,
    /// [`PlanOptions::placement`](crate::plan::PlanOptions::placement).
    Placement,
    /// [`PlanOptions::no_split`](crate::plan::PlanOptions::no_split).
    NoSplit,
    /// [`PlanOptions::saved`](crate::plan::PlanOptions::saved).
    SavedPlan,
    /// [`EngineBuilder::machine`](crate::engine::EngineBuilder::machine).
    Machine,
    /// [`Spill::Refused`](crate::plan::Spill::Refused).
    Strict,
    /// [`Context::Fit`](crate::plan::Context::Fit).
    Fit,
    /// [`PlanOptions::resident_layers`](crate::plan::PlanOptions::resident_layers).
    ResidentLayers,
    /// [`PlanOptions::ctx_size`](crate::plan::PlanOptions::ctx_size).
    CtxSize,
    /// [`PlanOptions::kv_size`](crate::plan::PlanOptions::kv_size).
    KvSize,
    /// [`PlanOptions::ubatch_size`](crate::plan::PlanOptions::ubatch_size).
    UbatchSize,
    /// [`PlanOptions::n_seqs`](crate::plan::PlanOptions::n_seqs).
    NSeqs,
    /// [`PlanOptions::kv_dtype`](crate::plan::PlanOptions::kv_dtype).
    KvDType,
    /// [`PlanOptions::expert_cache`](crate::plan::PlanOptions::expert_cache).
    ExpertCache,
    /// [`PlanOptions::expert_misses`](crate::plan::PlanOptions::expert_misses).
    ExpertMisses,
    /// [`PlanOptions::expert_profile`](crate::plan::PlanOptions::expert_profile).
    ExpertProfile,
    /// [`PlanOptions::n_slots`](crate::plan::PlanOptions::n_slots).
    Slots,
    /// [`PlanOptions::lookahead`](crate::plan::PlanOptions::lookahead).
    Lookahead,
    /// [`PlanOptions::upload`](crate::plan::PlanOptions::upload).
    Upload,
    /// [`EngineBuilder::io`](crate::engine::EngineBuilder::io).
    Io,
    /// [`EngineBuilder::gpu_timeout`](crate::engine::EngineBuilder::gpu_timeout).
    GpuTimeout,
    /// What is to be continued.
    Prompt,
    /// Whether a prompt goes through the chat template.
    Raw,
    /// [`SamplingSettings::temperature`](crate::text::SamplingSettings::temperature).
    Temperature,
    /// [`SamplingSettings::top_p`](crate::text::SamplingSettings::top_p).
    TopP,
    /// [`SamplingSettings::min_p`](crate::text::SamplingSettings::min_p).
    MinP,
    /// [`SamplingSettings::repeat_penalty`](crate::text::SamplingSettings::repeat_penalty).
    RepeatPenalty,
    /// [`SamplingSettings::presence_penalty`](crate::text::SamplingSettings::presence_penalty).
    PresencePenalty,
    /// [`SamplingSettings::frequency_penalty`](crate::text::SamplingSettings::frequency_penalty).
    FrequencyPenalty,
    /// [`SamplingSettings::logit_bias`](crate::text::SamplingSettings::logit_bias).
    LogitBias,
    /// [`GenerateOptions::stop`](crate::session::GenerateOptions::stop).
    Stop,
    /// Branch, tag or commit of a hub's repository.
    Revision,
}

impl Setting {
    /// All of them.
    pub const ALL: &[Setting] = &[
        Setting::MaxMemory,
        Setting::Device,
        Setting::Placement,
        Setting::NoSplit,
        Setting::SavedPlan,
        Setting::Machine,
        Setting::Strict,
        Setting::Fit,
        Setting::ResidentLayers,
        Setting::CtxSize,
        Setting::KvSize,
        Setting::UbatchSize,
        Setting::NSeqs,
        Setting::KvDType,
        Setting::ExpertCache,
        Setting::Slots,
        Setting::Lookahead,
        Setting::Upload,
        Setting::Io,
        Setting::GpuTimeout,
        Setting::Prompt,
        Setting::Raw,
        Setting::Temperature,
        Setting::TopP,
        Setting::MinP,
        Setting::RepeatPenalty,
        Setting::PresencePenalty,
        Setting::FrequencyPenalty,
        Setting::LogitBias,
        Setting::Stop,
        Setting::Revision,
    ];

    /// Its name in the library.
    pub fn field(self) -> &'static str {
        match self {
            Setting::MaxMemory => "max_memory",
            Setting::Device => "device",
            Setting::Placement => "placement",
            Setting::NoSplit => "no_split",
            Setting::SavedPlan => "saved",
            Setting::Machine => "machine",
            Setting::Strict => "Spill::Refused",
            Setting::Fit => "Context::Fit",
            Setting::ResidentLayers => "resident_layers",
            Setting::CtxSize => "ctx_size",
            Setting::KvSize => "kv_size",
            Setting::UbatchSize => "ubatch_size",
            Setting::NSeqs => "n_seqs",
            Setting::KvDType => "kv_dtype",
            Setting::ExpertCache => "expert_cache",
            Setting::ExpertMisses => "expert_misses",
            Setting::ExpertProfile => "expert_profile",
            Setting::Slots => "n_slots",
            Setting::Lookahead => "lookahead",
            Setting::Upload => "upload",
            Setting::Io => "io",
            Setting::GpuTimeout => "gpu_timeout",
            Setting::Prompt => "prompt",
            Setting::Raw => "raw",
            Setting::Temperature => "temperature",
            Setting::TopP => "top_p",
            Setting::MinP => "min_p",
            Setting::RepeatPenalty => "repeat_penalty",
            Setting::PresencePenalty => "presence_penalty",
            Setting::FrequencyPenalty => "frequency_penalty",
            Setting::LogitBias => "logit_bias",
            Setting::Stop => "stop",
            Setting::Revision => "revision",
        }
    }
}

/// The names under which settings are known to whoever reads a text.
pub trait Words {
    /// What sets it: a field, an option.
    fn setting(&self, setting: Setting) -> String;

    /// What writes a file that the setting reads, as a sentence without its object: "`tool --option` writes one".
    fn writer(&self, setting: Setting) -> String;
}

/// The library's own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields;

impl Words for Fields {
    fn setting(&self, setting: Setting) -> String {
        setting.field().to_owned()
    }

    fn writer(&self, setting: Setting) -> String {
        match setting {
            Setting::SavedPlan => "Prepared::to_saved_json writes one".to_owned(),
            _ => "write it anew".to_owned(),
        }
    }
}

/// One thing that can be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// Set the budgets of devices to these; those that were given are as they were.
    Budgets(Vec<(String, BudgetToSet)>),
    /// Give a setting this value.
    Use(Setting, String),
    /// As [`Remedy::Use`], where the same could be done in another way: what comes of it stands first. A setting that is on or off has no
    /// value.
    UseInOrderTo(&'static str, Setting, String),
    /// Look at the result with this value.
    CompareWith(Setting, String),
    /// Leave a setting out; for what.
    Drop(Setting, &'static str),
    /// Raise a setting.
    Raise(Setting),
    /// Raise the budget of this device.
    RaiseBudget(String),
    /// Lower a setting, to this value where it is known.
    Lower(Setting, Option<usize>),
    /// Lower the budget of this GPU.
    LowerBudgetOfGpu,
    /// Take a file that the setting reads.
    Write(Setting),
    /// What no setting changes.
    Other(String),
}

/// A budget of [`Remedy::Budgets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetToSet {
    /// As it was given, to the byte.
    AsGiven(Bytes),
    /// At least so much, rounded up to a size that is easily typed.
    AtLeast(Bytes),
}

impl fmt::Display for BudgetToSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BudgetToSet::AsGiven(bytes) => f.write_str(&bytes.exact()),
            BudgetToSet::AtLeast(bytes) => f.write_str(&bytes.typed().replace(' ', "")),
        }
    }
}

impl Remedy {
    /// [`Remedy::Other`].
    pub fn other(what: impl Into<String>) -> Remedy {
        Remedy::Other(what.into())
    }

    /// What helps where no template writes messages into a prompt.
    pub fn raw_prompt() -> Remedy {
        Remedy::UseInOrderTo("give the prompt as it is", Setting::Raw, String::new())
    }

    /// The remedy as an instruction, in these words.
    pub fn in_words(&self, words: &dyn Words) -> String {
        let name = |setting: &Setting| words.setting(*setting);
        match self {
            Remedy::Budgets(budgets) => {
                let budgets: Vec<String> = budgets.iter().map(|(device, bytes)| format!("{device}={bytes}")).collect();
                format!("set {} {}", name(&Setting::MaxMemory), budgets.join(","))
            }
            Remedy::Use(setting, value) => format!("use {} {value}", name(setting)),
            Remedy::UseInOrderTo(what, setting, value) if value.is_empty() => format!("{what} ({})", name(setting)),
            Remedy::UseInOrderTo(what, setting, value) => format!("{what} ({} {value})", name(setting)),
            Remedy::CompareWith(setting, value) => format!("compare with {} {value}", name(setting)),
            Remedy::Drop(Setting::SavedPlan, what_for) => format!("leave out {} {what_for}", name(&Setting::SavedPlan)),
            Remedy::Drop(setting, "") => format!("drop {}", name(setting)),
            Remedy::Drop(setting, what_for) => format!("drop {} {what_for}", name(setting)),
            Remedy::Raise(setting) => format!("raise {}", name(setting)),
            Remedy::RaiseBudget(device) => format!("raise {} {device}=…", name(&Setting::MaxMemory)),
            Remedy::Lower(setting, None) => format!("lower {}", name(setting)),
            Remedy::Lower(setting, Some(value)) => format!("lower {} to {value}", name(setting)),
            Remedy::LowerBudgetOfGpu => format!("lower {} for this GPU", name(&Setting::MaxMemory)),
            Remedy::Write(setting) => words.writer(*setting),
            Remedy::Other(what) => what.clone(),
        }
    }
}

/// What to do: one of several remedies, each enough.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advice {
    /// Why these remedies and no others, where that needs saying; otherwise empty.
    pub because: Box<str>,
    /// What can be changed.
    pub remedies: Vec<Remedy>,
}

impl Advice {
    /// In these words.
    pub fn in_words(&self, words: &dyn Words) -> String {
        let remedies: Vec<String> = self.remedies.iter().map(|remedy| remedy.in_words(words)).collect();
        match &*self.because {
            "" => remedies.join(", or "),
            because => format!("{because}: {}", remedies.join(", or ")),
        }
    }
}

impl<const N: usize> From<[Remedy; N]> for Advice {
    fn from(remedies: [Remedy; N]) -> Advice {
        Advice { because: Box::default(), remedies: remedies.into() }
    }
}

/// The name of an argument: of a setting that others may call otherwise, or as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A setting.
    Of(Setting),
    /// Something else, by its name.
    Named(String),
}

impl Argument {
    /// In these words.
    pub fn in_words(&self, words: &dyn Words) -> String {
        match self {
            Argument::Of(setting) => words.setting(*setting),
            Argument::Named(name) => name.clone(),
        }
    }
}

impl From<Setting> for Argument {
    fn from(setting: Setting) -> Argument {
        Argument::Of(setting)
    }
}

impl From<&str> for Argument {
    fn from(name: &str) -> Argument {
        Argument::Named(name.to_owned())
    }
}

impl From<String> for Argument {
    fn from(name: String) -> Argument {
        Argument::Named(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command line of one option a setting.
    struct Options;

    impl Words for Options {
        fn setting(&self, setting: Setting) -> String {
            format!("--{}", setting.field().replace('_', "-"))
        }

        fn writer(&self, _setting: Setting) -> String {
            "`tool` writes one".to_owned()
        }
    }

    #[test]
    fn every_setting_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<&str> = Setting::ALL.iter().map(|setting| setting.field()).collect();
        assert_eq!(names.len(), Setting::ALL.len());
    }

    #[test]
    fn advice_is_said_in_the_words_of_whoever_hears_it() {
        let advice = Advice {
            because: "cpu has 3 GiB".into(),
            remedies: vec![
                Remedy::Budgets(vec![
                    ("cpu".into(), BudgetToSet::AsGiven(Bytes::gib(2))),
                    ("gpu:0".into(), BudgetToSet::AtLeast(Bytes(1025))),
                ]),
                Remedy::Lower(Setting::CtxSize, Some(64)),
                Remedy::Write(Setting::SavedPlan),
            ],
        };
        let text = advice.in_words(&Fields);
        assert_eq!(
            text,
            "cpu has 3 GiB: set max_memory cpu=2GiB,gpu:0=1.1KiB, or lower ctx_size to 64, or Prepared::to_saved_json writes one"
        );
        let text = advice.in_words(&Options);
        assert_eq!(text, "cpu has 3 GiB: set --max-memory cpu=2GiB,gpu:0=1.1KiB, or lower --ctx-size to 64, or `tool` writes one");
    }
}
