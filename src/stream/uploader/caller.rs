//! Uploads without threads: the executor fills slots itself, whenever it waits anyway, while the device goes on with what was submitted
//! before.

use std::collections::VecDeque;

use super::filling::Filler;
use super::slots::{Reservation, Slots};
use super::{Job, SlotMemory, upload_workers_gone};
use crate::error::Result;
use crate::platform::DirectBuffer;

/// The uploads that wait for the executor to carry them out. A slot is filled only after the device has said that it is done with what
/// was in it, so that no more chunks are ever in flight than there are slots.
pub(super) struct Caller<S: SlotMemory> {
    filler: Filler,
    /// Oldest first.
    jobs: VecDeque<Job<S>>,
    slots: Slots<S>,
    /// The slot of the oldest job, where it was asked for.
    reservation: Option<Reservation<S>>,
    fetched: DirectBuffer,
}

impl<S: SlotMemory> Caller<S> {
    /// No job waits yet.
    pub(super) fn new(filler: &Filler, slots: &Slots<S>) -> Caller<S> {
        let (jobs, fetched) = (VecDeque::new(), DirectBuffer::default());
        Caller { filler: filler.clone(), jobs, slots: slots.clone(), reservation: None, fetched }
    }

    /// Adds a job, and runs those that can be run without waiting.
    pub(super) fn begin(&mut self, job: Job<S>) {
        self.jobs.push_back(job);
        while self.reserved().is_some_and(Reservation::is_free) {
            self.run_oldest();
        }
    }

    /// Runs the oldest job once a slot is free.
    ///
    /// # Errors
    /// [`crate::error::Error::Internal`] where there is no job, or no slot will ever be free.
    pub(super) async fn next(&mut self) -> Result<()> {
        self.reserved().ok_or_else(upload_workers_gone)?.wait().await?;
        self.run_oldest();
        Ok(())
    }

    /// The slot of the oldest job. It stays reserved where waiting for it is given up.
    fn reserved(&mut self) -> Option<&mut Reservation<S>> {
        let oldest = self.jobs.front()?;
        if self.reservation.is_none() {
            self.reservation = self.slots.reserve(oldest.chunk);
        }
        self.reservation.as_mut()
    }

    fn run_oldest(&mut self) {
        if let (Some(job), Some(reservation)) = (self.jobs.pop_front(), self.reservation.take()) {
            job.run(reservation, &self.filler, &mut self.fetched);
        }
    }
}
