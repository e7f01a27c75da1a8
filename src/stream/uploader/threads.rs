//! Threads that carry chunks to slots beside the computation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::slots::{Reservation, Slots};
use super::{FreeSlots, Job, SlotMemory, upload_workers_gone};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::platform::{self, DirectBuffer};

/// Two carry: one reads from disk while the other copies, and a disk sees two requests at a time.
const N_WORKERS: usize = 2;

/// Does a job in a thread, with the slot that it reserved and what that thread read last; returns a slot that is not filled.
pub(super) type Carry<S> = Box<dyn Fn(Job<S>, Reservation<S>, &mut DirectBuffer) -> Option<S> + Send + Sync>;

/// The threads' side of an uploader.
pub(super) struct Threads<S: SlotMemory> {
    device: Device,
    jobs: Option<SyncSender<Job<S>>>,
    slots: Slots<S>,
    running: Vec<JoinHandle<()>>,
    /// While the threads are patient: what others need to take over.
    relief: Option<Relief<S>>,
}

struct Relief<S: SlotMemory> {
    work: Arc<Work<S>>,
    /// Tells the patient threads to end.
    has_come: Arc<AtomicBool>,
}

/// What all threads share.
struct Work<S: SlotMemory> {
    carry: Carry<S>,
    jobs: Mutex<Receiver<Job<S>>>,
    slots: Slots<S>,
}

impl<S: SlotMemory> Threads<S> {
    /// Starts the threads of a device, patient ones or not; `n_jobs` may wait for them.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses a thread.
    pub(super) fn start(device: Device, n_jobs: usize, are_patient: bool, carry: Carry<S>) -> Result<(Threads<S>, FreeSlots<S>)> {
        let slots = Slots::new();
        let given = slots.clone();
        let free = FreeSlots::new(move |slot| given.give(slot));
        let (jobs_sender, jobs) = sync_channel(n_jobs);
        let work = Arc::new(Work { carry, jobs: Mutex::new(jobs), slots: slots.clone() });
        let relief = are_patient.then(|| Relief { work: Arc::clone(&work), has_come: Arc::default() });
        let has_come = relief.as_ref().map(|relief| Arc::clone(&relief.has_come));
        let mut threads = Threads { device, jobs: Some(jobs_sender), slots, running: Vec::new(), relief };
        threads.spawn(&work, has_come.as_ref())?;
        Ok((threads, free))
    }

    /// Starts threads that are patient where they are reported when their relief has come.
    fn spawn(&mut self, work: &Arc<Work<S>>, relief_has_come: Option<&Arc<AtomicBool>>) -> Result<()> {
        for _ in 0..N_WORKERS {
            let name = format!("tierflow-{}-{}", self.device, self.running.len());
            let (work, relief_has_come) = (Arc::clone(work), relief_has_come.cloned());
            let run = move || {
                if relief_has_come.is_some() {
                    platform::yield_to_others();
                }
                work.run(relief_has_come.as_deref());
            };
            let thread = std::thread::Builder::new().name(name).spawn(run);
            self.running.push(thread.map_err(|source| Error::io("start", "a thread that streams weights", source))?);
        }
        Ok(())
    }

    /// Patient threads came too late: others carry on, which are not. The first ones end with the chunk that they are at, or stay
    /// where the system refuses a thread.
    pub(super) fn hurry(&mut self) {
        let Some(Relief { work, has_come }) = self.relief.take() else { return };
        match self.spawn(&work, None) {
            Ok(()) => {
                has_come.store(true, Ordering::Relaxed);
                tracing::debug!("{}: weights came too late, so that they are no longer carried at the lowest priority", self.device);
            }
            Err(error) => tracing::debug!("{}: weights come too late, but {error}", self.device),
        }
    }

    /// Hands a job over.
    ///
    /// # Errors
    /// [`Error::Io`] where the threads are gone.
    pub(super) fn begin(&self, job: Job<S>) -> Result<()> {
        match self.jobs.as_ref().map(|jobs| jobs.send(job)) {
            Some(Ok(())) => Ok(()),
            _ => Err(upload_workers_gone()),
        }
    }
}

impl<S: SlotMemory> Drop for Threads<S> {
    /// Ends the threads: one that waits for a job sees the channel closed, one that waits for a slot learns that.
    fn drop(&mut self) {
        self.jobs = None;
        self.slots.give(None);
        for thread in self.running.drain(..) {
            let _ = thread.join();
        }
    }
}

impl<S: SlotMemory> Work<S> {
    /// Carries until there are no more jobs or slots, or until the relief has come.
    fn run(&self, relief_has_come: Option<&AtomicBool>) {
        let mut fetched = DirectBuffer::default();
        while !relief_has_come.is_some_and(|has_come| has_come.load(Ordering::Relaxed)) {
            // A job and the reservation to its slot are taken together, so that slots go to chunks in the order of their use.
            let (job, reservation) = {
                let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                let Ok(job) = jobs.recv() else { return };
                let Some(reservation) = self.slots.reserve() else { return };
                (job, reservation)
            };
            let unfilled = (self.carry)(job, reservation, &mut fetched);
            if unfilled.is_some() {
                self.slots.give(unfilled);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

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
        let sign: Carry<Signed> = Box::new(|job, reservation, _| {
            let mut slot = reservation.into_slot()?;
            slot.0 = std::thread::current().name().unwrap_or_default().to_owned();
            drop(job.reply.send(Ok(slot)));
            None
        });
        let (mut threads, free) = Threads::start(Device::Gpu(0), 4, true, sign).unwrap();
        free.give(Some(Signed(String::new())));
        let carried_by = |threads: &Threads<Signed>| {
            let (reply, filled) = oneshot::channel();
            threads.begin(Job { chunk: 0, forward: 0, reply }).unwrap();
            let Signed(name) = pollster::block_on(filled).unwrap().unwrap();
            free.give(Some(Signed(String::new())));
            name
        };
        let names: Vec<String> = (0..4).map(|_| carried_by(&threads)).collect();
        assert!(names.iter().all(|name| ["tierflow-gpu:0-0", "tierflow-gpu:0-1"].contains(&name.as_str())), "{names:?}");
        threads.hurry();
        threads.hurry();
        // Each of the first two may wait for a job already.
        let names: Vec<String> = (0..N_WORKERS + 4).map(|_| carried_by(&threads)).collect();
        let by_the_first = names.iter().filter(|name| name.ends_with("-0") || name.ends_with("-1")).count();
        assert!(by_the_first <= N_WORKERS && threads.running.len() == 2 * N_WORKERS, "{names:?}");
    }

    #[test]
    fn threads_that_wait_for_a_slot_or_a_job_end_with_the_uploader() {
        let ((begun, has_begun), (reported, was_reported)) = (channel(), channel());
        let wait: Carry<Signed> = Box::new(move |_, reservation, _| {
            begun.send(()).unwrap();
            reported.send(reservation.into_slot().is_none()).unwrap();
            None
        });
        let (threads, _free) = Threads::start(Device::Gpu(0), 4, false, wait).unwrap();
        let (reply, _filled) = oneshot::channel();
        threads.begin(Job { chunk: 0, forward: 0, reply }).unwrap();
        has_begun.recv().unwrap();
        drop(threads);
        assert!(was_reported.recv().unwrap(), "a slot that nobody gave");
    }
}
