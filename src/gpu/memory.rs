//! Buffers with accounting: the budget is enforced here, since drivers spill to host memory instead of refusing. Knows no tensors.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Gpu;
use crate::error::{Advice, Error, Remedy, Result, Setting};
use crate::units::Bytes;

/// A buffer whose bytes are counted for as long as it lives.
#[derive(Debug)]
pub struct Buffer {
    buffer: wgpu::Buffer,
    purpose: Purpose,
    ledger: Arc<Ledger>,
}

impl Deref for Buffer {
    type Target = wgpu::Buffer;

    fn deref(&self) -> &wgpu::Buffer {
        &self.buffer
    }
}

impl Drop for Buffer {
    /// Dropping it destroys the GPU's buffer once submitted work has ended, without waiting for a browser's garbage collector, which does not
    /// see the memory of GPUs.
    fn drop(&mut self) {
        self.buffer.destroy();
        self.ledger.give_back(Bytes(self.buffer.size()), self.purpose);
    }
}

/// Sizes of buffers are multiples of this: a shader's `vec4<u32>`.
pub const BUFFER_ALIGNMENT: u64 = 16;

/// What a buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Resident weights.
    Weights,
    /// Slots of the ring that streamed units pass through.
    Slots,
    /// The cache of experts.
    Experts,
    /// Memory that copies go through, both ways.
    Staging,
    /// Keys and values of past positions.
    KvCache,
    /// Values between operations.
    Activations,
    /// Params and the rest.
    Other,
}

impl Purpose {
    /// All of them, for tables.
    pub const ALL: [Purpose; 7] =
        [Purpose::Weights, Purpose::Slots, Purpose::Experts, Purpose::Staging, Purpose::KvCache, Purpose::Activations, Purpose::Other];
}

/// Bytes in use, and the most that ever were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Now.
    pub in_use: Bytes,
    /// The most at any time.
    pub peak: Bytes,
}

/// The account of one device's memory.
#[derive(Debug)]
pub struct Ledger {
    budget: Bytes,
    total: Counter,
    by_purpose: [Counter; Purpose::ALL.len()],
}

#[derive(Debug, Default)]
struct Counter {
    in_use: AtomicU64,
    peak: AtomicU64,
}

impl Counter {
    fn usage(&self) -> Usage {
        Usage { in_use: Bytes(self.in_use.load(Ordering::Relaxed)), peak: Bytes(self.peak.load(Ordering::Relaxed)) }
    }
}

impl Ledger {
    /// An empty account over `budget` bytes.
    pub fn new(budget: Bytes) -> Ledger {
        Ledger { budget, total: Counter::default(), by_purpose: Default::default() }
    }

    /// The bytes that may be in use at once.
    pub fn budget(&self) -> Bytes {
        self.budget
    }

    /// All purposes together. Tests check the peak against the budget.
    pub fn total(&self) -> Usage {
        self.total.usage()
    }

    /// One purpose.
    pub fn of(&self, purpose: Purpose) -> Usage {
        self.by_purpose[purpose as usize].usage()
    }

    /// Takes `size` out of the budget, or says how much is left.
    fn take(&self, size: Bytes, purpose: Purpose) -> std::result::Result<(), Bytes> {
        let budget = self.budget.0;
        let taken = self
            .total
            .in_use
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |in_use| in_use.checked_add(size.0).filter(|&sum| sum <= budget));
        match taken {
            Ok(before) => self.total.peak.fetch_max(before + size.0, Ordering::AcqRel),
            Err(in_use) => return Err(Bytes(budget.saturating_sub(in_use))),
        };
        let counter = &self.by_purpose[purpose as usize];
        let before = counter.in_use.fetch_add(size.0, Ordering::AcqRel);
        counter.peak.fetch_max(before + size.0, Ordering::AcqRel);
        Ok(())
    }

    fn give_back(&self, size: Bytes, purpose: Purpose) {
        self.by_purpose[purpose as usize].in_use.fetch_sub(size.0, Ordering::AcqRel);
        self.total.in_use.fetch_sub(size.0, Ordering::AcqRel);
    }
}

impl Gpu {
    /// Makes a buffer of `size` bytes (rounded up to 16, since shaders read weights four words at a time) and counts it.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] over the budget, over the adapter's largest buffer, or where the driver has no memory left.
    pub async fn buffer(&self, label: &str, size: Bytes, usage: wgpu::BufferUsages, purpose: Purpose) -> Result<Buffer> {
        let size = self.counted(label, size, purpose)?;
        // Scopes nest: the inner one is popped first. Both are popped before the await, since a scope belongs to its thread.
        let memory_scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation_scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size: size.0, usage, mapped_at_creation: false };
        let buffer = Buffer { buffer: self.device.create_buffer(&descriptor), purpose, ledger: Arc::clone(&self.ledger) };
        let (invalid, out_of_memory) = (validation_scope.pop(), memory_scope.pop());
        if let Some(error) = invalid.await {
            return Err(self.error(format!("buffer `{label}` of {size}: {error}")));
        }
        if out_of_memory.await.is_some() {
            let free = self.ledger.budget().saturating_sub(self.ledger.total().in_use) + size;
            let because = "the budget has room but the driver has not".into();
            let remedies = vec![Remedy::LowerBudgetOfGpu, Remedy::other("close other programs")];
            return Err(self.does_not_fit(label, size, free, Advice { because, remedies }));
        }
        Ok(buffer)
    }

    /// A small buffer that holds `bytes`, a multiple of 16, from the beginning on: at once, so that a driver without memory for it says so
    /// later ([`Gpu::check`]).
    ///
    /// # Errors
    /// As [`Gpu::buffer`], but for the driver's own.
    pub(super) fn filled_buffer(&self, label: &str, bytes: &[u8], usage: wgpu::BufferUsages, purpose: Purpose) -> Result<Buffer> {
        let size = self.counted(label, Bytes(bytes.len() as u64), purpose)?;
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size: size.0, usage, mapped_at_creation: true };
        let buffer = Buffer { buffer: self.device.create_buffer(&descriptor), purpose, ledger: Arc::clone(&self.ledger) };
        let invalid = |error| self.error(format!("buffer `{label}` of {size}: {error}"));
        buffer.slice(..).get_mapped_range_mut().map_err(invalid)?.copy_from_slice(bytes);
        buffer.unmap();
        Ok(buffer)
    }

    /// Takes the bytes of a buffer out of the budget: `size`, rounded up.
    fn counted(&self, label: &str, size: Bytes, purpose: Purpose) -> Result<Bytes> {
        let size = Bytes(size.0.max(1)).align_up(BUFFER_ALIGNMENT);
        if size > self.limits.max_buffer_bytes {
            return Err(Error::ExceedsLimit {
                device: format!("{} ({label})", self.spec.device),
                needed: size,
                available: self.limits.max_buffer_bytes,
                advice: [Remedy::other("this is the adapter's largest buffer: the tensor must be cut into slices")].into(),
            });
        }
        self.ledger.take(size, purpose).map_err(|left| {
            let lower = |setting| Remedy::Lower(setting, None);
            let raise = Remedy::RaiseBudget(self.spec.device.to_string());
            self.does_not_fit(label, size, left, [raise, lower(Setting::CtxSize), lower(Setting::Lookahead)].into())
        })?;
        Ok(size)
    }

    fn does_not_fit(&self, label: &str, needed: Bytes, available: Bytes, advice: Advice) -> Error {
        Error::DoesNotFit { device: format!("{} ({label})", self.spec.device), needed, available, advice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_refuses_over_budget_and_remembers_the_peak() {
        let ledger = Ledger::new(Bytes(100));
        assert_eq!(ledger.take(Bytes(60), Purpose::Weights), Ok(()));
        assert_eq!(ledger.take(Bytes(41), Purpose::Slots), Err(Bytes(40)));
        assert_eq!(ledger.take(Bytes(40), Purpose::Slots), Ok(()));
        assert_eq!(ledger.take(Bytes(u64::MAX), Purpose::Other), Err(Bytes(0)));
        ledger.give_back(Bytes(60), Purpose::Weights);
        assert_eq!(ledger.total(), Usage { in_use: Bytes(40), peak: Bytes(100) });
        assert_eq!(ledger.of(Purpose::Weights), Usage { in_use: Bytes(0), peak: Bytes(60) });
        assert_eq!(ledger.of(Purpose::Other), Usage::default());
    }
}
