//! Adapters on the command line: `--lora DIR=SCALE`, several times.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::error::Result;
use crate::lora::{Adapter, Scaled};

/// Which adapters.
#[derive(Debug, Clone, Default, Args)]
pub struct LoraArgs {
    /// Add a LoRA adapter: a folder that PEFT wrote, or llama.cpp's GGUF file
    ///
    /// Several times for several, which are added up; requests to a server choose among them. SCALE multiplies what it does: 0.5 is half of it, and without it, it counts whole.
    #[arg(long, env = "TIERFLOW_LORA", value_name = "DIR[=SCALE]", value_parser = OsStringValueParser::new().map(LoraArg::from))]
    pub lora: Vec<LoraArg>,
}

/// An adapter and its scale.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraArg {
    /// Its folder.
    pub path: PathBuf,
    /// What it is multiplied by.
    pub scale: f32,
}

impl LoraArg {
    /// Reads the adapters.
    ///
    /// # Errors
    /// Those of reading them.
    pub fn read(list: &[LoraArg]) -> Result<Vec<Scaled>> {
        list.iter().map(|LoraArg { path, scale }| Ok(Scaled { adapter: Arc::new(Adapter::open(path)?), scale: *scale })).collect()
    }
}

impl From<OsString> for LoraArg {
    /// What stands behind the last `=` is the scale, where it is a number: folders may have that sign in their names.
    fn from(text: OsString) -> LoraArg {
        let whole = |text: &OsStr| LoraArg { path: text.into(), scale: 1.0 };
        let scaled = text.to_str().and_then(|text| text.rsplit_once('=')).and_then(|(path, scale)| {
            let scale = scale.parse::<f32>().ok().filter(|scale| scale.is_finite())?;
            Some(LoraArg { path: path.into(), scale })
        });
        scaled.unwrap_or_else(|| whole(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_a_number_behind_the_last_sign() {
        let read = |text: &str| {
            let LoraArg { path, scale } = LoraArg::from(OsString::from(text));
            (path.display().to_string(), scale)
        };
        assert_eq!(read("a/b"), ("a/b".into(), 1.0));
        assert_eq!(read("a/b=0.5"), ("a/b".into(), 0.5));
        assert_eq!(read("r=8/b=-2"), ("r=8/b".into(), -2.0));
        assert_eq!(read("lr=low"), ("lr=low".into(), 1.0));
        assert_eq!(read("x=inf"), ("x=inf".into(), 1.0));
    }
}
