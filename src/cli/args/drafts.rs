//! The options of speculative decoding, in llama.cpp's words.

use std::ffi::OsString;

use clap::{Args, ValueEnum};

use super::{parse_from, parse_positive, parse_value};
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::session::{DraftSource, Speculation};

/// How tokens are drafted.
#[derive(Debug, Clone, Args)]
pub struct DraftArgs {
    /// Draft tokens, several of which then come of one read of the weights (none, ngram-simple)
    ///
    /// The text stays the same. It pays where weights stream and the answer repeats parts of the context, as edited text and code do.
    #[arg(long, env = "TIERFLOW_SPEC_TYPE", value_name = "TYPE", default_value = "none", hide_possible_values = true)]
    pub spec_type: SpecTypeArg,
    /// A small model with the same vocabulary, which drafts (-md)
    ///
    /// The text stays the same. It pays where one token of the model takes several times as long as one of the small model.
    #[arg(long, env = "TIERFLOW_MODEL_DRAFT", value_name = "MODEL")]
    pub model_draft: Option<OsString>,
    /// What computes the small model: cpu, gpu, gpu:N (-devd)
    #[arg(long, env = "TIERFLOW_DEVICE_DRAFT", value_name = "DEVICE", default_value = "cpu", value_parser = parse_value::<DeviceChoice>)]
    pub device_draft: DeviceChoice,
    /// Most tokens of a draft; more than 7 are never tried
    #[arg(long, aliases = ["draft", "draft-n", "spec-draft-n-max"], env = "TIERFLOW_DRAFT_MAX", value_name = "N", default_value_t = 7)]
    #[arg(value_parser = parse_positive)]
    pub draft_max: u32,
    /// Fewest tokens of a draft, tried whatever they cost; 0 tries as many as the plan predicts to pay
    #[arg(long, aliases = ["draft-n-min", "spec-draft-n-min"], env = "TIERFLOW_DRAFT_MIN", value_name = "N", default_value_t = 0)]
    #[arg(value_parser = |text: &str| parse_from(0, "", text))]
    pub draft_min: u32,
}

/// What drafts are made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SpecTypeArg {
    /// Nothing is drafted.
    None,
    /// What followed the last two to four tokens where they last stood in the context.
    NgramSimple,
}

impl DraftArgs {
    /// Refuses drafts from two sources.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`].
    pub fn check(&self) -> Result<()> {
        if self.model_draft.is_some() && self.spec_type != SpecTypeArg::None {
            let reason = "drafts in place of --spec-type; leave out one of them".into();
            return Err(Error::InvalidArgument { option: "--model-draft".into(), reason });
        }
        Ok(())
    }

    /// What they ask for.
    pub fn speculation(&self) -> Speculation {
        Speculation {
            source: match (self.spec_type, &self.model_draft) {
                (_, Some(_)) => DraftSource::Model,
                (SpecTypeArg::None, None) => DraftSource::None,
                (SpecTypeArg::NgramSimple, None) => DraftSource::NgramSimple,
            },
            most: self.draft_max as usize,
            least: self.draft_min as usize,
        }
    }
}
