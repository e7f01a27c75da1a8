//! The expert cache of an adapter: buffers with slots for single experts of any layer. The experts that tokens take are looked up when the
//! router has spoken; those that are missing are read from host memory or disk into the slots whose last use is longest ago.

use std::borrow::Cow;
use std::collections::BTreeSet;

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde::Serialize;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu, Purpose};
use crate::kernels::Binding;
use crate::kernels::expert_matmul::NO_SLOT;
use crate::plan::{ExpertCacheBlock, ExpertCachePlan, ExpertShape};
use crate::stream::{Lane, Reserved, SlotPolicy, SlotPool, Span, Store, Trace};
use crate::units::Bytes;

/// An expert: the chunk that it belongs to, and its number.
type Key = (usize, usize);

/// What a cache was asked for, since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ExpertStatistics {
    /// Experts that were asked for and were there.
    pub n_hits: u64,
    /// Experts that were asked for and had to be brought.
    pub n_misses: u64,
    /// Bytes that were brought.
    pub uploaded: Bytes,
}

impl ExpertStatistics {
    /// What was asked for since it had `before`.
    #[must_use]
    pub fn since(&self, before: &ExpertStatistics) -> ExpertStatistics {
        ExpertStatistics {
            n_hits: self.n_hits.saturating_sub(before.n_hits),
            n_misses: self.n_misses.saturating_sub(before.n_misses),
            uploaded: self.uploaded.saturating_sub(before.uploaded),
        }
    }

    /// The share of what was asked for that was there; `None` where nothing was asked for.
    pub fn hit_rate(&self) -> Option<f64> {
        let n_asked = self.n_hits + self.n_misses;
        (n_asked > 0).then(|| self.n_hits as f64 / n_asked as f64)
    }
}

impl std::iter::Sum for ExpertStatistics {
    fn sum<I: Iterator<Item = ExpertStatistics>>(all: I) -> ExpertStatistics {
        all.fold(ExpertStatistics::default(), |sum, next| ExpertStatistics {
            n_hits: sum.n_hits + next.n_hits,
            n_misses: sum.n_misses + next.n_misses,
            uploaded: sum.uploaded + next.uploaded,
        })
    }
}

/// The expert cache of one adapter.
pub(super) struct ExpertCache {
    device: Device,
    plan: ExpertCachePlan,
    pool: SlotPool<Key>,
    blocks: Vec<Block>,
    /// Slots that are pinned: those in use, and those that are being filled.
    in_use: Vec<usize>,
    filling: Vec<usize>,
    statistics: ExpertStatistics,
    trace: Trace,
}

/// One buffer of slots, with the table that says which of a layer's experts are in it.
struct Block {
    place: ExpertCacheBlock,
    memory: Buffer,
    table: Buffer,
}

/// A layer whose experts are asked for.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) chunk: usize,
    pub(super) shape: &'a ExpertShape,
    /// Which forward it is for.
    pub(super) forward: usize,
}

impl ExpertCache {
    /// Allocates a cache that holds nothing yet.
    pub(super) async fn new(gpu: &Gpu, device: Device, plan: &ExpertCachePlan, trace: &Trace) -> Result<ExpertCache> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let mut blocks = Vec::new();
        for place in plan.blocks() {
            let size_bytes = plan.slot_bytes.times(place.n_slots as u64);
            let memory = gpu.buffer("experts", size_bytes, usage, Purpose::Experts).await?;
            let table = gpu.buffer("slots of experts", plan.table_bytes, usage, Purpose::Experts).await?;
            blocks.push(Block { place, memory, table });
        }
        let mut pool = SlotPool::new(plan.n_slots, SlotPolicy::Lru);
        (0..plan.n_slots).try_for_each(|slot| pool.release(slot))?;
        Ok(ExpertCache {
            device,
            plan: *plan,
            pool,
            blocks,
            in_use: Vec::new(),
            filling: Vec::new(),
            statistics: ExpertStatistics::default(),
            trace: trace.clone(),
        })
    }

    /// Bytes of a slot.
    pub(super) fn slot_bytes(&self) -> Bytes {
        self.plan.slot_bytes
    }

    /// The slots of each buffer, with its table.
    pub(super) fn bindings(&self) -> impl Iterator<Item = [Binding<'_>; 2]> {
        self.blocks.iter().map(|block| [Binding::whole(&block.memory), Binding::whole(&block.table)])
    }

    pub(super) fn statistics(&self) -> ExpertStatistics {
        self.statistics
    }

    /// Brings as many of `wanted`, the numbers of different experts, as there are slots for, and takes them out of it. They stay until
    /// [`ExpertCache::release`]; the tables name them and no others.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn bring(&mut self, gpu: &Gpu, store: &Store, asked: Asked<'_>, wanted: &mut BTreeSet<usize>) -> Result<()> {
        // Those that are here come first, so that none of them makes room for another one.
        let is_here = |expert: &usize| self.pool.slot_of(&(asked.chunk, *expert)).is_some();
        let (here, missing): (Vec<usize>, Vec<usize>) = wanted.iter().partition(|expert| is_here(expert));
        let (mut places, mut to_fill) = (Vec::new(), Vec::new());
        for expert in here.into_iter().chain(missing) {
            let slot = match self.pool.reserve((asked.chunk, expert)) {
                None => break,
                Some(Reserved::Hit(slot)) => {
                    self.in_use.push(slot);
                    self.statistics.n_hits += 1;
                    slot
                }
                Some(Reserved::Miss(slot)) => {
                    self.filling.push(slot);
                    to_fill.push((expert, slot));
                    slot
                }
            };
            places.push((expert, slot));
            wanted.remove(&expert);
        }
        if places.is_empty() {
            return Err(Error::internal("an expert cache has no slot that is free"));
        }
        self.fill(gpu, store, asked, &to_fill)?;
        self.write_tables(gpu, asked.shape.n_experts, &places);
        Ok(())
    }

    /// Unpins what was brought: what is submitted until now may still use it, since the queue writes to slots in its turn.
    pub(super) fn release(&mut self) -> Result<()> {
        self.in_use.drain(..).try_for_each(|slot| self.pool.release(slot))
    }

    /// Forgets what stopped midway.
    pub(super) fn recover(&mut self) -> Result<()> {
        self.filling.drain(..).try_for_each(|slot| self.pool.fail(slot))?;
        self.release()
    }

    /// Reads experts, several at a time where they come from disk, and writes them to their slots.
    fn fill(&mut self, gpu: &Gpu, store: &Store, asked: Asked<'_>, to_fill: &[(usize, usize)]) -> Result<()> {
        let n_matrices = asked.shape.matrices.len();
        for some in to_fill.chunks(EXPERTS_AT_ONCE) {
            let start_secs = self.trace.now();
            let parts = || (0..some.len() * n_matrices).map(|index| (some[index / n_matrices].0, index % n_matrices));
            let read = |(expert, matrix): (usize, usize)| store.expert(asked.chunk, matrix, expert, asked.shape);
            let from_disk = store.is_on_disk(asked.chunk);
            let bytes: Vec<Cow<'_, [u8]>> = match from_disk {
                true => parts().collect::<Vec<_>>().into_par_iter().map(read).collect::<Result<_>>()?,
                false => parts().map(read).collect::<Result<_>>()?,
            };
            let moved = Bytes(bytes.iter().map(|part| part.len() as u64).sum());
            if from_disk {
                self.span(Lane::Fetch, asked, start_secs, moved);
            }
            let start_secs = self.trace.now();
            for (index, part) in bytes.iter().enumerate() {
                let (slot, (begin, _)) = (some[index / n_matrices].1, asked.shape.matrices[index % n_matrices]);
                self.write(gpu, slot, begin, part)?;
            }
            self.span(Lane::Upload, asked, start_secs, moved);
            self.statistics.n_misses += some.len() as u64;
            self.statistics.uploaded += moved;
            for (_, slot) in some {
                self.pool.filled(*slot)?;
                self.filling.retain(|other| other != slot);
                self.in_use.push(*slot);
            }
        }
        Ok(())
    }

    fn span(&self, lane: Lane, asked: Asked<'_>, start_secs: f64, size_bytes: Bytes) {
        let end_secs = self.trace.now();
        let Asked { chunk, forward, .. } = asked;
        self.trace.add(Span { lane, device: self.device, chunk: Some(chunk), forward, start_secs, end_secs, size_bytes });
    }

    /// Writes to a slot through the queue. Writes are whole words; what lies behind the last byte belongs to the same slot.
    fn write(&self, gpu: &Gpu, slot: usize, begin: u64, bytes: &[u8]) -> Result<()> {
        let block = self.blocks.get(slot / self.plan.block_slots.max(1));
        let block = block.ok_or_else(|| Error::internal(format!("an expert cache has no slot {slot}")))?;
        let offset = self.plan.slot_bytes.0 * (slot - block.place.first_slot) as u64 + begin;
        let (words, rest) = bytes.split_at(bytes.len() / WORD * WORD);
        gpu.queue.write_buffer(&block.memory, offset, words);
        if !rest.is_empty() {
            let mut last = [0; WORD];
            last[..rest.len()].copy_from_slice(rest);
            gpu.queue.write_buffer(&block.memory, offset + words.len() as u64, &last);
        }
        Ok(())
    }

    /// Says in every table which of `places`, experts with their slots, are in its buffer.
    fn write_tables(&self, gpu: &Gpu, n_experts: usize, places: &[(usize, usize)]) {
        for block in &self.blocks {
            let mut table = vec![NO_SLOT; n_experts];
            for &(expert, slot) in places {
                if let Some(own) = slot.checked_sub(block.place.first_slot).filter(|own| *own < block.place.n_slots) {
                    table[expert] = own as u32;
                }
            }
            gpu.queue.write_buffer(&block.table, 0, bytemuck::cast_slice(&table));
        }
    }
}

/// Experts that are read before they are written to their slots.
const EXPERTS_AT_ONCE: usize = 16;
/// Bytes of a word: what is written to a buffer is a multiple of it.
const WORD: usize = wgpu::COPY_BUFFER_ALIGNMENT as usize;
