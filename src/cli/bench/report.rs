//! What `tierflow bench` prints: a row a test, under llama-bench's names where it has them, as a table, as values or as JSON.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use textwrap::core::display_width;

use super::{Measured, drafts};
use crate::cli::args::{BenchArgs, BenchOutput, GpuLayers};
use crate::cli::statistics::{Drafts, LayerExperts};
use crate::cli::terminal::{Stream, note, print, print_json, print_report};
use crate::device::Device;
use crate::engine::{Engine, MemoryUse};
use crate::error::{Error, Result};
use crate::plan::{CacheDType, Forwards, Plan};
use crate::session::DraftSource;
use crate::units::{Bytes, BytesPerSec};

/// One test.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    model_filename: String,
    model_type: String,
    model_size: Bytes,
    /// The devices that compute, with their names.
    backend: String,
    /// The devices that compute.
    backends: String,
    n_threads: usize,
    /// -1 for auto, -2 for all.
    n_gpu_layers: i64,
    /// Sequences side by side; rates are of all of them together.
    n_seqs: usize,
    n_ubatch: usize,
    type_k: CacheDType,
    type_v: CacheDType,
    test: String,
    n_prompt: u32,
    n_gen: u32,
    n_depth: u32,
    avg_ns: u64,
    stddev_ns: u64,
    avg_ts: f64,
    stddev_ts: f64,
    median_ts: f64,
    /// What was predicted for a machine that does nothing else.
    predicted_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
    /// Bytes that reached the GPU per forward, and at what rate.
    uploaded_per_forward: Bytes,
    upload_rate: BytesPerSec,
    /// Bytes that were read from disk per forward, and at what rate.
    fetched_per_forward: Bytes,
    fetch_rate: BytesPerSec,
    /// The share of the transfer time that was hidden behind computation.
    overlapped: f64,
    stall_secs_per_forward: f64,
    /// What the slowest link alone would allow, in tokens per second; `None` where nothing streams.
    link_bound_ts: Option<f64>,
    /// The share of the experts taken that the cache had; `None` where none pass through a cache.
    expert_hit_rate: Option<f64>,
    /// The share of them that the host computed with.
    expert_host_share: Option<f64>,
    /// The same tokens with drafts.
    #[serde(skip_serializing_if = "Option::is_none")]
    drafts: Option<DraftedRow>,
    /// What the expert cache was asked for during the last repetition, by each layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    experts_of_layers: Vec<LayerExperts>,
}

/// Generation with drafts, of one test.
#[derive(Debug, Clone, Serialize)]
struct DraftedRow {
    /// Where drafts came from.
    source: &'static str,
    /// Tokens that were computed, of the prompt and generated.
    n_tokens: usize,
    avg_ts: f64,
    stddev_ts: f64,
    median_ts: f64,
    samples_ts: Vec<f64>,
    /// What drafts brought to the last repetition.
    #[serde(flatten)]
    brought: Drafts,
}

/// The columns of comma-separated values: all that is one value. Behind a dot stands what is inside.
const CSV_COLUMNS: [&str; 34] = [
    "model_filename",
    "model_type",
    "model_size",
    "backend",
    "backends",
    "n_threads",
    "n_gpu_layers",
    "n_seqs",
    "n_ubatch",
    "type_k",
    "type_v",
    "test",
    "n_prompt",
    "n_gen",
    "n_depth",
    "avg_ns",
    "stddev_ns",
    "avg_ts",
    "stddev_ts",
    "median_ts",
    "predicted_ts",
    "uploaded_per_forward",
    "upload_rate",
    "fetched_per_forward",
    "fetch_rate",
    "overlapped",
    "stall_secs_per_forward",
    "link_bound_ts",
    "expert_hit_rate",
    "expert_host_share",
    "drafts.avg_ts",
    "drafts.stddev_ts",
    "drafts.drafted",
    "drafts.accepted",
];

impl Row {
    /// What was `measured` on `engine`.
    pub(super) fn new(engine: &Engine, measured: &Measured) -> Row {
        let Measured { test, n_threads, n_gpu_layers, secs, traced, experts, drafted } = measured;
        let all_experts = LayerExperts::sum(experts);
        let (config, prepared, plan) = (engine.config(), engine.prepared(), engine.plan());
        let forwards = test.forwards(plan);
        let predicted_secs: f64 = forwards.iter().map(|forwards| prepared.predict_all(forwards).secs).sum();
        let n_forwards = forwards.iter().map(Forwards::len).sum::<usize>().max(1);
        let per_forward = |bytes: Bytes| Bytes(bytes.0 / n_forwards as u64);
        let upload_rate = BytesPerSec::from_transfer(traced.uploaded, traced.upload_secs);
        let fetch_rate = BytesPerSec::from_transfer(traced.fetched, traced.fetch_secs);
        let link_secs = upload_rate.secs(traced.uploaded).max(fetch_rate.secs(traced.fetched));
        let n_tokens = f64::from(test.n_tokens()) * plan.n_seqs as f64;
        let (samples_ts, nanoseconds) = (secs.iter().map(|secs| n_tokens / secs).collect::<Vec<f64>>(), nanoseconds(secs));
        let ((avg_ts, stddev_ts), (avg_ns, stddev_ns)) = (average(&samples_ts), average(&nanoseconds));
        Row {
            model_filename: prepared.checkpoint.path.clone(),
            model_type: if config.name.is_empty() { prepared.checkpoint.path.clone() } else { config.name.clone() },
            model_size: prepared.checkpoint.catalog.size_bytes(),
            backend: backends(plan, ", ", |device, name| format!("{device} {name}")),
            backends: backends(plan, ",", |device, _| device.to_string()),
            n_threads: *n_threads,
            n_gpu_layers: llama_number(*n_gpu_layers),
            n_seqs: plan.n_seqs,
            n_ubatch: plan.forward.n_tokens,
            type_k: plan.kv_dtype.keys,
            type_v: plan.kv_dtype.values,
            test: test.name(plan.n_seqs),
            n_prompt: test.n_prompt,
            n_gen: test.n_gen,
            n_depth: test.n_depth,
            avg_ns: avg_ns as u64,
            stddev_ns: stddev_ns as u64,
            avg_ts,
            stddev_ts,
            median_ts: median(&samples_ts),
            predicted_ts: n_tokens / predicted_secs,
            samples_ns: nanoseconds.iter().map(|&nanoseconds| nanoseconds as u64).collect(),
            samples_ts,
            uploaded_per_forward: per_forward(traced.uploaded),
            upload_rate,
            fetched_per_forward: per_forward(traced.fetched),
            fetch_rate,
            overlapped: traced.overlapped,
            stall_secs_per_forward: traced.stall_secs / n_forwards as f64,
            link_bound_ts: (link_secs > 0.0).then(|| n_tokens / link_secs),
            expert_hit_rate: all_experts.hit_rate(),
            expert_host_share: all_experts.host_share(),
            drafts: drafted.as_ref().map(DraftedRow::new),
            experts_of_layers: experts.clone(),
        }
    }
}

impl DraftedRow {
    fn new(measured: &drafts::Measured) -> DraftedRow {
        let drafts::Measured { source, n_tokens, secs, statistics } = measured;
        let samples_ts: Vec<f64> = secs.iter().map(|secs| *n_tokens as f64 / secs).collect();
        let (avg_ts, stddev_ts) = average(&samples_ts);
        DraftedRow {
            source: match source {
                DraftSource::None => "none",
                DraftSource::NgramSimple => "ngram-simple",
                DraftSource::Model => "model",
            },
            n_tokens: *n_tokens,
            avg_ts,
            stddev_ts,
            median_ts: median(&samples_ts),
            samples_ts,
            brought: Drafts::of(statistics, statistics.n_forwards() + statistics.n_accepted),
        }
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The devices that compute, each as `text` has it.
fn backends(plan: &Plan, separator: &str, text: impl Fn(Device, &str) -> String) -> String {
    let computing = plan.devices.iter().filter(|device| device.n_executed > 0);
    computing.map(|device| text(device.device, &device.name)).collect::<Vec<_>>().join(separator)
}

/// The number by which llama.cpp calls it.
fn llama_number(n_gpu_layers: GpuLayers) -> i64 {
    match n_gpu_layers {
        GpuLayers::Auto => -1,
        GpuLayers::All => -2,
        GpuLayers::Count(n_layers) => n_layers.into(),
    }
}

fn nanoseconds(secs: &[f64]) -> Vec<f64> {
    secs.iter().map(|secs| secs * 1e9).collect()
}

/// Mean and standard deviation of a sample.
fn average(samples: &[f64]) -> (f64, f64) {
    let n = samples.len().max(1) as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let variance = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, variance.sqrt())
}

/// The rows in one of the formats; all but JSON are printed as they come.
pub(super) struct Report {
    output: BenchOutput,
    columns: Columns,
    rows: Vec<Row>,
    memory: BTreeMap<String, MemoryUse>,
}

/// Columns of the table that are shown only where they hold something.
#[derive(Debug, Clone, Copy)]
struct Columns {
    threads: bool,
    gpu_layers: bool,
    ubatch: bool,
    drafts: bool,
    streams: Streams,
}

/// Where the table says what streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Streams {
    /// Nowhere: nothing does.
    Nowhere,
    /// In columns of its own.
    Beside,
    /// In a line below each row.
    Below,
}

impl Report {
    /// A report of what `args` ask for, by these plans.
    pub(super) fn new<'a>(output: BenchOutput, args: &BenchArgs, mut plans: impl Iterator<Item = &'a Arc<Plan>>) -> Report {
        let columns = Columns {
            threads: args.lists.threads.len() > 1,
            gpu_layers: args.lists.n_gpu_layers.len() > 1,
            ubatch: args.lists.batch_size.len().max(args.lists.ubatch_size.len()) > 1,
            drafts: args.placement.drafts.speculation().source != DraftSource::None,
            streams: match plans.any(|plan| plan.devices.iter().any(|device| device.streamed_bytes > Bytes::ZERO)) {
                true => Streams::Beside,
                false => Streams::Nowhere,
            },
        };
        Report { output, columns, rows: Vec::new(), memory: BTreeMap::new() }
    }

    /// Takes a row, and prints it where the format is printed line by line.
    ///
    /// # Errors
    /// [`Error::Io`] where stdout cannot be written.
    pub(super) fn add(&mut self, row: Row) -> Result<()> {
        let is_first = self.rows.is_empty();
        match self.output {
            BenchOutput::Md => {
                if is_first {
                    self.columns = self.columns.fitting(Stream::Stdout.width(), &row);
                }
                let cells = self.columns.cells(&row);
                let head = if is_first { Columns::head(&cells) } else { String::new() };
                print(&format!("{head}{}", Columns::line(&cells)))?;
                print_report(&self.columns.below(&row))?;
            }
            BenchOutput::Csv => {
                let head = if is_first { format!("{}\n", CSV_COLUMNS.join(",")) } else { String::new() };
                print(&format!("{head}{}\n", csv(&to_value(&row)?)))?;
            }
            BenchOutput::Jsonl => print(&format!("{}\n", to_value(&row)?))?,
            BenchOutput::Json => {}
        }
        self.rows.push(row);
        Ok(())
    }

    /// Notes the memory used on each device; of several uses the largest is reported.
    pub(super) fn add_memory(&mut self, used: Vec<MemoryUse>) {
        for memory in used {
            let most = self.memory.entry(memory.device.to_string()).or_insert(memory);
            if memory.peak > most.peak {
                *most = memory;
            }
        }
    }

    /// Prints the end of the report.
    ///
    /// # Errors
    /// As [`Report::add`].
    pub(super) fn finish(self) -> Result<()> {
        let memory: Vec<MemoryUse> = self.memory.into_values().collect();
        if self.output == BenchOutput::Json {
            return print_json(&serde_json::json!({ "schema": "tierflow.bench/1", "rows": self.rows, "memory": memory }));
        }
        for memory in memory {
            note(&format!("  {} peak {}\n", memory.device, memory.peak));
        }
        Ok(())
    }
}

impl Columns {
    /// The same, with what streams below each row where a table like `row` is wider than `width`.
    fn fitting(self, width: Option<usize>, row: &Row) -> Columns {
        let cells = self.cells(row);
        let table = Columns::head(&cells) + &Columns::line(&cells);
        let fits = width.is_none_or(|width| table.lines().all(|line| display_width(line) <= width));
        Columns { streams: if fits || self.streams == Streams::Nowhere { self.streams } else { Streams::Below }, ..self }
    }

    /// What streams, where it has no columns, and what an expert cache had, in a line below the row.
    fn below(self, row: &Row) -> String {
        let moved =
            |what: &str, bytes: Bytes, rate: BytesPerSec| (bytes > Bytes::ZERO).then(|| format!("{what} {bytes}/forward at {rate}"));
        let streams = [
            moved("uploaded", row.uploaded_per_forward, row.upload_rate),
            moved("from disk", row.fetched_per_forward, row.fetch_rate),
            row.link_bound_ts.map(|bound| format!("{:.0} % overlapped · link bound {bound:.1} t/s", row.overlapped * 100.0)),
        ];
        let experts = [
            row.expert_hit_rate.map(|rate| format!("{:.0} % of experts found", rate * 100.0)),
            row.expert_host_share.map(|share| format!("{:.0} % computed by the CPU", share * 100.0)),
        ];
        let streams = streams.into_iter().filter(|_| self.streams == Streams::Below);
        let parts: Vec<String> = streams.chain(experts).flatten().collect();
        if parts.is_empty() { String::new() } else { format!("  {}\n", parts.join(" · ")) }
    }

    /// Headings and cells of a row; numbers are on the right.
    fn cells(self, row: &Row) -> Vec<(&'static str, String, bool)> {
        let moved = |bytes: Bytes, rate: BytesPerSec| if bytes > Bytes::ZERO { format!("{bytes} at {rate}") } else { "–".into() };
        let bound = |text: &dyn Fn(f64) -> String| row.link_bound_ts.map_or_else(|| "–".into(), text);
        let mut cells = vec![
            ("model", row.model_type.clone(), false),
            ("size", row.model_size.to_string(), true),
            ("backend", row.backends.clone(), false),
        ];
        if self.gpu_layers {
            cells.push(("ngl", row.n_gpu_layers.to_string(), true));
        }
        if self.ubatch {
            cells.push(("n_ubatch", row.n_ubatch.to_string(), true));
        }
        if self.threads {
            cells.push(("threads", row.n_threads.to_string(), true));
        }
        cells.push(("test", row.test.clone(), true));
        cells.push(("t/s", format!("{:.2} ± {:.2}", row.avg_ts, row.stddev_ts), true));
        if self.drafts {
            let of = |text: &dyn Fn(&DraftedRow) -> String| row.drafts.as_ref().map_or_else(|| "–".into(), text);
            cells.push(("t/s with drafts", of(&|drafts| format!("{:.2} ± {:.2}", drafts.avg_ts, drafts.stddev_ts)), true));
            cells.push(("accepted/drafted", of(&|drafts| format!("{}/{}", drafts.brought.accepted, drafts.brought.drafted)), true));
        }
        if self.streams == Streams::Beside {
            cells.push(("uploaded/forward", moved(row.uploaded_per_forward, row.upload_rate), true));
            cells.push(("from disk/forward", moved(row.fetched_per_forward, row.fetch_rate), true));
            cells.push(("overlapped", bound(&|_| format!("{:.0} %", row.overlapped * 100.0)), true));
            cells.push(("link bound t/s", bound(&|bound| format!("{bound:.1}")), true));
        }
        cells
    }

    fn head(cells: &[(&str, String, bool)]) -> String {
        let headings: String = cells.iter().map(|(heading, ..)| format!(" {heading} |")).collect();
        let rules: String = cells.iter().map(|(.., is_number)| if *is_number { " ---: |" } else { " --- |" }).collect();
        format!("|{headings}\n|{rules}\n")
    }

    fn line(cells: &[(&str, String, bool)]) -> String {
        let values: String = cells.iter().map(|(_, value, _)| format!(" {value} |")).collect();
        format!("|{values}\n")
    }
}

fn to_value(row: &Row) -> Result<Value> {
    serde_json::to_value(row).map_err(|reason| Error::io("write to", "stdout", reason.into()))
}

/// The values of [`CSV_COLUMNS`], each in quotes as llama-bench writes them.
fn csv(row: &Value) -> String {
    let value = |column: &&str| match row.pointer(&format!("/{}", column.replace('.', "/"))) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    };
    CSV_COLUMNS.iter().map(|column| format!("\"{}\"", value(column).replace('"', "\"\""))).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_quotes_and_commas_stay_one_value() {
        let row = serde_json::json!({ "model_filename": "a \"b\", c", "n_prompt": 8, "link_bound_ts": null });
        let line = csv(&row);
        assert!(line.starts_with("\"a \"\"b\"\", c\",\"\","), "{line}");
        assert!(line.contains(",\"8\",") && line.ends_with(",\"\""), "{line}");
    }

    #[test]
    fn averages_are_of_a_sample() {
        assert_eq!(average(&[2.0, 4.0]), (3.0, 2f64.sqrt()));
        assert_eq!(average(&[5.0]), (5.0, 0.0));
    }

    #[test]
    fn columns_are_there_where_they_tell_something() {
        let cells = [("model", "m".to_owned(), false), ("t/s", "1.00 ± 0.10".to_owned(), true)];
        assert_eq!(Columns::head(&cells), "| model | t/s |\n| --- | ---: |\n");
        assert_eq!(Columns::line(&cells), "| m | 1.00 ± 0.10 |\n");
    }
}
