//! A small model that drafts for a larger one. It has an engine of its own, and for each sequence a cache that follows the larger one's text:
//! what the two have in common is kept, the rest is read again. How long both take is measured as they go, so that drafts end where they
//! do not pay.

use super::{Engine, LoadedModel};
use crate::error::{Error, Result};
use crate::platform::clock::Instant;
use crate::session::n_known;
use crate::stream::{Batch, BatchToken, Logits, LogitsRequest, MAX_TOKENS_TOGETHER};

/// The weight of a measured time after each further one.
const KEPT: f64 = 0.8;

/// The small model.
pub(super) struct DraftModel {
    engine: Engine,
    /// The tokens in the cache of each sequence.
    sequences: Vec<Vec<u32>>,
    /// Seconds for a drafted token, measured lately.
    secs: Option<f64>,
}

/// Tokens that are wanted after `cached` and `due` in a sequence.
pub(crate) struct DraftWish<'a> {
    pub(crate) sequence: u32,
    pub(crate) cached: &'a [u32],
    pub(crate) due: u32,
    pub(crate) most: usize,
}

/// Seconds of forwards of few tokens, measured lately.
#[derive(Debug, Default)]
pub(super) struct Timings([Option<f64>; MAX_TOKENS_TOGETHER]);

impl Timings {
    pub(super) fn note(&mut self, n_tokens: usize, secs: f64) {
        if let Some(known) = n_tokens.checked_sub(1).and_then(|index| self.0.get_mut(index)) {
            *known = Some(mixed(*known, secs));
        }
    }

    /// Those that were predicted, corrected by what was measured: of as many tokens, else of the nearest number.
    fn correct(&self, predicted: &[f64]) -> Vec<f64> {
        let known: Vec<(usize, f64)> = self.0.iter().enumerate().filter_map(|(index, secs)| Some((index, (*secs)?))).collect();
        let corrected = |(index, secs): (usize, &f64)| {
            let nearest = known.iter().min_by_key(|(other, _)| other.abs_diff(index));
            let ratio = nearest.and_then(|(other, measured)| Some(measured / predicted.get(*other).filter(|secs| **secs > 0.0)?));
            secs * ratio.unwrap_or(1.0)
        };
        predicted.iter().enumerate().map(corrected).collect()
    }
}

fn mixed(known: Option<f64>, secs: f64) -> f64 {
    known.map_or(secs, |known| known * KEPT + secs * (1.0 - KEPT))
}

impl Engine {
    /// Lets `draft`, a smaller model with the same vocabulary, draft tokens for generations that ask for it
    /// ([`DraftSource::Model`](crate::session::DraftSource::Model)). It must have as many sequences as this one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that says what does not fit: tokens that differ, recurrent states, too few sequences.
    pub fn draft_with(&mut self, draft: Engine) -> Result<()> {
        let invalid = |reason: String| Err(Error::InvalidArgument { option: "draft model".into(), reason });
        if let (Some(own), Some(other)) = (self.tokenizer(), draft.tokenizer()) {
            if let Some(difference) = own.difference(other) {
                return invalid(format!("has another vocabulary: {difference}"));
            }
        } else if self.config().vocab_size != draft.config().vocab_size {
            return invalid(format!("has {} tokens, and the model {}", draft.config().vocab_size, self.config().vocab_size));
        }
        if draft.prepared().model.is_recurrent() {
            return invalid("has recurrent states, which cannot go back to before a wrong draft".into());
        }
        if !draft.gives_logits() {
            return invalid("has no head and generates nothing".into());
        }
        if draft.plan().n_seqs < self.plan().n_seqs {
            return invalid(format!("was opened for {} sequences, and the model for {}", draft.plan().n_seqs, self.plan().n_seqs));
        }
        let sequences = vec![Vec::new(); draft.plan().n_seqs];
        self.draft = Some(Box::new(DraftModel { engine: draft, sequences, secs: None }));
        Ok(())
    }

    /// The model that drafts.
    pub fn draft_model(&self) -> Option<&LoadedModel> {
        self.draft.as_ref().map(|draft| draft.engine.model.as_ref())
    }

    /// Seconds for each token that the draft model drafts, and those of forwards by 1, 2, … tokens, measured where they were; `None`
    /// without such a model.
    pub(crate) fn drafting_secs(&self) -> Option<(f64, Vec<f64>)> {
        let draft = self.draft.as_ref()?;
        let predicted = draft.engine.decode_secs().first().copied().unwrap_or_default();
        Some((draft.secs.unwrap_or(predicted), self.timings.correct(self.decode_secs())))
    }

    /// What the draft model drafts for each wish. A model that fails is given up, and drafts nothing any more.
    pub(crate) async fn draft(&mut self, wishes: &[DraftWish<'_>]) -> Vec<Vec<u32>> {
        let none = || wishes.iter().map(|_| Vec::new()).collect();
        let vocab_size = self.config().vocab_size;
        let Some(draft) = &mut self.draft else { return none() };
        match draft.draft(wishes).await {
            Ok(mut drafts) => {
                // It may have room for tokens that this model has none for.
                let n_known = |draft: &[u32]| draft.iter().take_while(|token| (**token as usize) < vocab_size).count();
                drafts.iter_mut().for_each(|draft| draft.truncate(n_known(draft)));
                drafts
            }
            Err(error) => {
                tracing::warn!("the draft model fails, and drafts no more: {error}");
                self.draft = None;
                none()
            }
        }
    }
}

/// A sequence that is drafted for.
struct Drafting {
    sequence: u32,
    /// Tokens to read before the next one is chosen.
    due: Vec<u32>,
    most: usize,
    drafted: Vec<u32>,
}

impl DraftModel {
    async fn draft(&mut self, wishes: &[DraftWish<'_>]) -> Result<Vec<Vec<u32>>> {
        let mut all: Vec<Drafting> = wishes.iter().map(|wish| self.begin(wish)).collect();
        // What is far behind, such as a prompt, is read in large forwards.
        for drafting in &mut all {
            self.catch_up(drafting).await?;
        }
        let (begin, mut n_drafted) = (Instant::now(), 0usize);
        loop {
            let mut under_way: Vec<&mut Drafting> = all.iter_mut().filter(|drafting| drafting.drafted.len() < drafting.most).collect();
            if under_way.is_empty() {
                break;
            }
            n_drafted += under_way.len();
            let n_together = self.n_together(&under_way);
            for some in under_way.chunks_mut(n_together) {
                self.step(some).await?;
            }
        }
        if n_drafted > 0 {
            self.secs = Some(mixed(self.secs, begin.elapsed().as_secs_f64() / n_drafted as f64));
        }
        Ok(all.into_iter().map(|drafting| drafting.drafted).collect())
    }

    /// What is to be read for a wish; nothing is drafted where the model has no room for it, or not all of its tokens.
    fn begin(&mut self, wish: &DraftWish<'_>) -> Drafting {
        let n_tokens = wish.cached.len() + 1;
        let own = &mut self.sequences[wish.sequence as usize];
        let n_kept = self.engine.n_reusable(wish.sequence, n_known(own, wish.cached));
        own.truncate(n_kept);
        let due: Vec<u32> = wish.cached[n_kept..].iter().copied().chain([wish.due]).collect();
        let is_known = due.iter().all(|token| (*token as usize) < self.engine.config().vocab_size);
        let room = self.engine.plan().ctx_size.saturating_sub(n_tokens);
        let most = if is_known { wish.most.min(room) } else { 0 };
        Drafting { sequence: wish.sequence, due, most, drafted: Vec::new() }
    }

    async fn catch_up(&mut self, drafting: &mut Drafting) -> Result<()> {
        let n_tokens_max = self.engine.plan().forward.n_tokens;
        while drafting.most > 0 && drafting.due.len() > MAX_TOKENS_TOGETHER.min(n_tokens_max) {
            let rest = drafting.due.split_off(n_tokens_max.min(drafting.due.len() - 1));
            self.forward(&mut [drafting]).await?;
            drafting.due = rest;
        }
        Ok(())
    }

    /// How many sequences go into one forward with what is due of them.
    fn n_together(&self, under_way: &[&mut Drafting]) -> usize {
        let forward = self.engine.forward_size();
        let most_due = under_way.iter().map(|drafting| drafting.due.len()).max().unwrap_or(1).max(1);
        (forward.n_tokens / most_due).min(forward.n_logit_rows).max(1)
    }

    /// Drafts one more token of each of `some`.
    async fn step(&mut self, some: &mut [&mut Drafting]) -> Result<()> {
        let logits = self.forward(some).await?;
        for (drafting, logits) in some.iter_mut().zip(logits) {
            let likeliest = match logits {
                Logits::Top(best) => best.first().copied(),
                Logits::All(_) => None,
            };
            let (token, _) = likeliest.ok_or_else(|| Error::internal("a draft has no logits"))?;
            drafting.drafted.push(token);
            drafting.due = vec![token];
            // Nothing comes behind the end of an answer.
            if self.engine.tokenizer().is_some_and(|tokenizer| tokenizer.eos_tokens().contains(&token)) {
                drafting.most = drafting.drafted.len();
            }
        }
        Ok(())
    }

    /// Reads what is due.
    async fn forward(&mut self, some: &mut [&mut Drafting]) -> Result<Vec<Logits>> {
        let mut batch = Batch { logits_request: LogitsRequest::TopK(1), ..Batch::default() };
        for Drafting { sequence, due, .. } in some.iter() {
            let first = self.sequences[*sequence as usize].len() as u32;
            batch.tokens.extend((first..).zip(due).map(|(position, &token)| BatchToken { token, sequence: *sequence, position }));
            batch.logits_for.push(batch.tokens.len() as u32 - 1);
        }
        let logits = self.engine.forward(&batch).await?;
        for Drafting { sequence, due, .. } in some.iter_mut() {
            self.sequences[*sequence as usize].append(due);
        }
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_corrects_what_was_predicted() {
        let mut timings = Timings::default();
        let predicted = [1.0, 1.5, 2.0, 4.0];
        assert_eq!(timings.correct(&predicted), predicted);
        timings.note(1, 2.0);
        assert_eq!(timings.correct(&predicted), [2.0, 3.0, 4.0, 8.0]);
        timings.note(4, 1.0);
        assert_eq!(timings.correct(&predicted), [2.0, 3.0, 0.5, 1.0]);
        timings.note(1, 1.0);
        assert!((timings.correct(&predicted)[0] - 1.8).abs() < 1e-9);
        timings.note(0, 1.0);
        timings.note(MAX_TOKENS_TOGETHER + 1, 1.0);
        assert_eq!(Timings::default().correct(&[]), [0.0; 0]);
    }
}
