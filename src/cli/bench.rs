//! `tierflow bench`: prefill and decode rates, as llama-bench prints them, with the bytes that bound them.

use std::time::Instant;

use serde::Serialize;

use crate::cli::args::{BenchArgs, BenchOutput};
use crate::cli::locate::locate;
use crate::cli::model::{builder, load_with_bar};
use crate::cli::terminal::{Visibility, note, print, print_json};
use crate::cli::trace_file;
use crate::engine::{Engine, TextFiles};
use crate::error::{Error, Result};
use crate::plan::PlanOptions;
use crate::stream::{TraceSummary, Want};
use crate::units::{Bytes, BytesPerSec};

/// One row; names as llama-bench has them where it has them.
#[derive(Debug, Serialize)]
struct Row {
    model_type: String,
    model_size: Bytes,
    backend: String,
    test: String,
    n_prompt: u32,
    n_gen: u32,
    avg_ts: f64,
    stddev_ts: f64,
    median_ts: f64,
    samples_ts: Vec<f64>,
    /// Bytes that reached the GPU per forward, and at what rate.
    uploaded_per_forward: Bytes,
    upload_rate: BytesPerSec,
    /// Bytes that were read from disk per forward, and at what rate.
    fetched_per_forward: Bytes,
    fetch_rate: BytesPerSec,
    /// Share of the time in which weights moved that lay inside computation.
    overlapped: f64,
    stall_secs_per_forward: f64,
    /// What the slowest link alone would allow, in tokens per second; `None` where nothing streams.
    link_bound_ts: Option<f64>,
}

/// Measures and prints.
///
/// # Errors
/// Those of the engine; [`crate::Error::ContextFull`] where the tests need more positions than the plan has.
pub fn run(args: &BenchArgs) -> Result<()> {
    if args.n_prompt == 0 && args.n_gen == 0 {
        let fault = "and --n-gen are both 0; there is nothing to measure".into();
        return Err(Error::InvalidArgument { option: "--n-prompt".into(), fault });
    }
    let path = locate(&args.model.source()?, Visibility::Auto)?;
    let mut placement = args.placement.clone();
    if placement.ctx_size == 0 {
        let n_positions = args.n_prompt.max(args.n_gen).max(1);
        placement.ctx_size = n_positions.checked_next_multiple_of(64).unwrap_or(n_positions);
    }
    let prepared = pollster::block_on(builder(&path, &placement, PlanOptions::default())?.text(TextFiles::Skip).prepare())?;
    note(&prepared.summary());
    let mut engine = load_with_bar(prepared, Visibility::Auto)?;
    let mut rows = Vec::new();
    if args.n_prompt > 0 {
        rows.push(measure(&mut engine, args, args.n_prompt, 0)?);
    }
    if args.n_gen > 0 {
        rows.push(measure(&mut engine, args, 0, args.n_gen)?);
    }
    if let Some(file) = &args.trace {
        trace_file::write(file, &engine)?;
    }
    if args.json || args.output == BenchOutput::Json {
        return print_json(&serde_json::json!({ "schema": "tierflow.bench/1", "rows": rows, "memory": engine.memory_use() }));
    }
    print(&markdown(&rows))?;
    for memory in engine.memory_use() {
        note(&format!("  {} peak {}\n", memory.device, memory.peak));
    }
    Ok(())
}

/// One warm-up and `repetitions` runs of a prompt of `n_prompt` tokens or of `n_gen` single tokens.
fn measure(engine: &mut Engine, args: &BenchArgs, n_prompt: u32, n_gen: u32) -> Result<Row> {
    let vocab_size = engine.config().vocab_size as u32;
    let token = |index: u32| (index.wrapping_mul(7919).wrapping_add(13)) % vocab_size;
    let mut samples = Vec::new();
    let mut traced = TraceSummary::default();
    for repetition in 0..=args.repetitions {
        let mut session = engine.session();
        session.engine().trace().clear();
        let begin = Instant::now();
        if n_prompt > 0 {
            let tokens: Vec<u32> = (0..n_prompt).map(token).collect();
            pollster::block_on(session.append(&tokens, Want::TopK(1)))?;
        }
        for index in 0..n_gen {
            pollster::block_on(session.append(&[token(index)], Want::TopK(1)))?;
        }
        let secs = begin.elapsed().as_secs_f64();
        traced = session.engine().trace().summary();
        if repetition > 0 {
            samples.push(f64::from(n_prompt + n_gen) / secs);
        }
    }
    let n_forwards = if n_gen > 0 { u64::from(n_gen) } else { u64::from(n_prompt).div_ceil(engine.plan().forward.n_tokens as u64) };
    Ok(row(engine, samples, traced, (n_prompt, n_gen), n_forwards))
}

fn row(engine: &Engine, samples: Vec<f64>, traced: TraceSummary, (n_prompt, n_gen): (u32, u32), n_forwards: u64) -> Row {
    let n = samples.len() as f64;
    let avg_ts = samples.iter().sum::<f64>() / n;
    let variance = samples.iter().map(|sample| (sample - avg_ts).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let mut sorted = samples.clone();
    sorted.sort_by(f64::total_cmp);
    let per_forward = |bytes: Bytes| Bytes(bytes.0 / n_forwards.max(1));
    let upload_rate = BytesPerSec::from_transfer(traced.uploaded, traced.upload_secs);
    let fetch_rate = BytesPerSec::from_transfer(traced.fetched, traced.fetch_secs);
    let link_secs = upload_rate.secs(per_forward(traced.uploaded)).max(fetch_rate.secs(per_forward(traced.fetched)));
    let tokens_per_forward = f64::from(n_prompt + n_gen) / n_forwards.max(1) as f64;
    let (config, prepared) = (engine.config(), engine.prepared());
    Row {
        model_type: if config.name.is_empty() { prepared.checkpoint.path.clone() } else { config.name.clone() },
        model_size: prepared.checkpoint.catalog.size_bytes(),
        backend: engine.plan().devices.first().map(|device| format!("{} {}", device.device, device.name)).unwrap_or_default(),
        test: if n_prompt > 0 { format!("pp{n_prompt}") } else { format!("tg{n_gen}") },
        n_prompt,
        n_gen,
        avg_ts,
        stddev_ts: variance.sqrt(),
        median_ts: sorted.get(sorted.len() / 2).copied().unwrap_or_default(),
        samples_ts: samples,
        uploaded_per_forward: per_forward(traced.uploaded),
        upload_rate,
        fetched_per_forward: per_forward(traced.fetched),
        fetch_rate,
        overlapped: traced.overlapped,
        stall_secs_per_forward: traced.stall_secs / n_forwards.max(1) as f64,
        link_bound_ts: (link_secs > 0.0).then(|| tokens_per_forward / link_secs),
    }
}

fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| model | size | backend | test | t/s | uploaded/forward | from disk/forward | overlapped | link bound t/s |\n\
         | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for row in rows {
        let moved = |bytes: Bytes, rate: BytesPerSec| if bytes > Bytes::ZERO { format!("{bytes} at {rate}") } else { "–".into() };
        text.push_str(&format!(
            "| {} | {} | {} | {} | {:.2} ± {:.2} | {} | {} | {} | {} |\n",
            row.model_type,
            row.model_size,
            row.backend,
            row.test,
            row.avg_ts,
            row.stddev_ts,
            moved(row.uploaded_per_forward, row.upload_rate),
            moved(row.fetched_per_forward, row.fetch_rate),
            row.link_bound_ts.map_or_else(|| "–".into(), |_| format!("{:.0} %", row.overlapped * 100.0)),
            row.link_bound_ts.map_or_else(|| "–".into(), |bound| format!("{bound:.1}")),
        ));
    }
    text
}
