//! The sequences, which requests take in turn. One that ends leaves what it computed in the cache, and the next request goes on there as far
//! as the two begin alike: a chat's history is not computed again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, watch};

use super::error::ApiError;
use crate::error::Result;
use crate::handle::{EngineHandle, Sequence};
use crate::units::Bytes;

/// All sequences of the plan.
pub(super) struct Pool {
    slots: Mutex<Vec<Slot>>,
    /// One for each free sequence; closed when the server ends.
    free: Arc<Semaphore>,
    n_waiting: AtomicUsize,
    n_waiting_max: usize,
    /// Leases that there are.
    n_leased: watch::Sender<usize>,
    /// Whether a sequence can go back to no earlier place.
    is_recurrent: bool,
}

/// One sequence of the pool.
struct Slot {
    /// The sequence's number among those of the plan.
    id: u32,
    /// Absent while it is leased.
    sequence: Option<Sequence>,
    /// What its cache holds, at most.
    tokens: Vec<u32>,
    /// What it multiplies LoRA adapters by, where requests choose.
    loras: Vec<f32>,
    /// Leases of the pool until its own last one: the smallest is that of longest ago.
    last_use: u64,
    n_uses: u64,
}

/// A sequence for one request, until it is dropped.
pub(super) struct Lease {
    pool: Arc<Pool>,
    index: usize,
    /// Absent only while it is dropped.
    sequence: Option<Sequence>,
    /// What the sequence holds when the lease ends.
    pub(super) tokens: Vec<u32>,
    /// What it multiplies LoRA adapters by.
    loras: Vec<f32>,
    _permit: OwnedSemaphorePermit,
}

/// A sequence as `/slots` shows it.
#[derive(Debug, Serialize)]
pub(super) struct SlotState {
    id: usize,
    is_processing: bool,
    /// Whether its answer waits to have its room in the KV cache again.
    is_paused: bool,
    /// Tokens in its cache.
    n_cached: usize,
    /// Bytes that these take on all devices.
    kv_cache_bytes: Bytes,
    n_requests: u64,
}

/// A request that waits, as long as it is there.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pool {
    /// All sequences of `engine`, which multiply LoRA adapters by `loras` as yet.
    pub(super) async fn new(engine: &EngineHandle, n_waiting_max: usize, loras: &[f32]) -> Result<Pool> {
        let n_seqs = engine.plan().n_seqs;
        let mut slots = Vec::with_capacity(n_seqs);
        for _ in 0..n_seqs {
            let sequence = engine.sequence().await?;
            slots.push(Slot {
                id: sequence.id(),
                sequence: Some(sequence),
                tokens: Vec::new(),
                loras: loras.to_vec(),
                last_use: 0,
                n_uses: 0,
            });
        }
        Ok(Pool {
            slots: Mutex::new(slots),
            free: Arc::new(Semaphore::new(n_seqs)),
            n_waiting: AtomicUsize::new(0),
            n_waiting_max,
            n_leased: watch::Sender::new(0),
            is_recurrent: engine.prepared().model.is_recurrent(),
        })
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a free sequence, in the order of coming, and takes the one that has the most of `prompt`, computed with LoRA adapters
    /// multiplied by `loras`.
    ///
    /// # Errors
    /// Where too many wait already, or the server ends.
    pub(super) async fn lease(self: &Arc<Pool>, prompt: &[u32], loras: &[f32]) -> Result<Lease, ApiError> {
        let permit = match Arc::clone(&self.free).try_acquire_owned() {
            Ok(permit) => permit,
            Err(TryAcquireError::Closed) => return Err(ending()),
            Err(TryAcquireError::NoPermits) => {
                let _waiting = self.wait()?;
                Arc::clone(&self.free).acquire_owned().await.map_err(|_| ending())?
            }
        };
        let mut slots = self.slots();
        let n_uses = slots.iter().map(|slot| slot.last_use).max().unwrap_or_default() + 1;
        let n_shared = |slot: &Slot| if slot.loras == loras { self.n_shared(slot, prompt) } else { 0 };
        let rank = |slot: &Slot| (n_shared(slot), std::cmp::Reverse(slot.last_use));
        let best = slots.iter_mut().enumerate().filter(|(_, slot)| slot.sequence.is_some()).max_by_key(|(_, slot)| rank(slot));
        let Some((index, slot)) = best else { return Err(ApiError::busy("all sequences are in use")) };
        (slot.last_use, slot.n_uses) = (n_uses, slot.n_uses + 1);
        self.n_leased.send_modify(|n_leased| *n_leased += 1);
        let mut lease = Lease {
            pool: Arc::clone(self),
            index,
            sequence: slot.sequence.take(),
            tokens: std::mem::take(&mut slot.tokens),
            loras: std::mem::take(&mut slot.loras),
            _permit: permit,
        };
        // It comes back to them where it is dropped.
        drop(slots);
        lease.choose(loras)?;
        Ok(lease)
    }

    /// Tokens of `prompt` that need not be computed on that sequence. 0 where most of its tokens would be lost: whoever they are of may
    /// go on with them.
    fn n_shared(&self, slot: &Slot, prompt: &[u32]) -> usize {
        let n_alike = slot.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let can_go_on = !self.is_recurrent || n_alike == slot.tokens.len();
        if can_go_on && n_alike * 2 >= slot.tokens.len() { n_alike } else { 0 }
    }

    /// Counts a request as waiting, while there is room.
    fn wait(&self) -> Result<Waiting<'_>, ApiError> {
        let more = |n_waiting: usize| (n_waiting < self.n_waiting_max).then_some(n_waiting + 1);
        match self.n_waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more) {
            Ok(_) => Ok(Waiting(&self.n_waiting)),
            Err(_) => Err(ApiError::busy(format!("{} requests wait already; try again later", self.n_waiting_max))),
        }
    }

    /// Requests that wait for a sequence.
    pub(super) fn n_waiting(&self) -> usize {
        self.n_waiting.load(Ordering::SeqCst)
    }

    /// Sequences in use.
    pub(super) fn n_leased(&self) -> usize {
        *self.n_leased.borrow()
    }

    /// Whether no further requests are taken.
    pub(super) fn is_closed(&self) -> bool {
        self.free.is_closed()
    }

    /// Takes no further requests, and refuses those that wait.
    pub(super) fn close(&self) {
        self.free.close();
    }

    /// Waits until no sequence is leased.
    pub(super) async fn drained(&self) {
        // The sender is here, so that the channel is open.
        let _ = self.n_leased.subscribe().wait_for(|n_leased| *n_leased == 0).await;
    }

    /// All sequences, which are those of `engine`.
    pub(super) fn states(&self, engine: &EngineHandle) -> Vec<SlotState> {
        let (plan, model) = (engine.plan(), &engine.prepared().model);
        let (cached, paused) = (engine.cached_tokens(), engine.paused_sequences());
        let state = |(id, slot): (usize, &Slot)| {
            let n_cached = cached.get(slot.id as usize).copied().unwrap_or_default();
            let kv_cache_bytes = plan.sequence_bytes(model, n_cached);
            let is_paused = paused.get(slot.id as usize).copied().unwrap_or_default();
            SlotState { id, is_processing: slot.sequence.is_none(), is_paused, n_cached, kv_cache_bytes, n_requests: slot.n_uses }
        };
        self.slots().iter().enumerate().map(state).collect()
    }
}

/// Why nothing is begun any more.
pub(super) fn ending() -> ApiError {
    ApiError::busy("the server is ending; it takes no more requests")
}

impl Lease {
    /// Lets the sequence multiply LoRA adapters by these. What it holds counts no more, where they are others.
    fn choose(&mut self, loras: &[f32]) -> Result<(), ApiError> {
        if self.loras != loras {
            self.tokens.clear();
            self.sequence()?.set_lora_scales(loras.to_vec())?;
            self.loras = loras.to_vec();
        }
        Ok(())
    }

    /// The sequence.
    pub(super) fn sequence(&mut self) -> Result<&mut Sequence, ApiError> {
        self.sequence.as_mut().ok_or_else(ending)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(slot) = self.pool.slots().get_mut(self.index) {
            (slot.sequence, slot.tokens) = (self.sequence.take(), std::mem::take(&mut self.tokens));
            slot.loras = std::mem::take(&mut self.loras);
        }
        self.pool.n_leased.send_modify(|n_leased| *n_leased -= 1);
    }
}
