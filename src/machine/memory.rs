//! The memory of an adapter that does not report any: found by allocating as much as the driver gives.

use crate::device::AdapterKind;
use crate::error::{Error, Result};
use crate::gpu::{AdapterFound, Gpu, Purpose};
use crate::platform;
use crate::units::Bytes;

/// Bytes that are allocated at a time, and at most.
const STEP: Bytes = Bytes::mib(256);
const MOST: Bytes = Bytes::gib(64);

/// Whether trial allocations find out more than the driver says: not where the driver reports, and never on a software adapter, which would take the
/// host's memory until the system fails, and not in a browser, which gives memory that is not there.
pub(super) fn is_worth_trying(found: &AdapterFound) -> bool {
    platform::MAY_BLOCK && !found.reports_memory() && found.spec.kind != Some(AdapterKind::Software)
}

/// The bytes that the driver gives in buffers, which are given back. Of memory that is the host's, no more than half of what
/// is free there.
///
/// # Errors
/// Where the adapter cannot be opened or fails otherwise than by refusing.
pub(super) async fn take_all(found: &AdapterFound) -> Result<Bytes> {
    let shared = found.spec.kind.is_none_or(|kind| kind != AdapterKind::Discrete);
    let most = if shared { MOST.min(Bytes(platform::host_memory().available.0 / 2)) } else { MOST };
    let gpu = Gpu::open(found, most, None).await?;
    let step = STEP.min(gpu.limits.max_buffer_bytes);
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    let mut taken = Vec::new();
    loop {
        match gpu.buffer("probe", step, usage, Purpose::Other).await {
            Ok(buffer) => taken.push(buffer),
            Err(Error::DoesNotFit { .. }) => break,
            Err(error) => return Err(error),
        }
        // Some drivers give memory only when it is used.
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        taken.last().into_iter().for_each(|buffer| encoder.clear_buffer(buffer, 0, None));
        gpu.queue.submit([encoder.finish()]);
        if gpu.wait(None).is_err() {
            break;
        }
    }
    Ok(step.times(taken.len() as u64))
}
