//! Grammars in llama.cpp's form, GBNF (<https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md>): texts of rules that say what
//! an answer may be. A grammar is read into rules over bytes (`parse`, `rules`), which a text is matched with byte by byte (`matcher`);
//! a constraint walks the vocabulary through them (`vocabulary`).
//!
//! Any way through the rules counts, as llama.cpp has it: no rule is taken for good before all of its text is there. Only rules that begin
//! with themselves are refused.

mod matcher;
mod parse;
mod rules;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::fmt;
use std::sync::Arc;

use super::constraint::Constraint;
use crate::error::{Error, Result};
use matcher::Matcher;
use rules::Rules;
pub use vocabulary::TokenBytes;

/// Longest text of a grammar, in bytes.
pub const MAX_GRAMMAR_BYTES: usize = 1 << 20;

/// A grammar that answers can be held to.
#[derive(Debug, Clone)]
pub struct Gbnf(Arc<Rules>);

/// Why a text is no grammar, or none that can be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GbnfError {
    /// The line at fault, from 1 on.
    pub line: usize,
    /// What is wrong there.
    pub reason: String,
}

impl fmt::Display for GbnfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for GbnfError {}

impl Gbnf {
    /// Reads a grammar; its rule `root` is what an answer must be.
    ///
    /// # Errors
    /// For texts that are no grammar, rules that are missing or begin with themselves, and grammars that are too large.
    pub fn parse(text: &str) -> std::result::Result<Gbnf, GbnfError> {
        parse::parse(text).map(|rules| Gbnf(Arc::new(rules)))
    }

    /// Whether the grammar allows all of `text`.
    ///
    /// # Errors
    /// Where there are too many ways to read it.
    pub fn allows(&self, text: &str) -> Result<bool> {
        let mut matcher = Matcher::new(Arc::clone(&self.0)).map_err(failed)?;
        let mut state = matcher.begin();
        for byte in text.bytes() {
            match matcher.step(state, byte).map_err(failed)? {
                Some(next) => state = next,
                None => return Ok(false),
            }
        }
        Ok(matcher.is_whole(state))
    }

    /// The rules for one answer in tokens of that vocabulary.
    ///
    /// # Errors
    /// Where there are too many ways to begin.
    pub fn constraint(&self, tokens: &Arc<TokenBytes>) -> Result<Box<dyn Constraint>> {
        let matcher = Matcher::new(Arc::clone(&self.0)).map_err(failed)?;
        Ok(Box::new(vocabulary::Follower::new(matcher, Arc::clone(tokens))))
    }
}

fn failed(reason: impl fmt::Display) -> Error {
    Error::InvalidArgument { option: "grammar".into(), reason: format!("cannot be followed: {reason}") }
}
