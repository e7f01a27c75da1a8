//! What a request asks for, in no API's words: prompts as tokens, and how to go on after them. Read from fields that the APIs share.

use super::app::App;
use super::error::ApiError;
use super::fields::{Fields, is_nothing};
use super::grammar::Grammar;
use crate::session::GenerateOptions;
use crate::text::{SamplingFlags, SamplingSettings, StopStrings, fresh_seed};

/// Answers to make.
pub(super) struct Work {
    /// One or several, each with its own answers; all fit the context.
    pub(super) prompts: Vec<Vec<u32>>,
    pub(super) how: How,
    /// Whether reasoning is told apart from the answer.
    pub(super) splits_reasoning: bool,
}

/// How answers are made.
pub(super) struct How {
    /// Answers to each prompt.
    pub(super) n_answers: usize,
    pub(super) sampling: SamplingSettings,
    /// The first answer's; each further one has the next.
    pub(super) seed: u64,
    pub(super) options: GenerateOptions,
    /// The form of answers, where they must have one.
    pub(super) grammar: Option<Grammar>,
}

/// Most answers of one request.
pub(super) const MAX_ANSWERS: usize = 64;
/// Most texts that end an answer, and the longest of them.
const MAX_STOPS: usize = 64;
/// See [`MAX_STOPS`].
const MAX_STOP_BYTES: usize = 1024;

impl Work {
    /// Checks that there are prompts, not too many of them, and that each can be continued.
    pub(super) fn new(app: &App, prompts: Vec<Vec<u32>>, how: How, splits_reasoning: bool) -> Result<Work, ApiError> {
        if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
            return Err(ApiError::field("prompt", "is empty; there is nothing to continue"));
        }
        if prompts.len().saturating_mul(how.n_answers) > MAX_ANSWERS {
            return Err(ApiError::field("n", format!("asks for more than {MAX_ANSWERS} answers at once")));
        }
        let vocab_size = app.engine.config().vocab_size;
        for prompt in &prompts {
            if let Some(&token) = prompt.iter().find(|&&token| token as usize >= vocab_size) {
                return Err(crate::Error::TokenOutOfVocabulary { token, vocab_size }.into());
            }
            app.engine.prepared().check_room(prompt.len())?;
        }
        Ok(Work { prompts, how, splits_reasoning })
    }

    /// The prompt of each answer, with its seed, in order.
    pub(super) fn answers(&self) -> impl Iterator<Item = (&[u32], u64)> {
        let of_prompt = move |prompt| (0..self.how.n_answers as u64).map(move |index| (prompt, self.how.seed.wrapping_add(index)));
        self.prompts.iter().map(Vec::as_slice).flat_map(of_prompt)
    }
}

impl How {
    /// Reads what the APIs of OpenAI and of llama.cpp's server call sampling.
    pub(super) fn read(app: &App, fields: &mut Fields) -> Result<How, ApiError> {
        let sampling = SamplingFlags {
            temperature: fields.number("temperature")?,
            top_k: fields.count("top_k")?,
            top_p: fields.number("top_p")?,
            min_p: fields.number("min_p")?,
            repeat_penalty: fields.number("repeat_penalty")?.or(fields.number("repetition_penalty")?),
            repeat_last_n: fields.count("repeat_last_n")?,
            seed: None,
        };
        for name in ["presence_penalty", "frequency_penalty", "logit_bias"] {
            fields.only(name, is_nothing, "is not supported; repeat_penalty is")?;
        }
        let n_answers = fields.count("n")?.unwrap_or(1) as usize;
        if n_answers == 0 {
            return Err(ApiError::field("n", "must be at least 1"));
        }
        let seed = fields.integer("seed")?;
        let most = fields.count("max_completion_tokens")?.or(fields.count("max_tokens")?);
        let options = GenerateOptions {
            max_tokens: most.map(|most| most as usize),
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or_default(),
            stop: fields.texts("stop")?.unwrap_or_default(),
            ..GenerateOptions::default()
        };
        How::checked(app, n_answers, &sampling, seed, options)
    }

    /// Over the model's own settings those of the request, checked. A seed below 0 is a random one, as in llama.cpp.
    pub(super) fn checked(
        app: &App,
        n_answers: usize,
        flags: &SamplingFlags,
        seed: Option<i64>,
        options: GenerateOptions,
    ) -> Result<How, ApiError> {
        let sampling = SamplingSettings::merged(app.engine.defaults(), flags)?;
        if options.stop.len() > MAX_STOPS || options.stop.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
            return Err(ApiError::field("stop", format!("may be {MAX_STOPS} texts of {MAX_STOP_BYTES} bytes at most")));
        }
        StopStrings::new(options.stop.clone())?;
        let seed = seed.and_then(|seed| u64::try_from(seed).ok()).unwrap_or_else(fresh_seed);
        let options = GenerateOptions { speculation: app.speculation, ..options };
        Ok(How { n_answers, sampling, seed, options, grammar: None })
    }
}
