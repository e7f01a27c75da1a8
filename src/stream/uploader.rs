//! The uploads to one device. Its executor begins them, and gets the filled slots back in the same order. Each chunk takes the next free
//! slot. Upload workers fill it while the device computes: threads, or the executor itself where it may not start any.

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
pub(super) use slots::Slots;
use threads::{RunJob, Threads};

/// The memory of a slot, while the host may write to it.
pub(super) trait SlotMemory: Send + 'static {
    /// Which slot of the ring it is.
    fn index(&self) -> usize;

    /// The memory itself, where reads from disk may go straight into it; it begins at a multiple of [`crate::plan::FILE_ALIGNMENT`].
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
    /// Threads of low priority, for an adapter that computes on the same cores: with slots filled ahead, their work fits into the gaps
    /// between its dispatches. Where those are too few, threads of usual priority replace them.
    LowPriorityThreads,
    /// The executor, while it waits.
    Caller,
}

impl UploadWorkers {
    /// Threads, where the system has them.
    pub(super) const USUAL: UploadWorkers = if platform::MAY_BLOCK { UploadWorkers::Threads } else { UploadWorkers::Caller };
}

/// Threads of low priority that keep their executor waiting for so long are replaced.
const STARVED_SECS: f64 = 0.1;

/// The uploads in flight to one device, and the workers.
pub(super) struct Uploader<S: SlotMemory> {
    device: Device,
    trace: Trace,
    /// Oldest first.
    in_flight: VecDeque<InFlight<S>>,
    /// Chunks that stream to the device in one forward, at least 1.
    n_streamed: usize,
    n_begun: usize,
    workers: Workers<S>,
}

/// The upload workers that were started.
enum Workers<S: SlotMemory> {
    Threads(Threads<S>),
    Caller(Caller<S>),
}

/// A chunk on its way, and where its filled slot arrives.
struct InFlight<S> {
    chunk: usize,
    filled: oneshot::Receiver<Result<S>>,
}

struct Job<S> {
    chunk: usize,
    forward: usize,
    reply: oneshot::Sender<Result<S>>,
}

impl<S: SlotMemory> Job<S> {
    /// Fills the reserved slot and sends it to who waits for the chunk. A slot that could not be filled is free again.
    fn run(self, mut reservation: Reservation<S>, filler: &Filler, fetched: &mut DirectBuffer) {
        let filled = filler.fill(&self, &mut reservation, fetched).and_then(|()| reservation.filled());
        // The receiver is gone where the session ended meanwhile.
        let _ = self.reply.send(filled);
    }
}

impl<S: SlotMemory> Uploader<S> {
    /// Starts the upload workers of a ring, and returns its slots, none of which is free until it is given.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses a thread.
    pub(super) fn start(
        device: Device,
        store: &Arc<Store>,
        plan: &Arc<Plan>,
        trace: &Trace,
        upload_workers: UploadWorkers,
    ) -> Result<(Uploader<S>, Slots<S>)> {
        let n_slots = plan.ring(device).map_or(0, |ring| ring.n_slots);
        let slots = Slots::new(n_slots);
        let filler = Filler { device, store: Arc::clone(store), plan: Arc::clone(plan), trace: trace.clone() };
        let workers = match upload_workers {
            UploadWorkers::Threads | UploadWorkers::LowPriorityThreads => {
                let run: RunJob<S> = Box::new(move |job, reservation, fetched| job.run(reservation, &filler, fetched));
                let at_low_priority = upload_workers == UploadWorkers::LowPriorityThreads;
                Workers::Threads(Threads::start(device, &slots, n_slots + 1, at_low_priority, run)?)
            }
            UploadWorkers::Caller => Workers::Caller(Caller::new(&filler, &slots)),
        };
        let n_streamed = plan.streamed_to(device).count().max(1);
        Ok((Uploader { device, trace: trace.clone(), in_flight: VecDeque::new(), n_streamed, n_begun: 0, workers }, slots))
    }

    /// Begins to bring a chunk to the next free slot; does not wait.
    ///
    /// # Errors
    /// [`Error::Internal`] where the upload workers are gone.
    pub(super) fn upload(&mut self, chunk: usize) -> Result<()> {
        let (reply, filled) = oneshot::channel();
        let job = Job { chunk, forward: self.n_begun / self.n_streamed, reply };
        match &mut self.workers {
            Workers::Threads(threads) => threads.begin(job)?,
            Workers::Caller(caller) => caller.begin(job),
        }
        self.in_flight.push_back(InFlight { chunk, filled });
        self.n_begun += 1;
        Ok(())
    }

    /// The slot that holds `chunk`, the oldest in flight, where it is there already.
    ///
    /// # Errors
    /// Those of filling the slot; [`Error::Internal`] where another chunk is next.
    pub(super) fn take(&mut self, chunk: usize) -> Result<Option<S>> {
        match self.due(chunk)?.filled.try_recv() {
            Ok(Some(slot)) => {
                self.in_flight.pop_front();
                slot.map(Some)
            }
            // Where the upload workers are gone, `wait_for` says so.
            _ => Ok(None),
        }
    }

    /// As [`Uploader::take`], waiting for it. With threads, the stall goes to the trace of forward `forward`; a caller that
    /// uploads waits for the device as well, so its stalls are the gaps between computations.
    ///
    /// # Errors
    /// As of [`Uploader::take`].
    pub(super) async fn wait_for(&mut self, chunk: usize, forward: usize) -> Result<S> {
        while let Workers::Caller(caller) = &mut self.workers {
            caller.next().await?;
            if let Some(slot) = self.take(chunk)? {
                return Ok(slot);
            }
        }
        let start_secs = self.trace.now();
        let slot = (&mut self.due(chunk)?.filled).await.map_err(|_| upload_workers_gone())?;
        self.in_flight.pop_front();
        let (device, end_secs) = (self.device, self.trace.now());
        self.trace.add(Span { lane: Lane::Stall, device, chunk: Some(chunk), forward, start_secs, end_secs, size_bytes: Bytes::ZERO });
        if end_secs - start_secs > STARVED_SECS
            && let Workers::Threads(threads) = &mut self.workers
        {
            threads.replace();
        }
        slot
    }

    /// Hands every slot in flight to `give_back` as it is filled, oldest first, until none is left; a slot that could not be filled is
    /// free already. The next upload belongs to forward `forward`.
    ///
    /// # Errors
    /// [`Error::Internal`] where the upload workers are gone.
    pub(super) async fn drain(&mut self, forward: usize, mut give_back: impl FnMut(S)) -> Result<()> {
        while let Some(oldest) = self.in_flight.front_mut() {
            let filled = match &mut self.workers {
                Workers::Threads(_) => (&mut oldest.filled).await.map_err(|_| upload_workers_gone())?,
                Workers::Caller(caller) => loop {
                    match oldest.filled.try_recv() {
                        Ok(Some(filled)) => break filled,
                        Ok(None) => caller.next().await?,
                        Err(_) => return Err(upload_workers_gone()),
                    }
                },
            };
            self.in_flight.pop_front();
            if let Ok(slot) = filled {
                give_back(slot);
            }
        }
        self.n_begun = forward * self.n_streamed;
        Ok(())
    }

    fn due(&mut self, chunk: usize) -> Result<&mut InFlight<S>> {
        self.in_flight
            .front_mut()
            .filter(|due| due.chunk == chunk)
            .ok_or_else(|| Error::internal(format!("chunk {chunk} is not the next one in the ring of {}", self.device)))
    }
}

pub(super) fn upload_workers_gone() -> Error {
    Error::internal("the upload workers ended early")
}
