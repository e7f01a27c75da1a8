//! What makes tokens more or less likely than the model has them: biases, and penalties of those that came lately.

use std::collections::{HashMap, VecDeque};

use super::sampler::Candidate;
use super::sampling::SamplingSettings;

/// The latest tokens, and how often each is among them.
#[derive(Debug, Default)]
pub(super) struct Recent {
    latest: VecDeque<u32>,
    counts: HashMap<u32, u32>,
}

impl Recent {
    /// Adds the latest token; those before the last `n_max` are forgotten.
    pub(super) fn push(&mut self, token: u32, n_max: usize) {
        while self.latest.len() >= n_max.max(1) {
            let Some(oldest) = self.latest.pop_front() else { break };
            if let Some(count) = self.counts.get_mut(&oldest).filter(|count| **count > 1) {
                *count -= 1;
            } else {
                self.counts.remove(&oldest);
            }
        }
        self.latest.push_back(token);
        *self.counts.entry(token).or_default() += 1;
    }
}

/// Adds the biases, and takes away what a bias of minus infinity forbids, unless nothing were left.
pub(super) fn add_biases(candidates: &mut Vec<Candidate>, settings: &SamplingSettings) {
    let bias = |candidate: &Candidate| settings.logit_bias.get(&candidate.token).copied();
    if settings.logit_bias.is_empty() {
        return;
    }
    if candidates.iter().any(|candidate| bias(candidate) != Some(f32::NEG_INFINITY)) {
        candidates.retain(|candidate| bias(candidate) != Some(f32::NEG_INFINITY));
    }
    for candidate in candidates.iter_mut() {
        candidate.logit += bias(candidate).filter(|bias| bias.is_finite()).unwrap_or_default();
    }
}

/// Makes recent tokens less likely: `logit / repeat` where positive, else `logit * repeat` (Keskar et al. 2019, CTRL); less `presence`, and
/// less `frequency` for each time that they came (OpenAI's API reference).
pub(super) fn penalise(candidates: &mut [Candidate], recent: &Recent, settings: &SamplingSettings) {
    let &SamplingSettings { repeat_penalty, presence_penalty, frequency_penalty, .. } = settings;
    if recent.counts.is_empty() {
        return;
    }
    for candidate in candidates.iter_mut() {
        let Some(&count) = recent.counts.get(&candidate.token) else { continue };
        let logit = candidate.logit;
        let repeated = if logit > 0.0 { logit / repeat_penalty } else { logit * repeat_penalty };
        candidate.logit = repeated - presence_penalty - frequency_penalty * count as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(logits: &[f32]) -> Vec<Candidate> {
        logits.iter().zip(0..).map(|(&logit, token)| Candidate { token, logit }).collect()
    }

    fn logits(candidates: &[Candidate]) -> Vec<f32> {
        candidates.iter().map(|candidate| candidate.logit).collect()
    }

    #[test]
    fn penalties_are_those_of_the_latest_tokens() {
        let mut recent = Recent::default();
        [0, 1, 1, 2, 1].into_iter().for_each(|token| recent.push(token, 4));
        let settings = SamplingSettings { presence_penalty: 0.5, frequency_penalty: 0.25, ..SamplingSettings::default() };
        let mut penalised = candidates(&[4.0, 4.0, 4.0, 4.0]);
        penalise(&mut penalised, &recent, &settings);
        assert_eq!(logits(&penalised), [4.0, 2.75, 3.25, 4.0], "the first is forgotten");
        let both = SamplingSettings { repeat_penalty: 2.0, ..settings };
        let mut penalised = candidates(&[4.0, -4.0, 4.0, 4.0]);
        penalise(&mut penalised, &recent, &both);
        assert_eq!(logits(&penalised), [4.0, -9.25, 1.25, 4.0]);
    }

    #[test]
    fn biases_add_and_forbid() {
        let of = |biases: &[(u32, f32)]| SamplingSettings { logit_bias: biases.iter().copied().collect(), ..SamplingSettings::default() };
        let mut biased = candidates(&[1.0, 2.0, 3.0]);
        add_biases(&mut biased, &of(&[(0, 10.0), (2, f32::NEG_INFINITY), (9, 1.0)]));
        assert_eq!(biased, [Candidate { token: 0, logit: 11.0 }, Candidate { token: 1, logit: 2.0 }]);
        let mut only = candidates(&[1.0]);
        add_biases(&mut only, &of(&[(0, f32::NEG_INFINITY)]));
        assert_eq!(logits(&only), [1.0], "something is left");
    }
}
