//! Chunks carried by whoever computes with them, whenever the computation waits anyway: no thread is needed, and the device
//! goes on with what was submitted before.

use std::collections::VecDeque;

use futures_channel::mpsc::{UnboundedReceiver, unbounded};

use super::filling::Filler;
use super::slots::Reservation;
use super::{FreeSlots, Job, SlotMemory, upload_workers_gone};
use crate::error::Result;
use crate::platform::DirectBuffer;

/// The caller's side of an uploader: it fills a slot only after the device has said that it is done with what the slot held, so
/// no more chunks are ever under way than there are slots.
pub(super) struct Caller<S: SlotMemory> {
    filler: Filler,
    /// Oldest first.
    jobs: VecDeque<Job<S>>,
    free: UnboundedReceiver<Option<S>>,
    give_back: FreeSlots<S>,
    fetched: DirectBuffer,
}

impl<S: SlotMemory> Caller<S> {
    /// Nobody to start.
    pub(super) fn new(filler: &Filler) -> (Caller<S>, FreeSlots<S>) {
        let (sender, free) = unbounded();
        let give_back = FreeSlots::new(move |slot| drop(sender.unbounded_send(slot)));
        let (jobs, fetched) = (VecDeque::new(), DirectBuffer::default());
        (Caller { filler: filler.clone(), jobs, free, give_back: give_back.clone(), fetched }, give_back)
    }

    /// Notes a job, and does what can be done without waiting.
    pub(super) fn begin(&mut self, job: Job<S>) {
        self.jobs.push_back(job);
        while !self.jobs.is_empty()
            && let Ok(Some(slot)) = self.free.try_recv()
        {
            self.carry(slot);
        }
    }

    /// Does the oldest job once a slot is free.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] where there is no job, or no slot will ever be free.
    pub(super) async fn next(&mut self) -> Result<()> {
        match self.free.recv().await {
            Ok(Some(slot)) if !self.jobs.is_empty() => {
                self.carry(slot);
                Ok(())
            }
            _ => Err(upload_workers_gone()),
        }
    }

    fn carry(&mut self, slot: S) {
        if let Some(job) = self.jobs.pop_front() {
            let unfilled = job.carry_out(Reservation::Free(slot), &self.filler, &mut self.fetched);
            if unfilled.is_some() {
                self.give_back.give(unfilled);
            }
        }
    }
}
