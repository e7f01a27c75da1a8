//! The ring of slots on the GPU, for every upload path: slots that the host maps, staging buffers in front of device-local slots, or slots
//! that the queue writes to.

use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu, Purpose};
use crate::plan::{RingPlan, UploadPath};
use crate::stream::uploader::{SlotMemory, Slots};

/// The buffers of all slots. [`Slots`] know which of them are free, being filled or in use.
pub(super) struct Ring {
    slots: Vec<Slot>,
    upload: UploadPath,
    free: Slots<GpuSlot>,
}

struct Slot {
    /// What kernels bind.
    block: Buffer,
    /// What the host writes to; `None` where that is `block` itself.
    staging: Option<Buffer>,
}

/// A slot that may be filled.
pub(super) struct GpuSlot {
    index: usize,
    memory: wgpu::Buffer,
    way: Way,
}

/// How a slot is filled.
enum Way {
    /// Its memory is mapped; the adapter's name is for messages.
    Mapped { adapter: String },
    /// By this queue.
    Written(wgpu::Queue),
}

impl Ring {
    /// Allocates the slots. The upload workers get them from [`Ring::open`].
    pub(super) async fn new(gpu: &Gpu, plan: &RingPlan, free: Slots<GpuSlot>) -> Result<Ring> {
        let storage = wgpu::BufferUsages::STORAGE;
        let mut slots = Vec::with_capacity(plan.n_slots);
        for index in 0..plan.n_slots {
            let block_usage = match plan.upload {
                UploadPath::Mapped => storage | wgpu::BufferUsages::MAP_WRITE,
                UploadPath::Staged | UploadPath::Written => storage | wgpu::BufferUsages::COPY_DST,
            };
            let block = gpu.buffer(&format!("slot {index}"), plan.slot_bytes, block_usage, Purpose::Slots).await?;
            let staging = match plan.upload {
                UploadPath::Mapped | UploadPath::Written => None,
                UploadPath::Staged => {
                    let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
                    Some(gpu.buffer(&format!("staging {index}"), plan.slot_bytes, usage, Purpose::Staging).await?)
                }
            };
            slots.push(Slot { block, staging });
        }
        Ok(Ring { slots, upload: plan.upload, free })
    }

    /// Gives all slots to the upload workers.
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

    /// Gives the slot back to the upload workers once the GPU has finished what was submitted so far.
    pub(super) fn release(&self, gpu: &Gpu, index: usize) {
        let slot = &self.slots[index];
        let memory: wgpu::Buffer = (**slot.staging.as_ref().unwrap_or(&slot.block)).clone();
        let free = self.free.clone();
        if self.upload == UploadPath::Written {
            let way = Way::Written(gpu.queue.clone());
            return gpu.queue.on_submitted_work_done(move || free.give(GpuSlot { index, memory, way }));
        }
        let (way, mapped) = (Way::Mapped { adapter: gpu.spec.title() }, memory.clone());
        memory.slice(..).map_async(wgpu::MapMode::Write, move |result| {
            // Mapping fails only where the device is lost or closed: an upload worker then gets no slot, and the error
            // shows at the next check of the device.
            match result {
                Ok(()) => free.give(GpuSlot { index, memory: mapped, way }),
                Err(_) => free.close(),
            }
        });
    }
}

impl SlotMemory for GpuSlot {
    fn index(&self) -> usize {
        self.index
    }

    fn memory(&mut self) -> Option<&mut [u8]> {
        // Mapped GPU memory may be write-combined: it is written front to back, never read. Nor can disks write to most of it.
        None
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        match &self.way {
            Way::Mapped { adapter } => self.write_mapped(adapter, offset, bytes),
            Way::Written(queue) => {
                crate::gpu::write(queue, &self.memory, offset as u64, bytes);
                Ok(())
            }
        }
    }

    fn finish(&mut self) -> Result<()> {
        if let Way::Mapped { .. } = self.way {
            self.memory.unmap();
        }
        Ok(())
    }
}

impl GpuSlot {
    fn write_mapped(&self, adapter: &str, offset: usize, bytes: &[u8]) -> Result<()> {
        // Mapped ranges are multiples of 4 bytes; slices are padded to 256, so the tail stays inside the block.
        let padded = bytes.len().next_multiple_of(4);
        let range = offset as u64..(offset + padded) as u64;
        let view = self.memory.slice(range).get_mapped_range_mut();
        let mut view = view.map_err(|reason| Error::gpu(adapter, format!("cannot write to a mapped slot: {reason}")))?;
        view.slice(..bytes.len()).copy_from_slice(bytes);
        Ok(())
    }
}
