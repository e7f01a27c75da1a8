//! All params of one forward in one uniform buffer, uploaded at once and addressed by dynamic offsets. Knows no kernel.

use std::sync::Arc;

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
    /// Where it begins in the buffer.
    begin: u64,
    buffer: Arc<Buffer>,
}

impl ParamsArena {
    /// An arena with room for `capacity` params.
    ///
    /// # Errors
    /// Those of [`Gpu::buffer`].
    pub async fn new(gpu: &Gpu, capacity: usize) -> Result<ParamsArena> {
        Ok(ParamsArena::several(gpu, 1, capacity).await?.remove(0))
    }

    /// `n` arenas, each with room for `capacity` params, in one buffer, so that dispatches bind the same buffer with any of them.
    ///
    /// # Errors
    /// Those of [`Gpu::buffer`].
    pub async fn several(gpu: &Gpu, n: usize, capacity: usize) -> Result<Vec<ParamsArena>> {
        let of_one = PARAMS_STRIDE * capacity.max(1) as u64;
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let buffer = Arc::new(gpu.buffer("params", Bytes(of_one).times(n as u64), usage, Purpose::Other).await?);
        let arena = |index: u64| ParamsArena { bytes: Vec::new(), capacity, begin: index * of_one, buffer: Arc::clone(&buffer) };
        Ok((0..n as u64).map(arena).collect())
    }

    /// Adds `params` and returns the dynamic offset to encode their dispatch with.
    ///
    /// # Errors
    /// [`crate::error::Error::Gpu`] where the arena is full.
    pub fn push<T: Pod>(&mut self, gpu: &Gpu, params: &T) -> Result<u32> {
        self.push_bytes(gpu, bytemuck::bytes_of(params))
    }

    /// As [`ParamsArena::push`], of params whose type is not known any more.
    ///
    /// # Errors
    /// As [`ParamsArena::push`].
    pub fn push_bytes(&mut self, gpu: &Gpu, params: &[u8]) -> Result<u32> {
        let offset = self.bytes.len();
        if self.len() >= self.capacity || params.len() as u64 > PARAMS_STRIDE {
            return Err(gpu.error(format!("the params of one forward exceed the {} that were planned", self.capacity)));
        }
        self.bytes.extend_from_slice(params);
        self.bytes.resize(offset + PARAMS_STRIDE as usize, 0);
        u32::try_from(self.begin + offset as u64).map_err(|_| gpu.error("the params of one forward exceed 4 GiB"))
    }

    /// Writes all that was pushed. Comes before the submission that reads it; the queue keeps the order.
    pub fn upload(&self, gpu: &Gpu) {
        if !self.bytes.is_empty() {
            gpu.queue.write_buffer(&self.buffer, self.begin, &self.bytes);
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
