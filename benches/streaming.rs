//! Decoding with weights resident, streamed from the host, and streamed from disk, in alternation in one process, so that
//! a noisy machine disturbs all of them alike. Prints medians and ratios as markdown.
//!
//! `TIERFLOW_SMOLLM2=FILE.gguf cargo bench --bench streaming` (or any model as the first argument).

use std::path::{Path, PathBuf};
use std::time::Instant;

use tierflow::device::{Device, DeviceChoice};
use tierflow::engine::{Engine, EngineBuilder, TextFiles};
use tierflow::platform::{DirectBuffer, IoMode, open_source};
use tierflow::stream::LogitsRequest;
use tierflow::units::{Bytes, BytesPerSec};

/// What a streamed run may use of the GPU.
const BUDGET: Bytes = Bytes::mib(40);
const CTX_SIZE: usize = 256;
const N_TOKENS: u32 = 16;
const N_ROUNDS: usize = 15;

struct Variant {
    name: &'static str,
    engine: Engine,
    /// Tokens per second, one per round.
    rates: Vec<f64>,
}

fn main() {
    let argument = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let Some(model) = argument.map(PathBuf::from).or_else(|| std::env::var_os("TIERFLOW_SMOLLM2").map(PathBuf::from)) else {
        println!("no model: give one as an argument, or in TIERFLOW_SMOLLM2");
        return;
    };
    let open = |name, place: &dyn Fn(EngineBuilder) -> EngineBuilder| {
        let builder = Engine::builder(&model).device(DeviceChoice::Gpu).ctx_size(CTX_SIZE).text(TextFiles::Skip);
        let engine = pollster::block_on(place(builder).open()).unwrap_or_else(|error| panic!("{name}: {error}"));
        Variant { name, engine, rates: Vec::new() }
    };
    let gpu = Device::Gpu(0);
    let mut variants = [
        open("resident", &|builder| builder),
        open("from host", &|builder| builder.max_memory(gpu, BUDGET)),
        open("from disk", &|builder| builder.max_memory(gpu, BUDGET).max_memory(Device::Cpu, Bytes::ZERO)),
    ];
    let mut disk_rates = Vec::new();
    for round in 0..=N_ROUNDS {
        disk_rates.push(disk_rate(&model));
        for variant in &mut variants {
            variant.engine.trace().clear();
            let rate = decode(&mut variant.engine);
            // The first round compiles kernels and fills the ring.
            if round > 0 {
                variant.rates.push(rate);
            }
        }
    }
    report(&variants, BytesPerSec(median(&disk_rates)));
}

/// Tokens per second of `N_TOKENS` single-token forwards.
fn decode(engine: &mut Engine) -> f64 {
    let mut session = engine.session();
    let begin = Instant::now();
    for token in 0..N_TOKENS {
        pollster::block_on(session.append(&[token * 7 + 3], LogitsRequest::TopK(1))).expect("a forward");
    }
    f64::from(N_TOKENS) / begin.elapsed().as_secs_f64()
}

/// Bytes per second at which the model's file is read past the page cache, as the disk tier reads it, by one thread.
fn disk_rate(model: &Path) -> f64 {
    let Ok(source) = open_source(model, IoMode::Pread) else { return f64::NAN };
    const READ_BYTES: usize = 2 << 20;
    let len = source.len().min(64 << 20) / READ_BYTES as u64 * READ_BYTES as u64;
    let mut buffer = DirectBuffer::default();
    let begin = Instant::now();
    for offset in (0..len).step_by(READ_BYTES) {
        source.read_direct(offset, READ_BYTES, &mut buffer).expect("a read");
    }
    len as f64 / begin.elapsed().as_secs_f64()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn report(variants: &[Variant], disk_rate: BytesPerSec) {
    let resident = median(&variants[0].rates);
    println!("| weights | t/s (median of {N_ROUNDS}) | min – max | of resident | streamed per token | stalled | bound t/s | of bound |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for variant in variants {
        let rate = median(&variant.rates);
        let streamed = variant.engine.plan().streamed_bytes();
        let summary = variant.engine.trace().summary();
        let from_disk = variant.engine.plan().device(Device::Disk).map_or(Bytes::ZERO, |disk| disk.streamed_bytes);
        let bound = if from_disk > Bytes::ZERO { resident.min(1.0 / disk_rate.secs(from_disk)) } else { resident };
        let (least, most) = variant.rates.iter().fold((f64::MAX, 0.0f64), |(least, most), &rate| (least.min(rate), most.max(rate)));
        println!(
            "| {} | {rate:.2} | {least:.2} – {most:.2} | {:.2} | {streamed} | {:.0} % | {bound:.2} | {:.2} |",
            variant.name,
            rate / resident,
            100.0 * summary.stall_secs * rate / f64::from(N_TOKENS),
            rate / bound
        );
    }
    println!("\ndisk: {disk_rate}, one thread, 2 MiB at a time, past the page cache");
    for variant in variants {
        for memory in variant.engine.memory_use() {
            println!("{}: {} peak {}, budget {}", variant.name, memory.device, memory.peak, memory.budget.unwrap_or_default());
        }
    }
}
