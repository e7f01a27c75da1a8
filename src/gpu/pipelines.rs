//! Kernel sources become compute pipelines, once each and side by side, and dispatches that are ready to encode. Knows what a
//! kernel looks like, not which there are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::Gpu;
use super::driver_cache::DriverCache;
use crate::platform;

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

/// A kernel with constants of its own: its bind group layout at once, what the driver makes of it a little later.
#[derive(Debug)]
pub struct Pipeline {
    kernel: Arc<Kernel>,
    constants: Vec<(&'static str, f64)>,
    compiled: OnceLock<wgpu::ComputePipeline>,
}

impl Pipeline {
    /// Layout of group 0.
    pub fn layout(&self) -> &wgpu::BindGroupLayout {
        &self.kernel.layout
    }

    /// The compiled pipeline. Waits for it where it is being compiled, and compiles it where nobody began to.
    pub fn compiled(&self) -> &wgpu::ComputePipeline {
        self.compiled.get_or_init(|| self.kernel.compile(&self.constants))
    }
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
        pass.set_pipeline(self.pipeline.compiled());
        pass.set_bind_group(0, &self.bind_group, &[params_offset]);
        pass.dispatch_workgroups(x, y, z);
    }

    /// Records the dispatch of no workgroups: it computes nothing, but drivers that compile at a kernel's first use do so.
    pub fn encode_first_use(&self, pass: &mut wgpu::ComputePass<'_>, params_offset: u32) {
        Dispatch { workgroups: [0; 3], ..self.clone() }.encode(pass, params_offset);
    }
}

/// The key of a compiled kernel: two with the same stem have different numbers of bindings.
type KernelKey = (&'static str, usize);
/// A kernel and its override constants (as bits, since f64 has no order).
type PipelineKey = (KernelKey, Vec<(&'static str, u64)>);

/// All pipelines of an adapter.
#[derive(Debug)]
pub(super) struct Pipelines {
    made: Mutex<Made>,
    driver_cache: Option<Arc<DriverCache>>,
}

#[derive(Debug, Default)]
struct Made {
    kernels: BTreeMap<KernelKey, Arc<Kernel>>,
    pipelines: BTreeMap<PipelineKey, Arc<Pipeline>>,
}

impl Pipelines {
    pub(super) fn new(device: &wgpu::Device, adapter: &wgpu::AdapterInfo) -> Pipelines {
        Pipelines { made: Mutex::default(), driver_cache: DriverCache::open(device, adapter).map(Arc::new) }
    }
}

impl Gpu {
    /// The pipeline of `kernel` with these override constants. The first call begins to compile it beside the caller's thread,
    /// so that pipelines that are asked for one after the other are compiled side by side.
    /// A shader that does not compile is an error that [`Gpu::check`] reports.
    pub fn pipeline(&self, kernel: &'static KernelSource, constants: &[(&'static str, f64)]) -> Arc<Pipeline> {
        let kernel_key = (kernel.stem, kernel.bindings.len());
        let key = (kernel_key, constants.iter().map(|&(name, value)| (name, value.to_bits())).collect());
        let mut made = self.pipelines.made.lock().unwrap_or_else(PoisonError::into_inner);
        let Made { kernels, pipelines } = &mut *made;
        let pipeline = pipelines.entry(key).or_insert_with(|| {
            let kernel = kernels.entry(kernel_key).or_insert_with(|| Arc::new(Kernel::new(self, kernel)));
            let constants = constants.to_vec();
            let pipeline = Arc::new(Pipeline { kernel: Arc::clone(kernel), constants, compiled: OnceLock::new() });
            let begun = Arc::clone(&pipeline);
            platform::in_background(move || {
                begun.compiled();
            });
            pipeline
        });
        Arc::clone(pipeline)
    }

    /// How many pipelines were made so far.
    pub(super) fn n_pipelines(&self) -> usize {
        self.pipelines.made.lock().unwrap_or_else(PoisonError::into_inner).pipelines.len()
    }

    /// Keeps what the driver compiled for the next run, where the driver gives it away and there is something new.
    pub fn keep_pipelines(&self) {
        if let Some(cache) = &self.pipelines.driver_cache {
            cache.keep();
        }
    }
}

/// What all pipelines of one kernel share.
#[derive(Debug)]
struct Kernel {
    source: &'static KernelSource,
    device: wgpu::Device,
    layout: wgpu::BindGroupLayout,
    module: OnceLock<wgpu::ShaderModule>,
    driver_cache: Option<Arc<DriverCache>>,
}

impl Kernel {
    fn new(gpu: &Gpu, source: &'static KernelSource) -> Kernel {
        let (device, driver_cache) = (gpu.device.clone(), gpu.pipelines.driver_cache.clone());
        Kernel { layout: bind_group_layout(&device, source), source, device, module: OnceLock::new(), driver_cache }
    }

    fn compile(&self, constants: &[(&'static str, f64)]) -> wgpu::ComputePipeline {
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(self.source.stem),
            bind_group_layouts: &[Some(&self.layout)],
            immediate_size: 0,
        });
        self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(self.source.stem),
            layout: Some(&pipeline_layout),
            module: self.module.get_or_init(|| self.parse()),
            entry_point: Some("main"),
            // Every kernel writes its workgroup memory before it reads it.
            compilation_options: wgpu::PipelineCompilationOptions { constants, zero_initialize_workgroup_memory: false },
            cache: self.driver_cache.as_ref().map(|driver_cache| driver_cache.cache()),
        })
    }

    fn parse(&self) -> wgpu::ShaderModule {
        let source = wgpu::ShaderSource::Wgsl(self.source.wgsl.into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(self.source.stem), source };
        #[expect(unsafe_code, reason = "the checks cost up to half of a kernel's speed")]
        // SAFETY: the sources are those of this crate. Each kernel's `prepare` checks its bindings against its params, and
        // indices that are read from buffers are bounded in the shader, so no access leaves a binding; no loop is endless.
        let module = unsafe { self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
        module
    }
}

fn bind_group_layout(device: &wgpu::Device, kernel: &KernelSource) -> wgpu::BindGroupLayout {
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
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel.stem), entries: &entries })
}
