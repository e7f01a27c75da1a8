//! The memory of a ring's slots on its way between the executor, which gives it back, and the upload workers, which fill it. Slots go to
//! chunks in the order of the reservations: a later chunk never gets the slot that an earlier one waits for, though both may be read from
//! disk meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::oneshot;

use super::{SlotMemory, upload_workers_gone};
use crate::error::Result;
use crate::platform;
use crate::stream::slot_pool::{Reserved, SlotPolicy, SlotPool};

/// A ring's slots; all clones are the same ones.
pub(in crate::stream) struct Slots<S: SlotMemory>(Arc<Mutex<State<S>>>);

struct State<S> {
    /// By the chunk that each slot holds.
    pool: SlotPool<usize>,
    /// Of each free slot.
    memory: Vec<Option<S>>,
    /// The reservations that wait for a slot, oldest first.
    waiting: VecDeque<Waiting<S>>,
    is_closed: bool,
}

struct Waiting<S> {
    chunk: usize,
    slot: oneshot::Sender<S>,
}

impl<S: SlotMemory> Slots<S> {
    /// None is free until it is given.
    pub(super) fn new(n_slots: usize) -> Slots<S> {
        let memory = (0..n_slots).map(|_| None).collect();
        let pool = SlotPool::new(n_slots, SlotPolicy::Fifo);
        Slots(Arc::new(Mutex::new(State { pool, memory, waiting: VecDeque::new(), is_closed: false })))
    }

    /// Gives a slot to the upload workers, at first and whenever what it held was used.
    pub(in crate::stream) fn give(&self, slot: S) {
        let mut state = self.lock();
        let released = state.pool.release(slot.index());
        state.take_back(slot, released);
    }

    /// There will be no more slots: all waiting ends.
    pub(in crate::stream) fn close(&self) {
        self.lock().close();
    }

    /// Reserves the next free slot for `chunk`; `None` where there will be none.
    pub(super) fn reserve(&self, chunk: usize) -> Option<Reservation<S>> {
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        let slot = match state.take(chunk) {
            Some(slot) => ReservedSlot::Free(slot),
            None => {
                let (sender, due) = oneshot::channel();
                state.waiting.push_back(Waiting { chunk, slot: sender });
                ReservedSlot::Due(due)
            }
        };
        Some(Reservation { slots: self.clone(), slot })
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: SlotMemory> Clone for Slots<S> {
    fn clone(&self) -> Slots<S> {
        Slots(Arc::clone(&self.0))
    }
}

impl<S: SlotMemory> State<S> {
    /// The next free slot, which is to be filled with `chunk` now.
    fn take(&mut self, chunk: usize) -> Option<S> {
        // Each upload is a filling of its own, whether or not another slot holds the chunk.
        let (Reserved::Miss(index) | Reserved::Hit(index)) = self.pool.reserve(chunk)?;
        self.memory.get_mut(index)?.take()
    }

    /// Puts the memory of a slot back that is free by now, and serves who waits.
    fn take_back(&mut self, slot: S, freed: Result<()>) {
        let index = slot.index();
        match (freed, self.memory.get_mut(index)) {
            (Ok(()), Some(memory)) => *memory = Some(slot),
            (freed, _) => {
                tracing::error!("slot {index} comes back, but not to where it is missing: {freed:?}");
                return self.close();
            }
        }
        while let Some(Waiting { chunk, slot: sender }) = self.waiting.pop_front() {
            if sender.is_canceled() {
                continue;
            }
            if let Some(Err(slot)) = self.take(chunk).map(|slot| sender.send(slot)) {
                self.fail(slot);
            }
            return;
        }
    }

    /// Takes back a slot that was not filled.
    fn fail(&mut self, slot: S) {
        let failed = self.pool.fail(slot.index());
        self.take_back(slot, failed);
    }

    fn close(&mut self) {
        self.is_closed = true;
        self.waiting.clear();
    }
}

/// A slot that is reserved for a chunk; it may not be free yet. Where it is dropped before the slot is filled, the next chunk gets the slot.
pub(super) struct Reservation<S: SlotMemory> {
    slots: Slots<S>,
    slot: ReservedSlot<S>,
}

enum ReservedSlot<S> {
    /// It may be filled.
    Free(S),
    /// It arrives here.
    Due(oneshot::Receiver<S>),
    /// It was filled.
    Filled,
}

impl<S: SlotMemory> Reservation<S> {
    /// Whether the slot is free by now.
    pub(super) fn is_free(&mut self) -> bool {
        if let ReservedSlot::Due(due) = &mut self.slot
            && let Ok(Some(slot)) = due.try_recv()
        {
            self.slot = ReservedSlot::Free(slot);
        }
        matches!(self.slot, ReservedSlot::Free(_))
    }

    /// Waits until the slot is free.
    ///
    /// # Errors
    /// [`crate::error::Error::Internal`] where it never will be.
    pub(super) async fn wait(&mut self) -> Result<()> {
        if let ReservedSlot::Due(due) = &mut self.slot {
            self.slot = ReservedSlot::Free(due.await.map_err(|_| upload_workers_gone())?);
        }
        Ok(())
    }

    /// The slot; this thread waits until it is free.
    ///
    /// # Errors
    /// As of [`Reservation::wait`].
    pub(super) fn slot(&mut self) -> Result<&mut S> {
        if !self.is_free() {
            platform::block_on(self.wait())?;
        }
        match &mut self.slot {
            ReservedSlot::Free(slot) => Ok(slot),
            ReservedSlot::Due(_) | ReservedSlot::Filled => Err(upload_workers_gone()),
        }
    }

    /// The slot, which is filled with its chunk.
    ///
    /// # Errors
    /// [`crate::error::Error::Internal`] where it cannot be.
    pub(super) fn filled(mut self) -> Result<S> {
        let index = self.slot()?.index();
        self.slots.lock().pool.filled(index)?;
        match std::mem::replace(&mut self.slot, ReservedSlot::Filled) {
            ReservedSlot::Free(slot) => Ok(slot),
            ReservedSlot::Due(_) | ReservedSlot::Filled => Err(upload_workers_gone()),
        }
    }
}

impl<S: SlotMemory> Drop for Reservation<S> {
    fn drop(&mut self) {
        let slot = match std::mem::replace(&mut self.slot, ReservedSlot::Filled) {
            ReservedSlot::Free(slot) => Some(slot),
            ReservedSlot::Due(mut due) => {
                due.close();
                due.try_recv().ok().flatten()
            }
            ReservedSlot::Filled => None,
        };
        if let Some(slot) = slot {
            self.slots.lock().fail(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    impl SlotMemory for usize {
        fn index(&self) -> usize {
            *self
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
    fn slots_go_to_reservations_in_their_order() {
        let slots = Slots::<usize>::new(3);
        slots.give(1);
        let reservations: Vec<Reservation<usize>> = (0..3).map(|chunk| slots.reserve(chunk).unwrap()).collect();
        slots.give(2);
        slots.give(0);
        // The last reservation is asked first, and gets its own slot all the same.
        let got: Vec<usize> = reservations.into_iter().rev().map(|reservation| reservation.filled().unwrap()).collect();
        assert_eq!(got, [0, 2, 1]);
    }

    #[test]
    fn a_reservation_that_is_dropped_leaves_its_slot_to_the_next() {
        let slots = Slots::<usize>::new(1);
        let [first, second, third, mut fourth] = [0, 1, 2, 3].map(|chunk| slots.reserve(chunk).unwrap());
        drop(first);
        slots.give(0);
        // It holds the slot by now.
        drop(second);
        assert!(!fourth.is_free());
        drop(third);
        assert!(fourth.is_free());
        assert_eq!(fourth.filled().unwrap(), 0);
    }

    #[test]
    fn waiting_ends_where_there_will_be_no_more_slots() {
        let slots = Slots::<usize>::new(1);
        let reservation = slots.reserve(0).unwrap();
        slots.close();
        assert!(matches!(reservation.filled(), Err(Error::Internal { .. })));
        assert!(slots.reserve(1).is_none());
    }

    #[test]
    fn a_slot_that_comes_back_twice_ends_all_filling() {
        let slots = Slots::<usize>::new(2);
        [0, 1, 1].iter().for_each(|&slot| slots.give(slot));
        assert!(slots.reserve(0).is_none());
    }
}
