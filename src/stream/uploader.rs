//! One device's ring as its executor sees it: uploads begin, and filled slots come back in that order. Each chunk takes the next
//! free slot; threads carry it there beside the computation, or the executor itself does where it may not start any.

mod caller;
mod filling;
mod slots;
mod threads;

use std::collections::VecDeque;
use std::sync::Arc;

use futures_channel::oneshot;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::platform::{self, DirectBuffer};
use crate::stream::{Lane, Span, Store, Trace};
use crate::units::Bytes;
use caller::Caller;
use filling::Filler;
use slots::Reservation;
use threads::{Carry, Threads};

/// Memory of a slot while the host may write to it.
pub(super) trait SlotMemory: Send + 'static {
    /// The memory itself, where a disk may write to it; it begins at a multiple of [`crate::plan::FILE_ALIGNMENT`].
    fn memory(&mut self) -> Option<&mut [u8]>;

    /// Writes at an offset.
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()>;

    /// The host is done writing.
    fn finish(&mut self) -> Result<()>;
}

/// Who brings chunks to slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UploadWorkers {
    /// Threads of their own.
    Threads,
    /// Threads that leave the cores to others first: for an adapter that computes on the same cores. With slots filled ahead, what
    /// they do fits into the gaps between its dispatches. Where others leave them nothing, usual threads relieve them.
    PatientThreads,
    /// The executor, while it waits.
    Caller,
}

impl UploadWorkers {
    /// Threads, where the system has them.
    pub(super) const USUAL: UploadWorkers = if platform::MAY_BLOCK { UploadWorkers::Threads } else { UploadWorkers::Caller };
}

/// Patient threads that keep their executor waiting for so long are relieved.
const STARVED_SECS: f64 = 0.1;

/// A slot's way back to the upload workers; `None` tells them to end.
pub(super) struct FreeSlots<S>(Arc<dyn Fn(Option<S>) + Send + Sync>);

impl<S> FreeSlots<S> {
    fn new(give: impl Fn(Option<S>) + Send + Sync + 'static) -> FreeSlots<S> {
        FreeSlots(Arc::new(give))
    }

    /// Gives a slot back.
    pub(super) fn give(&self, slot: Option<S>) {
        (self.0)(slot);
    }
}

impl<S> Clone for FreeSlots<S> {
    fn clone(&self) -> FreeSlots<S> {
        FreeSlots(Arc::clone(&self.0))
    }
}

/// Chunks under way to one device, and those who carry them.
pub(super) struct Uploader<S: SlotMemory> {
    device: Device,
    trace: Trace,
    /// Oldest first.
    under_way: VecDeque<UnderWay<S>>,
    /// Chunks that stream to the device in one forward, at least 1.
    n_streamed: usize,
    n_begun: usize,
    upload_worker: UploadWorker<S>,
}

enum UploadWorker<S: SlotMemory> {
    Threads(Threads<S>),
    Caller(Caller<S>),
}

/// A chunk on its way, and where its filled slot arrives.
struct UnderWay<S> {
    chunk: usize,
    filled: oneshot::Receiver<Result<S>>,
}

struct Job<S> {
    chunk: usize,
    forward: usize,
    reply: oneshot::Sender<Result<S>>,
}

impl<S: SlotMemory> Job<S> {
    /// Fills the claimed slot and sends it to who waits for the chunk. Returns a slot that could not be filled: it is free again,
    /// for chunks behind this one may wait for it.
    fn carry_out(self, mut reservation: Reservation<S>, filler: &Filler, fetched: &mut DirectBuffer) -> Option<S> {
        let filled = filler.fill(&self, &mut reservation, fetched);
        // The receiver is gone where the session ended meanwhile.
        match filled {
            Ok(()) => {
                let _ = self.reply.send(reservation.into_slot().ok_or_else(upload_workers_gone));
                None
            }
            Err(error) => {
                let _ = self.reply.send(Err(error));
                reservation.into_slot()
            }
        }
    }
}

impl<S: SlotMemory> Uploader<S> {
    /// Starts the upload workers. Slots are given to them through what is returned, at first and whenever one is free again.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses a thread.
    pub(super) fn start(
        device: Device,
        store: &Arc<Store>,
        plan: &Arc<Plan>,
        trace: &Trace,
        upload_workers: UploadWorkers,
    ) -> Result<(Uploader<S>, FreeSlots<S>)> {
        let filler = Filler { device, store: Arc::clone(store), plan: Arc::clone(plan), trace: trace.clone() };
        let (upload_worker, free) = match upload_workers {
            UploadWorkers::Threads | UploadWorkers::PatientThreads => {
                let n_jobs = plan.ring(device).map_or(1, |ring| ring.n_slots + 1);
                let carry: Carry<S> = Box::new(move |job, reservation, fetched| job.carry_out(reservation, &filler, fetched));
                let (threads, free) = Threads::start(device, n_jobs, upload_workers == UploadWorkers::PatientThreads, carry)?;
                (UploadWorker::Threads(threads), free)
            }
            UploadWorkers::Caller => {
                let (caller, free) = Caller::new(&filler);
                (UploadWorker::Caller(caller), free)
            }
        };
        let n_streamed = plan.streamed_to(device).count().max(1);
        Ok((Uploader { device, trace: trace.clone(), under_way: VecDeque::new(), n_streamed, n_begun: 0, upload_worker }, free))
    }

    /// Begins to bring a chunk to the next free slot; does not wait.
    ///
    /// # Errors
    /// [`Error::Io`] where the upload workers are gone.
    pub(super) fn upload(&mut self, chunk: usize) -> Result<()> {
        let (reply, filled) = oneshot::channel();
        let job = Job { chunk, forward: self.n_begun / self.n_streamed, reply };
        match &mut self.upload_worker {
            UploadWorker::Threads(threads) => threads.begin(job)?,
            UploadWorker::Caller(caller) => caller.begin(job),
        }
        self.under_way.push_back(UnderWay { chunk, filled });
        self.n_begun += 1;
        Ok(())
    }

    /// The slot that holds `chunk`, the oldest under way, where it is there already.
    ///
    /// # Errors
    /// Those of filling the slot; [`Error::Internal`] where another chunk is due.
    pub(super) fn take(&mut self, chunk: usize) -> Result<Option<S>> {
        match self.due(chunk)?.filled.try_recv() {
            Ok(Some(slot)) => {
                self.under_way.pop_front();
                slot.map(Some)
            }
            // Where the upload workers are gone, waiting says so.
            _ => Ok(None),
        }
    }

    /// As [`Uploader::take`], waiting for it. Where threads carry, the trace of forward `forward` gets the stall; a caller that
    /// carries waits for the device as well, so its stalls are the gaps between computations.
    ///
    /// # Errors
    /// As of [`Uploader::take`].
    pub(super) async fn wait_for(&mut self, chunk: usize, forward: usize) -> Result<S> {
        while let UploadWorker::Caller(caller) = &mut self.upload_worker {
            caller.next().await?;
            if let Some(slot) = self.take(chunk)? {
                return Ok(slot);
            }
        }
        let start_secs = self.trace.now();
        let slot = (&mut self.due(chunk)?.filled).await.map_err(|_| upload_workers_gone())?;
        self.under_way.pop_front();
        let (device, end_secs) = (self.device, self.trace.now());
        self.trace.add(Span { lane: Lane::Stall, device, chunk: Some(chunk), forward, start_secs, end_secs, size_bytes: Bytes::ZERO });
        if end_secs - start_secs > STARVED_SECS
            && let UploadWorker::Threads(threads) = &mut self.upload_worker
        {
            threads.hurry();
        }
        slot
    }

    /// Hands every slot under way to `give_back` as it is filled, oldest first, so that none is under way any more; what could not be
    /// filled is free already. What begins next belongs to forward `forward`.
    ///
    /// # Errors
    /// [`Error::Io`] where the upload workers are gone.
    pub(super) async fn drain(&mut self, forward: usize, mut give_back: impl FnMut(S)) -> Result<()> {
        while let Some(oldest) = self.under_way.front_mut() {
            let filled = match &mut self.upload_worker {
                UploadWorker::Threads(_) => (&mut oldest.filled).await.map_err(|_| upload_workers_gone())?,
                UploadWorker::Caller(caller) => loop {
                    match oldest.filled.try_recv() {
                        Ok(Some(filled)) => break filled,
                        Ok(None) => caller.next().await?,
                        Err(_) => return Err(upload_workers_gone()),
                    }
                },
            };
            self.under_way.pop_front();
            if let Ok(slot) = filled {
                give_back(slot);
            }
        }
        self.n_begun = forward * self.n_streamed;
        Ok(())
    }

    fn due(&mut self, chunk: usize) -> Result<&mut UnderWay<S>> {
        self.under_way
            .front_mut()
            .filter(|due| due.chunk == chunk)
            .ok_or_else(|| Error::internal(format!("another chunk than {chunk} is due from the ring of {}", self.device)))
    }
}

pub(super) fn upload_workers_gone() -> Error {
    Error::internal("those who stream weights ended early")
}
