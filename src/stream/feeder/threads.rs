//! Threads that carry pieces to slots beside the computation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::slots::{Claim, Slots};
use super::{FreeSlots, Job, SlotMemory, carriers_gone};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::platform::{self, DirectBuffer};

/// Two carry: one reads from disk while the other copies, and a disk sees two requests at a time.
const N_WORKERS: usize = 2;

/// Does a job in a thread: with the slot that it claims, what that thread read last, and the way back for a slot that is not filled.
pub(super) type Carry<S> = Arc<dyn Fn(Job<S>, Claim<S>, &mut DirectBuffer, &FreeSlots<S>) + Send + Sync>;

/// The threads' side of a feeder.
pub(super) struct Threads<S: SlotMemory> {
    jobs: Option<SyncSender<Job<S>>>,
    worker: Worker<S>,
    running: Vec<JoinHandle<()>>,
    /// While the threads are patient: whether they are to end, since others took over.
    are_relieved: Option<Arc<AtomicBool>>,
}

/// What a thread needs.
struct Worker<S: SlotMemory> {
    device: Device,
    carry: Carry<S>,
    jobs: Arc<Mutex<Receiver<Job<S>>>>,
    slots: Slots<S>,
    give_back: FreeSlots<S>,
}

impl<S: SlotMemory> Threads<S> {
    /// Starts the threads of a device, patient ones or not; `n_jobs` may wait for them.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses a thread.
    pub(super) fn start(device: Device, n_jobs: usize, are_patient: bool, carry: Carry<S>) -> Result<(Threads<S>, FreeSlots<S>)> {
        let slots = Slots::new();
        let given = slots.clone();
        let give_back = FreeSlots::new(move |slot| given.give(slot));
        let (jobs_sender, jobs) = sync_channel(n_jobs);
        let worker = Worker { device, carry, jobs: Arc::new(Mutex::new(jobs)), slots, give_back: give_back.clone() };
        let are_relieved = are_patient.then(Arc::default);
        let mut threads = Threads { jobs: Some(jobs_sender), worker, running: Vec::new(), are_relieved };
        threads.spawn()?;
        Ok((threads, give_back))
    }

    fn spawn(&mut self) -> Result<()> {
        for _ in 0..N_WORKERS {
            let name = format!("tierflow-{}-{}", self.worker.device, self.running.len());
            let (worker, are_relieved) = (self.worker.clone(), self.are_relieved.clone());
            let run = move || {
                if are_relieved.is_some() {
                    platform::yield_to_others();
                }
                worker.run(|| are_relieved.as_ref().is_some_and(|are_relieved| are_relieved.load(Ordering::Relaxed)));
            };
            let thread = std::thread::Builder::new().name(name).spawn(run);
            self.running.push(thread.map_err(|source| Error::io("start", "a thread that streams weights", source))?);
        }
        Ok(())
    }

    /// Patient threads came too late: others carry on, which are not. The first ones end with the piece that they are at.
    ///
    /// # Errors
    /// As of [`Threads::start`].
    pub(super) fn hurry(&mut self) -> Result<()> {
        let Some(are_relieved) = self.are_relieved.take() else { return Ok(()) };
        tracing::debug!("{}: weights came too late, so that they are no longer carried at the lowest priority", self.worker.device);
        are_relieved.store(true, Ordering::Relaxed);
        self.spawn()
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
        self.worker.slots.give(None);
        for thread in self.running.drain(..) {
            let _ = thread.join();
        }
    }
}

impl<S: SlotMemory> Worker<S> {
    /// Carries until there are no more jobs or slots, or until it is relieved.
    fn run(self, is_relieved: impl Fn() -> bool) {
        let mut fetched = DirectBuffer::default();
        while !is_relieved() {
            // A job and the claim to its slot are taken together, so that slots go to pieces in the order of their use.
            let (job, claim) = {
                let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                let Ok(job) = jobs.recv() else { return };
                let Some(claim) = self.slots.claim() else { return };
                (job, claim)
            };
            (self.carry)(job, claim, &mut fetched, &self.give_back);
        }
    }
}

impl<S: SlotMemory> Clone for Worker<S> {
    fn clone(&self) -> Worker<S> {
        let Worker { device, carry, jobs, slots, give_back } = self;
        Worker { device: *device, carry: carry.clone(), jobs: Arc::clone(jobs), slots: slots.clone(), give_back: give_back.clone() }
    }
}

#[cfg(test)]
mod tests {
    use futures_channel::oneshot;

    use super::*;

    /// A slot that holds the name of the thread that filled it.
    struct Signed(String);

    impl SlotMemory for Signed {
        fn memory(&mut self) -> Option<&mut [u8]> {
            None
        }

        fn write(&mut self, _offset: usize, _bytes: &[u8]) -> Result<()> {
            Ok(())
        }

        fn finish(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn those_who_relieve_patient_threads_carry_all_that_comes_after() {
        let sign: Carry<Signed> = Arc::new(|job, claim, _, _| {
            let Some(mut slot) = claim.into_slot() else { return };
            slot.0 = std::thread::current().name().unwrap_or_default().to_owned();
            drop(job.reply.send(Ok(slot)));
        });
        let (mut threads, free) = Threads::start(Device::Gpu(0), 4, true, sign).unwrap();
        free.give(Some(Signed(String::new())));
        let carried_by = |threads: &Threads<Signed>| {
            let (reply, filled) = oneshot::channel();
            threads.begin(Job { piece: 0, forward: 0, reply }).unwrap();
            let Signed(name) = pollster::block_on(filled).unwrap().unwrap();
            free.give(Some(Signed(String::new())));
            name
        };
        let names: Vec<String> = (0..4).map(|_| carried_by(&threads)).collect();
        assert!(names.iter().all(|name| ["tierflow-gpu:0-0", "tierflow-gpu:0-1"].contains(&name.as_str())), "{names:?}");
        threads.hurry().unwrap();
        threads.hurry().unwrap();
        // Each of the first two may wait for a job already.
        let names: Vec<String> = (0..N_WORKERS + 4).map(|_| carried_by(&threads)).collect();
        let by_the_first = names.iter().filter(|name| name.ends_with("-0") || name.ends_with("-1")).count();
        assert!(by_the_first <= N_WORKERS && threads.running.len() == 2 * N_WORKERS, "{names:?}");
    }

    #[test]
    fn threads_that_wait_for_a_slot_or_a_job_end_with_the_feeder() {
        let wait: Carry<Signed> = Arc::new(|_, claim, _, _| assert!(claim.into_slot().is_none()));
        let (threads, _free) = Threads::start(Device::Gpu(0), 4, false, wait).unwrap();
        let (reply, _filled) = oneshot::channel();
        threads.begin(Job { piece: 0, forward: 0, reply }).unwrap();
        drop(threads);
    }
}
