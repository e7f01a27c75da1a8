//! Kernel sources become compute pipelines, once each, and dispatches that are ready to encode. Knows what a kernel looks like, not which there are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Gpu;

/// What a pipeline is made of: one row of the kernel table.
#[derive(Debug)]
pub struct KernelSource {
    /// File stem in `shaders/`, and the name of its module in `kernels`.
    pub stem: &'static str,
    /// The WGSL as it is compiled.
    pub wgsl: &'static str,
    /// Size of `Params` at binding 0.
    pub params_bytes: u64,
    /// Bindings 1, 2, ...: name and access, in the shader's order.
    pub bindings: &'static [(&'static str, Access)],
}

/// How a kernel uses a storage buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    Write,
}

/// A compiled kernel with its bind group layout.
#[derive(Debug)]
pub struct Pipeline {
    /// The pipeline.
    pub pipeline: wgpu::ComputePipeline,
    /// Layout of group 0.
    pub layout: wgpu::BindGroupLayout,
}

/// One kernel with its buffers, ready to encode as often as wanted.
#[derive(Debug, Clone)]
pub struct Dispatch {
    /// The kernel.
    pub pipeline: Arc<Pipeline>,
    /// Params buffer and storage buffers.
    pub bind_group: wgpu::BindGroup,
    /// Workgroups in x, y, z.
    pub workgroups: [u32; 3],
}

impl Dispatch {
    /// Records the dispatch; `params_offset` is what [`super::ParamsArena::push`] returned for its params.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, params_offset: u32) {
        let [x, y, z] = self.workgroups;
        pass.set_pipeline(&self.pipeline.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[params_offset]);
        pass.dispatch_workgroups(x, y, z);
    }
}

/// Stem and override constants (as bits, since f64 has no order).
type Key = (&'static str, Vec<(&'static str, u64)>);

#[derive(Debug, Default)]
pub(super) struct PipelineCache {
    pipelines: Mutex<BTreeMap<Key, Arc<Pipeline>>>,
}

impl Gpu {
    /// The pipeline of `kernel` with these override constants, compiled at the first call.
    /// A shader that does not compile is a fault that [`Gpu::check`] reports.
    pub fn pipeline(&self, kernel: &'static KernelSource, constants: &[(&'static str, f64)]) -> Arc<Pipeline> {
        let key = (kernel.stem, constants.iter().map(|&(name, value)| (name, value.to_bits())).collect());
        let mut pipelines = self.pipelines.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(pipelines.entry(key).or_insert_with(|| Arc::new(self.compile(kernel, constants))))
    }

    fn compile(&self, kernel: &'static KernelSource, constants: &[(&'static str, f64)]) -> Pipeline {
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(kernel.stem), source: wgpu::ShaderSource::Wgsl(kernel.wgsl.into()) };
        #[expect(unsafe_code, reason = "the checks cost up to half of a kernel's speed")]
        // SAFETY: the sources are those of this crate. Each kernel's `prepare` checks its bindings against its params, and
        // indices that are read from buffers are bounded in the shader, so no access leaves a binding; no loop is endless.
        let module = unsafe { self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
        let layout = self.bind_group_layout(kernel);
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.stem),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.stem),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            // Every kernel writes its workgroup memory before it reads it.
            compilation_options: wgpu::PipelineCompilationOptions { constants, zero_initialize_workgroup_memory: false },
            cache: None,
        });
        Pipeline { pipeline, layout }
    }

    fn bind_group_layout(&self, kernel: &KernelSource) -> wgpu::BindGroupLayout {
        let entry = |binding: usize, ty, has_dynamic_offset, min_binding_size| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size },
            count: None,
        };
        let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, true, wgpu::BufferSize::new(kernel.params_bytes))];
        for (index, &(_, access)) in kernel.bindings.iter().enumerate() {
            let read_only = access == Access::Read;
            entries.push(entry(index + 1, wgpu::BufferBindingType::Storage { read_only }, false, None));
        }
        self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel.stem), entries: &entries })
    }
}
