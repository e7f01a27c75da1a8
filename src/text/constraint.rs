//! What may come next in an answer, whatever the model finds likely. Knows no grammar.

use std::fmt;

use super::sampler::Candidate;
use crate::error::Result;

/// Rules for one answer, which follow it token by token.
pub trait Constraint: Send + Sync + fmt::Debug {
    /// Takes away what may not come next. Something is left: at the end of what is allowed, the tokens that end an answer.
    ///
    /// # Errors
    /// Where the rules cannot be followed any further.
    fn keep_allowed(&mut self, candidates: &mut Vec<Candidate>) -> Result<()>;

    /// Notes which token came.
    ///
    /// # Errors
    /// Where it was not allowed.
    fn accept(&mut self, token: u32) -> Result<()>;
}

/// Why answers cannot be held to a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormError {
    /// Not with this model.
    Unsupported(String),
    /// It is no form, or none that is known.
    Wrong(String),
}

impl fmt::Display for FormError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (FormError::Unsupported(reason) | FormError::Wrong(reason)) = self;
        f.write_str(reason)
    }
}

impl std::error::Error for FormError {}
