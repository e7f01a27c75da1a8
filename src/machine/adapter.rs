//! Probes of an adapter: the ways of upload, readback, submissions, compilation and products. They wait as what they measure for does:
//! natively in the driver, in a browser for its event loop.

use std::collections::BTreeMap;

use super::effort::{Effort, middle, time};
use super::products::{self, weight_bytes};
use super::variants::{Extent, Search};
use crate::device::{AdapterKind, MatMulVariant, MatMulVariants, Rates};
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{self, AdapterFound, Buffer, Dispatch, Gpu, ParamsArena, Purpose};
use crate::kernels::{Binding, expert_matmul, matmul};
use crate::platform::{self, clock::Instant};
use crate::units::{Bytes, BytesPerSec};

/// Bytes of one transfer, as large as streamed chunks are.
const TRANSFER: Bytes = Bytes::mib(8);
/// Host memory that the transfers read in turn, more than fits a cache.
const SOURCE: Bytes = Bytes::mib(64);
/// What the products of a run read in turn: more than the caches hold, those of the GPU or, for software, of the host.
const HARDWARE_POOL: Bytes = Bytes::mib(256);
const SOFTWARE_POOL: Bytes = Bytes::mib(64);
/// The pool's largest share of an adapter's memory.
const POOL_SHARE: u64 = 4;
/// Experts that a token takes, of whose matrices one is made: as most models have it.
const N_EXPERTS: u32 = 8;
/// Different matrices in one run.
const MAX_PLACES: u64 = 64;
/// Alignment of matrices in the pool, a multiple of every adapter's storage alignment.
const WEIGHT_ALIGNMENT: u64 = 256;
/// Input and output of the products.
const VALUES: Bytes = Bytes(products::MOST_VALUES as u64 * 4);
/// Submissions that are timed together for the cost of one.
const N_SUBMISSIONS: u32 = 16;
/// Waits that are timed together for the cost of one: clocks of browsers are coarse.
const N_ROUND_TRIPS: u32 = if platform::MAY_BLOCK { 1 } else { 4 };
/// What a browser's clock tells apart at best; less is no time that anything takes.
const LEAST_SECS: f64 = 1e-6;

/// Measures all rates of an adapter, of its products those in `dtypes`, and the variants for a model in those `of_model`.
///
/// # Errors
/// Where the adapter cannot be opened or a probe fails.
pub(super) async fn measure(found: &AdapterFound, effort: &Effort, dtypes: &[DType], of_model: &[DType]) -> Result<Rates> {
    let mut gpu = open(found).await?;
    let products = products_of(&mut gpu, found, effort, dtypes, of_model).await?;
    Ok(transfers_of(&gpu, &effort.anew()).await?.or(&products))
}

/// Measures an adapter's products in `dtypes`, and those variants for a model in those `of_model` that are not `known`.
///
/// # Errors
/// As of [`measure`].
pub(super) async fn measure_products(
    found: &AdapterFound,
    effort: &Effort,
    dtypes: &[DType],
    of_model: &[DType],
    known: &MatMulVariants,
) -> Result<Rates> {
    let mut gpu = open(found).await?;
    gpu.spec.rates.variants = known.clone();
    products_of(&mut gpu, found, effort, dtypes, of_model).await
}

/// Whether a search would find variants for a model in the dtypes `of_model` that are not `known`. None is made in a browser: it takes
/// longer than somebody waits for a page.
pub(super) fn lacks_variants(found: &AdapterFound, effort: &Effort, of_model: &[DType], known: &MatMulVariants) -> bool {
    platform::MAY_BLOCK && !Search::new(extent(found, effort), of_model, known.clone()).is_done()
}

fn extent(found: &AdapterFound, effort: &Effort) -> Extent {
    Extent { is_software: found.spec.kind == Some(AdapterKind::Software), is_full: effort.is_full_search() }
}

async fn open(found: &AdapterFound) -> Result<Gpu> {
    let budget = pool_size(found) + VALUES.times(2) + TRANSFER.times(8);
    if platform::MAY_BLOCK {
        return Gpu::open(found, budget, None).await;
    }
    // A browser opens an adapter once: the one that was found is left to what will compute.
    let again = gpu::list().await?.into_iter().find(|other| other.spec.device == found.spec.device);
    Gpu::open(again.as_ref().unwrap_or(found), budget, None).await
}

/// Waits until all that was submitted has run.
async fn done(gpu: &Gpu) -> Result<()> {
    if platform::MAY_BLOCK { gpu.wait(None) } else { gpu.finish().await }
}

/// The rates of products in `dtypes`, in the variants that are fastest.
async fn products_of(gpu: &mut Gpu, found: &AdapterFound, effort: &Effort, dtypes: &[DType], of_model: &[DType]) -> Result<Rates> {
    let pool_size = pool_size(found);
    let mut shader_compile_secs = None;
    if !dtypes.is_empty() {
        // Before anything else compiles them.
        shader_compile_secs = Some(Bench::new(gpu, pool_size).await?.compile(dtypes).await?);
    }
    // The rates are those of the fastest variants, which are found first.
    let variants = fastest_variants(gpu, found, effort, of_model).await?;
    if dtypes.is_empty() {
        return Ok(Rates { variants, ..Rates::default() });
    }
    gpu.spec.rates.variants = variants.clone();
    let mut bench = Bench::new(gpu, pool_size).await?;
    let largest = Bytes(pool_size.0 / 2).min(gpu.limits.max_binding_bytes);
    let run = async |params: &matmul::Params, repeats| bench.run(params, repeats).await;
    let rates = products::measure(&effort.anew(), dtypes, products::SMALL, largest, run).await?;
    // A browser makes somebody wait for every figure.
    let expert_matvec = if platform::MAY_BLOCK {
        let run = async |params: &matmul::Params, repeats| bench.run_experts(params, repeats).await;
        let dispatch_secs = rates.dispatch_secs.unwrap_or_default();
        products::measure_experts(&effort.anew(), dtypes, dispatch_secs, largest, run).await?
    } else {
        BTreeMap::new()
    };
    Ok(Rates { variants, shader_compile_secs, expert_matvec, ..rates })
}

/// The fastest variants for a model in the dtypes `of_model`, beside those that are known. One that fails, with whatever the driver
/// does then, is left out.
async fn fastest_variants(gpu: &mut Gpu, found: &AdapterFound, effort: &Effort, of_model: &[DType]) -> Result<MatMulVariants> {
    if !lacks_variants(found, effort, of_model, &gpu.spec.rates.variants) {
        return Ok(gpu.spec.rates.variants.clone());
    }
    let extent = extent(found, effort);
    let mut search = Search::new(extent, of_model, gpu.spec.rates.variants.clone());
    let effort = effort.of_search(extent.is_software);
    loop {
        let mut bench = Bench::new(gpu, pool_size(found)).await?;
        let gpu_of_search = bench.gpu;
        let variants = |params: &matmul::Params| {
            if extent.is_full { matmul::all_variants(gpu_of_search, params) } else { matmul::variants(gpu_of_search, params) }
        };
        let outcome = search.go_on(&effort, variants, |params, variant| bench.try_variant(params, variant));
        drop(bench);
        let Err((variant, error)) = outcome else { return Ok(search.into_fastest()) };
        tracing::warn!("the variant {variant} of matrix products is left out on {}: {error}", found.spec.name);
        // What a device computes after a failure is void.
        let known = std::mem::take(&mut gpu.spec.rates.variants);
        *gpu = open(found).await?;
        gpu.spec.rates.variants = known;
    }
}

/// The rates of uploads and readback, and the costs of submissions.
async fn transfers_of(gpu: &Gpu, effort: &Effort) -> Result<Rates> {
    Ok(Rates {
        readback: Some(readback(gpu, effort).await?),
        round_trip_secs: Some(effort.best_awaited(async || round_trip(gpu).await).await?),
        submit_secs: Some(effort.best_awaited(async || submission(gpu).await).await?),
        ..uploads_of(gpu, effort).await?
    })
}

/// The rates of the ways to the GPU that there are here.
async fn uploads_of(gpu: &Gpu, effort: &Effort) -> Result<Rates> {
    if !platform::MAY_BLOCK {
        return Ok(Rates { upload_written: Some(written(gpu, effort).await?), ..Rates::default() });
    }
    let source = vec![0x2A_u8; SOURCE.0 as usize];
    let upload_staged = Some(upload(gpu, effort, Upload::Staged, &source).await?);
    let upload_mapped = if gpu.mappable { Some(upload(gpu, effort, Upload::Mapped, &source).await?) } else { None };
    Ok(Rates { upload_staged, upload_mapped, ..Rates::default() })
}

fn pool_size(found: &AdapterFound) -> Bytes {
    let wanted = if found.spec.kind == Some(AdapterKind::Software) { SOFTWARE_POOL } else { HARDWARE_POOL };
    let largest_buffer = found.spec.limits.unwrap_or_default().max_buffer_bytes;
    let share = Bytes(found.spec.capacity.unwrap_or_default().0 / POOL_SHARE);
    wanted.min(largest_buffer).min(share.max(TRANSFER)).align_down(TRANSFER.0)
}

/// The two ways to the GPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Upload {
    /// Memory that the host writes and kernels read.
    Mapped,
    /// Memory that the host writes, and a copy on the queue.
    Staged,
}

/// One way's rate: host memory to where kernels can read it, waiting for each transfer. `source` is whole transfers.
async fn upload(gpu: &Gpu, effort: &Effort, way: Upload, source: &[u8]) -> Result<BytesPerSec> {
    let host_usage = wgpu::BufferUsages::MAP_WRITE
        | match way {
            Upload::Mapped => wgpu::BufferUsages::STORAGE,
            Upload::Staged => wgpu::BufferUsages::COPY_SRC,
        };
    let memory = gpu.buffer("probe", TRANSFER, host_usage, Purpose::Staging).await?;
    let slot_usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    let slot = match way {
        Upload::Mapped => None,
        Upload::Staged => Some(gpu.buffer("probe slot", TRANSFER, slot_usage, Purpose::Slots).await?),
    };
    let mut chunks = source.chunks_exact(TRANSFER.0 as usize).cycle();
    let mut transfer = || {
        let chunk = chunks.next().unwrap_or_default();
        time(|| {
            map(gpu, &memory)?;
            let invalid = |reason: wgpu::MapRangeError| gpu.error(format!("the upload probe failed: {reason}"));
            memory.slice(..).get_mapped_range_mut().map_err(invalid)?.copy_from_slice(chunk);
            memory.unmap();
            if let Some(slot) = &slot {
                let mut encoder = gpu.device.create_command_encoder(&Default::default());
                encoder.copy_buffer_to_buffer(&memory, 0, slot, 0, TRANSFER.0);
                gpu.queue.submit([encoder.finish()]);
            }
            gpu.wait(None)
        })
    };
    // The first transfer touches the memory.
    transfer()?;
    Ok(BytesPerSec::from_transfer(TRANSFER, effort.best(transfer)?))
}

/// The rate of writes by the queue, the browser's way, waiting for each.
async fn written(gpu: &Gpu, effort: &Effort) -> Result<BytesPerSec> {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    let slot = gpu.buffer("probe slot", TRANSFER, usage, Purpose::Slots).await?;
    let source = vec![0x2A_u8; TRANSFER.0 as usize];
    let transfer = async || {
        let begin = Instant::now();
        gpu::write(&gpu.queue, &slot, 0, &source);
        submit_nothing(gpu);
        done(gpu).await?;
        Ok(begin.elapsed().as_secs_f64().max(LEAST_SECS))
    };
    // The first transfer touches the memory.
    transfer().await?;
    Ok(BytesPerSec::from_transfer(TRANSFER, effort.best_awaited(transfer).await?))
}

/// Maps `memory` for writing, and waits for it.
fn map(gpu: &Gpu, memory: &Buffer) -> Result<()> {
    let (sender, mut receiver) = futures_channel::oneshot::channel();
    memory.slice(..).map_async(wgpu::MapMode::Write, move |result| drop(sender.send(result)));
    gpu.wait(None)?;
    match receiver.try_recv() {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(Some(Err(reason))) => Err(gpu.error(format!("the upload probe failed: {reason}"))),
        Ok(None) | Err(_) => Err(gpu.error("the upload probe failed: its memory was not mapped")),
    }
}

async fn readback(gpu: &Gpu, effort: &Effort) -> Result<BytesPerSec> {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
    let buffer = gpu.buffer("probe", TRANSFER, usage, Purpose::Activations).await?;
    let transfer = async || {
        let begin = Instant::now();
        gpu::read(gpu, &buffer, 0, TRANSFER.0).await?;
        Ok(begin.elapsed().as_secs_f64().max(LEAST_SECS))
    };
    // The first transfer makes the staging memory.
    transfer().await?;
    Ok(BytesPerSec::from_transfer(TRANSFER, effort.best_awaited(transfer).await?))
}

/// An empty submission and the wait for it.
async fn round_trip(gpu: &Gpu) -> Result<f64> {
    let begin = Instant::now();
    for _ in 0..N_ROUND_TRIPS {
        submit_nothing(gpu);
        done(gpu).await?;
    }
    Ok((begin.elapsed().as_secs_f64() / f64::from(N_ROUND_TRIPS)).max(LEAST_SECS))
}

/// One of many empty submissions; the wait for them does not count.
async fn submission(gpu: &Gpu) -> Result<f64> {
    let begin = Instant::now();
    (0..N_SUBMISSIONS).for_each(|_| submit_nothing(gpu));
    let secs = begin.elapsed().as_secs_f64();
    done(gpu).await?;
    Ok((secs / f64::from(N_SUBMISSIONS)).max(LEAST_SECS))
}

fn submit_nothing(gpu: &Gpu) {
    let encoder = gpu.device.create_command_encoder(&Default::default());
    gpu.queue.submit([encoder.finish()]);
}

/// The shape of a product as that of one token with experts.
fn experts_of(params: &matmul::Params) -> expert_matmul::Params {
    let matmul::Params { n_rows, n_columns, n_tokens, .. } = *params;
    expert_matmul::Params {
        n_rows,
        n_columns,
        n_tokens,
        n_used: N_EXPERTS,
        expert_rows: n_rows / N_EXPERTS,
        first_row: 0,
        shares_input: 1,
        slot_bytes: 0,
        matrix_begin: 0,
        n_experts: N_EXPERTS,
    }
}

/// Buffers for products of any shape.
struct Bench<'a> {
    gpu: &'a Gpu,
    /// Matrices, one behind the other.
    pool: Buffer,
    input: Buffer,
    output: Buffer,
    params: ParamsArena,
}

impl<'a> Bench<'a> {
    async fn new(gpu: &'a Gpu, pool_size: Bytes) -> Result<Bench<'a>> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let bench = Bench {
            gpu,
            pool: gpu.buffer("probe weights", pool_size, usage, Purpose::Weights).await?,
            input: gpu.buffer("probe input", VALUES, usage, Purpose::Activations).await?,
            output: gpu.buffer("probe output", VALUES, usage, Purpose::Activations).await?,
            params: ParamsArena::new(gpu, 1).await?,
        };
        // wgpu clears memory at its first use; that must not fall into a run. Zero bytes decode to zeros in every dtype.
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        [&bench.pool, &bench.input, &bench.output].into_iter().for_each(|buffer| encoder.clear_buffer(buffer, 0, None));
        gpu.queue.submit([encoder.finish()]);
        done(gpu).await?;
        Ok(bench)
    }

    /// Compiles the products in `dtypes`; the median of the seconds that each took. A browser compiles elsewhere, and is done with it
    /// when the kernel has run.
    async fn compile(&mut self, dtypes: &[DType]) -> Result<f64> {
        let mut secs = Vec::new();
        for params in products::variants(dtypes) {
            secs.push(match platform::MAY_BLOCK {
                true => time(|| self.dispatch(&params, None, 0).map(drop))?,
                false => self.run(&params, 1).await?,
            });
        }
        Ok(middle(secs))
    }

    /// The dispatch of a product in this variant, or in the one that the kernels choose.
    fn dispatch(&self, params: &matmul::Params, variant: Option<MatMulVariant>, weight_begin: u64) -> Result<Dispatch> {
        let bindings = matmul::Bindings {
            weight: Binding::part(&self.pool, weight_begin, weight_bytes(params)),
            input: Binding::whole(&self.input),
            output: Binding::whole(&self.output),
        };
        let dispatch = match variant {
            Some(variant) => matmul::prepare_as(self.gpu, self.params.buffer(), params, bindings, variant),
            None => matmul::prepare(self.gpu, self.params.buffer(), params, bindings),
        }?;
        // What compiles in the background must not fall into a run.
        dispatch.pipeline.compiled();
        Ok(dispatch)
    }

    /// The same product as those of one token with experts, of whose matrices this is all.
    fn dispatch_experts(&self, params: &matmul::Params, weight_begin: u64) -> Result<Dispatch> {
        let bindings = expert_matmul::Bindings {
            weight: Binding::part(&self.pool, weight_begin, weight_bytes(params)),
            input: Binding::whole(&self.input),
            routing: None,
            slots: None,
            output: Binding::whole(&self.output),
        };
        let dtype = params.dtype().unwrap_or(DType::F32);
        let dispatch = expert_matmul::prepare(self.gpu, self.params.buffer(), &experts_of(params), dtype, bindings)?;
        dispatch.pipeline.compiled();
        Ok(dispatch)
    }

    /// Seconds of `repeats` products in one submission, as the engine records and runs them: each waits for the one before.
    async fn run(&mut self, params: &matmul::Params, repeats: usize) -> Result<f64> {
        let begin = self.submit(params, params, repeats, |bench, begin| bench.dispatch(params, None, begin))?;
        self.since(begin).await
    }

    /// The same of products with experts.
    async fn run_experts(&mut self, params: &matmul::Params, repeats: usize) -> Result<f64> {
        let begin = self.submit(params, &experts_of(params), repeats, |bench, begin| bench.dispatch_experts(params, begin))?;
        self.since(begin).await
    }

    /// Seconds from `begin` until all has run.
    async fn since(&self, begin: Instant) -> Result<f64> {
        done(self.gpu).await?;
        Ok(begin.elapsed().as_secs_f64().max(LEAST_SECS))
    }

    /// Seconds of a product in this variant, waited for in the driver.
    fn try_variant(&mut self, params: &matmul::Params, variant: MatMulVariant) -> Result<f64> {
        let begin = self.submit(params, params, 1, |bench, begin| bench.dispatch(params, Some(variant), begin))?;
        self.gpu.wait(None)?;
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Submits `repeats` products of this shape, whose kernel's params are `kernel_params` and whose matrix begins where `dispatch` is told;
    /// when that began.
    fn submit(
        &mut self,
        params: &matmul::Params,
        kernel_params: &impl bytemuck::Pod,
        repeats: usize,
        dispatch: impl Fn(&Bench<'_>, u64) -> Result<Dispatch>,
    ) -> Result<Instant> {
        self.params.clear();
        let offset = self.params.push(self.gpu, kernel_params)?;
        self.params.upload(self.gpu);
        let stride = Bytes(weight_bytes(params)).align_up(WEIGHT_ALIGNMENT).0;
        let n_places = (self.pool.size() / stride).clamp(1, MAX_PLACES.min(repeats as u64));
        let dispatches = (0..n_places).map(|place| dispatch(self, place * stride)).collect::<Result<Vec<_>>>()?;
        let begin = Instant::now();
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        dispatches.iter().cycle().take(repeats).for_each(|dispatch| dispatch.encode(&mut pass, offset));
        drop(pass);
        self.gpu.queue.submit([encoder.finish()]);
        Ok(begin)
    }
}
