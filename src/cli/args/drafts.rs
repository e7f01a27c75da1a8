//! The options of speculative decoding, in llama.cpp's words.

use clap::{Args, ValueEnum};

use super::{parse_from, parse_positive};
use crate::session::{DraftSource, Speculation};

/// How tokens are drafted.
#[derive(Debug, Clone, Args)]
pub struct DraftArgs {
    /// Draft tokens, several of which then come of one read of the weights (none, ngram-simple)
    ///
    /// The text stays the same. It pays where weights stream and the answer repeats parts of the context, as edited text and code do.
    #[arg(long, env = "TIERFLOW_SPEC_TYPE", value_name = "TYPE", default_value = "none", hide_possible_values = true)]
    pub spec_type: SpecTypeArg,
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
    /// What they ask for.
    pub fn speculation(&self) -> Speculation {
        Speculation {
            source: match self.spec_type {
                SpecTypeArg::None => DraftSource::None,
                SpecTypeArg::NgramSimple => DraftSource::NgramSimple,
            },
            most: self.draft_max as usize,
            least: self.draft_min as usize,
        }
    }
}
