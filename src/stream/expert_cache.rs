//! The expert cache of an adapter: buffers with slots for single experts of any layer. The experts that tokens take are looked up when the
//! router has spoken; those that are missing are read from host memory or disk into the slots of experts that are worth least: that were
//! asked for least often, where what was asked long ago counts little. So one odd prompt does not replace what is used every day.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu, Purpose};
use crate::kernels::Binding;
use crate::kernels::expert_matmul::NO_SLOT;
use crate::plan::{ExpertCacheBlock, ExpertCachePlan, ExpertShape, HOST_MISS_TOKENS};
use crate::stream::warm_experts::{self, ExpertTimes};
use crate::stream::{Lane, Reserved, SlotPolicy, SlotPool, Span, Store, Trace};
use crate::units::Bytes;

/// An expert: the chunk that it belongs to, and its number.
pub(super) type Key = (usize, usize);

/// What a cache was asked for, since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ExpertStatistics {
    /// Experts that were asked for and were there. Of layers all of whose experts stay, as many count as the tokens may have taken.
    pub n_hits: u64,
    /// Experts that were asked for and were not there.
    pub n_misses: u64,
    /// Of these, experts that the host computed with.
    pub n_on_host: u64,
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
            n_on_host: self.n_on_host.saturating_sub(before.n_on_host),
            uploaded: self.uploaded.saturating_sub(before.uploaded),
        }
    }

    /// The share of what was asked for that was there; `None` where nothing was asked for.
    pub fn hit_rate(&self) -> Option<f64> {
        let n_asked = self.n_hits + self.n_misses;
        (n_asked > 0).then(|| self.n_hits as f64 / n_asked as f64)
    }

    /// The share of what was asked for that the host computed with; `None` where that was nothing.
    pub fn host_share(&self) -> Option<f64> {
        (self.n_on_host > 0).then(|| self.n_on_host as f64 / (self.n_hits + self.n_misses) as f64)
    }
}

impl std::iter::Sum for ExpertStatistics {
    fn sum<I: Iterator<Item = ExpertStatistics>>(all: I) -> ExpertStatistics {
        all.fold(ExpertStatistics::default(), |sum, next| ExpertStatistics {
            n_hits: sum.n_hits + next.n_hits,
            n_misses: sum.n_misses + next.n_misses,
            n_on_host: sum.n_on_host + next.n_on_host,
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
    /// Where the table of each chunk is in the tables of a buffer.
    tables: BTreeMap<usize, (u64, Bytes)>,
    /// Chunks all of whose experts are here and stay, with their slots.
    whole: BTreeMap<usize, Vec<usize>>,
    /// Slots that are pinned: those in use, and those that are being filled.
    in_use: Vec<usize>,
    filling: Vec<usize>,
    /// What each expert that was asked for is worth.
    worths: HashMap<Key, Worth>,
    /// By chunk.
    statistics: BTreeMap<usize, ExpertStatistics>,
    trace: Trace,
}

/// How often an expert was asked for, where each time counts twice as much as one [`HALF_LIFE`] forwards before: the binary logarithm of
/// `Σ 2^(forward / HALF_LIFE)`. So it changes only when the expert is asked for, while others age beside it. (This is LRFU: Lee and
/// others, "LRFU: a spectrum of policies that subsumes the least recently used and least frequently used policies", 2001.)
#[derive(Debug, Clone, Copy, PartialEq)]
struct Worth(f64);

impl Worth {
    /// Of what was never asked for.
    const NONE: Worth = Worth(f64::NEG_INFINITY);

    /// After one more time, in `forward`.
    fn asked_in(self, forward: usize) -> Worth {
        let now = forward as f64 / HALF_LIFE;
        let (more, less) = (self.0.max(now), self.0.min(now));
        Worth(more + (less - more).exp2().ln_1p() * std::f64::consts::LOG2_E)
    }

    /// Times that it was asked for, as they count in `forward`.
    fn times(self, forward: usize) -> f64 {
        (self.0 - forward as f64 / HALF_LIFE).exp2()
    }
}

/// One buffer of slots, with the tables that say which of each layer's experts are in it.
struct Block {
    place: ExpertCacheBlock,
    memory: Buffer,
    tables: Buffer,
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
    /// Allocates a cache that holds nothing yet, for the experts of these chunks.
    pub(super) async fn new(
        gpu: &Gpu,
        device: Device,
        plan: &ExpertCachePlan,
        shapes: impl Iterator<Item = (usize, ExpertShape)>,
        trace: &Trace,
    ) -> Result<ExpertCache> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let mut blocks = Vec::new();
        for place in plan.blocks() {
            let size_bytes = plan.slot_bytes.times(place.n_slots as u64);
            let memory = gpu.buffer("experts", size_bytes, usage, Purpose::Experts).await?;
            let tables = gpu.buffer("slots of experts", plan.table_bytes, usage, Purpose::Experts).await?;
            blocks.push(Block { place, memory, tables });
        }
        let mut begin = 0;
        let table = |(chunk, shape): (usize, ExpertShape)| {
            let own = (begin, shape.table_bytes());
            begin += own.1.0;
            (chunk, own)
        };
        let tables = shapes.map(table).collect();
        let mut pool = SlotPool::new(plan.n_slots, SlotPolicy::Lru);
        (0..plan.n_slots).try_for_each(|slot| pool.release(slot))?;
        Ok(ExpertCache {
            device,
            plan: *plan,
            pool,
            blocks,
            tables,
            whole: BTreeMap::new(),
            in_use: Vec::new(),
            filling: Vec::new(),
            worths: HashMap::new(),
            statistics: BTreeMap::new(),
            trace: trace.clone(),
        })
    }

    /// The cache as it is now.
    pub(super) fn plan(&self) -> &ExpertCachePlan {
        &self.plan
    }

    /// Notes what is found in it, as it was seen.
    pub(super) fn note_hits(&mut self, hit_percent: Option<u8>) {
        self.plan.misses.hit_percent = hit_percent;
    }

    /// Bytes of a slot.
    pub(super) fn slot_bytes(&self) -> Bytes {
        self.plan.slot_bytes
    }

    /// The slots of each buffer, with its table of a chunk.
    pub(super) fn bindings(&self, chunk: usize) -> impl Iterator<Item = [Binding<'_>; 2]> {
        let (begin, size_bytes) = self.tables.get(&chunk).copied().unwrap_or_default();
        self.blocks.iter().map(move |block| [Binding::whole(&block.memory), Binding::part(&block.tables, begin, size_bytes.0)])
    }

    /// What the cache was asked for so far, by chunk.
    pub(super) fn statistics(&self) -> &BTreeMap<usize, ExpertStatistics> {
        &self.statistics
    }

    fn statistics_of(&mut self, chunk: usize) -> &mut ExpertStatistics {
        self.statistics.entry(chunk).or_default()
    }

    /// How often each expert that was asked for counts in `forward`, by chunk and number.
    pub(super) fn times(&self, forward: usize) -> impl Iterator<Item = (Key, f64)> {
        self.worths.iter().map(move |(key, worth)| (*key, worth.times(forward)))
    }

    /// Begins with experts having been asked for as often as `times` says.
    pub(super) fn know(&mut self, times: &ExpertTimes) {
        self.worths.extend(warm_experts::taken(times).map(|(key, times)| (key, Worth(times.log2()))));
    }

    /// Brings experts, by chunk, before the first forward.
    ///
    /// # Errors
    /// Those of reading and of the adapter.
    pub(super) fn warm(
        &mut self,
        gpu: &Gpu,
        store: &Store,
        shape_of: impl Fn(usize) -> Option<ExpertShape>,
        taken: &[(usize, Vec<usize>)],
        progress: &dyn Fn(Bytes),
    ) -> Result<()> {
        for (chunk, experts) in taken {
            let Some(shape) = shape_of(*chunk) else { continue };
            self.load(gpu, store, Asked { chunk: *chunk, shape: &shape, forward: 0 }, experts, progress)?;
            self.release()?;
        }
        self.statistics.clear();
        Ok(())
    }

    /// Whether all experts of a chunk are here and stay.
    pub(super) fn is_whole(&self, chunk: usize) -> bool {
        self.whole.contains_key(&chunk)
    }

    /// Makes these chunks whole, and no others: brings all their experts, which stay from now on. To be called between forwards.
    ///
    /// # Errors
    /// Those of reading and of the adapter.
    pub(super) fn keep_whole(
        &mut self,
        gpu: &Gpu,
        store: &Store,
        shape_of: impl Fn(usize) -> Option<ExpertShape>,
        chunks: &[usize],
        progress: &dyn Fn(Bytes),
    ) -> Result<()> {
        let leaving: Vec<usize> = self.whole.keys().copied().filter(|chunk| !chunks.contains(chunk)).collect();
        for slot in leaving.iter().filter_map(|chunk| self.whole.remove(chunk)).flatten() {
            self.pool.release(slot)?;
        }
        for &chunk in chunks {
            let Some(shape) = shape_of(chunk).filter(|_| !self.is_whole(chunk)) else { continue };
            let experts: Vec<usize> = (0..shape.n_experts).collect();
            self.load(gpu, store, Asked { chunk, shape: &shape, forward: 0 }, &experts, progress)?;
            let slots = std::mem::take(&mut self.in_use);
            let places = experts.iter().filter_map(|&expert| Some((expert, self.pool.slot_of(&(chunk, expert))?)));
            self.write_tables(gpu, chunk, shape.n_experts, &places.collect::<Vec<_>>());
            self.whole.insert(chunk, slots);
        }
        self.plan.misses.n_whole = self.whole.len();
        Ok(())
    }

    /// Brings experts of a chunk outside a forward, where they are not there, and pins them.
    fn load(&mut self, gpu: &Gpu, store: &Store, asked: Asked<'_>, experts: &[usize], progress: &dyn Fn(Bytes)) -> Result<()> {
        for some in experts.chunks(EXPERTS_AT_ONCE) {
            let mut to_fill = Vec::new();
            for &expert in some {
                let key = (asked.chunk, expert);
                match self.pool.reserve(key) {
                    Some(Reserved::Hit(slot)) => self.in_use.push(slot),
                    Some(Reserved::Miss(slot)) => {
                        self.pool.set_worth(slot, self.worth(&key).0);
                        self.filling.push(slot);
                        to_fill.push((expert, slot));
                    }
                    None => return Err(Error::internal("an expert cache has no slot that is free")),
                }
            }
            self.fill(gpu, store, asked, &to_fill)?;
            // What was written is kept until it is copied.
            gpu.queue.submit([]);
            gpu.wait(None)?;
            progress(asked.shape.stored_bytes().times(some.len() as u64));
        }
        Ok(())
    }

    /// Counts what `n_tokens` tokens take of a whole chunk, and returns the buffers that have its experts.
    pub(super) fn use_whole(&mut self, chunk: usize, n_tokens: usize) -> BTreeSet<usize> {
        let n_used = self.plan.n_used / self.plan.n_layers.max(1);
        self.statistics_of(chunk).n_hits += (n_tokens * n_used).min(self.plan.layer_experts) as u64;
        self.whole.get(&chunk).into_iter().flatten().map(|slot| self.block_of(*slot)).collect()
    }

    fn block_of(&self, slot: usize) -> usize {
        slot / self.plan.block_slots.max(1)
    }

    /// Counts that `wanted` are asked for, takes those out of it that are missing and that the plan leaves to the host, and returns them: the
    /// ones that are worth least. None in a forward of more tokens than that is for.
    pub(super) fn leave_to_host(&mut self, asked: Asked<'_>, n_tokens: usize, wanted: &mut BTreeSet<usize>) -> Vec<usize> {
        let Asked { chunk, forward, .. } = asked;
        for &expert in wanted.iter() {
            let worth = self.worths.entry((chunk, expert)).or_insert(Worth::NONE);
            *worth = worth.asked_in(forward);
        }
        if n_tokens > HOST_MISS_TOKENS || !self.plan.misses.go_to_host() {
            return Vec::new();
        }
        let mut missing: Vec<usize> = wanted.iter().copied().filter(|expert| self.pool.slot_of(&(chunk, *expert)).is_none()).collect();
        missing.sort_by(|one, other| self.worth(&(chunk, *other)).0.total_cmp(&self.worth(&(chunk, *one)).0));
        let by_host = missing.split_off(self.plan.misses.n_uploaded(missing.len()));
        by_host.iter().for_each(|expert| _ = wanted.remove(expert));
        let statistics = self.statistics_of(chunk);
        statistics.n_misses += by_host.len() as u64;
        statistics.n_on_host += by_host.len() as u64;
        by_host
    }

    /// Brings the expert that is worth most among those that the host computed with, for the next forwards, where a slot is free or holds one
    /// that is worth clearly less.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn adopt(&mut self, gpu: &Gpu, store: &Store, asked: Asked<'_>, by_host: &[usize]) -> Result<()> {
        let Asked { chunk, forward, .. } = asked;
        let (Some(&best), Some(least)) = (by_host.first(), self.pool.least_worth()) else { return Ok(()) };
        let worth = self.worth(&(chunk, best));
        if worth.times(forward) < Worth(least).times(forward) + LEAST_GAIN {
            return Ok(());
        }
        if let Some(Reserved::Miss(slot)) = self.pool.reserve((chunk, best)) {
            self.pool.set_worth(slot, worth.0);
            self.filling.push(slot);
            self.fill(gpu, store, asked, &[(best, slot)])?;
        }
        self.release()
    }

    fn worth(&self, key: &Key) -> Worth {
        self.worths.get(key).copied().unwrap_or(Worth::NONE)
    }

    /// Brings as many of `wanted`, the numbers of different experts, as there are slots for, and takes them out of it. They stay until
    /// [`ExpertCache::release`]; the tables of the chunk name them, and of a whole chunk all, and no others. Returns the buffers that they
    /// are in.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn bring(&mut self, gpu: &Gpu, store: &Store, asked: Asked<'_>, wanted: &mut BTreeSet<usize>) -> Result<BTreeSet<usize>> {
        // Those that are here come first, so that none of them makes room for another one.
        let is_here = |expert: &usize| self.pool.slot_of(&(asked.chunk, *expert)).is_some();
        let (here, missing): (Vec<usize>, Vec<usize>) = wanted.iter().partition(|expert| is_here(expert));
        let (mut places, mut to_fill) = (Vec::new(), Vec::new());
        for expert in here.into_iter().chain(missing) {
            let slot = match self.pool.reserve((asked.chunk, expert)) {
                None => break,
                Some(Reserved::Hit(slot)) => {
                    self.in_use.push(slot);
                    self.statistics_of(asked.chunk).n_hits += 1;
                    slot
                }
                Some(Reserved::Miss(slot)) => {
                    self.statistics_of(asked.chunk).n_misses += 1;
                    self.filling.push(slot);
                    to_fill.push((expert, slot));
                    slot
                }
            };
            self.pool.set_worth(slot, self.worth(&(asked.chunk, expert)).0);
            places.push((expert, slot));
            wanted.remove(&expert);
        }
        if places.is_empty() {
            return Err(Error::internal("an expert cache has no slot that is free"));
        }
        self.fill(gpu, store, asked, &to_fill)?;
        if !self.is_whole(asked.chunk) {
            self.write_tables(gpu, asked.chunk, asked.shape.n_experts, &places);
        }
        Ok(places.iter().map(|(_, slot)| self.block_of(*slot)).collect())
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
            let parts = (0..some.len() * n_matrices).map(|index| (some[index / n_matrices].0, index % n_matrices));
            let parts = store.experts(asked.chunk, asked.shape, &parts.collect::<Vec<_>>())?;
            let moved = Bytes(parts.iter().map(|part| part.len() as u64).sum());
            if store.is_on_disk(asked.chunk) {
                self.span(Lane::Fetch, asked, start_secs, moved);
            }
            let start_secs = self.trace.now();
            for (index, part) in parts.iter().enumerate() {
                let (slot, (begin, _)) = (some[index / n_matrices].1, asked.shape.matrices[index % n_matrices]);
                self.write(gpu, slot, begin, part)?;
            }
            self.span(Lane::Upload, asked, start_secs, moved);
            self.statistics_of(asked.chunk).uploaded += moved;
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
        let block = self.blocks.get(self.block_of(slot));
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

    /// Says in every table of a chunk which of `places`, experts with their slots, are in its buffer.
    fn write_tables(&self, gpu: &Gpu, chunk: usize, n_experts: usize, places: &[(usize, usize)]) {
        let (begin, _) = self.tables.get(&chunk).copied().unwrap_or_default();
        for block in &self.blocks {
            let mut table = vec![NO_SLOT; n_experts];
            for &(expert, slot) in places {
                if let Some(own) = slot.checked_sub(block.place.first_slot).filter(|own| *own < block.place.n_slots) {
                    table[expert] = own as u32;
                }
            }
            gpu.queue.write_buffer(&block.tables, begin, bytemuck::cast_slice(&table));
        }
    }
}

/// Forwards after which what was asked for counts half.
const HALF_LIFE: f64 = 64.0;
/// How much more often an expert must have been asked for to be brought in place of another one that is not needed now.
const LEAST_GAIN: f64 = 0.5;
/// Experts that are read before they are written to their slots.
const EXPERTS_AT_ONCE: usize = 16;
/// Bytes of a word: what is written to a buffer is a multiple of it.
const WORD: usize = wgpu::COPY_BUFFER_ALIGNMENT as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_long_ago_counts_little() {
        let often_before = (0..8).fold(Worth::NONE, Worth::asked_in);
        let once = |forward: usize| Worth::NONE.asked_in(forward);
        assert!((once(8).times(8) - 1.0).abs() < 1e-9 && (once(0).times(HALF_LIFE as usize) - 0.5).abs() < 1e-9);
        assert!(often_before.times(8) > 7.5 && often_before.times(8) < 8.0);
        let much_later = 4 * HALF_LIFE as usize;
        assert!(often_before.0 > once(8).0 && often_before.0 < once(much_later).0);
        assert_eq!(Worth::NONE.times(0), 0.0);
    }
}
