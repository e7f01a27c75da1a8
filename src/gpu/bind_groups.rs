//! A cache of bind groups by what they bind: a forward of another shape uses those of the one before.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use super::Gpu;

/// Most bind groups that are kept. Only long prompts that are cut in many ways come near; then all are made again.
const MAX_KEPT: usize = 1 << 14;

/// A part of a buffer: the buffer, its first byte, its size.
type Part = (wgpu::Buffer, u64, u64);

/// Bind groups by their layout and what they bind.
type Kept = HashMap<(wgpu::BindGroupLayout, Vec<Part>), wgpu::BindGroup>;

/// All bind groups of an adapter.
#[derive(Debug, Default)]
pub(super) struct BindGroups {
    /// `None` where nothing is kept, since bind groups keep the buffers alive that they bind.
    kept: Mutex<Option<Kept>>,
    /// By the kernel that they are for.
    n_made: Mutex<BTreeMap<&'static str, usize>>,
}

/// How many objects were made for an adapter so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectCounts {
    /// Bind groups, by the kernel that they are for.
    pub bind_groups: BTreeMap<&'static str, usize>,
    /// Pipelines.
    pub pipelines: usize,
}

fn entry(binding: u32, (buffer, offset, size): &Part) -> wgpu::BindGroupEntry<'_> {
    let part = wgpu::BufferBinding { buffer, offset: *offset, size: wgpu::BufferSize::new(*size) };
    wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(part) }
}

impl Gpu {
    /// Keeps every bind group from now on, and with it the buffers that it binds: for an adapter whose buffers live as long as it does.
    pub fn keep_bind_groups(&self) {
        self.bind_groups.kept.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default();
    }

    /// The bind group of `parts`, at bindings 0, 1, and so on, for the kernel of this name.
    pub fn bind_group(&self, kernel: &'static str, layout: &wgpu::BindGroupLayout, parts: Vec<Part>) -> wgpu::BindGroup {
        let mut kept = self.bind_groups.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (layout.clone(), parts);
        if let Some(found) = kept.as_ref().and_then(|kept| kept.get(&key)) {
            return found.clone();
        }
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..).zip(&key.1).map(|(binding, part)| entry(binding, part)).collect();
        let made = self.device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some(kernel), layout, entries: &entries });
        *self.bind_groups.n_made.lock().unwrap_or_else(PoisonError::into_inner).entry(kernel).or_default() += 1;
        if let Some(kept) = &mut *kept {
            if kept.len() >= MAX_KEPT {
                kept.clear();
            }
            kept.insert(key, made.clone());
        }
        made
    }

    /// How many bind groups and pipelines were made so far.
    pub fn object_counts(&self) -> ObjectCounts {
        let bind_groups = self.bind_groups.n_made.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ObjectCounts { bind_groups, pipelines: self.n_pipelines() }
    }
}
