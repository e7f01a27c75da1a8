//! Upload workers that are threads: they fill slots while the device computes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::slots::{Reservation, Slots};
use super::{Job, SlotMemory, upload_workers_gone};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::platform::{self, DirectBuffer};

/// Two: one reads from disk while the other copies, and a disk sees two requests at a time.
const N_WORKERS: usize = 2;

/// Runs a job with the reserved slot and the thread's buffer for reads.
pub(super) type RunJob<S> = Box<dyn Fn(Job<S>, Reservation<S>, &mut DirectBuffer) + Send + Sync>;

/// The threads of an uploader.
pub(super) struct Threads<S: SlotMemory> {
    device: Device,
    jobs: Option<SyncSender<Job<S>>>,
    slots: Slots<S>,
    running: Vec<JoinHandle<()>>,
    /// What threads of usual priority need to replace these, as long as these have a low one.
    replacement: Option<Replacement<S>>,
}

struct Replacement<S: SlotMemory> {
    work: Arc<Work<S>>,
    /// Tells the threads of low priority to end.
    is_there: Arc<AtomicBool>,
}

/// What all threads share.
struct Work<S: SlotMemory> {
    run_job: RunJob<S>,
    jobs: Mutex<Receiver<Job<S>>>,
    slots: Slots<S>,
}

impl<S: SlotMemory> Threads<S> {
    /// Starts the threads that fill these slots of a device; up to `n_jobs` may wait for them.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses a thread.
    pub(super) fn start(device: Device, slots: &Slots<S>, n_jobs: usize, at_low_priority: bool, run_job: RunJob<S>) -> Result<Threads<S>> {
        let (jobs_sender, jobs) = sync_channel(n_jobs);
        let work = Arc::new(Work { run_job, jobs: Mutex::new(jobs), slots: slots.clone() });
        let replacement = at_low_priority.then(|| Replacement { work: Arc::clone(&work), is_there: Arc::default() });
        let is_replaced = replacement.as_ref().map(|replacement| Arc::clone(&replacement.is_there));
        let mut threads = Threads { device, jobs: Some(jobs_sender), slots: slots.clone(), running: Vec::new(), replacement };
        threads.spawn(&work, is_replaced.as_ref())?;
        Ok(threads)
    }

    /// Starts threads: of low priority, and ending once `is_replaced` is true, where that is given.
    fn spawn(&mut self, work: &Arc<Work<S>>, is_replaced: Option<&Arc<AtomicBool>>) -> Result<()> {
        for _ in 0..N_WORKERS {
            let name = format!("tierflow-{}-{}", self.device, self.running.len());
            let (work, is_replaced) = (Arc::clone(work), is_replaced.cloned());
            let run = move || {
                if is_replaced.is_some() {
                    platform::yield_to_others();
                }
                work.run(is_replaced.as_deref());
            };
            let thread = std::thread::Builder::new().name(name).spawn(run);
            self.running.push(thread.map_err(|source| Error::io("start", "a thread that streams weights", source))?);
        }
        Ok(())
    }

    /// Replaces threads of low priority, which were too slow, by threads of usual priority. The former end after their present chunk, or
    /// stay where the system refuses a thread.
    pub(super) fn replace(&mut self) {
        let Some(Replacement { work, is_there }) = self.replacement.take() else { return };
        match self.spawn(&work, None) {
            Ok(()) => {
                is_there.store(true, Ordering::Relaxed);
                tracing::debug!("{}: weights came too late, so that they are no longer uploaded at the lowest priority", self.device);
            }
            Err(error) => tracing::debug!("{}: weights come too late, but {error}", self.device),
        }
    }

    /// Hands a job over.
    ///
    /// # Errors
    /// [`Error::Internal`] where the threads are gone.
    pub(super) fn begin(&self, job: Job<S>) -> Result<()> {
        match self.jobs.as_ref().map(|jobs| jobs.send(job)) {
            Some(Ok(())) => Ok(()),
            _ => Err(upload_workers_gone()),
        }
    }
}

impl<S: SlotMemory> Drop for Threads<S> {
    /// Ends the threads: one that waits for a job sees the channel closed, and one that waits for a slot gets none.
    fn drop(&mut self) {
        self.jobs = None;
        self.slots.close();
        for thread in self.running.drain(..) {
            let _ = thread.join();
        }
    }
}

impl<S: SlotMemory> Work<S> {
    /// Runs jobs until there are no more jobs or slots, or until the thread is replaced.
    fn run(&self, is_replaced: Option<&AtomicBool>) {
        let mut fetched = DirectBuffer::default();
        while !is_replaced.is_some_and(|is_replaced| is_replaced.load(Ordering::Relaxed)) {
            // A job and the reservation of its slot are taken together, so that slots go to chunks in the order of their use.
            let (job, reservation) = {
                let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                let Ok(job) = jobs.recv() else { return };
                let Some(reservation) = self.slots.reserve(job.chunk) else { return };
                (job, reservation)
            };
            (self.run_job)(job, reservation, &mut fetched);
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
        fn index(&self) -> usize {
            0
        }

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
    fn threads_that_replace_those_of_low_priority_run_all_later_jobs() {
        let sign: RunJob<Signed> = Box::new(|job, reservation, _| {
            let mut slot = reservation.filled().unwrap();
            slot.0 = std::thread::current().name().unwrap_or_default().to_owned();
            drop(job.reply.send(Ok(slot)));
        });
        let slots = Slots::new(1);
        let mut threads = Threads::start(Device::Gpu(0), &slots, 4, true, sign).unwrap();
        slots.give(Signed(String::new()));
        let filled_by = |threads: &Threads<Signed>| {
            let (reply, filled) = oneshot::channel();
            threads.begin(Job { chunk: 0, forward: 0, reply }).unwrap();
            let Signed(name) = pollster::block_on(filled).unwrap().unwrap();
            slots.give(Signed(String::new()));
            name
        };
        let names: Vec<String> = (0..4).map(|_| filled_by(&threads)).collect();
        assert!(names.iter().all(|name| ["tierflow-gpu:0-0", "tierflow-gpu:0-1"].contains(&name.as_str())), "{names:?}");
        threads.replace();
        threads.replace();
        // Each of the first two may wait for a job already.
        let names: Vec<String> = (0..N_WORKERS + 4).map(|_| filled_by(&threads)).collect();
        let by_the_first = names.iter().filter(|name| name.ends_with("-0") || name.ends_with("-1")).count();
        assert!(by_the_first <= N_WORKERS && threads.running.len() == 2 * N_WORKERS, "{names:?}");
    }

    #[test]
    fn threads_that_wait_for_a_slot_or_a_job_end_with_the_uploader() {
        let ((begun, has_begun), (ended, has_ended)) = (channel(), channel());
        let wait: RunJob<Signed> = Box::new(move |_, reservation, _| {
            begun.send(()).unwrap();
            ended.send(reservation.filled().is_err()).unwrap();
        });
        let threads = Threads::start(Device::Gpu(0), &Slots::<Signed>::new(1), 4, false, wait).unwrap();
        let (reply, _filled) = oneshot::channel();
        threads.begin(Job { chunk: 0, forward: 0, reply }).unwrap();
        has_begun.recv().unwrap();
        drop(threads);
        assert!(has_ended.recv().unwrap(), "a slot that nobody gave");
    }
}
