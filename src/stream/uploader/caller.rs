//! Uploads without threads: the executor fills slots itself, whenever it waits anyway, while the device goes on with what was submitted
//! before.

use std::collections::VecDeque;

use futures_channel::mpsc::{UnboundedReceiver, unbounded};

use super::filling::Filler;
use super::slots::Reservation;
use super::{FreeSlots, Job, SlotMemory, upload_workers_gone};
use crate::error::Result;
use crate::platform::DirectBuffer;

/// The uploads that wait for the executor to carry them out. A slot is filled only after the device has said that it is done with what
/// was in it, so that no more chunks are ever in flight than there are slots.
pub(super) struct Caller<S: SlotMemory> {
    filler: Filler,
    /// Oldest first.
    jobs: VecDeque<Job<S>>,
    free: UnboundedReceiver<Option<S>>,
    give_back: FreeSlots<S>,
    fetched: DirectBuffer,
}

impl<S: SlotMemory> Caller<S> {
    /// No job waits and no slot is free yet.
    pub(super) fn new(filler: &Filler) -> (Caller<S>, FreeSlots<S>) {
        let (sender, free) = unbounded();
        let give_back = FreeSlots::new(move |slot| drop(sender.unbounded_send(slot)));
        let (jobs, fetched) = (VecDeque::new(), DirectBuffer::default());
        (Caller { filler: filler.clone(), jobs, free, give_back: give_back.clone(), fetched }, give_back)
    }

    /// Adds a job, and runs those that can be run without waiting.
    pub(super) fn begin(&mut self, job: Job<S>) {
        self.jobs.push_back(job);
        while !self.jobs.is_empty()
            && let Ok(Some(slot)) = self.free.try_recv()
        {
            self.run_oldest(slot);
        }
    }

    /// Runs the oldest job once a slot is free.
    ///
    /// # Errors
    /// [`crate::error::Error::Internal`] where there is no job, or no slot will ever be free.
    pub(super) async fn next(&mut self) -> Result<()> {
        match self.free.recv().await {
            Ok(Some(slot)) if !self.jobs.is_empty() => {
                self.run_oldest(slot);
                Ok(())
            }
            _ => Err(upload_workers_gone()),
        }
    }

    fn run_oldest(&mut self, slot: S) {
        if let Some(job) = self.jobs.pop_front() {
            let unfilled = job.run(Reservation::Free(slot), &self.filler, &mut self.fetched);
            if unfilled.is_some() {
                self.give_back.give(unfilled);
            }
        }
    }
}
