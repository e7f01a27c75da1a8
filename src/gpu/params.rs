//! All params of one forward in one uniform buffer, uploaded at once and addressed by dynamic offsets. Knows no kernel.

use bytemuck::Pod;

use super::{Buffer, Gpu, Purpose};
use crate::error::Result;
use crate::units::Bytes;

/// Distance between two params: WebGPU's alignment of dynamic uniform offsets.
pub const PARAMS_STRIDE: u64 = 256;

/// Collects params and uploads them in one write.
#[derive(Debug)]
pub struct ParamsArena {
    bytes: Vec<u8>,
    capacity: usize,
    buffer: Buffer,
}

impl ParamsArena {
    /// An arena with room for `capacity` params.
    ///
    /// # Errors
    /// Those of [`Gpu::buffer`].
    pub async fn new(gpu: &Gpu, capacity: usize) -> Result<ParamsArena> {
        let size = Bytes(PARAMS_STRIDE * capacity.max(1) as u64);
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        Ok(ParamsArena { bytes: Vec::new(), capacity, buffer: gpu.buffer("params", size, usage, Purpose::Other).await? })
    }

    /// Adds `params` and returns the dynamic offset to encode their dispatch with.
    ///
    /// # Errors
    /// [`crate::error::Error::Gpu`] where the arena is full.
    pub fn push<T: Pod>(&mut self, gpu: &Gpu, params: &T) -> Result<u32> {
        let offset = self.bytes.len();
        if self.len() >= self.capacity || size_of::<T>() as u64 > PARAMS_STRIDE {
            return Err(gpu.fault(format!("the params of one forward exceed the {} that were planned", self.capacity)));
        }
        self.bytes.extend_from_slice(bytemuck::bytes_of(params));
        self.bytes.resize(offset + PARAMS_STRIDE as usize, 0);
        u32::try_from(offset).map_err(|_| gpu.fault("the params of one forward exceed 4 GiB"))
    }

    /// Writes all that was pushed. Comes before the submission that reads it; the queue keeps the order.
    pub fn upload(&self, gpu: &Gpu) {
        if !self.bytes.is_empty() {
            gpu.queue.write_buffer(&self.buffer, 0, &self.bytes);
        }
    }

    /// Forgets all params, for the next forward.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Params pushed since the last [`ParamsArena::clear`].
    pub fn len(&self) -> usize {
        self.bytes.len() / PARAMS_STRIDE as usize
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The uniform buffer, for binding 0 of every kernel.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }
}
