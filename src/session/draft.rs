//! Speculative decoding: tokens that may come next are drafted and go into one forward with the token that is due, so that weights that
//! stream are read once for all of them. No text depends on it: each token is drawn by the sequence's own sampler from the logits that
//! plain decoding has there, bit for bit, since so few tokens go through the kernels of a single one ([`MAX_TOKENS_TOGETHER`]). A token
//! that was drafted and is then drawn has saved its forward; the first that differs ends the draft, and what was computed behind it does
//! not count as cached.
//!
//! Drafts come from the context itself (prompt lookup): where its last tokens stand further ahead too, what followed them there is tried.
//! How many tokens are tried depends on how often drafts were right lately, and on what the plan predicts of a forward with one more.

use std::collections::VecDeque;

use crate::engine::LoadedModel;
use crate::stream::MAX_TOKENS_TOGETHER;

/// How many of the last tokens are looked for in the context, the most first.
const NGRAM_LENGTHS: [usize; 3] = [4, 3, 2];
/// What is assumed of drafts before any was tried: so many tokens, half of them right.
const N_ASSUMED: f64 = 2.0;
/// The weight of a tried token after each further one.
const KEPT_BY_TRIED: f64 = 0.9;
/// The same after each forward without a draft: where drafts did not pay, they are tried again after a while.
const KEPT_BY_PLAIN: f64 = 0.95;

/// Where drafts come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DraftSource {
    /// Nothing is drafted.
    #[default]
    None,
    /// What followed the last tokens where they last stood in the context.
    NgramSimple,
}

/// Whether tokens are drafted. The plan must have room for their logits ([`PlanOptions::logit_rows`](crate::plan::PlanOptions::logit_rows)),
/// up to [`MAX_TOKENS_TOGETHER`] with the token that is due; drafts are no longer than that. Where the model has recurrent states, which
/// cannot go back, nothing is drafted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speculation {
    /// Where drafts come from.
    pub source: DraftSource,
    /// Most tokens of a draft.
    pub most: usize,
    /// Fewest tokens of a draft, which are tried whatever they cost; 0 leaves that to the predicted times. Shorter drafts are not tried.
    pub least: usize,
}

impl Default for Speculation {
    fn default() -> Speculation {
        Speculation { source: DraftSource::None, most: MAX_TOKENS_TOGETHER - 1, least: 0 }
    }
}

/// What drafts brought to a generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DraftStatistics {
    /// Tokens that were drafted and computed.
    pub n_drafted: usize,
    /// Of these, tokens that were then drawn.
    pub n_accepted: usize,
    /// Forwards after those of the prompt, by their number of tokens: those of one token first.
    pub forwards: [usize; MAX_TOKENS_TOGETHER],
}

impl DraftStatistics {
    /// Forwards after those of the prompt.
    pub fn n_forwards(&self) -> usize {
        self.forwards.iter().sum()
    }
}

/// The drafts of one generation.
#[derive(Debug)]
pub(super) struct Drafts {
    speculation: Speculation,
    /// Drafted tokens that were computed and are not reached yet.
    ahead: VecDeque<u32>,
    /// Tokens that were tried lately, and those of them that were right.
    tried: f64,
    right: f64,
    pub(super) statistics: DraftStatistics,
}

/// A draft that may go into a forward.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Offer {
    /// Its tokens.
    pub(crate) tokens: Vec<u32>,
    /// The share of tokens that are expected to be right, where those before them are.
    chance: f64,
    /// Tokens that are tried whatever they cost.
    least: usize,
}

impl Drafts {
    pub(super) fn new(speculation: Speculation) -> Drafts {
        Drafts { speculation, ahead: VecDeque::new(), tried: 0.0, right: 0.0, statistics: DraftStatistics::default() }
    }

    /// At most `most` tokens that may come after `cached` and `due`.
    pub(super) fn offer(&self, cached: &[u32], due: u32, most: usize) -> Offer {
        let Speculation { source, most: asked, least } = self.speculation;
        let most = most.min(asked);
        if source == DraftSource::None || most == 0 || most < least {
            return Offer::default();
        }
        let mut tokens = lookup(&[cached, &[due]].concat(), most);
        if tokens.len() < least {
            tokens.clear();
        }
        let chance = (self.right + N_ASSUMED / 2.0) / (self.tried + N_ASSUMED);
        Offer { tokens, chance, least }
    }

    /// A forward has computed `draft` behind the token that was due.
    pub(super) fn begin(&mut self, draft: Vec<u32>) {
        self.statistics.n_drafted += draft.len();
        if let Some(n_forwards) = self.statistics.forwards.get_mut(draft.len()) {
            *n_forwards += 1;
        }
        if draft.is_empty() {
            self.forget(KEPT_BY_PLAIN);
        }
        self.ahead = draft.into();
    }

    /// Whether `token`, which was drawn, is the next of the draft; the draft ends where it is not.
    pub(super) fn take(&mut self, token: u32) -> bool {
        let Some(drafted) = self.ahead.pop_front() else { return false };
        let is_right = drafted == token;
        self.forget(KEPT_BY_TRIED);
        self.tried += 1.0;
        if is_right {
            self.right += 1.0;
            self.statistics.n_accepted += 1;
        } else {
            self.ahead.clear();
        }
        is_right
    }

    /// What was computed ahead does not count any more.
    pub(super) fn drop_ahead(&mut self) {
        self.ahead.clear();
    }

    fn forget(&mut self, kept: f64) {
        self.tried *= kept;
        self.right *= kept;
    }
}

/// Up to `most` tokens that followed the last ones of `context` where these last stood before. Where the context ends first, the draft
/// goes on with itself, as a repetition does.
fn lookup(context: &[u32], most: usize) -> Vec<u32> {
    let before_last = &context[..context.len().saturating_sub(1)];
    let follows = NGRAM_LENGTHS.iter().find_map(|&length| {
        let ngram = &context[context.len().checked_sub(length)?..];
        Some(before_last.windows(length).rposition(|window| window == ngram)? + length)
    });
    let mut draft = Vec::new();
    if let Some(follows) = follows {
        for index in follows..follows + most {
            draft.extend(context.get(index).or_else(|| draft.get(index - context.len())).copied());
        }
    }
    draft
}

/// Cuts drafts that go into one forward, each behind a token that is due, to what is worth its time by the plan's predictions.
pub(crate) fn choose(offers: &mut [Offer], model: &LoadedModel) {
    if offers.iter().any(|offer| !offer.tokens.is_empty()) {
        share_out(offers, model.decode_secs());
    }
}

/// As [`choose`]; `secs` are those of forwards of 1, 2, … tokens, as many as there may be. A token is taken where it is expected to bring
/// more tokens per second than all before it do.
fn share_out(offers: &mut [Offer], secs: &[f64]) {
    let mut room = secs.len().saturating_sub(offers.len());
    let mut lengths = vec![0; offers.len()];
    for (length, offer) in lengths.iter_mut().zip(&*offers) {
        *length = if offer.least <= room { offer.least.min(offer.tokens.len()) } else { 0 };
        room -= *length;
    }
    let expected_of = |offer: &Offer, length: usize| (1..=length as i32).map(|n| offer.chance.powi(n)).sum::<f64>();
    let mut expected: f64 = offers.iter().zip(&lengths).map(|(offer, length)| 1.0 + expected_of(offer, *length)).sum();
    let mut n_tokens = offers.len() + lengths.iter().sum::<usize>();
    while let Some(&secs_with) = secs.get(n_tokens) {
        let may_grow = |(index, offer): &(usize, &Offer)| lengths[*index] < offer.tokens.len() && lengths[*index] >= offer.least;
        let gain_of = |(index, offer): (usize, &Offer)| (index, offer.chance.powi(lengths[index] as i32 + 1));
        let best = offers.iter().enumerate().filter(may_grow).map(gain_of).max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
        let (Some((index, gain)), Some(secs_without)) = (best, n_tokens.checked_sub(1).map(|before| secs[before])) else { break };
        if gain * secs_without <= expected * (secs_with - secs_without) {
            break;
        }
        lengths[index] += 1;
        expected += gain;
        n_tokens += 1;
    }
    offers.iter_mut().zip(lengths).for_each(|(offer, length)| offer.tokens.truncate(length));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_last_tokens_before_is_drafted() {
        // The latest place counts, and among places the longest agreement.
        assert_eq!(lookup(&[1, 2, 3, 9, 1, 2, 4, 8, 1, 2], 3), [4, 8, 1]);
        assert_eq!(lookup(&[7, 1, 2, 3, 9, 1, 2, 4, 8, 7, 1, 2], 2), [3, 9]);
        assert_eq!(lookup(&[1, 2, 3, 4, 5, 9, 1, 2, 3, 4], 1), [5]);
        // A repetition goes on, whatever its length.
        assert_eq!(lookup(&[5, 5, 5], 4), [5, 5, 5, 5]);
        assert_eq!(lookup(&[1, 2, 3, 1, 2, 3, 1, 2], 5), [3, 1, 2, 3, 1]);
        // One token that agrees is too little.
        for nothing in [&[][..], &[1], &[1, 1], &[1, 2], &[1, 2, 3], &[3, 1, 4, 1]] {
            assert_eq!(lookup(nothing, 4), [0; 0], "{nothing:?}");
        }
        assert_eq!(lookup(&[1, 2, 1, 2], 0), [0; 0]);
    }

    fn offer(n_tokens: u32, chance: f64, least: usize) -> Offer {
        Offer { tokens: (0..n_tokens).collect(), chance, least }
    }

    fn lengths(mut offers: Vec<Offer>, secs: &[f64]) -> Vec<usize> {
        share_out(&mut offers, secs);
        offers.iter().map(|offer| offer.tokens.len()).collect()
    }

    #[test]
    fn drafts_are_as_long_as_they_pay() {
        let streamed: Vec<f64> = (0..8).map(|n| 1.0 + 0.05 * f64::from(n)).collect();
        let computed: Vec<f64> = (1..=8).map(f64::from).collect();
        assert_eq!(lengths(vec![offer(7, 0.9, 0)], &streamed), [7]);
        assert_eq!(lengths(vec![offer(3, 0.9, 0)], &streamed), [3]);
        assert_eq!(lengths(vec![offer(7, 0.5, 0)], &streamed), [3], "(1 + ½ + ¼ + ⅛) / 1.15 is the most");
        assert_eq!(lengths(vec![offer(7, 0.02, 0)], &streamed), [0]);
        // Where each more token costs as much as the first, a draft brings nothing.
        assert_eq!(lengths(vec![offer(7, 0.99, 0)], &computed), [0]);
        assert_eq!(lengths(vec![offer(7, 0.9, 0)], &[0.0; 8]), [0], "nothing is predicted");
        // Unless so many are asked for.
        assert_eq!(lengths(vec![offer(7, 0.5, 2)], &computed), [2]);
        assert_eq!(lengths(vec![offer(7, 0.9, 2)], &streamed), [7]);
        assert_eq!(lengths(vec![offer(7, 0.9, 0)], &streamed[..4]), [3]);
        assert_eq!(lengths(vec![offer(7, 0.9, 4)], &streamed[..4]), [0], "the plan has no room for four");
    }

    #[test]
    fn sequences_share_the_room_of_a_forward() {
        let streamed: Vec<f64> = (0..8).map(|n| 1.0 + 0.01 * f64::from(n)).collect();
        assert_eq!(lengths(vec![offer(7, 0.9, 0), offer(7, 0.9, 0)], &streamed), [3, 3]);
        assert_eq!(lengths(vec![offer(7, 0.9, 0), offer(7, 0.3, 0), offer(0, 0.0, 0)], &streamed), [5, 0, 0]);
        let none: Vec<Offer> = (0..8).map(|_| offer(3, 0.9, 0)).collect();
        assert_eq!(lengths(none, &streamed), [0; 8]);
        assert_eq!(lengths(vec![offer(7, 0.9, 4), offer(7, 0.9, 4)], &streamed), [6, 0]);
        assert_eq!(lengths((0..9).map(|_| offer(3, 0.9, 1)).collect(), &streamed), [0; 9]);
    }

    #[test]
    fn drafts_that_were_wrong_are_expected_to_be_again_for_a_while() {
        let speculation = Speculation { source: DraftSource::NgramSimple, ..Speculation::default() };
        let mut drafts = Drafts::new(speculation);
        let chance = |drafts: &Drafts| drafts.offer(&[1, 2, 3, 1], 2, 7).chance;
        assert_eq!(chance(&drafts), 0.5);
        for _ in 0..20 {
            drafts.begin(vec![1, 2, 3]);
            assert!(!drafts.take(9) && !drafts.take(2), "a draft ends with its first wrong token");
        }
        let low = chance(&drafts);
        assert!(low < 0.12, "{low}");
        for _ in 0..60 {
            drafts.begin(Vec::new());
        }
        assert!(chance(&drafts) > 0.35);
        for _ in 0..20 {
            drafts.begin(vec![1]);
            assert!(drafts.take(1));
        }
        assert!(chance(&drafts) > 0.9);
        let DraftStatistics { n_drafted, n_accepted, forwards } = drafts.statistics;
        assert_eq!((n_drafted, n_accepted, drafts.statistics.n_forwards()), (80, 20, 100));
        assert_eq!(forwards, [60, 20, 0, 20, 0, 0, 0, 0]);
    }

    #[test]
    fn a_draft_is_offered_only_where_it_is_long_enough() {
        let some = |most, least| Drafts::new(Speculation { source: DraftSource::NgramSimple, most, least });
        let n_offered = |drafts: &Drafts, most| drafts.offer(&[1, 2, 3, 1], 2, most).tokens.len();
        assert_eq!([n_offered(&some(7, 0), 7), n_offered(&some(2, 0), 7), n_offered(&some(7, 0), 3)], [7, 2, 3]);
        assert_eq!([n_offered(&some(7, 4), 3), n_offered(&some(7, 3), 3), n_offered(&some(0, 0), 3)], [0, 3, 0]);
        assert_eq!(n_offered(&Drafts::new(Speculation::default()), 7), 0);
    }
}
