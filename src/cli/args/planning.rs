//! What a plan is made for and by which rules, as the user writes it. Knows words and files' names, not what they hold.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;

use crate::error::{Error, Result};

/// What a plan is made for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ObjectiveArg {
    /// One conversation.
    #[default]
    Latency,
    /// Many sequences at once.
    Throughput,
}

/// The rule by which weights are placed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DeviceMapArg {
    /// By measured rates.
    #[default]
    Auto,
    /// As Accelerate's `sequential`: one device after the other.
    Sequential,
    /// As Accelerate's `balanced`: the same share for every GPU.
    Balanced,
    /// As Accelerate's `balanced_low_0`: the same, with room left on the first GPU.
    BalancedLow0,
    /// The map in this file.
    File(PathBuf),
}

impl FromStr for DeviceMapArg {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceMapArg> {
        match text {
            "auto" => Ok(DeviceMapArg::Auto),
            "sequential" => Ok(DeviceMapArg::Sequential),
            "balanced" => Ok(DeviceMapArg::Balanced),
            "balanced_low_0" => Ok(DeviceMapArg::BalancedLow0),
            file if file.to_ascii_lowercase().ends_with(".json") => Ok(DeviceMapArg::File(file.into())),
            _ => Err(Error::InvalidArgument {
                option: "--device-map".into(),
                fault: format!("`{text}` is no device map; write auto, sequential, balanced, balanced_low_0, or the path of a .json file"),
            }),
        }
    }
}

impl fmt::Display for DeviceMapArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceMapArg::Auto => f.pad("auto"),
            DeviceMapArg::Sequential => f.pad("sequential"),
            DeviceMapArg::Balanced => f.pad("balanced"),
            DeviceMapArg::BalancedLow0 => f.pad("balanced_low_0"),
            DeviceMapArg::File(file) => f.pad(&file.to_string_lossy()),
        }
    }
}

/// Tokens of a typical exchange, written `PROMPT:GENERATE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MixArg {
    /// Tokens of the prompt.
    pub n_prompt: u32,
    /// Tokens of the answer; not both are zero.
    pub n_generate: u32,
}

impl Default for MixArg {
    fn default() -> MixArg {
        MixArg { n_prompt: 256, n_generate: 256 }
    }
}

impl FromStr for MixArg {
    type Err = Error;

    fn from_str(text: &str) -> Result<MixArg> {
        let count = |text: &str| text.trim().parse::<u32>().ok();
        let halves = text.split_once(':').and_then(|(prompt, generate)| count(prompt).zip(count(generate)));
        match halves {
            Some((n_prompt, n_generate)) if (n_prompt, n_generate) != (0, 0) => Ok(MixArg { n_prompt, n_generate }),
            _ => Err(Error::InvalidArgument {
                option: "--mix".into(),
                fault: format!("`{text}` is no mix; write PROMPT:GENERATE in tokens, as in 256:256, of which one may be 0"),
            }),
        }
    }
}

impl fmt::Display for MixArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}:{}", self.n_prompt, self.n_generate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_maps_are_words_or_files_and_print_as_they_are_written() {
        for text in ["auto", "sequential", "balanced", "balanced_low_0", "maps/my map.json", "A.JSON"] {
            assert_eq!(text.parse::<DeviceMapArg>().unwrap().to_string(), text);
        }
        for text in ["", "Auto", "balanced_low", "map.toml", "json"] {
            let fault = text.parse::<DeviceMapArg>().unwrap_err().to_string();
            assert!(fault.contains("balanced_low_0") && fault.contains(".json"), "{fault}");
        }
    }

    #[test]
    fn a_mix_has_two_halves() {
        for text in ["256:256", "0:1", "4096:0"] {
            assert_eq!(text.parse::<MixArg>().unwrap().to_string(), text);
        }
        assert_eq!(" 8 : 9 ".parse::<MixArg>().unwrap(), MixArg { n_prompt: 8, n_generate: 9 });
        for text in ["", "256", "0:0", "-1:5", "1:2:3", "4294967296:1", "a:b"] {
            assert!(text.parse::<MixArg>().unwrap_err().to_string().contains("PROMPT:GENERATE"), "{text}");
        }
    }
}
