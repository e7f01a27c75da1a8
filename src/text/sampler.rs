//! Draws the next token from logits: biases → penalties → top-k → top-p → min-p → temperature → pick, in llama.cpp's order. Knows no model.

use std::cmp::Ordering;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::constraint::Constraint;
use super::penalties::{Recent, add_biases, penalise};
use super::sampling::{LogitsNeeded, SamplingSettings};
use crate::error::{Error, Result};

/// A token that may come next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub token: u32,
    /// The model's score for it: the greater, the likelier.
    pub logit: f32,
}

/// Draws tokens. The same settings, seed and logits give the same tokens, on every platform and in whatever order candidates come.
#[derive(Debug)]
pub struct Sampler {
    settings: SamplingSettings,
    random: ChaCha8Rng,
    recent: Recent,
    constraint: Option<Box<dyn Constraint>>,
}

impl Sampler {
    /// A sampler at the beginning of its draws; `settings.seed` is not looked at.
    pub fn new(settings: SamplingSettings, seed: u64) -> Sampler {
        Sampler { settings, random: ChaCha8Rng::seed_from_u64(seed), recent: Recent::default(), constraint: None }
    }

    /// The same, drawing only what `constraint` allows.
    #[must_use]
    pub fn constrained(mut self, constraint: Box<dyn Constraint>) -> Sampler {
        self.constraint = Some(constraint);
        self
    }

    /// Which candidates [`Sampler::sample`] must be given.
    pub fn needs(&self) -> LogitsNeeded {
        if self.constraint.is_some() { LogitsNeeded::All } else { self.settings.needs() }
    }

    /// The next token, one of `candidates`, which are left filtered and sorted. They are what [`Sampler::needs`] says, in any order.
    /// Refuses logits that are NaN or infinite.
    pub fn sample(&mut self, candidates: &mut Vec<Candidate>) -> Result<u32> {
        if let Some(broken) = candidates.iter().find(|candidate| !candidate.logit.is_finite()) {
            return Err(Error::NotFinite { token: broken.token as usize, value: broken.logit });
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.keep_allowed(candidates)?;
        }
        add_biases(candidates, &self.settings);
        penalise(candidates, &self.recent, &self.settings);
        if self.settings.temperature == 0.0 {
            return likeliest(candidates);
        }
        keep_top_k(candidates, self.settings.top_k);
        let likeliest = likeliest(candidates)?;
        // The draw is taken even where one candidate remains, so that a later token's draw does not depend on how sure this one was.
        let draw = unit_interval(&mut self.random);
        keep_top_p(candidates, self.settings.top_p);
        keep_min_p(candidates, self.settings.min_p);
        Ok(pick(candidates, self.settings.temperature, draw).unwrap_or(likeliest))
    }

    /// Notes which token came next, sampled or not.
    ///
    /// # Errors
    /// Where a constraint does not allow it.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        self.remember(token);
        self.constraint.as_mut().map_or(Ok(()), |constraint| constraint.accept(token))
    }

    /// Notes a token of the prompt: those count for penalties, too.
    pub fn remember(&mut self, token: u32) {
        if self.settings.penalises() {
            self.recent.push(token, self.settings.repeat_last_n as usize);
        }
    }
}

/// Greater logits first; equal ones by id, so that the order never depends on where candidates came from.
fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

fn likeliest(candidates: &[Candidate]) -> Result<u32> {
    // Zeros of either sign are one value, which total_cmp would distinguish.
    let first = candidates.iter().min_by(|a, b| {
        let by_value = b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal);
        by_value.then(a.token.cmp(&b.token))
    });
    let empty = || Error::InvalidArgument { option: "candidates".into(), reason: "there is no token to choose from".into() };
    first.map(|candidate| candidate.token).ok_or_else(empty)
}

/// Keeps the `k` likeliest (all for 0) and sorts them, likeliest first.
pub(super) fn keep_top_k(candidates: &mut Vec<Candidate>, k: u32) {
    let k = if k == 0 { candidates.len() } else { k as usize };
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k, by_logit);
        candidates.truncate(k);
    }
    candidates.sort_unstable_by(by_logit);
}

/// Keeps the shortest beginning that has probability `p` together. `candidates` are sorted.
fn keep_top_p(candidates: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 {
        return;
    }
    let weights = weights(candidates, 1.0);
    let enough = weights.iter().sum::<f64>() * f64::from(p);
    let mut sum = 0.0;
    let reaches = weights.iter().position(|weight| {
        sum += weight;
        sum >= enough
    });
    candidates.truncate(reaches.map_or(candidates.len(), |index| index + 1).max(1));
}

/// Drops candidates less probable than `p` times the likeliest one. `candidates` are sorted.
fn keep_min_p(candidates: &mut Vec<Candidate>, p: f32) {
    let Some(first) = candidates.first().filter(|_| p > 0.0) else { return };
    let least = first.logit + p.ln();
    let kept = candidates.iter().take_while(|candidate| candidate.logit >= least).count();
    candidates.truncate(kept.max(1));
}

/// The candidate at `draw` (0 to 1) of the cumulated probabilities.
fn pick(candidates: &[Candidate], temperature: f32, draw: f64) -> Option<u32> {
    let weights = weights(candidates, temperature);
    let mut left = draw * weights.iter().sum::<f64>();
    for (candidate, weight) in candidates.iter().zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return Some(candidate.token);
        }
    }
    // Rounding can leave a trace over; it belongs to the last one.
    candidates.last().map(|candidate| candidate.token)
}

/// `exp((logit - greatest) / temperature)` of sorted candidates: probabilities up to their sum.
fn weights(candidates: &[Candidate], temperature: f32) -> Vec<f64> {
    let greatest = candidates.first().map_or(0.0, |candidate| f64::from(candidate.logit));
    candidates.iter().map(|candidate| ((f64::from(candidate.logit) - greatest) / f64::from(temperature)).exp()).collect()
}

/// A number in [0, 1) of 53 random bits.
fn unit_interval(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(logits: &[f32]) -> Vec<Candidate> {
        logits.iter().zip(0..).map(|(&logit, token)| Candidate { token, logit }).collect()
    }

    fn tokens(candidates: &[Candidate]) -> Vec<u32> {
        candidates.iter().map(|candidate| candidate.token).collect()
    }

    #[test]
    fn filters_keep_what_their_definitions_say() {
        // Probabilities 0.1, 0.5, 0.15, 0.25.
        let logits = [0.1f32, 0.5, 0.15, 0.25].map(f32::ln);
        let sorted = |k| {
            let mut all = candidates(&logits);
            keep_top_k(&mut all, k);
            all
        };
        assert_eq!(tokens(&sorted(0)), [1, 3, 2, 0]);
        assert_eq!(tokens(&sorted(2)), [1, 3]);
        for (p, kept) in [(0.0, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.91, 4), (1.0, 4)] {
            let mut all = sorted(0);
            keep_top_p(&mut all, p);
            assert_eq!(all.len(), kept, "top-p {p}");
        }
        for (p, kept) in [(0.0, 4), (0.19, 4), (0.21, 3), (0.29, 3), (0.31, 2), (0.51, 1), (1.0, 1)] {
            let mut all = sorted(0);
            keep_min_p(&mut all, p);
            assert_eq!(all.len(), kept, "min-p {p}");
        }
    }

    #[test]
    fn greedy_ties_go_to_the_lowest_id() {
        let mut sampler = Sampler::new(SamplingSettings::greedy(), 0);
        assert_eq!(sampler.sample(&mut candidates(&[1.0, 3.0, 2.0, 3.0])).unwrap(), 1);
        assert_eq!(sampler.sample(&mut candidates(&[-0.0, 0.0, -1.0])).unwrap(), 0);
    }

    #[test]
    fn the_penalty_reaches_only_recent_tokens() {
        let settings = SamplingSettings { repeat_penalty: 2.0, repeat_last_n: 2, ..SamplingSettings::greedy() };
        let mut sampler = Sampler::new(settings, 0);
        let mut next = || sampler.sample(&mut candidates(&[4.0, 3.0, -1.0])).inspect(|&token| sampler.remember(token)).unwrap();
        // 0 wins; penalised to 2 it loses to 1; both penalised it wins (2 over 1.5) until 1 is no longer recent.
        assert_eq!([next(), next(), next(), next(), next()], [0, 1, 0, 0, 1]);
        let mut negative = Sampler::new(SamplingSettings { repeat_penalty: 2.0, ..SamplingSettings::greedy() }, 0);
        negative.remember(0);
        assert_eq!(negative.sample(&mut candidates(&[-1.0, -1.5])).unwrap(), 1, "negative logits are multiplied");
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let settings = SamplingSettings { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplingSettings::default() };
        let mut sampler = Sampler::new(settings, 42);
        let mut counts = [0u32; 3];
        for _ in 0..10_000 {
            counts[sampler.sample(&mut candidates(&[0.7f32, 0.2, 0.1].map(f32::ln))).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([7000, 2000, 1000]) {
            assert!(count.abs_diff(expected) < 200, "{counts:?}: five standard deviations are 229 or less");
        }
    }

    #[test]
    fn broken_logits_and_no_logits_are_refused() {
        let mut sampler = Sampler::new(SamplingSettings::default(), 0);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = sampler.sample(&mut candidates(&[0.0, value])).unwrap_err();
            assert!(matches!(error, Error::NotFinite { token: 1, .. }), "{error}");
        }
        assert!(sampler.sample(&mut Vec::new()).is_err());
    }
}
