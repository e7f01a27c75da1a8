//! What brings weights to a slot of a GPU, alone, with nothing computed meanwhile: each way up from host memory beside a plain copy,
//! and from disk beside the disk itself. All take turns, so that a noisy machine disturbs them alike. Prints medians as markdown.
//!
//! `TIERFLOW_SMOLLM2=FILE.gguf cargo bench --bench uploads` (or any file of weights as the first argument); with `-- --json`, a JSON
//! object a line instead, and with `--rounds N` other than nine rounds.

use std::path::PathBuf;
use std::time::Instant;

use tierflow::error::{Error, Result};
use tierflow::gpu::{self, Buffer, Gpu, Purpose};
use tierflow::plan::UploadPath;
use tierflow::platform::{ByteSource, DirectBuffer, IoMode, Pages, open_source};
use tierflow::units::{Bytes, BytesPerSec};

/// Rounds of which a median is taken, unless told otherwise.
const N_ROUNDS: usize = 9;
/// What one round moves: more than caches hold.
const MOVED: Bytes = Bytes::mib(256);
/// Chunks as plans have them.
const CHUNKS: [Bytes; 4] = [Bytes::mib(1), Bytes::mib(4), Bytes::mib(16), Bytes::mib(64)];
/// Those who carry in the engine.
const N_THREADS: usize = 2;
/// Of each thread: one is filled while the other's copy runs.
const N_SLOTS: usize = 2;
/// What one read of the disk asks for, as in the engine.
const READ_BYTES: usize = (4 << 20) - (8 << 10);

fn main() -> Result<()> {
    let (mut is_json, mut n_rounds, mut file) = (false, N_ROUNDS, std::env::var_os("TIERFLOW_SMOLLM2").map(PathBuf::from));
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => is_json = true,
            "--rounds" => n_rounds = words.next().and_then(|text| text.parse().ok()).filter(|rounds| *rounds > 0).unwrap_or(N_ROUNDS),
            // `cargo bench` adds flags of its own.
            _ if word.starts_with('-') => {}
            _ => file = Some(word.into()),
        }
    }
    let source = file.map(|path| open_source(&path, IoMode::Pread)).transpose()?;
    let mut held = Pages::of(MOVED)?;
    held.fill(0x2A);
    for found in pollster::block_on(gpu::list())? {
        let gpu = pollster::block_on(Gpu::open(&found, Bytes::gib(2), None))?;
        if !is_json {
            println!("{}: {} ({}), {N_THREADS} threads\n", found.spec.device, found.spec.name, found.spec.driver);
            println!("| way | chunk | GB/s (median of {n_rounds}) | min – max | of a plain copy |");
            println!("| --- | ---: | ---: | ---: | ---: |");
        }
        for chunk in CHUNKS {
            let ways = from_host(&gpu, &held, chunk, n_rounds)?;
            for way in &ways {
                match is_json {
                    true => println!("{}", way.values(&found.spec.name, chunk, &ways[0])),
                    false => println!("| {} | {chunk} | {}", way.name, way.cells(&ways[0])),
                }
            }
        }
        if let Some(source) = source.as_ref().filter(|_| !is_json) {
            println!("\n| way | GB/s (median of {n_rounds}) | min – max | of the disk |");
            println!("| --- | ---: | ---: | ---: |");
            from_disk(&gpu, source.as_ref(), n_rounds)?;
            println!();
        }
    }
    if source.is_none() && !is_json {
        println!("no disk: give a file of weights as an argument, or in TIERFLOW_SMOLLM2");
    }
    Ok(())
}

/// A way of bytes, with what its threads write to.
struct Way<'a> {
    name: String,
    upload_workers: Vec<UploadWorker<'a>>,
    rates: Vec<f64>,
}

/// What one thread writes to.
enum UploadWorker<'a> {
    Memory(Pages),
    Slots {
        gpu: &'a Gpu,
        path: UploadPath,
        slots: Vec<Slot>,
    },
    /// Nothing: what is read is left where it is.
    Nowhere,
}

/// What the host writes to, and what the queue copies it to, if anything.
struct Slot {
    memory: Buffer,
    block: Option<Buffer>,
    /// The last copy between them.
    copy: Option<wgpu::SubmissionIndex>,
}

impl<'a> Way<'a> {
    fn new(name: String, make: impl Fn() -> Result<UploadWorker<'a>>) -> Result<Way<'a>> {
        Ok(Way { name, upload_workers: (0..N_THREADS).map(|_| make()).collect::<Result<_>>()?, rates: Vec::new() })
    }

    /// All ways to slots of `gpu`.
    fn up(gpu: &'a Gpu, chunk: Bytes) -> Result<Vec<Way<'a>>> {
        let paths = [UploadPath::Mapped, UploadPath::Staged, UploadPath::Written];
        let there = paths.into_iter().filter(|path| *path != UploadPath::Mapped || gpu.mappable);
        // Few cards let the host write to more than a small part of their memory.
        let make = |path: UploadPath| match Way::new(path.to_string(), || UploadWorker::slots(gpu, path, chunk)) {
            Err(error) if path == UploadPath::Mapped => {
                eprintln!("{path}, {chunk}: {error}");
                None
            }
            way => Some(way),
        };
        there.filter_map(make).collect()
    }

    /// Seconds until all threads, which work at once, have brought up what is theirs.
    fn run(&mut self, work: impl Fn(usize, &mut UploadWorker<'a>) -> Result<()> + Sync) -> Result<f64> {
        let carry_all = |thread, upload_worker: &mut UploadWorker<'a>| work(thread, upload_worker).and_then(|()| upload_worker.finish());
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let upload_workers = self.upload_workers.iter_mut().enumerate();
            let carry_all = &carry_all;
            let threads: Vec<_> =
                upload_workers.map(|(thread, upload_worker)| scope.spawn(move || carry_all(thread, upload_worker))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("a thread that carries"))
        })?;
        Ok(begin.elapsed().as_secs_f64())
    }

    fn median(&self) -> f64 {
        let mut sorted = self.rates.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    /// The slowest and the fastest round.
    fn extremes(&self) -> (f64, f64) {
        self.rates.iter().fold((f64::MAX, 0.0_f64), |(least, most), &rate| (least.min(rate), most.max(rate)))
    }

    /// Its row as JSON, in bytes and bytes per second; `other` is what it is compared with.
    fn values(&self, adapter: &str, chunk: Bytes, other: &Way) -> serde_json::Value {
        let (least, most) = self.extremes();
        serde_json::json!({
            "what": "upload", "adapter": adapter, "way": self.name, "chunk": chunk, "n_threads": N_THREADS,
            "rate": self.median(), "least": least, "most": most, "of_plain_copy": self.median() / other.median(),
        })
    }

    /// The cells of its row; `other` is what it is compared with.
    fn cells(&self, other: &Way) -> String {
        let (least, most) = self.extremes();
        let ratio = self.median() / other.median();
        format!("{} | {} – {} | {ratio:.2} |", BytesPerSec(self.median()), BytesPerSec(least), BytesPerSec(most))
    }
}

impl<'a> UploadWorker<'a> {
    fn memory(chunk: Bytes) -> Result<UploadWorker<'a>> {
        Ok(UploadWorker::Memory(Pages::of(chunk.times(N_SLOTS as u64))?))
    }

    fn slots(gpu: &'a Gpu, path: UploadPath, chunk: Bytes) -> Result<UploadWorker<'a>> {
        let slots = (0..N_SLOTS).map(|_| Slot::new(gpu, path, chunk)).collect::<Result<_>>()?;
        Ok(UploadWorker::Slots { gpu, path, slots })
    }

    /// Brings the `index`th chunk to the next place and waits for nothing but that.
    fn carry(&mut self, index: usize, chunk: &[u8]) -> Result<()> {
        match self {
            UploadWorker::Memory(memory) => memory[index % N_SLOTS * chunk.len()..][..chunk.len()].copy_from_slice(chunk),
            UploadWorker::Slots { gpu, path, slots } => slots[index % N_SLOTS].fill(gpu, *path, chunk)?,
            UploadWorker::Nowhere => {}
        }
        Ok(())
    }

    /// Waits until all has arrived.
    fn finish(&self) -> Result<()> {
        if let UploadWorker::Slots { gpu, .. } = self { gpu.wait(None) } else { Ok(()) }
    }
}

impl Slot {
    fn new(gpu: &Gpu, path: UploadPath, chunk: Bytes) -> Result<Slot> {
        use wgpu::BufferUsages as Usage;
        let buffer = |usage, purpose| pollster::block_on(gpu.buffer("slot", chunk, usage, purpose));
        let (memory, block) = match path {
            UploadPath::Mapped => (buffer(Usage::STORAGE | Usage::MAP_WRITE, Purpose::Slots)?, None),
            UploadPath::Written => (buffer(Usage::STORAGE | Usage::COPY_DST, Purpose::Slots)?, None),
            UploadPath::Staged => {
                let block = buffer(Usage::STORAGE | Usage::COPY_DST, Purpose::Slots)?;
                (buffer(Usage::COPY_SRC | Usage::MAP_WRITE, Purpose::Staging)?, Some(block))
            }
        };
        Ok(Slot { memory, block, copy: None })
    }

    /// As the engine's ring does it, once the slot is free.
    fn fill(&mut self, gpu: &Gpu, path: UploadPath, chunk: &[u8]) -> Result<()> {
        if path == UploadPath::Written {
            gpu::write(&gpu.queue, &self.memory, 0, chunk);
            gpu.queue.submit([]);
            return gpu.poll();
        }
        self.map(gpu)?;
        let invalid = |reason: wgpu::MapRangeError| gpu.error(format!("a slot was not mapped: {reason}"));
        self.memory.slice(..).get_mapped_range_mut().map_err(invalid)?.slice(..chunk.len()).copy_from_slice(chunk);
        self.memory.unmap();
        if let Some(block) = &self.block {
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(&self.memory, 0, block, 0, chunk.len() as u64);
            self.copy = Some(gpu.queue.submit([encoder.finish()]));
        }
        Ok(())
    }

    /// Maps what the host writes to, once the copy out of it is done.
    fn map(&mut self, gpu: &Gpu) -> Result<()> {
        let (sender, mapped) = std::sync::mpsc::channel();
        self.memory.slice(..).map_async(wgpu::MapMode::Write, move |result| drop(sender.send(result)));
        match self.copy.take() {
            Some(copy) => gpu.wait(Some(copy))?,
            None => gpu.poll()?,
        }
        // Another thread's wait may be what answers.
        match mapped.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(gpu.error(format!("a slot cannot be mapped: {reason}"))),
            Err(_) => Err(gpu.error("a slot cannot be mapped: nobody answered")),
        }
    }
}

/// Every way up beside a plain copy from memory to memory, in chunks of this size.
fn from_host<'a>(gpu: &'a Gpu, held: &[u8], chunk: Bytes, n_rounds: usize) -> Result<Vec<Way<'a>>> {
    let mut ways = vec![Way::new("plain copy".into(), || UploadWorker::memory(chunk))?];
    ways.extend(Way::up(gpu, chunk)?);
    let share = held.len() / N_THREADS;
    in_turns(&mut ways, held.len(), n_rounds, |thread, upload_worker| {
        let chunks = held[thread * share..][..share].chunks_exact(chunk.0 as usize);
        chunks.enumerate().try_for_each(|(index, chunk)| upload_worker.carry(index, chunk))
    })?;
    Ok(ways)
}

/// Reads past the page cache alone, and with what brings them up.
fn from_disk(gpu: &Gpu, source: &dyn ByteSource, n_rounds: usize) -> Result<()> {
    let n_reads = source.len().min(MOVED.0) as usize / READ_BYTES;
    if n_reads < N_THREADS {
        let reason = format!("a file of {} is too small to tell: {} at least", Bytes(source.len()), Bytes((N_THREADS * READ_BYTES) as u64));
        return Err(Error::InvalidArgument { option: "the file to read".into(), reason });
    }
    let mut ways = vec![Way::new("disk alone".into(), || Ok(UploadWorker::Nowhere))?];
    ways.extend(Way::up(gpu, Bytes(READ_BYTES as u64))?);
    in_turns(&mut ways, n_reads * READ_BYTES, n_rounds, |thread, upload_worker| {
        let mut buffer = DirectBuffer::default();
        (thread..n_reads).step_by(N_THREADS).enumerate().try_for_each(|(index, read)| {
            let bytes = source.read_direct((read * READ_BYTES) as u64, READ_BYTES, &mut buffer)?;
            upload_worker.carry(index, bytes)
        })
    })?;
    for way in &ways {
        println!("| {} | {}", way.name, way.cells(&ways[0]));
    }
    Ok(())
}

/// Has each way move so many bytes in each of `n_rounds` rounds; `work` is one thread's part, by the thread's index.
fn in_turns<'a>(
    ways: &mut [Way<'a>],
    n_bytes: usize,
    n_rounds: usize,
    work: impl Fn(usize, &mut UploadWorker<'a>) -> Result<()> + Sync,
) -> Result<()> {
    // The first round touches the memory.
    for round in 0..=n_rounds {
        for way in &mut *ways {
            let secs = way.run(&work)?;
            if round > 0 {
                way.rates.push(n_bytes as f64 / secs);
            }
        }
    }
    Ok(())
}
