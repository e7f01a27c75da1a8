//! What a request asks for, in no API's words: prompts as tokens, and how to go on after them. Read from fields that the APIs share.

use std::collections::BTreeMap;

use serde_json::Value;

use super::app::App;
use super::error::ApiError;
use super::fields::Fields;
use super::grammar::{Grammar, fault_of};
use crate::session::GenerateOptions;
use crate::text::{CallGrammar, SamplingFlags, SamplingSettings, StopStrings, Tools, fresh_seed};

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
    /// What LoRA adapters are multiplied by.
    pub(super) loras: Vec<f32>,
    /// The form of answers, where they must have one.
    pub(super) grammar: Option<Grammar>,
    /// What the model may call.
    pub(super) tools: Option<Tools>,
}

/// Most answers of one request.
pub(super) const MAX_ANSWERS: usize = 64;
/// Most texts that end an answer, and the longest of them.
const MAX_STOPS: usize = 64;
/// Most likeliest tokens that are told with each, as OpenAI has it.
const MAX_LOGPROBS: u32 = 20;
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
        prompts.iter().try_for_each(|prompt| check_tokens(app, prompt))?;
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
        let sampling = sampling_flags(app, fields)?;
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

    /// Lets the model call `tools`. What it writes of them keeps to their schemas, where there are rules for the way in which it calls.
    pub(super) fn offer(&mut self, app: &App, tools: Option<Tools>) -> Result<(), ApiError> {
        if let Some(tools) = &tools {
            if self.grammar.is_some() {
                return Err(ApiError::unsupported("tools", "cannot be combined with a form of the answer"));
            }
            self.grammar = CallGrammar::new(&app.forms, app.engine.tokenizer(), tools)
                .map_err(|(field, error)| fault_of(field)(error))?
                .map(|calls| Grammar::Calls(Box::new(calls)));
        }
        self.tools = tools;
        Ok(())
    }

    /// Over the model's own settings those of the server, over them those of the request, checked. A seed below 0 is a random one, as in llama.cpp.
    pub(super) fn checked(
        app: &App,
        n_answers: usize,
        flags: &SamplingFlags,
        seed: Option<i64>,
        options: GenerateOptions,
    ) -> Result<How, ApiError> {
        let sampling = SamplingSettings::merged(app.engine.defaults(), &flags.or(&app.sampling))?;
        if options.stop.len() > MAX_STOPS || options.stop.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
            return Err(ApiError::field("stop", format!("may be {MAX_STOPS} texts of {MAX_STOP_BYTES} bytes at most")));
        }
        StopStrings::new(options.stop.clone())?;
        let seed = seed.and_then(|seed| u64::try_from(seed).ok()).unwrap_or_else(fresh_seed);
        let options = GenerateOptions { speculation: app.speculation, ..options };
        Ok(How { n_answers, sampling, seed, options, loras: app.loras.defaults(), grammar: None, tools: None })
    }
}

/// Checks that the model has these tokens, and room for them.
pub(super) fn check_tokens(app: &App, tokens: &[u32]) -> Result<(), ApiError> {
    let vocab_size = app.engine.config().vocab_size;
    if let Some(&token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
        return Err(crate::Error::TokenOutOfVocabulary { token, vocab_size }.into());
    }
    Ok(app.engine.prepared().check_room(tokens.len())?)
}

/// The field `name`: a text, which `encode` makes tokens of, a list of token ids, or a list of at most `most` of either, which are called
/// `what`.
pub(super) fn read_prompts(
    fields: &mut Fields,
    (name, what): (&str, &str),
    most: usize,
    encode: impl Fn(&str) -> Result<Vec<u32>, ApiError>,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let wrong = || ApiError::field(name, "must be a text, a list of token ids, or a list of either");
    let read_one = |prompt: &Value| match prompt {
        Value::String(text) => encode(text),
        Value::Array(ids) => {
            let ids: Option<Vec<u32>> = ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect();
            ids.ok_or_else(wrong)
        }
        _ => Err(wrong()),
    };
    match fields.value(name).ok_or_else(|| ApiError::field(name, "is missing"))? {
        Value::Array(list) if list.iter().any(|entry| entry.is_string() || entry.is_array()) => {
            if list.len() > most {
                return Err(ApiError::field(name, format!("may be {most} {what} at most")));
            }
            list.iter().map(read_one).collect()
        }
        one => Ok(vec![read_one(&one)?]),
    }
}

/// What the APIs of OpenAI and of llama.cpp's server call sampling, without the seed.
pub(super) fn sampling_flags(app: &App, fields: &mut Fields) -> Result<SamplingFlags, ApiError> {
    Ok(SamplingFlags {
        temperature: fields.number("temperature")?,
        top_k: fields.count("top_k")?,
        top_p: fields.number("top_p")?,
        min_p: fields.number("min_p")?,
        repeat_penalty: fields.number("repeat_penalty")?.or(fields.number("repetition_penalty")?),
        presence_penalty: fields.number("presence_penalty")?,
        frequency_penalty: fields.number("frequency_penalty")?,
        repeat_last_n: fields.count("repeat_last_n")?,
        logit_bias: fields.value("logit_bias").map(|biases| read_biases(app, biases)).transpose()?.unwrap_or_default(),
        seed: None,
    })
}

/// Biases as OpenAI writes them, an object, or as llama.cpp does, a list of pairs, in which false forbids a token.
fn read_biases(app: &App, biases: Value) -> Result<BTreeMap<u32, f32>, ApiError> {
    let name = "logit_bias";
    let id = |id: &Value| id.as_u64().or_else(|| id.as_str()?.parse().ok()).and_then(|id| u32::try_from(id).ok());
    let bias = |bias: &Value| match bias {
        Value::Bool(false) => Some(f32::NEG_INFINITY),
        bias => bias.as_f64().map(|bias| bias as f32),
    };
    let wrong = || ApiError::field(name, "must be an object of biases by token ids, or a list of pairs [id, bias]");
    let pairs: Option<BTreeMap<u32, f32>> = match &biases {
        Value::Object(biases) => biases.iter().map(|(token, value)| Some((token.parse().ok()?, bias(value)?))).collect(),
        Value::Array(pairs) => pairs.iter().map(|pair| Some((id(pair.get(0)?)?, bias(pair.get(1)?)?))).collect(),
        _ => None,
    };
    let pairs = pairs.ok_or_else(wrong)?;
    let vocab_size = app.engine.config().vocab_size;
    match pairs.keys().find(|token| **token as usize >= vocab_size) {
        Some(token) => Err(ApiError::field(name, format!("names the token {token}; the model has {vocab_size}"))),
        None => Ok(pairs),
    }
}

/// How many of the likeliest tokens are told with each: the field `most` of a request, where its field `asks` asks for any.
pub(super) fn read_logprobs(fields: &mut Fields, asks: &str, most: &str) -> Result<Option<usize>, ApiError> {
    let (is_asked, n_top) = (fields.flag(asks)?.unwrap_or(false), fields.count(most)?);
    match n_top {
        Some(n_top) if !is_asked && n_top > 0 => Err(ApiError::field(&fields.name(most), format!("needs {asks}"))),
        n_top if is_asked => checked_logprobs(&fields.name(most), n_top.unwrap_or_default()).map(Some),
        _ => Ok(None),
    }
}

/// That number, the field `name` of a request.
pub(super) fn checked_logprobs(name: &str, n_top: u32) -> Result<usize, ApiError> {
    if n_top > MAX_LOGPROBS {
        return Err(ApiError::field(name, format!("may be {MAX_LOGPROBS} at most")));
    }
    Ok(n_top as usize)
}
