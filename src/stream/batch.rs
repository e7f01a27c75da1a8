//! The input of a forward, a batch, and its output, logits.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::kernels::kv_tables::with_tables;
use crate::kernels::matmul::MAX_DECODE_TOKENS;
use crate::kernels::rope_kv::Token;
use crate::model::{ModelConfig, RopeTable};
use crate::plan::sizes::TOP_K_MAX;
use crate::plan::{ForwardSize, Workload};
use crate::stream::KvBlocks;

/// Most tokens of a forward that takes the same kernels as a forward of one token: each is computed bit for bit as if it were alone.
pub const MAX_TOKENS_TOGETHER: usize = MAX_DECODE_TOKENS as usize;

/// One forward's input: tokens of one or several sequences, each at its position.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The tokens. Those of one sequence are in the order of their positions, and all earlier positions are in the cache or in the batch.
    pub tokens: Vec<BatchToken>,
    /// Indices into `tokens`: the positions whose logits are asked for.
    pub logits_for: Vec<u32>,
    /// How much of the logits must reach the host.
    pub logits_request: LogitsRequest,
}

/// One token of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchToken {
    /// Its id.
    pub token: u32,
    /// Which sequence of the KV cache it belongs to.
    pub sequence: u32,
    /// Its position in that sequence.
    pub position: u32,
}

/// How much of the logits must reach the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogitsRequest {
    /// All of them.
    #[default]
    All,
    /// The highest ones of each row, so many: 1 to [`TOP_K_MAX`].
    TopK(usize),
}

/// Logits of one position; of a model [without its head](crate::model::Model::without_head) its normed last hidden state.
#[derive(Debug, Clone, PartialEq)]
pub enum Logits {
    /// Every token's, `[vocab_size]`; or `[hidden_size]`.
    All(Vec<f32>),
    /// The tokens with the highest logits, best first; ties in the order of token ids.
    Top(Vec<(u32, f32)>),
}

impl Logits {
    /// Leaves out what `logits_request` does not ask for.
    #[must_use]
    pub fn limited_to(self, logits_request: LogitsRequest) -> Logits {
        match (self, logits_request) {
            (Logits::Top(mut best), LogitsRequest::TopK(k)) => {
                best.truncate(k);
                Logits::Top(best)
            }
            (all, _) => all,
        }
    }
}

impl Batch {
    /// The number of runs of consecutive tokens of one sequence.
    pub fn n_runs(&self) -> usize {
        self.tokens.chunk_by(|a, b| a.sequence == b.sequence).count()
    }

    /// The positions that it computes of each of its sequences, from the first one's on.
    pub(crate) fn written(&self) -> Vec<(u32, Range<usize>)> {
        let of_sequence = |sequence: u32| {
            let positions = self.tokens.iter().filter(|token| token.sequence == sequence).map(|token| token.position as usize);
            let (first, last) = (positions.clone().min().unwrap_or(0), positions.max().unwrap_or(0));
            (sequence, first..last + 1)
        };
        self.sequences().into_iter().map(of_sequence).collect()
    }

    /// The sequences that its tokens belong to, in order.
    pub(crate) fn sequences(&self) -> Vec<u32> {
        let mut sequences: Vec<u32> = self.tokens.iter().map(|token| token.sequence).collect();
        sequences.sort_unstable();
        sequences.dedup();
        sequences
    }

    /// What it asks of a forward, for predictions: tokens attend to as many positions as they do on average.
    pub fn workload(&self) -> Workload {
        let n_tokens = self.tokens.len();
        let positions: usize = self.tokens.iter().map(|token| token.position as usize).sum();
        let position = positions / n_tokens.max(1);
        Workload { n_tokens, n_logit_rows: self.logits_for.len(), position, n_seqs: self.sequences().len() }
    }

    /// Most positions that one of its tokens attends to, its own included.
    pub fn n_positions(&self) -> usize {
        self.tokens.iter().map(|token| token.position as usize + 1).max().unwrap_or(0)
    }

    /// Checks the batch against the sizes of a plan: positions and number of sequences, and what a forward may ask for.
    ///
    /// # Errors
    /// [`Error::TokenOutOfVocabulary`], [`Error::ContextFull`], [`Error::InvalidArgument`].
    pub fn check(&self, config: &ModelConfig, ctx_size: usize, n_seqs: usize, forward: ForwardSize) -> Result<()> {
        let over = |what: &str, n: usize, most: usize| Error::InvalidArgument {
            option: "batch".into(),
            reason: format!("{n} {what}, where the plan provides for 1 to {most}"),
        };
        if self.tokens.is_empty() || self.tokens.len() > forward.n_tokens {
            return Err(over("tokens", self.tokens.len(), forward.n_tokens));
        }
        if self.logits_for.is_empty() || self.logits_for.len() > forward.n_logit_rows {
            return Err(over("rows of logits", self.logits_for.len(), forward.n_logit_rows));
        }
        if let Some(&row) = self.logits_for.iter().find(|row| **row as usize >= self.tokens.len()) {
            return Err(over("as an index of a token", row as usize, self.tokens.len()));
        }
        if let LogitsRequest::TopK(k) = self.logits_request
            && !(1..=TOP_K_MAX).contains(&k)
        {
            return Err(over("best tokens", k, TOP_K_MAX));
        }
        let mut places: Vec<(u32, u32)> = self.tokens.iter().map(|token| (token.sequence, token.position)).collect();
        places.sort_unstable();
        if let Some(twice) = places.windows(2).find(|pair| pair[0] == pair[1]) {
            let reason = format!("two tokens have position {} of sequence {}", twice[0].1, twice[0].0);
            return Err(Error::InvalidArgument { option: "batch".into(), reason });
        }
        for token in &self.tokens {
            if token.token as usize >= config.vocab_size {
                return Err(Error::TokenOutOfVocabulary { token: token.token, vocab_size: config.vocab_size });
            }
            if token.position as usize >= ctx_size {
                return Err(Error::ContextFull { needed: token.position as usize + 1, available: ctx_size });
            }
            if token.sequence as usize >= n_seqs {
                return Err(over("as a sequence", token.sequence as usize, n_seqs));
            }
        }
        Ok(())
    }
}

/// How many positions of each sequence are cached. Of a model with recurrent states those are the states after so many positions: a
/// sequence goes on there, or begins anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedPositions {
    positions: Vec<usize>,
    /// Whether the model has recurrent states.
    is_recurrent: bool,
}

impl CachedPositions {
    /// Empty caches.
    pub fn new(n_seqs: usize, is_recurrent: bool) -> CachedPositions {
        CachedPositions { positions: vec![0; n_seqs], is_recurrent }
    }

    /// How many of the first `n_tokens` positions of a sequence need not be computed again.
    pub fn n_reusable(&self, sequence: u32, n_tokens: usize) -> usize {
        let cached = self.of(sequence);
        if self.is_recurrent && cached != n_tokens { 0 } else { cached.min(n_tokens) }
    }

    fn of(&self, sequence: u32) -> usize {
        self.positions.get(sequence as usize).copied().unwrap_or(0)
    }

    /// Checks that all positions before each token of a batch are cached, or come before it in the batch. Of a model with recurrent
    /// states, that each token follows the one before it in its sequence, or is the first.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the first position of which that is not so.
    pub fn check(&self, batch: &Batch) -> Result<()> {
        for (index, &BatchToken { sequence, position, .. }) in batch.tokens.iter().enumerate() {
            let before = batch.tokens[..index].iter().rfind(|other| other.sequence == sequence);
            let follows = before.map_or(0, |other| other.position as usize + 1);
            let cached = self.of(sequence).max(follows);
            let invalid = |reason: String| Err(Error::InvalidArgument { option: "batch".into(), reason });
            if position as usize > cached {
                return invalid(format!("position {position} of sequence {sequence} comes before position {cached} is cached"));
            }
            let next = before.map_or(cached, |_| follows);
            let is_first = before.is_none() && position == 0;
            if self.is_recurrent && position as usize != next && !is_first {
                let reason = format!(
                    "position {position} of sequence {sequence} does not follow position {next}, and the model has recurrent states, which \
                     cannot go back: begin at position 0"
                );
                return invalid(reason);
            }
        }
        Ok(())
    }

    /// So many positions of a sequence are cached, however they came there.
    pub fn set(&mut self, sequence: u32, n_positions: usize) {
        if let Some(cached) = self.positions.get_mut(sequence as usize) {
            *cached = n_positions;
        }
    }

    /// A forward begins: until it ends, its positions and all later ones count as not cached; of a recurrent model all of its sequences.
    pub fn begin(&mut self, batch: &Batch) {
        for token in &batch.tokens {
            if let Some(cached) = self.positions.get_mut(token.sequence as usize) {
                *cached = if self.is_recurrent { 0 } else { (*cached).min(token.position as usize) };
            }
        }
    }

    /// A forward ended well: its positions are cached.
    pub fn end(&mut self, batch: &Batch) {
        for token in &batch.tokens {
            if let Some(cached) = self.positions.get_mut(token.sequence as usize) {
                *cached = (*cached).max(token.position as usize + 1);
            }
        }
    }
}

/// The places of all tokens, as kernels read them, with the tables of their sequences. Caches hold each sequence up to its last token in the batch
/// once the batch is computed.
pub(super) fn places(batch: &Batch, blocks: &KvBlocks) -> Vec<Token> {
    let last = |sequence: u32| batch.tokens.iter().rfind(|token| token.sequence == sequence).map_or(0, |token| token.position);
    let tokens = batch.tokens.iter().map(|token| Token::new(token.sequence, token.position, last(token.sequence) + 1)).collect();
    with_tables(tokens, |sequence| blocks.table(sequence))
}

/// Cosine and sine of each token's angles by `table`, where caches have room for `ctx_size` positions: `[n_tokens, n_pairs, 2]`. Computed
/// on the host in double precision, so that every executor rotates by the same values and large positions lose no precision.
pub(crate) fn cos_sin(batch: &Batch, table: &RopeTable, ctx_size: usize) -> Vec<f32> {
    let frequencies = table.of_context(ctx_size);
    let mut cos_sin = Vec::with_capacity(batch.tokens.len() * frequencies.len() * 2);
    for token in &batch.tokens {
        let scale = f64::from(table.scale) * table.temperature.map_or(1.0, |temperature| temperature.of(token.position));
        for &frequency in frequencies {
            let angle = f64::from(token.position) * f64::from(frequency);
            cos_sin.extend([(angle.cos() * scale) as f32, (angle.sin() * scale) as f32]);
        }
    }
    cos_sin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(places: &[(u32, u32)]) -> Batch {
        let tokens = places.iter().map(|&(sequence, position)| BatchToken { token: 0, sequence, position }).collect();
        Batch { tokens, logits_for: vec![0], logits_request: LogitsRequest::All }
    }

    #[test]
    fn what_a_token_looks_back_on_must_be_cached() {
        let mut cached = CachedPositions::new(2, false);
        let prompt = batch(&[(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]);
        cached.check(&prompt).unwrap();
        assert!(cached.check(&batch(&[(0, 0), (1, 1)])).is_err());
        cached.begin(&prompt);
        assert!(cached.check(&batch(&[(0, 3)])).is_err(), "it failed");
        cached.begin(&prompt);
        cached.end(&prompt);
        cached.check(&batch(&[(0, 3), (1, 2)])).unwrap();
        let reported = cached.check(&batch(&[(1, 3)])).unwrap_err().to_string();
        assert!(reported.contains("position 3 of sequence 1") && reported.contains("position 2"), "{reported}");
        // Another text from position 1 on: later positions are not cached any more.
        let other = batch(&[(0, 1)]);
        cached.check(&other).unwrap();
        cached.begin(&other);
        cached.end(&other);
        assert!(cached.check(&batch(&[(0, 3)])).is_err());
        assert_eq!([cached.n_reusable(0, 1), cached.n_reusable(0, 5)], [1, 2]);
    }

    #[test]
    fn recurrent_states_go_on_or_begin_anew() {
        let mut cached = CachedPositions::new(2, true);
        let prompt = batch(&[(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]);
        cached.check(&prompt).unwrap();
        cached.begin(&prompt);
        assert_eq!(cached.n_reusable(0, 0), 0);
        assert!(cached.check(&batch(&[(0, 1)])).is_err(), "it failed");
        cached.end(&prompt);
        cached.check(&batch(&[(0, 3), (1, 2), (0, 4)])).unwrap();
        cached.check(&batch(&[(0, 0), (0, 1)])).unwrap();
        let reported = cached.check(&batch(&[(0, 2)])).unwrap_err().to_string();
        assert!(reported.contains("position 2 of sequence 0 does not follow position 3"), "{reported}");
        assert!(cached.check(&batch(&[(0, 3), (0, 3)])).is_err() && cached.check(&batch(&[(0, 3), (0, 0)])).is_err());
        assert_eq!([cached.n_reusable(0, 2), cached.n_reusable(0, 3), cached.n_reusable(1, 2)], [0, 3, 2]);
    }
}
