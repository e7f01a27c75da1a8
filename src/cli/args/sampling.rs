//! The options of sampling, which `tierflow run` and `tierflow serve` share.

use clap::Args;

use super::{parse_or_default, parse_whole};
use crate::error::{Error, Result};
use crate::text::{ModelDefaults, SamplingFlags, SamplingSettings};

/// How tokens are chosen; what is not given is as the model wants it.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct SamplingArgs {
    /// Temperature; 0 takes the likeliest [default: 0.8]
    ///
    /// Of every sampling option, the default is the model's own where it has one.
    #[arg(long, alias = "temperature", env = "TIERFLOW_TEMP", value_name = "T", allow_negative_numbers = true)]
    pub temp: Option<f32>,
    /// Sample among the K likeliest tokens; 0 for all [default: 40]
    ///
    /// -1 means all, too. The default is the model's own where it has one.
    #[arg(long, env = "TIERFLOW_TOP_K", value_name = "K", value_parser = parse_or_default, allow_negative_numbers = true)]
    pub top_k: Option<u32>,
    /// Sample among the likeliest tokens whose probabilities add up to this [default: 0.95]
    ///
    /// The default is the model's own where it has one.
    #[arg(long, env = "TIERFLOW_TOP_P", value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Sample among tokens at least this likely, relative to the likeliest [default: the model's, else 0.05]
    #[arg(long, env = "TIERFLOW_MIN_P", value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Divide the logits of repeated tokens by this [default: the model's, else 1]
    #[arg(long, env = "TIERFLOW_REPEAT_PENALTY", value_name = "X", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// Take this from the logits of repeated tokens [default: 0]
    #[arg(long, env = "TIERFLOW_PRESENCE_PENALTY", value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Take this from the logits of repeated tokens each time that they came [default: 0]
    #[arg(long, env = "TIERFLOW_FREQUENCY_PENALTY", value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Add to the logit of a token, as in 15043+1 or 15043-1; may be given several times
    ///
    /// -inf forbids the token. `tierflow tokenize` shows ids.
    #[arg(short = 'l', long, env = "TIERFLOW_LOGIT_BIAS", value_name = "ID+X", value_parser = parse_bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// How many of the last tokens count as repeated; 0 none, -1 all [default: 64]
    #[arg(long, env = "TIERFLOW_REPEAT_LAST_N", value_name = "N", allow_negative_numbers = true, value_parser = parse_whole)]
    pub repeat_last_n: Option<i64>,
}

impl SamplingArgs {
    /// These options, without a seed.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] and those of [`SamplingSettings::check`] for a value that is out of range.
    pub fn flags(&self) -> Result<SamplingFlags> {
        let repeat_last_n = match self.repeat_last_n {
            None => None,
            Some(-1) => Some(u32::MAX),
            Some(value) => Some(u32::try_from(value).map_err(|_| {
                let reason = format!("{value} is out of range; write -1 or more");
                Error::InvalidArgument { option: "--repeat-last-n".into(), reason }
            })?),
        };
        let flags = SamplingFlags {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repeat_last_n,
            logit_bias: self.logit_bias.iter().copied().collect(),
            seed: None,
        };
        SamplingSettings::merged(&ModelDefaults::default(), &flags)?;
        Ok(flags)
    }
}

/// A token and its bias, in llama.cpp's form.
fn parse_bias(text: &str) -> std::result::Result<(u32, f32), String> {
    let wrong = || "is no token id with a bias; write 15043+1, 15043-0.5 or 15043-inf".to_owned();
    let at = text.find(['+', '-']).ok_or_else(wrong)?;
    let (id, bias) = text.split_at(at);
    Ok((id.parse().map_err(|_| wrong())?, bias.parse().map_err(|_| wrong())?))
}
