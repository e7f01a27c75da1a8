//! Counters, in the text format of Prometheus: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::iter::Sum;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::StatusCode;

use super::answer::Usage;
use crate::session::DraftStatistics;
use crate::stream::ExpertStatistics;
use crate::units::Bytes;

/// What was counted since the start.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    responses: [AtomicU64; 3],
    n_computed: AtomicU64,
    n_cached: AtomicU64,
    n_generated: AtomicU64,
    n_answered: AtomicU64,
    n_abandoned: AtomicU64,
    n_forwards: AtomicU64,
    n_accepted: AtomicU64,
    n_rejected: AtomicU64,
}

/// What is so now, of a model or of several.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    /// Sequences that answer.
    pub(super) n_leased: usize,
    /// Requests that wait for one.
    pub(super) n_waiting: usize,
    /// Sequences whose answers are paused.
    pub(super) n_paused: usize,
    /// Answers that were paused since the start.
    pub(super) n_preemptions: u64,
    /// Tokens in the KV caches of all sequences.
    pub(super) n_cached: usize,
    /// Bytes of the blocks that these are in.
    pub(super) cached: Bytes,
    /// Bytes that the caches have.
    pub(super) cache_size: Bytes,
    /// Bytes of conversations that left them.
    pub(super) histories: Bytes,
    /// What expert caches were asked for.
    pub(super) experts: ExpertStatistics,
}

impl Sum for Gauges {
    fn sum<I: Iterator<Item = Gauges>>(all: I) -> Gauges {
        all.fold(Gauges::default(), |sum, one| Gauges {
            n_leased: sum.n_leased + one.n_leased,
            n_waiting: sum.n_waiting + one.n_waiting,
            n_paused: sum.n_paused + one.n_paused,
            n_preemptions: sum.n_preemptions + one.n_preemptions,
            n_cached: sum.n_cached + one.n_cached,
            cached: sum.cached + one.cached,
            cache_size: sum.cache_size + one.cache_size,
            histories: sum.histories + one.histories,
            experts: [sum.experts, one.experts].into_iter().sum(),
        })
    }
}

/// Labels of [`Metrics::responses`].
const CLASSES: [&str; 3] = ["ok", "refused", "failed"];

impl Metrics {
    pub(super) fn count_response(&self, status: StatusCode) {
        let class = match status.as_u16() {
            ..400 => 0,
            400..500 => 1,
            _ => 2,
        };
        self.responses[class].fetch_add(1, Ordering::Relaxed);
    }

    /// An answer ended, by itself or because nobody waited for it any more.
    pub(super) fn count_answer(&self, usage: &Usage, is_whole: bool) {
        let add = |counter: &AtomicU64, n: usize| counter.fetch_add(n as u64, Ordering::Relaxed);
        // Before the first token nobody knows what was computed of the prompt.
        if usage.n_generated > 0 {
            add(&self.n_computed, usage.n_prompt - usage.n_cached);
            add(&self.n_cached, usage.n_cached);
        }
        add(&self.n_generated, usage.n_generated);
        add(if is_whole { &self.n_answered } else { &self.n_abandoned }, 1);
    }

    /// What an answer's forwards and drafts were, whole or not.
    pub(super) fn count_drafts(&self, drafts: &DraftStatistics) {
        let add = |counter: &AtomicU64, n: usize| counter.fetch_add(n as u64, Ordering::Relaxed);
        add(&self.n_forwards, drafts.n_forwards());
        add(&self.n_accepted, drafts.n_accepted);
        add(&self.n_rejected, drafts.n_drafted.saturating_sub(drafts.n_accepted));
    }

    /// All of them as text, with what is so now.
    pub(super) fn text(&self, now: &Gauges) -> String {
        let Gauges { n_leased, n_waiting, n_paused, n_preemptions, n_cached, cached, cache_size, histories, experts } = now;
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, values: &[(&str, u64)]| {
            text.push_str(&format!("# HELP tierflow_{name} {help}\n# TYPE tierflow_{name} {kind}\n"));
            values.iter().for_each(|(labels, value)| text.push_str(&format!("tierflow_{name}{labels} {value}\n")));
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let labels = CLASSES.map(|class| format!("{{outcome=\"{class}\"}}"));
        let responses: Vec<(&str, u64)> = labels.iter().map(String::as_str).zip(self.responses.iter().map(read)).collect();
        family("responses_total", "counter", "Responses by outcome.", &responses);
        let prompt = [("{source=\"computed\"}", read(&self.n_computed)), ("{source=\"cache\"}", read(&self.n_cached))];
        family("prompt_tokens_total", "counter", "Tokens of prompts, computed or found in the cache.", &prompt);
        family("generated_tokens_total", "counter", "Tokens generated.", &[("", read(&self.n_generated))]);
        let forwards = [("", read(&self.n_forwards))];
        family(
            "answer_forwards_total",
            "counter",
            "Forwards after those of prompts, counted for each answer that they brought on.",
            &forwards,
        );
        let drafted = [("{outcome=\"accepted\"}", read(&self.n_accepted)), ("{outcome=\"rejected\"}", read(&self.n_rejected))];
        family("draft_tokens_total", "counter", "Tokens that were drafted, by whether they came.", &drafted);
        let answers = [("{end=\"whole\"}", read(&self.n_answered)), ("{end=\"abandoned\"}", read(&self.n_abandoned))];
        family("answers_total", "counter", "Answers that ended, by themselves or since the client left.", &answers);
        family(
            "preemptions_total",
            "counter",
            "Answers that were paused so that others have room in the KV cache.",
            &[("", *n_preemptions)],
        );
        if experts.hit_rate().is_some() {
            let found = [
                ("{outcome=\"hit\"}", experts.n_hits),
                ("{outcome=\"host\"}", experts.n_on_host),
                ("{outcome=\"uploaded\"}", experts.n_misses.saturating_sub(experts.n_on_host)),
            ];
            family("experts_total", "counter", "Experts that tokens took: in the cache, computed by the host, or brought.", &found);
            family("expert_bytes_total", "counter", "Bytes of experts that were brought.", &[("", experts.uploaded.0)]);
        }
        family("sequences_in_use", "gauge", "Sequences that answer.", &[("", *n_leased as u64)]);
        family("requests_waiting", "gauge", "Requests that wait for a sequence.", &[("", *n_waiting as u64)]);
        family(
            "sequences_paused",
            "gauge",
            "Sequences whose answers wait to have their room in the KV cache again.",
            &[("", *n_paused as u64)],
        );
        family("kv_cache_tokens", "gauge", "Tokens in the KV cache, of each sequence by itself.", &[("", *n_cached as u64)]);
        family("kv_cache_used_bytes", "gauge", "Bytes of the blocks of the KV cache that these tokens are in.", &[("", cached.0)]);
        family("kv_cache_size_bytes", "gauge", "Bytes of the KV cache, as planned.", &[("", cache_size.0)]);
        family("kept_histories_bytes", "gauge", "Bytes of conversations that left the KV cache, in host memory.", &[("", histories.0)]);
        text
    }
}
