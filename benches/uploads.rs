//! What brings weights to a slot of a GPU, alone, with nothing computed meanwhile: each way up from host memory beside a plain copy,
//! and from disk beside the disk itself. All take turns, so that a noisy machine disturbs them alike. Prints medians as markdown.
//!
//! `TIERFLOW_SMOLLM2=FILE.gguf cargo bench --bench uploads` (or any file of weights as the first argument).

use std::path::PathBuf;
use std::time::Instant;

use tierflow::error::{Error, Result};
use tierflow::gpu::{self, Buffer, Gpu, Purpose};
use tierflow::plan::UploadPath;
use tierflow::platform::{ByteSource, DirectBuffer, IoMode, Pages, open_source};
use tierflow::units::{Bytes, BytesPerSec};

const N_ROUNDS: usize = 9;
/// What one round moves: more than caches hold.
const MOVED: Bytes = Bytes::mib(128);
/// Chunks as plans have them.
const CHUNKS: [Bytes; 3] = [Bytes::mib(1), Bytes::mib(4), Bytes::mib(16)];
/// Those who carry in the engine.
const N_THREADS: usize = 2;
/// Of each thread: one is filled while the other's copy runs.
const N_SLOTS: usize = 2;
/// What one read of the disk asks for, as in the engine.
const READ_BYTES: usize = (4 << 20) - (8 << 10);

fn main() -> Result<()> {
    let argument = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let file = argument.map(PathBuf::from).or_else(|| std::env::var_os("TIERFLOW_SMOLLM2").map(PathBuf::from));
    let source = file.map(|path| open_source(&path, IoMode::Pread)).transpose()?;
    let mut held = Pages::of(MOVED)?;
    held.fill(0x2A);
    for found in pollster::block_on(gpu::list())? {
        println!("{}: {} ({}), {N_THREADS} threads\n", found.spec.device, found.spec.name, found.spec.driver);
        let gpu = pollster::block_on(Gpu::open(&found, Bytes::gib(1), None))?;
        println!("| way | chunk | GB/s (median of {N_ROUNDS}) | min – max | of a plain copy |");
        println!("| --- | ---: | ---: | ---: | ---: |");
        for chunk in CHUNKS {
            from_host(&gpu, &held, chunk)?;
        }
        if let Some(source) = &source {
            println!("\n| way | GB/s (median of {N_ROUNDS}) | min – max | of the disk |");
            println!("| --- | ---: | ---: | ---: |");
            from_disk(&gpu, source.as_ref())?;
        }
        println!();
    }
    if source.is_none() {
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
        there.map(|path| Way::new(path.to_string(), || UploadWorker::slots(gpu, path, chunk))).collect()
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

    /// The cells of its row; `other` is what it is compared with.
    fn cells(&self, other: &Way) -> String {
        let (least, most) = self.rates.iter().fold((f64::MAX, 0.0_f64), |(least, most), &rate| (least.min(rate), most.max(rate)));
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
fn from_host(gpu: &Gpu, held: &[u8], chunk: Bytes) -> Result<()> {
    let mut ways = vec![Way::new("plain copy".into(), || UploadWorker::memory(chunk))?];
    ways.extend(Way::up(gpu, chunk)?);
    let share = held.len() / N_THREADS;
    in_turns(&mut ways, held.len(), |thread, upload_worker| {
        let chunks = held[thread * share..][..share].chunks_exact(chunk.0 as usize);
        chunks.enumerate().try_for_each(|(index, chunk)| upload_worker.carry(index, chunk))
    })?;
    for way in &ways {
        println!("| {} | {chunk} | {}", way.name, way.cells(&ways[0]));
    }
    Ok(())
}

/// Reads past the page cache alone, and with what brings them up.
fn from_disk(gpu: &Gpu, source: &dyn ByteSource) -> Result<()> {
    let n_reads = source.len().min(MOVED.0) as usize / READ_BYTES;
    if n_reads < N_THREADS {
        let reason = format!("a file of {} is too small to tell: {} at least", Bytes(source.len()), Bytes((N_THREADS * READ_BYTES) as u64));
        return Err(Error::InvalidArgument { option: "the file to read".into(), reason });
    }
    let mut ways = vec![Way::new("disk alone".into(), || Ok(UploadWorker::Nowhere))?];
    ways.extend(Way::up(gpu, Bytes(READ_BYTES as u64))?);
    in_turns(&mut ways, n_reads * READ_BYTES, |thread, upload_worker| {
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

/// Has each way move so many bytes, round by round; `work` is one thread's part, by the thread's index.
fn in_turns<'a>(ways: &mut [Way<'a>], n_bytes: usize, work: impl Fn(usize, &mut UploadWorker<'a>) -> Result<()> + Sync) -> Result<()> {
    // The first round touches the memory.
    for round in 0..=N_ROUNDS {
        for way in &mut *ways {
            let secs = way.run(&work)?;
            if round > 0 {
                way.rates.push(n_bytes as f64 / secs);
            }
        }
    }
    Ok(())
}
