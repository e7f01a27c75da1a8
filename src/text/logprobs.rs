//! How likely a model found the token that came, and which others.

use super::sampler::{Candidate, keep_top_k};

/// Natural logarithms of the probabilities that a model gave, before any setting of the sampling.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// That of the token that came.
    pub logprob: f32,
    /// The likeliest tokens with theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Those of `token` and of the `n_top` likeliest tokens, by the logits of all the vocabulary; `None` for a token that is not in it.
    pub(crate) fn of(logits: &[f32], token: u32, n_top: usize) -> Option<TokenLogprobs> {
        let greatest = logits.iter().copied().max_by(f32::total_cmp)?;
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - greatest).exp()).sum();
        let log_sum = f64::from(greatest) + sum.ln();
        let logprob = |id: u32| Some((f64::from(*logits.get(id as usize)?) - log_sum) as f32);
        let mut likeliest: Vec<Candidate> = (0..).zip(logits).map(|(token, &logit)| Candidate { token, logit }).collect();
        // All of them would be kept for 0.
        if n_top == 0 {
            likeliest.clear();
        }
        keep_top_k(&mut likeliest, u32::try_from(n_top).unwrap_or(u32::MAX));
        let top = likeliest.iter().filter_map(|likely| Some((likely.token, logprob(likely.token)?))).collect();
        Some(TokenLogprobs { logprob: logprob(token)?, top })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_logarithms_of_probabilities() {
        let logits = [0.1f32, 0.5, 0.15, 0.25].map(|p| p.ln() + 3.0);
        let of = |token, n_top| TokenLogprobs::of(&logits, token, n_top);
        let near = |a: f32, b: f32| (a - b.ln()).abs() < 1e-6;
        let two = of(0, 2).unwrap();
        assert!(near(two.logprob, 0.1), "{two:?}");
        assert!(matches!(two.top.as_slice(), [(1, a), (3, b)] if near(*a, 0.5) && near(*b, 0.25)), "{two:?}");
        assert_eq!(of(3, 0).unwrap().top, []);
        assert_eq!(of(3, 99).unwrap().top.len(), 4);
        assert_eq!(of(4, 1), None);
        assert_eq!(TokenLogprobs::of(&[], 0, 1), None);
    }
}
