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
