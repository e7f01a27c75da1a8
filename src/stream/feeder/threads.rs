//! Threads that carry pieces to slots beside the computation.

use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::filling::Filler;
use super::{FreeSlots, Job, SlotMemory, carriers_gone};
use crate::error::{Error, Result};
use crate::platform::{self, DirectBuffer};

/// Two carry: one reads from disk while the other copies, and a disk sees two requests at a time.
const N_WORKERS: usize = 2;

/// The threads' side of a feeder.
pub(super) struct Threads<S: SlotMemory> {
    jobs: Option<SyncSender<Job<S>>>,
    free: FreeSlots<S>,
    workers: Vec<JoinHandle<()>>,
}

/// What a thread needs.
struct Worker<S: SlotMemory> {
    filler: Filler,
    jobs: Arc<Mutex<Receiver<Job<S>>>>,
    free: Arc<Mutex<Receiver<Option<S>>>>,
    give_back: FreeSlots<S>,
}

impl<S: SlotMemory> Threads<S> {
    /// Starts the threads, patient ones or not; `n_jobs` may wait for them.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses a thread.
    pub(super) fn start(filler: &Filler, n_jobs: usize, are_patient: bool) -> Result<(Threads<S>, FreeSlots<S>)> {
        let (free_sender, free) = channel();
        let give_back = FreeSlots::new(move |slot| drop(free_sender.send(slot)));
        let (jobs_sender, jobs) = sync_channel(n_jobs);
        let (jobs, free) = (Arc::new(Mutex::new(jobs)), Arc::new(Mutex::new(free)));
        let mut workers = Vec::new();
        for index in 0..N_WORKERS {
            let (filler, jobs, free) = (filler.clone(), Arc::clone(&jobs), Arc::clone(&free));
            let name = format!("tierflow-{}-{index}", filler.device);
            let worker = Worker { filler, jobs, free, give_back: give_back.clone() };
            let run = move || {
                if are_patient {
                    platform::yield_to_others();
                }
                worker.run();
            };
            let thread = std::thread::Builder::new().name(name).spawn(run);
            workers.push(thread.map_err(|source| Error::io("start", "a thread that streams weights", source))?);
        }
        Ok((Threads { jobs: Some(jobs_sender), free: give_back.clone(), workers }, give_back))
    }

    /// Hands a job over.
    ///
    /// # Errors
    /// [`Error::Io`] where the threads are gone.
    pub(super) fn begin(&self, job: Job<S>) -> Result<()> {
        match self.jobs.as_ref().map(|jobs| jobs.send(job)) {
            Some(Ok(())) => Ok(()),
            _ => Err(carriers_gone()),
        }
    }
}

impl<S: SlotMemory> Drop for Threads<S> {
    /// Ends the threads: one that waits for a job sees the channel closed, one that waits for a slot is told.
    fn drop(&mut self) {
        self.jobs = None;
        for _ in 0..self.workers.len() {
            self.free.give(None);
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl<S: SlotMemory> Worker<S> {
    fn run(self) {
        let mut fetched = DirectBuffer::default();
        loop {
            // A job and its slot are taken together, so that slots go to pieces in the order of their use.
            let (job, slot) = {
                let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                let Ok(job) = jobs.recv() else { return };
                let Ok(Some(slot)) = self.free.lock().unwrap_or_else(PoisonError::into_inner).recv() else { return };
                (job, slot)
            };
            job.carry_out(slot, &self.filler, &mut fetched, &self.give_back);
        }
    }
}
