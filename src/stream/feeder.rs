//! Worker threads that bring pieces to slots beside the computation: each takes the next piece and the next free slot,
//! fetches from disk or takes what the host holds, and writes it into the slot's memory.

use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use futures_channel::oneshot;

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

/// Pieces under way, and the threads that carry them.
pub(super) struct Feeder<S: SlotMemory> {
    jobs: Option<SyncSender<Job<S>>>,
    free: FreeSlots<S>,
    workers: Vec<JoinHandle<()>>,
}

struct Job<S> {
    piece: usize,
    forward: usize,
    reply: oneshot::Sender<Result<S>>,
}

/// What a worker needs.
struct Worker<S: SlotMemory> {
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
    pub(super) fn start(store: &Arc<Store>, plan: &Arc<Plan>, trace: &Trace) -> Result<(Feeder<S>, FreeSlots<S>)> {
        let (free_sender, free) = channel();
        let n_jobs = plan.ring.map_or(1, |ring| ring.n_slots + 1);
        let (jobs_sender, jobs) = sync_channel(n_jobs);
        let (jobs, free) = (Arc::new(Mutex::new(jobs)), Arc::new(Mutex::new(free)));
        let mut workers = Vec::new();
        for index in 0..N_WORKERS {
            let worker = Worker {
                store: Arc::clone(store),
                plan: Arc::clone(plan),
                trace: trace.clone(),
                jobs: Arc::clone(&jobs),
                free: Arc::clone(&free),
                give_back: free_sender.clone(),
            };
            let thread = std::thread::Builder::new().name(format!("tierflow-feeder-{index}")).spawn(move || worker.run());
            workers.push(thread.map_err(|source| Error::io("start", "a thread that streams weights", source))?);
        }
        Ok((Feeder { jobs: Some(jobs_sender), free: free_sender.clone(), workers }, free_sender))
    }

    /// Queues a piece. The receiver yields its filled slot.
    ///
    /// # Errors
    /// [`Error::Io`] where the workers are gone.
    pub(super) fn begin(&self, piece: usize, forward: usize) -> Result<oneshot::Receiver<Result<S>>> {
        let (reply, receiver) = oneshot::channel();
        let job = Job { piece, forward, reply };
        match self.jobs.as_ref().map(|jobs| jobs.send(job)) {
            Some(Ok(())) => Ok(receiver),
            _ => Err(workers_gone()),
        }
    }
}

impl<S: SlotMemory> Drop for Feeder<S> {
    /// Ends the workers: one that waits for a job sees the channel closed, one that waits for a slot is told.
    fn drop(&mut self) {
        self.jobs = None;
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

/// What a forward says that begins where an earlier one stopped midway: the ring holds other pieces than it expects.
pub(super) fn stopped_midway() -> Error {
    Error::io("begin", "a forward", std::io::Error::other("an earlier one failed or was cut short; load the model again"))
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
        self.trace.add(Span { lane, piece: Some(job.piece), forward: job.forward, start_secs, end_secs, size_bytes });
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
