//! How likely a model found the token that came, and which others.

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
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let n_top = n_top.min(ids.len());
        if n_top < ids.len() {
            ids.select_nth_unstable_by(n_top, by_logit);
            ids.truncate(n_top);
        }
        ids.sort_unstable_by(by_logit);
        Some(TokenLogprobs { logprob: logprob(token)?, top: ids.into_iter().filter_map(|id| Some((id, logprob(id)?))).collect() })
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
