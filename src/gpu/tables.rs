//! Constant tables that kernels read. Knows neither kernels nor what the tables say.

use std::sync::{Mutex, PoisonError};

use super::{Buffer, Gpu, Purpose};
use crate::error::Result;

/// The tables of an adapter that were asked for so far.
#[derive(Debug, Default)]
pub(super) struct Tables(Mutex<Vec<(&'static [u32], Buffer)>>);

impl Gpu {
    /// The buffer that holds `words`. The first call makes it, and counts it; it is kept as long as the adapter is open.
    ///
    /// # Errors
    /// [`crate::error::Error::DoesNotFit`] over the budget.
    pub fn table(&self, words: &'static [u32]) -> Result<wgpu::Buffer> {
        let mut made = self.tables.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, buffer)) = made.iter().find(|(known, _)| std::ptr::eq(*known, words)) {
            return Ok((**buffer).clone());
        }
        let buffer = self.filled_buffer("table", bytemuck::cast_slice(words), wgpu::BufferUsages::STORAGE, Purpose::Other)?;
        let handle = (*buffer).clone();
        made.push((words, buffer));
        Ok(handle)
    }
}
