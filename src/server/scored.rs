//! How likely the tokens of an answer were, as requests ask for it (`logprobs`).

use std::borrow::Cow;

use serde_json::{Value, json};

use super::app::App;
use crate::session::Generated;
use crate::text::Tokenizer;

/// A token of an answer, and how likely it was.
#[derive(Debug, Clone)]
pub(super) struct ScoredToken {
    pub(super) chosen: LikelyToken,
    /// The likeliest tokens at its place.
    pub(super) top: Vec<LikelyToken>,
}

/// A token and the logarithm of its probability.
#[derive(Debug, Clone)]
pub(super) struct LikelyToken {
    pub(super) id: u32,
    /// What it stands for, which may be a part of a character.
    pub(super) bytes: Vec<u8>,
    pub(super) logprob: f32,
}

impl LikelyToken {
    fn new(tokenizer: &Tokenizer, id: u32, logprob: f32) -> LikelyToken {
        let bytes = tokenizer.bytes(id).map_or_else(|| tokenizer.piece(id).into_bytes(), <[u8]>::to_vec);
        LikelyToken { id, bytes, logprob }
    }

    /// Its text; where it is no text of its own, with signs in the place of what is none.
    pub(super) fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }

    /// As the APIs of OpenAI and Ollama write it.
    pub(super) fn to_json(&self) -> Value {
        json!({ "token": self.text(), "logprob": self.logprob, "bytes": self.bytes })
    }
}

impl ScoredToken {
    /// The token of a step; `None` where it was not asked how likely it was, and for tokens that end an answer, which are none of it.
    pub(super) fn of(app: &App, step: &Generated) -> Option<ScoredToken> {
        let (logprobs, tokenizer) = (step.logprobs.as_ref()?, app.engine.tokenizer()?);
        if tokenizer.eos_tokens().contains(&step.token) {
            return None;
        }
        let token = |(id, logprob)| LikelyToken::new(tokenizer, id, logprob);
        Some(ScoredToken { chosen: token((step.token, logprobs.logprob)), top: logprobs.top.iter().copied().map(token).collect() })
    }

    /// As the APIs of OpenAI and Ollama write it.
    pub(super) fn to_json(&self) -> Value {
        let mut value = self.chosen.to_json();
        value["top_logprobs"] = self.top.iter().map(LikelyToken::to_json).collect();
        value
    }
}
