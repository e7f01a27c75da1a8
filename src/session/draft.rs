//! Speculative decoding: tokens that may come next are drafted and go into one forward with the token that is due, so that weights that
//! stream are read once for all of them. No text depends on it: each token is drawn by the sequence's own sampler from the logits that
//! plain decoding has there, bit for bit, since so few tokens go through the kernels of a single one ([`MAX_TOKENS_TOGETHER`]). A token
//! that was drafted and is then drawn has saved its forward; the first that differs ends the draft, and what was computed behind it does
//! not count as cached.
//!
//! Drafts come from the context itself (prompt lookup): where its last tokens stand further ahead too, what followed them there is tried.
//! Or a smaller model makes them ([`Engine::draft_with`]), whose time counts, too.
//! How many tokens are tried depends on how often drafts were right lately, and on what the plan predicts of a forward with one more.

use std::collections::VecDeque;

use crate::engine::{DraftWish, Engine};
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
    /// What a smaller model finds likeliest, where the engine has one ([`Engine::draft_with`]).
    Model,
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
    /// The token that it comes behind.
    due: u32,
    /// Its tokens, where they are known.
    tokens: Vec<u32>,
    /// Tokens that a draft model may be asked for.
    wanted: usize,
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
        let chance = (self.right + N_ASSUMED / 2.0) / (self.tried + N_ASSUMED);
        if source == DraftSource::Model {
            return Offer { due, tokens: Vec::new(), wanted: most, chance, least };
        }
        let mut tokens = lookup(&[cached, &[due]].concat(), most);
        if tokens.len() < least {
            tokens.clear();
        }
        Offer { due, tokens, wanted: 0, chance, least }
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

impl Offer {
    fn n_tokens(&self) -> usize {
        self.tokens.len().max(self.wanted)
    }

    /// Leaves at most `n_tokens`.
    pub(crate) fn truncate(&mut self, n_tokens: usize) {
        self.tokens.truncate(n_tokens);
        self.wanted = self.wanted.min(n_tokens);
    }
}

/// The drafts that go into one forward, each behind a token that is due: of what is offered for sequences with these tokens in their
/// caches, as much as is worth its time, by the plan's predictions and what was measured.
pub(crate) async fn drafted(mut offers: Vec<Offer>, places: &[(u32, &[u32])], engine: &mut Engine) -> Vec<Vec<u32>> {
    let drafting = engine.drafting_secs();
    if drafting.is_none() {
        offers.iter_mut().for_each(|offer| offer.wanted = 0);
    }
    if offers.iter().any(|offer| offer.n_tokens() > 0) {
        match drafting.filter(|_| offers.iter().any(|offer| offer.wanted > 0)) {
            Some((draft_secs, secs)) => share_out(&mut offers, &secs, draft_secs),
            None => share_out(&mut offers, engine.decode_secs(), 0.0),
        }
    }
    let wishes: Vec<DraftWish<'_>> = offers
        .iter()
        .zip(places)
        .filter(|(offer, _)| offer.wanted > 0)
        .map(|(offer, (sequence, cached))| DraftWish { sequence: *sequence, cached, due: offer.due, most: offer.wanted })
        .collect();
    let mut made = if wishes.is_empty() { Vec::new() } else { engine.draft(&wishes).await }.into_iter();
    offers.into_iter().map(|offer| if offer.wanted > 0 { made.next().unwrap_or_default() } else { offer.tokens }).collect()
}

/// Cuts offers; `secs` are those of forwards of 1, 2, … tokens, as many as there may be, and `draft_secs` those for each token that a draft
/// model is asked for. A token is taken where it is expected to bring more tokens per second than all before it do.
fn share_out(offers: &mut [Offer], secs: &[f64], draft_secs: f64) {
    let cost_of = |offer: &Offer| if offer.wanted > 0 { draft_secs } else { 0.0 };
    let mut room = secs.len().saturating_sub(offers.len());
    let mut lengths = vec![0; offers.len()];
    for (length, offer) in lengths.iter_mut().zip(&*offers) {
        *length = if offer.least <= room { offer.least.min(offer.n_tokens()) } else { 0 };
        room -= *length;
    }
    let expected_of = |offer: &Offer, length: usize| (1..=length as i32).map(|n| offer.chance.powi(n)).sum::<f64>();
    let mut expected: f64 = offers.iter().zip(&lengths).map(|(offer, length)| 1.0 + expected_of(offer, *length)).sum();
    let mut n_tokens = offers.len() + lengths.iter().sum::<usize>();
    let mut drafting: f64 = offers.iter().zip(&lengths).map(|(offer, length)| cost_of(offer) * *length as f64).sum();
    while let Some(&secs_with) = secs.get(n_tokens) {
        let may_grow = |(index, offer): &(usize, &Offer)| lengths[*index] < offer.n_tokens() && lengths[*index] >= offer.least;
        let gain_of = |(index, offer): (usize, &Offer)| (index, offer.chance.powi(lengths[index] as i32 + 1));
        let best = offers.iter().enumerate().filter(may_grow).map(gain_of).max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
        let (Some((index, gain)), Some(secs_before)) = (best, n_tokens.checked_sub(1).map(|before| secs[before])) else { break };
        let cost = cost_of(&offers[index]);
        if gain * (secs_before + drafting) <= expected * (secs_with - secs_before + cost) {
            break;
        }
        lengths[index] += 1;
        drafting += cost;
        expected += gain;
        n_tokens += 1;
    }
    offers.iter_mut().zip(lengths).for_each(|(offer, length)| offer.truncate(length));
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
        Offer { tokens: (0..n_tokens).collect(), chance, least, ..Offer::default() }
    }

    fn lengths(mut offers: Vec<Offer>, secs: &[f64]) -> Vec<usize> {
        share_out(&mut offers, secs, 0.0);
        offers.iter().map(Offer::n_tokens).collect()
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
    fn drafts_of_a_model_pay_for_its_time() {
        let streamed: Vec<f64> = (0..8).map(|n| 1.0 + 0.01 * f64::from(n)).collect();
        let length = |chance, draft_secs| {
            let mut offers = [Offer { wanted: 7, chance, ..Offer::default() }];
            share_out(&mut offers, &streamed, draft_secs);
            offers[0].wanted
        };
        assert_eq!([length(0.9, 0.0), length(0.9, 0.1), length(0.9, 0.5)], [7, 7, 3]);
        assert_eq!([length(0.5, 0.1), length(0.5, 0.6), length(0.9, 1.0), length(0.1, 0.1)], [2, 0, 0, 0]);
        let mut forced = [Offer { wanted: 7, chance: 0.1, least: 3, ..Offer::default() }];
        share_out(&mut forced, &streamed, 9.0);
        assert_eq!(forced[0].wanted, 3);
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
