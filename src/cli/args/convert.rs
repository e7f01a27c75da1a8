//! The options of `tierflow convert`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::lora::LoraArg;
use super::model::{ModelArgs, ModelSource, choose_source};
use super::parse_value;
use crate::convert::FileType;
use crate::error::{Error, Result};

/// `tierflow convert`
#[derive(Debug, Clone, Args)]
pub struct ConvertArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// File to write
    #[arg(value_name = "OUT.gguf")]
    pub out_word: Option<OsString>,
    /// What matrices become: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k_s, q4_k_m, q5_k_s, q5_k_m, q6_k or mxfp4
    ///
    /// As llama-quantize has them: in the quantised ones some matrices get more bits, such as the head, and where 256 values do not
    /// divide a row, another dtype. q4_k and q5_k are q4_k_m and q5_k_m.
    #[arg(long = "type", alias = "outtype", env = "TIERFLOW_TYPE", value_name = "TYPE", value_parser = parse_value::<FileType>)]
    pub file_type: FileType,
    /// Give all matrices one dtype, whatever llama.cpp's rules
    #[arg(long, env = "TIERFLOW_PURE")]
    pub pure: bool,
    /// Merge a LoRA adapter into the matrices: a folder that PEFT wrote
    ///
    /// Several times for several. SCALE multiplies what it does.
    #[arg(long, env = "TIERFLOW_MERGE_LORA", value_name = "DIR[=SCALE]", value_parser = OsStringValueParser::new().map(LoraArg::from))]
    pub merge_lora: Vec<LoraArg>,
    /// Print what was written as JSON
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
}

impl ConvertArgs {
    /// The file to write: the last word.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where there is none.
    pub fn out(&self) -> Result<PathBuf> {
        let only = self.model.model.as_ref().filter(|_| self.is_named_by_flag());
        let missing = || Error::InvalidArgument { option: "OUT.gguf".into(), reason: "is missing; name the file to write".into() };
        self.out_word.as_ref().or(only).map(PathBuf::from).ok_or_else(missing)
    }

    /// The one model that is named.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where none is named, or two.
    pub fn source(&self) -> Result<ModelSource> {
        choose_source(&self.model, self.model.model.as_deref().filter(|_| !self.is_named_by_flag()))
    }

    /// `-m` or `-hf` names the model, and there is no second word.
    fn is_named_by_flag(&self) -> bool {
        (self.model.model_flag.is_some() || self.model.hf_repo.is_some()) && self.out_word.is_none()
    }
}
