//! One device's ring as its executor sees it: uploads begin, and filled slots come back in that order. Worker threads bring
//! the pieces to slots beside the computation: each takes the next piece and the next free slot, fetches from disk or takes
//! what the host holds, and writes it into the slot's memory.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use futures_channel::oneshot;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::platform::DirectBuffer;
use crate::stream::{Lane, Span, Store, Trace};
use crate::units::Bytes;

/// Memory of a slot while the host may write to it.
pub(super) trait SlotMemory: Send + 'static {
    /// The memory itself, where plain writes to it are allowed.
    fn bytes_mut(&mut self) -> Option<&mut [u8]>;

    /// Writes at an offset; used where `bytes_mut` is `None`.
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()>;

    /// The host is done writing.
    fn finish(&mut self) -> Result<()>;
}

/// A slot's way back to the workers; `None` tells a worker to end.
pub(super) type FreeSlots<S> = std::sync::mpsc::Sender<Option<S>>;

/// Pieces under way to one device, and the threads that carry them.
pub(super) struct Feeder<S: SlotMemory> {
    device: Device,
    trace: Trace,
    /// Oldest first.
    under_way: VecDeque<UnderWay<S>>,
    /// Pieces that stream to the device in one forward, at least 1.
    n_streamed: usize,
    n_begun: usize,
    jobs: Option<SyncSender<Job<S>>>,
    free: FreeSlots<S>,
    workers: Vec<JoinHandle<()>>,
}

/// A piece on its way, and where its filled slot arrives.
struct UnderWay<S> {
    piece: usize,
    filled: oneshot::Receiver<Result<S>>,
}

struct Job<S> {
    piece: usize,
    forward: usize,
    reply: oneshot::Sender<Result<S>>,
}

/// What a worker needs.
struct Worker<S: SlotMemory> {
    device: Device,
    store: Arc<Store>,
    plan: Arc<Plan>,
    trace: Trace,
    jobs: Arc<Mutex<Receiver<Job<S>>>>,
    free: Arc<Mutex<Receiver<Option<S>>>>,
    give_back: FreeSlots<S>,
}

/// What is read from disk at once on its way to memory that can only be written: the host holds no more of it than this.
const FETCH_STEP_BYTES: usize = 4 << 20;

/// Two carry: one reads from disk while the other copies, and a disk sees two requests at a time.
const N_WORKERS: usize = 2;

impl<S: SlotMemory> Feeder<S> {
    /// Starts the workers. Slots are given to them through the returned sender, at first and whenever one is free again.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses a thread.
    pub(super) fn start(device: Device, store: &Arc<Store>, plan: &Arc<Plan>, trace: &Trace) -> Result<(Feeder<S>, FreeSlots<S>)> {
        let (free_sender, free) = channel();
        let n_jobs = plan.ring(device).map_or(1, |ring| ring.n_slots + 1);
        let (jobs_sender, jobs) = sync_channel(n_jobs);
        let (jobs, free) = (Arc::new(Mutex::new(jobs)), Arc::new(Mutex::new(free)));
        let mut workers = Vec::new();
        for index in 0..N_WORKERS {
            let worker = Worker {
                device,
                store: Arc::clone(store),
                plan: Arc::clone(plan),
                trace: trace.clone(),
                jobs: Arc::clone(&jobs),
                free: Arc::clone(&free),
                give_back: free_sender.clone(),
            };
            let thread = std::thread::Builder::new().name(format!("tierflow-{device}-{index}")).spawn(move || worker.run());
            workers.push(thread.map_err(|source| Error::io("start", "a thread that streams weights", source))?);
        }
        let feeder = Feeder {
            device,
            trace: trace.clone(),
            under_way: VecDeque::new(),
            n_streamed: plan.streamed_to(device).count().max(1),
            n_begun: 0,
            jobs: Some(jobs_sender),
            free: free_sender.clone(),
            workers,
        };
        Ok((feeder, free_sender))
    }

    /// Begins to bring a piece to the next free slot; does not wait.
    ///
    /// # Errors
    /// [`Error::Io`] where the workers are gone.
    pub(super) fn upload(&mut self, piece: usize) -> Result<()> {
        let (reply, filled) = oneshot::channel();
        let job = Job { piece, forward: self.n_begun / self.n_streamed, reply };
        match self.jobs.as_ref().map(|jobs| jobs.send(job)) {
            Some(Ok(())) => {
                self.under_way.push_back(UnderWay { piece, filled });
                self.n_begun += 1;
                Ok(())
            }
            _ => Err(workers_gone()),
        }
    }

    /// The slot that holds `piece`, the oldest under way, where it is there already.
    ///
    /// # Errors
    /// Those of filling the slot; [`Error::Io`] where another piece is due.
    pub(super) fn take(&mut self, piece: usize) -> Result<Option<S>> {
        match self.due(piece)?.filled.try_recv() {
            Ok(Some(slot)) => {
                self.under_way.pop_front();
                slot.map(Some)
            }
            // Where the workers are gone, waiting says so.
            _ => Ok(None),
        }
    }

    /// As [`Feeder::take`], waiting for it; the trace of forward `forward` gets the stall.
    ///
    /// # Errors
    /// As of [`Feeder::take`].
    pub(super) async fn wait_for(&mut self, piece: usize, forward: usize) -> Result<S> {
        let start_secs = self.trace.now();
        let slot = (&mut self.due(piece)?.filled).await.map_err(|_| workers_gone())?;
        self.under_way.pop_front();
        let (device, end_secs) = (self.device, self.trace.now());
        self.trace.add(Span { lane: Lane::Stall, device, piece: Some(piece), forward, start_secs, end_secs, size_bytes: Bytes::ZERO });
        slot
    }

    fn due(&mut self, piece: usize) -> Result<&mut UnderWay<S>> {
        self.under_way.front_mut().filter(|due| due.piece == piece).ok_or_else(|| {
            let fault = std::io::Error::other("another one is due");
            Error::io("compute with", format!("piece {piece} of the ring of {}", self.device), fault)
        })
    }
}

impl<S: SlotMemory> Drop for Feeder<S> {
    /// Ends the workers: one that waits for a job sees the channel closed, one that waits for a slot is told.
    fn drop(&mut self) {
        self.jobs = None;
        self.under_way.clear();
        for _ in 0..self.workers.len() {
            let _ = self.free.send(None);
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

pub(super) fn workers_gone() -> Error {
    Error::io("go on with", "the threads that stream weights", std::io::Error::other("they ended early"))
}

impl<S: SlotMemory> Worker<S> {
    fn run(self) {
        let mut fetched = DirectBuffer::default();
        loop {
            // A job and its slot are taken together, so that slots go to pieces in the order of their use.
            let (job, mut slot) = {
                let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                let Ok(job) = jobs.recv() else { return };
                let Ok(Some(slot)) = self.free.lock().unwrap_or_else(PoisonError::into_inner).recv() else { return };
                (job, slot)
            };
            let filled = self.fill(&job, &mut slot, &mut fetched);
            // The receiver is gone where the session ended meanwhile.
            let _ = match filled {
                Ok(()) => job.reply.send(Ok(slot)),
                Err(error) => {
                    // The slot is not lost: pieces behind this one may wait for it.
                    let _ = self.give_back.send(Some(slot));
                    job.reply.send(Err(error))
                }
            };
        }
    }

    fn fill(&self, job: &Job<S>, slot: &mut S, fetched: &mut DirectBuffer) -> Result<()> {
        let piece = &self.plan.pieces[job.piece];
        if let Some(bytes) = self.store.held(job.piece) {
            return self.span(Lane::Upload, job, piece.size_bytes, || write_all(slot, bytes));
        }
        let mapped: Option<Vec<&[u8]>> = piece.slices.iter().map(|slice| self.store.mapped(job.piece, slice)).collect();
        if let Some(parts) = mapped.filter(|parts| !parts.is_empty()) {
            return self.span(Lane::Upload, job, piece.size_bytes, || {
                for (slice, bytes) in piece.slices.iter().zip(parts) {
                    write_at(slot, slice.offset as usize, bytes)?;
                }
                slot.finish()
            });
        }
        self.fetch_in_steps(job, slot, fetched)
    }

    /// Disk to slot, a few MiB at a time.
    fn fetch_in_steps(&self, job: &Job<S>, slot: &mut S, fetched: &mut DirectBuffer) -> Result<()> {
        for slice in &self.plan.pieces[job.piece].slices {
            let len = slice.size_bytes as usize;
            for done in (0..len).step_by(FETCH_STEP_BYTES) {
                let step = done..len.min(done + FETCH_STEP_BYTES);
                let size_bytes = Bytes(step.len() as u64);
                let start_secs = self.trace.now();
                let bytes = self.store.read_passing(slice, step.start as u64, step.len(), fetched)?;
                self.add_span(Lane::Fetch, job, size_bytes, start_secs);
                self.span(Lane::Upload, job, size_bytes, || write_at(slot, slice.offset as usize + step.start, bytes))?;
            }
        }
        slot.finish()
    }

    fn span(&self, lane: Lane, job: &Job<S>, size_bytes: Bytes, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let start_secs = self.trace.now();
        work()?;
        self.add_span(lane, job, size_bytes, start_secs);
        Ok(())
    }

    fn add_span(&self, lane: Lane, job: &Job<S>, size_bytes: Bytes, start_secs: f64) {
        let end_secs = self.trace.now();
        self.trace.add(Span { lane, device: self.device, piece: Some(job.piece), forward: job.forward, start_secs, end_secs, size_bytes });
    }
}

fn write_all(slot: &mut impl SlotMemory, bytes: &[u8]) -> Result<()> {
    write_at(slot, 0, bytes)?;
    slot.finish()
}

fn write_at(slot: &mut impl SlotMemory, offset: usize, bytes: &[u8]) -> Result<()> {
    match slot.bytes_mut() {
        Some(memory) => memory[offset..offset + bytes.len()].copy_from_slice(bytes),
        None => slot.write(offset, bytes)?,
    }
    Ok(())
}
