//! What a generation cost, as the line that ends a run.

use serde::Serialize;

use crate::device::Origin;
use crate::engine::{Engine, MemoryUse, Observed, Prepared};
use crate::plan::Totals;
use crate::session::DraftStatistics;
use crate::stream::{ExpertStatistics, TraceSummary};
use crate::units::{Bytes, BytesPerSec, TokensPerSec, three_digits};

/// From this share of a run on, the time that other programs took is printed.
const LEAST_WAITED: f64 = 0.05;

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
    /// What expert caches were asked for while tokens were generated.
    pub experts: ExpertStatistics,
    /// The same of each layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub experts_of_layers: Vec<LayerExperts>,
    /// What drafts brought, where there were to be any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drafts: Option<Drafts>,
    /// What the plan predicted for such an answer.
    pub predicted: Predicted,
    /// What other programs took of it; absent where the system does not report it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disturbance: Option<Disturbance>,
    /// Peak bytes per device beside the budgets; in JSON it stands beside the statistics.
    #[serde(skip)]
    pub memory: Vec<MemoryUse>,
}

/// What the expert cache was asked for by one layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerExperts {
    /// The name of its unit.
    layer: String,
    #[serde(flatten)]
    experts: ExpertStatistics,
}

impl LayerExperts {
    /// Of each layer of `engine`, until now.
    pub fn of(engine: &Engine) -> Vec<LayerExperts> {
        let of_layers = engine.expert_statistics_of_layers().into_iter();
        of_layers.map(|(layer, experts)| LayerExperts { layer: layer.to_owned(), experts }).collect()
    }

    /// Of all these layers together.
    pub fn sum(of_layers: &[LayerExperts]) -> ExpertStatistics {
        of_layers.iter().map(|of_layer| of_layer.experts).sum()
    }

    /// Of each layer of `engine`, since it had `before`, and of all of them.
    pub fn since(engine: &Engine, before: &[LayerExperts]) -> (Vec<LayerExperts>, ExpertStatistics) {
        let mut of_layers = LayerExperts::of(engine);
        for LayerExperts { layer, experts } in &mut of_layers {
            if let Some(before) = before.iter().find(|before| before.layer == *layer) {
                *experts = experts.since(&before.experts);
            }
        }
        let sum = LayerExperts::sum(&of_layers);
        (of_layers, sum)
    }
}

/// What drafts brought to an answer.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Drafts {
    /// Tokens that were drafted.
    pub drafted: usize,
    /// Of them, those that came.
    pub accepted: usize,
    /// Forwards after the prompt's.
    pub forwards: usize,
    /// Tokens that came of one of these, on average.
    pub tokens_per_forward: f64,
}

/// Rates that were predicted before the run, for a machine that does nothing else.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Predicted {
    /// Prompt tokens per second.
    pub prompt_rate: f64,
    /// Generated tokens per second.
    pub decode_rate: f64,
    /// Whether the rates behind them were measured.
    pub rates: Origin,
}

/// The part of a run that other programs took.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Disturbance {
    /// The share of its time in which it waited for a core during the prompt, 0 to 1.
    pub prompt_waited: f64,
    /// And while tokens were generated.
    pub decode_waited: f64,
    /// Prompt tokens per second without that.
    pub prompt_rate: f64,
    /// Generated tokens per second without that.
    pub decode_rate: f64,
}

impl Predicted {
    /// The rates that `prepared` predicts for the forwards of a prompt and of an answer.
    pub fn of(prepared: &Prepared, [prompt, answer]: &[(&Observed, Totals); 2]) -> Predicted {
        let rate_of = |(observed, totals): &(&Observed, Totals)| rate(observed.forwards.n_tokens(), totals.secs);
        let forecast = &prepared.forecast.decode;
        let decode_rate = if answer.0.forwards.n_tokens() > 0 { rate_of(answer) } else { forecast.tokens_per_sec() };
        Predicted { prompt_rate: rate_of(prompt), decode_rate, rates: forecast.rates }
    }
}

impl Disturbance {
    /// Of a run with these forwards, each beside its prediction; `None` where the system does not report it.
    pub fn of([prompt, answer]: &[(&Observed, Totals); 2]) -> Option<Disturbance> {
        let (prompt_waited, decode_waited) = (prompt.0.waited?, answer.0.waited?);
        let rate_of = |(observed, totals): &(&Observed, Totals), waited| {
            rate(observed.forwards.n_tokens(), totals.undisturbed(observed.secs, waited))
        };
        let (prompt_rate, decode_rate) = (rate_of(prompt, prompt_waited), rate_of(answer, decode_waited));
        Some(Disturbance { prompt_waited, decode_waited, prompt_rate, decode_rate })
    }
}

impl Drafts {
    /// Of an answer that took forwards for `n_decoded` of its tokens.
    pub fn of(statistics: &DraftStatistics, n_decoded: usize) -> Drafts {
        let forwards = statistics.n_forwards();
        let tokens_per_forward = n_decoded as f64 / forwards.max(1) as f64;
        Drafts { drafted: statistics.n_drafted, accepted: statistics.n_accepted, forwards, tokens_per_forward }
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
        let mut line = format!("[ Prompt: {}", TokensPerSec(self.prompt_rate()));
        // The prompt's own forward gives the first token.
        if self.n_decoded > 0 {
            line.push_str(&format!(" | Generation: {}", TokensPerSec(self.decode_rate())));
        }
        line.push_str(&format!(" | TTFT {:.2} s", self.first_token_secs));
        let decode = |all: Bytes, prompt: Bytes| Bytes(all.saturating_sub(prompt).0 / self.n_decoded.max(1) as u64);
        let uploaded = decode(self.all.uploaded, self.prompt.uploaded);
        if uploaded > Bytes::ZERO && self.n_decoded > 0 {
            let secs = self.all.upload_secs - self.prompt.upload_secs;
            let moved = BytesPerSec::from_transfer(Bytes(uploaded.0 * self.n_decoded as u64), secs);
            line.push_str(&format!(" | streamed {uploaded}/token at {moved}"));
        }
        if let Some(Drafts { drafted, accepted, tokens_per_forward, .. }) = self.drafts.filter(|drafts| drafts.forwards > 0) {
            line.push_str(&format!(" | {tokens_per_forward:.2} tokens/forward, {accepted} of {drafted} drafted accepted"));
        }
        if let Some(hit_rate) = self.experts.hit_rate() {
            line.push_str(&format!(" | {:.0} % of experts found", hit_rate * 100.0));
            if let Some(share) = self.experts.host_share() {
                line.push_str(&format!(", {:.0} % computed by the CPU", share * 100.0));
            }
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
        let line = format!("  prompt {prompt} · generation {} · rates {rates}\n", beside(decode_rate, self.decode_rate()));
        line + &self.disturbance_line()
    }

    /// Predictions are for a machine that does nothing else: the share of time that other programs took is printed where it is large.
    fn disturbance_line(&self) -> String {
        let Some(disturbance) = self.disturbance else { return String::new() };
        let Disturbance { prompt_waited, decode_waited, prompt_rate, decode_rate } = disturbance;
        let without = |what: &str, waited: f64, undisturbed: f64, predicted: f64| {
            let error = (undisturbed / predicted - 1.0) * 100.0;
            let text = format!("{:.0} % of {what}, without them {} ({error:+.0} %)", waited * 100.0, TokensPerSec(undisturbed));
            (waited >= LEAST_WAITED && undisturbed > 0.0).then_some(text)
        };
        let parts = [
            without("the prompt", prompt_waited, prompt_rate, self.predicted.prompt_rate),
            without("generation", decode_waited, decode_rate, self.predicted.decode_rate),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { String::new() } else { format!("  other programs had the cores for {}\n", parts.join(" · ")) }
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
