//! What a generation cost, as the line that ends a run.

use serde::Serialize;

use crate::device::Origin;
use crate::engine::{MemoryUse, Prepared};
use crate::plan::Load;
use crate::stream::TraceSummary;
use crate::units::{Bytes, BytesPerSec, TokensPerSec, three_digits};

/// Counts and times of one answer.
#[derive(Debug, Clone, Serialize)]
pub struct Statistics {
    /// Prompt tokens that were computed (those in the cache were not).
    pub n_prompt: usize,
    /// Seconds for them.
    pub prompt_secs: f64,
    /// Tokens generated.
    pub n_generated: usize,
    /// Of them, those that took a forward of their own.
    pub n_decoded: usize,
    /// Seconds for them.
    pub decode_secs: f64,
    /// Seconds from the prompt to the first token.
    pub first_token_secs: f64,
    /// What moved and computed during the prompt.
    pub prompt: TraceSummary,
    /// What moved and computed in all.
    pub all: TraceSummary,
    /// What the plan promised for such an answer.
    pub predicted: Predicted,
    /// Peak bytes per device beside the budgets; in JSON it stands beside the statistics.
    #[serde(skip)]
    pub memory: Vec<MemoryUse>,
}

/// Rates that were predicted before the run.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Predicted {
    /// Prompt tokens per second.
    pub prompt_rate: f64,
    /// Generated tokens per second.
    pub decode_rate: f64,
    /// Whether the rates behind them were measured.
    pub rates: Origin,
}

impl Predicted {
    /// What `prepared` promises for a prompt and an answer of these lengths that begin at position `n_before`.
    pub fn of(prepared: &Prepared, n_before: usize, n_prompt: usize, n_generated: usize) -> Predicted {
        let n_tokens = n_prompt.clamp(1, prepared.plan.forward.n_tokens);
        let prefill = prepared.predict(Load { position: n_before + n_prompt / 2, ..Load::prefill(n_tokens) });
        let decode = prepared.predict(Load::decode(n_before + n_prompt + n_generated / 2));
        Predicted { prompt_rate: prefill.tokens_per_sec(), decode_rate: decode.tokens_per_sec(), rates: decode.rates }
    }
}

impl Statistics {
    /// Prompt tokens per second.
    pub fn prompt_rate(&self) -> f64 {
        rate(self.n_prompt, self.prompt_secs)
    }

    /// Generated tokens per second.
    pub fn decode_rate(&self) -> f64 {
        rate(self.n_decoded, self.decode_secs)
    }

    /// One line; its beginning is llama-cli's, which scripts read.
    pub fn line(&self, seed: u64) -> String {
        let mut line = format!(
            "[ Prompt: {} | Generation: {} | TTFT {:.2} s",
            TokensPerSec(self.prompt_rate()),
            TokensPerSec(self.decode_rate()),
            self.first_token_secs
        );
        let decode = |all: Bytes, prompt: Bytes| Bytes(all.saturating_sub(prompt).0 / self.n_decoded.max(1) as u64);
        let uploaded = decode(self.all.uploaded, self.prompt.uploaded);
        if uploaded > Bytes::ZERO && self.n_decoded > 0 {
            let secs = self.all.upload_secs - self.prompt.upload_secs;
            let moved = BytesPerSec::from_transfer(Bytes(uploaded.0 * self.n_decoded as u64), secs);
            line.push_str(&format!(" | streamed {uploaded}/token at {moved}"));
        }
        let fetched = decode(self.all.fetched, self.prompt.fetched);
        if fetched > Bytes::ZERO && self.n_decoded > 0 {
            line.push_str(&format!(" | from disk {fetched}/token"));
        }
        if self.all.uploaded + self.all.fetched > Bytes::ZERO {
            line.push_str(&format!(" | {:.0} % overlapped", self.all.overlapped * 100.0));
        }
        line.push_str(&format!(" | seed {seed} ]"));
        line
    }

    /// Predicted rates beside the measured ones.
    pub fn prediction_line(&self) -> String {
        let Predicted { prompt_rate, decode_rate, rates } = self.predicted;
        let beside = |predicted: f64, measured: f64| match measured > 0.0 {
            true => {
                let error = (measured / predicted - 1.0) * 100.0;
                format!("{} predicted, {} measured ({error:+.0} %)", TokensPerSec(predicted), three_digits(measured))
            }
            false => format!("{} predicted", TokensPerSec(predicted)),
        };
        let prompt = beside(prompt_rate, self.prompt_rate());
        format!("  prompt {prompt} · generation {} · rates {rates}\n", beside(decode_rate, self.decode_rate()))
    }

    /// One line per device: peak against budget.
    pub fn memory_lines(&self) -> String {
        let line = |memory: &MemoryUse| {
            let budget = memory.budget.map_or_else(|| "no budget".to_owned(), |budget| format!("budget {budget}"));
            format!("  {:<6} peak {:>10}, {budget}\n", memory.device.to_string(), memory.peak.to_string())
        };
        self.memory.iter().map(line).collect()
    }
}

fn rate(n_tokens: usize, secs: f64) -> f64 {
    if secs > 0.0 { n_tokens as f64 / secs } else { 0.0 }
}
