//! Free slots and their reservations. Slots go to chunks in the order of the reservations: a later chunk never gets the slot that an
//! earlier one waits for, though both may be read from disk meanwhile.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SendError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::upload_workers_gone;
use crate::error::Result;

/// Free slots, or reservations that wait for one; never both.
pub(super) struct Slots<S>(Arc<Mutex<State<S>>>);

struct State<S> {
    free: VecDeque<S>,
    /// Oldest first.
    waiting: VecDeque<SyncSender<S>>,
    is_closed: bool,
}

impl<S> Slots<S> {
    /// None is free yet.
    pub(super) fn new() -> Slots<S> {
        Slots(Arc::new(Mutex::new(State { free: VecDeque::new(), waiting: VecDeque::new(), is_closed: false })))
    }

    /// Adds a free slot. `None` says that there will be no more, and ends all waiting.
    pub(super) fn give(&self, slot: Option<S>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut slot) = slot else {
            state.is_closed = true;
            state.waiting.clear();
            return;
        };
        while let Some(next) = state.waiting.pop_front() {
            match next.send(slot) {
                Ok(()) => return,
                Err(SendError(back)) => slot = back,
            }
        }
        state.free.push_back(slot);
    }

    /// Reserves the next free slot; `None` where there will be none.
    pub(super) fn reserve(&self) -> Option<Reservation<S>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_closed {
            return None;
        }
        Some(match state.free.pop_front() {
            Some(slot) => Reservation::Free(slot),
            None => {
                let (sender, due) = sync_channel(1);
                state.waiting.push_back(sender);
                Reservation::Due(due)
            }
        })
    }
}

impl<S> Clone for Slots<S> {
    fn clone(&self) -> Slots<S> {
        Slots(Arc::clone(&self.0))
    }
}

/// A slot that is reserved for a chunk; it may not be free yet.
pub(super) enum Reservation<S> {
    /// It is free.
    Free(S),
    /// It arrives here.
    Due(Receiver<S>),
}

impl<S> Reservation<S> {
    /// The slot, once it is free.
    ///
    /// # Errors
    /// [`crate::error::Error::Internal`] where it never will be.
    pub(super) fn slot(&mut self) -> Result<&mut S> {
        if let Reservation::Due(due) = self
            && let Ok(slot) = due.recv()
        {
            *self = Reservation::Free(slot);
        }
        match self {
            Reservation::Free(slot) => Ok(slot),
            Reservation::Due(_) => Err(upload_workers_gone()),
        }
    }

    /// As [`Reservation::slot`]; `None` where it never will be free.
    pub(super) fn into_slot(self) -> Option<S> {
        match self {
            Reservation::Free(slot) => Some(slot),
            Reservation::Due(due) => due.recv().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_go_to_reservations_in_their_order() {
        let slots = Slots::new();
        slots.give(Some(1));
        let reservations: Vec<Reservation<i32>> = (0..3).map(|_| slots.reserve().unwrap()).collect();
        slots.give(Some(2));
        slots.give(Some(3));
        // The last reservation is asked first, and gets its own slot all the same.
        let got: Vec<Option<i32>> = reservations.into_iter().rev().map(Reservation::into_slot).collect();
        assert_eq!(got, [Some(3), Some(2), Some(1)]);
    }

    #[test]
    fn a_reservation_that_was_dropped_leaves_its_slot_to_the_next() {
        let slots = Slots::new();
        let (first, second) = (slots.reserve().unwrap(), slots.reserve().unwrap());
        drop(first);
        slots.give(Some(1));
        assert_eq!(second.into_slot(), Some(1));
    }

    #[test]
    fn waiting_ends_where_there_will_be_no_more_slots() {
        let slots = Slots::<i32>::new();
        let reservation = slots.reserve().unwrap();
        slots.give(None);
        assert_eq!(reservation.into_slot(), None);
        assert!(slots.reserve().is_none());
    }
}
