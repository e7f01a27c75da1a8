//! GPU → host, for logits and tests. Knows no shapes.

use std::sync::{MutexGuard, PoisonError};

use futures_channel::oneshot;

use super::{Buffer, Gpu, Purpose};
use crate::error::Result;
use crate::units::Bytes;

/// A copy to the host that is recorded after other work and read once both were submitted.
pub struct Readback {
    staging: Buffer,
    len: u64,
}

/// Copies `len` bytes at `offset` of `buffer` (which needs `COPY_SRC`) to the host, after all work submitted so far.
/// `offset` and `len` are multiples of 4.
///
/// # Errors
/// As [`Readback::record`] and [`Readback::bytes`].
pub async fn read(gpu: &Gpu, buffer: &wgpu::Buffer, offset: u64, len: u64) -> Result<Vec<u8>> {
    if len == 0 { Ok(Vec::new()) } else { read_all(gpu, &[(buffer, offset, len)]).await }
}

/// The same of several ranges, whose bytes come one behind the other.
///
/// # Errors
/// As of [`read`].
pub async fn read_all(gpu: &Gpu, ranges: &[(&wgpu::Buffer, u64, u64)]) -> Result<Vec<u8>> {
    let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("readback") });
    let readback = Readback::record_all(gpu, &mut encoder, ranges).await?;
    gpu.queue.submit([encoder.finish()]);
    readback.bytes(gpu).await
}

impl Readback {
    /// Records the copy of `len` bytes, at least one, at `offset` of `buffer` (which needs `COPY_SRC`). Both are multiples of 4.
    ///
    /// # Errors
    /// Those of [`Gpu::buffer`] for the staging buffer, which is kept for the next readback; a range that leaves the buffer.
    pub async fn record(gpu: &Gpu, encoder: &mut wgpu::CommandEncoder, buffer: &wgpu::Buffer, offset: u64, len: u64) -> Result<Readback> {
        Readback::record_all(gpu, encoder, &[(buffer, offset, len)]).await
    }

    /// The same for several ranges, each a buffer, an offset and a length, whose bytes come one behind the other.
    ///
    /// # Errors
    /// As of [`Readback::record`].
    pub async fn record_all(gpu: &Gpu, encoder: &mut wgpu::CommandEncoder, ranges: &[(&wgpu::Buffer, u64, u64)]) -> Result<Readback> {
        let len = len_of(gpu, ranges)?;
        let staging = take_staging(gpu, len).await?;
        Ok(Readback::copied(staging, encoder, ranges))
    }

    /// The same without waiting: `None`, and nothing is recorded, where the staging buffer that is kept does not suffice.
    ///
    /// # Errors
    /// A range that leaves its buffer.
    pub fn record_in_kept(gpu: &Gpu, encoder: &mut wgpu::CommandEncoder, ranges: &[(&wgpu::Buffer, u64, u64)]) -> Result<Option<Readback>> {
        let len = len_of(gpu, ranges)?;
        let staging = kept_staging(gpu).take_if(|staging| staging.size() >= len.0);
        Ok(staging.map(|staging| Readback::copied(staging, encoder, ranges)))
    }

    fn copied(staging: Buffer, encoder: &mut wgpu::CommandEncoder, ranges: &[(&wgpu::Buffer, u64, u64)]) -> Readback {
        let mut end = 0;
        for &(buffer, offset, len) in ranges {
            encoder.copy_buffer_to_buffer(buffer, offset, &staging, end, len);
            end += len;
        }
        Readback { staging, len: end }
    }

    /// The bytes, once the recorded copy is submitted and done.
    ///
    /// # Errors
    /// An error of the device.
    pub async fn bytes(self, gpu: &Gpu) -> Result<Vec<u8>> {
        self.bytes_after(gpu, None).await
    }

    /// The same where the copy is part of this submission: what was submitted later is not waited for.
    ///
    /// # Errors
    /// As of [`Readback::bytes`].
    pub async fn bytes_after(self, gpu: &Gpu, submission: Option<wgpu::SubmissionIndex>) -> Result<Vec<u8>> {
        let Readback { staging, len } = self;
        let (sender, receiver) = oneshot::channel();
        staging.slice(..len).map_async(wgpu::MapMode::Read, move |mapped| {
            // Nobody listens any more where the caller was dropped.
            let _ = sender.send(mapped);
        });
        gpu.wait(submission)?;
        let mapped = receiver.await.map_err(|_| gpu.error("the readback was never answered"))?;
        // The loss of the device is the cause of the mapping that fails.
        gpu.check()?;
        mapped.map_err(|error| gpu.error(format!("the readback failed: {error}")))?;
        let view = staging.slice(..len).get_mapped_range().map_err(|error| gpu.error(format!("the readback failed: {error}")))?;
        let bytes = view.to_vec();
        drop(view);
        staging.unmap();
        *kept_staging(gpu) = Some(staging);
        Ok(bytes)
    }
}

/// Bytes of all ranges, each of which must be within its buffer.
fn len_of(gpu: &Gpu, ranges: &[(&wgpu::Buffer, u64, u64)]) -> Result<Bytes> {
    ranges.iter().try_for_each(|&(buffer, offset, len)| check_range(gpu, buffer, offset, len))?;
    Ok(Bytes(ranges.iter().map(|(.., len)| len).sum()))
}

fn check_range(gpu: &Gpu, buffer: &wgpu::Buffer, offset: u64, len: u64) -> Result<()> {
    if offset.checked_add(len).is_none_or(|end| end > buffer.size()) || !(offset | len).is_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT) {
        return Err(gpu.error(format!("readback of {len} bytes at {offset} of a buffer of {} bytes", buffer.size())));
    }
    Ok(())
}

/// The kept staging buffer where it is large enough, else a new one. Two readbacks at once simply use two.
async fn take_staging(gpu: &Gpu, size: Bytes) -> Result<Buffer> {
    let kept = kept_staging(gpu).take();
    match kept {
        Some(staging) if staging.size() >= size.0 => Ok(staging),
        // The small one is dropped first, so that both are never counted at once.
        kept => {
            drop(kept);
            gpu.buffer("readback", size, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST, Purpose::Staging).await
        }
    }
}

/// The staging buffer that is kept between readbacks, where none is using it.
fn kept_staging(gpu: &Gpu) -> MutexGuard<'_, Option<Buffer>> {
    gpu.readback.lock().unwrap_or_else(PoisonError::into_inner)
}
