//! Generation with drafts, beside the same number of tokens without them. What is drafted depends on the text: it is what the model finds
//! likeliest after the tokens of the test, which are no text of anybody's.

use std::time::Instant;

use super::{Test, some_tokens};
use crate::engine::Engine;
use crate::error::Result;
use crate::session::{DraftSource, DraftStatistics, GenerateOptions, Speculation};
use crate::stream::LogitsRequest;
use crate::text::{Sampler, SamplingSettings};

/// What was measured.
pub(super) struct Measured {
    pub(super) source: DraftSource,
    /// Tokens that were computed in each repetition.
    pub(super) n_tokens: usize,
    /// Seconds of each repetition.
    pub(super) secs: Vec<f64>,
    /// What drafts brought to the last one.
    pub(super) statistics: DraftStatistics,
}

/// Measures `n_runs` greedy answers to the prompt of `test`, after one that warms up.
pub(super) fn measure(engine: &mut Engine, test: Test, n_runs: u32, speculation: Speculation) -> Result<Measured> {
    // An answer comes after something.
    let [before, given] = [test.n_depth, test.n_prompt.max(1)].map(|n_tokens| some_tokens(engine, n_tokens));
    let prompt = [before.as_slice(), &given].concat();
    let mut measured = Measured { source: speculation.source, n_tokens: 0, secs: Vec::new(), statistics: DraftStatistics::default() };
    for run in 0..=n_runs {
        let mut session = engine.session();
        if !before.is_empty() {
            pollster::block_on(session.append(&before, LogitsRequest::TopK(1)))?;
        }
        // The last token that is generated is not computed.
        let max_tokens = (test.n_tokens() as usize + 1).saturating_sub(given.len());
        let options = GenerateOptions { max_tokens: Some(max_tokens), ignore_eos: true, speculation, ..GenerateOptions::default() };
        let begin = Instant::now();
        let sampler = Sampler::new(SamplingSettings::greedy(), 0);
        let mut generation = pollster::block_on(session.generate(&prompt, sampler, options))?;
        let mut n_generated = 0;
        while pollster::block_on(generation.next())?.is_some() {
            n_generated += 1;
        }
        if run > 0 {
            measured.secs.push(begin.elapsed().as_secs_f64());
        }
        measured.statistics = generation.drafts();
        measured.n_tokens = (given.len() + n_generated).saturating_sub(1);
    }
    Ok(measured)
}
