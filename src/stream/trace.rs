//! What happened when: spans on the lanes fetch, upload, compute and readback. Plain data, and its Chrome/Perfetto form.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::units::Bytes;

/// Where a span belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Disk to host.
    Fetch,
    /// Host to GPU.
    Upload,
    /// The executing device computes.
    Compute,
    /// GPU to host.
    Readback,
    /// The executing device waits for an upload.
    Stall,
}

/// Something that took time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Span {
    /// Where it belongs.
    pub lane: Lane,
    /// The piece of the plan it is about, if any.
    pub piece: Option<usize>,
    /// Which forward it serves, counted from 0.
    pub forward: usize,
    /// When it began, in seconds since the trace began.
    pub start_secs: f64,
    /// When it ended.
    pub end_secs: f64,
    /// Bytes moved.
    pub size_bytes: Bytes,
}

/// What happened when. Cheap to clone: all clones write into one record, from any thread.
#[derive(Debug, Clone)]
pub struct Trace {
    begin: Instant,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace { begin: Instant::now(), spans: Arc::default() }
    }
}

impl Trace {
    /// Seconds since the trace began.
    pub fn now(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// Adds a span.
    pub fn add(&self, span: Span) {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).push(span);
    }

    /// All spans so far, in the order of their ends.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets all spans; the clock goes on.
    pub fn clear(&self) {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What the spans add up to.
    pub fn summary(&self) -> TraceSummary {
        let spans = self.spans();
        let secs = |lane: Lane| -> f64 { spans.iter().filter(|span| span.lane == lane).map(|span| span.end_secs - span.start_secs).sum() };
        let bytes = |lane: Lane| -> Bytes { spans.iter().filter(|span| span.lane == lane).map(|span| span.size_bytes).sum() };
        let moves: Vec<(f64, f64)> = spans
            .iter()
            .filter(|span| matches!(span.lane, Lane::Fetch | Lane::Upload))
            .map(|span| (span.start_secs, span.end_secs))
            .collect();
        let computes: Vec<(f64, f64)> =
            spans.iter().filter(|span| span.lane == Lane::Compute).map(|span| (span.start_secs, span.end_secs)).collect();
        let (moves, computes) = (merged(moves), merged(computes));
        let moving_secs: f64 = moves.iter().map(|(start, end)| end - start).sum();
        TraceSummary {
            fetched: bytes(Lane::Fetch),
            fetch_secs: secs(Lane::Fetch),
            uploaded: bytes(Lane::Upload),
            upload_secs: secs(Lane::Upload),
            compute_secs: computes.iter().map(|(start, end)| end - start).sum(),
            stall_secs: secs(Lane::Stall),
            overlapped: if moving_secs > 0.0 { overlap(&moves, &computes) / moving_secs } else { 0.0 },
        }
    }

    /// The trace in the Chrome/Perfetto event format, one thread per lane. `name` labels a piece.
    pub fn to_chrome_json(&self, name: &dyn Fn(usize) -> String) -> serde_json::Value {
        const LANES: [(Lane, &str); 5] = [
            (Lane::Fetch, "fetch (disk → host)"),
            (Lane::Upload, "upload (host → GPU)"),
            (Lane::Compute, "compute"),
            (Lane::Stall, "stall"),
            (Lane::Readback, "readback (GPU → host)"),
        ];
        let thread = |lane: Lane| LANES.iter().position(|(candidate, _)| *candidate == lane).unwrap_or(0);
        let names = LANES
            .iter()
            .enumerate()
            .map(|(tid, (_, title))| serde_json::json!({"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": title}}));
        let events = self.spans().into_iter().map(|span| {
            serde_json::json!({
                "ph": "X",
                "pid": 1,
                "tid": thread(span.lane),
                "name": span.piece.map_or_else(|| format!("{:?}", span.lane).to_lowercase(), name),
                "ts": span.start_secs * 1e6,
                "dur": (span.end_secs - span.start_secs) * 1e6,
                "args": {"lane": span.lane, "piece": span.piece, "forward": span.forward, "bytes": span.size_bytes},
            })
        });
        serde_json::json!({"displayTimeUnit": "ms", "traceEvents": names.chain(events).collect::<Vec<_>>()})
    }
}

/// What a trace adds up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct TraceSummary {
    /// Bytes read from disk.
    pub fetched: Bytes,
    /// Thread-seconds spent reading.
    pub fetch_secs: f64,
    /// Bytes brought to the GPU.
    pub uploaded: Bytes,
    /// Thread-seconds spent copying.
    pub upload_secs: f64,
    /// Seconds in which the executing device computed.
    pub compute_secs: f64,
    /// Seconds in which it waited for an upload.
    pub stall_secs: f64,
    /// Share of the time in which weights moved that lay inside computation, 0 to 1.
    pub overlapped: f64,
}

/// Sorted, with overlapping spans joined.
fn merged(mut spans: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut joined: Vec<(f64, f64)> = Vec::with_capacity(spans.len());
    for (start, end) in spans {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// Seconds that lie in both of two merged lists.
fn overlap(a: &[(f64, f64)], b: &[(f64, f64)]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0.0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        shared += (x.1.min(y.1) - x.0.max(y.0)).max(0.0);
        if x.1 < y.1 { i += 1 } else { j += 1 }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(lane: Lane, start_secs: f64, end_secs: f64) -> Span {
        Span { lane, piece: Some(1), forward: 0, start_secs, end_secs, size_bytes: Bytes(10) }
    }

    #[test]
    fn overlap_counts_time_in_which_weights_move_and_the_device_computes() {
        let trace = Trace::default();
        trace.add(span(Lane::Upload, 0.0, 2.0));
        trace.add(span(Lane::Fetch, 1.0, 3.0));
        trace.add(span(Lane::Compute, 1.0, 1.5));
        trace.add(span(Lane::Compute, 2.5, 9.0));
        let summary = trace.summary();
        assert!((summary.overlapped - 1.0 / 3.0).abs() < 1e-12, "{summary:?}");
        assert_eq!(summary.uploaded, Bytes(10));
    }
}
