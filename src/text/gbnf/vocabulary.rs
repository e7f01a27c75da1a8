//! Which tokens a grammar allows next: the vocabulary in the order of its bytes, so that what tokens begin with in common is matched once.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::failed;
use super::matcher::{Matcher, TooManyWays};
use crate::error::{Error, Result};
use crate::text::constraint::Constraint;
use crate::text::files::text_error;
use crate::text::sampler::Candidate;
use crate::text::tokenizer::Tokenizer;

/// States whose tokens are remembered.
const MAX_REMEMBERED: usize = 256;

/// The tokens of a vocabulary by their bytes.
#[derive(Debug)]
pub struct TokenBytes {
    /// Tokens that have a text, in the order of their bytes, with how many of these they have in common with the token before.
    sorted: Vec<(u32, usize)>,
    /// By token.
    bytes: Vec<Box<[u8]>>,
    /// Tokens that end an answer.
    ends: Vec<u32>,
}

impl TokenBytes {
    /// Those of `tokenizer`.
    ///
    /// # Errors
    /// [`Error::Text`] where only runs of its tokens have a text.
    pub fn of(tokenizer: &Tokenizer) -> Result<TokenBytes> {
        let bytes: Option<Vec<Box<[u8]>>> =
            (0..tokenizer.vocab_size()).map(|id| Some(tokenizer.bytes(u32::try_from(id).ok()?)?.into())).collect();
        let bytes = bytes.ok_or_else(|| text_error("tokenizer", "tells no bytes of single tokens, as grammars need them"))?;
        Ok(TokenBytes::new(bytes, tokenizer.eos_tokens().to_vec()))
    }

    pub(super) fn new(mut bytes: Vec<Box<[u8]>>, ends: Vec<u32>) -> TokenBytes {
        for end in &ends {
            if let Some(bytes) = bytes.get_mut(*end as usize) {
                *bytes = Box::default();
            }
        }
        let mut tokens: Vec<u32> = (0..bytes.len() as u32).filter(|token| !bytes[*token as usize].is_empty()).collect();
        tokens.sort_unstable_by(|a, b| bytes[*a as usize].cmp(&bytes[*b as usize]));
        let mut before: &[u8] = &[];
        let with_common = |token| {
            let own = &bytes[token as usize];
            let n_common = own.iter().zip(before).take_while(|(a, b)| a == b).count();
            before = own;
            (token, n_common)
        };
        let sorted = tokens.into_iter().map(with_common).collect();
        TokenBytes { sorted, bytes, ends }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        &self.bytes[token as usize]
    }

    /// A flag for each token that may come at `state`.
    fn allowed(&self, matcher: &mut Matcher, state: u32) -> std::result::Result<Vec<bool>, TooManyWays> {
        let mut allowed = vec![false; self.bytes.len()];
        // The states after each byte of the latest token, as far as it is allowed.
        let mut path = vec![state];
        for (token, n_common) in &self.sorted {
            let bytes = &self.bytes[*token as usize];
            // What the last token was refused for, this one has too.
            if *n_common >= path.len() {
                continue;
            }
            path.truncate(n_common + 1);
            let mut last = path[*n_common];
            let mut is_allowed = true;
            for byte in &bytes[*n_common..] {
                match matcher.step(last, *byte)? {
                    Some(next) => last = next,
                    None => {
                        is_allowed = false;
                        break;
                    }
                }
                path.push(last);
            }
            allowed[*token as usize] = is_allowed;
        }
        if matcher.is_whole(state) {
            self.ends.iter().filter_map(|end| allowed.get_mut(*end as usize).map(|flag| *flag = true)).for_each(drop);
        }
        Ok(allowed)
    }
}

/// One answer on its way through a grammar.
pub(super) struct Follower {
    matcher: Matcher,
    tokens: Arc<TokenBytes>,
    state: u32,
    /// The tokens that may come at states.
    remembered: HashMap<u32, Arc<[bool]>>,
}

impl Follower {
    pub(super) fn new(matcher: Matcher, tokens: Arc<TokenBytes>) -> Follower {
        Follower { state: matcher.begin(), matcher, tokens, remembered: HashMap::new() }
    }

    fn allowed(&mut self) -> std::result::Result<Arc<[bool]>, TooManyWays> {
        if let Some(known) = self.remembered.get(&self.state) {
            return Ok(Arc::clone(known));
        }
        if self.matcher.is_large() {
            self.state = self.matcher.forget_all_but(self.state)?;
            self.remembered.clear();
        }
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.clear();
        }
        let allowed: Arc<[bool]> = self.tokens.allowed(&mut self.matcher, self.state)?.into();
        self.remembered.insert(self.state, Arc::clone(&allowed));
        Ok(allowed)
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Follower")
    }
}

impl Constraint for Follower {
    fn keep_allowed(&mut self, candidates: &mut Vec<Candidate>) -> Result<()> {
        let allowed = self.allowed().map_err(failed)?;
        candidates.retain(|candidate| allowed.get(candidate.token as usize).copied().unwrap_or_default());
        if candidates.is_empty() {
            return Err(failed("the model has no token that may come next"));
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        if self.tokens.ends.contains(&token) && self.matcher.is_whole(self.state) {
            return Ok(());
        }
        let refused = || Error::internal("a token came that the grammar does not allow");
        let bytes = self.tokens.bytes.get(token as usize).filter(|bytes| !bytes.is_empty()).ok_or_else(refused)?;
        for byte in bytes {
            self.state = self.matcher.step(self.state, *byte).map_err(failed)?.ok_or_else(refused)?;
        }
        Ok(())
    }
}
