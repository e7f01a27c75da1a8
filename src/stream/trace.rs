//! The trace: what happened when, as spans in each device's lanes. Plain data, exported for Chrome and Perfetto.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::device::Device;
use crate::platform::clock::Instant;
use crate::units::Bytes;

/// Where a span belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Disk to host.
    Fetch,
    /// Host to GPU.
    Upload,
    /// The device computes.
    Compute,
    /// The device waits for an upload.
    Stall,
    /// Experts of a layer that pass through a cache: from when it is known which ones tokens take until those are there. Its bytes are those
    /// that were brought; 0: all were found.
    Experts,
    /// The residual stream goes to the next device that computes.
    Transfer,
    /// GPU to host.
    Readback,
}

/// Something that took time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Span {
    /// Where it belongs.
    pub lane: Lane,
    /// The device: of a fetch or an upload the one that will compute with it, of a transfer the one that it comes from.
    pub device: Device,
    /// The chunk of the plan it is about, if any.
    pub chunk: Option<usize>,
    /// Which forward it serves, counted from 0.
    pub forward: usize,
    /// When it began, in seconds since the trace began.
    pub start_secs: f64,
    /// When it ended.
    pub end_secs: f64,
    /// Bytes moved.
    pub size_bytes: Bytes,
}

/// Spans that are kept by default: less than a MiB. Older ones are dropped, so that a long run does not fill the memory.
const N_SPANS_USUAL: usize = 1 << 13;
/// Spans that are kept for a trace that is exported: some ten MiB.
const N_SPANS_MAX: usize = 1 << 17;

/// What happened when. Cheap to clone: all clones write into one record, from any thread. The latest 8192 spans are
/// kept, after [`Trace::keep_many`] 131 072; the sums of [`Trace::summary`] go on counting all of them.
#[derive(Debug, Clone)]
pub struct Trace {
    begin: Instant,
    record: Arc<Mutex<Record>>,
}

#[derive(Debug)]
struct Record {
    spans: VecDeque<Span>,
    /// Most spans that are kept.
    n_spans_max: usize,
    /// Of the spans that were forgotten.
    forgotten: Sums,
}

/// What spans add up to, lane by lane; it can be added to.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    fetched: Bytes,
    fetch_secs: f64,
    uploaded: Bytes,
    upload_secs: f64,
    stall_secs: f64,
    compute_secs: f64,
    moving_secs: f64,
    overlapped_secs: f64,
}

impl Default for Trace {
    fn default() -> Trace {
        let record = Record { spans: VecDeque::new(), n_spans_max: N_SPANS_USUAL, forgotten: Sums::default() };
        Trace { begin: Instant::now(), record: Arc::new(Mutex::new(record)) }
    }
}

impl Trace {
    /// Seconds since the trace began.
    pub fn now(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// Keeps the latest 131 072 spans from now on, for a trace that is exported: some ten MiB, which no budget counts.
    pub fn keep_many(&self) {
        self.record().n_spans_max = N_SPANS_MAX;
    }

    /// Adds a span.
    pub fn add(&self, span: Span) {
        let mut record = self.record();
        if record.spans.len() >= record.n_spans_max {
            // Half of them at once, so that the cost is spread and overlap is lost only where the halves meet.
            let n_oldest = record.n_spans_max / 2;
            let oldest: Vec<Span> = record.spans.drain(..n_oldest).collect();
            record.forgotten = record.forgotten.plus(Sums::of(&oldest));
        }
        record.spans.push_back(span);
    }

    /// The latest spans, in the order of their ends.
    pub fn spans(&self) -> Vec<Span> {
        self.record().spans.iter().cloned().collect()
    }

    /// Drops all spans and sums; the clock goes on.
    pub fn clear(&self) {
        let mut record = self.record();
        (record.spans, record.forgotten) = (VecDeque::new(), Sums::default());
    }

    /// What all spans add up to.
    pub fn summary(&self) -> TraceSummary {
        // Copied first, so that threads that add spans do not wait for the sums.
        let (spans, forgotten) = {
            let record = self.record();
            (record.spans.iter().cloned().collect::<Vec<_>>(), record.forgotten)
        };
        let sums = forgotten.plus(Sums::of(&spans));
        TraceSummary {
            fetched: sums.fetched,
            fetch_secs: sums.fetch_secs,
            uploaded: sums.uploaded,
            upload_secs: sums.upload_secs,
            compute_secs: sums.compute_secs,
            stall_secs: sums.stall_secs,
            overlapped: if sums.moving_secs > 0.0 { sums.overlapped_secs / sums.moving_secs } else { 0.0 },
        }
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The trace in the Chrome/Perfetto event format: one process per device, one thread per lane. `name` labels a chunk.
    pub fn to_chrome_json(&self, name: &dyn Fn(usize) -> String) -> serde_json::Value {
        const LANES: [(Lane, &str); 7] = [
            (Lane::Fetch, "fetch (disk → host)"),
            (Lane::Upload, "upload (host → GPU)"),
            (Lane::Compute, "compute"),
            (Lane::Stall, "stall"),
            (Lane::Experts, "experts (brought to the cache)"),
            (Lane::Transfer, "transfer (to the next device)"),
            (Lane::Readback, "readback (GPU → host)"),
        ];
        let spans = self.spans();
        let devices: Vec<Device> = spans.iter().map(|span| span.device).collect::<BTreeSet<_>>().into_iter().collect();
        let process = |device: Device| 1 + devices.iter().position(|candidate| *candidate == device).unwrap_or(0);
        let thread = |lane: Lane| LANES.iter().position(|(candidate, _)| *candidate == lane).unwrap_or(0);
        let names = devices.iter().flat_map(|&device| {
            let pid = process(device);
            let lanes = LANES.iter().enumerate();
            let lanes = lanes.map(move |(tid, (_, title))| serde_json::json!({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": title}}));
            std::iter::once(serde_json::json!({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": device}})).chain(lanes)
        });
        let events = spans.iter().map(|span| {
            serde_json::json!({
                "ph": "X",
                "pid": process(span.device),
                "tid": thread(span.lane),
                "name": span.chunk.map_or_else(|| format!("{:?}", span.lane).to_lowercase(), name),
                "ts": span.start_secs * 1e6,
                "dur": (span.end_secs - span.start_secs) * 1e6,
                "args": {"lane": span.lane, "device": span.device, "chunk": span.chunk, "forward": span.forward, "bytes": span.size_bytes},
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
    /// Seconds in which at least one upload worker read.
    pub fetch_secs: f64,
    /// Bytes brought to the GPU.
    pub uploaded: Bytes,
    /// Seconds in which at least one upload worker copied.
    pub upload_secs: f64,
    /// Seconds in which at least one device computed.
    pub compute_secs: f64,
    /// Seconds in which at least one device waited for an upload.
    pub stall_secs: f64,
    /// The share of the time of fetches and uploads in which a device computed, 0 to 1.
    pub overlapped: f64,
}

impl Sums {
    fn of(spans: &[Span]) -> Sums {
        let of_lane = |lane: Lane| spans.iter().filter(move |span| span.lane == lane);
        let bytes = |lane: Lane| -> Bytes { of_lane(lane).map(|span| span.size_bytes).sum() };
        let ends = |span: &Span| (span.start_secs, span.end_secs);
        // Two workers that move at once take their time once: bytes over these seconds are the link's rate.
        let secs = |lane: Lane| length(&merged(of_lane(lane).map(ends).collect()));
        let moves = merged(of_lane(Lane::Fetch).chain(of_lane(Lane::Upload)).map(ends).collect());
        let computes = merged(of_lane(Lane::Compute).map(ends).collect());
        Sums {
            fetched: bytes(Lane::Fetch),
            fetch_secs: secs(Lane::Fetch),
            uploaded: bytes(Lane::Upload),
            upload_secs: secs(Lane::Upload),
            stall_secs: secs(Lane::Stall),
            compute_secs: length(&computes),
            moving_secs: length(&moves),
            overlapped_secs: overlap(&moves, &computes),
        }
    }

    fn plus(self, other: Sums) -> Sums {
        Sums {
            fetched: self.fetched + other.fetched,
            fetch_secs: self.fetch_secs + other.fetch_secs,
            uploaded: self.uploaded + other.uploaded,
            upload_secs: self.upload_secs + other.upload_secs,
            stall_secs: self.stall_secs + other.stall_secs,
            compute_secs: self.compute_secs + other.compute_secs,
            moving_secs: self.moving_secs + other.moving_secs,
            overlapped_secs: self.overlapped_secs + other.overlapped_secs,
        }
    }
}

/// Sorted, with overlapping spans merged.
fn merged(mut spans: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut merged: Vec<(f64, f64)> = Vec::with_capacity(spans.len());
    for (start, end) in spans {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

/// Seconds that a merged list covers.
fn length(spans: &[(f64, f64)]) -> f64 {
    spans.iter().map(|(start, end)| end - start).sum()
}

/// Seconds that are in both of two merged lists.
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
        Span { lane, device: Device::Gpu(0), chunk: Some(1), forward: 0, start_secs, end_secs, size_bytes: Bytes(10) }
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

    #[test]
    fn every_device_has_a_process_of_its_own_and_time_of_two_counts_once() {
        let trace = Trace::default();
        trace.add(span(Lane::Compute, 0.0, 2.0));
        trace.add(Span { device: Device::Cpu, ..span(Lane::Compute, 1.0, 3.0) });
        assert!((trace.summary().compute_secs - 3.0).abs() < 1e-12);
        let json = trace.to_chrome_json(&|chunk| format!("chunk {chunk}"));
        let events = json["traceEvents"].as_array().unwrap();
        let process = |device: &str| {
            let name = events.iter().find(|event| event["name"] == "process_name" && event["args"]["name"] == device).unwrap();
            let is_span = |event: &&serde_json::Value| event["ph"] == "X" && event["args"]["device"] == device;
            assert_eq!(events.iter().find(is_span).unwrap()["pid"], name["pid"]);
            name["pid"].as_u64()
        };
        assert_ne!(process("gpu:0"), process("cpu"));
    }

    #[test]
    fn old_spans_are_forgotten_and_still_count() {
        let trace = Trace::default();
        let n_spans = N_SPANS_USUAL * 2 + 5;
        for index in 0..n_spans {
            trace.add(span(Lane::Upload, index as f64, index as f64 + 0.5));
        }
        assert!(trace.spans().len() <= N_SPANS_USUAL);
        assert_eq!(trace.spans().last().map(|span| span.start_secs), Some((n_spans - 1) as f64));
        let summary = trace.summary();
        assert_eq!(summary.uploaded, Bytes(10 * n_spans as u64));
        assert!((summary.upload_secs - n_spans as f64 / 2.0).abs() < 1e-6);
        trace.clear();
        assert_eq!(trace.summary().uploaded, Bytes::ZERO);
    }
}
