//! The goal of a plan and its rules, as the user writes them. Knows words and file names, not what the files hold.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
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

impl DeviceMapArg {
    /// Reads a word, or else the path of a file: one that is there, ends in `.json` or names a folder on its way.
    ///
    /// # Errors
    /// What may be written.
    pub fn from_os(text: &OsStr) -> std::result::Result<DeviceMapArg, String> {
        let path = Path::new(text);
        match text.to_str() {
            Some("auto") => return Ok(DeviceMapArg::Auto),
            Some("sequential") => return Ok(DeviceMapArg::Sequential),
            Some("balanced") => return Ok(DeviceMapArg::Balanced),
            Some("balanced_low_0") => return Ok(DeviceMapArg::BalancedLow0),
            _ => {}
        }
        let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        if is_json || path.components().count() > 1 || path.exists() {
            return Ok(DeviceMapArg::File(path.into()));
        }
        Err(format!("`{}` is no device map; write auto, sequential, balanced, balanced_low_0, or the path of a file", path.display()))
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

/// Classes of modules that Accelerate's rules keep whole, written `A,B`; `none` for no class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoSplitArg(pub Vec<String>);

impl FromStr for NoSplitArg {
    type Err = Error;

    fn from_str(text: &str) -> Result<NoSplitArg> {
        let classes: Vec<String> = text.split(',').map(str::trim).filter(|class| !class.is_empty()).map(str::to_owned).collect();
        match classes.as_slice() {
            [] => Err(Error::InvalidArgument {
                option: "--no-split".into(),
                reason: "names nothing; write none, or classes as in LlamaAttention,LlamaMLP".into(),
            }),
            [none] if none == "none" => Ok(NoSplitArg::default()),
            _ => Ok(NoSplitArg(classes)),
        }
    }
}

impl fmt::Display for NoSplitArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&if self.0.is_empty() { "none".to_owned() } else { self.0.join(",") })
    }
}

/// Tokens of a typical request, written `PROMPT:GENERATE`.
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
                reason: format!("`{text}` is no mix; write PROMPT:GENERATE in tokens, as in 256:256, of which one may be 0"),
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
        let read = |text: &str| DeviceMapArg::from_os(OsStr::new(text));
        for text in ["auto", "sequential", "balanced", "balanced_low_0"] {
            let read = read(text).unwrap();
            assert!(read.to_string() == text && !matches!(read, DeviceMapArg::File(_)), "{text}");
        }
        let there_is = tempfile::tempdir().unwrap().keep();
        for text in ["maps/my map.json", "A.JSON", "/dev/fd/63", "./auto", there_is.to_str().unwrap()] {
            assert_eq!(read(text), Ok(DeviceMapArg::File(text.into())));
        }
        for text in ["", "Auto", "balanced_low", "map.toml", "json"] {
            let reason = read(text).unwrap_err();
            assert!(reason.contains("balanced_low_0") && reason.contains("path of a file"), "{reason}");
        }
    }

    #[test]
    fn classes_that_stay_whole_are_a_list_or_none() {
        for (text, classes) in [("none", &[][..]), ("LlamaMLP", &["LlamaMLP"]), ("A, B,", &["A", "B"])] {
            assert_eq!(text.parse::<NoSplitArg>().unwrap(), NoSplitArg(classes.iter().map(|class| (*class).to_owned()).collect()));
        }
        assert_eq!("A,B".parse::<NoSplitArg>().unwrap().to_string(), "A,B");
        assert_eq!(NoSplitArg::default().to_string(), "none");
        assert!("".parse::<NoSplitArg>().unwrap_err().to_string().contains("none"));
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
