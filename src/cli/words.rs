//! Settings in the words of the command line.

use crate::error::{Error, Setting, Words};

/// Settings by their options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options;

impl Words for Options {
    fn setting(&self, setting: Setting) -> String {
        let name = match setting {
            Setting::MaxMemory => "max-memory",
            Setting::Device => "device",
            Setting::Placement => "device-map",
            Setting::NoSplit => "no-split",
            Setting::SavedPlan => "plan",
            Setting::Machine => "devices",
            Setting::Strict => "strict",
            Setting::Fit => "fit",
            Setting::ResidentLayers => "n-gpu-layers",
            Setting::CtxSize => "ctx-size",
            Setting::KvSize => "kv-size",
            Setting::UbatchSize => "ubatch-size",
            Setting::NSeqs => "n-seqs",
            Setting::KvDType => "kv-dtype",
            Setting::ExpertCache => "expert-cache",
            Setting::ExpertMisses => "expert-misses",
            Setting::ExpertProfile => "expert-profile",
            Setting::Slots => "slots",
            Setting::Lookahead => "lookahead",
            Setting::Upload => "upload",
            Setting::Io => "io",
            Setting::GpuTimeout => "gpu-timeout",
            Setting::Prompt => "prompt",
            Setting::Raw => "raw",
            Setting::Temperature => "temp",
            Setting::TopP => "top-p",
            Setting::MinP => "min-p",
            Setting::RepeatPenalty => "repeat-penalty",
            Setting::PresencePenalty => "presence-penalty",
            Setting::FrequencyPenalty => "frequency-penalty",
            Setting::LogitBias => "logit-bias",
            Setting::Stop => "stop",
            Setting::Revision => "revision",
        };
        format!("--{name}")
    }

    fn writer(&self, setting: Setting) -> String {
        match setting {
            Setting::SavedPlan => "`tierflow plan --export-plan FILE` writes one (--device-map reads maps)".to_owned(),
            _ => "write it anew with `tierflow devices --json`".to_owned(),
        }
    }
}

/// The text of an error in the program's words.
pub fn text_of(error: &Error) -> String {
    error.in_words(&Options)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::Cli;

    #[test]
    fn every_setting_is_an_option_of_some_command() {
        let command = Cli::command();
        for &setting in Setting::ALL {
            let option = Options.setting(setting);
            let is_option = |command: &clap::Command| command.get_arguments().any(|arg| arg.get_long() == option.strip_prefix("--"));
            assert!(command.get_subcommands().any(is_option), "{option}");
        }
    }
}
