//! Filling one slot with one piece: from disk, from what the host holds, or from what is mapped. Knows not who does it, nor when.

use std::sync::Arc;

use super::{Job, SlotMemory};
use crate::device::Device;
use crate::error::Result;
use crate::plan::Plan;
use crate::platform::DirectBuffer;
use crate::stream::{Lane, Span, Store, Trace};
use crate::units::Bytes;

/// Where the pieces of one device come from.
#[derive(Clone)]
pub(super) struct Filler {
    pub(super) device: Device,
    pub(super) store: Arc<Store>,
    pub(super) plan: Arc<Plan>,
    pub(super) trace: Trace,
}

impl Filler {
    /// Brings the job's piece into `slot`. `fetched` holds what was read last.
    ///
    /// # Errors
    /// Those of reading and of writing to the slot.
    pub(super) fn fill<S: SlotMemory>(&self, job: &Job<S>, slot: &mut S, fetched: &mut DirectBuffer) -> Result<()> {
        let piece = &self.plan.pieces[job.piece];
        if let Some(bytes) = self.store.held(job.piece) {
            return self.span(Lane::Upload, job, piece.size_bytes, || write_all(slot, bytes));
        }
        let mapped: Option<Vec<&[u8]>> = piece.slices.iter().map(|slice| self.store.mapped(job.piece, slice)).collect();
        if let Some(parts) = mapped.filter(|parts| !parts.is_empty()) {
            return self.span(Lane::Upload, job, piece.size_bytes, || {
                for (slice, bytes) in piece.slices.iter().zip(parts) {
                    write_at(slot, slice.offset as usize, bytes)?;
                }
                slot.finish()
            });
        }
        self.fetch_in_steps(job, slot, fetched)
    }

    /// Disk to slot, a few MiB at a time.
    fn fetch_in_steps<S: SlotMemory>(&self, job: &Job<S>, slot: &mut S, fetched: &mut DirectBuffer) -> Result<()> {
        for fetch in self.store.fetches(job.piece) {
            let size_bytes = fetch.stored_bytes();
            let start_secs = self.trace.now();
            let bytes = self.store.fetch(fetch, fetched)?;
            self.add_span(Lane::Fetch, job, size_bytes, start_secs);
            self.span(Lane::Upload, job, size_bytes, || fetch.parts(bytes).try_for_each(|(to, part)| write_at(slot, to, part)))?;
        }
        slot.finish()
    }

    fn span<S>(&self, lane: Lane, job: &Job<S>, size_bytes: Bytes, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let start_secs = self.trace.now();
        work()?;
        self.add_span(lane, job, size_bytes, start_secs);
        Ok(())
    }

    fn add_span<S>(&self, lane: Lane, job: &Job<S>, size_bytes: Bytes, start_secs: f64) {
        let end_secs = self.trace.now();
        self.trace.add(Span { lane, device: self.device, piece: Some(job.piece), forward: job.forward, start_secs, end_secs, size_bytes });
    }
}

fn write_all(slot: &mut impl SlotMemory, bytes: &[u8]) -> Result<()> {
    write_at(slot, 0, bytes)?;
    slot.finish()
}

fn write_at(slot: &mut impl SlotMemory, offset: usize, bytes: &[u8]) -> Result<()> {
    match slot.bytes_mut() {
        Some(memory) => memory[offset..offset + bytes.len()].copy_from_slice(bytes),
        None => slot.write(offset, bytes)?,
    }
    Ok(())
}
