//! Filling one slot with one chunk: from host memory, from a mapped file, or from disk. Does not know which worker does it, nor when.

use std::sync::Arc;

use super::slots::Reservation;
use super::{Job, SlotMemory};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::platform::DirectBuffer;
use crate::stream::fetch::{Fetch, InPlaceRead, Reads};
use crate::stream::{Lane, Span, Store, Trace};
use crate::units::Bytes;

/// Where the chunks of one device come from.
#[derive(Clone)]
pub(super) struct Filler {
    pub(super) device: Device,
    pub(super) store: Arc<Store>,
    pub(super) plan: Arc<Plan>,
    pub(super) trace: Trace,
}

impl Filler {
    /// Brings the job's chunk into the reserved slot. `fetched` is the buffer for reads.
    ///
    /// # Errors
    /// Those of reading and of writing to the slot; [`Error::Internal`] where there will be no slot.
    pub(super) fn fill<S: SlotMemory>(&self, job: &Job<S>, reservation: &mut Reservation<S>, fetched: &mut DirectBuffer) -> Result<()> {
        let chunk = &self.plan.chunks[job.chunk];
        if let Some(bytes) = self.store.host_resident(job.chunk) {
            let slot = reservation.slot()?;
            return self.span(Lane::Upload, job, chunk.size_bytes, || {
                slot.write(0, bytes)?;
                slot.finish()
            });
        }
        let mapped: Option<Vec<&[u8]>> = chunk.slices.iter().map(|slice| self.store.mapped(job.chunk, slice)).collect();
        if let Some(parts) = mapped.filter(|parts| !parts.is_empty()) {
            let slot = reservation.slot()?;
            return self.span(Lane::Upload, job, chunk.size_bytes, || {
                for (slice, bytes) in chunk.slices.iter().zip(parts) {
                    slot.write(slice.offset as usize, bytes)?;
                }
                slot.finish()
            });
        }
        match self.store.reads(job.chunk) {
            Reads::None => {}
            Reads::Copied(fetches) => self.copy_from_disk(fetches, job, reservation, fetched)?,
            Reads::InPlace(reads) => self.read_into_slot(reads, job, reservation.slot()?)?,
        }
        reservation.slot()?.finish()
    }

    fn read_into_slot<S: SlotMemory>(&self, reads: &[InPlaceRead], job: &Job<S>, slot: &mut S) -> Result<()> {
        let Some(memory) = slot.memory() else {
            let reason = std::io::Error::other("no disk can write to it");
            return Err(Error::io("fill", format!("a slot of {}", self.device), reason));
        };
        for read in reads {
            self.span(Lane::Fetch, job, Bytes(read.len as u64), || self.store.read_in_place(read, memory))?;
        }
        Ok(())
    }

    /// Disk to slot, a few MiB at a time. The first read may begin before the slot is free.
    fn copy_from_disk<S: SlotMemory>(
        &self,
        fetches: &[Fetch],
        job: &Job<S>,
        reservation: &mut Reservation<S>,
        fetched: &mut DirectBuffer,
    ) -> Result<()> {
        for fetch in fetches {
            let size_bytes = fetch.stored_bytes();
            let start_secs = self.trace.now();
            let bytes = self.store.fetch(fetch, fetched)?;
            self.add_span(Lane::Fetch, job, size_bytes, start_secs);
            let slot = reservation.slot()?;
            self.span(Lane::Upload, job, size_bytes, || fetch.parts(bytes).try_for_each(|(to, part)| slot.write(to, part)))?;
        }
        Ok(())
    }

    fn span<S>(&self, lane: Lane, job: &Job<S>, size_bytes: Bytes, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let start_secs = self.trace.now();
        work()?;
        self.add_span(lane, job, size_bytes, start_secs);
        Ok(())
    }

    fn add_span<S>(&self, lane: Lane, job: &Job<S>, size_bytes: Bytes, start_secs: f64) {
        let end_secs = self.trace.now();
        self.trace.add(Span { lane, device: self.device, chunk: Some(job.chunk), forward: job.forward, start_secs, end_secs, size_bytes });
    }
}
