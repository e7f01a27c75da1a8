//! How the next token is chosen, as settings: defaults, the model's own, the user's, and their merging. Draws nothing itself.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::defaults::ModelDefaults;
use crate::error::{Error, Result, Setting};

/// How the next token is chosen. The defaults are llama.cpp's.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SamplingSettings {
    /// Divides the logits; 0 always takes the likeliest token (greedy).
    pub temperature: f32,
    /// Only the likeliest `top_k` tokens are eligible; 0 means all.
    pub top_k: u32,
    /// Only the likeliest tokens that together have this probability are eligible; 1 means all.
    pub top_p: f32,
    /// Only tokens at least this probable, relative to the likeliest, are eligible; 0 means all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens; 1 changes nothing.
    pub repeat_penalty: f32,
    /// Is taken from the logits of recent tokens; 0 changes nothing.
    pub presence_penalty: f32,
    /// Is taken from the logits of recent tokens as many times as they came; 0 changes nothing.
    pub frequency_penalty: f32,
    /// How many latest tokens, of prompt and answer, count as recent.
    pub repeat_last_n: u32,
    /// Added to the logits of these tokens; minus infinity forbids them.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of the draws; `None` leaves it to the caller ([`fresh_seed`]).
    pub seed: Option<u64>,
}

impl Default for SamplingSettings {
    fn default() -> SamplingSettings {
        SamplingSettings {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_last_n: 64,
            logit_bias: BTreeMap::new(),
            seed: None,
        }
    }
}

/// What the user set; the rest is left to the model and the defaults.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingFlags {
    /// `--temp`.
    pub temperature: Option<f32>,
    /// `--top-k`.
    pub top_k: Option<u32>,
    /// `--top-p`.
    pub top_p: Option<f32>,
    /// `--min-p`.
    pub min_p: Option<f32>,
    /// `--repeat-penalty`.
    pub repeat_penalty: Option<f32>,
    /// `--presence-penalty`.
    pub presence_penalty: Option<f32>,
    /// `--frequency-penalty`.
    pub frequency_penalty: Option<f32>,
    /// `--repeat-last-n`.
    pub repeat_last_n: Option<u32>,
    /// `--logit-bias`.
    pub logit_bias: BTreeMap<u32, f32>,
    /// `--seed`.
    pub seed: Option<u64>,
}

/// Which logits of a forward a [`super::Sampler`] must see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitsNeeded {
    /// Only the token with the greatest logit.
    Greedy,
    /// The tokens with the greatest logits, this many.
    TopK(u32),
    /// All of the vocabulary.
    All,
}

impl SamplingFlags {
    /// These settings, and where they say nothing, those of `others`.
    pub fn or(&self, others: &SamplingFlags) -> SamplingFlags {
        let mut logit_bias = others.logit_bias.clone();
        logit_bias.extend(&self.logit_bias);
        SamplingFlags {
            temperature: self.temperature.or(others.temperature),
            top_k: self.top_k.or(others.top_k),
            top_p: self.top_p.or(others.top_p),
            min_p: self.min_p.or(others.min_p),
            repeat_penalty: self.repeat_penalty.or(others.repeat_penalty),
            presence_penalty: self.presence_penalty.or(others.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(others.frequency_penalty),
            repeat_last_n: self.repeat_last_n.or(others.repeat_last_n),
            logit_bias,
            seed: self.seed.or(others.seed),
        }
    }
}

impl SamplingSettings {
    /// Always the likeliest token.
    pub fn greedy() -> SamplingSettings {
        SamplingSettings { temperature: 0.0, ..SamplingSettings::default() }
    }

    /// The defaults, over them what the model wants, over that what the user wants; checked.
    pub fn merged(model: &ModelDefaults, flags: &SamplingFlags) -> Result<SamplingSettings> {
        let base = SamplingSettings::default();
        let settings = SamplingSettings {
            temperature: flags.temperature.or(model.temperature).unwrap_or(base.temperature),
            top_k: flags.top_k.or(model.top_k).unwrap_or(base.top_k),
            top_p: flags.top_p.or(model.top_p).unwrap_or(base.top_p),
            min_p: flags.min_p.or(model.min_p).unwrap_or(base.min_p),
            repeat_penalty: flags.repeat_penalty.or(model.repeat_penalty).unwrap_or(base.repeat_penalty),
            presence_penalty: flags.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: flags.frequency_penalty.unwrap_or(base.frequency_penalty),
            logit_bias: flags.logit_bias.clone(),
            repeat_last_n: flags.repeat_last_n.or(model.repeat_last_n).unwrap_or(base.repeat_last_n),
            seed: flags.seed,
        };
        settings.check()?;
        Ok(settings)
    }

    /// Refuses NaN, negative and out-of-range values, naming the option.
    pub fn check(&self) -> Result<()> {
        check_range(Setting::Temperature, self.temperature, 0.0, MAX_TEMPERATURE)?;
        check_range(Setting::TopP, self.top_p, 0.0, 1.0)?;
        check_range(Setting::MinP, self.min_p, 0.0, 1.0)?;
        check_range(Setting::RepeatPenalty, self.repeat_penalty, MIN_PENALTY, MAX_PENALTY)?;
        check_range(Setting::PresencePenalty, self.presence_penalty, -MAX_BIAS, MAX_BIAS)?;
        check_range(Setting::FrequencyPenalty, self.frequency_penalty, -MAX_BIAS, MAX_BIAS)?;
        let biases = self.logit_bias.values().filter(|bias| **bias != f32::NEG_INFINITY);
        biases.into_iter().try_for_each(|bias| check_range(Setting::LogitBias, *bias, -MAX_BIAS, MAX_BIAS))
    }

    /// Which logits are needed to choose a token with these settings.
    pub fn needs(&self) -> LogitsNeeded {
        // A penalty or a bias can lift any token over the likeliest ones, so the device's selection would be the wrong one.
        if self.penalises() || !self.logit_bias.is_empty() {
            return LogitsNeeded::All;
        }
        match (self.temperature == 0.0, self.top_k) {
            (true, _) => LogitsNeeded::Greedy,
            (false, 0) => LogitsNeeded::All,
            (false, k) => LogitsNeeded::TopK(k),
        }
    }

    /// Whether recent tokens change the logits.
    pub(super) fn penalises(&self) -> bool {
        let changes = self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0;
        changes && self.repeat_last_n > 0
    }
}

/// Hotter is indistinguishable from uniform; a limit keeps the arithmetic finite.
pub(super) const MAX_TEMPERATURE: f32 = 1000.0;
/// Penalties beyond these bounds would make logits infinite or zero.
pub(super) const MIN_PENALTY: f32 = 0.001;
/// See [`MIN_PENALTY`].
pub(super) const MAX_PENALTY: f32 = 1000.0;
/// OpenAI's bound of biases, which forces or forbids a token with any model.
const MAX_BIAS: f32 = 100.0;

fn check_range(setting: Setting, value: f32, least: f32, most: f32) -> Result<()> {
    // Written so that NaN fails.
    if value >= least && value <= most {
        return Ok(());
    }
    Err(Error::InvalidArgument { option: setting.into(), reason: format!("{value} is out of range; allowed is {least} to {most}") })
}

/// A seed that differs from run to run, below 2^32 so that it is short to read and to pass back with `--seed`.
pub fn fresh_seed() -> u64 {
    // The standard library keys its hashers from the system's randomness: all that a seed needs.
    RandomState::new().build_hasher().finish() >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_beat_the_model_and_the_model_beats_defaults() {
        let model = ModelDefaults { temperature: Some(0.2), top_k: Some(20), ..ModelDefaults::default() };
        let flags = SamplingFlags { temperature: Some(0.6), seed: Some(7), ..SamplingFlags::default() };
        let merged = SamplingSettings::merged(&model, &flags).unwrap();
        assert_eq!(merged, SamplingSettings { temperature: 0.6, top_k: 20, seed: Some(7), ..SamplingSettings::default() });
    }

    #[test]
    fn bad_values_name_their_option() {
        let flags = SamplingFlags::default();
        for (flags, option) in [
            (SamplingFlags { temperature: Some(f32::NAN), ..flags.clone() }, Setting::Temperature),
            (SamplingFlags { temperature: Some(-0.1), ..flags.clone() }, Setting::Temperature),
            (SamplingFlags { top_p: Some(1.01), ..flags.clone() }, Setting::TopP),
            (SamplingFlags { min_p: Some(-1.0), ..flags.clone() }, Setting::MinP),
            (SamplingFlags { repeat_penalty: Some(0.0), ..flags.clone() }, Setting::RepeatPenalty),
            (SamplingFlags { repeat_penalty: Some(f32::INFINITY), ..flags.clone() }, Setting::RepeatPenalty),
            (SamplingFlags { presence_penalty: Some(-101.0), ..flags.clone() }, Setting::PresencePenalty),
            (SamplingFlags { frequency_penalty: Some(f32::NAN), ..flags.clone() }, Setting::FrequencyPenalty),
            (SamplingFlags { logit_bias: [(1, f32::INFINITY)].into(), ..flags.clone() }, Setting::LogitBias),
        ] {
            let error = SamplingSettings::merged(&ModelDefaults::default(), &flags).unwrap_err();
            assert!(matches!(&error, Error::InvalidArgument { option: named, .. } if *named == option.into()), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn needs_follow_from_the_settings() {
        let settings = SamplingSettings::default();
        assert_eq!(settings.needs(), LogitsNeeded::TopK(40));
        assert_eq!(SamplingSettings::greedy().needs(), LogitsNeeded::Greedy);
        assert_eq!(SamplingSettings { top_k: 0, ..settings.clone() }.needs(), LogitsNeeded::All);
        assert_eq!(SamplingSettings { repeat_penalty: 1.1, ..SamplingSettings::greedy() }.needs(), LogitsNeeded::All);
        assert_eq!(SamplingSettings { presence_penalty: 0.1, ..settings.clone() }.needs(), LogitsNeeded::All);
        assert_eq!(SamplingSettings { logit_bias: [(1, -100.0)].into(), ..settings.clone() }.needs(), LogitsNeeded::All);
        assert_eq!(SamplingSettings { repeat_penalty: 1.1, repeat_last_n: 0, ..settings }.needs(), LogitsNeeded::TopK(40));
    }
}
