//! Slots by what they hold: which slot has a key, which ones are in use, and which one is filled next. Plain data: it knows neither
//! memory nor devices, and waits for nothing.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

use crate::error::{Error, Result};

/// Which slot is filled next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotPolicy {
    /// First in, first out, for what is used in a fixed order: a slot is filled for one use and holds nothing after it, and the slot that
    /// became free first is filled first.
    Fifo,
    /// Least recently used, for what is asked for by its key: a slot holds its key until another key needs the slot. Free slots are
    /// filled first, then the one that is worth least (see [`SlotPool::set_worth`]), and among equals the one whose last use ended first.
    Lru,
}

/// The slot that a key has from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// The slot holds the key, or somebody else is filling it with the key: nothing has to be moved.
    Hit(usize),
    /// The slot is to be filled by whoever asked.
    Miss(usize),
}

/// A number of slots, each of which is free, being filled, in use, or idle: it holds a key that nobody uses.
///
/// [`SlotPool::reserve`] pins the slot that it returns. A pinned slot keeps its key until as many calls of [`SlotPool::release`] have unpinned
/// it, or of [`SlotPool::fail`] where it could not be filled.
#[derive(Debug)]
pub struct SlotPool<Key> {
    policy: SlotPolicy,
    slots: Vec<Slot<Key>>,
    /// Neither pinned nor with a key; the one that has been free for longest first.
    free: VecDeque<usize>,
    /// Not pinned, with a key; the one that is filled next is first. Empty with [`SlotPolicy::Fifo`].
    idle: BTreeSet<Idle>,
    /// Uses that have ended.
    n_ended: u64,
    /// Empty with [`SlotPolicy::Fifo`], where two slots may have one key.
    slot_of: HashMap<Key, usize>,
}

#[derive(Debug)]
struct Slot<Key> {
    key: Option<Key>,
    is_filled: bool,
    n_pins: usize,
    worth: f64,
    /// Which of all uses that have ended its last one is.
    last_use: u64,
}

/// An idle slot, in the order in which slots are filled.
#[derive(Debug, Clone, Copy)]
struct Idle {
    worth: f64,
    last_use: u64,
    index: usize,
}

impl Ord for Idle {
    fn cmp(&self, other: &Idle) -> Ordering {
        self.worth.total_cmp(&other.worth).then(self.last_use.cmp(&other.last_use)).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Idle {
    fn partial_cmp(&self, other: &Idle) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Idle {
    fn eq(&self, other: &Idle) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Idle {}

impl<Key> Slot<Key> {
    fn idle(&self, index: usize) -> Idle {
        Idle { worth: self.worth, last_use: self.last_use, index }
    }
}

impl<Key: Clone + Eq + Hash> SlotPool<Key> {
    /// `n_slots` slots, numbered from 0. Each is pinned until its first [`SlotPool::release`], which says that its memory is there.
    pub fn new(n_slots: usize, policy: SlotPolicy) -> SlotPool<Key> {
        let slots = (0..n_slots).map(|_| Slot { key: None, is_filled: false, n_pins: 1, worth: 0.0, last_use: 0 }).collect();
        let free = VecDeque::with_capacity(n_slots);
        SlotPool { policy, slots, free, idle: BTreeSet::new(), n_ended: 0, slot_of: HashMap::new() }
    }

    /// The slot for `key`, pinned once more; `None` where all slots are pinned for other uses.
    pub fn reserve(&mut self, key: Key) -> Option<Reserved> {
        if let Some(&index) = self.slot_of.get(&key) {
            let slot = self.slots.get_mut(index)?;
            slot.n_pins += 1;
            if slot.n_pins == 1 {
                self.idle.remove(&slot.idle(index));
            }
            return Some(Reserved::Hit(index));
        }
        let index = self.free.pop_front().or_else(|| self.idle.pop_first().map(|idle| idle.index))?;
        let slot = self.slots.get_mut(index)?;
        if self.policy == SlotPolicy::Lru {
            self.slot_of.insert(key.clone(), index);
        }
        let evicted = slot.key.replace(key);
        (slot.is_filled, slot.n_pins, slot.worth) = (false, 1, 0.0);
        if let Some(evicted) = evicted {
            self.slot_of.remove(&evicted);
        }
        Some(Reserved::Miss(index))
    }

    /// Says what the key of a pinned slot is worth from now on; nothing at first. Without effect on a slot that is not pinned.
    pub fn set_worth(&mut self, index: usize, worth: f64) {
        if let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.n_pins > 0) {
            slot.worth = worth;
        }
    }

    /// What the key is worth that would make room for another one; less than any where a slot is free, `None` where all are pinned.
    pub fn least_worth(&self) -> Option<f64> {
        if !self.free.is_empty() { Some(f64::NEG_INFINITY) } else { self.idle.first().map(|idle| idle.worth) }
    }

    /// A reserved slot is filled.
    ///
    /// # Errors
    /// [`Error::Internal`] where it was not being filled.
    pub fn filled(&mut self, index: usize) -> Result<()> {
        self.being_filled(index)?.is_filled = true;
        Ok(())
    }

    /// A reserved slot could not be filled: its key is forgotten, and the pin of who was to fill it is released.
    ///
    /// # Errors
    /// [`Error::Internal`] where it was not being filled.
    pub fn fail(&mut self, index: usize) -> Result<()> {
        let slot = self.being_filled(index)?;
        slot.n_pins -= 1;
        let (failed, is_free) = (slot.key.take(), slot.n_pins == 0);
        if let Some(failed) = failed {
            self.slot_of.remove(&failed);
        }
        if is_free {
            self.free.push_back(index);
        }
        Ok(())
    }

    /// Unpins a slot: one of its uses has ended.
    ///
    /// # Errors
    /// [`Error::Internal`] where nobody uses it, or where only who is filling it does.
    pub fn release(&mut self, index: usize) -> Result<()> {
        let (policy, last_use) = (self.policy, self.n_ended);
        let slot = self.pinned(index)?;
        if slot.n_pins == 1 && slot.key.is_some() && !slot.is_filled {
            return Err(Error::internal(format!("slot {index} is released while it is being filled")));
        }
        slot.n_pins -= 1;
        if slot.n_pins > 0 {
            return Ok(());
        }
        if policy == SlotPolicy::Fifo {
            slot.key = None;
        }
        slot.last_use = last_use;
        let idle = slot.key.is_some().then(|| slot.idle(index));
        self.n_ended += 1;
        match idle {
            Some(idle) => _ = self.idle.insert(idle),
            None => self.free.push_back(index),
        }
        Ok(())
    }

    /// The slot that has `key`, or is being filled with it; `None` with [`SlotPolicy::Fifo`].
    pub fn slot_of(&self, key: &Key) -> Option<usize> {
        self.slot_of.get(key).copied()
    }

    /// The key that a slot holds; `None` where it is free or still being filled.
    pub fn key(&self, index: usize) -> Option<&Key> {
        self.slots.get(index).filter(|slot| slot.is_filled)?.key.as_ref()
    }

    fn being_filled(&mut self, index: usize) -> Result<&mut Slot<Key>> {
        let slot = self.pinned(index)?;
        if slot.is_filled || slot.key.is_none() {
            return Err(Error::internal(format!("slot {index} is not being filled")));
        }
        Ok(slot)
    }

    fn pinned(&mut self, index: usize) -> Result<&mut Slot<Key>> {
        let slot = self.slots.get_mut(index).filter(|slot| slot.n_pins > 0);
        slot.ok_or_else(|| Error::internal(format!("slot {index} is not in use")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Reserved::{Hit, Miss};

    fn pool(n_slots: usize, policy: SlotPolicy) -> SlotPool<u8> {
        let mut pool = SlotPool::new(n_slots, policy);
        (0..n_slots).for_each(|slot| pool.release(slot).unwrap());
        pool
    }

    /// One whole use of a key.
    fn use_once(pool: &mut SlotPool<u8>, key: u8) -> Reserved {
        let reserved = pool.reserve(key).unwrap();
        if let Miss(slot) = reserved {
            pool.filled(slot).unwrap();
        }
        let (Miss(slot) | Hit(slot)) = reserved;
        assert_eq!(pool.key(slot), Some(&key));
        pool.release(slot).unwrap();
        reserved
    }

    #[test]
    fn a_slot_is_reserved_once_its_memory_is_there() {
        let mut pool = SlotPool::new(2, SlotPolicy::Fifo);
        assert_eq!(pool.reserve('a'), None);
        pool.release(1).unwrap();
        assert_eq!((pool.reserve('a'), pool.reserve('b')), (Some(Miss(1)), None));
        assert_eq!(pool.key(1), None, "it is being filled");
    }

    #[test]
    fn what_is_worth_least_makes_room() {
        let mut pool = pool(2, SlotPolicy::Lru);
        let mut use_worth = |key: u8, worth: f64| {
            let reserved = pool.reserve(key).unwrap();
            let (Miss(slot) | Hit(slot)) = reserved;
            if let Miss(slot) = reserved {
                pool.filled(slot).unwrap();
            }
            pool.set_worth(slot, worth);
            pool.release(slot).unwrap();
            (reserved, pool.least_worth())
        };
        assert_eq!(use_worth(1, 5.0), (Miss(0), Some(f64::NEG_INFINITY)), "a slot is free");
        assert_eq!(use_worth(2, 3.0), (Miss(1), Some(3.0)));
        assert_eq!(use_worth(3, 4.0), (Miss(1), Some(4.0)));
        assert_eq!(use_worth(1, 1.0), (Hit(0), Some(1.0)));
        assert_eq!(use_worth(4, 4.0), (Miss(0), Some(4.0)));
        assert_eq!(use_worth(5, 0.0), (Miss(1), Some(0.0)), "among equals, the one whose last use ended first");
        assert_eq!((pool.reserve(4), pool.reserve(5), pool.least_worth()), (Some(Hit(0)), Some(Hit(1)), None));
    }

    #[test]
    fn first_in_first_out_fills_for_every_use_in_the_order_of_releases() {
        let mut pool = pool(3, SlotPolicy::Fifo);
        assert_eq!([1, 1, 2].map(|key| pool.reserve(key).unwrap()), [Miss(0), Miss(1), Miss(2)]);
        (0..3).for_each(|slot| pool.filled(slot).unwrap());
        assert_eq!(pool.reserve(1), None, "all are in use, though two of them hold the key");
        [2, 0, 1].iter().for_each(|&slot| pool.release(slot).unwrap());
        assert_eq!(pool.key(2), None);
        assert_eq!([1, 2, 3].map(|key| pool.reserve(key).unwrap()), [Miss(2), Miss(0), Miss(1)]);
    }

    #[test]
    fn least_recently_used_is_by_the_end_of_the_last_use() {
        let mut pool = pool(2, SlotPolicy::Lru);
        assert_eq!([1, 2, 1].map(|key| use_once(&mut pool, key)), [Miss(0), Miss(1), Hit(0)]);
        assert_eq!(use_once(&mut pool, 3), Miss(1), "2 was used before 1");
        // 1 is asked for first, and used for longer than 3.
        assert_eq!((pool.reserve(1), use_once(&mut pool, 3)), (Some(Hit(0)), Hit(1)));
        assert_eq!(use_once(&mut pool, 4), Miss(1), "1 is pinned");
        pool.release(0).unwrap();
        assert_eq!([1, 5].map(|key| use_once(&mut pool, key)), [Hit(0), Miss(1)]);
    }

    #[test]
    fn who_hits_a_slot_that_could_not_be_filled_keeps_it_from_others() {
        let mut pool = pool(1, SlotPolicy::Lru);
        assert_eq!([1, 1].map(|key| pool.reserve(key).unwrap()), [Miss(0), Hit(0)]);
        pool.fail(0).unwrap();
        assert_eq!((pool.key(0).copied(), pool.reserve(1)), (None, None));
        pool.release(0).unwrap();
        assert_eq!(use_once(&mut pool, 1), Miss(0), "the key was forgotten");
    }

    #[test]
    fn what_is_not_so_is_no_transition() {
        let mut pool = pool(1, SlotPolicy::Lru);
        for error in [pool.filled(0), pool.fail(0), pool.release(0), pool.release(1)] {
            assert!(matches!(error, Err(Error::Internal { .. })));
        }
        pool.reserve(1).unwrap();
        assert!(pool.release(0).is_err(), "it is being filled");
        pool.filled(0).unwrap();
        assert!(pool.filled(0).is_err() && pool.fail(0).is_err(), "it is filled already");
    }

    /// The model: keys in the order in which their last use ended, and what is pinned.
    #[derive(Default)]
    struct Model {
        slots: Vec<ModelSlot>,
        now: usize,
    }

    #[derive(Clone, Copy, Default)]
    struct ModelSlot {
        key: Option<u8>,
        is_filled: bool,
        n_pins: usize,
        last_used: usize,
    }

    impl Model {
        /// Of the slots that nobody uses: those without a key before those with one, then by the time of their last use.
        fn victim(&self) -> Option<usize> {
            let unused = self.slots.iter().enumerate().filter(|(_, slot)| slot.n_pins == 0);
            unused.min_by_key(|(_, slot)| (slot.key.is_some(), slot.last_used)).map(|(index, _)| index)
        }

        fn reserve(&mut self, key: u8, policy: SlotPolicy) -> Option<Reserved> {
            let found = self.slots.iter().position(|slot| slot.key == Some(key)).filter(|_| policy == SlotPolicy::Lru);
            if let Some(index) = found {
                self.slots[index].n_pins += 1;
                return Some(Hit(index));
            }
            let index = self.victim()?;
            self.slots[index] = ModelSlot { key: Some(key), n_pins: 1, ..ModelSlot::default() };
            Some(Miss(index))
        }

        fn unpin(&mut self, index: usize, forgets: bool) {
            self.now += 1;
            let slot = &mut self.slots[index];
            slot.n_pins -= 1;
            if forgets {
                (slot.key, slot.is_filled) = (None, false);
            }
            if slot.n_pins == 0 {
                slot.last_used = self.now;
            }
        }
    }

    proptest! {
        #[test]
        fn a_pool_does_what_a_simple_model_does(
            is_lru in any::<bool>(), n_slots in 1usize..5, steps in prop::collection::vec((0u8..4, 0u8..7), 1..200)
        ) {
            let policy = if is_lru { SlotPolicy::Lru } else { SlotPolicy::Fifo };
            let mut pool = pool(n_slots, policy);
            let slots = (0..n_slots).map(|last_used| ModelSlot { last_used, ..ModelSlot::default() }).collect();
            let mut model = Model { slots, now: n_slots };
            for (step, key) in steps {
                let index = usize::from(key) % n_slots;
                let before = model.slots[index];
                let is_filling = before.key.is_some() && !before.is_filled;
                match step {
                    0 => {
                        let pinned: Vec<(usize, Option<u8>)> =
                            (0..n_slots).filter(|&slot| model.slots[slot].n_pins > 0).map(|slot| (slot, pool.key(slot).copied())).collect();
                        let reserved = pool.reserve(key);
                        prop_assert_eq!(reserved, model.reserve(key, policy));
                        for (slot, key) in pinned {
                            prop_assert_eq!(pool.key(slot).copied(), key, "what is pinned keeps its key");
                            prop_assert!(reserved != Some(Miss(slot)), "what is pinned or being filled is not evicted");
                        }
                    }
                    1 => {
                        prop_assert_eq!(pool.filled(index).is_ok(), is_filling);
                        model.slots[index].is_filled |= is_filling;
                    }
                    2 => {
                        prop_assert_eq!(pool.fail(index).is_ok(), is_filling);
                        if is_filling {
                            model.unpin(index, true);
                        }
                    }
                    _ => {
                        let may = before.n_pins > 0 && !(is_filling && before.n_pins == 1);
                        prop_assert_eq!(pool.release(index).is_ok(), may);
                        if may {
                            model.unpin(index, before.n_pins == 1 && policy == SlotPolicy::Fifo);
                        }
                    }
                }
                for (index, slot) in model.slots.iter().enumerate() {
                    prop_assert_eq!(pool.key(index).copied(), slot.key.filter(|_| slot.is_filled));
                }
            }
        }
    }
}
