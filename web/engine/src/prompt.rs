//! A prompt on its way into the cache, a part at a time, so that the worker can receive messages and report progress between two parts.

use js_sys::Function;
use tierflow::plan::Forecast;
use tierflow::session::Session;
use tierflow::stream::{LogitsRequest, Trace};
use tierflow::{Error, Result};

use crate::answer_of;

/// Nobody waits longer than this for a part to end, unless a single token takes half as long.
const PART_SECS: f64 = 1.0;
/// A part has at least so many tokens: fewer would cost each almost as much as a token that is generated.
const PART_MIN: usize = 8;

/// What [`read`] has come to.
pub struct Read {
    /// Tokens that the cache already held.
    pub n_known: usize,
    /// Whether only the last part is left; it was ended before otherwise.
    pub is_whole: bool,
    /// The part with the most tokens of those that were read; nothing where there was none.
    pub largest: Part,
}

/// A part of a prompt that was read by one forward.
#[derive(Debug, Clone, Copy, Default)]
pub struct Part {
    /// Tokens before it.
    pub n_before: usize,
    pub n_tokens: usize,
    pub secs: f64,
}

impl Part {
    /// The one of both with more tokens.
    pub fn larger(self, other: Part) -> Part {
        if other.n_tokens > self.n_tokens { other } else { self }
    }
}

/// How a forward's time grows with its tokens: predicted, and corrected by what was seen.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    one_secs: f64,
    next_secs: f64,
    /// Seconds measured for each that was predicted.
    slowdown: f64,
}

impl Pace {
    /// From the plan's own predictions, which may rest on what such machines usually do.
    pub fn new(forecast: &Forecast) -> Pace {
        let (one, many) = (&forecast.decode, &forecast.prefill);
        let n_more = many.workload.n_tokens.saturating_sub(one.workload.n_tokens).max(1) as f64;
        Pace { one_secs: one.secs.max(1e-6), next_secs: ((many.secs - one.secs) / n_more).max(1e-9), slowdown: 1.0 }
    }

    /// Tokens of the next part, `most` at most.
    fn n_tokens(&self, most: usize) -> usize {
        let one_secs = self.one_secs * self.slowdown;
        let more = (PART_SECS.max(2.0 * one_secs) - one_secs) / (self.next_secs * self.slowdown);
        // Where rates say that a token more costs nothing, as many as there is room for.
        let more = more.min(most as f64) as usize;
        // Adapters make their dispatches anew for another number of tokens.
        let n_tokens = 1usize << (more + 1).ilog2();
        n_tokens.clamp(PART_MIN, most.max(PART_MIN)).min(most)
    }

    /// Learns that a part of `n_tokens` took so long: from a slow one at once, from a fast one half way.
    fn observe(&mut self, n_tokens: usize, secs: f64) {
        let predicted = self.one_secs + self.next_secs * (n_tokens.max(1) - 1) as f64;
        let now = secs / predicted;
        self.slowdown = now.max((self.slowdown + now) / 2.0).clamp(1e-3, 1e6);
    }
}

/// Reads `prompt` into the cache up to its last part, which is left to [`Session::generate`]; what the cache already holds of it
/// is kept. `on_part` is called with how many tokens are read and how many there are, and ends the reading by returning false.
///
/// # Errors
/// [`Error::ContextFull`] before anything is computed; those of [`Session::append`].
pub async fn read(session: &mut Session<'_>, prompt: &[u32], pace: &mut Pace, trace: &Trace, on_part: &Function) -> Result<Read> {
    let (needed, available) = (prompt.len(), session.engine().plan().ctx_size);
    if needed > available {
        return Err(Error::ContextFull { needed, available });
    }
    let most = session.engine().plan().forward.n_tokens;
    // The last token is always computed: its logits are what is asked for.
    let n_known = session.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len().saturating_sub(1));
    session.truncate(n_known);
    let mut largest = Part::default();
    loop {
        let n_read = session.tokens().len();
        let returned = on_part.call2(&wasm_bindgen::JsValue::NULL, &(n_read as f64).into(), &(prompt.len() as f64).into());
        if !answer_of(returned).await {
            return Ok(Read { n_known, is_whole: false, largest });
        }
        let (n_part, rest) = (pace.n_tokens(most), &prompt[n_read..]);
        if rest.len() <= n_part {
            return Ok(Read { n_known, is_whole: true, largest });
        }
        let begin_secs = trace.now();
        match session.append(&rest[..n_part], LogitsRequest::TopK(1)).await {
            Ok(_) => {
                let secs = trace.now() - begin_secs;
                pace.observe(n_part, secs);
                largest = largest.larger(Part { n_before: n_read, n_tokens: n_part, secs });
            }
            Err(Error::Interrupted) => return Ok(Read { n_known, is_whole: false, largest }),
            Err(error) => return Err(error),
        }
    }
}
