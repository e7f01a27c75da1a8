//! The ring of slots on the GPU, for both upload paths: slots that the host maps, or staging in front of device-local slots.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu, Purpose};
use crate::plan::{RingPlan, UploadPath};
use crate::stream::feeder::{FreeSlots, SlotMemory};

/// All slots. A slot is at any time with one owner: free (queued for a worker), filling (with a worker), ready or in use (here).
pub(super) struct Ring {
    slots: Vec<Slot>,
    upload: UploadPath,
    free: FreeSlots<MappedSlot>,
}

struct Slot {
    /// What kernels bind.
    block: Buffer,
    /// What the host writes to; `None` where that is `block` itself.
    staging: Option<Buffer>,
}

/// A slot whose memory the host may write to.
pub(super) struct MappedSlot {
    /// Which slot of the ring.
    pub(super) index: usize,
    memory: wgpu::Buffer,
    adapter: String,
}

impl Ring {
    /// Allocates the slots. The workers get them from [`Ring::open`].
    pub(super) async fn new(gpu: &Gpu, plan: &RingPlan, free: FreeSlots<MappedSlot>) -> Result<Ring> {
        let storage = wgpu::BufferUsages::STORAGE;
        let mut slots = Vec::with_capacity(plan.n_slots);
        for index in 0..plan.n_slots {
            let block_usage = match plan.upload {
                UploadPath::Mapped => storage | wgpu::BufferUsages::MAP_WRITE,
                UploadPath::Staged => storage | wgpu::BufferUsages::COPY_DST,
            };
            let block = gpu.buffer(&format!("slot {index}"), plan.slot_bytes, block_usage, Purpose::Slots).await?;
            let staging = match plan.upload {
                UploadPath::Mapped => None,
                UploadPath::Staged => {
                    let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
                    Some(gpu.buffer(&format!("staging {index}"), plan.slot_bytes, usage, Purpose::Staging).await?)
                }
            };
            slots.push(Slot { block, staging });
        }
        Ok(Ring { slots, upload: plan.upload, free })
    }

    /// Gives all slots to the workers.
    pub(super) fn open(&self, gpu: &Gpu) {
        (0..self.n_slots()).for_each(|index| self.release(gpu, index));
    }

    /// How many slots.
    pub(super) fn n_slots(&self) -> usize {
        self.slots.len()
    }

    /// What kernels bind for slot `index`.
    pub(super) fn block(&self, index: usize) -> &wgpu::Buffer {
        &self.slots[index].block
    }

    /// Records the copy into a device-local slot; nothing where the host wrote into the slot itself.
    pub(super) fn encode_copy(&self, encoder: &mut wgpu::CommandEncoder, index: usize, size_bytes: u64) {
        if let (UploadPath::Staged, Some(staging)) = (self.upload, &self.slots[index].staging) {
            encoder.copy_buffer_to_buffer(staging, 0, &self.slots[index].block, 0, size_bytes);
        }
    }

    /// Asks for the slot's memory back; once the GPU has finished what was submitted so far, a worker gets it.
    pub(super) fn release(&self, gpu: &Gpu, index: usize) {
        let slot = &self.slots[index];
        let memory: wgpu::Buffer = (**slot.staging.as_ref().unwrap_or(&slot.block)).clone();
        let (free, adapter, mapped) = (self.free.clone(), gpu.spec.name.clone(), memory.clone());
        memory.slice(..).map_async(wgpu::MapMode::Write, move |result| {
            // Mapping fails only where the device is lost or closed: the worker then gets no slot, and the error
            // shows at the next check of the device.
            if result.is_ok() {
                let _ = free.send(Some(MappedSlot { index, memory: mapped, adapter }));
            } else {
                let _ = free.send(None);
            }
        });
    }
}

impl SlotMemory for MappedSlot {
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        // Mapped GPU memory may be write-combined: it is written front to back, never read.
        None
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        // Mapped ranges are multiples of 4 bytes; slices are padded to 256, so the tail stays inside the block.
        let padded = bytes.len().next_multiple_of(4);
        let range = offset as u64..(offset + padded) as u64;
        let mut view = self
            .memory
            .slice(range)
            .get_mapped_range_mut()
            .map_err(|fault| Error::Gpu { adapter: self.adapter.clone(), fault: format!("cannot write to a mapped slot: {fault}") })?;
        let mut view = view.slice(..bytes.len());
        view.copy_from_slice(bytes);
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.memory.unmap();
        Ok(())
    }
}

/// Keeps a driver's callbacks going: waits for every submission, in a thread of its own, and tells when it was done. Of each
/// submission it keeps a `T`.
pub(super) struct Poller<T> {
    submissions: Option<std::sync::mpsc::Sender<(wgpu::SubmissionIndex, Option<T>)>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl<T: Send + 'static> Poller<T> {
    /// Starts the thread, which calls `done` when a submission is done.
    pub(super) fn start(gpu: &Arc<Gpu>, mut done: impl FnMut(T) + Send + 'static) -> Result<Poller<T>> {
        let (sender, receiver) = std::sync::mpsc::channel::<(wgpu::SubmissionIndex, Option<T>)>();
        let device = gpu.device.clone();
        let run = move || {
            for (submission_index, watched) in receiver {
                // An error here is a lost device, which the device's own callback records.
                let _ = device.poll(wgpu::PollType::Wait { submission_index: Some(submission_index), timeout: None });
                watched.into_iter().for_each(&mut done);
            }
        };
        let thread = std::thread::Builder::new()
            .name("tierflow-poller".into())
            .spawn(run)
            .map_err(|source| Error::io("start", "a thread that waits for the GPU", source))?;
        Ok(Poller { submissions: Some(sender), thread: Some(thread) })
    }

    /// Waits for the submission; what is `watched`, if anything, is handed over when it is done.
    pub(super) fn watch(&self, submission: wgpu::SubmissionIndex, watched: Option<T>) {
        if let Some(submissions) = &self.submissions {
            let _ = submissions.send((submission, watched));
        }
    }
}

impl<T> Drop for Poller<T> {
    fn drop(&mut self) {
        self.submissions = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
