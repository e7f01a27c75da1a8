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
/// Pieces as plans have them.
const PIECES: [Bytes; 3] = [Bytes::mib(1), Bytes::mib(4), Bytes::mib(16)];
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
        println!("| way | piece | GB/s (median of {N_ROUNDS}) | min – max | of a plain copy |");
        println!("| --- | ---: | ---: | ---: | ---: |");
        for piece in PIECES {
            from_host(&gpu, &held, piece)?;
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
    carriers: Vec<Carrier<'a>>,
    rates: Vec<f64>,
}

/// What one thread writes to.
enum Carrier<'a> {
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
    fn new(name: String, make: impl Fn() -> Result<Carrier<'a>>) -> Result<Way<'a>> {
        Ok(Way { name, carriers: (0..N_THREADS).map(|_| make()).collect::<Result<_>>()?, rates: Vec::new() })
    }

    /// All ways to slots of `gpu`.
    fn up(gpu: &'a Gpu, piece: Bytes) -> Result<Vec<Way<'a>>> {
        let paths = [UploadPath::Mapped, UploadPath::Staged, UploadPath::Written];
        let there = paths.into_iter().filter(|path| *path != UploadPath::Mapped || gpu.mappable);
        there.map(|path| Way::new(path.to_string(), || Carrier::slots(gpu, path, piece))).collect()
    }

    /// Seconds until all threads, which work at once, have brought up what is theirs.
    fn run(&mut self, work: impl Fn(usize, &mut Carrier<'a>) -> Result<()> + Sync) -> Result<f64> {
        let carry_all = |thread, carrier: &mut Carrier<'a>| work(thread, carrier).and_then(|()| carrier.finish());
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let carriers = self.carriers.iter_mut().enumerate();
            let carry_all = &carry_all;
            let threads: Vec<_> = carriers.map(|(thread, carrier)| scope.spawn(move || carry_all(thread, carrier))).collect();
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

impl<'a> Carrier<'a> {
    fn memory(piece: Bytes) -> Result<Carrier<'a>> {
        Ok(Carrier::Memory(Pages::of(piece.times(N_SLOTS as u64))?))
    }

    fn slots(gpu: &'a Gpu, path: UploadPath, piece: Bytes) -> Result<Carrier<'a>> {
        let slots = (0..N_SLOTS).map(|_| Slot::new(gpu, path, piece)).collect::<Result<_>>()?;
        Ok(Carrier::Slots { gpu, path, slots })
    }

    /// Brings the `index`th piece to the next place and waits for nothing but that.
    fn carry(&mut self, index: usize, piece: &[u8]) -> Result<()> {
        match self {
            Carrier::Memory(memory) => memory[index % N_SLOTS * piece.len()..][..piece.len()].copy_from_slice(piece),
            Carrier::Slots { gpu, path, slots } => slots[index % N_SLOTS].fill(gpu, *path, piece)?,
            Carrier::Nowhere => {}
        }
        Ok(())
    }

    /// Waits until all has arrived.
    fn finish(&self) -> Result<()> {
        if let Carrier::Slots { gpu, .. } = self { gpu.wait(None) } else { Ok(()) }
    }
}

impl Slot {
    fn new(gpu: &Gpu, path: UploadPath, piece: Bytes) -> Result<Slot> {
        use wgpu::BufferUsages as Usage;
        let buffer = |usage, purpose| pollster::block_on(gpu.buffer("slot", piece, usage, purpose));
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
    fn fill(&mut self, gpu: &Gpu, path: UploadPath, piece: &[u8]) -> Result<()> {
        if path == UploadPath::Written {
            gpu::write(&gpu.queue, &self.memory, 0, piece);
            gpu.queue.submit([]);
            return gpu.poll();
        }
        self.map(gpu)?;
        let fault = |fault: wgpu::MapRangeError| gpu.fault(format!("a slot was not mapped: {fault}"));
        self.memory.slice(..).get_mapped_range_mut().map_err(fault)?.slice(..piece.len()).copy_from_slice(piece);
        self.memory.unmap();
        if let Some(block) = &self.block {
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(&self.memory, 0, block, 0, piece.len() as u64);
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
            Ok(Err(fault)) => Err(gpu.fault(format!("a slot cannot be mapped: {fault}"))),
            Err(_) => Err(gpu.fault("a slot cannot be mapped: nobody answered")),
        }
    }
}

/// Every way up beside a plain copy from memory to memory, in pieces of this size.
fn from_host(gpu: &Gpu, held: &[u8], piece: Bytes) -> Result<()> {
    let mut ways = vec![Way::new("plain copy".into(), || Carrier::memory(piece))?];
    ways.extend(Way::up(gpu, piece)?);
    let share = held.len() / N_THREADS;
    in_turns(&mut ways, held.len(), |thread, carrier| {
        let pieces = held[thread * share..][..share].chunks_exact(piece.0 as usize);
        pieces.enumerate().try_for_each(|(index, piece)| carrier.carry(index, piece))
    })?;
    for way in &ways {
        println!("| {} | {piece} | {}", way.name, way.cells(&ways[0]));
    }
    Ok(())
}

/// Reads past the page cache alone, and with what brings them up.
fn from_disk(gpu: &Gpu, source: &dyn ByteSource) -> Result<()> {
    let n_reads = source.len().min(MOVED.0) as usize / READ_BYTES;
    if n_reads < N_THREADS {
        let fault = format!("a file of {} is too small to tell: {} at least", Bytes(source.len()), Bytes((N_THREADS * READ_BYTES) as u64));
        return Err(Error::InvalidArgument { option: "the file to read".into(), fault });
    }
    let mut ways = vec![Way::new("disk alone".into(), || Ok(Carrier::Nowhere))?];
    ways.extend(Way::up(gpu, Bytes(READ_BYTES as u64))?);
    in_turns(&mut ways, n_reads * READ_BYTES, |thread, carrier| {
        let mut buffer = DirectBuffer::default();
        (thread..n_reads).step_by(N_THREADS).enumerate().try_for_each(|(index, read)| {
            let bytes = source.read_passing((read * READ_BYTES) as u64, READ_BYTES, &mut buffer)?;
            carrier.carry(index, bytes)
        })
    })?;
    for way in &ways {
        println!("| {} | {}", way.name, way.cells(&ways[0]));
    }
    Ok(())
}

/// Has each way move so many bytes, round by round; `work` is one thread's part, by the thread's index.
fn in_turns<'a>(ways: &mut [Way<'a>], n_bytes: usize, work: impl Fn(usize, &mut Carrier<'a>) -> Result<()> + Sync) -> Result<()> {
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
