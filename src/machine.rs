//! The machine as device specs: adapters, host memory, disk; and the rates measured on them, cached per adapter and driver.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use crate::device::{Device, DeviceSpec, Rates};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gpu::{self, AdapterFound, Gpu, ParamsArena, Purpose};
use crate::host;
use crate::kernels::{Binding, matmul};
use crate::platform::{self, DirectBuffer, HostMemory, IoMode};
use crate::units::{Bytes, BytesPerSec};

/// Share of the host's free memory that a plan may use when no budget is given: the rest is for everybody else.
const HOST_SHARE: f64 = 0.8;
/// Under which names the rates of the host and of its disk are kept.
const HOST_KEY: &str = "cpu";
const DISK_KEY: &str = "disk";
/// What one probe of the upload paths moves.
const PROBE_BYTES: Bytes = Bytes::mib(8);
/// How often it does so; the median counts.
const PROBE_RUNS: usize = 5;

/// All adapters, numbered `gpu:0`, `gpu:1`, ...; real GPUs first.
///
/// # Errors
/// Those of asking the drivers.
pub async fn adapters() -> Result<Vec<AdapterFound>> {
    gpu::list().await
}

/// Host memory and its cores.
pub fn host_spec() -> DeviceSpec {
    let HostMemory { total, available } = platform::host_memory();
    DeviceSpec {
        device: Device::Cpu,
        name: platform::cpu_name(),
        driver: format!("{} threads", platform::n_threads()),
        kind: None,
        capacity: Some(Bytes((available.0 as f64 * HOST_SHARE) as u64)),
        capacity_source: format!("80 % of the {available} that are free, of {total}"),
        limits: None,
        rates: kept_rates(HOST_KEY),
    }
}

/// The disk of the model's files.
pub fn disk_spec() -> DeviceSpec {
    DeviceSpec {
        device: Device::Disk,
        name: "the model's files".into(),
        driver: String::new(),
        kind: None,
        capacity: None,
        capacity_source: String::new(),
        limits: None,
        rates: kept_rates(DISK_KEY),
    }
}

fn kept_rates(key: &str) -> Rates {
    read_cache().get(key).copied().unwrap_or_default()
}

fn keep(key: String, rates: Rates) {
    let mut cache = read_cache();
    cache.insert(key, rates);
    write_cache(&cache);
}

/// The rates of both upload paths of an adapter: from the cache, else measured (a tenth of a second) and cached.
///
/// # Errors
/// Where the adapter cannot be opened. A cache that cannot be read or written is no error.
pub async fn upload_rates(found: &AdapterFound) -> Result<Rates> {
    let key = cache_key(found);
    let mut cache = read_cache();
    if let Some(rates) = cache.get(&key) {
        return Ok(*rates);
    }
    let rates = measure_uploads(found).await?;
    cache.insert(key, rates);
    write_cache(&cache);
    Ok(rates)
}

/// What is known of an adapter's rates without measuring.
pub fn known_rates(found: &AdapterFound) -> Rates {
    kept_rates(&cache_key(found))
}

/// Measures an adapter now and keeps the result for later plans.
///
/// # Errors
/// Where the adapter cannot be opened or a transfer fails.
pub async fn measure(found: &AdapterFound) -> Result<Rates> {
    let mut rates = measure_uploads(found).await?;
    let gpu = Gpu::open(found, Bytes(PROBE_BYTES.0 * 8), None).await?;
    rates.readback = Some(probe_readback(&gpu).await?);
    rates.submit_secs = Some(probe_submit(&gpu)?);
    rates.matvec = Some(probe_matvec(&gpu).await?);
    keep(cache_key(found), rates);
    Ok(rates)
}

/// Measures the host's copies and products now and keeps the result for later plans.
pub fn measure_host() -> Rates {
    let source = vec![0x5a_u8; PROBE_BYTES.0 as usize];
    let mut target = vec![0_u8; source.len()];
    let secs = median(|| {
        let begin = Instant::now();
        target.copy_from_slice(std::hint::black_box(&source));
        std::hint::black_box(&mut target);
        Ok(begin.elapsed().as_secs_f64())
    });
    let (n_rows, n_columns) = ((PROBE_BYTES.0 / 2 / 2048) as u32, 2048_u32);
    let params = matmul::Params::new(DType::F16, n_rows, n_columns, 1);
    let (input, mut output) = (vec![0.5; n_columns as usize], vec![0.0; n_rows as usize]);
    let product = median(|| {
        let begin = Instant::now();
        host::matmul(&params, &source, &input, std::hint::black_box(&mut output));
        Ok(begin.elapsed().as_secs_f64())
    });
    let rate = |secs: Result<f64>| secs.ok().map(|secs| BytesPerSec::from_transfer(PROBE_BYTES, secs));
    let rates = Rates { host_copy: rate(secs), matvec: rate(product), ..Rates::default() };
    keep(HOST_KEY.into(), rates);
    rates
}

/// Measures how fast a new file in the temporary folder is read past the page cache, and keeps the result for later plans.
///
/// # Errors
/// [`Error::Io`] where the file cannot be written or read.
pub fn measure_disk() -> Result<BytesPerSec> {
    const FILE_BYTES: usize = 64 << 20;
    let mut file = tempfile::NamedTempFile::new().map_err(|source| Error::io("write", "a temporary file", source))?;
    let path = file.path().to_owned();
    let failed = |source| Error::io("write", path.display(), source);
    let bytes: Vec<u8> = (0..FILE_BYTES).map(|index| (index / 512) as u8).collect();
    file.write_all(&bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    let source = platform::open_source(&path, IoMode::Pread)?;
    const READ_BYTES: usize = 4 << 20;
    source.drop_behind(0, FILE_BYTES as u64);
    let mut buffer = DirectBuffer::default();
    let begin = Instant::now();
    for offset in (0..FILE_BYTES).step_by(READ_BYTES) {
        source.read_passing(offset as u64, READ_BYTES, &mut buffer)?;
    }
    let rate = BytesPerSec::from_transfer(Bytes(FILE_BYTES as u64), begin.elapsed().as_secs_f64());
    keep(DISK_KEY.into(), Rates { disk_read: Some(rate), ..Rates::default() });
    Ok(rate)
}

async fn probe_readback(gpu: &Gpu) -> Result<BytesPerSec> {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
    let buffer = gpu.buffer("probe", PROBE_BYTES, usage, Purpose::Activations).await?;
    let mut secs = Vec::with_capacity(PROBE_RUNS);
    for _ in 0..PROBE_RUNS {
        let begin = Instant::now();
        gpu::read(gpu, &buffer, 0, PROBE_BYTES.0).await?;
        secs.push(begin.elapsed().as_secs_f64());
    }
    secs.sort_by(f64::total_cmp);
    Ok(BytesPerSec::from_transfer(PROBE_BYTES, secs[PROBE_RUNS / 2]))
}

/// One empty submission and the wait for it.
fn probe_submit(gpu: &Gpu) -> Result<f64> {
    median(|| {
        let begin = Instant::now();
        let encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let submission = gpu.queue.submit([encoder.finish()]);
        gpu.wait(Some(submission))?;
        Ok(begin.elapsed().as_secs_f64())
    })
}

/// Bytes of an f16 matrix that a matrix × vector product reads per second.
async fn probe_matvec(gpu: &Gpu) -> Result<BytesPerSec> {
    let (n_rows, n_columns) = ((PROBE_BYTES.0 / 2 / 2048) as u32, 2048_u32);
    let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    let weight = gpu.buffer("probe weight", PROBE_BYTES, storage, Purpose::Weights).await?;
    let input = gpu.buffer("probe input", Bytes(u64::from(n_columns) * 4), storage, Purpose::Activations).await?;
    let output = gpu.buffer("probe output", Bytes(u64::from(n_rows) * 4), storage, Purpose::Activations).await?;
    let mut arena = ParamsArena::new(gpu, 1).await?;
    let params = matmul::Params::new(DType::F16, n_rows, n_columns, 1);
    let offset = arena.push(gpu, &params)?;
    arena.upload(gpu);
    let bindings = matmul::Bindings { weight: Binding::whole(&weight), input: Binding::whole(&input), output: Binding::whole(&output) };
    let dispatch = matmul::prepare(gpu, arena.buffer(), &params, bindings)?;
    let run = || {
        let begin = Instant::now();
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        dispatch.encode(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()), offset);
        let submission = gpu.queue.submit([encoder.finish()]);
        gpu.wait(Some(submission))?;
        Ok(begin.elapsed().as_secs_f64())
    };
    // The first run compiles.
    run()?;
    Ok(BytesPerSec::from_transfer(PROBE_BYTES, median(run)?))
}

fn median(mut run: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut secs = (0..PROBE_RUNS).map(|_| run()).collect::<Result<Vec<_>>>()?;
    secs.sort_by(f64::total_cmp);
    Ok(secs[PROBE_RUNS / 2])
}

/// By the driver's own name, so that shares of an adapter have its rates.
fn cache_key(found: &AdapterFound) -> String {
    format!("{} | {}", found.adapter.get_info().name, found.spec.driver)
}

/// Measures both upload paths now.
///
/// # Errors
/// Where the adapter cannot be opened or a transfer fails.
pub async fn measure_uploads(found: &AdapterFound) -> Result<Rates> {
    let gpu = Gpu::open(found, Bytes(PROBE_BYTES.0 * 4), None).await?;
    let mut rates = Rates { upload_staged: Some(probe(&gpu, false).await?), ..Rates::default() };
    if gpu.mappable {
        rates.upload_mapped = Some(probe(&gpu, true).await?);
    }
    Ok(rates)
}

/// One path's rate: host memory to where kernels can read it, waiting for each transfer.
async fn probe(gpu: &Gpu, mapped: bool) -> Result<BytesPerSec> {
    let map = wgpu::BufferUsages::MAP_WRITE;
    let (host_usage, slot_usage) = (map | wgpu::BufferUsages::COPY_SRC, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST);
    let host_usage = if mapped { map | wgpu::BufferUsages::STORAGE } else { host_usage };
    let memory = gpu.buffer("probe", PROBE_BYTES, host_usage, Purpose::Staging).await?;
    let slot = if mapped { None } else { Some(gpu.buffer("probe slot", PROBE_BYTES, slot_usage, Purpose::Slots).await?) };
    let bytes = vec![0x5a_u8; PROBE_BYTES.0 as usize];
    let failed = |fault: String| Error::Gpu { adapter: gpu.spec.name.clone(), fault: format!("the upload probe failed: {fault}") };
    let mut secs = Vec::with_capacity(PROBE_RUNS);
    for _ in 0..PROBE_RUNS {
        let begin = Instant::now();
        let (sender, receiver) = futures_channel::oneshot::channel();
        memory.slice(..).map_async(wgpu::MapMode::Write, move |result| drop(sender.send(result)));
        gpu.wait(None)?;
        receiver.await.map_err(|fault| failed(fault.to_string()))?.map_err(|fault| failed(fault.to_string()))?;
        memory.slice(..).get_mapped_range_mut().map_err(|fault| failed(fault.to_string()))?.copy_from_slice(&bytes);
        memory.unmap();
        if let Some(slot) = &slot {
            let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(&memory, 0, slot, 0, PROBE_BYTES.0);
            gpu.queue.submit([encoder.finish()]);
        }
        gpu.wait(None)?;
        secs.push(begin.elapsed().as_secs_f64());
    }
    gpu.check()?;
    secs.sort_by(f64::total_cmp);
    Ok(BytesPerSec::from_transfer(PROBE_BYTES, secs[PROBE_RUNS / 2]))
}

fn cache_file() -> Option<PathBuf> {
    Some(platform::cache_folder()?.join("rates.json"))
}

fn read_cache() -> BTreeMap<String, Rates> {
    let read = || serde_json::from_slice(&std::fs::read(cache_file()?).ok()?).ok();
    read().unwrap_or_default()
}

fn write_cache(cache: &BTreeMap<String, Rates>) {
    let Some(path) = cache_file() else { return };
    if let Ok(text) = serde_json::to_vec_pretty(cache)
        && let Err(error) = platform::write_atomically(&path, &text)
    {
        tracing::debug!("the measured rates were not cached: {error}");
    }
}
